"""The terms of a lease: the times that both sides keep to (DESIGN.md section 4, docs/leases.md)."""

from typing import NamedTuple


class Terms(NamedTuple):
    """Seconds; the agent's settings, of which the offer tells the client what concerns it.

    `beat_s`: between two beats. `ttl_s`: how long after sending its last echoed beat the client's
    command may live. `margin_s`: how much later than that the agent acts. `reattach_s`: how long a
    client whose connection closed has to come back. `untaken_s`: how long an offer, and a client
    that took it, wait for each other.
    """

    beat_s: float = 5.0
    ttl_s: float = 120.0
    margin_s: float = 30.0
    reattach_s: float = 10.0
    untaken_s: float = 5.0
