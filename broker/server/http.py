"""/healthz and /metrics for monitoring, over HTTP in the broker's own event loop.

Needs the `broker` extra: imported only where an HTTP address is configured.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import accumulate
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from broker.server.exchange import Exchange
from broker.server.metrics import Histogram, Metrics, by_family
from broker.server.names import is_lock
from broker.wire import kind_name

STOP_WITHIN_S = 1

CONNECTION_S = 10.0
"""How long an HTTP connection lasts; uvicorn waits for ever for the rest of a request."""


class BrokerCollector(Collector):
    """Turns the broker's numbers into Prometheus' words, when they are asked for."""

    def __init__(self, exchange: Exchange, metrics: Metrics) -> None:
        self._exchange = exchange
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        yield from self._functions()
        yield from self._jobs()
        yield from self._connections()

    def _functions(self) -> Iterator[Metric]:
        queued = GaugeMetricFamily("testenv_queued_jobs", "Jobs that wait.", labels=["function"])
        oldest = GaugeMetricFamily(
            "testenv_oldest_queued_seconds", "Age of the oldest that waits.", labels=["function"]
        )
        running = GaugeMetricFamily("testenv_running_jobs", "With a worker.", labels=["function"])
        workers = GaugeMetricFamily("testenv_workers", "Who offers it.", labels=["function"])
        functions = list(self._exchange.functions())
        for view in by_family(functions):
            name = view.name
            queued.add_metric([name], view.queued)
            oldest.add_metric([name], view.oldest_queued_s)
            running.add_metric([name], view.running)
            workers.add_metric([name], view.workers)
        yield from (queued, oldest, running, workers)
        leases = sum(one.running for one in functions if is_lock(one.name))
        yield GaugeMetricFamily("testenv_running_leases", "Lock requests granted.", value=leases)

    def _jobs(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield _histograms("testenv_wait_seconds", "From submission to a worker.", metrics.waits)
        yield _histograms("testenv_hold_seconds", "From a worker to the end.", metrics.holds)
        ended = CounterMetricFamily(
            "testenv_ended_jobs", "Jobs that had a worker.", labels=["function", "outcome"]
        )
        for labels, count in metrics.ends.items():
            ended.add_metric(labels, count)
        yield ended

    def _connections(self) -> Iterator[Metric]:
        metrics = self._metrics
        now = GaugeMetricFamily("testenv_connections", "Open now.", labels=["role"])
        for role, count in metrics.connections.items():
            now.add_metric([role], count)
        yield now
        yield CounterMetricFamily(
            "testenv_accepted_connections", "Since the start.", value=metrics.connections_total
        )
        refusals = CounterMetricFamily("testenv_refusals", "Said no.", labels=["reason"])
        for code, count in metrics.refusals.items():
            refusals.add_metric([code], count)
        yield refusals
        packets = CounterMetricFamily(
            "testenv_packets", "Binary packets.", labels=["direction", "kind"]
        )
        for direction, counts in (("in", metrics.received), ("out", metrics.sent)):
            for kind, count in enumerate(counts):
                if count:
                    packets.add_metric([direction, kind_name(kind)], count)
        yield packets


def _histograms(name: str, text: str, known: dict[str, Histogram]) -> HistogramMetricFamily:
    result = HistogramMetricFamily(name, text, labels=["function"])
    for function, histogram in known.items():
        bounds = [*map(str, histogram.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
        result.add_metric([function], buckets, sum_value=histogram.total)
    return result


def application(exchange: Exchange, metrics: Metrics) -> Starlette:
    """The two pages, as an ASGI application."""
    registry = CollectorRegistry()
    registry.register(BrokerCollector(exchange, metrics))

    async def healthz(_: Request) -> Response:
        if exchange.draining:
            return PlainTextResponse("draining\n", status_code=503)
        return PlainTextResponse("ok\n")

    async def scrape(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/healthz", healthz), Route("/metrics", scrape)])


class _Server(uvicorn.Server):
    """Signals are the service's."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


class _Connection(H11Protocol):
    """One of `most` at a time, and not for long."""

    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most = most

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.abort()
        else:
            self.loop.call_later(CONNECTION_S, transport.abort)


@contextlib.asynccontextmanager
async def serving(app: Starlette, sock: socket.socket, *, most: int) -> AsyncIterator[None]:
    """Serve `app` on the listening `sock` while the context lasts; `most` connections at once."""
    server = _Server(
        uvicorn.Config(
            app,
            http=partial(_Connection, most=most),  # type: ignore[arg-type]
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=STOP_WITHIN_S,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
