"""Opening a file: checks that say what to do, settings, and the schema."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from sayiir_persist.adapters.sqlite import schema
from sayiir_persist.adapters.sqlite.errors import is_busy, translated_opening
from sayiir_persist.errors import BackendClosedError, ConfigurationError, SchemaVersionError

if TYPE_CHECKING:
    from collections.abc import Callable

logger: logging.Logger = logging.getLogger(__name__)

_SET_SYNCHRONOUS: Final = {
    "FULL": "PRAGMA synchronous = FULL",
    "NORMAL": "PRAGMA synchronous = NORMAL",
}
_STATEMENTS: Final = 128
_RETRY_PAUSE: Final = 0.005
_WAL_RESET_BUG: Final = ((3, 7, 0), (3, 51, 3))
_OLDEST: Final = (3, 24, 0)

_warned = False


class Settings(Struct, frozen=True, kw_only=True):
    """How a file is opened.

    Attributes:
        path: Of the file.
        synchronous: `FULL` or `NORMAL`.
        migrate: Whether the schema may be changed.
        timeout: How long SQLite itself waits for others, in seconds.
    """

    path: str
    synchronous: str
    migrate: bool
    timeout: float


def check_settings(path: str, synchronous: str) -> None:
    """Refuse what can be refused without looking at the disk.

    Raises:
        ConfigurationError: It says what to give instead.
    """
    if synchronous not in _SET_SYNCHRONOUS:
        raise ConfigurationError(f"synchronous is FULL or NORMAL, not {synchronous!r}")

    if not isinstance(path, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"the path of the file is a str, not {type(path).__name__}")

    if not path or "\0" in path:
        raise ConfigurationError("the path of the SQLite file is missing: sqlite:///runs.db")

    if path.startswith((":memory:", "file:")):
        raise ConfigurationError(
            f"{path!r} is not the path of a file; for runs that may be lost use memory://"
        )

    if sqlite3.sqlite_version_info < _OLDEST:
        raise ConfigurationError(
            f"this Python has SQLite {sqlite3.sqlite_version}, 3.24 or later is needed"
        )


def check_path(settings: Settings) -> None:
    """Refuse a path that cannot become a database, before anything is written.

    Raises:
        ConfigurationError: It says what to do.
        SchemaVersionError: There is no file yet, and none may be made.
    """
    path = Path(settings.path)
    directory = path.absolute().parent

    if path.is_dir():
        raise ConfigurationError(f"{settings.path!r} is a directory: give the path of a file in it")

    if not directory.is_dir():
        raise ConfigurationError(f"there is no directory {str(directory)!r}: create it first")

    if not os.access(directory, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ConfigurationError(
            f"{settings.path!r} is not writable: "
            "this user needs write access to the file and to its directory"
        )

    if path.exists() and not path.is_file():
        raise ConfigurationError(f"{settings.path!r} is not a regular file")

    if not settings.migrate and not path.exists():
        raise SchemaVersionError(
            f"there is no file {settings.path!r}: open it once with migrate=True"
        )


def open_writer(settings: Settings, given_up: Callable[[], bool]) -> sqlite3.Connection:
    """Open the connection that writes; checks the schema, or brings it up to date."""
    with translated_opening(settings.path):
        connection = _connect(settings, timeout=0)

        try:
            _prepare(connection, settings, given_up)
        except BaseException:
            connection.close()
            raise

        return connection


def open_reader(settings: Settings) -> sqlite3.Connection:
    """Open a connection that only reads, on a file that is prepared."""
    with translated_opening(settings.path):
        return _connect(settings, timeout=settings.timeout)


def _connect(settings: Settings, *, timeout: float) -> sqlite3.Connection:
    mode = "rwc" if settings.migrate else "rw"
    connection = sqlite3.connect(
        f"{Path(settings.path).absolute().as_uri()}?mode={mode}",
        timeout=timeout,
        isolation_level=None,
        cached_statements=_STATEMENTS,
        uri=True,
    )
    connection.execute("PRAGMA mmap_size = 0")
    return connection


def _prepare(
    connection: sqlite3.Connection, settings: Settings, given_up: Callable[[], bool]
) -> None:
    """Try until nobody is in the way: a change of the journal mode does not wait for others."""
    while True:
        try:
            schema.check_ownership(connection)

            if settings.migrate:
                _use_wal(connection)
                schema.migrate(connection)
            else:
                schema.verify(connection)

            connection.execute(_SET_SYNCHRONOUS[settings.synchronous])
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
        else:
            return

        if given_up():
            raise BackendClosedError("gave up opening the database")

        time.sleep(_RETRY_PAUSE)


def _use_wal(connection: sqlite3.Connection) -> None:
    [[mode]] = connection.execute("PRAGMA journal_mode").fetchall()

    if mode != "wal":
        [[mode]] = connection.execute("PRAGMA journal_mode = WAL").fetchall()

    if mode != "wal":
        raise ConfigurationError(
            "SQLite cannot keep a write-ahead log here: use a local file system"
        )


def caveats(settings: Settings) -> tuple[str, ...]:
    """What this deployment cannot promise."""
    found: list[str] = []

    if settings.synchronous == "NORMAL":
        found.append("synchronous=NORMAL: the loss of power may take the last commits with it")

    first, fixed = _WAL_RESET_BUG

    if first <= sqlite3.sqlite_version_info < fixed:
        found.append(
            f"SQLite {sqlite3.sqlite_version} has the WAL-reset bug, fixed in 3.51.3: "
            "several processes on one file can, very rarely, damage it"
        )
        _warn_once()

    return tuple(found)


def _warn_once() -> None:
    global _warned

    if not _warned:
        _warned = True
        logger.warning(
            "this SQLite has the WAL-reset bug (3.7.0 to 3.51.2): use 3.51.3 or later where "
            "several processes share a file",
            extra={"backend": "sqlite", "sqlite_version": sqlite3.sqlite_version},
        )
