"""What SQLite complains about, in the words of this package."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from integration.sqlite.support import assert_sound, connect_raw

from sayiir_persist import BackendError, BackendUnavailableError, OutcomeUnknownError
from sayiir_persist.adapters.sqlite import SqliteBackend
from sayiir_persist.adapters.sqlite.errors import commit_error, in_our_words

if TYPE_CHECKING:
    from pathlib import Path


def failed(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("said SQLite")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_BUSY, BackendUnavailableError),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, BackendUnavailableError),
        (sqlite3.SQLITE_FULL, BackendUnavailableError),
        (sqlite3.SQLITE_IOERR_READ, BackendUnavailableError),
        (sqlite3.SQLITE_CORRUPT, BackendError),
        (sqlite3.SQLITE_READONLY, BackendError),
    ],
)
def test_before_the_commit_nothing_was_applied(code: int, kind: type[BackendError]) -> None:
    cause = failed(code)

    error = in_our_words(cause)

    assert type(error) is kind
    assert error.__cause__ is cause
    assert "said SQLite" in str(error)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, BackendUnavailableError),
        (sqlite3.SQLITE_BUSY, BackendUnavailableError),
        (sqlite3.SQLITE_IOERR_FSYNC, OutcomeUnknownError),
        (sqlite3.SQLITE_CORRUPT, OutcomeUnknownError),
    ],
)
def test_a_commit_that_fails_may_have_been_applied(code: int, kind: type[BackendError]) -> None:
    assert type(commit_error(failed(code))) is kind


def test_a_full_disk_refuses_what_does_not_fit_and_nothing_else(
    path: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect_raw(*args, **options)
        connection.execute("PRAGMA max_page_count = 60")
        return connection

    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            await backend.start_instance("run", "v1", start_at="a")

            with pytest.raises(BackendUnavailableError, match="full"):
                await backend.send_event("run", "news", b"x" * 1_000_000)

            await backend.send_event("run", "news", b"x")
            assert await backend.consume_event("run", "news") == b"x"

    monkeypatch.setattr(sqlite3, "connect", connect)
    anyio.run(main, backend=loop)
    assert_sound(path)
