"""testenv-host: the command of host admins."""

import asyncio
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
from click.core import ParameterSource

from broker.endpoint import Endpoint, parse_endpoints
from broker.options import BrokerOptions, broker_options
from broker.people import confirm, console
from broker.tls import TlsFiles
from hosts.agent import Agent, sole_agent
from hosts.archive import CONSOLES, Archive
from hosts.builder import Builder
from hosts.caretaker import BuiltEnvironment, Caretaker, ReadyMade, read_data_file
from hosts.chronicle import read_journal
from hosts.config import load_config
from hosts.facts import machine_facts, read_facts
from hosts.hooks import Hooks
from hosts.image_cli import image
from hosts.journal import Journal
from hosts.journal_file import JOURNAL_NAME
from hosts.options import told_errors
from hosts.plan import plan_host
from hosts.quarantine import Rules
from hosts.rebuild import Workshop, refuse_other_changes
from hosts.slot import SlotTiming
from hosts.tables import explain, print_events, print_plan
from hosts.vetting import DEMANDS_NOTHING, Standards
from hosts.vitals import Vital, vitals
from schemas.config import HostConfig
from schemas.errors import ConfigError, TestenvError
from schemas.exits import ExitStatus
from schemas.lock import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S
from schemas.names import HOST_PATTERN, MAX_LABELS, environment_id, is_label
from schemas.plan import Environment, Facts, HostPlan
from schemas.terms import Terms

log = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("/etc/testenv/host.toml")
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="testenv")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    metavar="FILE",
    help="This host's configuration (TOML).",
)
@click.option("-d", "--debug", is_flag=True, help="Log everything.")
@click.pass_context
def main(ctx: click.Context, config_path: Path, debug: bool) -> None:
    """Carve this host into test environments and offer them to CI jobs.

    \b
    Example:
      testenv-host --config host.toml plan
      testenv-host --config host.toml check && testenv-host --config host.toml run
    """
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    ctx.obj = config_path


main.add_command(image)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.option(
    "--facts",
    "facts_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='Plan for another machine: JSON {"memory_mib": …, "cpus": …, "disk_gib": …}.',
)
@click.option("--memory-gib", type=click.IntRange(min=0), help="Plan as if with this memory.")
@click.option("--cpus", type=click.IntRange(min=0), help="Plan as if with this many CPUs.")
@click.option("--disk-gib", type=click.IntRange(min=0), help="Plan as if with this disk space.")
@click.pass_obj
def plan(
    config_path: Path,
    as_json: bool,
    facts_path: Path | None,
    memory_gib: int | None,
    cpus: int | None,
    disk_gib: int | None,
) -> None:
    """Print every environment that the configuration would make. Touches nothing.

    \b
    Example:
      testenv-host --config host.toml plan --memory-gib 64 --cpus 16 --disk-gib 500
    """
    with told_errors():
        config = load_config(config_path)
        _endpoints(config, config_path)
        facts = read_facts(facts_path) if facts_path else machine_facts(config.host.state_dir)
        said = {
            "memory_mib": None if memory_gib is None else memory_gib * 1024,
            "cpus": cpus,
            "disk_gib": disk_gib,
        }
        facts = Facts.model_validate(
            facts.model_dump() | {key: value for key, value in said.items() if value is not None}
        )
        host_plan = plan_host(config, facts, config_path)
    if as_json:
        click.echo(host_plan.model_dump_json(indent=2))
    else:
        print_plan(host_plan, console())


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_obj
def check(config_path: Path, as_json: bool) -> None:
    """Tell whether this host can carry the plan; exit 1 if not.

    \b
    Example:
      testenv-host --config host.toml check
    """
    with told_errors():
        from hosts.check import check_host

        config, host_plan = _load(config_path)
        findings = check_host(config, host_plan, _endpoints(config, config_path))
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(finding.line())
    sys.exit(ExitStatus.OK if all(one.ok for one in findings) else ExitStatus.FAILED)


@main.command()
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

        config, host_plan = _load(config_path)
        if not host_plan.environments:
            log.warning("nothing to offer: %s", "; ".join(explain(host_plan.count)))
        endpoints = _endpoints(config, config_path)
        with sole_agent(config.host.state_dir):
            drivers = connect(config)
            pool = ThreadPoolExecutor(BUILD_THREADS, thread_name_prefix="driver")
            try:
                builder = Builder(
                    host_plan,
                    drivers,
                    config.host.state_dir,
                    keep_consoles=config.console.keep,
                )

                def caretaker(env: Environment) -> Caretaker:
                    return BuiltEnvironment(host_plan, env, builder, pool)

                timing = SlotTiming(config.lease.terms)
                state_dir = config.host.state_dir
                signs = vitals(
                    lambda: builder.plan,
                    drivers,
                    state_dir,
                    min_free_gib=config.health.min_free_gib,
                    repair=builder.ensure_host,
                )
                standards = replace(
                    _standards(config), check_interval_s=config.health.check_interval_s
                )
                _serve(
                    host_plan.host,
                    endpoints,
                    [caretaker(env) for env in host_plan.environments],
                    state_dir,
                    drain_timeout,
                    timing,
                    standards,
                    signs,
                    Archive(state_dir / CONSOLES),
                    Workshop(partial(_planned_anew, config_path, config), caretaker),
                )
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                drivers.close()


@main.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def destroy(config_path: Path, yes: bool) -> None:
    """Remove every domain, bridge, tap and disk that is marked as this host's, and nothing else.

    \b
    Example:
      testenv-host --config host.toml destroy --yes
    """
    with told_errors():
        from hosts.drivers.connect import connect

        config, host_plan = _load(config_path)
        with sole_agent(config.host.state_dir):
            drivers = connect(config)
            try:
                domains = [domain.name for domain in drivers.hypervisor.domains()]
                bridges = [bridge.name for bridge in drivers.switch.bridges()]
                click.echo(
                    f"{host_plan.host}: {len(domains)} domains with their disks"
                    f" ({', '.join(domains) or 'none'}) and {len(bridges)} bridges"
                    f" ({', '.join(bridges) or 'none'}) will be destroyed",
                    err=True,
                )
                confirm(yes)
                Builder(host_plan, drivers, config.host.state_dir).destroy()
            finally:
                drivers.close()


@main.command()
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
    called <this machine>-NUM. Of a configuration that is named with --config, [lease], [hooks] and
    [quarantine] are used.

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
        name = _agent_name(number)
        config = _named_config(ctx)
        terms = config.lease.terms if config else Terms()
        timing = SlotTiming(terms, default_timeout_s=timeout)
        standards = _standards(config) if config else DEMANDS_NOTHING
        state_dir = _served_state_dir(state_dir, name)
        with sole_agent(state_dir):
            caretaker = ReadyMade(datafile, environment_id(name, 1), number, labels)
            _serve(name, endpoints, [caretaker], state_dir, drain_timeout, timing, standards)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print environments, leases and events.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Print the newest N events; with --json also N leases besides the live ones.",
)
@click.option(
    "-n",
    "--tenum",
    "number",
    metavar="NUM",
    help="The journal of `serve -n NUM` on this machine, not of `run`.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the agent keeps its state [default: as run, or with -n as serve].",
)
@click.pass_obj
def journal(
    config_path: Path, as_json: bool, limit: int, number: str | None, state_dir: Path | None
) -> None:
    """Print what this host's agent remembers: grants, ends and every other transition.

    Works while the agent runs, and when it is dead.

    \b
    Example:
      testenv-host journal --limit 20
      testenv-host journal -n 7 --json
    """
    with told_errors():
        if number is not None:
            directory = _served_state_dir(state_dir, _agent_name(number))
        else:
            directory = state_dir or load_config(config_path).host.state_dir
        chronicle = read_journal(directory / JOURNAL_NAME, limit=limit)
    if as_json:
        document = {
            kind: [record._asdict() for record in records]
            for kind, records in chronicle._asdict().items()
        }
        click.echo(json.dumps(document, indent=2))
    else:
        print_events(chronicle.events, console())


def _serve(
    name: str,
    endpoints: Sequence[Endpoint],
    caretakers: Sequence[Caretaker],
    state_dir: Path,
    drain_timeout: float,
    timing: SlotTiming,
    standards: Standards,
    signs: Sequence[Vital] = (),
    archive: Archive | None = None,
    workshop: Workshop | None = None,
) -> None:
    async def serve_until_stopped() -> None:
        path = state_dir / JOURNAL_NAME
        async with Journal.open(path, now=partial(datetime.now, UTC)) as journal:
            agent = Agent(
                name,
                endpoints,
                caretakers,
                journal,
                drain_timeout_s=drain_timeout,
                timing=timing,
                vitals=signs,
                standards=standards,
                archive=archive,
                workshop=workshop,
            )
            try:
                await agent.run()
            except ExceptionGroup as group:
                # Of the tasks that ended it, one is enough to tell a person what to do.
                if expected := _first(group):
                    raise expected from group
                raise

    asyncio.run(serve_until_stopped())


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


def _load(config_path: Path) -> tuple[HostConfig, HostPlan]:
    config = load_config(config_path)
    _endpoints(config, config_path)
    return config, plan_host(config, machine_facts(config.host.state_dir), config_path)


def _planned_anew(config_path: Path, before: HostConfig) -> HostPlan:
    """For a rebuild by an agent that has started with `before`."""
    config, host_plan = _load(config_path)
    refuse_other_changes(before, config, config_path)
    if not host_plan.environments:
        raise ConfigError(
            config_path, f"leaves no environment: {'; '.join(explain(host_plan.count))}"
        )
    return host_plan


def _endpoints(config: HostConfig, source: Path) -> tuple[Endpoint, ...]:
    tls = None
    if config.tls:
        files = (config.tls.cert, config.tls.key, config.tls.ca)
        tls = TlsFiles(*(source.parent / file for file in files))
    return parse_endpoints(",".join(config.host.brokers), f"{source}: host.brokers", tls)


def _served_state_dir(state_dir: Path | None, name: str) -> Path:
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return (state_dir or home / "testenv") / name


def _agent_name(number: str) -> str:
    name = f"{socket.gethostname()}-{number}"
    if not re.fullmatch(HOST_PATTERN, name):
        raise ConfigError("--tenum", f"{number!r} does not make a name: letters, digits, . _ -")
    return name
