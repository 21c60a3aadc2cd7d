"""Links to several brokers, kept up whatever happens to each."""

import asyncio
import logging
import time

import pytest

from broker.endpoint import Endpoint
from broker.link import Link
from broker.links import Links
from tests.functional.brokers import HOST, OURS, RunningBroker, free_port, running_broker
from tests.functional.wire_peers import BOUND_S, banner_server, black_hole


async def until_up(links: Links, count: int) -> tuple[Link, ...]:
    async with asyncio.timeout(BOUND_S):
        while len(links.up) != count:
            await links.changed(links.up)
    return links.up


async def test_every_broker_is_reached_in_the_order_given(broker: RunningBroker) -> None:
    with running_broker(OURS) as other:
        endpoints = [other.endpoint, broker.endpoint]
        async with Links(endpoints, client_id="test") as links:
            assert [link.endpoint for link in await until_up(links, 2)] == endpoints


async def test_dead_and_silent_brokers_do_not_hold_up_the_others(broker: RunningBroker) -> None:
    with black_hole() as silent:
        endpoints = [silent, Endpoint(HOST, free_port()), broker.endpoint]
        started = time.monotonic()
        async with Links(endpoints, client_id="test") as links:
            [link] = await until_up(links, 1)
            assert link.endpoint == broker.endpoint
            assert time.monotonic() - started < 1.0


async def test_restarted_broker_is_back_within_a_moment(broker: RunningBroker) -> None:
    async with Links([broker.endpoint], client_id="test") as links:
        [old] = await until_up(links, 1)
        await asyncio.to_thread(broker.kill)
        await until_up(links, 0)
        await asyncio.to_thread(broker.start)
        restarted = time.monotonic()
        [new] = await until_up(links, 1)
        assert time.monotonic() - restarted < 1.5
        assert old.is_lost
        assert new is not old


async def test_paused_broker_is_replaced_when_it_answers_again(broker: RunningBroker) -> None:
    async with Links(
        [broker.endpoint], client_id="test", ping_interval=0.05, ping_timeout=0.2
    ) as links:
        [old] = await until_up(links, 1)
        broker.pause()
        await until_up(links, 0)
        broker.resume()
        [new] = await until_up(links, 1)
        assert new is not old


async def test_link_that_a_user_closes_is_replaced(broker: RunningBroker) -> None:
    async with Links([broker.endpoint], client_id="test") as links:
        [old] = await until_up(links, 1)
        await old.aclose()
        async with asyncio.timeout(BOUND_S):
            while (up := await links.changed((old,))) == ():
                await links.changed(up)
        assert up != (old,)


async def test_loss_and_recovery_are_logged_once_each(
    broker: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="broker")
    async with Links([broker.endpoint], client_id="test") as links:
        await until_up(links, 1)
        await asyncio.to_thread(broker.kill)
        await until_up(links, 0)
        await asyncio.sleep(0.5)  # several attempts fail
        await asyncio.to_thread(broker.start)
        await until_up(links, 1)
    address = str(broker.endpoint)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines[0] == ("INFO", f"connected to broker {address}")
    assert lines[1][0] == "WARNING"
    assert lines[1][1].startswith(f"lost broker {address}: ")
    assert lines[2:] == [("INFO", f"reconnected to broker {address}")]


async def test_broker_that_was_never_there_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="broker")
    dead = Endpoint(HOST, free_port())
    async with Links([dead], client_id="test"):
        await asyncio.sleep(0.5)  # several attempts fail
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot reach broker {dead}: Connection refused; still trying"
    ]


async def test_other_service_on_the_port_is_not_hammered() -> None:
    async with (
        banner_server(b"SSH-2.0-OpenSSH_9.2\r\n") as endpoint,
        Links([endpoint], client_id="test") as links,
    ):
        await asyncio.sleep(0.3)
        assert links.up == ()


async def test_leaving_closes_all_links(broker: RunningBroker) -> None:
    async with Links([broker.endpoint], client_id="test") as links:
        [link] = await until_up(links, 1)
    assert link.was_closed
    assert links.up == ()


async def test_error_in_the_context_comes_out_as_it_is(broker: RunningBroker) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Links([broker.endpoint], client_id="test"):
            raise ZeroDivisionError
