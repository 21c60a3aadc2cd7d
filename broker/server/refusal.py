"""What the broker answers instead of doing as asked: an ERROR packet's code and text."""


class Refusal(Exception):
    """One request is refused; the connection goes on. `code` has no white space."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__(f"{code}: {text}")


class Breach(Refusal):
    """The connection has broken the protocol, a limit or its rights, and is to be ended."""
