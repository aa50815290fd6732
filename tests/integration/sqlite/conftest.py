from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from integration.sqlite.support import LOOPS, connect_raw

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements of writing connections: a driver opens its writer first, then its reader."""
    statements: list[str] = []
    opened = 0

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        nonlocal opened
        connection = connect_raw(*args, **options)

        if opened % 2 == 0:
            connection.set_trace_callback(statements.append)

        opened += 1
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect)
    return statements
