"""What peers may call functions and themselves, and how the bytes that they made up are shown."""

from broker.wire import from_wire
from schemas.names import MAX_FUNCTION, is_lock_function

IN_PERSON = (b"host.", b"lease_", b"callback_")


def is_function(name: bytes) -> bool:
    """Whether a function may have that name."""
    return 0 < len(name) <= MAX_FUNCTION and is_word(name)


def is_word(name: bytes) -> bool:
    """Whether it stays one word wherever it is printed, and a terminal does nothing but print it.

    White space would shift the columns of `workers`, a line end forge its lines. The control
    characters include U+0080 to U+009F, and those that turn the direction of text.
    """
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return False
    return text.isprintable() and " " not in text


def printable(text: bytes) -> str:
    """Whatever a peer made up, in one line."""
    shown = text.decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else "?" for char in shown)


def is_lock(function: bytes) -> bool:
    """Whether jobs of `function` are lock requests."""
    return is_lock_function(from_wire(function))


def is_in_person(function: bytes) -> bool:
    """Whether one subject offers it at a time: who has such a name is meant in person."""
    return function.startswith(IN_PERSON)
