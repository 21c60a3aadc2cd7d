"""Where the clients of live leases find their agent again: the functions `lease_<id>`."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from broker.links import LinkSource
from broker.worker import Assignment, Worker
from schemas.names import lease_function

log = logging.getLogger(__name__)

OnCall = Callable[[Assignment], None]


class Reception:
    """One Gearman worker on all brokers, on links of its own.

    The slots' links still have `lockenv` registered while a lease runs (gearmand takes a job from
    a worker that unregisters its function), and a grab there could bring a second lock request.
    """

    def __init__(self, links: LinkSource) -> None:
        self._worker = Worker(links, ())
        self._desks: dict[str, OnCall] = {}

    async def run(self) -> None:
        """Hand every call to its lease, until cancelled."""
        try:
            while True:
                if call := await self._worker.take(stay=True):
                    self._receive(call)
        finally:
            self._worker.retire()

    @contextmanager
    def open_for(self, lease_id: str, on_call: OnCall) -> Iterator[None]:
        """Serve `lease_<lease_id>` as long as the context lasts.

        `on_call` answers each call, in the event loop; it must not block.
        """
        function = lease_function(lease_id)
        self._desks[function] = on_call
        self._worker.change(self._desks)
        try:
            yield
        finally:
            del self._desks[function]
            self._worker.change(self._desks)

    def _receive(self, call: Assignment) -> None:
        on_call = self._desks.get(call.function)
        if on_call is None:
            call.exception(b"the lease is over")
            return
        try:
            on_call(call)
        except Exception:  # whoever asked, and with whatever: the other leases are served
            log.exception("%s: a call failed", call.function)
            call.exception(b"internal error")
