"""Errors of `sqlite3` in the words of this package."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from sayiir_persist.errors import (
    BackendError,
    BackendUnavailableError,
    ConfigurationError,
    OutcomeUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import Generator

_PRIMARY: Final = 0xFF
"""Extended result codes carry the primary one in their lowest byte."""

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_PASSING: Final = _BUSY | {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOMEM,
}
_REFUSED: Final = frozenset({sqlite3.SQLITE_FULL}) | _BUSY


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY


def is_busy(error: Exception) -> bool:
    """Whether somebody else holds what was asked for."""
    return isinstance(error, sqlite3.Error) and _code(error) in _BUSY


def commit_error(error: sqlite3.Error) -> BackendError:
    """What a failed COMMIT means for the writes of its transaction."""
    if _code(error) in _REFUSED:
        return BackendUnavailableError(f"SQLite did not commit: {error}")

    return OutcomeUnknownError(f"SQLite failed while it committed: {error}")


def in_our_words(error: Exception) -> Exception:
    """What an error means where nothing was committed; one of `sqlite3` becomes one of ours."""
    if not isinstance(error, sqlite3.Error):
        return error

    kind = BackendUnavailableError if _code(error) in _PASSING else BackendError
    ours = kind(f"SQLite: {error}")
    ours.__cause__ = error
    return ours


@contextmanager
def translated_opening(path: str) -> Generator[None]:
    """Raise what fails while a file is opened as an error that says what to do.

    Raises:
        ConfigurationError: The file is not ours to open.
        BackendError: Anything else.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)

        if code == sqlite3.SQLITE_NOTADB:
            raise ConfigurationError(
                f"{path!r} is not a SQLite database: give the path of a new file"
            ) from error

        if code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
            raise ConfigurationError(
                f"{path!r} cannot be opened for writing: "
                "this user needs write access to the file and to its directory"
            ) from error

        raise in_our_words(error) from error
