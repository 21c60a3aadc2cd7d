"""The PKI: what its certificates say, and that its folder never loses one."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="needs the broker extra")

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker import pki
from broker.pki_store import State, Store
from schemas.errors import ConfigError, PkiError

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "pki", NOW)
    made.init(["broker.example.org", "192.0.2.10", "::1"])
    return made


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def purposes(cert: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


@pytest.mark.usefixtures("store")
def test_broker_certificate_is_a_servers_with_all_its_names(tmp_path: Path) -> None:
    cert = certificate(tmp_path / "pki" / "broker.crt")
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example.org"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["192.0.2.10", "::1"]
    assert purposes(cert) == [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize("role", ["host", "job", "operator"])
def test_peer_certificate_says_role_and_name_and_is_no_servers(
    store: Store, tmp_path: Path, role: str
) -> None:
    cert_file, key_file, ca_file = store.issue(role, ["te-1"], 30, tmp_path / "out")
    cert = certificate(cert_file)
    assert cert.subject.rfc4514_string() == f"CN=te-1,OU={role}"
    assert purposes(cert) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert cert.not_valid_after_utc == NOW + timedelta(days=30)
    cert.verify_directly_issued_by(certificate(ca_file))
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


@pytest.mark.usefixtures("store")
def test_authority_key_is_its_owners_only_and_signs_no_authorities(tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "pki" / "ca.key").stat().st_mode) == 0o600
    constraints = certificate(tmp_path / "pki" / "ca.crt").extensions.get_extension_for_class(
        x509.BasicConstraints
    )
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


@pytest.mark.usefixtures("store")
def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    later = Store(tmp_path / "pki", NOW + timedelta(days=pki.AUTHORITY_DAYS - 1))
    cert_file, _, ca_file = later.issue("job", ["a"], 365, tmp_path / "out")
    assert certificate(cert_file).not_valid_after_utc == certificate(ca_file).not_valid_after_utc


def test_second_init_changes_nothing(store: Store, tmp_path: Path) -> None:
    before = (tmp_path / "pki" / "ca.crt").read_bytes()
    with pytest.raises(PkiError, match="exists"):
        store.init(["other"])
    assert (tmp_path / "pki" / "ca.crt").read_bytes() == before


def test_second_live_certificate_of_a_bearer_needs_again(store: Store, tmp_path: Path) -> None:
    store.issue("job", ["ci"], 30, tmp_path / "one")
    store.issue("host", ["ci"], 30, tmp_path / "one")
    with pytest.raises(PkiError, match="job/ci has a live certificate"):
        store.issue("job", ["ci"], 30, tmp_path / "two")
    store.issue("job", ["ci"], 30, tmp_path / "two", again=True)
    assert [one.label for one in store.issued()].count("job/ci") == 2


def test_revoked_or_expired_bearer_gets_a_new_one(store: Store, tmp_path: Path) -> None:
    store.issue("job", ["gone"], 30, tmp_path / "one")
    store.issue("job", ["late"], 30, tmp_path / "one")
    store.revoke([one.serial for one in store.live("gone")])
    store.issue("job", ["gone"], 30, tmp_path / "two")
    later = Store(tmp_path / "pki", NOW + timedelta(days=31))
    later.issue("job", ["late"], 30, tmp_path / "two")
    states = {(one.label, one.state) for one in later.issued() if one.role == "job"}
    assert states == {
        ("job/gone", State.REVOKED),
        ("job/gone", State.EXPIRED),
        ("job/late", State.EXPIRED),
        ("job/late", State.LIVE),
    }


def test_nothing_is_overwritten_nor_issued_when_a_file_is_in_the_way(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "job-ci.key").write_text("precious")
    issued = store.issued()
    with pytest.raises(PkiError, match=r"job-ci\.key exists"):
        store.issue("job", ["ci"], 30, tmp_path)
    assert (tmp_path / "job-ci.key").read_text() == "precious"
    assert store.issued() == issued


def test_revocation_list_keeps_what_it_has_and_lasts(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        store.issue("job", [name], 30, tmp_path / "out")
        path = store.revoke([one.serial for one in store.live(name)])
    crl = x509.load_pem_x509_crl(path.read_bytes())
    revoked = {one.serial for one in store.issued() if one.state is State.REVOKED}
    assert {entry.serial_number for entry in crl} == revoked
    assert len(revoked) == 2
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 3
    assert crl.next_update_utc == NOW + timedelta(days=pki.AUTHORITY_DAYS)
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "broker.crt", "broker.key", "ca.crt", "ca.key", "crl.pem", "issued",
    ]  # fmt: skip


def test_name_that_two_roles_have_must_be_told_apart(store: Store, tmp_path: Path) -> None:
    for role in ("host", "operator"):
        store.issue(role, ["ann"], 30, tmp_path / "out")
    with pytest.raises(PkiError, match="ann may be host/ann or operator/ann"):
        store.live("ann")
    assert [one.label for one in store.live("host/ann")] == ["host/ann"]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "a,OU=operator", "x" * 41, "ä"])
def test_name_that_no_subject_can_have_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is not a name"):
        store.issue("job", [name], 30, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["", "a b", "*.example.org", "-a", "a..b", "http://a", "bücher.example"]
)
def test_broker_name_that_is_no_host_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an address"):
        Store(tmp_path / "pki", NOW).init([name])
    assert not (tmp_path / "pki").exists()


def test_folder_without_an_authority_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(PkiError, match=r"ca\.crt does not exist; make an authority"):
        Store(tmp_path, NOW).issued()


def test_authority_that_has_ended_issues_nothing(store: Store, tmp_path: Path) -> None:
    later = Store(tmp_path / "pki", NOW + timedelta(days=pki.AUTHORITY_DAYS + 1))
    with pytest.raises(PkiError, match="ended on 2039-12-30; make another one"):
        later.issue("job", ["ci"], 30, tmp_path / "out")
    assert [one.role for one in store.issued()] == ["broker"]


def test_key_of_another_authority_signs_nothing(store: Store, tmp_path: Path) -> None:
    Store(tmp_path / "other", NOW).init(["broker"])
    (tmp_path / "other" / "ca.key").replace(tmp_path / "pki" / "ca.key")
    with pytest.raises(PkiError, match=r"ca\.key is not the key of .*ca\.crt"):
        store.issue("job", ["ci"], 30, tmp_path / "out")
    crl = (tmp_path / "pki" / "crl.pem").read_bytes()
    with pytest.raises(PkiError, match="is not the key of"):
        store.revoke([7])
    assert (tmp_path / "pki" / "crl.pem").read_bytes() == crl


def test_new_authority_does_not_know_the_certificates_of_the_one_before(
    store: Store, tmp_path: Path
) -> None:
    store.issue("job", ["ci"], 30, tmp_path / "one")
    for file in (tmp_path / "pki").iterdir():
        if file.is_file():
            file.unlink()
    store.init(["broker"])
    assert [one.label for one in store.issued()] == ["broker/broker"]
    store.issue("job", ["ci"], 30, tmp_path / "two")
    assert len(store.live("job/ci")) == 1


@pytest.mark.parametrize("done", range(1, 5))
def test_init_after_one_that_was_interrupted_names_what_is_to_be_removed(
    store: Store, tmp_path: Path, done: int
) -> None:
    """It writes ca.crt last."""
    folder = tmp_path / "pki"
    left = ["crl.pem", "broker.crt", "broker.key", "ca.key"][:done]
    for name in {"ca.crt", "crl.pem", "broker.crt", "broker.key", "ca.key"} - set(left):
        (folder / name).unlink()
    with pytest.raises(PkiError, match="was init interrupted") as info:
        store.init(["broker"])
    assert all(str(folder / name) in str(info.value) for name in left)
    for name in left:
        (folder / name).unlink()
    store.init(["broker"])


def test_stray_file_in_the_index_is_told_of_and_stops_nobody(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.issue("job", ["ci"], 30, tmp_path / "out")
    (tmp_path / "pki" / "issued" / "note.crt").write_text("hello")
    store.revoke([one.serial for one in store.live("job/ci")])
    assert [one.state for one in store.issued() if one.role == "job"] == [State.REVOKED]
    assert "note.crt is not a certificate: passed over" in caplog.text
