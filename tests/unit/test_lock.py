"""The lock request and the offer on the wire: toci's form, and what is new beside it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import OfferRefused
from schemas.lock import BadLockRequest, LockRequest, parse_offer

PRINTABLE = st.characters(exclude_categories=["C", "Z"])
TOCI = b'{"callback_name": "callback_42", "timeout": "10800"}'


def test_toci_s_request_is_read() -> None:
    request = LockRequest.parse(TOCI)
    assert (request.callback, request.timeout_s) == ("callback_42", 10800)


def test_a_v1_client_is_told_from_ours() -> None:
    assert LockRequest.parse(TOCI).version == 1
    assert LockRequest.parse(b'{"callback_name": "c", "testenv": {"version": "2"}}').version == 1
    assert LockRequest.parse(b'{"callback_name": "c", "testenv": {"version": 3}}').version == 2


def test_a_v1_client_s_job_identifier_is_its_holder() -> None:
    request = LockRequest.parse(b'{"callback_name": "c", "job_identifier": "1234,5: ha"}')
    assert request.holder == "1234,5: ha"


def test_our_request_has_toci_s_keys_as_strings() -> None:
    document = json.loads(LockRequest("callback_7", timeout_s=60, holder="me").dump())
    assert document["callback_name"] == "callback_7"
    assert document["timeout"] == "60"


@given(
    st.text(PRINTABLE, min_size=1, max_size=100),
    st.none() | st.integers(1, 10**6),
    st.text(PRINTABLE, min_size=1, max_size=200),
    st.text(PRINTABLE, min_size=1, max_size=100),
    st.sampled_from([1, 2]),
)
def test_a_request_is_read_as_it_was_written(
    callback: str, timeout: int | None, holder: str, job: str, version: int
) -> None:
    request = LockRequest(f"callback_{callback}", timeout, holder, job, version)
    assert LockRequest.parse(request.dump()) == request


@pytest.mark.parametrize(
    "arguments",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"callback_name": ""}',
        b'{"callback_name": 7}',
        b'{"callback_name": "a\\u0000b"}',
        b'{"callback_name": "c", "timeout": "soon"}',
        b'{"callback_name": "c", "timeout": "-1"}',
        b'{"callback_name": "c", "timeout": "0"}',
        b'{"callback_name": "c", "timeout": "inf"}',
        b'{"callback_name": "c", "timeout": "nan"}',
        b'{"callback_name": "c", "timeout": 1' + b"0" * 400 + b"}",
        b'{"callback_name": "lockenv"}',
        b'{"callback_name": "lockenv:a"}',
        b'{"callback_name": "host.te1"}',
        b'{"callback_name": "lease_abc"}',
        b'{"callback_name": "c", "timeout": 1e308}',
        b'{"callback_name": "c\\n"}',
        b'{"callback_name": "\\ud800"}',
        b'{"callback_name": "' + b"c" * 513 + b'"}',
        b"[" * 100_000,
        b'{"callback_name":' * 100_000,
        b'{"callback_name": "c", "timeout": {}}',
    ],
)
def test_a_request_that_cannot_be_served_is_refused(arguments: bytes) -> None:
    with pytest.raises(BadLockRequest):
        LockRequest.parse(arguments)


@given(st.binary())
def test_no_arguments_make_the_parser_fail_in_another_way(arguments: bytes) -> None:
    try:
        LockRequest.parse(arguments)
    except BadLockRequest:
        return


def test_what_a_stranger_says_of_itself_cannot_reach_a_terminal_as_control_characters() -> None:
    request = LockRequest.parse(b'{"callback_name": "c", "job_identifier": "a\\u001b[2Jb\\n"}')
    assert request.holder == "a?[2Jb?"
    nested = b'{"callback_name": "c", "job_identifier": ' + b"[" * 900 + b"]" * 900 + b"}"
    assert LockRequest.parse(nested).holder == "c"
    long = LockRequest.parse(b'{"callback_name": "c", "job_identifier": "' + b"x" * 9999 + b'"}')
    assert len(long.holder) == 200


def test_an_offer_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(OfferRefused):
        parse_offer(b'{"a":' * 100_000)


def test_an_offer_is_any_json_object() -> None:
    assert parse_offer(b'{"seed-ip": "203.0.113.10"}') == {"seed-ip": "203.0.113.10"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no data file"),
        (b"Couldn't retrieve env", 'its data is not JSON: "Couldn\'t retrieve env"'),
        (b'["a"]', "its data is not a JSON object"),
        (b"{}", "its data is not a JSON object"),
    ],
)
def test_an_error_text_in_the_data_file_s_place_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(OfferRefused) as refused:
        parse_offer(data)
    assert why in str(refused.value)
