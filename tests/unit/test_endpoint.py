"""Brokers' addresses, as users write them."""

from pathlib import Path

import pytest

from broker.endpoint import Endpoint, parse_endpoint, parse_endpoints
from broker.tls import TlsFiles, tls_files
from schemas.errors import ConfigError


def test_port_is_gearmans_unless_given() -> None:
    assert parse_endpoints("a:4731,b") == (Endpoint("a", 4731), Endpoint("b", 4730))


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1", Endpoint("127.0.0.1")),
        (" te-host_1.example.org:80 ", Endpoint("te-host_1.example.org", 80)),
        ("[::1]", Endpoint("::1")),
        ("[::1]:65535", Endpoint("::1", 65535)),
        ("[fe80::1%eth0]:1", Endpoint("fe80::1%eth0", 1)),
        ("[::ffff:192.0.2.1]:1", Endpoint("::ffff:192.0.2.1", 1)),
    ],
)
def test_names_and_addresses_are_understood(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text, "--geard") == endpoint


@pytest.mark.parametrize("endpoint", [Endpoint("a.b"), Endpoint("10.0.0.1", 1), Endpoint("::1", 2)])
def test_what_is_printed_can_be_read_again(endpoint: Endpoint) -> None:
    assert parse_endpoint(str(endpoint), "x") == endpoint


def test_v6_is_printed_in_brackets() -> None:
    assert str(Endpoint("::1")) == "[::1]:4730"
    assert str(Endpoint("broker", 1)) == "broker:1"


def test_tls_is_part_of_an_endpoint_and_not_shown() -> None:
    files = TlsFiles(Path("cert"), Path("key"), Path("ca"))
    assert Endpoint("a", tls=files) != Endpoint("a")
    assert str(Endpoint("a", tls=files)) == "a:4730"


def test_order_is_kept_and_duplicates_go() -> None:
    assert parse_endpoints("b, a:4730,b:4730,a") == (Endpoint("b"), Endpoint("a"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "a,",
        "a b",
        ":4730",
        "a:",
        "a:x",
        "a:0",
        "a:65536",
        "a:-1",
        "a:4730:1",
        "a:४७",
        "::1",
        "[::1",
        "[]:1",
        "[a]:1",
        "[::1]x",
        "http://a:4730",
        "-a:1",
        "a/b",
    ],
)
def test_nonsense_is_refused_with_its_source(text: str) -> None:
    with pytest.raises(ConfigError, match="TESTENV_BROKER") as refusal:
        parse_endpoints(text, source="TESTENV_BROKER")
    assert "\n" not in str(refusal.value)
    assert refusal.value.remedy


def test_bare_v6_address_is_told_about_brackets() -> None:
    with pytest.raises(ConfigError, match=r"brackets.*\[::1\]:4730"):
        parse_endpoints("::1")


def test_port_0_is_for_listening_only() -> None:
    assert parse_endpoint("127.0.0.1:0", "--listen", any_port=True).port == 0
    with pytest.raises(ConfigError, match="1 to 65535"):
        parse_endpoint("127.0.0.1:0", "--geard")


@pytest.mark.parametrize("text", ["127.0.0.1", "[::1]", "localhost"])
def test_what_is_no_broker_needs_a_port(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--http: '.*' has no port; as in 127.0.0.1:9100$"):
        parse_endpoint(text, "--http", any_port=True, needs_port=True)
    assert parse_endpoint(f"{text}:0", "--http", any_port=True, needs_port=True).port == 0


def test_addresses_are_told_from_names() -> None:
    numeric = [Endpoint("127.0.0.1"), Endpoint("::1"), Endpoint("fe80::1%eth0")]
    assert all(endpoint.is_numeric for endpoint in numeric)
    assert not Endpoint("localhost").is_numeric
    assert not Endpoint("4.example").is_numeric


def test_tls_takes_all_three_files_or_none() -> None:
    assert tls_files(None, "", None) is None
    assert tls_files("c", "k", "a") == TlsFiles(Path("c"), Path("k"), Path("a"))
    with pytest.raises(ConfigError, match=r"^--tls-ca: TLS takes this file too"):
        tls_files("c", "k", None)
    with pytest.raises(ConfigError, match=r"^--tls-cert, --tls-key: TLS takes all three files"):
        tls_files(None, None, "a")
