"""What is done to whom, and when: decided by the seed alone, not by the machine's timing."""

import random
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

BROKERS = 2
AGENTS = 3
ENVIRONMENTS = 4
"""Of each agent."""
MACHINES = 3
"""The clients are spread over so many; a machine, or a host, is a site that can be cut off."""
SITES = AGENTS + MACHINES

_MEAN_PAUSE_S = 0.8


class Victim(StrEnum):
    """What a fault happens to; their numbers start at 0. Site n is agent n's, or a machine's."""

    CLIENT = "client"
    AGENT = "agent"
    BROKER = "broker"
    SITE = "site"
    WIRE = "wire"
    """Number site * BROKERS + broker."""


class Fault(StrEnum):
    """Kills are SIGKILLs, stops SIGSTOPs; what can start again, does when the fault is over."""

    KILL_CLIENT = "client killed"
    KILL_GUARD = "guard killed"
    KILL_BOTH = "client and guard killed"
    STOP_CLIENT = "client stopped"
    STOP_GUARD = "guard stopped"
    KILL_AGENT = "agent killed"
    STOP_AGENT = "agent stopped"
    KILL_BROKER = "broker killed"
    STOP_BROKER = "broker stopped"
    CUT_OFF = "site cut off"
    SILENCE = "wire silent"
    SLOW = "wire slow"
    RESET = "wire reset"


class Kind(NamedTuple):
    """Of a fault: whom it strikes, how often beside the others, and how many seconds it lasts."""

    victim: Victim
    weight: int
    shortest_s: float = 0.0
    longest_s: float = 0.0


KINDS = {
    Fault.KILL_CLIENT: Kind(Victim.CLIENT, 5),
    Fault.KILL_GUARD: Kind(Victim.CLIENT, 2),
    Fault.KILL_BOTH: Kind(Victim.CLIENT, 4),
    Fault.STOP_CLIENT: Kind(Victim.CLIENT, 3, 0.5, 12.0),
    # Stopped for longer, or together with its client, nothing is left that could end a command.
    Fault.STOP_GUARD: Kind(Victim.CLIENT, 1, 0.3, 2.0),
    Fault.KILL_AGENT: Kind(Victim.AGENT, 2, 0.1, 4.0),
    Fault.STOP_AGENT: Kind(Victim.AGENT, 1, 0.5, 12.0),
    Fault.KILL_BROKER: Kind(Victim.BROKER, 2, 0.1, 4.0),
    Fault.STOP_BROKER: Kind(Victim.BROKER, 1, 0.5, 8.0),
    Fault.CUT_OFF: Kind(Victim.SITE, 1, 0.5, 12.0),
    Fault.SILENCE: Kind(Victim.WIRE, 2, 0.5, 8.0),
    Fault.SLOW: Kind(Victim.WIRE, 1, 1.0, 8.0),
    Fault.RESET: Kind(Victim.WIRE, 3),
}


class Planned(NamedTuple):
    """One fault, `at` seconds after the beginning."""

    at: float
    fault: Fault
    number: int
    lasts_s: float

    @property
    def victim(self) -> Victim:
        """What it happens to."""
        return KINDS[self.fault].victim

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.at:.1f} s: {self.fault}: {self.victim} {self.number}{lasts}"


def schedule(seed: str, seconds: float, clients: int) -> Sequence[Planned]:
    """All that happens in so many seconds. No victim has two lasting faults at a time."""
    dice = random.Random(f"faults {seed}")  # noqa: S311 - reproducible, not secret
    numbers = {
        Victim.CLIENT: clients,
        Victim.AGENT: AGENTS,
        Victim.BROKER: BROKERS,
        Victim.SITE: SITES,
        Victim.WIRE: SITES * BROKERS,
    }
    weights = [kind.weight for kind in KINDS.values()]
    free_at: dict[tuple[Victim, int], float] = {}
    planned = []
    at = 1.0
    while at < seconds:
        fault = dice.choices(list(KINDS), weights)[0]
        kind = KINDS[fault]
        number = dice.randrange(numbers[kind.victim])
        lasts_s = dice.uniform(kind.shortest_s, kind.longest_s)
        if at >= free_at.get((kind.victim, number), 0.0):
            planned.append(Planned(at, fault, number, lasts_s))
            free_at[kind.victim, number] = at + lasts_s
        at += dice.expovariate(1 / _MEAN_PAUSE_S)
    return planned
