"""Errors of `asyncpg` and of the network in the words of this package.

Usage::

    try:
        rows = await connection.fetch(statement)
    except Exception as error:
        raise in_our_words(error, writes=True, sent=True) from harmless(error)

What decides is whether a write may have been applied. An error that the server reports about a
statement, on a session that goes on, means that it was rolled back: PostgreSQL commits when it
answers `Sync`, and whatever fails from the commit record on is a PANIC. Three kinds of reports
prove nothing: FATAL and PANIC, which may come between the commit and its answer (a shutdown, or
a standby that is waited for), the classes 08, 57P, 58 and XX, which poolers use in reports of
their own about servers that they lost, and 40003, which says so itself. Without any report
nothing is proved either.
"""

from __future__ import annotations

from importlib import import_module
from ssl import SSLCertVerificationError
from typing import Any, Final

from sayiir_persist.errors import (
    BackendError,
    BackendUnavailableError,
    ConfigurationError,
    OutcomeUnknownError,
    PersistError,
    SchemaVersionError,
)

_asyncpg: Final[Any] = import_module("asyncpg")  # its types are incomplete

_RETRIED: Final = frozenset({"40001", "40P01"})
_REFUSED: Final = frozenset({"28000", "28P01", "3D000", "42501"})
_MISSING: Final = frozenset({"3F000", "42703", "42704", "42883", "42P01"})
_COLUMN: Final = "42703"
_STATEMENTS: Final = frozenset({"26000", "42P05"})
_STANDBY: Final = "25006"
_PASSING: Final = frozenset({"55P03", "57014", _STANDBY})
_PASSING_CLASSES: Final = ("08", "40", "53", "57P", "58")
_OPEN: Final = "40003"
_OPEN_CLASSES: Final = ("08", "57P", "58", "XX")
_ARGUMENT: Final = "22000"
_STARTUP_PARAMETER: Final = "unsupported startup parameter"


def in_our_words(error: Exception, *, writes: bool, sent: bool) -> PersistError:
    """What an error of the library, the network or the server means for the call it ended.

    Args:
        error: One of ours is answered as it is.
        writes: Whether the call may change what is stored.
        sent: Whether the statement may have reached the server.

    Returns:
        `OutcomeUnknownError` where a write may have been applied; otherwise
        `BackendUnavailableError` for what passes, `ConfigurationError` and `SchemaVersionError`
        for what somebody has to set right, and `BackendError` for the rest.
    """
    if isinstance(error, PersistError):
        return error

    if _is_of_argument(error):
        return BackendError("an argument does not fit its parameter")

    if isinstance(error, _asyncpg.PostgresError):
        return _reported(error, may_be_applied=writes and sent)

    if writes and sent:
        return OutcomeUnknownError(f"the answer of PostgreSQL was lost: {_text(error)}")

    if isinstance(error, _asyncpg.exceptions.ClientConfigurationError):
        return ConfigurationError(f"PostgreSQL cannot be reached like this: {_text(error)}")

    if isinstance(error, SSLCertVerificationError):
        return ConfigurationError(f"the certificate of PostgreSQL is refused: {_text(error)}")

    if isinstance(error, (OSError, _asyncpg.InterfaceError, _asyncpg.InternalClientError)):
        return BackendUnavailableError(f"PostgreSQL did not answer: {_text(error)}")

    if isinstance(error, (ValueError, OverflowError)):
        return ConfigurationError(
            "the PostgreSQL URL cannot be read: user and password are percent-encoded (@ is %40)"
        )

    return BackendError(f"asyncpg: {_text(error)}")


def harmless(error: BaseException) -> BaseException | None:
    """The cause to name: not one whose text shows an argument, or part of a password."""
    if isinstance(error, PersistError):
        return error.__cause__

    return None if isinstance(error, ValueError) or _is_of_argument(error) else error


def is_definite_abort(error: Exception) -> bool:
    """Whether a deadlock or a serialization failure rolled the statement back: send it again."""
    return _state(error) in _RETRIED


def is_read_only(error: BaseException) -> bool:
    """Whether the server no longer is, or not yet is, the primary."""
    return _state(error) == _STANDBY


def is_busy(error: Exception) -> bool:
    """Whether somebody else held a table or row for too long, or crosswise."""
    return _state(error) in {"40P01", "55P03"}


def is_missing(error: Exception) -> bool:
    """Whether a schema, table, column or function that a statement names is not there."""
    return _state(error) in _MISSING


def is_missing_column(error: Exception) -> bool:
    """Whether the table is there, and not as it should be."""
    return _state(error) == _COLUMN


def is_refused_parameter(error: Exception) -> bool:
    """Whether a pooler refused the connection because of a setting that came with it."""
    return _state(error).startswith("08") and _STARTUP_PARAMETER in _text(error)


def is_stale_statement(error: Exception) -> bool:
    """Whether a prepared statement has to be prepared anew; it certainly was not run."""
    return isinstance(error, _asyncpg.InvalidCachedStatementError)


def leaves_usable(error: BaseException) -> bool:
    """Whether the session goes on after this error: the server reported it and is ready."""
    return (
        isinstance(error, _asyncpg.PostgresError)
        and _severity(error) == "ERROR"
        and not is_read_only(error)
        and not _state(error).startswith(_OPEN_CLASSES)
        and _state(error) not in _STATEMENTS
    )


def _reported(error: Any, *, may_be_applied: bool) -> PersistError:
    state = _state(error)
    text = f"PostgreSQL: {_text(error)} ({state or 'no SQLSTATE'})"

    if may_be_applied and _proves_nothing(error):
        return OutcomeUnknownError(text)

    if state in _REFUSED or is_refused_parameter(error):
        return ConfigurationError(text)

    if state in _STATEMENTS:
        return ConfigurationError(
            f"{text}: a pooler stands in between, connect with statement_cache_size=0"
        )

    if state in _MISSING:
        return SchemaVersionError(text)

    if state in _PASSING or state.startswith(_PASSING_CLASSES):
        return BackendUnavailableError(text)

    return BackendError(text)


def _proves_nothing(error: Any) -> bool:
    state = _state(error)
    return _severity(error) != "ERROR" or state == _OPEN or state.startswith(_OPEN_CLASSES)


def _is_of_argument(error: BaseException) -> bool:
    """Raised by the library before anything was sent; servers say how severe theirs are."""
    return _state(error) == _ARGUMENT and _severity(error) is None


def _severity(error: BaseException) -> str | None:
    return getattr(error, "severity_en", None) or getattr(error, "severity", None)


def _state(error: BaseException) -> str:
    is_theirs = isinstance(error, _asyncpg.PostgresError)
    return (getattr(error, "sqlstate", None) or "") if is_theirs else ""


def _text(error: BaseException) -> str:
    """The first line alone: details may show what is stored."""
    is_theirs = isinstance(error, (_asyncpg.PostgresError, _asyncpg.InterfaceError))
    text = str(error.args[0]) if is_theirs and error.args else str(error)
    return text.partition("\n")[0] or type(error).__name__
