"""What the two sides of a lease say to each other, and what of a stranger's words is believed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import OfferRefused
from schemas.legs import (
    MAX_HOLD_S,
    Attach,
    BadMessage,
    Offered,
    Result,
    Resume,
    confirmation,
    is_confirmation,
)
from schemas.terms import Terms

LEASE: dict[str, Any] = {
    "id": "a" * 32,
    "environment": "te1/1",
    "generation": 3,
    "secret": "s" * 32,
    "terms": Terms()._asdict(),
}


def offer(**changes: Any) -> dict[str, Any]:
    return {"seed-ip": "203.0.113.10", "testenv": {"lease": {**LEASE, **changes}}}


def test_version_2_offer_has_its_lease_and_terms() -> None:
    offered = Offered.of(offer())
    assert offered == Offered("a" * 32, "te1/1", 3, "s" * 32, Terms())


@pytest.mark.parametrize("document", [{}, {"testenv": []}, {"testenv": {"lease": {"id": "x"}}}])
def test_offer_without_terms_is_version_1(document: dict[str, Any]) -> None:
    assert Offered.of(document) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"terms": []},
        {"terms": {"ttl_s": "soon"}},
        {"terms": {"ttl_s": 0}},
        {"terms": {"ttl_s": float("inf")}},
        {"terms": {"beat_s": -1}},
        {"secret": ""},
        {"generation": None},
    ],
)
def test_offer_whose_terms_cannot_be_kept_is_refused_and_never_taken_for_version_1(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(OfferRefused, match="lease can't be read"):
        Offered.of(offer(**changes))


def test_every_message_is_read_as_it_was_written() -> None:
    attach = Attach("a", 3, "s", "callback_1", "")
    assert Attach.parse(attach.dump()) == attach
    assert attach.told is None
    told = Attach("a", 3, "s", "", "exited", 7, 60.0)
    assert Attach.parse(told.dump()) == told
    assert told.told == Result("exited", 7, 60.0)
    assert Resume.parse(Resume("a", 3, 7).dump()) == Resume("a", 3, 7)
    for result in (Result("exited", 7), Result("exited", 7, 60.0), Result("gone")):
        assert Result.parse(result.dump()) == result
    assert is_confirmation(confirmation("a"), "a")
    assert not is_confirmation(confirmation("a"), "b")


@pytest.mark.parametrize(
    "told", [0, -1, MAX_HOLD_S + 1, 10**400, float("nan"), float("inf"), "60", [], None]
)
def test_a_wish_for_a_hold_that_cannot_be_is_none(told: object) -> None:
    document = {"testenv": {"reason": "exited", "exit_code": 1, "hold_s": told}}
    assert Result.parse(json.dumps(document).encode()) == Result("exited", 1)


def test_an_older_client_says_nothing_of_a_hold() -> None:
    assert Result.parse(b'{"testenv": {"reason": "exited", "exit_code": 1}}') == Result("exited", 1)
    attach = {"lease": "a", "generation": 3, "secret": "s", "callback": "", "result": "killed"}
    assert Attach.parse(json.dumps({"testenv": attach}).encode()).told == Result("killed")


def test_what_a_stranger_says_stays_one_short_line() -> None:
    words = "gone\n2026 INFO all is well\x1b[2J" + "x" * 10_000
    for said in (
        Attach.parse(Attach("a", 3, "s", result=words).dump()).result,
        getattr(Result.parse(Result(words).dump()), "reason", ""),
    ):
        assert said.startswith("gone?2026")
        assert said.isprintable()
        assert len(said) <= 200


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_no_bytes_make_a_reader_fail_in_another_way(data: bytes) -> None:
    assert Resume.parse(data) is None
    assert Result.parse(data) is None
    assert not is_confirmation(data, "a")
    with pytest.raises(BadMessage):
        Attach.parse(data)
