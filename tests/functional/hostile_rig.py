"""Peers without manners, and the proof that nobody else notices them."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from broker.endpoint import Endpoint
from broker.protocol import Kind
from broker.tls import TlsFiles, client_context
from broker.wire import Packet, PacketReader, request, response
from tests.functional.brokers import RunningBroker
from tests.functional.tls_rig import options
from tests.functional.wire_peers import BOUND_S, until

BIN = Path(sys.executable).parent

STRANGER = "127.0.0.66"
"""Where hostile peers come from: another machine, as far as a broker can tell."""

BYSTANDER = "127.0.0.77"
"""Where innocent ones come from."""

SERVED_WITHIN_S = 1.0
"""The project's promise: so fast a client acquires and releases, whatever others do."""

AGENT_LINKS = 3
"""For its environment, for leases and for operators: more are reconnections."""

MEMORY_KIB = 64 * 1024
"""By how much a test's peers may make the broker grow."""


class RawPeer:
    """A connection on which anything may be said. Its calls block, for BOUND_S at most."""

    def __init__(
        self, to: Endpoint, *, tls: TlsFiles | None = None, address: str = STRANGER
    ) -> None:
        plain = socket.create_connection((to.host, to.port), BOUND_S, (address, 0))
        self.socket = (
            client_context(tls).wrap_socket(plain, server_hostname=to.host) if tls else plain
        )
        self._reader = PacketReader()
        self._packets: list[Packet] = []

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def reset(self) -> None:
        """Hang up in the rudest way: with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def say(self, data: bytes) -> None:
        """Send all of it, or as much as a broker that hangs up lets us."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def ask(self, kind: int, *fields: bytes) -> None:
        """Send a request."""
        self.say(request(kind, *fields))

    def hears(self, kind: int) -> bytes:
        """Wait for a packet of that kind, skipping others: its data."""
        while (packet := self.hears_first()).kind != kind:
            pass
        return packet.data

    def hears_first(self) -> Packet:
        """Wait for a packet, whatever it is."""
        while not self._packets:
            data = self.socket.recv(65536)
            assert data, "the broker hung up"
            self._packets += self._reader.feed(data)
        return self._packets.pop(0)

    def hears_line(self) -> str:
        """Wait for a line, of a peer that has been sent no packets."""
        line = b""
        while not line.endswith(b"\n"):
            data = self.socket.recv(4096)
            assert data, "the broker hung up"
            line += data
        return line.decode()

    def is_heard(self) -> bool:
        """Wait until the broker has read all that was said; the connection must live."""
        self.ask(Kind.ECHO_REQ, b"are you there?")
        return self.hears(Kind.ECHO_RES) == b"are you there?"

    def answers_to(self, data: bytes) -> bytes:
        """All that the broker says to it, lines and packets."""
        self.say(data + request(Kind.ECHO_REQ, b"that was all"))
        said = bytearray()
        while not said.endswith(end := response(Kind.ECHO_RES, b"that was all")):
            more = self.socket.recv(65536)
            assert more, "the broker hung up"
            said += more
        return bytes(said.removesuffix(end))

    def hears_the_end(self) -> bytes:
        """Read until the broker hangs up, or resets: all that it still said."""
        said = bytearray()
        try:
            while data := self.socket.recv(65536):
                said += data
        except ConnectionResetError:
            pass  # the end too: what we sent last was not read any more
        return bytes(said)


def refused(to: Endpoint, data: bytes) -> str:
    """Say it; the broker must hang up: the code of the ERROR that it sent last."""
    with stranger(to) as peer:
        peer.say(data)
        *_, last = PacketReader().feed(peer.hears_the_end())
    assert last.kind == Kind.ERROR, last
    return last.data.partition(b"\0")[0].decode()


def stranger(to: Endpoint, tls: TlsFiles | None = None) -> "closing[RawPeer]":
    """A hostile peer that is connected."""
    return closing(RawPeer(to, tls=tls))


class Fleet:
    """A real agent that serves one environment, and clients that want it."""

    def __init__(self, client_at: Endpoint, log: Path) -> None:
        self._at = client_at
        self._log = log

    @property
    def connections(self) -> int:
        """How often the agent has connected so far."""
        return self._log.read_text().count("connected to broker")

    def serves(self) -> float:
        """A client acquires, runs a command and releases: the seconds it took."""
        start = time.monotonic()
        tls = options(self._at.tls) if self._at.tls else []
        place = f"{self._at.host}:{self._at.port}"
        command = [str(BIN / "testenv-client"), "-b", place, *tls, "--", "true"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=False)
        assert done.returncode == 0, done.stderr
        return time.monotonic() - start


@contextmanager
def fleet(
    folder: Path, agent_at: Endpoint, client_at: Endpoint, name: str = "1"
) -> Iterator[Fleet]:
    """The agent is a process of its own, `testenv-host serve`."""
    datafile = folder / "env.json"
    datafile.write_text(json.dumps({"seed-ip": "203.0.113.10", "nodes": []}))
    log = folder / "agent.log"
    tls = options(agent_at.tls) if agent_at.tls else []
    place = f"{agent_at.host}:{agent_at.port}"
    serve = [str(BIN / "testenv-host"), "serve", str(datafile), "-b", place, "-n", name, *tls]
    command = ["setpriv", "--pdeathsig", "KILL", "--", *serve]
    env = {**os.environ, "XDG_STATE_HOME": str(folder)}
    with log.open("wb") as out, subprocess.Popen(command, stderr=out, env=env) as agent:
        try:
            fleet = Fleet(client_at, log)
            until(lambda: fleet.connections == AGENT_LINKS)
            yield fleet
        finally:
            agent.kill()


@contextmanager
def unharmed(broker: RunningBroker, fleet: Fleet) -> Iterator[None]:
    """Whatever happens within: then a client is served within the promised second, somebody
    else's connections and job are as they were, and the broker has not grown."""
    before = broker.memory_kib
    with (
        closing(RawPeer(broker.endpoint, address=BYSTANDER)) as submitter,
        closing(RawPeer(broker.endpoint, address=BYSTANDER)) as worker,
    ):
        submitter.ask(Kind.SUBMIT_JOB, b"lease_bystanders", b"", b"")
        worker.ask(Kind.CAN_DO, b"lease_bystanders")
        worker.ask(Kind.GRAB_JOB)
        handle = worker.hears(Kind.JOB_ASSIGN).split(b"\0")[0]
        yield
        assert fleet.serves() <= SERVED_WITHIN_S
        assert fleet.connections == AGENT_LINKS
        worker.ask(Kind.WORK_COMPLETE, handle, b"done")
        assert submitter.hears(Kind.WORK_COMPLETE) == handle + b"\0done"
    assert broker.memory_kib - before < MEMORY_KIB


def admin_says(to: Endpoint, line: bytes) -> str:
    """The answer to an admin command, of one line or a listing."""
    with socket.create_connection((to.host, to.port), BOUND_S) as asker:
        asker.sendall(line)
        asker.shutdown(socket.SHUT_WR)
        answer = b""
        while data := asker.recv(65536):
            answer += data
    return answer.decode(errors="replace")
