"""What an environment's domains have said on their consoles, fetched from its host."""

from schemas.control import ConsolePiece, ConsoleRequest, Consoles, ConsolesRequest
from testenv.fleet import Inquiry


async def find_consoles(agent: Inquiry, environment: str, lease: str) -> Consoles:
    """Those of `lease` (an id, or its beginning); without one, of the newest.

    Raises BrokerError, HostError.
    """
    return await agent.ask(ConsolesRequest(environment=environment, lease=lease), Consoles)


async def fetch_console(agent: Inquiry, environment: str, found: Consoles, domain: str) -> bytes:
    """All that `domain` had said when its console was `found`, or what is left of it.

    Raises BrokerError, HostError.
    """
    said, size = b"", found.sizes[domain]
    while len(said) < size:
        request = ConsoleRequest(
            environment=environment, lease=found.lease, domain=domain, offset=len(said)
        )
        piece = await agent.ask(request, ConsolePiece)
        if not piece.data:
            break
        said += piece.data
    return said[:size]
