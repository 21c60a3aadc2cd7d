"""Domains over libvirt (libvirt-python, QEMU driver)."""

from collections.abc import Callable, Iterator
from uuid import UUID

import libvirt

from hosts.drivers.base import DomainDetails, DomainInfo
from hosts.drivers.domain_xml import (
    MARK_NAMESPACE,
    MARK_PREFIX,
    domain_xml,
    marked_host,
    read_definition,
    seal_of,
    sealed_mark,
)
from hosts.drivers.libvirt_connection import LibvirtConnection
from schemas.errors import DomainError, ForeignObject
from schemas.plan import Domain

_UNDEFINE_FLAGS = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM,
    # Some drivers refuse a flag for what they do not have (libvirt's test driver: NVRAM).
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA,
    0,
)
_REFUSED_FLAG = (
    libvirt.VIR_ERR_INVALID_ARG,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_NO_SUPPORT,
)


class LibvirtHypervisor:
    """`host`'s domains at `connection`. Thread-safe; each call is bounded, as `connection` says.

    `domain_type` is kvm or qemu; `datapath_type` is what the NICs are plugged into, see
    `domain_xml`.
    """

    def __init__(
        self, connection: LibvirtConnection, host: str, domain_type: str, datapath_type: str
    ) -> None:
        self._connection = connection
        self._host = host
        self._domain_type = domain_type
        self._datapath_type = datapath_type

    def ensure_domain(self, domain: Domain) -> None:
        """Define `domain` as planned; a running one gets it at its next start.

        One of ours that has its name or its UUID, but not both, is in the way and is removed.
        """
        xml = domain_xml(
            domain,
            host=self._host,
            domain_type=self._domain_type,
            datapath_type=self._datapath_type,
        )
        with self._connection.naming(domain.name, "defining it") as connection:
            for existing in _namesakes(connection, domain):
                self._refuse_foreign(existing)
                if (existing.name(), existing.UUIDString()) != (domain.name, str(domain.uuid)):
                    _remove(existing)
            _make_console_directory(domain)
            defined = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
            if defined.autostart():
                defined.setAutostart(0)
            self._seal(defined)

    def start_domain(self, name: str) -> None:
        with self._connection.naming(name, "starting it") as connection:
            domain = self._find(connection, name)
            if domain is None:
                raise DomainError(name, "there is no such domain", remedy="rebuild its environment")
            _start(domain)

    def power_off_domain(self, name: str) -> None:
        with self._connection.naming(name, "powering it off") as connection:
            domain = self._find(connection, name)
            if domain is not None:
                _power_off(domain)

    def remove_domain(self, name: str) -> None:
        with self._connection.naming(name, "removing it") as connection:
            domain = self._find(connection, name)
            if domain is not None:
                _remove(domain)

    def domains(self) -> tuple[DomainInfo, ...]:
        with self._connection.naming(self._connection.uri, "listing domains") as connection:
            return tuple(self._infos(connection.listAllDomains()))

    def inspect_domain(self, name: str) -> DomainDetails | None:
        with self._connection.naming(name, "looking at it") as connection:
            domain = self._find(connection, name)
            if domain is None:
                return None
            return read_definition(
                _definition(domain), running=_is_active(domain), leftovers=_leftovers(domain)
            )

    def close(self) -> None:
        """Nothing is held between calls."""

    def _seal(self, domain: libvirt.virDomain) -> None:
        """Leave in the mark what `domain` is defined as now, for `inspect_domain`."""
        domain.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            sealed_mark(self._host, seal_of(_definition(domain))),
            MARK_PREFIX,
            MARK_NAMESPACE,
            libvirt.VIR_DOMAIN_AFFECT_CONFIG,
        )

    def _infos(self, domains: list[libvirt.virDomain]) -> Iterator[DomainInfo]:
        for domain in domains:
            try:
                if _owner(domain) == self._host:
                    uuid = UUID(domain.UUIDString())
                    yield DomainInfo(domain.name(), uuid, running=_is_active(domain))
            except libvirt.libvirtError as exc:
                # It went since the list was made.
                if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise

    def _find(self, connection: libvirt.virConnect, name: str) -> libvirt.virDomain | None:
        domain = _look_up(lambda: connection.lookupByName(name))
        if domain is not None:
            self._refuse_foreign(domain)
        return domain

    def _refuse_foreign(self, domain: libvirt.virDomain) -> None:
        owner = _owner(domain)
        if owner != self._host:
            raise ForeignObject("domain", domain.name(), owner=owner)


def _namesakes(connection: libvirt.virConnect, domain: Domain) -> list[libvirt.virDomain]:
    """All domains that have `domain`'s name or its UUID: none, one or two."""
    found = (
        _look_up(lambda: connection.lookupByName(domain.name)),
        _look_up(lambda: connection.lookupByUUIDString(str(domain.uuid))),
    )
    return list({each.UUIDString(): each for each in found if each is not None}.values())


def _look_up(look_up: Callable[[], libvirt.virDomain]) -> libvirt.virDomain | None:
    try:
        return look_up()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _owner(domain: libvirt.virDomain) -> str:
    """The host whose mark `domain` carries, "" if it carries none."""
    try:
        mark = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, MARK_NAMESPACE)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return ""
        raise
    return marked_host(mark)


def _definition(domain: libvirt.virDomain) -> str:
    """What counts from the next start, with what libvirt else keeps to itself."""
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    definition: str = domain.XMLDesc(flags)
    return definition


def _leftovers(domain: libvirt.virDomain) -> tuple[str, ...]:
    kept = {
        "managed save": domain.hasManagedSaveImage(0),
        "snapshots": domain.snapshotNum(0),
        "autostart": domain.autostart(),
    }
    return tuple(name for name, there in kept.items() if there)


def _remove(domain: libvirt.virDomain) -> None:
    _power_off(domain)
    for flags in _UNDEFINE_FLAGS:
        try:
            domain.undefineFlags(flags)
        except libvirt.libvirtError as exc:
            code = exc.get_error_code()
            if code == libvirt.VIR_ERR_NO_DOMAIN:
                return  # a transient domain goes with its power
            if code not in _REFUSED_FLAG or not flags:
                raise
        else:
            return


def _power_off(domain: libvirt.virDomain) -> None:
    try:
        domain.destroy()
    except libvirt.libvirtError:
        if _is_active(domain):
            raise


def _start(domain: libvirt.virDomain) -> None:
    try:
        # FORCE_BOOT: power on means boot, also where somebody left a saved state.
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_FORCE_BOOT)
    except libvirt.libvirtError:
        if not _is_active(domain):
            raise


def _is_active(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        raise


def _make_console_directory(domain: Domain) -> None:
    try:
        domain.console.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise DomainError(domain.name, f"no directory for its console log: {exc}") from exc
