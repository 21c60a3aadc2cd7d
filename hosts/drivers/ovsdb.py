"""Open vSwitch's database, each call bounded in time, over python-ovs' IDL (RFC 7047).

The IDL keeps a replica of the database. It is not thread-safe, so that one thread owns it, and its
own `commit_block()` waits for ever for a stopped server, so that all waiting is done here.
"""

import os
import select
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import ovs.db.error
import ovs.jsonrpc
import ovs.poller
import ovs.stream
from ovs.db.idl import Idl, SchemaHelper, Transaction

DATABASE = "Open_vSwitch"
CALL_TIMEOUT_S = 15.0
"""For one call, counted from when it is made: its turn, connecting, committing, applying.

After a restart of ovsdb-server it takes ovs-vswitchd up to 8 s to come back to it."""

_COLUMNS = {
    "Open_vSwitch": ["bridges", "cur_cfg", "next_cfg", "ovs_version"],
    "Bridge": ["name", "ports", "datapath_type", "external_ids", "other_config"],
    "Port": ["name", "interfaces", "tag", "trunks", "vlan_mode", "external_ids"],
    "Interface": ["name", "type", "error"],
}
_RETRY_S = 0.1

Row = Any
"""A row of python-ovs: its attributes are the columns, which the server's schema names."""

_Result = TypeVar("_Result")

# select() cannot wait for descriptors above 1023, which an agent with many peers has.
ovs.poller.SelectPoll = select.poll


class OvsdbError(Exception):
    """The database cannot be reached, or did not do in time what was asked."""


class _Again(Exception):
    """The call starts again on fresh data; says why, should time run out."""


class _LostLink(_Again):
    """The connection is gone or unusable, too."""


class _Refused(_Again):
    """The server refused a change; once, that may be a lost race: two insert the same name."""


@dataclass(frozen=True)
class Database:
    """The replica, as the server had it when the call began."""

    idl: Idl

    @property
    def root(self) -> Row:
        """The only row of the table Open_vSwitch."""
        return _root(self.idl)

    def find(self, table: str, name: str) -> Row | None:
        """The row of `table` that has `name`; names are unique."""
        return next((row for row in self.rows(table) if row.name == name), None)

    def rows(self, table: str) -> list[Row]:
        return list(self.idl.tables[table].rows.values())


@dataclass(frozen=True)
class Draft(Database):
    """The same within a transaction: rows may be inserted, and columns assigned to."""

    transaction: Transaction

    def insert(self, table: str, **columns: object) -> Row:
        row = self.transaction.insert(self.idl.tables[table])
        for column, value in columns.items():
            setattr(row, column, value)
        return row


class Ovsdb:
    """The database at `remote`, such as `unix:/run/openvswitch/db.sock`. Thread-safe.

    It connects when first used, and again whenever the server was away. Every call raises
    OvsdbError when it is not done within `timeout_s`.
    """

    def __init__(self, remote: str, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.remote = remote
        self._timeout_s = timeout_s
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="ovsdb")
        self._link: _Link | None = None

    def read(self, look: Callable[[Database], _Result]) -> _Result:
        """What `look` makes of the database."""
        return self._call(lambda link, _deadline: look(Database(link.idl)))

    def change(self, write: Callable[[Draft], None]) -> None:
        """Commit what `write` writes, and return when ovs-vswitchd has applied it.

        `write` is called again, on fresh data, when somebody else's change came first. What it
        raises ends the call and nothing is written.
        """
        self._call(lambda link, deadline: link.change(write, deadline))

    def close(self) -> None:
        """Let go of the connection, after the calls that wait."""
        self._owner.submit(self._drop_link)
        self._owner.shutdown()

    def _call(self, work: Callable[["_Link", float], _Result]) -> _Result:
        deadline = time.monotonic() + self._timeout_s
        return self._owner.submit(self._run, work, deadline).result()

    def _run(self, work: Callable[["_Link", float], _Result], deadline: float) -> _Result:
        refusals = 0
        while True:
            try:
                if self._link is None:
                    self._link = _Link(self.remote, deadline)
                self._link.catch_up(deadline)
                return work(self._link, deadline)
            except OvsdbError:
                # What is in flight may still be done: the next call starts from fresh data.
                self._drop_link()
                raise
            except _Again as again:
                if isinstance(again, _LostLink):
                    self._drop_link()
                refusals += isinstance(again, _Refused)
                if refusals > 1 or time.monotonic() + _RETRY_S >= deadline:
                    raise OvsdbError(str(again)) from again
                time.sleep(_RETRY_S)

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        if link:
            link.idl.close()


class _Link:
    """One connection, and the replica that lives from it. Deadlines are monotonic times."""

    def __init__(self, remote: str, deadline: float) -> None:
        helper = SchemaHelper(schema_json=_fetch_schema(remote, deadline))
        for table, columns in _COLUMNS.items():
            helper.register_columns(table, columns)
        self.idl = Idl(remote, helper, leader_only=False)
        try:
            self.idl.run()
            while not self.idl.has_ever_connected():
                self._pump(deadline, "ovsdb-server does not answer")
        except OvsdbError:
            self.idl.close()
            raise

    def catch_up(self, deadline: float) -> None:
        """Ask the server for something, so that all it had sent before is in the replica."""
        transaction = Transaction(self.idl)
        transaction.add_op(
            {"op": "select", "table": "Open_vSwitch", "where": [], "columns": ["cur_cfg"]}
        )
        self._commit(transaction, deadline)

    def change(self, write: Callable[[Draft], None], deadline: float) -> None:
        transaction = Transaction(self.idl)
        try:
            write(Draft(self.idl, transaction))
            _root(self.idl).increment("next_cfg")
        except BaseException:
            transaction.abort()
            raise
        wrote = self._commit(transaction, deadline)
        # Also when nothing was to be written: an earlier call may have given up too early.
        target = transaction.get_increment_new_value() if wrote else _root(self.idl).next_cfg
        while _root(self.idl).cur_cfg < target:
            self._pump(deadline, "ovs-vswitchd does not apply the change")
            self._require_connection()

    def _commit(self, transaction: Transaction, deadline: float) -> bool:
        """Whether something was written."""
        while (status := transaction.commit()) == Transaction.INCOMPLETE:
            self._pump(deadline, "ovsdb-server does not answer")
            self._require_connection()
        if status == Transaction.ERROR:
            raise _Refused(f"ovsdb-server refused the change: {transaction.get_error()}")
        if status not in (Transaction.SUCCESS, Transaction.UNCHANGED):
            raise _LostLink(f"the change was not made ({status})")
        return bool(status == Transaction.SUCCESS)

    def _pump(self, deadline: float, why_late: str) -> None:
        """Wait until the server says something, and take it in."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise OvsdbError(why_late)
        poller = ovs.poller.Poller()
        self.idl.wait(poller)
        poller.timer_wait(int(left_s * 1000) + 1)
        poller.block()
        self.idl.run()

    def _require_connection(self) -> None:
        # python-ovs has no public way to ask. Left alone it would back off for up to 8 s.
        if not self.idl._session.is_connected():  # noqa: SLF001
            raise _LostLink("the connection to ovsdb-server was lost")


def _root(idl: Idl) -> Row:
    for row in idl.tables["Open_vSwitch"].rows.values():
        return row
    raise OvsdbError("the database is empty; run: ovs-vsctl init")


def _fetch_schema(remote: str, deadline: float) -> dict[str, Any]:
    """The server's own schema: python-ovs' wheel carries none, and it is always the right one."""
    error, stream = ovs.stream.Stream.open_block(
        ovs.stream.Stream.open(remote), timeout=max(0, int((deadline - time.monotonic()) * 1000))
    )
    if error:
        raise _LostLink(f"cannot connect: {os.strerror(error)}")
    connection = ovs.jsonrpc.Connection(stream)
    try:
        return _ask(connection, "get_schema", [DATABASE], deadline)
    finally:
        connection.close()


def _ask(
    connection: ovs.jsonrpc.Connection, method: str, params: list[str], deadline: float
) -> dict[str, Any]:
    request = ovs.jsonrpc.Message.create_request(method, params)
    connection.send(request)
    while (left_s := deadline - time.monotonic()) > 0:
        connection.run()
        _error, message = connection.recv()
        if message is not None and message.id == request.id:
            if message.type != ovs.jsonrpc.Message.T_REPLY:
                raise OvsdbError(f"it has no database {DATABASE}: {message.error}")
            return dict(message.result)
        if connection.get_status():
            raise _LostLink("ovsdb-server closed the connection")
        poller = ovs.poller.Poller()
        connection.wait(poller)
        connection.recv_wait(poller)
        poller.timer_wait(int(left_s * 1000) + 1)
        poller.block()
    raise OvsdbError("ovsdb-server does not answer")
