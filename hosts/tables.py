"""The plan and a check's findings, for people: tables on a terminal, plain lines elsewhere."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from hosts.chronicle import EventRecord
from schemas.plan import Count, HostPlan


def print_plan(plan: HostPlan, console: Console) -> None:
    """Every environment, then how their number came about."""
    table = Table(title=f"{plan.host}: {plan.count.value} environments")
    for column in ("env", "domain", "cpus", "MiB", "disk", "MAC", "address", "bridge", "port"):
        # A folded MAC cannot be read, nor copied.
        table.add_column(column, no_wrap=True, overflow="ignore")
    for env in plan.environments:
        for domain in env.domains:
            disk = f"{domain.disk.size_gib} GiB {domain.disk.format}"
            for index, nic in enumerate(domain.nics):
                size = (domain.name, str(domain.cpus), str(domain.memory_mib), disk)
                table.add_row(
                    str(env.number) if domain is env.seed and index == 0 else "",
                    *(size if index == 0 else ("",) * 4),
                    nic.mac,
                    str(nic.address) if nic.address else "by the seed",
                    nic.bridge,
                    nic.port,
                )
        table.add_section()
    console.print(table)
    for line in explain(plan.count):
        console.print(line, soft_wrap=True)


def explain(count: Count) -> list[str]:
    """How many environments, and why: one line for each resource."""
    if count.wanted == "auto":
        head = f"count = auto gives {count.value}, limited by {count.limited_by}:"
    else:
        least = min(bound.allows for bound in count.bounds)
        head = f"count = {count.wanted} as configured (auto would give {least}):"
    lines = [head]
    for bound in count.bounds:
        unit = f" {bound.unit}" if bound.unit else ""
        total = f"({bound.total} - {bound.reserve} reserved)" if bound.reserve else f"{bound.total}"
        more = f" x {bound.overcommit:g} overcommitted" if bound.overcommit != 1 else ""
        lines.append(
            f"  {bound.resource}: {total}{unit}{more} / {bound.each}{unit} each allows"
            f" {bound.allows}"
        )
    return lines


def print_events(events: Sequence[EventRecord], console: Console) -> None:
    """One event a line, the newest last."""
    table = Table(box=None)
    for column in ("time (UTC)", "environment", "event", "state", "lease"):
        table.add_column(column, no_wrap=True, overflow="ignore")
    table.add_column("reason", overflow="fold")
    for event in events:
        cells = (
            event.at[:19].replace("T", " "),
            event.environment,
            event.event,
            event.state or "",
            (event.lease or "")[:8],
            event.reason,
        )
        table.add_row(*(_printable(cell) for cell in cells))
    console.print(table)


def _printable(text: str) -> str:
    """What a client said must not steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
