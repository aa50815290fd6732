"""The schema of a file: numbered migrations, each applied once and never edited."""

from __future__ import annotations

import sqlite3
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from sayiir_persist.errors import ConfigurationError, SchemaVersionError

if TYPE_CHECKING:
    from collections.abc import Iterator

APPLICATION_ID: Final = 0x53597250
"""Marks a file as ours ("SYrP")."""

_READ_LEDGER: Final = "SELECT version, name, checksum FROM migrations ORDER BY version"
_WRITE_LEDGER: Final = "INSERT INTO migrations (version, name, checksum) VALUES (?, ?, ?)"


class Migration(Struct, frozen=True):
    """One step, as it lies in `migrations/`."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Of the text that is applied."""
        return sha256(self.sql.encode()).hexdigest()


def _packaged() -> tuple[Migration, ...]:
    found: list[Migration] = []

    for entry in files("sayiir_persist.adapters.sqlite").joinpath("migrations").iterdir():
        name, dot, extension = entry.name.rpartition(".")

        if dot and extension == "sql":
            sql = entry.read_text("utf-8").replace("\r\n", "\n")
            found.append(Migration(int(name.partition("_")[0]), name, sql))

    return tuple(sorted(found, key=lambda migration: migration.version))


MIGRATIONS: Final = _packaged()


def check_ownership(connection: sqlite3.Connection) -> None:
    """Refuse a file that another application made, before anything is written to it.

    Raises:
        ConfigurationError: It is not ours, and not empty either.
    """
    [[application]] = connection.execute("PRAGMA application_id").fetchall()
    [[tables]] = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchall()

    if application == APPLICATION_ID or (application == 0 and tables == 0):
        return

    raise ConfigurationError("the file belongs to another application: give the path of a new file")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date; safe under any number of concurrent starters.

    All that is missing is applied in one transaction, so a crash leaves nothing half done.

    Raises:
        SchemaVersionError: A newer release, or other hands, changed the schema.
    """
    if not pending(connection):
        return

    connection.execute("BEGIN IMMEDIATE")

    try:
        check_ownership(connection)

        for migration in pending(connection):
            _apply(connection, migration)

        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")

        raise


def verify(connection: sqlite3.Connection) -> None:
    """Check that the schema is up to date; writes nothing.

    Raises:
        SchemaVersionError: It is not.
    """
    missing = pending(connection)

    if missing:
        names = ", ".join(migration.name for migration in missing)
        raise SchemaVersionError(
            f"the schema lacks {names}: open the file once with migrate=True, or apply them"
        )


def pending(connection: sqlite3.Connection) -> tuple[Migration, ...]:
    """What has to be applied yet.

    Raises:
        SchemaVersionError: What is applied is not what this release knows.
    """
    applied = _ledger(connection)

    for version, name, checksum in applied:
        if version > MIGRATIONS[-1].version:
            raise SchemaVersionError(
                f"the file has schema {version}, this release knows {MIGRATIONS[-1].version}: "
                "upgrade sayiir-persist"
            )

        known = MIGRATIONS[version - 1] if version >= 1 else None

        if known is None or (known.name, known.checksum) != (name, checksum):
            raise SchemaVersionError(
                f"migration {name!r} is not the one of this release: "
                "restore the file, or open it with the release that made it"
            )

    if [version for version, _, _ in applied] != list(range(1, len(applied) + 1)):
        raise SchemaVersionError("the schema's ledger has a gap: restore the file from a backup")

    return MIGRATIONS[len(applied) :]


def _ledger(connection: sqlite3.Connection) -> list[tuple[int, str, str]]:
    found = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'migrations'"
    ).fetchone()
    return connection.execute(_READ_LEDGER).fetchall() if found else []


def _apply(connection: sqlite3.Connection, migration: Migration) -> None:
    for statement in _split(migration.sql):
        connection.execute(statement)

    row = (migration.version, migration.name, migration.checksum)
    connection.execute(_WRITE_LEDGER, row)


def _split(sql: str) -> Iterator[str]:
    """The statements of a script; `executescript` would commit before it begins."""
    statement = ""

    for line in sql.splitlines(keepends=True):
        statement += line

        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
