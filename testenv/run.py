"""From the lock request to the command's end: the client's life, step by step."""

import asyncio
import os
import pwd

from broker.client import first_link
from broker.link import PING_INTERVAL_S, PING_TIMEOUT_S, Link
from broker.worker import Assignment
from schemas.errors import ConnectionLost, LeaseLost, LeaseTimeout, LockError, OfferRefused
from schemas.lock import LockRequest, parse_offer
from schemas.names import callback_function, random_id
from testenv.acquire import Lock, any_of, describe_end, lock_requested, running, wait_for_offer
from testenv.command import GUARD_SLACK_S, Command
from testenv.errors import GuardLost
from testenv.guard import Guard, LastWill
from testenv.options import Options
from testenv.report import Report
from testenv.signals import Signals
from testenv.talk import Talk
from testenv.workspace import workspace

_SILENCE_S = 1.0

_IDLE_S = 0.02
"""Whoever has waited this long has the time to prepare for its command."""

_GOODBYE_S = 3.0
"""How long the agent gets to confirm the end of a lease."""

_LAST_IN_LINE = 19
"""nice(2)'s lowest priority."""

_GUARD_LATER_S = 1.0
"""How much later than the client its guard minds the timeout: the client says why."""

_STOP_SLACK_S = 1.0
"""What noticing, and sending signals, takes on a busy machine."""


async def run_in_environment(options: Options, guard: Guard, report: Report, talk: Talk) -> int:
    """Lock an environment, run the command in it, give it back.

    Returns waitpid(2)'s status of a command that ended by itself, and fills in what `report` has
    of the lease. Whatever is raised, nothing of the command is alive then: TestenvError for the
    expected, Interrupted for a signal while waiting, OSError.
    """
    with Signals() as signals:
        command = Command(options.command[0], guard, options.kill_after_s, signals.suspend)
        try:
            return await _Run(options, command, signals, report, talk).run()
        except asyncio.CancelledError:
            if signals.interrupt is None:
                raise
            raise signals.interrupt from None


class _Run:
    """One client's life: connect, wait, run the command, say goodbye."""

    def __init__(
        self, options: Options, command: Command, signals: Signals, report: Report, talk: Talk
    ) -> None:
        self._options = options
        self._command = command
        self._signals = signals
        self._report = report
        self._talk = talk
        self._clock = asyncio.get_running_loop().time

    async def run(self) -> int:
        options = self._options
        request = lock_request(options)
        async with (
            await self._connect() as link,
            lock_requested(link, options.function, request, random_id()) as lock,
        ):
            offer = await self._wait(lock)
            deadline = self._clock() + options.timeout_s
            self._report.name_lease(parse_offer(offer.arguments))
            check_host(offer.submitter, self._report.environment)
            lock.lease = self._report.lease
            name = self._report.environment or "an environment"
            self._talk.say(f"got {name} after {self._report.waited_s:.1f} s")
            self._signals.relay_to(self._command)
            try:
                return await self._use(offer, lock, deadline)
            finally:
                if self._command.may_have_run:  # else the context declines: nobody touched it
                    await _give_back(offer, lock)

    async def _connect(self) -> Link:
        """A link to a broker, which may just be restarting."""
        options = self._options
        client_id = f"client-{options.jobnum}"
        async with running(self._tell_silence()):
            return await first_link(
                options.brokers, client_id, options.connect_timeout_s, persist=True
            )

    async def _tell_silence(self) -> None:
        await asyncio.sleep(_SILENCE_S)
        brokers = ", ".join(map(str, self._options.brokers))
        patience = f"{self._options.connect_timeout_s:g} s"
        self._talk.say(f"no broker answers yet at {brokers}; trying for {patience}")

    async def _wait(self, lock: Lock) -> Assignment:
        options = self._options
        what = f"{options.function} at {lock.link.endpoint} as job {options.jobnum}"
        self._talk.say(f"waiting for {what}")
        asked = self._clock()
        try:
            async with running(self._prepare()):
                return await wait_for_offer(lock, options.wait_timeout_s, self._talk)
        finally:
            self._report.waited_s = self._clock() - asked

    async def _prepare(self) -> None:
        await asyncio.sleep(_IDLE_S)
        self._command.prepare()

    async def _use(self, offer: Assignment, lock: Lock, deadline: float) -> int:
        """Run the command until it has ended, or must; nothing of it is alive afterwards."""
        command = self._command
        name = self._report.lease or self._options.jobnum
        with workspace(name, offer.arguments, self._options.datafile) as files:
            left = deadline - self._clock() + _GUARD_LATER_S
            will = LastWill(lock.link.fileno(), offer.completion, left)
            await command.start(files.environment, str(files.directory), will)
            try:
                failure = await self._until_over(lock, deadline)
                if failure:
                    self._talk.say("the lease is over; stopping the command")
            finally:
                unkillable = await command.end()
                self._report.ran_s = command.ran_s
                # Before we tidy up, which would take the next job's time, and its CPU.
                await _give_back(offer, lock)
        if unkillable:
            self._talk.say(f"{unkillable} processes of the command cannot be ended")
        status = command.exited.result()
        if failure:
            raise failure
        if status is None:
            raise GuardLost("the command cannot be ended")
        return status

    async def _until_over(self, lock: Lock, deadline: float) -> LockError | None:
        """Wait for the command's end (None), or for what must end it."""
        exited = self._command.exited
        await any_of(exited, lock.ended, lock.lost, timeout=deadline - self._clock())
        if exited.done():
            return None
        if not lock.ended.done():
            if lock.lost.done():
                return LeaseLost(lock.lost.result())
            return LeaseTimeout(self._options.timeout_s)
        try:
            return LeaseLost(describe_end(lock.ended.result()))
        except ConnectionLost as loss:
            lost = LeaseLost(str(loss))
            lost.__cause__ = loss
            return lost


def check_host(submitter: str, environment: str | None) -> None:
    """Raise OfferRefused for a host that offers another's environment as its own.

    `submitter` is the broker's word for who offers (docs/security.md); without TLS it proves
    nothing, and version 1 names no environment.
    """
    role, _, host = submitter.partition("/")
    if role == "host" and environment and not environment.startswith(f"{host}/"):
        raise OfferRefused(f"{environment} is offered by {submitter}")


async def _give_back(offer: Assignment, lock: Lock) -> None:
    """End the lease, and wait until its host has heard."""
    if offer.complete():
        os.nice(_LAST_IN_LINE)  # the next holder's command may start on this machine
        await any_of(lock.ended, timeout=_GOODBYE_S)


def lock_request(options: Options) -> LockRequest:
    """What is asked of the agent, and promised to it."""
    return LockRequest(
        # Two clients of one job number must never be called for each other.
        callback=callback_function(f"{options.jobnum}_{random_id()[:8]}"),
        timeout_s=options.timeout_s,
        holder=f"{options.jobnum} {_user()}@{os.uname().nodename}",
        # A broken link is noticed at the latest when a ping's answer stays out.
        stops_within_s=PING_INTERVAL_S
        + PING_TIMEOUT_S
        + options.kill_after_s
        + GUARD_SLACK_S
        + _STOP_SLACK_S,
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # containers run as users that nobody has named
        return str(os.getuid())
