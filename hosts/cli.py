"""testenv-host: the command of host admins."""

import json
import logging
import sys
from pathlib import Path

import click

from broker.people import confirm, console
from hosts.agent import sole_agent
from hosts.agent_cli import run, serve
from hosts.builder import Builder
from hosts.chronicle import read_journal
from hosts.config import load_config
from hosts.facts import machine_facts, read_facts
from hosts.image_cli import image
from hosts.journal_file import JOURNAL_NAME
from hosts.options import agent_name, endpoints_of, load, served_state_dir, told_errors
from hosts.plan import plan_host
from hosts.tables import print_events, print_plan
from schemas.exits import ExitStatus
from schemas.plan import Facts

log = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("/etc/testenv/host.toml")


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


for command in (run, serve, image):
    main.add_command(command)


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
        endpoints_of(config, config_path)
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

        config, host_plan = load(config_path)
        findings = check_host(config, host_plan, endpoints_of(config, config_path))
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(finding.line())
    sys.exit(ExitStatus.OK if all(one.ok for one in findings) else ExitStatus.FAILED)


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

        config, host_plan = load(config_path)
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
            directory = served_state_dir(state_dir, agent_name(number))
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
