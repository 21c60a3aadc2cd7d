"""Several agents in one process, with environments that are nothing but a data file.

    python -m tests.benchmarks.fleet_agents HOST:PORT FIRST AGENTS ENVIRONMENTS DATAFILE

Real agents of `testenv-host serve`, but that one process would be one host's. Runs until killed.
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.endpoint import Endpoint, parse_endpoint
from hosts.agent import Agent
from hosts.caretaker import ReadyMade
from hosts.journal import Journal
from hosts.slot import SlotTiming
from schemas.names import environment_id


async def serve(broker: Endpoint, names: list[str], environments: int, datafile: Path) -> None:
    """Be all of `names`, with so many environments each."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="testenv-bench-")))
        for name in names:
            journal = await stack.enter_async_context(
                Journal.open(folder / f"{name}.db", now=partial(datetime.now, UTC))
            )
            caretakers = [
                ReadyMade(datafile, environment_id(name, number), str(number))
                for number in range(1, environments + 1)
            ]
            agent = Agent(
                name, [broker], caretakers, journal, drain_timeout_s=0, timing=SlotTiming()
            )
            group.create_task(agent.run())


def main() -> None:
    """See the module."""
    broker, first, agents, environments, datafile = sys.argv[1:]
    names = [f"te-{number}" for number in range(int(first), int(first) + int(agents))]
    endpoint = parse_endpoint(broker, "HOST:PORT")
    asyncio.run(serve(endpoint, names, int(environments), Path(datafile)))


if __name__ == "__main__":
    main()
