"""The command's process before it is the command: it is forked early, and waits for its order.

A fork takes a guard longer than all else between the order and the command, and there is time for
it while the client waits for an environment.
"""

import json
import os
import signal
from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

from testenv import reaper
from testenv.terminal import Terminal

_NEVER_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
"""Python ignores them for itself."""


class Launcher:
    """A child of this process that becomes `argv`: `go` once, or let it die with its parent.

    `reset`: signals that this process ignores and the command must not. The child leads a process
    group of its own. To be made while this process has one thread.
    """

    def __init__(
        self, argv: Sequence[str], terminal: Terminal | None, reset: Collection[signal.Signals]
    ) -> None:
        order, self._order = os.pipe()
        self._answer, answer = os.pipe()
        guard = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._order)
            os.close(self._answer)
            _be_launched(argv, terminal, reset, guard, order, answer)
        os.close(order)
        os.close(answer)

    def go(self, environment: Mapping[str, str], *, foreground: bool) -> None:
        """Become the command, with `environment` added, and with the terminal if `foreground`.

        Raises OSError if it can't; the child is gone then.
        """
        try:
            with os.fdopen(self._order, "w") as order:
                json.dump([dict(environment), foreground], order)
            with os.fdopen(self._answer) as answer:
                # Exec closes the other end without a word.
                number = answer.read()
        except BrokenPipeError as exc:
            raise ChildProcessError(exc.errno, "killed before it could start") from exc
        if number:
            os.waitpid(self.pid, 0)
            raise OSError(int(number), os.strerror(int(number)))


def _be_launched(
    argv: Sequence[str],
    terminal: Terminal | None,
    reset: Collection[signal.Signals],
    guard: int,
    order: int,
    answer: int,
) -> NoReturn:
    """The child's life, on its parent's stack, which nothing may unwind."""
    try:
        os.setpgid(0, 0)
        reaper.die_with_parent(guard)
        with os.fdopen(order) as orders:
            text = orders.read()
        if text:
            environment, foreground = json.loads(text)
            if terminal and foreground:
                terminal.give_to(os.getpid())
            for number in (*reset, *_NEVER_IGNORED):
                signal.signal(number, signal.SIG_DFL)
            os.execvpe(argv[0], list(argv), {**os.environ, **environment})  # noqa: S606 - that is its job
    except OSError as exc:
        os.write(answer, str(exc.errno).encode())
    finally:
        os._exit(1)
