"""Answers operators: the agent's side of the function `host.<name>`."""

from collections.abc import Callable

from pydantic import ValidationError

from schemas.errors import HostError
from schemas.status import HostReport, OperatorRequest


class Control:
    """Answers one request at a time; `report` gives the agent as it is now."""

    def __init__(self, report: Callable[[], HostReport]) -> None:
        self._report = report

    async def answer(self, arguments: bytes) -> bytes:
        """The answer to an OperatorRequest. Raises HostError for one that is not understood."""
        try:
            request = OperatorRequest.model_validate_json(arguments)
        except ValidationError as exc:
            raise HostError(
                f"operator request not understood: {exc.errors()[0]['msg']}",
                remedy="is this agent older than your testenv?",
            ) from exc
        match request.op:
            case "status":
                return self._report().model_dump_json().encode()
