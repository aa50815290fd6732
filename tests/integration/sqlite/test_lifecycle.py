"""One loop, one process, no threads left behind; and the clock."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import pytest
from integration.sqlite.support import write_lock

from sayiir_persist import (
    BackendClosedError,
    BackendError,
    ConfigurationError,
    InvalidArgumentError,
    PersistError,
    WakeHint,
)
from sayiir_persist.adapters.sqlite import SqliteBackend
from sayiir_persist.adapters.sqlite.clock import Clock
from sayiir_persist.conformance import ManualClock

if TYPE_CHECKING:
    from pathlib import Path


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("sayiir")]


def test_an_open_backend_has_two_threads_and_a_closed_one_none(path: Path, loop: str) -> None:
    async def main() -> None:
        backend = SqliteBackend.connect(str(path))
        assert threads() == []

        async with backend:
            assert sorted(threads()) == [
                "sayiir-sqlite-runs.db-reader",
                "sayiir-sqlite-runs.db-writer",
            ]

        assert threads() == []
        await backend.aclose()

    anyio.run(main, backend=loop)


def test_a_backend_that_could_not_open_leaves_no_thread(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError):
            await SqliteBackend.connect(str(tmp_path)).__aenter__()

        assert threads() == []

    anyio.run(main, backend=loop)


def test_opening_may_be_cancelled_anywhere(path: Path, loop: str) -> None:
    async def main() -> None:
        for after in range(12):
            backend = SqliteBackend.connect(str(path))

            async with anyio.create_task_group() as group:
                group.start_soon(backend.__aenter__)

                for _ in range(after):
                    await anyio.lowlevel.checkpoint()

                group.cancel_scope.cancel()

            await backend.aclose()
            assert threads() == []

    anyio.run(main, backend=loop)


def test_closing_ends_what_waits(path: Path, loop: str) -> None:
    async def main() -> None:
        ends: list[str] = []

        async def use(number: int) -> None:
            try:
                await backend.start_instance(f"run-{number}", "v1", start_at="a")
                ends.append("stored")
                await backend.wait_for_wakeup(timedelta(minutes=5))
                await backend.wait_for_wakeup(timedelta(minutes=5))
            except BackendClosedError:
                ends.append("closed")

        backend = SqliteBackend.connect(str(path))
        await backend.__aenter__()

        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(use, number)

            await anyio.lowlevel.checkpoint()
            await backend.aclose()

        assert ends.count("closed") == 20
        assert threads() == []

        async with SqliteBackend.connect(str(path)) as again:
            assert len(await again.list_snapshots()) == ends.count("stored")

    anyio.run(main, backend=loop)


def test_another_event_loop_is_refused(path: Path) -> None:
    async def use(backend: SqliteBackend) -> None:
        with pytest.raises(BackendError, match="another event loop"):
            await backend.list_snapshots()

        with pytest.raises(BackendError, match="another event loop"):
            await backend.start_instance("run", "v1", start_at="a")

    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            await anyio.to_thread.run_sync(asyncio.run, use(backend))
            await anyio.to_thread.run_sync(anyio.run, use, backend)

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_refused_and_harmless(path: Path) -> None:
    def in_child(backend: SqliteBackend) -> int:
        try:
            backend.list_snapshots().send(None)
        except BackendClosedError as error:
            return 0 if "fork" in str(error) else 1

        return 1

    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            await backend.start_instance("run", "v1", start_at="a")

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()

            if child == 0:
                os._exit(in_child(backend))

            _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
            assert status == 0
            assert await backend.claim_task("run", "a", worker_id="w", ttl=None)

    asyncio.run(main())


def test_time_is_the_clocks_and_never_goes_back(path: Path, loop: str) -> None:
    start = datetime(2030, 1, 1, 12, 0, 0, 123_457, tzinfo=UTC)
    clock = ManualClock(start)

    async def main() -> None:
        async with SqliteBackend.connect(str(path), clock=clock) as backend:
            created = await backend.start_instance("run", "v1", start_at="a")
            clock.advance(timedelta(hours=-1))
            claim = await backend.claim_task("run", "a", worker_id="w", ttl=timedelta(seconds=1))

            assert created.snapshot.created_at == datetime(
                2030, 1, 1, 12, 0, 0, 123_457, tzinfo=UTC
            )
            assert claim is not None
            assert claim.claimed_at == created.snapshot.created_at == await backend.now()

        async with SqliteBackend.connect(str(path), clock=clock) as backend:
            later = await backend.update_snapshot("run", lambda it: it.count_iteration("n"))

            assert later.updated_at == start

    anyio.run(main, backend=loop)


def test_the_clock_is_monotonic_between_threads() -> None:
    clock = Clock(None)
    seen: list[list[int]] = [[] for _ in range(4)]

    def read(into: list[int]) -> None:
        into.extend(clock() for _ in range(2000))

    readers = [threading.Thread(target=read, args=(each,)) for each in seen]

    for reader in readers:
        reader.start()

    for reader in readers:
        reader.join()

    assert all(each == sorted(each) for each in seen)
    assert abs(clock() / 1e6 - time.time()) < 60


def test_what_breaks_a_limit_is_refused_before_any_thread_hears_of_it(
    path: Path, written: list[str]
) -> None:
    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            written.clear()

            with pytest.raises(InvalidArgumentError, match="256"):
                await backend.start_instance("x" * 257, "v1", start_at="a")

            with pytest.raises(PersistError, match="max_payload"):
                await backend.send_event("run", "n", b"x" * (16 * 1024 * 1024 + 1))

    asyncio.run(main())

    assert written == []


def test_closing_does_not_wait_for_another_process(path: Path, loop: str) -> None:
    async def main() -> None:
        ends: list[str] = []

        async def start() -> None:
            with pytest.raises(BackendClosedError):
                await backend.start_instance("run", "v1", start_at="a")

            ends.append("closed")

        async with (
            SqliteBackend.connect(str(path)) as backend,
            anyio.create_task_group() as group,
        ):
            with write_lock(path):
                group.start_soon(start)
                await anyio.wait_all_tasks_blocked()
                await backend.aclose()
                assert threads() == []

        assert ends == ["closed"]

    anyio.run(main, backend=loop)


def test_a_hint_reaches_the_loop_of_another_thread(path: Path) -> None:
    hints: list[WakeHint | None] = []
    waiting = threading.Event()

    async def wait() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            waiting.set()
            hints.append(await backend.wait_for_wakeup(timedelta(seconds=30)))

    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            waiter = threading.Thread(target=anyio.run, args=(wait,), kwargs={"backend": "trio"})
            waiter.start()
            await anyio.to_thread.run_sync(waiting.wait)
            await backend.start_instance("run", "v1", start_at="a", tags=("t",))
            await anyio.to_thread.run_sync(waiter.join)

    asyncio.run(main())

    assert hints == [
        WakeHint(instance_id="run", task_id="a", definition_hash="v1", tags=("t",)),
    ]
