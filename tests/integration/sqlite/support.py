"""Other processes, other connections, and what SQLite is told to do."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

LOOPS = ("asyncio", "trio")

connect_raw = sqlite3.connect  # as it is before a test replaces it


def start_child(name: str, *arguments: object) -> subprocess.Popen[str]:
    """Run a function of `children` in a process of its own."""
    return subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            "from integration.sqlite.children import main; main()",
            name,
            *map(str, arguments),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def finish(child: subprocess.Popen[str], said: str = "") -> str:
    """Wait for a child that must end well; what it printed."""
    out, err = child.communicate(said, timeout=120)
    assert child.returncode == 0, err
    return out


@contextmanager
def child(name: str, *arguments: object) -> Generator[subprocess.Popen[str]]:
    """A child that does not outlive the block."""
    with start_child(name, *arguments) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def raw(path: Path, *, timeout: float = 0.1) -> Generator[sqlite3.Connection]:
    """A connection that somebody else has opened."""
    with closing(connect_raw(path, isolation_level=None, timeout=timeout)) as connection:
        yield connection


@contextmanager
def write_lock(path: Path) -> Generator[None]:
    """Hold the write lock as another process would; it must be free at once."""
    with raw(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def assert_sound(path: Path) -> None:
    with raw(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
