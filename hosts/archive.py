"""What the domains of a host have said on their consoles, for people who are far away."""

from base64 import b64encode
from pathlib import Path
from typing import NamedTuple

from hosts.consoles import KEPT, kept_leases, log_files
from schemas.control import MAX_PIECE, ConsolePiece, ConsoleRequest, Consoles
from schemas.errors import HostError
from schemas.names import node_domain, seed_domain

CONSOLES = "console"
"""Their directory below an agent's state directory."""


class Shelf(NamedTuple):
    """Where one environment's consoles are. `running`: its lease whose are written now."""

    environment: str
    running: str | None

    @property
    def number(self) -> int:
        """The environment's, which is in its domains' names."""
        return int(self.environment.partition("/")[2])


class Archive:
    """The consoles below `directory`: those that are written now, and those that are kept."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def consoles(self, shelf: Shelf, lease: str) -> Consoles:
        """Those of the lease whose id begins with `lease`: the one that runs, else the last.

        Raises HostError, naming those that there are, and OSError.
        """
        leases = [*filter(None, [shelf.running]), *kept_leases(self._directory, shelf.number)]
        found = next((each for each in leases if each.startswith(lease)), None)
        if found is None:
            which = f"lease {lease}" if lease else "any lease"
            raise HostError(
                f"no console of {which} is kept of {shelf.environment}",
                remedy=f"there are those of {', '.join(leases)}" if leases else "none ran yet",
            )
        sizes = {name: _size(path) for name, path in self._logs(shelf, found).items()}
        return Consoles(lease=found, runs=found == shelf.running, sizes=sizes)

    def piece(self, shelf: Shelf, request: ConsoleRequest) -> ConsolePiece:
        """Of one of them. Raises HostError if it is not there any more, and OSError."""
        console = self._logs(shelf, request.lease).get(request.domain)
        if console is None:
            raise HostError(f"no console of {request.domain} is kept of lease {request.lease}")
        return ConsolePiece(data=b64encode(_piece(console, request.offset, MAX_PIECE)))

    def _logs(self, shelf: Shelf, lease: str) -> dict[str, Path]:
        """By domain; none of a lease that is not kept."""
        if lease == shelf.running:
            seed, nodes = seed_domain(shelf.number), node_domain(shelf.number, 0)[:-1]
            found = _logs_in(self._directory)
            return {
                name: path for name, path in found.items() if name == seed or name.startswith(nodes)
            }
        if lease not in kept_leases(self._directory, shelf.number):
            return {}
        return _logs_in(self._directory / KEPT / str(shelf.number) / lease)


def _logs_in(directory: Path) -> dict[str, Path]:
    names = {path.name.partition(".log")[0] for path in directory.glob("*.log*")}
    return {name: directory / f"{name}.log" for name in sorted(names)}


def _size(console: Path) -> int:
    return sum(path.stat().st_size for path in log_files(console))


def _piece(console: Path, offset: int, length: int) -> bytes:
    """Of the log with what was moved aside of it, as if it were one file."""
    said = b""
    for path in log_files(console):
        here = path.stat().st_size
        if offset < here and len(said) < length:
            with path.open("rb") as file:
                file.seek(offset)
                said += file.read(length - len(said))
        offset = max(0, offset - here)
    return said
