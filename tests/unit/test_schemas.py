"""The published JSON Schemas are those of the models, and accept what we write."""

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest

from hosts.datafile import data_file, description, lease_data
from hosts.plan import plan_host
from schemas.config import HostConfig
from schemas.generate import PUBLISHED, SCHEMA_DIR, schema_text
from schemas.plan import Facts, HostPlan
from schemas.status import Lease
from schemas.terms import Terms


@pytest.fixture
def plan() -> HostPlan:
    config = HostConfig.model_validate({"host": {"name": "te1"}, "environments": {"count": 2}})
    return plan_host(config, Facts(memory_mib=8192, cpus=8, disk_gib=50))


@pytest.fixture
def document(plan: HostPlan) -> dict[str, object]:
    env = plan.environments[1]
    lease = Lease(
        id="f" * 32,
        environment=env.id,
        generation=3,
        holder="job 42",
        granted=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        timeout_s=60,
    )
    written = data_file(plan, env, lease_data(lease, "s" * 32, Terms())).model_dump_json(
        by_alias=True
    )
    loaded: dict[str, object] = json.loads(written)
    return loaded


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_schema_has_not_drifted_from_its_model(name: str) -> None:
    assert (SCHEMA_DIR / name).read_text() == schema_text(PUBLISHED[name]), "run make schemas"


def test_the_data_file_is_valid_by_the_published_schema(document: dict[str, object]) -> None:
    schema = json.loads((SCHEMA_DIR / "datafile.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)


def test_hooks_are_told_the_same_without_a_lease(plan: HostPlan, document: dict[str, Any]) -> None:
    del document["testenv"]["lease"]
    assert json.loads(description(plan, plan.environments[1])) == document


def test_the_data_file_has_toci_s_keys_with_strings(document: dict[str, object]) -> None:
    old = {key: value for key, value in document.items() if key not in ("nodes", "testenv")}
    assert old == {
        "arch": "x86_64",
        "host-ip": "203.0.113.1",
        "seed-ip": "203.0.113.11",
        "seed-route-dev": "br-ctlplane",
        "ssh-user": "root",
        "ssh-key": "",
        "env-num": "2",
        "remote-operations": "1",
        "remote-host": "203.0.113.1",
        "power_manager": "",
    }


def test_the_data_file_names_every_nic_s_mac_bridge_and_port(
    plan: HostPlan, document: dict[str, object]
) -> None:
    extension = document["testenv"]
    assert isinstance(extension, dict)
    told = [
        (nic["mac"], nic["ip"], nic["bridge"], nic["port"])
        for machine in (extension["seed"], *extension["nodes"])
        for nic in machine["nics"]
    ]
    assert told == [
        (nic.mac, str(nic.address) if nic.address else None, nic.bridge, nic.port)
        for domain in plan.environments[1].domains
        for nic in domain.nics
    ]
    assert extension["lease"]["id"] == "f" * 32


def test_the_documented_schema_version_is_in_the_data_file(document: dict[str, object]) -> None:
    extension = document["testenv"]
    assert isinstance(extension, dict)
    assert extension["schema"] == 1
