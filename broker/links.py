"""Links to one or several brokers, kept up."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Protocol, Self

from broker.backoff import backoff
from broker.endpoint import Endpoint
from broker.link import PING_INTERVAL_S, PING_TIMEOUT_S, Link
from schemas.errors import BrokerUnreachable

log = logging.getLogger(__name__)

SETTLED_S = 5.0
"""A link that lived shorter than this does not reset the back-off: its broker may be flapping."""


class LinkSource(Protocol):
    """Where a Worker finds its links: `Links` reconnects, `OneLink` does not."""

    @property
    def up(self) -> tuple[Link, ...]:
        """The links that are up now."""

    async def changed(self, seen: tuple[Link, ...]) -> tuple[Link, ...]:
        """Wait until `up` differs from `seen` (it may already), and return it.

        Raises ConnectionLost if none is left and none will come.
        """


class OneLink:
    """A single Link that is somebody else's to open and close."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def up(self) -> tuple[Link, ...]:
        """The link, or nothing once it is lost."""
        return () if self._link.is_lost else (self._link,)

    async def changed(self, seen: tuple[Link, ...]) -> tuple[Link, ...]:
        """See LinkSource."""
        if self.up == seen:
            loss = await self._link.lost()
            if not seen:
                raise loss
        return self.up


class Links:
    """One Link to each broker for as long as the context lasts, reconnecting for ever.

        async with Links(endpoints, client_id="te-host-01/1") as links:
            up = await links.changed(())      # wait until any broker is reached
            up = await links.changed(up)      # wait until one is lost or another reached

    `client_id`: see Link.open. Leaving the context closes all links so that what was sent arrives.
    A link that somebody closes (to withdraw what was submitted on it) is replaced by a new one.
    A loss and a recovery are logged once each, not per attempt.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        client_id: str,
        *,
        ping_interval: float = PING_INTERVAL_S,
        ping_timeout: float = PING_TIMEOUT_S,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._client_id = client_id
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._live: dict[Endpoint, Link] = {}
        self._news = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._keepers = [asyncio.create_task(self._keep(each)) for each in self.endpoints]
        for keeper in self._keepers:
            keeper.add_done_callback(_report_crash)
        return self

    async def __aexit__(self, *_: object) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    @property
    def up(self) -> tuple[Link, ...]:
        """The links that are up now, in the order of `endpoints`."""
        live = (self._live.get(endpoint) for endpoint in self.endpoints)
        return tuple(link for link in live if link and not link.is_lost)

    async def changed(self, seen: tuple[Link, ...]) -> tuple[Link, ...]:
        """Wait until `up` differs from `seen` (it may already), and return it."""
        while self.up == seen:
            await self._news.wait()
        return self.up

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _keep(self, endpoint: Endpoint) -> None:
        pauses = backoff()
        link = await self._reach(endpoint, pauses, lost_before=False)
        while True:
            reached = time.monotonic()
            self._live[endpoint] = link
            self._tell()
            try:
                loss = await link.lost()
            finally:
                del self._live[endpoint]
                self._tell()
                await link.aclose()
            level = logging.DEBUG if link.was_closed else logging.WARNING
            log.log(level, "lost broker %s: %s; reconnecting", endpoint, loss.why)
            if time.monotonic() - reached > SETTLED_S:
                pauses = backoff()
            await asyncio.sleep(next(pauses))
            link = await self._reach(endpoint, pauses, lost_before=True)

    async def _reach(
        self, endpoint: Endpoint, pauses: Iterator[float], *, lost_before: bool
    ) -> Link:
        """A new link, however long it takes."""
        told = lost_before
        while True:
            try:
                link = await Link.open(
                    endpoint,
                    client_id=self._client_id,
                    ping_interval=self._ping_interval,
                    ping_timeout=self._ping_timeout,
                )
            except BrokerUnreachable as exc:
                [(_, why)] = exc.attempts
                level = logging.DEBUG if told else logging.WARNING
                log.log(level, "cannot reach broker %s: %s; still trying", endpoint, why)
                told = True
                await asyncio.sleep(next(pauses))
            else:
                log.info("%s to broker %s", "reconnected" if told else "connected", endpoint)
                return link


def _report_crash(keeper: asyncio.Task[None]) -> None:
    if not keeper.cancelled() and (error := keeper.exception()):
        log.critical("a link to a broker is no longer kept up", exc_info=error)
