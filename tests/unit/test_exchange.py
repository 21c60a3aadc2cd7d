"""The broker's exchange: whose a job is, who hears of it, and what is forgotten."""

import pytest

from broker.protocol import UNCERTAIN_LOSS, Kind
from broker.server.job import Priority
from broker.server.refusal import Refusal
from broker.wire import Packet
from schemas.broker import AccessSection
from tests.unit.exchange_rig import Rig, running_job, status


@pytest.fixture
def rig() -> Rig:
    return Rig()


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
