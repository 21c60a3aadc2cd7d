"""Who is woken for a job, and what happens when that one does not come."""

import pytest

from broker.protocol import Kind
from tests.unit.exchange_rig import WAKE_S, Desk, Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


def woken(workers: list[Desk]) -> list[int]:
    """Which of them have got a NOOP since the last time."""
    return [place for place, worker in enumerate(workers) if Kind.NOOP in worker.kinds()]


def test_job_wakes_one_worker(rig: Rig) -> None:
    workers = [rig.sleeper(b"f") for _ in range(5)]
    rig.peer().submit()
    assert woken(workers) == [0]
    rig.peer().submit()
    assert woken(workers) == [1]


def test_next_one_is_woken_when_the_first_does_not_come(rig: Rig) -> None:
    workers = [rig.sleeper(b"f") for _ in range(3)]
    handle = rig.peer().submit()
    assert woken(workers) == [0]
    rig.clock.pass_time(WAKE_S / 2)
    assert woken(workers) == []
    rig.clock.pass_time(WAKE_S)
    assert woken(workers) == [1]
    assert workers[1].grab() == handle
    rig.clock.pass_time(10)
    assert woken(workers) == []


def test_next_one_is_woken_at_once_when_the_first_leaves(rig: Rig) -> None:
    workers = [rig.sleeper(b"f") for _ in range(3)]
    rig.peer().submit()
    assert woken(workers) == [0]
    rig.exchange.leave(workers[0])
    assert woken(workers) == [1]
    workers[1].ask(Kind.CANT_DO, b"f")
    assert woken(workers) == [2]


def test_worker_that_goes_to_sleep_while_a_job_waits_is_woken(rig: Rig) -> None:
    handle = rig.peer().submit()
    worker = rig.sleeper(b"g", b"f")
    assert woken([worker]) == [0]
    assert worker.grab() == handle


def test_worker_that_learns_a_function_in_its_sleep_is_woken_for_it(rig: Rig) -> None:
    worker = rig.sleeper(b"g")
    rig.peer().submit(b"f")
    assert woken([worker]) == []
    worker.offer(b"f")
    assert woken([worker]) == [0]


def test_worker_that_asks_unasked_is_not_woken_any_more(rig: Rig) -> None:
    worker = rig.sleeper(b"f")
    assert worker.grab() is None
    rig.peer().submit()
    assert woken([worker]) == []


def test_job_taken_by_another_leaves_the_woken_one_with_nothing(rig: Rig) -> None:
    asleep, awake = rig.sleeper(b"f"), rig.peer()
    awake.offer(b"f")
    handle = rig.peer().submit()
    assert awake.grab() == handle
    assert woken([asleep]) == [0]
    assert asleep.grab() is None
    asleep.ask(Kind.PRE_SLEEP)
    rig.peer().submit()
    assert woken([asleep]) == [0]


def test_woken_worker_that_takes_a_more_urgent_job_leaves_the_first_to_another(rig: Rig) -> None:
    both, other = rig.sleeper(b"f", b"g"), rig.sleeper(b"f")
    rig.peer().submit(b"f")
    assert woken([both, other]) == [0]
    rig.peer().ask(Kind.SUBMIT_JOB_HIGH, b"g", b"", b"")
    both.ask(Kind.GRAB_JOB_UNIQ)
    assert both.read()[-1].data.split(b"\0")[1] == b"g"
    assert woken([both, other]) == [1]


def test_worker_that_never_grabs_keeps_the_job_from_nobody(rig: Rig) -> None:
    """It goes to sleep again at once, each time that it is woken."""
    lazy = rig.sleeper(b"f")
    keen = rig.sleeper(b"f")
    handle = rig.peer().submit()
    assert woken([lazy, keen]) == [0]
    for _ in range(100):
        lazy.ask(Kind.PRE_SLEEP)
    assert woken([lazy, keen]) == []
    rig.clock.pass_time(WAKE_S)
    assert woken([lazy, keen]) == [1]
    assert keen.grab() == handle


def test_hosts_take_turns_however_many_workers_each_has(rig: Rig) -> None:
    big = [rig.sleeper(b"f", address="203.0.113.1") for _ in range(6)]
    small = [rig.sleeper(b"f", address="203.0.113.2") for _ in range(2)]
    for _ in range(4):
        rig.peer("203.0.113.9").submit()
    assert (len(woken(big)), len(woken(small))) == (2, 2)


def test_agents_on_one_address_are_told_apart_by_their_client_ids(rig: Rig) -> None:
    workers = []
    for host in (b"one", b"one", b"one", b"two"):
        worker = rig.peer()
        worker.ask(Kind.SET_CLIENT_ID, host + b"/1")
        worker.offer(b"f")
        worker.ask(Kind.PRE_SLEEP)
        workers.append(worker)
    rig.peer().submit()
    rig.peer().submit()
    assert woken(workers) == [0, 3]


def test_many_jobs_wake_as_many_workers_and_no_timer_is_lost(rig: Rig) -> None:
    client = rig.peer()
    handles = {client.submit() for _ in range(10)}
    workers = [rig.sleeper(b"f") for _ in range(20)]
    called = woken(workers)
    assert len(called) == 10
    rig.clock.pass_time(WAKE_S)
    late = woken(workers)
    assert len(late) == 10
    assert {workers[place].grab() for place in late} == handles


def test_wake_ups_that_overtake_each_other_do_not_pile_up(rig: Rig) -> None:
    """Each worker is on its way to one job when another job calls it: that frees the next one."""
    count = 1_500
    client = rig.peer()
    workers = [rig.sleeper(b"f%d" % place) for place in range(count)]
    for place, worker in enumerate(workers):
        client.submit(b"f%d" % place)
        worker.ask(Kind.PRE_SLEEP)
    assert woken(workers) == [*range(count)]
    for place, worker in enumerate(workers):
        worker.offer(b"f%d" % (place + 1))
    client.submit(b"f%d" % count)
    assert woken(workers) == [*range(count)]


def fake_hosts(rig: Rig, count: int) -> list[Desk]:
    """Workers that call themselves many hosts, and sleep."""
    workers = []
    for number in range(count):
        worker = rig.peer()
        worker.ask(Kind.SET_CLIENT_ID, b"bad%d/1" % number)
        worker.offer(b"f")
        worker.ask(Kind.PRE_SLEEP)
        workers.append(worker)
    return workers


def test_workers_that_do_not_come_are_woken_after_all_others(rig: Rig) -> None:
    bad = fake_hosts(rig, 10)
    rig.peer().submit(b"f")
    for _ in range(12):
        for worker in bad:
            if Kind.NOOP in worker.kinds():
                worker.ask(Kind.PRE_SLEEP)
        rig.clock.pass_time(WAKE_S)
    woken(bad)
    good = rig.sleeper(b"f")
    for _ in range(5):
        rig.peer().submit(b"f")
        assert woken([good]) == [0]
        assert good.grab()
        good.ask(Kind.PRE_SLEEP)


def test_worker_that_does_not_come_is_woken_all_the_same_when_nobody_else_is_there(
    rig: Rig,
) -> None:
    [bad] = fake_hosts(rig, 1)
    rig.peer().submit(b"f")
    for _ in range(3):
        assert woken([bad]) == [0]
        bad.ask(Kind.PRE_SLEEP)
        rig.clock.pass_time(WAKE_S)


def test_late_worker_is_one_of_the_others_again_once_it_has_taken_a_job(rig: Rig) -> None:
    late = rig.sleeper(b"f")
    handle = rig.peer().submit(b"f")
    rig.clock.pass_time(WAKE_S)
    assert late.grab() == handle
    late.ask(Kind.PRE_SLEEP)
    other = rig.sleeper(b"f", address="203.0.113.2")
    rig.peer().submit(b"f")
    assert woken([late, other]) == [0]


def test_grab_that_gets_nothing_does_not_bring_a_late_worker_to_the_front(rig: Rig) -> None:
    late, keen = rig.sleeper(b"f"), rig.peer()
    rig.peer().submit(b"f")
    rig.clock.pass_time(WAKE_S)
    keen.offer(b"f")
    keen.grab()
    assert late.grab() is None
    late.ask(Kind.PRE_SLEEP)
    keen.ask(Kind.PRE_SLEEP)
    rig.peer().submit(b"f")
    assert woken([late, keen]) == [1]
