"""Random requests of several peers, some of whom come and go: the broker's books stay right."""

from collections import Counter
from itertools import chain
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import Kind
from broker.server.exchange import ENDS
from broker.server.job import Job
from broker.server.refusal import Breach, Refusal
from broker.server.text import AdminCommands
from broker.wire import Packet
from schemas.broker import LimitsSection
from tests.fuzz.budget import ROUND, fuzz
from tests.unit.exchange_rig import Desk, Rig

PEERS = 5
LIMITS = LimitsSection(
    queued_per_subject=6, job_bytes_per_subject=10_000, functions_per_connection=4
)

SUBJECTS = ["", "", "", "host", "job", "operator"]
FUNCTIONS = [
    b"f", b"f", b"f", b"f", b"g", b"lockenv", b"lockenv:a", b"host.te-1", b"lease_1", b"callback_1",
    b"", b"\n",
]  # fmt: skip
UNIQUES = [b"", b"", b"u", b"-", b"x" * 65]
SERIOUS = [
    Kind.CAN_DO, Kind.GRAB_JOB, Kind.GRAB_JOB_UNIQ, Kind.GRAB_JOB_ALL, Kind.PRE_SLEEP,
    Kind.SUBMIT_JOB, Kind.SUBMIT_JOB_HIGH, Kind.SUBMIT_JOB_LOW, Kind.SUBMIT_JOB_LOW_BG,
    Kind.WORK_DATA, *ENDS,
]  # fmt: skip
KINDS = SERIOUS * 5 + list(range(50))
SUBMISSIONS = [kind for kind in Kind if kind.name.startswith("SUBMIT")]
BACKGROUND = [kind for kind in SUBMISSIONS if kind.name.endswith("BG")]
COMMANDS = [
    b"status", b"workers", b"show jobs", b"show unique jobs", b"prioritystatus", b"version",
    b"maxqueue", b"maxqueue f 1", b"maxqueue f", b"maxqueue f 1 0 2", b"maxqueue f x", b"getpid",
    b"create function f", b"create function", b"drop function f", b"drop function", b"cancel job",
    b"shutdown", b"shutdown graceful", b"verbose", b"", b"\0", b"cancel", b"show", b"\xff\xfe",
]  # fmt: skip


class Crowd:
    """Peers of an exchange, and what must always be true of it."""

    def __init__(self, chance: Random) -> None:
        self._rig = Rig(LIMITS)
        self._exchange = self._rig.exchange
        self._admin = AdminCommands(self._exchange, version="1", shutdown=lambda _: None)
        self._desks: list[Desk] = []
        self._handles = [b"H:nobody:unverified"]
        self._waiting: Counter[tuple[int, bytes]] = Counter()
        """How many submissions of whom have a job that has not ended yet, by its handle."""
        self._in_background = False
        """Whether the last request submitted a job whose end nobody wants to know."""
        self._chance = chance

    def act(self) -> None:
        """Somebody does something."""
        rare = [self._come, self._go, self._command, self._pass_time]
        self._chance.choice([*rare, *[self._ask] * 16])()
        self._read()
        self._check()

    def _come(self) -> None:
        if len(self._desks) < PEERS:
            who = self._chance.choice(SUBJECTS)
            rig = self._rig
            self._desks.append(rig.certified(who, "te-1") if who else rig.peer())

    def _go(self) -> None:
        if self._desks:
            self._leave(self._chance.choice(self._desks))

    def _leave(self, desk: Desk) -> None:
        self._read()
        self._exchange.leave(desk)
        self._desks.remove(desk)
        for number, handle in list(self._waiting):
            if number == desk.number:
                del self._waiting[number, handle]

    def _command(self) -> None:
        if self._desks:
            command = self._chance.choice(COMMANDS)
            if command == b"cancel job":
                command += b" " + self._chance.choice(self._handles)
            answer = self._admin.answer(self._chance.choice(self._desks), command)
            assert answer.endswith(b"\n")

    def _pass_time(self) -> None:
        self._rig.clock.pass_time(self._chance.choice([0.1, 0.25, 1.0, 10.0]))

    def _ask(self) -> None:
        if not self._desks:
            return self._come()
        desk = self._chance.choice(self._desks)
        packet = self._packet(desk)
        self._in_background = packet.kind in BACKGROUND
        try:
            desk._requests.handle(desk, packet)
        except Breach:
            self._leave(desk)
        except Refusal:
            pass  # the connection goes on, that is the point

    def _packet(self, desk: Desk) -> Packet:
        kind = self._chance.choice(KINDS)
        function = self._chance.choice(FUNCTIONS)
        held = self._chance.choice([*desk.working] * 4 + self._handles[-2:])
        unique = self._chance.choice(UNIQUES)
        match kind:
            case Kind.CAN_DO | Kind.CANT_DO:
                data = function
            case Kind.CAN_DO_TIMEOUT:
                data = function + b"\0" + self._chance.choice([b"1", b"0", b"x", b"99"])
            case Kind.GET_STATUS | Kind.WORK_FAIL:
                data = held
            case Kind.WORK_STATUS:
                data = held + b"\0001\0002"
            case Kind.WORK_DATA | Kind.WORK_WARNING | Kind.WORK_COMPLETE | Kind.WORK_EXCEPTION:
                data = held + b"\0data"
            case kind if kind in SUBMISSIONS:
                data = b"\0".join((function, unique, b"arguments"))
            case _:
                data = self._chance.randbytes(self._chance.randrange(10))
        return Packet(kind, data)

    def _read(self) -> None:
        """Everybody reads; whoever waits for a job is told of one end, and nobody else of any."""
        for desk in self._desks:
            for packet in desk.read():
                handle = packet.data.split(b"\0")[0]
                if packet.kind == Kind.JOB_CREATED:
                    self._handles.append(handle)
                    self._waiting[desk.number, handle] += not self._in_background
                elif packet.kind in ENDS:
                    self._waiting[desk.number, handle] -= 1
                    assert self._waiting[desk.number, handle] >= 0

    def _check(self) -> None:
        exchange = self._exchange
        jobs = list(exchange.jobs())
        held = list(chain.from_iterable(peer.working for peer in exchange.peers.values()))
        assert len(held) == len(set(held))
        assert set(held) == {job.handle for job in jobs if job.worker}
        assert len({job.handle for job in jobs}) == len(jobs)
        expected = Counter(
            {
                (peer.number, job.handle): times
                for job in jobs
                for peer, times in job.submitters.items()
            }
        )
        assert +self._waiting == expected
        self._check_quota(jobs)
        for view in exchange.functions():
            of_it = [job for job in jobs if job.function == view.name]
            assert view.queued == sum(job.worker is None for job in of_it)
            assert view.running == sum(job.worker is not None for job in of_it)
            assert view.workers == sum(
                view.name in {queue.name for queue in peer.functions}
                for peer in exchange.peers.values()
            )
            assert view.oldest_queued_s >= 0
        assert {job.function for job in jobs} <= {view.name for view in exchange.functions()}

    def _check_quota(self, jobs: list[Job]) -> None:
        """Each group is charged for its jobs that wait, what joined one, and all bytes."""
        waiting, size = Counter[str](), Counter[str]()
        for job in jobs:
            waiting[job.group] += job.worker is None
            size[job.group] += job.size
            for peer in job.submitters:
                waiting[peer.identity.group] += peer.submitted[job]
        quota = self._exchange._quota
        assert (quota._waiting, quota._bytes) == (+waiting, size)
        assert max(waiting.values(), default=0) <= LIMITS.queued_per_subject
        assert max(size.values(), default=0) <= LIMITS.job_bytes_per_subject

    def everybody_goes(self) -> None:
        """Then nothing is left but what nobody waits for, and what operators wanted to keep."""
        for desk in list(self._desks):
            self._leave(desk)
        self._check()
        assert all(job.background for job in self._exchange.jobs())
        jobs = {job.function for job in self._exchange.jobs()}
        assert {view.name for view in self._exchange.functions()} - jobs <= {b"f"}


def test_books_stay_right_whatever_is_asked() -> None:
    @ROUND
    @given(st.randoms(use_true_random=True), st.integers(1, 200))
    def target(chance: Random, length: int) -> None:
        crowd = Crowd(chance)
        for _ in range(length):
            crowd.act()
        crowd.everybody_goes()

    fuzz("Requests and AdminCommands", target, share=0.6)
