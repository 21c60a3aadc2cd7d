"""An agent that starts with fewer environments than are in use."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from hosts.agent import Agent
from hosts.journal import Journal
from hosts.journal_rows import StoredLease
from schemas.status import EnvState, Lease
from tests.functional.brokers import RunningBroker
from tests.functional.slot_rig import QUICK, SOON_S, Counting, comes


class Named(Counting):
    def __init__(self, env_id: str) -> None:
        super().__init__()
        self.id, self.number = env_id, env_id.rpartition("/")[2]


@asynccontextmanager
async def agent_with_a_surplus_that_is_leased(
    broker: RunningBroker, surplus: Counting
) -> AsyncIterator[Agent]:
    lease = Lease(
        id="1ea5e",
        environment=surplus.id,
        generation=1,
        holder="ann",
        granted=datetime.now(UTC),
        timeout_s=600,
    )
    with tempfile.TemporaryDirectory(prefix="testenv-surplus-") as folder:
        path = Path(folder) / "journal.db"
        async with Journal.open(path, now=partial(datetime.now, UTC)) as journal:
            await journal.grant(StoredLease(lease, "job-1", "callback_1", 2, "5ec"))
            agent = Agent(
                "te1",
                [broker.endpoint],
                [Named("te1/1")],
                journal,
                drain_timeout_s=0,
                timing=QUICK,
                surplus=[surplus],
            )
            life = asyncio.create_task(agent.run())
            try:
                yield agent
            finally:
                signal.raise_signal(signal.SIGTERM)
                await asyncio.wait([life], timeout=SOON_S)


async def test_what_is_not_configured_any_more_is_removed_only_when_its_lease_has_ended(
    broker: RunningBroker,
) -> None:
    surplus = Named("te1/2")
    async with agent_with_a_surplus_that_is_leased(broker, surplus) as agent:
        await comes(lambda: [env.state for env in agent.report().environments]
                    == [EnvState.READY, EnvState.LEASED])  # fmt: skip
        left = agent.report().environments[1]
        assert left.rebuilding
        assert left.rebuild_reason == "not in the configuration any more"
        assert not surplus.is_removed
        await comes(lambda: surplus.is_removed)  # its client is never heard of
        await comes(lambda: [env.id for env in agent.report().environments] == ["te1/1"])
    assert surplus.fences == 1
    assert surplus.builds == surplus.turnovers == 0
