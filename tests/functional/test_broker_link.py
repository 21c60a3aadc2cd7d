"""One connection to a broker: answers find their questions, and silence never lasts."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import admin
from broker.answers import JobStatus
from broker.client import Outcome, first_link, submit
from broker.endpoint import Endpoint
from broker.link import Link
from broker.links import OneLink
from broker.protocol import Kind
from broker.wire import MAX_PACKET, Packet, response
from broker.worker import Worker
from schemas.errors import BrokerUnreachable, ConnectionLost, ProtocolError, RequestRefused
from tests.functional.brokers import (
    BROKERS,
    GEARMAND,
    HOST,
    OURS,
    BrokerKind,
    RunningBroker,
    free_port,
    running_broker,
)
from tests.functional.wire_peers import (
    BOUND_S,
    banner_server,
    black_hole,
    chopping_proxy,
    full_backlog,
    scripted_broker,
)

any_broker = pytest.mark.parametrize("kind", BROKERS, ids=str)


async def connected(endpoint: Endpoint, **options: Any) -> Link:
    return await Link.open(endpoint, client_id="test", timeout=BOUND_S, **options)


async def end_of(link: Link) -> str:
    async with asyncio.timeout(BOUND_S):
        return (await link.lost()).why


@any_broker
async def test_link_names_itself_to_the_broker(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with await Link.open(broker.endpoint, client_id="te-host-01/1"):
            names = [worker.client_id for worker in await admin.workers(broker.endpoint)]
    assert "te-host-01/1" in names


async def test_killed_broker_ends_the_link_and_all_that_waits_on_it(
    broker: RunningBroker,
) -> None:
    async with await connected(broker.endpoint) as link:
        job = await submit(link, "nobody", b"")
        worker = Worker(OneLink(link), ["f"])
        async with asyncio.timeout(BOUND_S):
            waits = asyncio.gather(job.result(), worker.take(), return_exceptions=True)
            await asyncio.sleep(0)
            broker.kill()
            outcomes = await waits
        assert [type(outcome) for outcome in outcomes] == [ConnectionLost, ConnectionLost]
        assert str(broker.endpoint) in str(outcomes[0])
        with pytest.raises(ConnectionLost):
            await job.status()
        with pytest.raises(ConnectionLost):
            await submit(link, "nobody", b"")


async def test_paused_broker_is_lost_once_a_ping_stays_unanswered(broker: RunningBroker) -> None:
    async with await connected(broker.endpoint, ping_interval=0.05, ping_timeout=0.3) as link:
        job = await submit(link, "nobody", b"")
        broker.pause()
        paused = time.monotonic()
        assert "did not answer" in await end_of(link)
        assert 0.2 < time.monotonic() - paused < 2.0
        with pytest.raises(ConnectionLost, match="did not answer"):
            await job.result()


async def test_healthy_broker_is_not_lost_over_many_pings(broker: RunningBroker) -> None:
    async with await connected(broker.endpoint, ping_interval=0.01, ping_timeout=5.0) as link:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await link.lost()
        assert not link.is_lost


async def test_broker_that_answers_pings_but_no_question_is_lost() -> None:
    async with (
        scripted_broker(lambda _: None) as endpoint,
        await connected(endpoint, ping_timeout=0.2) as link,
    ):
        with pytest.raises(ConnectionLost, match="did not answer a submission"):
            await submit(link, "f", b"")


@pytest.mark.parametrize("banner", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n"])
async def test_other_service_on_the_port_is_told_apart(banner: bytes) -> None:
    async with banner_server(banner) as endpoint:
        with pytest.raises(BrokerUnreachable, match="a packet begins with") as unreachable:
            await connected(endpoint)
    assert isinstance(unreachable.value.__cause__, ConnectionLost)
    assert isinstance(unreachable.value.__cause__.__cause__, ProtocolError)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"garbage",
        response(Kind.WORK_DATA)[:8] + (MAX_PACKET + 1).to_bytes(4, "big"),
        response(Kind.JOB_CREATED, b"H:a:1"),
        response(Kind.NO_JOB),
        response(Kind.JOB_ASSIGN_UNIQ, b"H:a:1", b"f", b"u", b""),
        response(Kind.STATUS_RES, b"H:a:1"),
        response(Kind.STATUS_RES, b"H:a:1", b"1", b"1", b"0", b"0"),
    ],
    ids=["garbage", "oversize", "created", "no job", "assigned", "short", "not asked"],
)
async def test_nonsense_from_the_broker_ends_the_link(nonsense: bytes) -> None:
    def script(packet: Packet) -> bytes | None:
        return nonsense if packet.kind == Kind.CAN_DO else None

    async with scripted_broker(script) as endpoint, await connected(endpoint) as link:
        link.register(object(), ["f"], lambda: None)
        async with asyncio.timeout(BOUND_S):
            loss = await link.lost()
    assert isinstance(loss.__cause__, ProtocolError)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            response,
            st.sampled_from(Kind),
            st.sampled_from([b"H:a:1", b"ping", b"0", b""]),
            st.binary(max_size=20),
        ),
        max_size=6,
    )
)
async def test_whatever_the_broker_answers_a_submission_ends(answers: list[bytes]) -> None:
    defects: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: defects.append(context))

    def script(packet: Packet) -> bytes | None:
        return b"".join(answers) if packet.kind == Kind.SUBMIT_JOB else None

    async with (
        scripted_broker(script) as endpoint,
        await connected(endpoint, ping_timeout=0.05) as link,
    ):
        with suppress(ConnectionLost, RequestRefused):
            async with asyncio.timeout(BOUND_S):
                await submit(link, "f", b"")
    assert not defects


async def test_packets_of_unknown_kind_are_ignored() -> None:
    def script(packet: Packet) -> bytes | None:
        return response(Kind.ECHO_RES, b"x") if packet.kind == Kind.CAN_DO else None

    async with (
        scripted_broker(script) as endpoint,
        await connected(endpoint, ping_interval=0.01) as link,
    ):
        link.register(object(), ["f"], lambda: None)
        assert not (await link.ask_status(b"H:a:1").wait()).known


async def test_job_that_ends_in_the_same_read_as_it_is_created_is_seen() -> None:
    def script(packet: Packet) -> bytes | None:
        if packet.kind != Kind.SUBMIT_JOB:
            return None
        return (
            response(Kind.JOB_CREATED, b"H:a:1")
            + response(Kind.WORK_STATUS, b"H:a:1", b"1", b"2")
            + response(Kind.WORK_COMPLETE, b"H:a:1", b"done")
        )

    seen: list[object] = []
    async with scripted_broker(script) as endpoint, await connected(endpoint) as link:
        job = await submit(link, "f", b"", on_progress=seen.append)
        assert (await job.result()).data == b"done"
    assert len(seen) == 1


async def test_error_refuses_the_oldest_submission_only() -> None:
    def script(packet: Packet) -> bytes | None:
        if packet.kind != Kind.SUBMIT_JOB:
            return None
        if packet.data.partition(b"\0")[0] == b"full":
            return response(Kind.ERROR, b"JOB_QUEUE_FULL", b"Job queue is full")
        return response(Kind.JOB_CREATED, b"H:a:1")

    async with scripted_broker(script) as endpoint, await connected(endpoint) as link:
        refused, accepted = await asyncio.gather(
            submit(link, "full", b""), submit(link, "f", b""), return_exceptions=True
        )
    assert isinstance(refused, RequestRefused)
    assert refused.code == "JOB_QUEUE_FULL"
    assert not isinstance(accepted, BaseException)
    assert accepted.handle == "H:a:1"


async def test_error_about_a_lost_job_does_not_refuse_a_submission() -> None:
    """gearmand says JOB_NOT_FOUND to WORK_* of a job that it has meanwhile taken away."""

    def script(packet: Packet) -> bytes | None:
        if packet.kind != Kind.SUBMIT_JOB:
            return None
        error = response(Kind.ERROR, b"JOB_NOT_FOUND", b"Job given in work result not found")
        return error + response(Kind.JOB_CREATED, b"H:a:1")

    async with scripted_broker(script) as endpoint, await connected(endpoint) as link:
        assert (await submit(link, "f", b"")).handle == "H:a:1"


async def test_abandoned_submission_does_not_shift_later_ones() -> None:
    held: list[bytes] = []

    def script(packet: Packet) -> bytes | None:
        if packet.kind != Kind.SUBMIT_JOB:
            return None
        held.append(response(Kind.JOB_CREATED, b"H:" + packet.data.partition(b"\0")[0]))
        return b"".join(held) if len(held) == 2 else b""

    async with scripted_broker(script) as endpoint, await connected(endpoint) as link:
        first = asyncio.create_task(submit(link, "1", b""))
        await asyncio.sleep(0)
        first.cancel()
        assert (await submit(link, "2", b"")).handle == "H:2"


async def test_statuses_find_their_questions_in_any_order() -> None:
    answers = {b"a": b"1", b"b": b"2"}
    held: list[bytes] = []

    def script(packet: Packet) -> bytes | None:
        handle = bytes(packet.data)
        if packet.kind != Kind.GET_STATUS or handle not in answers:
            return None
        held.append(response(Kind.STATUS_RES, handle, b"1", b"1", answers[handle], b"9"))
        return b"".join(reversed(held)) if len(held) == 2 else b""

    async with scripted_broker(script) as endpoint, await connected(endpoint) as link:
        a, b = link.ask_status(b"a"), link.ask_status(b"b")
        assert await b.wait() == JobStatus(known=True, running=True, numerator=2, denominator=9)
        assert await a.wait() == JobStatus(known=True, running=True, numerator=1, denominator=9)


@any_broker
async def test_connection_that_brings_single_bytes_works(kind: BrokerKind) -> None:
    with running_broker(kind) as broker:
        async with (
            chopping_proxy(broker.endpoint) as endpoint,
            await connected(endpoint) as here,
            await connected(endpoint) as there,
        ):
            taking = asyncio.create_task(Worker(OneLink(there), ["f"]).take())
            job = await submit(here, "f", b"question", unique="u")
            async with asyncio.timeout(BOUND_S):
                assignment = await taking
                assert assignment
                assert (assignment.arguments, assignment.unique) == (b"question", "u")
                assert assignment.complete(b"answer")
                assert (await job.result()).data == b"answer"


@pytest.mark.parametrize(
    ("kind", "size"),
    # More than the kernel takes off our hands at once; geard would read at it for seconds.
    [*((kind, 100) for kind in BROKERS), (GEARMAND, 12_000_000)],
    ids=str,
)
async def test_last_packet_before_closing_arrives(kind: BrokerKind, size: int) -> None:
    with running_broker(kind) as broker:
        async with await connected(broker.endpoint) as here:
            there = await connected(broker.endpoint)
            job = await submit(here, "f", b"")
            async with asyncio.timeout(BOUND_S):
                assignment = await Worker(OneLink(there), ["f"]).take()
                assert assignment
                assert assignment.complete(b"x" * size)
                await there.aclose()
                assert await job.result() == (Outcome.COMPLETE, b"x" * size)


async def test_closing_a_link_to_a_paused_broker_is_bounded(broker: RunningBroker) -> None:
    link = await connected(broker.endpoint)
    broker.pause()
    started = time.monotonic()
    await link.aclose(timeout=0.3)
    assert time.monotonic() - started < 1.0
    assert await end_of(link) == "closed by us"
    assert link.was_closed


async def test_cancelled_opening_leaves_no_connection() -> None:
    with black_hole() as endpoint:
        opening = asyncio.create_task(connected(endpoint))
        await asyncio.sleep(0.05)
        opening.cancel()
        with suppress(asyncio.CancelledError):
            await opening
    assert opening.cancelled()


# Reaching the first broker that answers


@pytest.mark.parametrize("hole", [black_hole, full_backlog])
@pytest.mark.parametrize("kind", [OURS, GEARMAND], ids=str)
async def test_broker_that_swallows_everything_does_not_hide_the_next(
    hole: Callable[[], AbstractContextManager[Endpoint]], kind: BrokerKind
) -> None:
    with hole() as silent, running_broker(kind) as broker:
        started = time.monotonic()
        async with await first_link([silent, broker.endpoint], "test", BOUND_S) as link:
            assert link.endpoint == broker.endpoint
            assert time.monotonic() - started < 2.0


async def test_refusing_broker_costs_no_head_start(broker: RunningBroker) -> None:
    dead = Endpoint(HOST, free_port())
    started = time.monotonic()
    async with await first_link([dead, broker.endpoint], "test", BOUND_S):
        assert time.monotonic() - started < 0.2


async def test_earlier_broker_is_preferred(broker: RunningBroker) -> None:
    with running_broker(OURS) as second:
        async with await first_link([broker.endpoint, second.endpoint], "test", BOUND_S) as link:
            assert link.endpoint == broker.endpoint


async def test_nobody_reachable_names_every_address_and_reason() -> None:
    dead = Endpoint(HOST, free_port())
    with black_hole() as silent:
        started = time.monotonic()
        with pytest.raises(BrokerUnreachable) as unreachable:
            await first_link([dead, silent], "test", 0.5)
        assert time.monotonic() - started < 1.5
    assert unreachable.value.attempts == (
        (str(dead), "Connection refused"),
        (str(silent), "no answer within 0.5 s"),
    )


async def test_name_that_does_not_resolve_is_a_reason() -> None:
    with pytest.raises(BrokerUnreachable, match=r"nowhere\.invalid"):
        await first_link([Endpoint("nowhere.invalid")], "test", BOUND_S)


async def test_name_with_several_addresses_has_one_short_reason() -> None:
    with pytest.raises(BrokerUnreachable, match=r"\(Connection refused\)"):
        await first_link([Endpoint("localhost", free_port())], "test", BOUND_S)


async def test_persistent_client_waits_for_a_restarting_broker(broker: RunningBroker) -> None:
    broker.kill()
    waiting = asyncio.create_task(first_link([broker.endpoint], "test", BOUND_S, persist=True))
    await asyncio.to_thread(broker.restart)
    async with await waiting as link:
        assert not link.is_lost
