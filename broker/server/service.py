"""The process: listening, signals, drain, reload, and an orderly end."""

import asyncio
import logging
import resource
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from importlib.metadata import version
from ipaddress import ip_address

from broker.endpoint import Endpoint, parse_endpoint
from broker.server.access import Identity, UnknownSubject
from broker.server.exchange import Exchange
from broker.server.listener import SPARE, Listener, listening_socket, set_options
from broker.server.metrics import Metrics
from broker.server.notify import Notifier, watchdog_s
from broker.server.refusal import Breach
from broker.server.switchboard import Switchboard
from broker.server.text import AdminCommands
from broker.server.tls import Trust, read_trust
from broker.server.transport import ServerConnection
from schemas.broker import BrokerConfig, LimitsSection
from schemas.errors import ConfigError, TestenvError

log = logging.getLogger(__name__)

OWN_DESCRIPTORS = 32
"""For the log, the event loop, configuration files and monitoring."""

HTTP_CONNECTIONS = 32
"""To the monitoring port; it is for one or two scrapers."""

HANDSHAKES_SHARE = 32
"""So many descriptors there have to be for each TLS handshake at once."""

DESCRIPTORS_PER_HANDSHAKE = 4
"""Its socket, and one to say why it fails; for a moment also those of one that made room."""

IDLE_CHECK_S = 0.05
"""While draining."""

CLOSE_WITHIN_S = 1.0
"""For connections to take what they were sent last, when we end."""


class Service:
    """One broker. `load` reads the configuration, again at each SIGHUP; `announce` is told where
    it listens once it does. `notifier` is the service manager.

    SIGTERM drains, SIGINT or a second SIGTERM ends at once, SIGHUP reloads.
    """

    def __init__(
        self,
        load: Callable[[], BrokerConfig],
        announce: Callable[[Endpoint], None],
        notifier: Notifier,
    ) -> None:
        self._load = load
        self._announce = announce
        self._notifier = notifier
        self._config = load()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until a signal or an operator ends it. Raises ConfigError, BrokerStartError."""
        config = self._config
        self._loop = asyncio.get_running_loop()
        trust = read_trust(config.tls) if config.tls else None
        async with AsyncExitStack() as stack:
            self._set_up(config, trust)
            stack.push_async_callback(self._listener.close)
            check_exposure(self._bound, config)
            if config.http:
                await stack.enter_async_context(self._http(config.http.listen))
            self._watch_signals(stack)
            self._listener.start()
            self._announce(self._bound)
            self._notifier.ready(self._status)
            self._keep_watchdog_quiet()
            await self._stop.wait()
            self._notifier.stopping("stopping")
            await self._close_connections()

    def _set_up(self, config: BrokerConfig, trust: Trust | None) -> None:
        self._metrics = Metrics()
        self._exchange = Exchange(
            self._loop,
            fitting_limits(config),
            wake_timeout_s=config.wake_timeout_s,
            observer=self._metrics,
        )
        commands = AdminCommands(
            self._exchange, version=version("testenv"), shutdown=self._shut_down
        )
        self._board = Switchboard(
            self._loop, self._exchange, commands, self._metrics, config.access, trust
        )
        self._socket = listening_socket(
            parse_endpoint(config.listen, "listen", any_port=True), "--listen"
        )
        self._listener = Listener(self._socket, self._board)
        set_options(self._socket, config.limits)
        self._bound = Endpoint(*self._socket.getsockname()[:2])

    @property
    def _status(self) -> str:
        return f"listening on {self._bound}"

    def _http(self, listen: str) -> AbstractAsyncContextManager[None]:
        # Imported here: a broker without monitoring does without the broker extra.
        from broker.server.http import application, serving

        sock = listening_socket(parse_endpoint(listen, "http.listen", any_port=True), "--http")
        log.info("monitoring at http://%s", Endpoint(*sock.getsockname()[:2]))
        return serving(application(self._exchange, self._metrics), sock, most=HTTP_CONNECTIONS)

    def _watch_signals(self, stack: AsyncExitStack) -> None:
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: partial(self._shut_down, True),
            signal.SIGINT: partial(self._shut_down, False),
            signal.SIGHUP: self._reload,
        }
        for number, handler in handlers.items():
            self._loop.add_signal_handler(number, handler)
            stack.callback(self._loop.remove_signal_handler, number)

    def _keep_watchdog_quiet(self) -> None:
        if period_s := watchdog_s():
            self._notifier.alive()
            self._loop.call_later(period_s / 2, self._keep_watchdog_quiet)

    # The end

    def _shut_down(self, graceful: bool) -> None:
        """Drain, or end at once; the second time it is at once."""
        if self._exchange.draining or not graceful:
            self._stop.set()
            return
        self._exchange.draining = True
        log.warning(
            "draining: no new lock requests; ends when no job is left, or in %g s",
            self._config.drain_timeout_s,
        )
        self._notifier.stopping("draining")
        self._loop.call_later(self._config.drain_timeout_s, self._stop.set)
        self._stop_when_idle()

    def _stop_when_idle(self) -> None:
        if self._exchange.is_idle:
            self._stop.set()
        else:
            self._loop.call_later(IDLE_CHECK_S, self._stop_when_idle)

    async def _close_connections(self) -> None:
        for connection in self._board.connections:
            connection.close()
        deadline = self._loop.time() + CLOSE_WITHIN_S
        while len(self._board) and self._loop.time() < deadline:  # noqa: ASYNC110 - bounded
            await asyncio.sleep(0.01)

    # Reload

    def _reload(self) -> None:
        """Take over what can be changed while we run; all of it, or with a bad file nothing."""
        self._notifier.reloading()
        try:
            config = self._load()
            if bool(config.tls) != bool(self._config.tls):
                config = config.model_copy(update={"tls": self._config.tls})
                log.warning("to switch TLS on or off takes a restart")
            trust = read_trust(config.tls) if config.tls else None
            set_options(self._socket, config.limits)
        except (TestenvError, ModuleNotFoundError) as error:
            log.warning("not reloaded, the old settings stay: %s", error)
        except Exception:
            # Such as a RecursionError, of a file that nests too deeply.
            log.exception("not reloaded, the old settings stay")
        else:
            self._take_over(config, trust)
        finally:
            self._notifier.ready(self._status)

    def _take_over(self, config: BrokerConfig, trust: Trust | None) -> None:
        fixed = ("listen", "http", "wake_timeout_s")
        changed = [key for key in fixed if getattr(config, key) != getattr(self._config, key)]
        if changed:
            log.warning("to change %s takes a restart", ", ".join(changed))
        self._config = config
        self._exchange.limits = fitting_limits(config)
        self._board.access = config.access
        self._board.trust = trust
        ended = sum(self._review(connection) for connection in self._board.connections)
        log.warning("reloaded; %d connections lost their rights", ended)

    def _review(self, connection: ServerConnection) -> bool:
        """End a connection that would not get in now, or not with the same rights."""
        identity = connection.identity
        if identity is None:
            return False
        try:
            if same_rights(connection.current_identity(), identity):
                return False
            why = "what this subject may do has changed"
        except UnknownSubject as exc:
            why = str(exc)
        connection.expel(Breach("UNKNOWN_CERTIFICATE", why))
        return True


def check_exposure(bound: Endpoint, config: BrokerConfig) -> None:
    """Raises ConfigError if strangers could reach us without TLS, and nobody said that they may."""
    if not (config.tls or config.insecure or ip_address(bound.host).is_loopback):
        raise ConfigError(
            str(bound),
            "without TLS a broker listens on loopback only",
            remedy="give --tls-cert, --tls-key and --tls-ca, or --insecure on a network where"
            " everybody may do everything",
        )


def fitting_limits(config: BrokerConfig) -> LimitsSection:
    """Take all the descriptors that we may have; the limits, with no more connections and
    handshakes than that is enough for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limits = config.limits
    if hard == resource.RLIM_INFINITY:
        return limits
    handshakes = min(limits.handshakes, max(1, hard // HANDSHAKES_SHARE))
    others = OWN_DESCRIPTORS + SPARE
    if config.tls:
        others += DESCRIPTORS_PER_HANDSHAKE * handshakes
    if config.http:
        others += HTTP_CONNECTIONS
    enough = max(1, hard - others)
    if limits.connections > enough:
        log.warning("at most %d connections: the limit of open files is %d", enough, hard)
    fitting = {"connections": min(limits.connections, enough), "handshakes": handshakes}
    return limits.model_copy(update=fitting)


def same_rights(one: Identity, other: Identity) -> bool:
    """Whether they are the same subject, and may do the same."""

    def rights(identity: Identity) -> tuple[object, ...]:
        acl = identity.acl
        return identity.subject, identity.operator, acl.register, acl.invoke

    return rights(one) == rights(other)
