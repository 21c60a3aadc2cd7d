"""Names on the wire and on hosts."""

import pytest

from schemas.names import (
    MAX_LABELS,
    environment_number,
    host_function,
    host_of_function,
    is_label,
    is_lock_function,
    lock_function,
    lock_functions,
    node_domain,
    node_port,
    private_bridge,
    seed_domain,
    seed_port,
)


def test_an_environment_serves_every_combination_of_its_labels() -> None:
    assert lock_functions(["b", "a"]) == ("lockenv", "lockenv:a", "lockenv:b", "lockenv:a+b")


def test_six_labels_make_sixty_four_functions() -> None:
    assert len(set(lock_functions("abcdef"))) == 2**MAX_LABELS


def test_a_request_with_labels_has_one_name_whatever_their_order() -> None:
    assert (
        lock_function(["kvm", "big"]) == lock_function(["big", "kvm", "big"]) == "lockenv:big+kvm"
    )


def test_a_request_without_labels_is_toci_s() -> None:
    assert lock_function([]) == "lockenv"


def test_labels_cannot_hold_the_separators() -> None:
    assert is_label("kvm-2.0")
    assert not any(is_label(text) for text in ("a+b", "a:b", "", "Big", "a b", "a\n", "x" * 33))


def test_lock_functions_are_told_from_others() -> None:
    assert is_lock_function("lockenv")
    assert is_lock_function("lockenv:a")
    assert not is_lock_function("lockenvironment")


def test_a_host_is_found_behind_its_function() -> None:
    assert host_of_function(host_function("te-host-01")) == "te-host-01"
    assert host_of_function("lockenv") is None


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (seed_domain(12), 12),
        (f"{seed_domain(12)}.qcow2", 12),
        (node_domain(3, 1), 3),
        (private_bridge(3), 3),
        (seed_port(3, 0), 3),
        (node_port(3, 1, 0), 3),
        ("br-ctlplane", None),
        ("seed_x", None),
    ],
)
def test_an_object_s_name_tells_its_environment(name: str, number: int | None) -> None:
    assert environment_number(name) == number


def test_domain_and_bridge_names_are_toci_s() -> None:
    assert (seed_domain(4), private_bridge(4)) == ("seed_4", "brbm4")
