"""What operators mean: `te-host-01`, `te-host-01/3`, or a glob of either."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from schemas.errors import HostError
from schemas.status import Lease
from testenv.fleet import Fleet, HostView

_NEAREST = 3
_LOOK = "see testenv status"


class Chosen(NamedTuple):
    """What is meant of one host. `environments`: their ids; none if the host did not answer."""

    view: HostView
    environments: tuple[str, ...]
    whole: bool
    """Whether the host itself is meant, with all that it has."""

    @property
    def host(self) -> str:
        return self.view.host

    @property
    def asked_for(self) -> tuple[str, ...]:
        """As a request names them: none means all."""
        return () if self.whole else self.environments


class UnknownTarget(HostError):
    """`target` is no host and no environment; `nearest` are those that it may have meant."""

    def __init__(self, target: str, known: Iterable[str]) -> None:
        self.target = target
        self.nearest = tuple(get_close_matches(target, known, _NEAREST))
        kind = "environment" if "/" in target else "host"
        meant = f"did you mean {' or '.join(self.nearest)}?" if self.nearest else ""
        super().__init__(f"there is no {kind} {target}", remedy=meant or _LOOK)


def choose(fleet: Fleet, targets: Iterable[str]) -> tuple[Chosen, ...]:
    """What `targets` mean, each host once, in the fleet's order.

    A glob without a slash is for hosts; with one, each side of it is matched by itself. An
    environment of a host that does not answer is taken to exist. Raises UnknownTarget for the
    first that means nothing.
    """
    chosen: dict[str, Chosen] = {}
    for target in targets:
        matches = tuple(_matches(fleet, target))
        if not matches:
            raise UnknownTarget(target, _known(fleet, target))
        for match in matches:
            chosen[match.host] = _both(chosen.get(match.host, match), match)
    return tuple(chosen[view.host] for view in fleet.hosts if view.host in chosen)


def everything(fleet: Fleet) -> tuple[Chosen, ...]:
    """All of it."""
    return tuple(Chosen(view, view.environments, whole=True) for view in fleet.hosts)


def find_environment(fleet: Fleet, environment: str) -> HostView:
    """The host that has it, and answers. Raises HostError."""
    [chosen, *others] = choose(fleet, [environment])
    if others or chosen.whole or (chosen.environments and chosen.environments != (environment,)):
        raise HostError(f"{environment} is not one environment", remedy="name it: HOST/NUMBER")
    chosen.view.must_answer()
    return chosen.view


def find_lease(fleet: Fleet, target: str) -> tuple[HostView, Lease]:
    """The lease that `target` means, an environment (`<host>/<number>`) or a lease id.

    Raises HostError if there is none, or if its host does not answer.
    """
    host, slash, _ = target.partition("/")
    hosts = [view for view in fleet.hosts if not slash or view.host == host]
    for view in hosts:
        for env in view.report.environments if view.report else ():
            if env.lease and target in (env.id, env.lease.id):
                return view, env.lease
            if env.id == target:
                raise HostError(f"{target} is {env.state}: it has no lease", remedy=_LOOK)
    silent = "; ".join(f"{view.host}: {view.problem}" for view in hosts if view.report is None)
    if silent:
        raise HostError(f"no lease {target} was found ({silent})", remedy=_LOOK)
    if slash:
        raise UnknownTarget(target, _known(fleet, target))
    raise HostError(f"no host has a lease {target}", remedy=_LOOK)


def _matches(fleet: Fleet, target: str) -> Iterator[Chosen]:
    host, slash, number = target.partition("/")
    for view in fleet.hosts:
        if not fnmatchcase(view.host, host):
            continue
        known = view.environments
        ids = tuple(each for each in known if fnmatchcase(each.partition("/")[2], number))
        if not slash:
            yield Chosen(view, known, whole=True)
        elif ids or view.report is None:
            yield Chosen(view, ids, whole=False)


def _both(one: Chosen, other: Chosen) -> Chosen:
    if one.whole or other.whole:
        return one if one.whole else other
    wanted = {*one.environments, *other.environments}
    ids = tuple(each for each in one.view.environments if each in wanted)
    return Chosen(one.view, ids, whole=False)


def _known(fleet: Fleet, target: str) -> list[str]:
    if "/" in target:
        return [each for view in fleet.hosts for each in view.environments]
    return [view.host for view in fleet.hosts]
