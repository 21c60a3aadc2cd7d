"""The broker's exchange: what it refuses, and how much of everything one subject may have."""

import pytest

from broker.protocol import Kind
from broker.server.refusal import Breach, Refusal
from schemas.broker import AccessSection, LimitsSection
from tests.unit.exchange_rig import Desk, Rig, running_job


@pytest.fixture
def rig() -> Rig:
    return Rig()


def refused(peer: Desk, function: bytes = b"f", unique: bytes = b"", arguments: bytes = b"") -> str:
    """Submit a job that is refused, on a connection that goes on: the code."""
    with pytest.raises(Refusal) as info:
        peer.submit(function, unique, arguments)
    assert not isinstance(info.value, Breach)
    assert peer.read() == []
    return info.value.code


def test_subject_that_queues_too_much_is_refused_and_others_are_not() -> None:
    rig = Rig(LimitsSection(queued_per_subject=2))
    greedy, worker = rig.peer(), rig.peer("203.0.113.9")
    first = greedy.submit()
    greedy.submit()
    assert refused(rig.peer(), b"g") == "QUEUE_LIMIT"
    assert [view.name for view in rig.exchange.functions()] == [b"f"]
    rig.peer("203.0.113.2").submit()
    worker.offer(b"f")
    assert worker.grab() == first
    greedy.submit()


def test_submission_that_joins_a_job_counts_until_the_job_ends_or_its_submitter_leaves() -> None:
    rig = Rig(LimitsSection(queued_per_subject=3))
    first, second, worker = rig.peer(), rig.peer(), rig.peer()
    handle = first.submit(b"f", b"u")
    first.submit(b"f", b"u")
    second.submit(b"f", b"u")
    assert refused(second, b"f", b"u") == refused(second, b"g") == "QUEUE_LIMIT"
    worker.offer(b"f")
    assert worker.grab() == handle
    second.submit(b"f", b"u")
    assert refused(first, b"f", b"u") == "QUEUE_LIMIT"
    rig.exchange.leave(second)
    first.submit(b"f", b"u")
    first.submit(b"f", b"u")
    assert refused(first, b"f", b"u") == "QUEUE_LIMIT"
    worker.ask(Kind.WORK_COMPLETE, handle, b"")
    assert first.kinds() == [Kind.WORK_COMPLETE] * 4
    for unique in (b"1", b"2", b"3"):
        first.submit(b"f", unique)
    assert refused(first, b"f", b"4") == "QUEUE_LIMIT"


def test_bytes_of_jobs_count_until_they_end() -> None:
    rig = Rig(LimitsSection(job_bytes_per_subject=10_000))
    greedy, worker = rig.peer(), rig.peer("203.0.113.9")
    handle = greedy.submit(b"f", b"", b"x" * 5_000)
    assert refused(rig.peer(), b"f", b"", b"x" * 5_000) == "QUEUE_LIMIT"
    rig.peer("203.0.113.2").submit(b"g", b"", b"x" * 5_000)
    worker.offer(b"f")
    assert worker.grab() == handle
    assert refused(greedy, b"f", b"", b"x" * 5_000) == "QUEUE_LIMIT"
    worker.ask(Kind.WORK_COMPLETE, handle, b"")
    rig.exchange.cancel(greedy, greedy.submit(b"f", b"", b"x" * 5_000))
    rig.exchange.leave(greedy)
    rig.peer().submit(b"f", b"", b"x" * 5_000)


def test_jobs_without_arguments_are_not_for_nothing() -> None:
    rig = Rig(LimitsSection(job_bytes_per_subject=10_000))
    client, worker = rig.peer(), rig.peer()
    worker.offer(b"f")
    for _ in range(9):
        assert client.submit() == worker.grab()
    assert refused(client) == "QUEUE_LIMIT"


def test_packet_for_many_submissions_is_made_once(rig: Rig) -> None:
    written: list[bytes] = []
    client, worker = rig.peer(), rig.peer()
    for _ in range(3):
        handle = client.submit(b"f", b"u")
    client.write = written.append
    worker.offer(b"f")
    worker.grab()
    worker.ask(Kind.WORK_DATA, handle, b"x" * 1000)
    assert len(written) == 3
    assert len({id(packet) for packet in written}) == 1


def test_progress_is_no_place_to_store_things(rig: Rig) -> None:
    client, worker, handle = running_job(rig)
    with pytest.raises(Breach, match="BAD_PACKET"):
        worker.ask(Kind.WORK_STATUS, handle, b"1", b"2" * 65)
    assert client.read() == []


def test_connection_with_too_many_functions_is_in_breach() -> None:
    rig = Rig(LimitsSection(functions_per_connection=2))
    worker = rig.peer()
    worker.offer(b"a", b"b", b"a")
    with pytest.raises(Breach, match="LIMIT_EXCEEDED"):
        worker.offer(b"c")


@pytest.mark.parametrize("function", [b"host.one", b"lease_1", b"callback_1"])
def test_function_in_person_is_one_subjects_at_a_time(function: bytes) -> None:
    role = "job" if function == b"callback_1" else "host"
    rig = Rig(access=AccessSection(host=("OU=host",)))
    one = rig.certified(role, "one")
    one.offer(function)
    rig.certified(role, "one").offer(function)
    with pytest.raises(Breach, match="REGISTER_REFUSED"):
        rig.certified(role, "two").offer(function)
    with pytest.raises(Breach, match="REGISTER_REFUSED"):
        rig.peer().offer(function)


def test_function_in_person_is_free_again_when_its_owner_has_left(rig: Rig) -> None:
    one, two = rig.certified("job", "one"), rig.certified("job", "two")
    one.offer(b"callback_1")
    rig.exchange.leave(one)
    two.offer(b"callback_1")


def test_jobs_that_wait_for_a_function_in_person_keep_it_for_its_owner() -> None:
    rig = Rig()
    one, two = rig.certified("host", "one"), rig.certified("host", "two")
    one.offer(b"lease_1")
    client = rig.certified("job", "ci")
    client.submit(b"lease_1", b"", b"a token")
    rig.exchange.leave(one)
    with pytest.raises(Breach, match="REGISTER_REFUSED"):
        two.offer(b"lease_1")
    rig.certified("host", "one").offer(b"lease_1")
    rig.exchange.leave(client)


def test_function_in_person_is_free_again_when_the_last_job_for_it_is_gone(rig: Rig) -> None:
    one, two = rig.certified("host", "one"), rig.certified("host", "two")
    one.offer(b"lease_1")
    rig.exchange.create_function(b"lease_1")
    client = rig.certified("job", "ci")
    client.submit(b"lease_1")
    rig.exchange.leave(one)
    rig.exchange.leave(client)
    two.offer(b"lease_1")


def test_waiting_for_a_function_in_person_does_not_make_it_ones_own(rig: Rig) -> None:
    rig.certified("host", "one").submit(b"callback_1")
    rig.certified("job", "two").offer(b"callback_1")


def test_hosts_share_the_lock_functions(rig: Rig) -> None:
    rig.certified("host", "one").offer(b"lockenv", b"lockenv:kvm")
    rig.certified("host", "two").offer(b"lockenv", b"lockenv:kvm")


UNPRINTABLE = [
    b"a b", b"a\nb", b"a\tb", b"\x1b[2J", b"\x7f", "\x80".encode(), "\x9b2J".encode(), b"\x9b2J",
    b"\xff", "\u2028".encode(), "\u202e".encode(), "\u00a0".encode(),
]  # fmt: skip
"""What would forge a listing's lines or columns, or steer a terminal."""


@pytest.mark.parametrize("name", [*UNPRINTABLE, b"", b"x" * 513])
def test_name_that_no_function_can_have_ends_the_connection(rig: Rig, name: bytes) -> None:
    with pytest.raises(Breach, match="BAD_PACKET"):
        rig.peer().offer(name)
    with pytest.raises(Breach, match="BAD_PACKET"):
        rig.peer().submit(name)
    assert list(rig.exchange.functions()) == []


@pytest.mark.parametrize("name", [*UNPRINTABLE, b"x" * 129])
def test_client_id_that_would_spoil_a_listing_is_refused(rig: Rig, name: bytes) -> None:
    peer = rig.peer()
    with pytest.raises(Refusal, match="INVALID_ARGUMENT"):
        peer.ask(Kind.SET_CLIENT_ID, name)
    assert peer.client_id == b"-"


@pytest.mark.parametrize("name", ["lockenv:kvm+nested", "host.te-1", "Prüfung", "検査", "x" * 512])
def test_function_may_have_any_other_name(rig: Rig, name: str) -> None:
    rig.peer().offer(name.encode())
    assert [view.name for view in rig.exchange.functions()] == [name.encode()]
