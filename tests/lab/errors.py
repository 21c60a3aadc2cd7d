"""The lab's one error."""


class LabError(Exception):
    """The lab can't do what was asked; the message tells why, with the log's tail if it helps."""
