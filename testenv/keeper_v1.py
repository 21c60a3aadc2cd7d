"""Keep a lease that a version 1 host, toci's, has given: no beats, no way back (docs/leases.md)."""

import asyncio
from contextlib import suppress

from schemas.errors import ConnectionLost, LeaseLost, LeaseTimeout, LockError
from schemas.legs import Result
from testenv.acquire import Acquired, running
from testenv.guard import boottime
from testenv.line import Inbox, News, decline, describe_end

_HOST_WATCH_S = 5.0

_GOODBYE_S = 3.0
"""How long the host gets to confirm the end of a lease."""


class KeeperV1:
    """See LeaseKeeper in testenv.run. The lease is lost as soon as its broker connection is."""

    def __init__(
        self, acquired: Acquired, timeout_s: float, kill_after_s: float, inbox: Inbox
    ) -> None:
        self._acquired = acquired
        self._timeout_s = timeout_s
        self.due = acquired.since + timeout_s
        self.stop_s = kill_after_s
        self._inbox = inbox
        self.over: asyncio.Future[LockError] = asyncio.get_running_loop().create_future()

    def farewell(self) -> bytes:
        """See LeaseKeeper."""
        return self._acquired.call.completion()

    def last_words(self) -> tuple[str, bytes]:
        """See LeaseKeeper; version 1 has none."""
        return "", b""

    def when_closed(self) -> None:
        """See LeaseKeeper; version 1 hosts tell nobody when they take a client for dead."""

    async def run(self) -> None:
        """See LeaseKeeper."""
        async with running(self._host_gone()) as gone, running(self._told()) as told:
            left_s = max(0.0, self.due - boottime())
            done, _ = await asyncio.wait(
                (gone, told), timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            self.over.set_result(done.pop().result() if done else LeaseTimeout(self._timeout_s))
            await asyncio.Future()

    async def end(self, _: Result) -> None:
        """See LeaseKeeper; version 1 has no results."""
        if self._acquired.call.complete():
            with suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await self._told()

    async def _told(self) -> LockError:
        line = self._acquired.line
        while True:
            message = await self._inbox.get()
            if message.news is News.CALL:
                decline(message.value)
            elif message.line is line and message.news is News.ENDED:
                return LeaseLost(describe_end(message.value))
            elif message.line is line and message.news is News.LOST:
                return LeaseLost(str(message.value))

    async def _host_gone(self) -> LockError:
        """Notice that the host is gone.

        gearmand 1.1.20 puts the request of a host that died back into its queue, and tells nobody.
        """
        with suppress(ConnectionLost):  # `_told` tells of that
            while True:
                await asyncio.sleep(_HOST_WATCH_S)
                if not (await self._acquired.job.status()).running:
                    return LeaseLost("the environment's host is gone")
        return await asyncio.Future()
