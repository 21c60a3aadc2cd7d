"""One host's agent, with environments that are nothing but a data file, and short terms.

    python -m tests.chaos.agent NAME STATE_DIR DATAFILE BROKERS ENVIRONMENTS

A real agent with its journal in STATE_DIR; `testenv-host serve` would have one environment.
"""

import asyncio
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from broker.endpoint import Endpoint, parse_endpoints
from hosts.agent import Agent, sole_agent
from hosts.caretaker import ReadyMade
from hosts.journal import Journal
from hosts.journal_file import JOURNAL_NAME
from hosts.slot import SlotTiming
from schemas.config import LeaseSection
from schemas.names import environment_id

TERMS = LeaseSection(beat_s=0.3, ttl_s=6, margin_s=2, reattach_s=2, untaken_s=2).terms


async def serve(
    name: str, state_dir: Path, datafile: Path, brokers: Sequence[Endpoint], environments: int
) -> None:
    """Until a signal ends it."""
    caretakers = [
        ReadyMade(datafile, environment_id(name, number), str(number))
        for number in range(1, environments + 1)
    ]
    async with Journal.open(state_dir / JOURNAL_NAME, now=partial(datetime.now, UTC)) as journal:
        timing = SlotTiming(TERMS)
        await Agent(name, brokers, caretakers, journal, drain_timeout_s=0, timing=timing).run()


def main() -> None:
    """See the module."""
    name, state_dir, datafile, brokers, environments = sys.argv[1:]
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    endpoints = parse_endpoints(brokers, "BROKERS")
    with sole_agent(Path(state_dir)):
        asyncio.run(serve(name, Path(state_dir), Path(datafile), endpoints, int(environments)))


if __name__ == "__main__":
    main()
