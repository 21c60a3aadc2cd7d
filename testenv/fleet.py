"""The fleet as its brokers and agents tell it: who is there, who holds what, who waits."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from broker import admin
from broker.client import Outcome, submit
from broker.endpoint import Endpoint
from broker.link import Link
from schemas.control import OperatorRequest, Revoked, RevokeRequest, StatusRequest
from schemas.errors import (
    BrokerError,
    BrokerUnreachable,
    ConnectionLost,
    HostError,
    RequestRefused,
    TestenvError,
)
from schemas.names import host_function, host_of_function, is_lock_function
from schemas.status import HostReport, Lease, Wire
from testenv.errors import AgentRefused

A = TypeVar("A", bound=Wire)

ANSWER_TIMEOUT_S = 3.0
"""An agent that does not answer in this time is shown as such, not waited for."""

_CLIENT_ID = "testenv"


class HostView(BaseModel):
    """One host. `report` is None when its agent did not answer; `problem` then says why."""

    host: str
    broker: str
    """The broker through which it was asked."""
    report: HostReport | None = None
    problem: str = ""

    @property
    def environments(self) -> tuple[str, ...]:
        """Their ids; none if it did not answer."""
        return tuple(env.id for env in self.report.environments) if self.report else ()

    def must_answer(self) -> None:
        """Raises HostError if it did not."""
        if self.report is None:
            raise HostError(self.problem)


class QueueView(BaseModel):
    """One lock function at one broker, as the broker counts."""

    function: str
    broker: str
    waiting: int
    """Clients in the queue."""
    leased: int
    """Requests that an environment has taken."""
    offered: int
    """Environments that would take a request now."""


class BrokerView(BaseModel):
    broker: str
    state: Literal["up", "down"]
    problem: str = ""


class Fleet(BaseModel):
    """What `testenv status --json` prints."""

    brokers: tuple[BrokerView, ...]
    hosts: tuple[HostView, ...]
    queues: tuple[QueueView, ...]


async def look(
    endpoints: Sequence[Endpoint],
    timeout: float = ANSWER_TIMEOUT_S,
    *,
    only: Collection[str] | None = None,
) -> Fleet:
    """Ask all brokers, then all agents, each in parallel and for at most `timeout` seconds.

    `only`: no other hosts than these. Raises BrokerUnreachable if no broker answers.
    """
    answers = await asyncio.gather(*(_ask_broker(one, timeout) for one in endpoints))
    if all(isinstance(answer, BrokerError) for answer in answers):
        raise BrokerUnreachable(
            [
                (str(endpoint), _why(answer))
                for endpoint, answer in zip(endpoints, answers, strict=True)
                if isinstance(answer, BrokerError)
            ]
        )
    brokers: list[BrokerView] = []
    queues: list[QueueView] = []
    agents: dict[str, tuple[Endpoint, int]] = {}
    for endpoint, answer in zip(endpoints, answers, strict=True):
        if isinstance(answer, BrokerError):
            brokers.append(BrokerView(broker=str(endpoint), state="down", problem=_why(answer)))
            continue
        brokers.append(BrokerView(broker=str(endpoint), state="up"))
        queues.extend(_queue(endpoint, one) for one in answer if is_lock_function(one.name))
        for function in answer:
            host = host_of_function(function.name)
            if only is not None and host not in only:
                continue
            if host and (host not in agents or not agents[host][1]):
                agents[host] = (endpoint, function.workers)
    hosts = await asyncio.gather(
        *(_ask_host(host, at, workers, timeout) for host, (at, workers) in sorted(agents.items()))
    )
    queues.sort(key=lambda queue: (queue.function, queue.broker))
    return Fleet(brokers=tuple(brokers), hosts=tuple(hosts), queues=tuple(queues))


async def revoke(
    endpoints: Sequence[Endpoint],
    view: HostView,
    lease: Lease,
    reason: str,
    timeout: float = ANSWER_TIMEOUT_S,
) -> Revoked:
    """Have `view`'s agent tell the client of `lease` to end, for `reason`.

    Returns once the agent knows; the lease ends when the client has ended its command, or can
    run no more. Raises BrokerError, and HostError if the agent can't, or does not answer.
    """
    # By its id: the environment may have gone to another since we looked.
    request = RevokeRequest(target=lease.id, reason=reason)
    return await ask(endpoints, view, request, Revoked, timeout)


async def ask(
    endpoints: Sequence[Endpoint],
    view: HostView,
    request: OperatorRequest,
    kind: type[A],
    timeout: float = ANSWER_TIMEOUT_S,
) -> A:
    """What `view`'s agent answers to `request`, by the broker through which it was seen.

    Raises BrokerError, and HostError if the agent refuses, or does not answer in time.
    """
    endpoint = _endpoint_of(endpoints, view)
    return await _answer(endpoint, view.host, request, kind, timeout)


class Inquiry:
    """Several questions to one agent, on one connection; made by `inquiry`."""

    def __init__(self, link: Link, host: str) -> None:
        self._link = link
        self._host = host

    async def ask(
        self, request: OperatorRequest, kind: type[A], timeout: float = ANSWER_TIMEOUT_S
    ) -> A:
        """What the agent answers. Raises as the function `ask` does."""
        async with _bounded(timeout):
            return await _answer_on(self._link, self._host, request, kind)


@asynccontextmanager
async def inquiry(endpoints: Sequence[Endpoint], view: HostView) -> AsyncIterator[Inquiry]:
    """Connect to the broker through which `view`'s agent was seen. Raises BrokerUnreachable."""
    endpoint = _endpoint_of(endpoints, view)
    async with await Link.open(endpoint, client_id=_CLIENT_ID, timeout=ANSWER_TIMEOUT_S) as link:
        yield Inquiry(link, view.host)


def _endpoint_of(endpoints: Sequence[Endpoint], view: HostView) -> Endpoint:
    return next(one for one in endpoints if str(one) == view.broker)


async def _ask_broker(
    endpoint: Endpoint, timeout: float
) -> list[admin.FunctionStatus] | BrokerError:
    try:
        return await admin.status(endpoint, timeout)
    except BrokerError as error:
        return error


def _why(error: BrokerError) -> str:
    """What happened at one broker, without naming it again."""
    if isinstance(error, BrokerUnreachable):
        return "; ".join(why for _, why in error.attempts)
    if isinstance(error, ConnectionLost):
        return error.why
    if isinstance(error, RequestRefused):
        return f"it refused: {error.text or error.code}"
    return error.what


async def _ask_host(host: str, endpoint: Endpoint, workers: int, timeout: float) -> HostView:
    view = HostView(host=host, broker=str(endpoint))
    if not workers:
        # Brokers remember functions whose worker is gone; asking would only queue.
        return view.model_copy(update={"problem": "no agent is registered"})
    try:
        report = await _answer(endpoint, host, StatusRequest(), HostReport, timeout)
    except TestenvError as error:
        return view.model_copy(update={"problem": str(error)})
    return view.model_copy(update={"report": report})


async def _answer(
    endpoint: Endpoint, host: str, request: OperatorRequest, kind: type[A], timeout: float
) -> A:
    """What `host`'s agent says to `request`. Raises BrokerError, HostError."""
    async with (
        _bounded(timeout),
        await Link.open(endpoint, client_id=_CLIENT_ID, timeout=timeout) as link,
    ):
        return await _answer_on(link, host, request, kind)


@asynccontextmanager
async def _bounded(timeout: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as exc:
        raise HostError(f"no answer within {timeout:g} s") from exc


async def _answer_on(link: Link, host: str, request: OperatorRequest, kind: type[A]) -> A:
    data = request.model_dump_json().encode()
    result = await (await submit(link, host_function(host), data)).result()
    if result.outcome is not Outcome.COMPLETE:
        raise AgentRefused(result.data.decode(errors="replace") or "no reason given")
    try:
        return kind.model_validate_json(result.data)
    except ValidationError as exc:
        raise HostError(f"answer not understood: {exc.errors()[0]}") from exc


def _queue(endpoint: Endpoint, function: admin.FunctionStatus) -> QueueView:
    return QueueView(
        function=function.name,
        broker=str(endpoint),
        waiting=function.queued,
        leased=function.running,
        # A leased environment stays registered for its own function: gearmand requeues a running
        # job whose function its worker withdraws.
        offered=max(0, function.workers - function.running),
    )
