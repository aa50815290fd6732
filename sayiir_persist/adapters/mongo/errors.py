"""Errors of PyMongo, of the network and of the server in the words of this package.

What decides is whether a write may have been applied. A command that the server answers with an
error was not carried out, or was taken back, with two exceptions: a server that stops or steps
down may interrupt between the write and its answer, and a write concern that fails says that the
write is there but may yet be lost. Without any answer nothing is proved.
"""

from __future__ import annotations

from typing import Any, Final

from pymongo.errors import (
    AutoReconnect,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    InvalidOperation,
    InvalidURI,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
)
from pymongo.errors import (
    ConfigurationError as DriverConfigurationError,
)

from sayiir_persist.errors import (
    BackendClosedError,
    BackendError,
    BackendUnavailableError,
    ConfigurationError,
    OutcomeUnknownError,
    PersistError,
)

WRITE_CONFLICT: Final = 112
DUPLICATE_KEY: Final = 11000

_NOT_PRIMARY: Final = frozenset({10107, 13435, 13436, 10058})
"""Refused before anything was done."""

_INTERRUPTED: Final = frozenset({11600, 11602, 189, 91, 262})
"""A shutdown or a step-down in the middle, or a time limit: it may have been done."""

_PASSING: Final = frozenset({6, 7, 50, 89, 112, 133, 134, 9001, 46, 24, 384, 462})
_REFUSED: Final = frozenset({13, 18, 8000, 20, 59, 72, 73})
_TOO_LARGE: Final = frozenset({10334, 17419, 17420})


def in_our_words(error: Exception, *, writes: bool) -> PersistError:
    """What an error means for the call that it ended.

    Returns:
        `OutcomeUnknownError` where a write may have been applied; otherwise
        `BackendUnavailableError` for what passes, `ConfigurationError` for what somebody has to
        set right, and `BackendError` for the rest.
    """
    if isinstance(error, PersistError):
        return error

    if isinstance(error, InvalidOperation) and "close" in str(error).lower():
        return BackendClosedError("the client of MongoDB is closed")

    if isinstance(error, (InvalidURI, DriverConfigurationError)):
        return ConfigurationError(f"MongoDB cannot be reached like this: {_text(error)}")

    if is_unsent(error):
        return BackendUnavailableError(f"MongoDB does not answer: {_text(error)}")

    if writes and _proves_nothing(error):
        return OutcomeUnknownError(f"the answer of MongoDB was lost: {_text(error)}")

    if isinstance(error, (ConnectionFailure, ExecutionTimeout)):
        return BackendUnavailableError(f"MongoDB did not answer: {_text(error)}")

    if isinstance(error, OperationFailure):
        return _reported(error)

    if isinstance(error, PyMongoError):
        return BackendError(f"PyMongo: {_text(error)}")

    return BackendError(f"{type(error).__name__}: {_text(error)}")


def refused_statement(report: dict[str, Any]) -> PersistError:
    """The error of one statement of a batch."""
    return _reported(OperationFailure(report.get("errmsg", ""), report.get("code"), report))


def is_unsent(error: BaseException) -> bool:
    """Whether the command certainly did not change anything, because nobody carried it out."""
    if isinstance(error, (ServerSelectionTimeoutError, WaitQueueTimeoutError)):
        return True

    if isinstance(error, PyMongoError) and error.has_error_label("NoWritesPerformed"):
        return True

    if _is_not_primary(error):
        return True

    return isinstance(error, AutoReconnect) and isinstance(
        error.__cause__, (ConnectionRefusedError,)
    )


def is_definite_abort(error: BaseException) -> bool:
    """Whether the same command can be sent again at once: it was certainly not carried out."""
    return _code(error) == WRITE_CONFLICT or _is_not_primary(error)


def is_duplicate(error: BaseException) -> bool:
    """Whether a document with this `_id` was there already."""
    return isinstance(error, DuplicateKeyError) or _code(error) == DUPLICATE_KEY


def _is_not_primary(error: BaseException) -> bool:
    if isinstance(error, NotPrimaryError):
        details: Any = error.details or {}
        code: int | None = details.get("code")
        return code is None or code in _NOT_PRIMARY

    return _code(error) in _NOT_PRIMARY


def _proves_nothing(error: Exception) -> bool:
    if isinstance(error, (WriteConcernError, NotPrimaryError)):
        return True

    if isinstance(error, OperationFailure):
        return _code(error) in _INTERRUPTED or isinstance(error, ExecutionTimeout)

    return isinstance(error, ConnectionFailure)


def _reported(error: OperationFailure) -> PersistError:
    text = f"MongoDB: {_text(error)} (code {error.code})"

    if error.code in _TOO_LARGE or isinstance(error, DocumentTooLarge):
        return BackendError(text)

    if error.code in _REFUSED:
        return ConfigurationError(text)

    if error.code in _PASSING or error.code in _NOT_PRIMARY or error.code in _INTERRUPTED:
        return BackendUnavailableError(text)

    return BackendError(text)


def _code(error: BaseException) -> int | None:
    return error.code if isinstance(error, OperationFailure) else None


def _text(error: BaseException) -> str:
    """The first line alone, without the whole answer: details may show what is stored."""
    text = str(error).partition(", full error:")[0].partition("\n")[0]
    return text or type(error).__name__
