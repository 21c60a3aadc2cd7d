"""Answers operators: the agent's side of the function `host.<name>`."""

import logging
from typing import Protocol

from pydantic import ValidationError

from schemas.errors import HostError
from schemas.status import HostReport, Lease, OperatorRequest, Revoked

log = logging.getLogger(__name__)


class Operated(Protocol):
    """What operators look at and act on: the agent."""

    def report(self) -> HostReport:
        """The agent and its environments as they are now."""

    def revoke(self, target: str, reason: str) -> Lease:
        """Have the client of a lease, or of an environment's lease, end. Raises HostError."""


class Control:
    """Answers one request at a time."""

    def __init__(self, agent: Operated) -> None:
        self._agent = agent

    async def answer(self, arguments: bytes) -> bytes:
        """The answer to an OperatorRequest. Raises HostError for one that can't be done."""
        try:
            request = OperatorRequest.model_validate_json(arguments)
        except ValidationError as exc:
            raise HostError(
                f"operator request not understood: {exc.errors()[0]['msg']}",
                remedy="is this agent older than your testenv?",
            ) from exc
        match request.op:
            case "status":
                return self._agent.report().model_dump_json().encode()
            case "revoke":
                lease = self._agent.revoke(request.target, request.reason)
                return Revoked(lease=lease).model_dump_json().encode()
