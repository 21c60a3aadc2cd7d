"""What a host's configuration has no more, though a lease runs in it, or a person keeps it."""

import logging
from pathlib import Path

from hosts.chronicle import read_journal
from hosts.plan import plan_environment
from schemas.config import HostConfig
from schemas.names import environment_id
from schemas.plan import Environment, HostPlan
from schemas.status import EnvState

log = logging.getLogger(__name__)

NOT_PLANNED = "not in the configuration any more"

_IN_USE = frozenset({EnvState.LEASED, EnvState.HELD})


def surplus(config: HostConfig, plan: HostPlan, journal: Path) -> tuple[Environment, ...]:
    """The environments that `plan` lacks, and the journal says are in use, as they would be
    planned. Raises JournalError.

    Nodes that the configuration has no more either are not among theirs: they are leaks, later.
    """
    found: list[Environment] = []
    for record in read_journal(journal, limit=1).environments:
        if record.state not in _IN_USE or plan.environment(record.id):
            continue
        number = record.id.rpartition("/")[2]
        if not number.isdigit() or record.id != environment_id(plan.host, int(number)):
            log.warning("%s is %s, and none of %s", record.id, record.state, plan.host)
            continue
        found.append(plan_environment(config, int(number)))
    return tuple(found)
