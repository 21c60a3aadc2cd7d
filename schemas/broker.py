"""The broker's configuration: one TOML file, parsed once, unknown keys refused."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]

RoleName = Literal["job", "host", "operator"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsSection(_Section):
    """Files in PEM. Relative paths start at the configuration file's folder."""

    cert: Path
    key: Path
    ca: Path
    """Who signs the certificates of clients."""
    crl: Path | None = None
    """What that authority has revoked."""


class AccessSection(_Section):
    """Which certificate subjects have which role; the first role that fits, in this order.

    A pattern is `ATTRIBUTE=GLOB`, several joined by commas: `OU=host,CN=rack1-*` (attributes:
    CN, O, OU, C, L, ST). It fits a subject that has all of them. The name in
    `host.<its own name>` is the subject's CN.
    """

    operator: tuple[str, ...] = ("OU=operator",)
    host: tuple[str, ...] = ("OU=host",)
    job: tuple[str, ...] = ("OU=job",)
    unverified: tuple[RoleName, ...] | Literal["any"] = "any"
    """What connections without TLS may do: `"any"` function, or what these roles may."""


class LimitsSection(_Section):
    """What one connection may cost. Breaking one ends that connection, with an ERROR."""

    packet_bytes: Count = 1024 * 1024
    connections: Count = 16_384
    connections_per_subject: Count = 4_096
    """Without TLS the subject is the peer's address."""
    queued_per_subject: Count = 4_096
    job_bytes_per_subject: Count = 64 * 1024 * 1024
    """Of jobs that wait or run, with 1 KiB for each beside what its submitter sent. This limit and
    the one before refuse a submission; the connection goes on."""
    functions_per_connection: Count = 256
    """An environment with six labels has 64."""
    handshakes: Count = 1_024
    """TLS handshakes at once. Whoever has most of them makes room for others."""
    unsent_bytes: Count = 8 * 1024 * 1024
    """Output that waits for a peer which does not read; then it is cut off."""
    handshake_s: Seconds = 10.0
    keepalive_idle_s: Annotated[int, Field(ge=1, le=32_767)] = 30
    """Silence after which TCP probes whether the peer's machine still exists."""
    keepalive_interval_s: Annotated[int, Field(ge=1, le=32_767)] = 10
    keepalive_count: Annotated[int, Field(ge=1, le=127)] = 3
    """The most is Linux's, of all three."""


class HttpSection(_Section):
    listen: str
    """HOST:PORT of /healthz and /metrics; no TLS and no access control, so loopback is best."""


class BrokerConfig(_Section):
    """What `testenv-broker run --config` reads. Every key has a default."""

    listen: str = "127.0.0.1:4730"
    insecure: bool = False
    """Listen beyond loopback without TLS."""
    drain_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    """How long SIGTERM waits for jobs that run."""
    wake_timeout_s: Seconds = 0.25
    """A woken worker that has not grabbed by then is passed over."""
    tls: TlsSection | None = None
    access: AccessSection = AccessSection()
    limits: LimitsSection = LimitsSection()
    http: HttpSection | None = None
