"""PostgreSQL: home reads shards through ``postgres_fdw``.

One server and one schema in home for each shard, both named :func:`name_of`; in the
schema a foreign table for each sharded table, under its own name. A statement finds
them as a WITH of the tables' names, a ``UNION ALL`` of the shards that the route left,
so nothing of the statement changes and home's own tables stay as they are.

Guards two invariants. A foreign table is read only while its columns are those of
home's table (names, types, collations) and its server is the one that the process
reads itself, which :meth:`ForeignTables.fault` looks up before each
statement. And what a shard computes is what home would: orders, collations and
versions are compared when the tables are made. Columns have no modifiers, so one that
was widened since cannot round or cut a value. Nothing made here is writable, and no
password is in any text.

Sources: PostgreSQL manual, "postgres_fdw" (options, remote execution, asynchronous
execution), "WITH Queries" (NOT MATERIALIZED).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db.utils import Error

from dbfleet.engines.gather_postgresql import composed, quote_literal, quote_name
from dbfleet.engines.gathering import GatheredRows
from dbfleet.lexer import insertion_point

if TYPE_CHECKING:
    from dbfleet.engines.base import Engine

PREFIX = "dbfleet_fdw_"
#: rows that home asks a shard for at a time
FETCH_ROWS = 10_000
CONNECT_TIMEOUT_S = 3
#: a statement that waits longer for a lock ends with an error
LOCK_TIMEOUT_S = 10
#: what the client says of TLS holds for home as well; files are then home's
_TLS = (
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "ssl_min_protocol_version",
)
_UNREACHED = re.compile(rf'could not connect to server "{PREFIX}([^"]+)"')
_REMOTE = "remote SQL command"
#: SQLSTATEs that tell of the way to a shard, not of the statement: connections, a
#: missing mapping or server, a refused password, foreign data wrappers in general
_OF_THE_WAY = ("08", "28", "42704", "2F003", "57014", "57P", "HV")
_LOCKS = "dbfleet_locks"


class ForeignLink(NamedTuple):
    """How home reaches the primary of a shard."""

    shard: str
    host: str
    port: str
    database: str
    #: as the server tells it: 150004
    version: int

    @property
    def address(self) -> dict[str, str]:
        return {"host": self.host, "port": self.port, "dbname": self.database}


class ForeignPart(NamedTuple):
    """A table of a statement: its rows on each shard that may have some."""

    table: str
    columns: tuple[str, ...]
    #: shard -> its filter and parameters
    filters: Mapping[str, tuple[str, tuple[Any, ...]]]
    #: home keeps the rows while the statement runs
    is_spooled: bool


class ForeignRefused(Exception):
    """Foreign tables cannot be made; nothing was changed. The text has no secret."""


def name_of(shard: str) -> str:
    """The name of a shard's server in home, and of its schema."""
    return PREFIX + shard


class ForeignTables:
    """Makes foreign tables of shards in home, and runs statements over them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    # -- the way to a shard -----------------------------------------------------------

    def link(self, node: Any, shard: str, hosts: Mapping[str, str]) -> ForeignLink:
        """How home reaches the server that ``node`` is connected to; no I/O."""
        info = node.connection.info
        host, port = str(info.host), str(info.port)
        seen = hosts.get(f"{host}:{port}") or hosts.get(host)
        if seen is not None:
            found = re.fullmatch(r"(\[.+\]|[^:]+)(?::(\d+))?", seen)
            assert found is not None
            host, port = found[1].strip("[]"), found[2] or port
        return ForeignLink(shard, host, port, str(info.dbname), info.server_version)

    def fault(
        self, home: Any, links: Sequence[ForeignLink], tables: Sequence[str]
    ) -> str | None:
        """Why foreign tables of these shards do not show what their primaries have;
        None if they do. One round trip to home."""
        pairs = [(name_of(link.shard), table) for link in links for table in tables]
        rows = self.engine.fetch(
            home,
            "SELECT w.server, w.name, s.srvoptions, EXISTS (SELECT FROM "
            "pg_user_mappings m WHERE m.srvid = s.oid AND (m.umuser = 0 OR "
            f"m.usename = current_user)), {_columns_of('quote_ident(w.name)')}, "
            f"{_columns_of(_FOREIGN_NAME)}, {_SCHEMA} "
            "FROM unnest(%s::text[], %s::text[]) AS "
            "w(server, name) LEFT JOIN pg_foreign_server s ON s.srvname = w.server",
            [[server for server, _ in pairs], [table for _, table in pairs]],
        )
        by_server = {name_of(link.shard): link for link in links}
        major = home.connection.info.server_version // 10_000
        for server, table, options, has_mapping, wanted, has, is_same_schema in rows:
            link = by_server[server]
            if options is None:
                return f"home has no foreign tables of shard {link.shard}"
            if not has_mapping:
                return f"home's role has no user mapping for shard {link.shard}"
            known = dict(one.split("=", 1) for one in options)
            if any(known.get(name) != value for name, value in link.address.items()):
                return f"home reads another server than shard {link.shard}'s primary"
            if link.version // 10_000 != major:
                return f"shard {link.shard} runs another version than home"
            if not has:
                return f"home has no foreign table of {table} on shard {link.shard}"
            if not is_same_schema:
                return f"the search_path finds another {table} than its foreign table's"
            if not set(wanted or ()) <= set(has):
                return f"{table} was changed since its foreign tables were made"
        return None

    def failure(self, error: BaseException) -> tuple[str, str | None] | None:
        """What an error tells of the way to a shard: its reason without details, and
        the shard where the server names it. None for an error of the statement."""
        cause = error.__cause__ or error
        state = getattr(cause, "sqlstate", None) or ""
        if not state.startswith(_OF_THE_WAY):
            return None
        text = str(getattr(getattr(cause, "diag", None), "message_primary", "") or "")
        found = _UNREACHED.search(text)
        return text or type(cause).__name__, found[1] if found else None

    def is_timeout(self, error: BaseException) -> bool:
        """Whether a server ended a statement for its time; no I/O."""
        return getattr(error.__cause__ or error, "sqlstate", None) == "57014"

    # -- statements -------------------------------------------------------------------

    def gather(
        self,
        home: Any,
        parts: Sequence[ForeignPart],
        sql: str,
        params: Any,
        timeout_s: float | None,
    ) -> GatheredRows:
        """Run ``sql`` over foreign tables, in a transaction of its own.

        Three round trips to home, and home's own to the shards, which it asks at once.
        Each shard shows one snapshot for the whole statement.
        """
        inline = ", ".join(_inline(home, part) for part in parts)
        statement = self.engine.render(home, sql, params)
        statement = insertion_point(statement, "postgresql").apply(statement, inline)
        home.ensure_connection()
        execute = home.connection.execute
        with home.wrap_database_errors:
            # One message, which must not become a prepared statement.
            execute(f"BEGIN; {_bounded(timeout_s)}", prepare=False)
            try:
                cursor = home.create_cursor()
                cursor.execute(statement)
                rows = cursor.fetchall() if cursor.description is not None else []
                found = GatheredRows(
                    rows, cursor.description, cursor.rowcount, statements=[statement]
                )
                cursor.close()
            except BaseException:
                if not home.connection.closed:
                    execute("ROLLBACK")
                raise
            execute("COMMIT")
        return found

    # -- making them ------------------------------------------------------------------

    def install(
        self,
        home: Any,
        shards: Mapping[str, Any],
        links: Sequence[ForeignLink],
        tables: Sequence[str],
        timeout_s: float | None,
    ) -> list[str]:
        """Make the foreign tables of ``shards`` anew, in one transaction; the tables
        that there are. Raises ForeignRefused, with nothing changed.

        The role of ``home`` needs ``USAGE`` on the wrapper ``postgres_fdw`` and
        ``CREATE`` on the database; a superuser's makes the extension as well.
        """
        found = [name for name in tables if self._described(home, [name])]
        self._compare(home, shards, found)
        steps = _Steps(home)
        has = self.engine.fetch(
            home, "SELECT 1 FROM pg_extension WHERE extname='postgres_fdw'"
        )
        steps.run("BEGIN", "")
        try:
            steps.run(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'", "")
            if not has:
                steps.run("CREATE EXTENSION postgres_fdw", _NEEDS_EXTENSION)
            self._drop(home, steps)
            columns = self._described(home, found)
            for link in links:
                self._make(steps, shards[link.shard], link, columns, timeout_s)
            for link in links:
                self._verify(home, steps, shards[link.shard], link)
            steps.run("COMMIT", "")
        except BaseException:
            steps.undo()
            raise
        return found

    def remove(self, home: Any) -> list[str]:
        """Drop every server and schema that :meth:`install` made in home; their
        names. Raises ForeignRefused, with nothing changed."""
        steps = _Steps(home)
        steps.run("BEGIN", "")
        try:
            steps.run(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'", "")
            names = self._drop(home, steps)
            steps.run("COMMIT", "")
        except BaseException:
            steps.undo()
            raise
        return names

    def _drop(self, home: Any, steps: _Steps) -> list[str]:
        sql = (
            "SELECT srvname FROM pg_foreign_server WHERE starts_with(srvname, %s) "
            "UNION SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s) "
            "ORDER BY 1"
        )
        names = [row[0] for row in self.engine.fetch(home, sql, [PREFIX, PREFIX])]
        for name in names:
            quoted = quote_name(name)
            steps.run(f"DROP SCHEMA IF EXISTS {quoted} CASCADE", _NEEDS_OWNER)
            steps.run(f"DROP SERVER IF EXISTS {quoted} CASCADE", _NEEDS_OWNER)
        return names

    def _make(
        self,
        steps: _Steps,
        node: Any,
        link: ForeignLink,
        columns: Mapping[str, Sequence[tuple[str, str]]],
        timeout_s: float | None,
    ) -> None:
        name, info = name_of(link.shard), node.connection.info
        server = quote_name(name)
        limit = "" if timeout_s is None else f" -c statement_timeout={_ms(timeout_s)}"
        role = node.settings_dict["OPTIONS"].get("assume_role")
        if role:
            limit += " -c role=" + re.sub(r"([\\\s])", r"\\\1", role)
        options = {
            **link.address,
            **{k: v for k, v in info.get_parameters().items() if k in _TLS},
            "connect_timeout": CONNECT_TIMEOUT_S,
            # A primary that became a standby would show what was.
            "target_session_attrs": "primary",
            "application_name": name,
            # What the project sets for each connection may decide which rows it sees.
            "options": f"{info.options} -c default_transaction_read_only=on{limit}",
            "fetch_size": FETCH_ROWS,
            "use_remote_estimate": "true",
            "async_capable": "true",
            "updatable": "false",
        }
        steps.run(
            f"CREATE SERVER {server} FOREIGN DATA WRAPPER postgres_fdw OPTIONS "
            f"({_options(options)})",
            _NEEDS_USAGE,
        )
        mapping = {"user": info.user, "password": info.password}
        steps.run(
            f"CREATE USER MAPPING FOR CURRENT_USER SERVER {server} OPTIONS "
            f"({_options({k: v for k, v in mapping.items() if v})})",
            "",
        )
        steps.run(f"CREATE SCHEMA {server}", _NEEDS_CREATE)
        schemas = self._schemas(node, list(columns))
        for table, described in columns.items():
            body = ", ".join(f"{quote_name(c)} {kind}" for c, kind in described)
            options = {"schema_name": schemas[table], "table_name": table}
            steps.run(
                f"CREATE FOREIGN TABLE {server}.{quote_name(table)} ({body}) SERVER "
                f"{server} OPTIONS ({_options(options)})",
                "",
            )

    def _verify(self, home: Any, steps: _Steps, node: Any, link: ForeignLink) -> None:
        """A lock that the process holds on the shard is seen by home over there."""
        server, key = quote_name(name_of(link.shard)), secrets.randbits(62)
        table = f"{server}.{quote_name(_LOCKS)}"
        steps.run(
            f"CREATE FOREIGN TABLE {table} (locktype text, classid oid, objid oid) "
            f"SERVER {server} OPTIONS (schema_name 'pg_catalog', "
            "table_name 'pg_locks')",
            "",
        )
        held = _Steps(node)
        held.run("BEGIN", "")
        try:
            held.run(f"SELECT pg_advisory_xact_lock({key})", "")
            rows = steps.run(
                f"SELECT count(*) FROM {table} WHERE locktype = 'advisory' AND "
                f"classid = {key >> 32} AND objid = {key & 0xFFFFFFFF}",
                f"home cannot read shard {link.shard} at {link.host}:{link.port}",
            )
        finally:
            held.undo()
        if rows == [(0,)]:
            raise ForeignRefused(
                f"{link.host}:{link.port} is to home another server than the one that "
                f"this process knows as shard {link.shard}: correct GATHER['FDW_HOSTS']"
            )
        steps.run(f"DROP FOREIGN TABLE {table}", "")

    # -- comparing --------------------------------------------------------------------

    def _compare(
        self, home: Any, shards: Mapping[str, Any], tables: Sequence[str]
    ) -> None:
        """Raise ForeignRefused where a shard would compute something else than home."""
        version = home.connection.info.server_version // 10_000
        order, collations = self.engine.text_order(home), self._collations(home)
        wanted, schemas = self._described(home, tables), self._schemas(home, tables)
        for shard, node in shards.items():
            if node.connection.info.server_version // 10_000 != version:
                raise ForeignRefused(f"shard {shard} runs another version than home")
            if self.engine.text_order(node) != order:
                raise ForeignRefused(f"shard {shard} orders text otherwise than home")
            for name, told in self._collations(node).items():
                if collations.get(name, told) != told:
                    raise ForeignRefused(
                        f"collation {name} of shard {shard} is another one than home's"
                    )
            has = self._described(node, tables)
            if self._schemas(node, tables) != schemas:
                raise ForeignRefused(
                    f"tables of shard {shard} are in other schemas than home's"
                )
            for table in tables:
                if sorted(has.get(table, [])) != sorted(wanted[table]):
                    raise ForeignRefused(
                        f"{table} has other columns on shard {shard} than in home: "
                        "migrate first"
                    )

    def _described(
        self, node: Any, tables: Sequence[str]
    ) -> dict[str, list[tuple[str, str]]]:
        """Table -> its columns with type and collation, from the catalogue itself."""
        rows = self.engine.fetch(
            node,
            "SELECT w.name, a.attname, format_type(a.atttypid, -1) || CASE WHEN "
            "a.attcollation <> t.typcollation THEN ' COLLATE ' || "
            "quote_ident(n.nspname) || '.' || quote_ident(c.collname) ELSE '' END "
            "FROM unnest(%s::text[]) AS w(name) JOIN pg_attribute a ON a.attrelid = "
            "to_regclass(quote_ident(w.name)) AND a.attnum > 0 AND NOT a.attisdropped "
            "JOIN pg_type t ON t.oid = a.atttypid "
            "LEFT JOIN pg_collation c ON c.oid = a.attcollation "
            "LEFT JOIN pg_namespace n ON n.oid = c.collnamespace "
            "ORDER BY w.name, a.attnum",
            [list(tables)],
        )
        found: dict[str, list[tuple[str, str]]] = {}
        for table, column, kind in rows:
            found.setdefault(table, []).append((column, kind))
        return found

    def _schemas(self, node: Any, tables: Sequence[str]) -> dict[str, str]:
        rows = self.engine.fetch(
            node,
            "SELECT w.name, n.nspname FROM unnest(%s::text[]) AS w(name) "
            "JOIN pg_class c ON c.oid = to_regclass(quote_ident(w.name)) "
            "JOIN pg_namespace n ON n.oid = c.relnamespace",
            [list(tables)],
        )
        return dict(rows)

    def _collations(self, node: Any) -> dict[str, tuple[Any, ...]]:
        """The collations that columns name, each with what it does."""
        rows = self.engine.fetch(
            node,
            "SELECT c.collname, c.collprovider, c.collcollate, c.collctype, "
            "c.collisdeterministic, pg_collation_actual_version(c.oid), "
            "to_jsonb(c)->>'colliculocale', to_jsonb(c)->>'colllocale', "
            "to_jsonb(c)->>'collicurules' FROM pg_collation c WHERE c.oid IN (SELECT "
            "a.attcollation FROM pg_attribute a JOIN pg_class r ON r.oid = a.attrelid "
            "JOIN pg_namespace n ON n.oid = r.relnamespace WHERE n.nspname <> "
            "'information_schema' AND n.nspname NOT LIKE 'pg\\_%' AND "
            "r.relkind IN ('r', 'p')) AND c.collprovider <> 'd'",
        )
        return {row[0]: row[1:] for row in rows}


_NEEDS_EXTENSION = (
    "home lacks the extension postgres_fdw, which a superuser makes: CREATE EXTENSION "
    "postgres_fdw; and to let another role use it: GRANT USAGE ON FOREIGN DATA WRAPPER "
    "postgres_fdw TO that role"
)
_NEEDS_USAGE = (
    "home's role may not make servers: GRANT USAGE ON FOREIGN DATA WRAPPER "
    "postgres_fdw TO that role, as a superuser"
)
_NEEDS_CREATE = (
    "home's role may not make schemas: GRANT CREATE ON DATABASE of home TO that role"
)
_NEEDS_OWNER = (
    "home has foreign tables that another role made, which has to remove them"
)


class _Steps:
    """Statements of one transaction; what the server says of a failed one is told
    without its text, which may hold a password."""

    def __init__(self, node: Any) -> None:
        node.ensure_connection()
        self._node = node

    def run(self, sql: str, needs: str) -> list[Any]:
        """Run it; raises ForeignRefused with what it ``needs`` and what was said."""
        node, said = self._node, ""
        try:
            with node.wrap_database_errors:
                cursor = node.connection.execute(sql, prepare=False)
                rows = cursor.fetchall() if cursor.description is not None else []
                cursor.close()
                return list(rows)
        except Error as error:
            diag = getattr(error.__cause__, "diag", None)
            said = getattr(diag, "message_primary", None) or type(error).__name__
            detail = getattr(diag, "message_detail", None) or ""
            said += f" ({detail.splitlines()[0]})" if detail and needs else ""
        raise ForeignRefused(f"{needs} ({said})" if needs else said)

    def undo(self) -> None:
        """Roll back, where there is still a connection."""
        if self._node.connection is not None and not self._node.connection.closed:
            with self._node.wrap_database_errors:
                self._node.connection.execute("ROLLBACK")


def _inline(home: Any, part: ForeignPart) -> str:
    """A table as an element of WITH."""
    columns = ", ".join(map(quote_name, part.columns))
    table = quote_name(part.table)
    selects = []
    for shard, (where, params) in part.filters.items():
        select = f"SELECT {columns} FROM {quote_name(name_of(shard))}.{table}"
        # Home pushes the statement's own filters down to tables it does not spool;
        # with one of ours, shards would be asked one after another.
        if where and part.is_spooled:
            select += f" WHERE {composed(home, where, params)}"
        selects.append(select)
    kind = "MATERIALIZED" if part.is_spooled else "NOT MATERIALIZED"
    return f"{table}({columns}) AS {kind} ({' UNION ALL '.join(selects)})"


_FOREIGN_NAME = "quote_ident(w.server) || '.' || quote_ident(w.name)"


#: SQL: whether a foreign table is of the schema in which home's own table is found
_SCHEMA = (
    "(SELECT 'schema_name=' || n.nspname = ANY(f.ftoptions) FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_foreign_table f "
    f"ON f.ftrelid = to_regclass({_FOREIGN_NAME}) "
    "WHERE c.oid = to_regclass(quote_ident(w.name)))"
)


def _columns_of(name: str) -> str:
    """SQL of a table's columns: what has to be equal for values to be."""
    return (
        "(SELECT array_agg(a.attname || ' ' || a.atttypid || ' ' || a.attcollation) "
        f"FROM pg_attribute a WHERE a.attrelid = to_regclass({name}) "
        "AND a.attnum > 0 AND NOT a.attisdropped)"
    )


def _bounded(timeout_s: float | None) -> str:
    """SQL that lowers the limits of a transaction; never raises them."""
    wanted = {"lock_timeout": LOCK_TIMEOUT_S}
    if timeout_s is not None:
        wanted["statement_timeout"] = timeout_s  # type: ignore[assignment]
    values = ", ".join(f"('{name}', {_ms(s)})" for name, s in wanted.items())
    return (
        "SELECT set_config(w.name, w.ms::text, true) FROM pg_settings s JOIN (VALUES "
        f"{values}) w(name, ms) USING (name) "
        "WHERE s.setting = '0' OR s.setting::int > w.ms"
    )


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {quote_literal(str(v))}" for k, v in options.items())
