"""The broker's exchange: whose a job is, who hears of it, and what is forgotten."""

import pytest

from broker.protocol import UNCERTAIN_LOSS, Kind
from broker.server.job import Priority
from broker.server.refusal import Breach, Refusal
from broker.wire import Packet
from schemas.broker import AccessSection, LimitsSection
from tests.unit.exchange_rig import Desk, Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


def status(peer: Desk, handle: bytes) -> list[bytes]:
    """Known, running, numerator, denominator."""
    peer.ask(Kind.GET_STATUS, handle)
    return peer.read()[-1].data.split(b"\0")[1:]


def running_job(rig: Rig, function: bytes = b"f") -> tuple[Desk, Desk, bytes]:
    """Its submitter, its worker, its handle."""
    client, worker = rig.peer(), rig.peer()
    handle = client.submit(function)
    worker.offer(function)
    assert worker.grab() == handle
    return client, worker, handle


def test_job_goes_to_a_worker_and_its_result_to_its_submitter(rig: Rig) -> None:
    client, worker = rig.peer(), rig.peer()
    handle = client.submit(b"f", b"u", b"a\0b")
    worker.offer(b"f")
    worker.ask(Kind.GRAB_JOB_UNIQ)
    assert worker.read() == [Packet(Kind.JOB_ASSIGN_UNIQ, handle + b"\0f\0u\0a\0b")]
    worker.ask(Kind.WORK_DATA, handle, b"piece")
    worker.ask(Kind.WORK_STATUS, handle, b"1", b"2")
    worker.ask(Kind.WORK_COMPLETE, handle, b"x\0y")
    assert client.read() == [
        Packet(Kind.WORK_DATA, handle + b"\0piece"),
        Packet(Kind.WORK_STATUS, handle + b"\x001\x002"),
        Packet(Kind.WORK_COMPLETE, handle + b"\0x\0y"),
    ]
    assert rig.exchange.is_idle


@pytest.mark.parametrize(
    ("grab", "answer"),
    [
        (Kind.GRAB_JOB, Packet(Kind.JOB_ASSIGN, b"H\0f\0a")),
        (Kind.GRAB_JOB_UNIQ, Packet(Kind.JOB_ASSIGN_UNIQ, b"H\0f\0u\0a")),
        (Kind.GRAB_JOB_ALL, Packet(Kind.JOB_ASSIGN_ALL, b"H\0f\0u\0\0a")),
    ],
)
def test_each_way_to_grab_has_its_own_answer(rig: Rig, grab: Kind, answer: Packet) -> None:
    worker = rig.peer()
    worker.offer(b"f")
    worker.ask(grab)
    assert worker.kinds() == [Kind.NO_JOB]
    handle = rig.peer().submit(b"f", b"u", b"a")
    worker.ask(grab)
    [packet] = worker.read()
    assert packet == Packet(answer.kind, answer.data.replace(b"H", handle, 1))


@pytest.mark.parametrize("kind", [Kind.WORK_COMPLETE, Kind.WORK_FAIL, Kind.WORK_STATUS])
def test_only_the_worker_that_holds_a_job_may_speak_for_it(rig: Rig, kind: Kind) -> None:
    client, worker, handle = running_job(rig)
    for stranger in (rig.peer(), client):
        with pytest.raises(Refusal, match="JOB_NOT_FOUND"):
            stranger.ask(kind, handle, b"1", b"2")
    assert client.read() == []
    worker.ask(Kind.WORK_COMPLETE, handle, b"")
    assert client.kinds() == [Kind.WORK_COMPLETE]
    with pytest.raises(Refusal, match="JOB_NOT_FOUND"):
        worker.ask(kind, handle, b"1", b"2")


def test_worker_that_leaves_fails_its_jobs_at_once(rig: Rig) -> None:
    client, worker, handle = running_job(rig)
    rig.exchange.leave(worker)
    assert client.read() == [Packet(Kind.WORK_FAIL, handle)]
    assert rig.exchange.is_idle


def test_callback_of_a_client_that_was_given_up_fails_with_a_warning_that_it_may_live(
    rig: Rig,
) -> None:
    for function, said in ((b"callback_1", [UNCERTAIN_LOSS]), (b"f", [])):
        client, worker, handle = running_job(rig, function)
        rig.exchange.leave(worker, given_up=True)
        warnings = [Packet(Kind.WORK_WARNING, handle + b"\0" + text) for text in said]
        assert client.read() == [*warnings, Packet(Kind.WORK_FAIL, handle)]


def test_queued_job_goes_with_its_last_submitter(rig: Rig) -> None:
    first, second, worker = rig.peer(), rig.peer(), rig.peer()
    assert first.submit(b"f", b"same") == second.submit(b"f", b"same")
    worker.offer(b"f")
    rig.exchange.leave(first)
    assert not rig.exchange.is_idle
    rig.exchange.leave(second)
    assert rig.exchange.is_idle
    assert worker.grab() is None


def test_running_job_outlives_its_submitter_and_frees_its_worker(rig: Rig) -> None:
    client, worker, handle = running_job(rig)
    rig.exchange.leave(client)
    worker.ask(Kind.WORK_COMPLETE, handle, b"")
    assert rig.exchange.is_idle


def test_function_taken_back_leaves_the_running_job(rig: Rig) -> None:
    client, worker, handle = running_job(rig)
    worker.ask(Kind.CANT_DO, b"f")
    worker.ask(Kind.CANT_DO, b"never offered")
    worker.ask(Kind.WORK_COMPLETE, handle, b"")
    assert client.kinds() == [Kind.WORK_COMPLETE]


def test_same_unique_id_is_one_job_for_all_who_ask(rig: Rig) -> None:
    first, second, worker = rig.peer(), rig.peer(), rig.peer()
    handles = {first.submit(b"f", b"u"), first.submit(b"f", b"u"), second.submit(b"f", b"u")}
    assert handles != {second.submit(b"g", b"u")}
    [handle] = handles
    worker.offer(b"f")
    assert worker.grab() == handle
    assert rig.peer().submit(b"f", b"u") == handle  # also while it runs
    worker.ask(Kind.WORK_COMPLETE, handle, b"")
    assert first.kinds() == [Kind.WORK_COMPLETE] * 2  # one for each submission
    assert second.kinds() == [Kind.WORK_COMPLETE]
    assert second.submit(b"f", b"u") != handle


def test_unique_id_dash_stands_for_the_arguments(rig: Rig) -> None:
    client = rig.peer()
    assert client.submit(b"f", b"-", b"a") == client.submit(b"f", b"-", b"a")
    assert client.submit(b"f", b"-", b"a") != client.submit(b"f", b"-", b"b")


def test_another_subjects_unique_id_is_another_job(rig: Rig) -> None:
    ann, bob = rig.certified("job", "ann"), rig.certified("job", "bob")
    assert ann.submit(b"lockenv", b"u") != bob.submit(b"lockenv", b"u")


def test_handle_names_the_verified_subject_and_fits_c_libraries(rig: Rig) -> None:
    ann = rig.certified("job", "a" * 40)
    handle = ann.submit(b"lockenv")
    assert handle.split(b":")[::2] == [b"H", b"job/" + b"a" * 40]
    assert len(handle) <= 63
    assert rig.peer().submit().endswith(b":unverified")
    assert len({ann.submit(b"lockenv") for _ in range(100)}) == 100


def test_status_of_a_queued_job_is_its_place_and_the_queues_length(rig: Rig) -> None:
    clients = [rig.peer() for _ in range(3)]
    first, second, third = (client.submit() for client in clients)
    assert status(clients[2], third) == [b"1", b"0", b"3", b"3"]
    worker = rig.peer()
    worker.offer(b"f")
    assert worker.grab() == first
    assert status(clients[2], third) == [b"1", b"0", b"2", b"2"]
    assert status(clients[1], second) == [b"1", b"0", b"1", b"2"]
    clients[0].ask(Kind.SUBMIT_JOB_HIGH, b"f", b"", b"")
    assert status(clients[1], second) == [b"1", b"0", b"2", b"3"]
    worker.ask(Kind.WORK_STATUS, first, b"3", b"7")
    assert status(clients[0], first) == [b"1", b"1", b"3", b"7"]


def test_job_is_unknown_to_all_but_its_submitter_and_operators() -> None:
    rig = Rig(access=AccessSection(unverified=("job", "host")))
    client, stranger = rig.peer(), rig.peer()
    handle = client.submit(b"lockenv", b"u")
    assert status(client, handle)[0] == b"1"
    assert status(stranger, handle) == [b"0"] * 4
    assert status(stranger, b"no such") == [b"0"] * 4
    assert status(rig.certified("operator", "ann"), handle)[0] == b"1"
    with pytest.raises(Refusal, match="UNKNOWN_JOB"):
        rig.exchange.cancel(stranger, handle)
    rig.exchange.cancel(client, handle)
    assert client.kinds() == [Kind.WORK_FAIL]
    assert rig.exchange.is_idle


def test_only_the_first_of_several_strangers_can_cancel_the_job_they_share() -> None:
    rig = Rig(access=AccessSection(unverified=("job", "host")))
    first, second = rig.peer(), rig.peer()
    handle = first.submit(b"lockenv", b"u")
    assert second.submit(b"lockenv", b"u") == handle
    assert status(second, handle)[0] == b"1"
    with pytest.raises(Refusal, match="NOT_PERMITTED"):
        rig.exchange.cancel(second, handle)
    rig.exchange.cancel(first, handle)
    assert first.kinds() == second.kinds() == [Kind.WORK_FAIL]


def test_operator_cancels_what_strangers_share(rig: Rig) -> None:
    handle = rig.peer().submit(b"f", b"u")
    rig.exchange.cancel(rig.certified("operator", "ann"), handle)
    assert rig.exchange.is_idle


def test_all_connections_of_a_certificate_are_the_same_submitter(rig: Rig) -> None:
    handle = rig.certified("job", "ann").submit(b"lockenv")
    assert status(rig.certified("job", "ann"), handle)[0] == b"1"
    assert status(rig.certified("job", "bob"), handle)[0] == b"0"


def test_status_by_unique_id_counts_who_waits(rig: Rig) -> None:
    first, second = rig.peer(), rig.peer()
    first.submit(b"f", b"u")
    second.submit(b"f", b"u")
    first.ask(Kind.GET_STATUS_UNIQUE, b"u")
    first.ask(Kind.GET_STATUS_UNIQUE, b"other")
    assert first.read() == [
        Packet(Kind.STATUS_RES_UNIQUE, b"\0".join([b"u", b"1", b"0", b"1", b"1", b"2"])),
        Packet(Kind.STATUS_RES_UNIQUE, b"\0".join([b"other", b"0", b"0", b"0", b"0", b"0"])),
    ]


def test_running_job_cannot_be_cancelled(rig: Rig) -> None:
    client, _, handle = running_job(rig)
    with pytest.raises(Refusal, match="JOB_IS_RUNNING"):
        rig.exchange.cancel(client, handle)


def test_jobs_come_by_priority_then_by_age_over_all_functions(rig: Rig) -> None:
    client, worker = rig.peer(), rig.peer()
    order = [
        (Kind.SUBMIT_JOB_LOW, b"f"),
        (Kind.SUBMIT_JOB, b"g"),
        (Kind.SUBMIT_JOB, b"f"),
        (Kind.SUBMIT_JOB_HIGH, b"f"),
        (Kind.SUBMIT_JOB_HIGH_BG, b"g"),
    ]
    for number, (kind, function) in enumerate(order):
        client.ask(kind, function, b"", b"%d" % number)
    worker.offer(b"f", b"g")
    for _ in range(len(order)):
        worker.ask(Kind.GRAB_JOB)
    assert [packet.data[-1:] for packet in worker.read()] == [b"3", b"4", b"1", b"2", b"0"]


def test_background_job_stays_when_its_submitter_leaves_and_nobody_hears_of_it(rig: Rig) -> None:
    client, worker = rig.peer(), rig.peer()
    client.ask(Kind.SUBMIT_JOB_BG, b"f", b"", b"")
    handle = client.read()[0].data
    rig.exchange.leave(client)
    worker.offer(b"f")
    assert worker.grab() == handle
    worker.ask(Kind.WORK_COMPLETE, handle, b"")
    assert client.read() == []
    assert rig.exchange.is_idle


@pytest.mark.parametrize(
    "function", [b"lockenv", b"lockenv:kvm", b"lease_1", b"callback_1", b"host.one"]
)
def test_our_own_functions_need_a_client_that_waits(rig: Rig, function: bytes) -> None:
    with pytest.raises(Refusal, match="NO_BACKGROUND"):
        rig.peer().ask(Kind.SUBMIT_JOB_BG, function, b"", b"")
    assert list(rig.exchange.functions()) == []


def test_draining_broker_takes_no_lock_request_and_relays_all_else(rig: Rig) -> None:
    client, worker, handle = running_job(rig)
    rig.exchange.draining = True
    with pytest.raises(Refusal, match="DRAINING"):
        client.ask(Kind.SUBMIT_JOB, b"lockenv", b"", b"")
    assert client.submit(b"callback_1")
    worker.ask(Kind.WORK_COMPLETE, handle, b"")
    assert client.kinds() == [Kind.WORK_COMPLETE]


def test_exception_is_a_failure_to_who_did_not_ask_for_exceptions(rig: Rig) -> None:
    plain, curious, worker = rig.peer(), rig.peer(), rig.peer()
    curious.ask(Kind.OPTION_REQ, b"exceptions")
    assert curious.read() == [Packet(Kind.OPTION_RES, b"exceptions")]
    handle = plain.submit(b"f", b"u")
    assert curious.submit(b"f", b"u") == handle
    worker.offer(b"f")
    worker.grab()
    worker.ask(Kind.WORK_EXCEPTION, handle, b"why")
    assert plain.read() == [Packet(Kind.WORK_FAIL, handle)]
    assert curious.read() == [Packet(Kind.WORK_EXCEPTION, handle + b"\0why")]


def test_worker_that_overruns_its_own_time_loses_the_job(rig: Rig) -> None:
    client, worker = rig.peer(), rig.peer()
    worker.ask(Kind.CAN_DO_TIMEOUT, b"f", b"10")
    handle = client.submit()
    assert worker.grab() == handle
    rig.clock.pass_time(9.9)
    assert client.read() == []
    rig.clock.pass_time(0.2)
    assert client.read() == [Packet(Kind.WORK_FAIL, handle)]
    with pytest.raises(Refusal, match="JOB_NOT_FOUND"):
        worker.ask(Kind.WORK_COMPLETE, handle, b"")


def test_worker_in_time_is_not_timed_out_later(rig: Rig) -> None:
    client, worker = rig.peer(), rig.peer()
    worker.ask(Kind.CAN_DO_TIMEOUT, b"f", b"10")
    handle = client.submit()
    worker.grab()
    worker.ask(Kind.WORK_COMPLETE, handle, b"")
    again = client.submit()
    assert worker.grab() == again
    client.read()
    rig.clock.pass_time(9.9)
    assert client.read() == []


def test_function_is_forgotten_when_nobody_serves_or_wants_it(rig: Rig) -> None:
    client, worker = rig.peer(), rig.peer()
    worker.offer(b"f")
    handle = client.submit()
    worker.grab()
    worker.ask(Kind.RESET_ABILITIES)
    assert [view.name for view in rig.exchange.functions()] == [b"f"]
    worker.ask(Kind.WORK_COMPLETE, handle, b"")
    assert list(rig.exchange.functions()) == []
    rig.exchange.create_function(b"g")
    assert [view.name for view in rig.exchange.functions()] == [b"g"]
    assert rig.exchange.drop_function(b"g")
    assert list(rig.exchange.functions()) == []


def test_full_queue_refuses_by_priority(rig: Rig) -> None:
    client = rig.peer()
    rig.exchange.limit_queue(b"f", {Priority.NORMAL: 1})
    client.submit()
    with pytest.raises(Refusal, match="JOB_QUEUE_FULL"):
        client.ask(Kind.SUBMIT_JOB, b"f", b"", b"")
    client.ask(Kind.SUBMIT_JOB_HIGH, b"f", b"", b"")
    rig.exchange.limit_queue(b"f", {})
    client.submit()


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
