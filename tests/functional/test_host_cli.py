"""testenv-host as an admin types it, where there is neither root nor libvirt."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOON_S = 30
WITHOUT_HOST_EXTRA = (
    "import sys; sys.modules.update(dict.fromkeys(['libvirt', 'libvirtmod', 'lxml', 'ovs']));"
    "from {module} import main; main()"
)
BIG = ["--memory-gib", "64", "--cpus", "16", "--disk-gib", "500"]


def run_without_host_extra(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of ours as the base install has it."""
    program = WITHOUT_HOST_EXTRA.format(module=module)
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "host.toml"
    path.write_text(f'[host]\nname = "te7"\nstate_dir = "{tmp_path}/state"\n')
    return str(path)


def test_plan_explains_its_count_for_a_host_given_by_options(config: str) -> None:
    planned = run_without_host_extra("hosts.cli", "--config", config, "plan", *BIG)
    assert planned.returncode == 0
    lines = planned.stdout.splitlines()[-5:]
    assert lines == [
        "count = auto gives 5, limited by cpus:",
        "  memory: (65536 - 1024 reserved) MiB / 768 MiB each allows 84",
        "  cpus: (16 - 1 reserved) / 3 each allows 5",
        "  disk: (500 - 5 reserved) GiB / 3 GiB each allows 165",
        "  addresses: 90 / 1 each allows 90",
    ]


def test_plan_reads_a_fact_file(config: str, tmp_path: Path) -> None:
    facts = tmp_path / "facts.json"
    facts.write_text('{"memory_mib": 65536, "cpus": 16, "disk_gib": 500}')
    by_file = run_without_host_extra(
        "hosts.cli", "--config", config, "plan", "--facts", str(facts), "--json"
    )
    by_options = run_without_host_extra("hosts.cli", "--config", config, "plan", *BIG, "--json")
    assert by_file.stdout == by_options.stdout
    assert json.loads(by_file.stdout)["count"]["value"] == 5


def test_plan_prints_every_mac_unharmed(config: str) -> None:
    """rich takes `:cd:` for an emoji unless told not to."""
    shown = run_without_host_extra("hosts.cli", "--config", config, "plan", *BIG).stdout
    document = run_without_host_extra("hosts.cli", "--config", config, "plan", *BIG, "--json")
    plan = json.loads(document.stdout)
    macs = [
        nic["mac"]
        for env in plan["environments"]
        for machine in (env["seed"], *env["nodes"])
        for nic in machine["nics"]
    ]
    assert any(":cd:" in mac for mac in macs)
    assert [mac for mac in macs if mac not in shown] == []


def test_plan_touches_nothing(config: str, tmp_path: Path) -> None:
    run_without_host_extra("hosts.cli", "--config", config, "plan")
    assert [path.name for path in tmp_path.iterdir()] == ["host.toml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"memory_mib": 1}', "cpus"),
        ('{"memory_mib": "x", "cpus": 1, "disk_gib": 1}', "memory_mib"),
        ("[]", "Input should be"),
        ("{", "is not JSON"),
    ],
)
def test_a_bad_fact_file_is_named(config: str, tmp_path: Path, text: str, message: str) -> None:
    facts = tmp_path / "facts.json"
    facts.write_text(text)
    refused = run_without_host_extra("hosts.cli", "--config", config, "plan", "--facts", str(facts))
    assert refused.returncode == 2
    assert f"testenv-host: {facts}: " in refused.stderr
    assert message in refused.stderr


@pytest.mark.parametrize("words", [["check"], ["run"], ["destroy", "--yes"]])
def test_what_needs_the_host_extra_says_so(config: str, words: list[str]) -> None:
    refused = run_without_host_extra("hosts.cli", "--config", config, *words)
    assert refused.returncode == 1
    assert "install testenv with its host extra" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("testenv.cli", ["status"]),
        ("testenv.client", []),
        ("broker.cli", ["run"]),
        ("hosts.cli", ["plan"]),
        ("hosts.cli", ["check"]),
        ("hosts.cli", ["run"]),
        ("hosts.cli", ["destroy"]),
        ("hosts.cli", ["serve"]),
    ],
)
def test_every_command_s_help_has_an_example_without_the_host_extra(
    module: str, words: list[str]
) -> None:
    helped = run_without_host_extra(module, *words, "--help")
    assert helped.returncode == 0
    assert "example" in helped.stdout.lower()
