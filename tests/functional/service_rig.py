"""testenv-broker as a real process, its configuration file and its log."""

import asyncio
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from broker import admin
from broker.endpoint import Endpoint, parse_endpoint
from broker.tls import TlsFiles
from broker.wire import Packet, PacketReader
from schemas.errors import TestenvError
from tests.functional.tls_rig import Fleet
from tests.functional.wire_peers import BOUND_S

PROGRAM = str(Path(sys.executable).with_name("testenv-broker"))
DOCUMENTED = Path(__file__).parents[2] / "docs" / "broker.toml"


class Service:
    """The running command, its configuration file and its log."""

    def __init__(
        self, process: subprocess.Popen[bytes], endpoint: Endpoint, config: Path, log: Path
    ) -> None:
        self.process = process
        self.endpoint = endpoint
        self.config = config
        self._log = log

    @property
    def log(self) -> str:
        """All of stderr so far."""
        return self._log.read_text()

    async def logs(self, text: str) -> str:
        """Wait for a line with `text`, and return it."""
        async with asyncio.timeout(BOUND_S):
            while True:
                for line in self.log.splitlines():
                    if text in line:
                        return line
                await asyncio.sleep(0.01)

    async def reload(self, document: str) -> None:
        """Write its configuration anew, and have it read."""
        self.config.write_text(document)
        self.process.send_signal(signal.SIGHUP)
        await self.logs("reloaded")

    async def ended(self) -> int:
        """Its exit status."""
        return await asyncio.to_thread(self.process.wait, BOUND_S)

    def connect(self) -> socket.socket:
        """A plain connection."""
        return socket.create_connection((self.endpoint.host, self.endpoint.port), timeout=BOUND_S)


@contextmanager
def service(
    folder: Path, document: str = "", *options: str, under: Sequence[str] = ()
) -> Iterator[Service]:
    """testenv-broker with a configuration, listening; `under` is a command that starts it."""
    config, log = folder / "broker.toml", folder / "log"
    config.write_text(document)
    command = [*under, PROGRAM, "run", "--config", str(config), "--listen", "127.0.0.1:0", *options]
    with log.open("wb") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            while not (ready := re.search(r"^listening on (\S+)\n", log.read_text(), re.MULTILINE)):
                assert process.poll() is None, log.read_text()
                process_wait(process)
            yield Service(process, parse_endpoint(ready[1], "ready line"), config, log)
        finally:
            process.kill()


def process_wait(process: subprocess.Popen[bytes]) -> None:
    """A moment, or less if it ends."""
    try:
        process.wait(0.02)
    except subprocess.TimeoutExpired:
        return


def received(peer: socket.socket) -> bytes:
    """All that comes until the end."""
    return b"".join(iter(lambda: peer.recv(65536), b""))


def packets(data: bytes) -> list[Packet]:
    return list(PacketReader().feed(data))


async def answers(endpoint: Endpoint) -> bool:
    return (await admin.version(endpoint)) is not None


async def serves_again(broker: Service) -> bool:
    try:
        return await answers(broker.endpoint)
    except TestenvError:
        return False


def tls_section(fleet: Fleet) -> str:
    cert, key, ca = fleet.broker
    crl = fleet.pki / "crl.pem"
    return f"[tls]\ncert = '{cert}'\nkey = '{key}'\nca = '{ca}'\ncrl = '{crl}'\n"


def tls_peer(broker: Service, files: TlsFiles) -> ssl.SSLSocket:
    """A connection with a certificate; its first read tells whether that is accepted."""
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    return context.wrap_socket(broker.connect(), server_hostname="127.0.0.1")
