"""testenv-host run, testenv-host serve: the agent."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
from click.core import ParameterSource

from broker.options import BrokerOptions, broker_options
from hosts.agent import Agent, sole_agent
from hosts.archive import CONSOLES, Archive
from hosts.builder import Builder
from hosts.caretaker import BuiltEnvironment, Caretaker, ReadyMade, read_data_file
from hosts.config import load_config
from hosts.drivers.base import Drivers
from hosts.holds import HoldLimits
from hosts.hooks import Hooks
from hosts.journal import Journal
from hosts.journal_file import JOURNAL_NAME
from hosts.options import agent_name, endpoints_of, load, served_state_dir, told_errors
from hosts.quarantine import Rules
from hosts.rebuild import Workshop, refuse_other_changes
from hosts.slot import SlotTiming
from hosts.surplus import surplus
from hosts.tables import explain
from hosts.vetting import DEMANDS_NOTHING, Standards
from hosts.vitals import vitals
from schemas.config import HostConfig
from schemas.errors import ConfigError, TestenvError
from schemas.lock import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S
from schemas.names import MAX_LABELS, environment_id, is_label
from schemas.plan import Environment, HostPlan
from schemas.terms import Terms

log = logging.getLogger(__name__)

BUILD_THREADS = 4
"""Environments built or turned over at the same time; more only queue up in libvirt."""


drain_option = click.option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long SIGTERM waits for leases of version 1 clients; others outlive the agent.",
)


@click.command()
@drain_option
@click.pass_obj
def run(config_path: Path, drain_timeout: float) -> None:
    """Converge this host to its plan and offer its environments until stopped.

    SIGTERM stops the agent and leaves VMs and running leases as they are: the next one goes on with
    them, and their jobs do not notice. Only leases of version 1 clients are waited for; a second
    SIGTERM ends that. SIGUSR2 cordons, SIGUSR1 uncordons.

    \b
    Example:
      testenv-host --config host.toml run --drain-timeout 600
    """
    with told_errors():
        from hosts.drivers.connect import connect

        config, host_plan = load(config_path)
        if not host_plan.environments:
            log.warning("nothing to offer: %s", "; ".join(explain(host_plan.count)))
        endpoints_of(config, config_path)  # refused now, if at all
        with sole_agent(config.host.state_dir):
            drivers = connect(config)
            pool = ThreadPoolExecutor(BUILD_THREADS, thread_name_prefix="driver")
            try:
                agent = partial(
                    _agent, config, config_path, host_plan, drivers, pool, drain_timeout
                )
                asyncio.run(_serve_until_stopped(agent, config.host.state_dir))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                drivers.close()


def _agent(
    config: HostConfig,
    config_path: Path,
    host_plan: HostPlan,
    drivers: Drivers,
    pool: ThreadPoolExecutor,
    drain_timeout_s: float,
    journal: Journal,
) -> Agent:
    """The agent of `host_plan`, and of what the journal says is in use though it is not in that.

    Raises JournalError.
    """
    state_dir = config.host.state_dir
    left = surplus(config, host_plan, journal.path)
    planned = host_plan
    for env in left:
        planned = planned.with_environment(env)
    builder = Builder(planned, drivers, state_dir, keep_consoles=config.console.keep)

    def caretaker(env: Environment) -> Caretaker:
        return BuiltEnvironment(planned, env, builder, pool)

    return Agent(
        host_plan.host,
        endpoints_of(config, config_path),
        [caretaker(env) for env in host_plan.environments],
        journal,
        drain_timeout_s=drain_timeout_s,
        timing=SlotTiming(config.lease.terms),
        surplus=[caretaker(env) for env in left],
        vitals=vitals(
            lambda: builder.plan,
            drivers,
            state_dir,
            min_free_gib=config.health.min_free_gib,
            repair=builder.ensure_host,
        ),
        standards=replace(_standards(config), check_interval_s=config.health.check_interval_s),
        hold_limits=HoldLimits(**config.hold.model_dump()),
        archive=Archive(state_dir / CONSOLES),
        workshop=Workshop(partial(_planned_anew, config_path, config), caretaker),
    )


@click.command()
@click.argument("datafile", type=click.Path(path_type=Path))
@broker_options
@click.option(
    "-t",
    "--timeout",
    type=click.IntRange(min=1, max=MAX_TIMEOUT_S),
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long a lease lasts where the client names no timeout.",
)
@click.option(
    "-n",
    "--tenum",
    "number",
    default="1",
    show_default=True,
    metavar="NUM",
    help="Tells this environment from others served on this machine.",
)
@click.option("--label", "labels", multiple=True, help="A label of the environment; repeatable.")
@drain_option
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the agent keeps its state [default: $XDG_STATE_HOME/testenv].",
)
@click.pass_context
def serve(
    ctx: click.Context,
    datafile: Path,
    brokers: BrokerOptions,
    timeout: int,
    number: str,
    labels: tuple[str, ...],
    drain_timeout: float,
    state_dir: Path | None,
) -> None:
    """Offer one environment that exists already, described by DATAFILE (JSON).

    Needs neither root nor libvirt. The file is read again before every lease. Its agent is
    called <this machine>-NUM. Of a configuration that is named with --config, [lease], [hooks],
    [hold] and [quarantine] are used.

    \b
    Example:
      echo '{"seed-ip": "203.0.113.10"}' > env.json
      testenv-host serve env.json -n 7
    """
    with told_errors():
        read_data_file(datafile)
        endpoints = brokers.endpoints()
        for label in labels:
            if not is_label(label):
                raise ConfigError("--label", f"{label!r} is not a label")
        if len(set(labels)) > MAX_LABELS:
            raise ConfigError("--label", f"an environment has at most {MAX_LABELS} labels")
        name = agent_name(number)
        config = _named_config(ctx)
        terms = config.lease.terms if config else Terms()
        standards = _standards(config) if config else DEMANDS_NOTHING
        hold_limits = HoldLimits(**config.hold.model_dump()) if config else None
        state_dir = served_state_dir(state_dir, name)
        with sole_agent(state_dir):
            caretaker = ReadyMade(datafile, environment_id(name, 1), number, labels)
            agent = partial(
                Agent,
                name,
                endpoints,
                [caretaker],
                drain_timeout_s=drain_timeout,
                timing=SlotTiming(terms, default_timeout_s=timeout),
                standards=standards,
                hold_limits=hold_limits,
            )
            asyncio.run(_serve_until_stopped(agent, state_dir))


async def _serve_until_stopped(agent: Callable[[Journal], Agent], state_dir: Path) -> None:
    path = state_dir / JOURNAL_NAME
    async with Journal.open(path, now=partial(datetime.now, UTC)) as journal:
        try:
            await agent(journal).run()
        except ExceptionGroup as group:
            # Of the tasks that ended it, one is enough to tell a person what to do.
            if expected := _first(group):
                raise expected from group
            raise


def _named_config(ctx: click.Context) -> HostConfig | None:
    """The configuration, if one was named; `serve` does without."""
    group = ctx.parent
    if group is None or group.get_parameter_source("config_path") is ParameterSource.DEFAULT:
        return None
    return load_config(ctx.obj)


def _first(group: ExceptionGroup[Exception]) -> TestenvError | None:
    """The first of the expected ones; None if any is a defect."""
    if group.split(TestenvError)[1]:
        return None
    first: Exception = group
    while isinstance(first, ExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, TestenvError) else None


def _standards(config: HostConfig) -> Standards:
    return Standards(Hooks(**config.hooks.model_dump()), Rules(**config.quarantine.model_dump()))


def _planned_anew(config_path: Path, before: HostConfig) -> HostPlan:
    """For a rebuild by an agent that has started with `before`."""
    config, host_plan = load(config_path)
    refuse_other_changes(before, config, config_path)
    if not host_plan.environments:
        raise ConfigError(
            config_path, f"leaves no environment: {'; '.join(explain(host_plan.count))}"
        )
    return host_plan
