"""What an environment's domains have said on their consoles, fetched from its host."""

from collections.abc import Sequence

from broker.endpoint import Endpoint
from schemas.control import ConsolePiece, ConsoleRequest, Consoles, ConsolesRequest
from testenv.fleet import HostView, ask

TIMEOUT_S = 10.0
"""For each question: an agent reads files for it."""


async def find_consoles(
    endpoints: Sequence[Endpoint], view: HostView, environment: str, lease: str
) -> Consoles:
    """Those of `lease` (an id, or its beginning); without one, of the newest.

    Raises BrokerError, HostError.
    """
    request = ConsolesRequest(environment=environment, lease=lease)
    return await ask(endpoints, view, request, Consoles, TIMEOUT_S)


async def fetch_console(
    endpoints: Sequence[Endpoint], view: HostView, environment: str, found: Consoles, domain: str
) -> bytes:
    """All that `domain` had said when its console was `found`, or what is left of it.

    Raises BrokerError, HostError.
    """
    said, size = b"", found.sizes[domain]
    while len(said) < size:
        request = ConsoleRequest(
            environment=environment, lease=found.lease, domain=domain, offset=len(said)
        )
        piece = await ask(endpoints, view, request, ConsolePiece, TIMEOUT_S)
        if not piece.data:
            break
        said += piece.data
    return said[:size]
