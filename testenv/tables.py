"""The fleet and its past, for people."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich.table import Table

from schemas.control import PastLease
from schemas.lock import for_people
from schemas.names import UNVERIFIED
from schemas.status import EnvironmentReport, Hold, Lease
from testenv.duration import duration
from testenv.fleet import Fleet
from testenv.hold import HeldEnvironment, HostAutohold


def environments(fleet: Fleet) -> Table:
    """One row an environment."""
    table = Table()
    for column in ("host", "environment", "state", "for", "labels", "holder", "note"):
        table.add_column(column, overflow="fold")
    for host in fleet.hosts:
        if host.report is None:
            table.add_row(host.host, "", "unknown", "", "", "", host.problem)
            continue
        notes = "draining" if host.report.draining else ""
        if not host.report.environments:
            table.add_row(host.host, "none", "", "", "", "", notes)
        for index, env in enumerate(host.report.environments):
            name = host.host if index == 0 else ""
            note = ", ".join(part for part in (_note(env), notes) if part)
            held_by = holder(env.lease) if env.lease else ""
            labels = " ".join(env.labels)
            table.add_row(name, env.id, _state(env), duration(env.since_s), labels, held_by, note)
    return table


def past(leases: Sequence[PastLease]) -> Table:
    """One row a lease, in the order given."""
    table = Table(box=None)
    for column in ("granted (UTC)", "environment", "lease", "held", "exit"):
        table.add_column(column, no_wrap=True, overflow="ignore")
    for column in ("holder", "end"):
        table.add_column(column, overflow="fold")
    for lease in leases:
        table.add_row(
            lease.granted.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            lease.environment,
            lease.id[:8],
            duration((lease.ended - lease.granted).total_seconds()) if lease.ended else "",
            "" if lease.exit_code is None else str(lease.exit_code),
            holder(lease),
            for_people(lease.reason) if lease.ended else "runs",
        )
    return table


def holds(held: Sequence[HeldEnvironment]) -> Table:
    """One row an environment."""
    table = Table(box=None)
    for column in ("environment", "state", "until (UTC)", "job", "lease"):
        table.add_column(column, no_wrap=True, overflow="ignore")
    for column in ("asked by", "holder", "reason"):
        table.add_column(column, overflow="fold")
    for each in held:
        hold = each.hold
        table.add_row(
            each.environment,
            each.state if hold.since else f"{each.state}, to be held",
            moment(hold.until).removesuffix(" UTC") if hold.until else "",
            for_people(hold.job),
            hold.lease[:8],
            hold.asked_by,
            hold.holder,
            hold.reason,
        )
    return table


def autoholds(rules: Sequence[HostAutohold]) -> Table:
    """One row a host and rule."""
    table = Table(box=None)
    for column in ("autohold", "host", "job", "left", "for"):
        table.add_column(column, no_wrap=True, overflow="ignore")
    for column in ("asked by", "reason"):
        table.add_column(column, overflow="fold")
    for each in rules:
        rule = each.rule
        table.add_row(
            rule.id, each.host, for_people(rule.job), str(rule.left), duration(rule.for_s),
            rule.asked_by, rule.reason,
        )  # fmt: skip
    return table


def moment(when: datetime) -> str:
    """As all tables have it."""
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def kept(hold: Hold) -> str:
    """For whom, and until when at the latest."""
    whom = hold.holder or hold.asked_by
    return f"held for {whom}, until {moment(hold.until)}" if hold.until else f"held for {whom}"


def holder(lease: Lease) -> str:
    """Who says to hold it, and who does, where the broker has verified that."""
    if lease.submitter == UNVERIFIED:
        return for_people(lease.holder)
    return for_people(f"{lease.holder} ({lease.submitter})")


def until(lease: Lease) -> str:
    """Who holds it, and until when at the latest."""
    latest: datetime = lease.granted + timedelta(seconds=lease.timeout_s)
    return f"{holder(lease)}, until {moment(latest)} at the latest"


def _state(env: EnvironmentReport) -> str:
    return f"{env.state} ({env.lease_state})" if env.lease_state else env.state


def _note(env: EnvironmentReport) -> str:
    cordon = _with_reason("cordoned", env.cordon_reason)
    waits = "to be rebuilt" if env.lease or env.hold else "being rebuilt"
    rebuild = _with_reason(waits, env.rebuild_reason)
    hold = ""
    if env.hold:
        hold = _with_reason(kept(env.hold) if env.hold.since else "to be held", env.hold.reason)
    withdrawn = f"withdrawn: {env.withdrawn}" if env.withdrawn else ""
    parts = (
        hold,
        cordon if env.cordoned else "",
        rebuild if env.rebuilding else "",
        withdrawn,
        env.reason,
    )
    return ", ".join(part for part in parts if part)


def _with_reason(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what
