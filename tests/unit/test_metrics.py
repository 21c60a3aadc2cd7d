"""What the broker counts, when clients make up names."""

from broker.server.metrics import MAX_LABELS, OTHER, Metrics, by_family
from broker.server.queue import FunctionView


def made_up() -> list[FunctionView]:
    """More functions than are counted one by one; somebody waits for each."""
    return [view(b"lockenv:junk%d" % number, workers=0) for number in range(MAX_LABELS + 100)]


def view(name: bytes, workers: int) -> FunctionView:
    return FunctionView(name, (0, 1, 0), 0, workers, 1.0)


def test_functions_that_somebody_offers_are_counted_one_by_one_first() -> None:
    offered = [view(b"lockenv", workers=3), view(b"lockenv:kvm", workers=1)]
    families = {one.name: one for one in by_family(made_up() + offered)}
    assert families["lockenv"].workers == 3
    assert families["lockenv:kvm"].workers == 1
    assert families[OTHER].queued == 102


def test_waits_for_lockenv_are_counted_as_such_however_late_they_come() -> None:
    metrics = Metrics()
    for one in made_up():
        metrics.assigned(one.name, 1.0)
        metrics.ended(one.name, 1.0, "complete")
    metrics.assigned(b"lockenv", 1.0)
    metrics.ended(b"lockenv", 1.0, "fail")
    assert sum(metrics.waits["lockenv"].counts) == 1
    assert metrics.ends["lockenv", "fail"] == 1
    assert sum(metrics.waits[OTHER].counts) == 100
