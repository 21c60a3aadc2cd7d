"""What can go wrong in our own two commands only; the rest of the tree is in schemas.errors."""

import signal

from schemas.errors import HostError, LockError, TestenvError
from schemas.exits import ExitStatus


class RequestFailed(LockError):
    """The lock request for `function` ended before any environment was offered."""

    exit_status = ExitStatus.LEASE_LOST

    def __init__(self, function: str, why: str) -> None:
        self.function = function
        self.why = why
        super().__init__(
            f"no environment of {function} was offered: {why}",
            remedy="try again, or look at testenv status",
        )


class AgentRefused(HostError):
    """The agent answered that it can't do what was asked for."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"the agent refused: {why}")


class GuardLost(TestenvError):
    """The guard died or hung, and the command was killed: a defect, or somebody's SIGKILL."""

    def __init__(self, what: str = "the command's guard died, and the command with it") -> None:
        super().__init__(what)


class Interrupted(Exception):
    """Signal `number` came before there was a command to take it. Ends the client as 128+n."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"interrupted by {signal.Signals(number).name} while waiting")
