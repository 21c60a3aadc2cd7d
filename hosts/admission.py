"""Whether new leases are admitted: the one switch that cordon, uncordon and shutdown turn."""

import asyncio


class Admission:
    """Shared by all slots of an agent.

    `closed` is set while no lease may begin (cordoned or stopped), and is what a waiting worker
    withdraws on. `stopped` is set once and for all, when the agent shuts down; `leaving` after
    that, when nothing is left that it must wait for: leases that outlive it are let go.
    """

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.stopped = asyncio.Event()
        self.leaving = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()

    @property
    def cordoned(self) -> bool:
        return self.closed.is_set() and not self.stopped.is_set()

    def cordon(self) -> None:
        """Admit no new lease; those that run go on."""
        self._open.clear()
        self.closed.set()

    def uncordon(self) -> None:
        """Admit again; nothing after `stop`."""
        if not self.stopped.is_set():
            self.closed.clear()
            self._open.set()

    def stop(self) -> None:
        """Admit no new lease ever again."""
        self.stopped.set()
        self.closed.set()
        self._open.set()

    def leave(self) -> None:
        """Let go of the leases that outlive the agent; after `stop`."""
        self.leaving.set()

    async def admitted(self) -> bool:
        """Wait while cordoned, however long a person wants it so; False once stopped."""
        await self._open.wait()
        return not self.stopped.is_set()
