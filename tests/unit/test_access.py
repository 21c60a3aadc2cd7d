"""Who a certificate makes somebody, and what that somebody may do."""

import pytest

from broker.server.access import MAX_SUBJECT, UnknownSubject, unverified, verified
from schemas.broker import AccessSection

FUNCTIONS = (
    b"lockenv", b"lockenv:kvm", b"lease_1", b"callback_1", b"host.one", b"host.two", b"cat",
    b"lockenvy", b"host.one\nx", b"xlockenv", b"hostXone",
)  # fmt: skip


def allowed(role: str, access: AccessSection | None = None) -> tuple[set[bytes], set[bytes]]:
    """What role's "one" may register, and invoke."""
    identity = verified({"OU": role, "CN": "one"}, 7, "203.0.113.1", access or AccessSection())
    return (
        {function for function in FUNCTIONS if identity.may_register(function)},
        {function for function in FUNCTIONS if identity.may_invoke(function)},
    )


def test_job_asks_for_locks_and_can_be_called_back() -> None:
    assert allowed("job") == ({b"callback_1"}, {b"lockenv", b"lockenv:kvm", b"lease_1"})


def test_host_offers_locks_and_itself_and_calls_back() -> None:
    own = {b"lockenv", b"lockenv:kvm", b"lease_1", b"host.one"}
    assert allowed("host") == (own, {b"callback_1"})


def test_operator_asks_hosts_and_offers_nothing() -> None:
    register, invoke = allowed("operator")
    assert register == set()
    assert {b"host.one", b"host.two"} <= invoke
    assert all(function.startswith(b"host.") for function in invoke)


def test_only_operators_and_open_brokers_unverified_peers_are_operators() -> None:
    roles = ("job", "host", "operator")
    subjects = [verified({"OU": role, "CN": "x"}, 7, "::1", AccessSection()) for role in roles]
    assert [identity.operator for identity in subjects] == [False, False, True]
    assert unverified("::1", AccessSection()).operator
    assert not unverified("::1", AccessSection(unverified=("job", "host"))).operator


def test_unverified_peer_may_do_anything_unless_told_otherwise() -> None:
    anybody = unverified("203.0.113.1", AccessSection())
    assert all(map(anybody.may_register, FUNCTIONS))
    assert all(map(anybody.may_invoke, FUNCTIONS))
    limited = unverified("203.0.113.1", AccessSection(unverified=("job", "host")))
    assert limited.may_register(b"host.any")
    assert limited.may_invoke(b"lockenv")
    assert not limited.may_invoke(b"host.any")
    assert not limited.may_register(b"cat")
    assert not unverified("203.0.113.1", AccessSection(unverified=())).may_invoke(b"lockenv")


def test_host_named_with_dots_is_not_a_pattern() -> None:
    identity = verified({"OU": "host", "CN": "a.b"}, 7, "::1", AccessSection())
    assert identity.may_register(b"host.a.b")
    assert not identity.may_register(b"host.axb")


def test_patterns_fit_subjects_that_have_all_their_attributes() -> None:
    access = AccessSection(operator=("O=Ops,CN=ann*", "CN=root"), host=(), job=("OU=*",))

    def role(**subject: str) -> str:
        return verified(subject, 7, "::1", access).subject.partition("/")[0]

    assert role(O="Ops", CN="anna") == "operator"
    assert role(CN="root") == "operator"
    assert role(O="Ops", CN="bob", OU="x") == "job"
    with pytest.raises(UnknownSubject, match="O=Dev,CN=anna"):
        role(O="Dev", CN="anna")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a\n", "x" * (MAX_SUBJECT - 3)])
def test_name_that_would_not_fit_a_stamp_is_refused(name: str) -> None:
    with pytest.raises(UnknownSubject, match="CN"):
        verified({"OU": "job", "CN": name}, 7, "::1", AccessSection())


def test_subject_counts_where_there_is_one_and_the_address_where_not() -> None:
    assert unverified("203.0.113.1", AccessSection()).group == "203.0.113.1"
    one = verified({"OU": "job", "CN": "one"}, 7, "203.0.113.1", AccessSection())
    assert (one.group, one.is_verified) == ("job/one", True)


def test_text_about_a_certificate_is_one_line_without_control_characters() -> None:
    subject = {"O": "x\n2026-01-01 forged", "OU": "\x1b[2J", "CN": "\u009b31m\u2028"}
    with pytest.raises(UnknownSubject) as caught:
        verified(subject, 7, "::1", AccessSection())
    assert str(caught.value).isprintable()
    assert r"O=x\n2026-01-01 forged" in str(caught.value)
