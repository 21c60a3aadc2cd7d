"""Names on the wire and on hosts. The old ones are toci's and part of its users' contract."""

import os
import re
from collections.abc import Iterable
from itertools import combinations

LOCK_FUNCTION = "lockenv"
"""What clients ask for: one job is one lock request (toci, 2013)."""

HOST_FUNCTION_PREFIX = "host."
"""An agent answers operators on `host.<name>`; the broker's status is the fleet's registry."""

LEASE_FUNCTION_PREFIX = "lease_"
"""An agent serves `lease_<id>` for every live lease: how a client finds it again."""

MAX_FUNCTION = 512
"""gearmand 1.1.20's limit, in bytes; ours too."""

UNVERIFIED = "unverified"
"""The submitter of a job where nobody has verified who asked."""

LABEL_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,31}$"
HOST_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
IMAGE_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
"""Without a dot: seed.qcow2 is a file that somebody has named without its folder."""
IMAGE_LINK = "current"
"""In the folder of a named image: the link to the copy that new disks are made on."""
MAX_LABELS = 6
"""Six labels make 64 functions for one environment; more would flood a broker's tables."""


def random_id() -> str:
    """32 hexadecimal digits that nobody else has. (Importing uuid would cost a client 2 ms.)"""
    return os.urandom(16).hex()


def callback_function(jobnum: str) -> str:
    """The function through which an agent reaches the client that asked as `jobnum`."""
    return f"callback_{jobnum}"


def lease_function(lease_id: str) -> str:
    """The function through which a client reaches the agent of its lease."""
    return f"{LEASE_FUNCTION_PREFIX}{lease_id}"


def host_function(host: str) -> str:
    """The function through which an operator reaches `host`'s agent."""
    return f"{HOST_FUNCTION_PREFIX}{host}"


def host_of_function(function: str) -> str | None:
    """The host name behind `function`, or None if it is not a host's function."""
    if not function.startswith(HOST_FUNCTION_PREFIX):
        return None
    return function.removeprefix(HOST_FUNCTION_PREFIX)


def is_lock_function(function: str) -> bool:
    """Whether jobs of `function` are lock requests."""
    return function == LOCK_FUNCTION or function.startswith(f"{LOCK_FUNCTION}:")


def is_label(text: str) -> bool:
    """Whether `text` may name a label (lower case, digits, `.`, `_`, `-`, 32 characters)."""
    return re.fullmatch(LABEL_PATTERN, text) is not None


def lock_function(labels: Iterable[str]) -> str:
    """The function to ask for an environment that has all `labels`.

    Matching is a look-up by exact name, which every Gearman broker does: labels are sorted and
    joined, so that each set has one name.
    """
    wanted = sorted(set(labels))
    return f"{LOCK_FUNCTION}:{'+'.join(wanted)}" if wanted else LOCK_FUNCTION


def lock_functions(labels: Iterable[str]) -> tuple[str, ...]:
    """Every function that an environment with `labels` serves: one for each subset."""
    own = sorted(set(labels))
    subsets = (subset for size in range(len(own) + 1) for subset in combinations(own, size))
    return tuple(lock_function(subset) for subset in subsets)


def environment_id(host: str, number: int) -> str:
    """`<host>/<number>`, unique in a fleet."""
    return f"{host}/{number}"


_OBJECT = re.compile(r"(?:seed_|baremetalbrbm|brbm|te)([0-9]+)(?![0-9])")


def environment_number(name: str) -> int | None:
    """Of the environment whose domain, bridge, port or file has this `name`; None for any other."""
    found = _OBJECT.match(name)
    return int(found[1]) if found else None


def seed_domain(number: int) -> str:
    """libvirt's name of environment `number`'s seed, as toci had it."""
    return f"seed_{number}"


def node_domain(number: int, index: int) -> str:
    """libvirt's name of node `index` (from 0) of environment `number`, as toci had it."""
    return f"baremetalbrbm{number}_{index}"


def private_bridge(number: int) -> str:
    """The bridge that environment `number`'s seed and nodes share, as toci had it."""
    return f"brbm{number}"


def seed_port(number: int, nic: int) -> str:
    """The tap device behind NIC `nic` (from 0) of a seed; 15 characters at most (IFNAMSIZ)."""
    return f"te{number}s{nic}"


def node_port(number: int, index: int, nic: int) -> str:
    """The tap device behind NIC `nic` (from 0) of a node; 15 characters at most (IFNAMSIZ)."""
    return f"te{number}n{index}e{nic}"
