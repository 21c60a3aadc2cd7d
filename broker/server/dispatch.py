"""Who is woken for a job: one sleeping worker, and the next one if that one does not come.

gear and gearmand wake every sleeping worker of a function, which at 10,000 of them takes longer
than the job; a single wake-up can get lost with its worker. So a wake-up has a deadline, and who
misses it is woken after all others until it has taken a job.
"""

from broker.protocol import Kind
from broker.server.clock import Clock
from broker.server.peer import Peer
from broker.server.queue import FunctionQueue


class Dispatcher:
    """Keeps this true: a function has as many workers on their way as jobs in its queue, as far
    as it has sleepers."""

    def __init__(self, clock: Clock, wake_timeout_s: float) -> None:
        self._clock = clock
        self._wake_timeout_s = wake_timeout_s

    def stir(self, queue: FunctionQueue) -> None:
        """Wake whom its queue needs, and whom the queues need from which it takes someone."""
        short = [queue]
        while short:
            queue = short.pop()
            while len(queue.woken) < queue.queued and (peer := queue.next_sleeper()):
                if overtaken := self._wake(peer, queue):
                    short.append(overtaken)

    def sleep(self, peer: Peer) -> None:
        """`peer` wants to be woken for jobs of its functions.

        A worker that was woken and goes to sleep again without a grab is on its way until its
        deadline: it can't have itself woken again and again at the others' expense.
        """
        if peer.asleep_at is not None:
            return
        self._lie_down(peer, peer.host)
        for queue in peer.functions:
            self.stir(queue)

    def rouse(self, peer: Peer) -> None:
        """`peer` is not to be woken any more: it is awake, or gone."""
        if peer.asleep_at is not None:
            for queue in peer.functions:
                queue.remove_sleeper(peer, peer.asleep_at)
            peer.asleep_at = None

    def arrive(self, peer: Peer) -> FunctionQueue | None:
        """`peer` is no longer on its way; return what it was called to. Stir that afterwards."""
        queue, peer.woken_for = peer.woken_for, None
        if queue:
            queue.woken.pop(peer, None)
        return queue

    def trust(self, peer: Peer) -> None:
        """`peer` has got a job: it comes when it is called. (A grab that gets nothing proves
        nothing: it costs a peer no more than to sleep on.)"""
        self._set_late(peer, False)

    def add_function(self, peer: Peer, queue: FunctionQueue) -> None:
        """`peer` offers another function from now on."""
        if peer.asleep_at is not None:
            queue.add_sleeper(peer, peer.asleep_at)
            self.stir(queue)

    def remove_function(self, peer: Peer, queue: FunctionQueue) -> None:
        """`peer` does not offer it any more."""
        if peer.asleep_at is not None:
            queue.remove_sleeper(peer, peer.asleep_at)
        if peer.woken_for is queue:
            self.arrive(peer)
            self.stir(queue)

    def _wake(self, peer: Peer, queue: FunctionQueue) -> FunctionQueue | None:
        """Call `peer` to `queue`; return another one to which it was on its way."""
        self.rouse(peer)
        overtaken = self.arrive(peer)
        peer.woken_for = queue
        queue.woken[peer] = self._clock.time() + self._wake_timeout_s
        peer.send(Kind.NOOP)
        if queue.timer is None:
            queue.timer = self._clock.call_later(self._wake_timeout_s, self._overdue, queue)
        return overtaken if overtaken is not queue else None

    def _lie_down(self, peer: Peer, host: str) -> None:
        peer.asleep_at = host
        for queue in peer.functions:
            queue.add_sleeper(peer, host)

    def _set_late(self, peer: Peer, is_late: bool) -> None:
        """Whether it sleeps in the back row."""
        if peer.is_late is is_late:
            return
        host = peer.asleep_at
        self.rouse(peer)
        peer.is_late = is_late
        if host is not None:
            self._lie_down(peer, host)

    def _overdue(self, queue: FunctionQueue) -> None:
        now = self._clock.time()
        while queue.woken and next(iter(queue.woken.values())) <= now:
            late, _ = queue.woken.popitem(last=False)
            late.woken_for = None
            self._set_late(late, True)
        queue.timer = None
        if queue.woken:
            wait = next(iter(queue.woken.values())) - now
            queue.timer = self._clock.call_later(wait, self._overdue, queue)
        self.stir(queue)
