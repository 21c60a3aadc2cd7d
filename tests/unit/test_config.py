"""A bad configuration is refused in one line that names file, key and allowed values."""

from pathlib import Path

import pytest

from hosts.config import load_config
from schemas.config import HostConfig
from schemas.errors import ConfigError
from schemas.exits import ExitStatus


def load(tmp_path: Path, text: str) -> HostConfig:
    path = tmp_path / "host.toml"
    path.write_text(text)
    return load_config(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert refused.value.exit_status is ExitStatus.USAGE
    message = str(refused.value)
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path / 'host.toml'}: ")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    load(tmp_path, "")


def test_the_documented_example_is_the_default(tmp_path: Path) -> None:
    documented = (Path(__file__).parents[2] / "docs" / "host.toml").read_text()
    named = load(tmp_path, '[host]\nname = "te-host-01"\n')
    assert load(tmp_path, documented) == named


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[host]\nnam = "x"',
            "host.nam: unknown key; allowed here: brokers, name, state_dir",
        ),
        (
            "[hots]",
            (
                "hots: unknown key; allowed here: console, environments, health, hold, hooks, host,"
                " hypervisor, lease, public, quarantine, switch, tls"
            ),
        ),
        (
            '[hooks]\nbefore_offer = "echo \'"',
            'hooks.before_offer: No closing quotation (given: "echo \'")',
        ),
        (
            "[quarantine]\nwindow = 3",
            "quarantine: min_leases must be at most window (3)",
        ),
        (
            '[environments.nodes]\ndisk_format = "vmdk"',
            "environments.nodes.disk_format: should be 'qcow2' or 'raw' (given: 'vmdk')",
        ),
        (
            '[hypervisor]\ndomain_type = "xen"',
            "hypervisor.domain_type: should be 'auto', 'kvm' or 'qemu' (given: 'xen')",
        ),
        (
            '[environments]\ncount = "many"',
            (
                "environments.count: should be a valid integer, unable to parse string as"
                " an integer or should be 'auto' (given: 'many')"
            ),
        ),
        (
            '[environments.seed]\nmemory_mib = "lots"',
            (
                "environments.seed.memory_mib: should be a valid integer, unable to parse string as"
                " an integer (given: 'lots')"
            ),
        ),
        (
            '[public]\nseed_addresses = ["203.0.113.99", "203.0.113.10"]',
            "public: seed_addresses must be [first, last]; 203.0.113.99 is after 203.0.113.10",
        ),
        (
            '[public]\nseed_addresses = ["198.51.100.1", "198.51.100.9"]',
            "public: seed_addresses: 198.51.100.1 is not in the bridge's 203.0.113.0/24",
        ),
        (
            '[public]\naddress = "203.0.113.10/24"',
            "public: seed_addresses must not contain the host's own 203.0.113.10",
        ),
        (
            '[environments.seed]\nimage = "/a"\nkernel = "/b"',
            "environments.seed: give image or kernel, not both",
        ),
        (
            '[host]\nstate_dir = "here"',
            "host.state_dir: must be an absolute path (given: 'here')",
        ),
        (
            '[public]\nbridge = "brbm1"',
            "public.bridge: must not be named like a private bridge, brbm<N> (given: 'brbm1')",
        ),
        (
            '[environments.seed]\nimage = "seed.qcow2"',
            (
                "environments.seed: seed.qcow2 must be an image's name, or an absolute path:"
                " qemu opens it, not the agent"
            ),
        ),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text) == message


@pytest.mark.parametrize("said", ["'check --all \"te 1\"'", "['check', '--all', 'te 1']"])
def test_a_hook_is_a_text_or_a_list_of_words(tmp_path: Path, said: str) -> None:
    config = load(tmp_path, f"[hooks]\nafter_lease = {said}")
    assert config.hooks.after_lease == ("check", "--all", "te 1")


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, "count:").startswith("is not TOML: ")
    assert refusal(tmp_path, "a = " + "[" * 5000).startswith("is not TOML: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load_config(tmp_path / "none.toml")
