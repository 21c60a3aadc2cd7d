"""End a lease without its client's connection: by way of `lease_<id>`, over TLS too."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from broker.client import first_link, submit
from broker.endpoint import Endpoint
from schemas.errors import BrokerError
from schemas.names import random_id

_GOODBYE_S = 5.0
"""For all of it; then the host finds out by itself, when nothing is heard of the client."""


async def say_goodbye(brokers: Sequence[Endpoint], function: str, words: bytes) -> bool:
    """Submit `words` (an Attach with a result) to `function`; whether the host has heard it."""
    with suppress(BrokerError, TimeoutError):
        async with (
            asyncio.timeout(_GOODBYE_S),
            await first_link(brokers, "client-guard", _GOODBYE_S) as link,
        ):
            await (await submit(link, function, words, unique=random_id())).result()
            return True
    return False
