"""The stamp: a broker's word for who submitted a job, in the job's handle.

testenv-broker makes handles of the form `H:<16 characters>:<subject>`. The subject is
`<role>/<name>` of the submitter's verified certificate, or `unverified`; no submitter can choose
it, and every worker library passes it on.
"""

import re

from schemas.names import UNVERIFIED

_STAMPED = rb"H:[A-Za-z0-9_-]{16}:((?:job|host|operator)/[A-Za-z0-9][A-Za-z0-9._-]*)"


def submitter(handle: bytes) -> str:
    """The subject in a handle; `unverified` if it has none, as other brokers' have not."""
    stamped = re.fullmatch(_STAMPED, handle)
    return stamped[1].decode() if stamped else UNVERIFIED
