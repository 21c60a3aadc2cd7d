"""Fleets, as brokers and agents would tell of them."""

from datetime import UTC, datetime

from schemas.status import EnvironmentReport, EnvState, HostReport, Lease
from testenv.fleet import BrokerView, Fleet, HostView

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
BROKER = "broker-1:4730"


def an_environment(env_id: str, *, held: bool = False, **more: object) -> EnvironmentReport:
    lease = Lease(
        id="1ea5e".ljust(32, "0"),
        environment=env_id,
        generation=1,
        holder="ann",
        granted=NOON,
        timeout_s=3600,
    )
    known = {"id": env_id, "state": EnvState.LEASED if held else EnvState.READY}
    return EnvironmentReport.model_validate(
        known | {"lease": lease if held else None, "cordoned": True} | more
    )


def a_host(name: str, *environments: EnvironmentReport) -> HostView:
    report = HostReport(
        host=name, version="1", pid=1, started=NOON, environments=tuple(environments)
    )
    return HostView(host=name, broker=BROKER, report=report)


def a_silent_host(name: str) -> HostView:
    return HostView(host=name, broker=BROKER, problem="no answer within 3 s")


def a_fleet(*hosts: HostView) -> Fleet:
    return Fleet(brokers=(BrokerView(broker=BROKER, state="up"),), hosts=hosts, queues=())
