"""The one tree of errors. `str(error)` is one line for a person: what is wrong, then what to do.

TestenvError
├── ConfigError                 a configuration or option that cannot be used
├── BrokerError
│   ├── BrokerUnreachable       nobody answered at any address
│   ├── ConnectionLost          a connection that worked has ended
│   ├── RequestRefused          the broker answered with ERROR
│   ├── ProtocolError           bytes that are not Gearman's protocol
│   └── BrokerStartError        our own broker could not listen
├── LockError
│   ├── NoEnvironment           none came free in time
│   ├── OfferRefused            an offer without a usable data file
│   ├── LeaseLost               the right to the environment is gone
│   └── LeaseTimeout            the command outlived its lease
├── CommandError
│   ├── CommandNotFound
│   └── CommandNotExecutable
├── PkiError                    a certificate that can't be made or revoked
└── HostError
    ├── AgentRunning            a second agent for the same state directory
    ├── JournalError            what must be remembered can't be written or read
    ├── HookError               an admin's own command has failed
    ├── ImageError              a base image is not usable, or in use
    ├── EnvironmentDiffers      an environment is not as planned, and can't be made so
    ├── TooFewHugePages         for an environment's machines
    └── DriverError
        ├── ForeignObject       something with our name that is not marked as ours
        ├── DomainError         libvirt
        ├── DiskError           images and overlays
        ├── BridgeError         Open vSwitch
        ├── NetworkError        taps and addresses of the host
        ├── MemoryDriverError   the host's huge pages
        └── AddressServerError  dnsmasq
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from schemas.exits import ExitStatus


class TestenvError(Exception):
    """Root of the tree.

    `what` says what is wrong; `remedy` (may be empty) says what to do next. `exit_status` is what
    a command exits with when nothing handles the error.
    """

    __test__ = False
    """pytest takes any class whose name begins with Test for a test, and warns."""

    exit_status: ClassVar[ExitStatus] = ExitStatus.INTERNAL

    def __init__(self, what: str, *, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}; {remedy}" if remedy else what)


class ConfigError(TestenvError):
    """`source` (a file or an option) has a `key` whose value cannot be used."""

    exit_status = ExitStatus.USAGE

    def __init__(self, source: str | Path, what: str, *, key: str = "", remedy: str = "") -> None:
        self.source = source
        self.key = key
        super().__init__(
            ": ".join(part for part in (str(source), key, what) if part), remedy=remedy
        )


class BrokerError(TestenvError):
    """Something between us and a Gearman broker."""

    exit_status = ExitStatus.NO_BROKER


class BrokerUnreachable(BrokerError):
    """No broker answered; `attempts` pairs every address tried with what happened there."""

    def __init__(self, attempts: Sequence[tuple[str, str]]) -> None:
        self.attempts = tuple(attempts)
        tried = ", ".join(f"{address} ({why})" for address, why in self.attempts)
        super().__init__(
            f"no Gearman broker reachable: tried {tried}",
            remedy="see that testenv-broker runs there, or name yours with -b or TESTENV_BROKER",
        )


class ConnectionLost(BrokerError):
    """The connection to `address` has ended; whatever was in flight on it is void.

    `by_peer`: the broker closed it. Otherwise we have, or our kernel has, after silence for one.
    """

    def __init__(self, address: str, why: str, *, by_peer: bool = False) -> None:
        self.address = address
        self.why = why
        self.by_peer = by_peer
        super().__init__(f"lost the connection to broker {address}: {why}")


class RequestRefused(BrokerError):
    """The broker at `address` answered a request with the protocol's ERROR packet."""

    def __init__(self, address: str, code: str, text: str) -> None:
        self.address = address
        self.code = code
        self.text = text
        super().__init__(f"broker {address} refused: {text or code}")


class ProtocolError(BrokerError):
    """What `address` sent is not Gearman's protocol."""

    def __init__(self, address: str, what: str) -> None:
        self.address = address
        super().__init__(
            f"{address} does not speak Gearman: {what}",
            remedy="is there another service on that port?",
        )


class BrokerStartError(BrokerError):
    """Our own broker could not listen on `address`."""

    exit_status = ExitStatus.FAILED

    def __init__(self, address: str, why: str, *, option: str = "--listen") -> None:
        self.address = address
        super().__init__(
            f"cannot listen on {address}: {why}", remedy=f"choose another address with {option}"
        )


class LockError(TestenvError):
    """Acquiring or keeping a lease failed."""


class NoEnvironment(LockError):
    """No environment was offered within `waited_s` seconds."""

    exit_status = ExitStatus.NO_ENVIRONMENT

    def __init__(self, function: str, waited_s: float, situation: str) -> None:
        self.function = function
        self.waited_s = waited_s
        self.situation = situation
        super().__init__(
            f"no environment for {function} within {waited_s:g} s ({situation})",
            remedy="wait longer with --wait-timeout, or look at testenv status",
        )


class OfferRefused(LockError):
    """An offer that cannot be used, for instance because its data is not a data file."""

    exit_status = ExitStatus.LEASE_LOST

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(
            f"unusable environment offered: {why}",
            remedy="the environment was given back; tell its host's admin",
        )


class LeaseLost(LockError):
    """The lease ended while the command ran; the command has been stopped."""

    exit_status = ExitStatus.LEASE_LOST

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"lease lost: {why}")


class LeaseTimeout(LockError):
    """The command ran for `timeout_s` seconds, all that its lease allowed, and was stopped."""

    exit_status = ExitStatus.LEASE_TIMEOUT

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(
            f"the command was stopped after {timeout_s:g} s", remedy="allow more with --timeout"
        )


class CommandError(TestenvError):
    """The command that was to run inside the lease could not be started."""

    exit_status = ExitStatus.NOT_EXECUTABLE

    def __init__(self, command: str, why: str) -> None:
        self.command = command
        super().__init__(f"{command}: {why}")


class CommandNotFound(CommandError):
    """No such command on PATH."""

    exit_status = ExitStatus.NOT_FOUND

    def __init__(self, command: str) -> None:
        super().__init__(command, "command not found")


class CommandNotExecutable(CommandError):
    """The command exists but may not be executed."""


class PkiError(TestenvError):
    """The PKI's folder or a file is not as a command needs it."""

    exit_status = ExitStatus.FAILED


class HostError(TestenvError):
    """Something on a test-environment host."""

    exit_status = ExitStatus.FAILED


class AgentRunning(HostError):
    """Another agent (`pid`, 0 if unknown) holds `state_dir`."""

    def __init__(self, state_dir: Path, pid: int) -> None:
        self.state_dir = state_dir
        self.pid = pid
        who = f"process {pid}" if pid else "another process"
        super().__init__(
            f"an agent already runs on {state_dir} ({who})",
            remedy="stop it first (to serve another environment, give it its own -n)",
        )


class JournalError(HostError):
    """The journal at `path` cannot be written, read or believed; the cause is chained."""

    def __init__(self, path: Path, why: str, *, remedy: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"journal {path}: {why}", remedy=remedy)


class TooFewHugePages(HostError):
    """The machines of `environment` need more huge pages than are `free`."""

    def __init__(self, environment: str, *, needed: int, free: int, total: int) -> None:
        self.environment = environment
        self.needed = needed
        self.free = free
        self.total = total
        super().__init__(
            f"{environment} needs {needed} huge pages, and {free} of {total} are free",
            remedy=f"end what else uses them, or reserve more: sysctl vm.nr_hugepages="
            f"{total + needed - free}",
        )


class EnvironmentDiffers(HostError):
    """`environment` was made anew twice, and still has these `differences` from its plan."""

    def __init__(self, environment: str, differences: Sequence[str]) -> None:
        self.environment = environment
        self.differences = tuple(differences)
        super().__init__(
            f"{environment} is not as planned, though made anew twice: {'; '.join(differences)}",
            remedy="find out who changes it on this host, or what does not work there",
        )


class ImageError(HostError):
    """A base image, in a file or in the store, can't be had, used or removed."""

    def __init__(self, image: str, why: str, *, remedy: str = "") -> None:
        self.image = image
        self.why = why
        super().__init__(f"image {image}: {why}", remedy=remedy)


class HookError(HostError):
    """The admin's hook `hook` (a key of [hooks]), which runs `program`, has failed."""

    def __init__(self, hook: str, program: str, why: str) -> None:
        self.hook = hook
        self.program = program
        self.why = why
        super().__init__(
            f"hook {hook} ({program}): {why}", remedy="its output is in the agent's log"
        )


class DriverError(HostError):
    """A driver could not bring about what it was asked for; `name` is the object concerned."""

    kind: str = "object"

    def __init__(self, name: str, why: str, *, remedy: str = "") -> None:
        self.name = name
        self.why = why
        super().__init__(f"{self.kind} {name}: {why}", remedy=remedy)


class ForeignObject(DriverError):
    """`name` has a name of ours but is not marked as this host's: it is never touched."""

    def __init__(self, kind: str, name: str, *, owner: str = "", remedy: str = "") -> None:
        self.owner = owner
        self.kind = kind
        marked = f"is marked as {owner}'s" if owner else "is not marked as ours"
        super().__init__(
            name,
            f"this {kind} exists and {marked}; it was not touched",
            remedy=remedy or "rename or remove it",
        )


class DomainError(DriverError):
    """libvirt could not define, start or stop a domain."""

    kind = "domain"


class HypervisorError(DomainError):
    """libvirt does not answer; `name` is its URI."""

    kind = "libvirt at"


class DiskError(DriverError):
    """A base image cannot be used, or an overlay cannot be made."""

    kind = "disk"


class BridgeError(DriverError):
    """Open vSwitch could not make a bridge or port as asked."""

    kind = "bridge"


class NetworkError(DriverError):
    """A tap device or an address of the host could not be made."""

    kind = "interface"


class MemoryDriverError(DriverError):
    """What the host's huge pages are could not be found out."""

    kind = "file"


class AddressServerError(DriverError):
    """The address server (dnsmasq) could not be started or reloaded."""

    kind = "address server"
