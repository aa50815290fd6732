"""The schema: numbered migrations, each applied once, in a transaction, and never edited.

Usage::

    schema = Schema("sayiir_persist", migrate=True)
    await schema.prepare(connections)  # two round trips where all is applied
    statement = "SELECT * FROM {schema}.clock()".replace("{schema}", schema.quoted)

    print(ddl("sayiir_persist"))  # for somebody who applies it by hand with psql
    print(grants("worker", "sayiir_persist"))  # all that a role needs that does not migrate

A migration is `migrations/NNNN_name.sql`, in which `{schema}` stands for the quoted name, and in
which a line `-- include functions/name.sql` stands for that file. Functions that no migration
includes belong to the last one, at its end, so nothing is to be listed before a release; then the
lines are added, which changes no checksum, and the files are as final as the migration.

Functions are part of migrations, and not a step of their own that is repeated whenever its text
differs, because during a rolling deploy the older release starts as well: it would put its own
text back. A release that has to change what a function takes, answers or means adds one with
another name in the next migration and leaves the old one to the processes that still call it;
a correction within the same contract may replace the function under its name.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from sayiir_persist.adapters.postgres.errors import (
    harmless,
    in_our_words,
    is_busy,
    is_missing,
    is_missing_column,
)
from sayiir_persist.errors import BackendUnavailableError, ConfigurationError, SchemaVersionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist.adapters.postgres.connections import Connections
    from sayiir_persist.adapters.postgres.sources import Connection, Row

logger: logging.Logger = logging.getLogger(__name__)

DEFAULT_SCHEMA: Final = "sayiir_persist"

_PLACEHOLDER: Final = "{schema}"
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_FILE: Final = re.compile(r"(\d{4})_[a-z0-9_]+")
_INCLUDE: Final = re.compile(r"^-- include (functions/\w+\.sql)$", re.MULTILINE)
_APPLYING: Final = 900.0
"""A migration may take that long, in seconds: it may have to build an index."""
_STATEMENT: Final = 10.0
_POLL: Final = 0.05

_READ_LEDGER: Final = "SELECT version, name, checksum FROM {schema}.migrations ORDER BY version"
_SCHEMA_EXISTS: Final = "SELECT to_regnamespace($1) IS NOT NULL AS found"
_CREATE_SCHEMA: Final = "CREATE SCHEMA IF NOT EXISTS {schema};"
_CREATE_LEDGER: Final = """\
CREATE TABLE IF NOT EXISTS {schema}.migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
"""
_WRITE_LEDGER: Final = """\
INSERT INTO {schema}.migrations (version, name, checksum)
VALUES (<version>, '<name>', '<checksum>');
"""

# A frozen migrator loses the lock after a while, and one that waits for a table gives way to
# those who use it.
_BEGIN: Final = """\
BEGIN;
SET LOCAL search_path = pg_catalog;
SET LOCAL standard_conforming_strings = on;
SET LOCAL client_min_messages = warning;
SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = '500ms';
SET LOCAL idle_in_transaction_session_timeout = '60s';
"""
_TRY_LOCK: Final = "SELECT pg_try_advisory_xact_lock($1) AS locked"
_LOCK: Final = "SELECT pg_advisory_xact_lock(<key>);"
_HOLDERS: Final = """\
SELECT pid
FROM pg_locks
WHERE locktype = 'advisory'
    AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32) | objid::bigint = $1
    AND objsubid = 1
"""

_GRANTS: Final = """\
GRANT USAGE ON SCHEMA {schema} TO <role>;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO <role>;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO <role>;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO <role>;
REVOKE INSERT, UPDATE, DELETE ON {schema}.migrations FROM <role>;

-- What later migrations add, where the role that runs this applies them.
ALTER DEFAULT PRIVILEGES IN SCHEMA {schema}
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO <role>;
ALTER DEFAULT PRIVILEGES IN SCHEMA {schema}
    GRANT USAGE ON SEQUENCES TO <role>;
ALTER DEFAULT PRIVILEGES IN SCHEMA {schema}
    GRANT EXECUTE ON FUNCTIONS TO <role>;
"""


class Migration(Struct, frozen=True):
    """One step, with the functions that it includes.

    Attributes:
        version: 1 and so on, without a gap.
        name: Of its file.
        sql: With the placeholder for the schema in it.
    """

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Of the text, whatever the schema is called."""
        return sha256(self.sql.encode()).hexdigest()

    @property
    def script(self) -> str:
        """The text and the ledger's row."""
        row = _WRITE_LEDGER.replace("<version>", str(self.version))
        row = row.replace("<name>", self.name).replace("<checksum>", self.checksum)
        return f"{self.sql}\n{row}"


def read_migrations(package: str = "sayiir_persist.adapters.postgres") -> tuple[Migration, ...]:
    """The migrations that lie in a package."""
    scripts = _texts(package, "migrations")
    functions = _texts(package, "functions")
    included = {name for text in scripts.values() for name in _INCLUDE.findall(text)}
    loose = [f"-- include {name}\n" for name in functions if name not in included]
    found: list[Migration] = []

    for number, (path, text) in enumerate(scripts.items(), start=1):
        name = path.partition("/")[2].removesuffix(".sql")
        match = _FILE.fullmatch(name)

        if match is None or int(match[1]) != number:
            raise ConfigurationError(f"{path} is not migration {number}")

        whole = text + "".join(loose) if number == len(scripts) else text
        found.append(Migration(number, name, _INCLUDE.sub(lambda line: functions[line[1]], whole)))

    return tuple(found)


def _texts(package: str, directory: str) -> dict[str, str]:
    found = {
        f"{directory}/{entry.name}": entry.read_text("utf-8").replace("\r\n", "\n")
        for entry in files(package).joinpath(directory).iterdir()
        if entry.name.endswith(".sql")
    }
    return dict(sorted(found.items()))


def quote_schema(name: str) -> str:
    """The name as it stands in statements.

    Raises:
        ConfigurationError: It is not `[a-z_][a-z0-9_]{0,62}`, or the server's own.
    """
    if not _NAME.fullmatch(name) or name.startswith("pg_") or name == "information_schema":
        raise ConfigurationError(
            f"the schema {name!r} is not a name of lower-case letters, digits and underscores, "
            "of at most 63 characters, that begins with no digit and not with pg_"
        )

    return f'"{name}"'


class Schema:
    """Where the tables and functions are, and how they come there.

    Args:
        name: Of the schema; lower-case letters, digits and underscores.
        migrate: Whether to apply what is missing; otherwise it is an error.
        timeout: How long to wait for another process that migrates, in seconds.
        migrations: Instead of those of this release.

    Raises:
        ConfigurationError: The name cannot be used.
    """

    def __init__(
        self,
        name: str = DEFAULT_SCHEMA,
        *,
        migrate: bool = True,
        timeout: float = 60.0,
        migrations: Sequence[Migration] = (),
    ) -> None:
        self.name = name
        self.quoted: str = quote_schema(name)
        self._migrate = migrate
        self._timeout = timeout
        self._migrations: tuple[Migration, ...] = tuple(migrations) or read_migrations()

    async def prepare(self, connections: Connections) -> None:
        """Check the schema and, if that is wanted, bring it up to date.

        Safe under any number of concurrent starters. Each migration is a transaction of its own,
        so a crash leaves whole ones, and the next start goes on from there.

        Raises:
            SchemaVersionError: Something is missing, newer than this release, or was changed.
            BackendUnavailableError: Somebody else migrates, or uses a table, for too long.
            ConfigurationError: The role may not read, or not create, what is needed.
        """
        try:
            async with connections.borrow() as connection:
                missing = self._missing(await self._ledger(connection))

            if missing:
                self._check_allowed(missing)
                await self._apply_all(connections)
        except Exception as error:  # noqa: BLE001  (translated)
            raise in_our_words(error, writes=False, sent=True) from harmless(error)

    def _check_allowed(self, missing: Sequence[Migration]) -> None:
        if not self._migrate:
            names = ", ".join(migration.name for migration in missing)
            raise SchemaVersionError(
                f"the schema {self.name} lacks {names}: "
                "open it once with migrate=True, or apply what ddl() prints"
            )

    # --- The ledger ---

    async def _ledger(self, connection: Connection) -> Sequence[Row]:
        try:
            return await connection.fetch(self._render(_READ_LEDGER), timeout=_STATEMENT)
        except Exception as error:
            if is_missing_column(error):
                raise ConfigurationError(
                    f"the schema {self.name} has a table 'migrations' that is not ours: "
                    "give the name of a schema of our own"
                ) from error

            if is_missing(error):
                return ()

            raise

    def _missing(self, ledger: Sequence[Row]) -> Sequence[Migration]:
        latest = len(self._migrations)

        for number, row in enumerate(ledger, start=1):
            version, name = int(row["version"]), str(row["name"])

            if version > latest:
                raise SchemaVersionError(
                    f"the schema {self.name} has version {version}, this release knows {latest}: "
                    "upgrade sayiir-persist"
                )

            if version != number:
                raise SchemaVersionError(
                    f"the ledger of the schema {self.name} has a gap before {version}: "
                    "restore it from a backup"
                )

            known = self._migrations[version - 1]

            if (known.name, known.checksum) != (name, row["checksum"]):
                raise SchemaVersionError(
                    f"migration {name!r} of the schema {self.name} is not the one of this release: "
                    "open it with the release that made it"
                )

        return self._migrations[len(ledger) :]

    # --- Migrating ---

    async def _apply_all(self, connections: Connections) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout

        while True:
            try:
                async with connections.borrow() as connection:
                    if await self._begin(connection):
                        if not await self._apply_next(connection):
                            return

                        continue

                    blocker = await self._blocker(connection)
            except Exception as error:
                if not is_busy(error):
                    raise

                blocker = "sessions that use its tables"

            if loop.time() > deadline:
                raise BackendUnavailableError(
                    f"the schema {self.name} was not free to be migrated within "
                    f"{self._timeout:g} s: it is held by {blocker}"
                )

            await asyncio.sleep(random.uniform(_POLL, 3 * _POLL))  # noqa: S311

    async def _begin(self, connection: Connection) -> bool:
        """Begin a transaction and take the lock; without it there is no transaction."""
        await connection.execute(_BEGIN, timeout=_STATEMENT)
        [row] = await connection.fetch(_TRY_LOCK, self._key, timeout=_STATEMENT)

        if not row["locked"]:
            await connection.execute("ROLLBACK", timeout=_STATEMENT)

        return bool(row["locked"])

    async def _apply_next(self, connection: Connection) -> bool:
        """Apply one migration, if any is missing now, and end the transaction."""
        await self._create_ledger(connection)
        missing = self._missing(await self._ledger(connection))

        if missing:
            await connection.execute(self._render(missing[0].script), timeout=_APPLYING)
            logger.info(
                "applied a migration",
                extra={"backend": "postgres", "schema": self.name, "migration": missing[0].name},
            )

        await connection.execute("COMMIT", timeout=_STATEMENT)
        return len(missing) > 1

    async def _create_ledger(self, connection: Connection) -> None:
        # A role that owns nothing but the schema may not even say IF NOT EXISTS.
        [row] = await connection.fetch(_SCHEMA_EXISTS, self.quoted, timeout=_STATEMENT)

        if not row["found"]:
            await connection.execute(self._render(_CREATE_SCHEMA), timeout=_STATEMENT)

        await connection.execute(self._render(_CREATE_LEDGER), timeout=_STATEMENT)

    async def _blocker(self, connection: Connection) -> str:
        rows = await connection.fetch(_HOLDERS, self._key, timeout=_STATEMENT)
        pids = ", ".join(str(row["pid"]) for row in rows)
        return f"another process that migrates (server process {pids or 'unknown'})"

    @property
    def _key(self) -> int:
        return _lock_key(self.name)

    def _render(self, sql: str) -> str:
        return sql.replace(_PLACEHOLDER, self.quoted)


def _lock_key(name: str) -> int:
    digest = sha256(f"sayiir_persist migrates {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


# --- For hands ---


def ddl(schema: str = DEFAULT_SCHEMA, *, after: int = 0) -> str:
    """Everything that `migrate=True` would do, as one transaction for psql.

    Args:
        schema: Its name.
        after: The version that is there already; 0 makes the schema.

    Raises:
        ConfigurationError: The name cannot be used.
    """
    quoted = quote_schema(schema)
    parts = [_BEGIN, _LOCK.replace("<key>", str(_lock_key(schema)))]

    if not after:
        parts += [_CREATE_SCHEMA, _CREATE_LEDGER]

    for migration in read_migrations()[after:]:
        parts += [f"-- {migration.name}", migration.script]

    return "\n".join([*parts, "COMMIT;\n"]).replace(_PLACEHOLDER, quoted)


def grants(role: str, schema: str = DEFAULT_SCHEMA) -> str:
    """What a role needs to work on the schema without the right to change it, for psql.

    Args:
        role: Its name, whatever it is.
        schema: The schema's name.

    Raises:
        ConfigurationError: A name cannot be used.
    """
    if not role or "\0" in role:
        raise ConfigurationError("a role has a name")

    quoted = '"' + role.replace('"', '""') + '"'
    return _GRANTS.replace(_PLACEHOLDER, quote_schema(schema)).replace("<role>", quoted)
