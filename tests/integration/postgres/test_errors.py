"""What each kind of failure says about a write."""

from __future__ import annotations

from ssl import SSLCertVerificationError, SSLError
from typing import Any

import asyncpg
import pytest

from sayiir_persist import (
    BackendClosedError,
    BackendError,
    BackendUnavailableError,
    ConfigurationError,
    OutcomeUnknownError,
    SchemaVersionError,
)
from sayiir_persist.adapters.postgres.errors import (
    harmless,
    in_our_words,
    is_busy,
    is_definite_abort,
    leaves_usable,
)


def reported(state: str, message: str = "so it is", *, severity: str = "ERROR") -> Exception:
    """An error as a server reports it."""
    fields = {"S": severity, "V": severity, "C": state, "M": message, "D": "a stored value"}
    error: Exception = asyncpg.PostgresError.new(fields)
    return error


LOST: list[Exception] = [
    asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.InternalClientError("unexpected"),
    ConnectionResetError("reset"),
    BrokenPipeError("broken"),
    TimeoutError(),
    OSError("no route"),
    SSLError("protocol"),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_lost_connection_leaves_a_write_that_was_sent_open(error: Exception) -> None:
    assert type(in_our_words(error, writes=True, sent=True)) is OutcomeUnknownError
    assert type(in_our_words(error, writes=True, sent=False)) is BackendUnavailableError
    assert type(in_our_words(error, writes=False, sent=True)) is BackendUnavailableError
    assert not leaves_usable(error)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("40001", BackendUnavailableError),
        ("40P01", BackendUnavailableError),
        ("55P03", BackendUnavailableError),
        ("57014", BackendUnavailableError),
        ("25006", BackendUnavailableError),
        ("53100", BackendUnavailableError),
        ("53200", BackendUnavailableError),
        ("53300", BackendUnavailableError),
        ("28P01", ConfigurationError),
        ("28000", ConfigurationError),
        ("3D000", ConfigurationError),
        ("42501", ConfigurationError),
        ("26000", ConfigurationError),
        ("42P05", ConfigurationError),
        ("42P01", SchemaVersionError),
        ("42883", SchemaVersionError),
        ("3F000", SchemaVersionError),
        ("22P02", BackendError),
        ("23505", BackendError),
        ("54000", BackendError),
        ("P0001", BackendError),
        ("99999", BackendError),
    ],
)
def test_what_a_server_reports_was_rolled_back(state: str, expected: type[Exception]) -> None:
    for writes in (True, False):
        ours = in_our_words(reported(state), writes=writes, sent=True)

        assert type(ours) is expected
        assert state in str(ours)
        assert "stored value" not in str(ours)


@pytest.mark.parametrize(
    ("state", "severity"),
    [
        ("40003", "ERROR"),
        ("08006", "ERROR"),
        ("08P01", "FATAL"),
        ("57P01", "FATAL"),
        ("57P01", "ERROR"),
        ("57P02", "FATAL"),
        ("57P03", "FATAL"),
        ("57P05", "FATAL"),
        ("58000", "ERROR"),
        ("58030", "PANIC"),
        ("XX000", "ERROR"),
        ("53300", "FATAL"),
    ],
)
def test_what_may_come_after_a_commit_proves_nothing(state: str, severity: str) -> None:
    error = reported(state, severity=severity)

    assert type(in_our_words(error, writes=True, sent=True)) is OutcomeUnknownError
    assert not isinstance(in_our_words(error, writes=True, sent=False), OutcomeUnknownError)
    assert not isinstance(in_our_words(error, writes=False, sent=True), OutcomeUnknownError)


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_definite_aborts_are_worth_a_try(state: str) -> None:
    assert is_definite_abort(reported(state))
    assert leaves_usable(reported(state))


@pytest.mark.parametrize("state", ["40003", "57014", "55P03", "57P01", "08006", "23505"])
def test_nothing_else_is_tried_again(state: str) -> None:
    assert not is_definite_abort(reported(state))


def test_errors_of_others_that_look_like_a_deadlock_are_no_deadlock() -> None:
    class LooksLikeOne(Exception):
        sqlstate = "40P01"

    assert not is_definite_abort(LooksLikeOne())
    assert not is_busy(LooksLikeOne())


@pytest.mark.parametrize("state", ["25006", "57P01", "08006", "XX000", "26000"])
def test_a_session_that_is_of_no_use_is_left(state: str) -> None:
    assert not leaves_usable(reported(state))


def test_a_session_goes_on_after_an_ordinary_error() -> None:
    assert leaves_usable(reported("23505"))
    assert leaves_usable(reported("57014"))


def test_texts_that_show_values_are_neither_passed_on_nor_chained() -> None:
    argument = asyncpg.DataError("invalid input for query argument $1: 'hush'")
    url = ValueError("Port could not be cast to integer value as 'hush'")

    for error in (argument, url):
        assert "hush" not in str(in_our_words(error, writes=True, sent=False))
        assert harmless(error) is None

    assert harmless(reported("23505")) is not None


@pytest.mark.parametrize(
    "error",
    [
        ValueError("port"),
        OverflowError("port"),
        SSLCertVerificationError("self-signed"),
        asyncpg.exceptions.ClientConfigurationError("sslmode"),
    ],
)
def test_what_nobody_but_the_user_can_mend_is_configuration(error: Any) -> None:
    assert type(in_our_words(error, writes=True, sent=False)) is ConfigurationError


def test_errors_of_ours_stay_as_they_are() -> None:
    cause = OSError("cause")
    ours = BackendClosedError("closed")
    ours.__cause__ = cause

    assert in_our_words(ours, writes=True, sent=True) is ours
    assert harmless(ours) is cause
