"""A call that is left leaves nothing half done, and nothing locked."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from integration.sqlite.support import write_lock

from sayiir_persist import (
    BackendUnavailableError,
    InstanceNotFoundError,
    OutcomeUnknownError,
)
from sayiir_persist.adapters.sqlite import SqliteBackend
from sayiir_persist.adapters.sqlite.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


async def leave(call: Callable[[], Awaitable[object]], *, after: int) -> None:
    """Cancel a call once it was suspended so many times, or let it end."""
    async with anyio.create_task_group() as group:
        group.start_soon(call)

        for _ in range(after):
            await anyio.lowlevel.checkpoint()

        group.cancel_scope.cancel()


def test_the_write_lock_is_free_after_every_cancellation(path: Path, loop: str) -> None:
    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            for after in range(30):
                instance_id = f"run-{after}"
                await leave(
                    partial(backend.start_instance, instance_id, "v1", start_at="a"), after=after
                )

                with write_lock(path):
                    pass

                whole = {info.instance_id for info in await backend.list_snapshots()}

                if instance_id in whole:
                    assert await backend.claim_task(instance_id, "a", worker_id="w", ttl=None)
                else:
                    with pytest.raises(InstanceNotFoundError):
                        await backend.load_snapshot(instance_id)

    anyio.run(main, backend=loop)


def test_a_write_that_waits_for_another_process_is_withdrawn(path: Path, loop: str) -> None:
    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            with write_lock(path):
                await leave(partial(backend.start_instance, "run", "v1", start_at="a"), after=20)

            await backend.start_instance("next", "v1", start_at="a")

            assert [info.instance_id for info in await backend.list_snapshots()] == ["next"]

    anyio.run(main, backend=loop)


def test_a_write_that_gets_no_lock_in_time_was_certainly_not_applied(path: Path, loop: str) -> None:
    async def main() -> None:
        patience = timedelta(milliseconds=150)

        async with SqliteBackend.connect(str(path), operation_timeout=patience) as backend:
            with write_lock(path), pytest.raises(BackendUnavailableError, match="busy"):
                await backend.start_instance("run", "v1", start_at="a")

            assert await backend.list_snapshots() == []
            await backend.start_instance("run", "v1", start_at="a")

    anyio.run(main, backend=loop)


def test_a_write_that_is_under_way_when_time_is_up_may_have_been_applied(
    path: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threading import Event

    going_on = Event()
    commit = Session.commit

    def slow(self: Session) -> object:
        going_on.wait(5)
        return commit(self)

    async def main() -> None:
        patience = timedelta(milliseconds=150)

        async with SqliteBackend.connect(str(path), operation_timeout=patience) as backend:
            monkeypatch.setattr(Session, "commit", slow)

            with pytest.raises(OutcomeUnknownError):
                await backend.start_instance("run", "v1", start_at="a")

            going_on.set()

            with pytest.raises(Exception, match="exists already"):
                await backend.start_instance("run", "v1", start_at="a")

    anyio.run(main, backend=loop)
