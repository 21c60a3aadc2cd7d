"""From the lock request to the command's end: the client's life, step by step."""

import asyncio
import os
import pwd
import signal
from contextlib import AsyncExitStack, ExitStack
from typing import Protocol

from schemas.errors import LeaseLost, LeaseTimeout, LockError, NoEnvironment, OfferRefused
from schemas.legs import INTERRUPTED, Result
from schemas.lock import LockRequest
from schemas.names import callback_function, random_id
from testenv.acquire import Acquired, Acquisition, Wish, any_of, running
from testenv.command import Command
from testenv.errors import GuardLost
from testenv.guard import Guard, LastWill, boottime
from testenv.line import Inbox, decline
from testenv.options import Options
from testenv.report import Reason, Report
from testenv.signals import Signals
from testenv.talk import Talk
from testenv.workspace import workspace

_IDLE_S = 0.02
"""Whoever has waited this long has the time to prepare for its command."""

_STOP_SLACK_S = 1.0
"""What noticing, and sending signals, takes on a busy machine."""

_LAST_IN_LINE = 19
"""nice(2)'s lowest priority."""


class LeaseKeeper(Protocol):
    """What keeps a lease while its command runs, in whichever version its host speaks."""

    @property
    def due(self) -> float:
        """When the command is told to end, in seconds of CLOCK_BOOTTIME."""

    @property
    def stop_s(self) -> float:
        """How long it may take then."""

    def farewell(self) -> bytes:
        """What the guard writes to the broker for a killed client."""

    def last_words(self) -> tuple[str, bytes]:
        """What it submits instead, and to which function, over a connection of its own."""

    def when_closed(self) -> tuple[float, float] | None:
        """What the guard does once the connection is closed, if we don't see it: see LastWill."""

    @property
    def over(self) -> "asyncio.Future[LockError]":
        """Why the lease is over before its command, once it is."""

    async def run(self) -> None:
        """Keep the lease, until cancelled."""

    async def end(self, result: Result, /) -> None:
        """The command is dead: tell the host, within a bound."""


async def run_in_environment(options: Options, guard: Guard, report: Report, talk: Talk) -> int:
    """Lock an environment, run the command in it, give it back.

    Returns waitpid(2)'s status of a command that ended by itself, and fills in what `report` has
    of the lease. Whatever is raised, nothing of the command is alive then: TestenvError for the
    expected, Interrupted for a signal while waiting, OSError.
    """
    with Signals() as signals:
        command = Command(options.command[0], guard, options.kill_after_s, signals.suspend)
        try:
            return await _Run(options, guard, command, signals, report, talk).run()
        except asyncio.CancelledError:
            if signals.interrupt is None:
                raise
            raise signals.interrupt from None


class _Run:
    """One client's life: ask, wait, run the command, say goodbye."""

    def __init__(
        self,
        options: Options,
        guard: Guard,
        command: Command,
        signals: Signals,
        report: Report,
        talk: Talk,
    ) -> None:
        self._options = options
        self._guard = guard
        self._command = command
        self._signals = signals
        self._report = report
        self._talk = talk
        self._inbox: Inbox = asyncio.Queue()
        self._stack = AsyncExitStack()
        self._wish = wish_of(options)
        self._clock = asyncio.get_running_loop().time

    async def run(self) -> int:
        async with self._stack:
            acquired = await self._acquire()
            self._report.name_lease(acquired.document)
            name = self._report.environment or "an environment"
            try:
                check_host(acquired.call.submitter, self._report.environment)
            except OfferRefused:
                decline(acquired.call)
                raise
            self._talk.say(f"got {name} after {self._report.waited_s:.1f} s")
            self._signals.relay_to(self._command)
            keeper = self._keeper(acquired)
            async with running(keeper.run()) as keeping:
                return await self._use(acquired, keeper, keeping)

    async def _acquire(self) -> Acquired:
        """Wait, telling every now and then what for.

        Raises NoEnvironment, GuardLost if the guard is killed meanwhile, and as Acquisition.
        """
        patience_s = self._options.wait_timeout_s
        grace_s = self._options.kill_after_s + _STOP_SLACK_S
        bound = asyncio.timeout(None)

        def asked_for() -> None:
            # While the broker looks for a host: what an offer needs.
            import testenv.keeper
            import testenv.keeper_v1  # noqa: F401 - as above

            if patience_s is not None:
                bound.reschedule(self._clock() + patience_s)

        waiting = Acquisition(self._wish, self._inbox, self._stack, grace_s, self._talk, asked_for)
        asked = self._clock()
        try:
            async with running(self._prepare(waiting)), running(waiting.acquired()) as acquiring:
                async with bound:
                    await any_of(acquiring, self._command.exited)
                if not acquiring.done():
                    raise GuardLost
                return acquiring.result()
        except TimeoutError as exc:
            from testenv.news import situation

            news = await situation(waiting, self._options.function)
            raise NoEnvironment(self._options.function, patience_s or 0, news) from exc
        finally:
            self._report.waited_s = self._clock() - asked

    async def _prepare(self, waiting: Acquisition) -> None:
        """Use the time that there is while waiting."""
        await asyncio.sleep(_IDLE_S)
        self._command.prepare()
        from testenv.news import tell_news

        await tell_news(waiting, self._options.function, self._talk)

    def _keeper(self, acquired: Acquired) -> LeaseKeeper:
        from testenv.keeper import Keeper
        from testenv.keeper_v1 import KeeperV1

        options = self._options
        if acquired.offered is None or acquired.tenure is None:
            return KeeperV1(acquired, options.timeout_s, options.kill_after_s, self._inbox)
        return Keeper(
            acquired,
            acquired.offered,
            acquired.tenure,
            wish=self._wish,
            timeout_s=options.timeout_s,
            guard=self._guard,
            inbox=self._inbox,
            stack=self._stack,
            talk=self._talk,
        )

    async def _use(
        self, acquired: Acquired, keeper: LeaseKeeper, keeping: "asyncio.Task[None]"
    ) -> int:
        """Run the command until it has ended, or must; nothing of it is alive afterwards."""
        command = self._command
        name = self._report.lease or self._options.jobnum
        failure = None
        with ExitStack() as stack:
            try:
                space = workspace(name, acquired.call.arguments, self._options.datafile)
                files = stack.enter_context(space)
            except OSError:
                await self._give_back(keeper, keeping, Result(Reason.NOT_STARTED))
                raise
            self._guard.until(keeper.due, keeper.stop_s)
            fd = acquired.line.link.fileno()
            will = LastWill(fd, keeper.farewell(), *keeper.last_words(), keeper.when_closed())
            try:
                await command.start(files.environment, str(files.directory), will)
                failure = await self._until_over(keeper, keeping)
            finally:
                await self._wind_up(keeper, keeping, failure)
        if failure:
            raise failure
        status = command.exited.result()
        if status is None:
            raise GuardLost("the command cannot be ended")
        return status

    async def _until_over(
        self, keeper: LeaseKeeper, keeping: "asyncio.Task[None]"
    ) -> LockError | None:
        """Wait for the command's end (None), or for what must end it."""
        exited = self._command.exited
        await any_of(exited, keeper.over, keeping)
        if exited.done() and boottime() > keeper.due:
            # We were stopped (SIGSTOP), and its guard has ended it in time; or it was too late.
            await any_of(keeper.over, keeping)
        if keeper.over.done():
            if not exited.done():
                self._talk.say("the lease is over; stopping the command")
            return keeper.over.result()
        if exited.done() and self._command.was_due:
            return LeaseLost("its connection was lost, and this client did not act in time")
        return None if exited.done() else await _why(keeping)

    async def _wind_up(
        self, keeper: LeaseKeeper, keeping: "asyncio.Task[None]", failure: LockError | None
    ) -> None:
        """See the command dead, and give its environment back. Raises GuardLost."""
        command = self._command
        try:
            if unkillable := await command.end(self._grace_s(keeper, failure)):
                self._talk.say(f"{unkillable} processes of the command cannot be ended")
        finally:
            self._report.ran_s = command.ran_s
            # Before we tidy up, which would take the next job's time, and its CPU.
            await self._give_back(keeper, keeping, self._result(failure))

    async def _give_back(
        self, keeper: LeaseKeeper, keeping: "asyncio.Task[None]", result: Result
    ) -> None:
        """Nothing of the command is alive."""
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        os.nice(_LAST_IN_LINE)  # the next holder's command may start on this machine
        await keeper.end(result)

    def _grace_s(self, keeper: LeaseKeeper, failure: LockError | None) -> float | None:
        """From SIGTERM to SIGKILL; None for as long as its user wants."""
        if failure is None or isinstance(failure, LeaseTimeout):
            return None
        return max(0.0, min(self._options.kill_after_s, keeper.stop_s - _STOP_SLACK_S))

    def _result(self, failure: LockError | None) -> Result:
        hold_s = self._options.hold_s
        if isinstance(failure, LeaseTimeout):
            return Result(str(failure), failure.exit_status, hold_s)
        if failure:
            return Result(str(failure))
        exited = self._command.exited
        status = exited.result() if exited.done() else None
        if status is None:
            return Result(Reason.NOT_STARTED)
        code = os.waitstatus_to_exitcode(status)
        if self._signals.has_cancelled or code == -signal.SIGINT:
            return Result(INTERRUPTED, code)
        reason = Reason.EXITED if code >= 0 else Reason.SIGNALLED
        return Result(reason, code, hold_s if code else None)


async def _why(keeping: "asyncio.Task[None]") -> LockError:
    """A defect has ended what runs until it is cancelled: raises it."""
    await keeping
    raise AssertionError("a keeper keeps until it is cancelled")


def check_host(submitter: str, environment: str | None) -> None:
    """Raise OfferRefused for a host that offers another's environment as its own.

    `submitter` is the broker's word for who offers (docs/security.md); without TLS it proves
    nothing, and version 1 names no environment.
    """
    role, _, host = submitter.partition("/")
    if role == "host" and environment and not environment.startswith(f"{host}/"):
        raise OfferRefused(f"{environment} is offered by {submitter}")


def wish_of(options: Options) -> Wish:
    """What is asked of brokers and agents; another one each time."""
    request = LockRequest(
        # Two clients of one job number must never be called for each other.
        callback=callback_function(f"{options.jobnum}_{random_id()[:8]}"),
        timeout_s=options.timeout_s,
        holder=f"{options.jobnum} {_user()}@{os.uname().nodename}",
        job=options.jobnum,
        version=2,
    )
    return Wish(
        options.brokers,
        f"client-{options.jobnum}",
        options.function,
        request,
        random_id(),
        options.connect_timeout_s,
        f" as job {options.jobnum}",
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # containers run as users that nobody has named
        return str(os.getuid())
