"""Writes share transactions, and nothing else."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from integration.sqlite.support import raw, write_lock

from sayiir_persist import CodecError, InstanceExistsError
from sayiir_persist.adapters.sqlite import SqliteBackend
from sayiir_persist.adapters.sqlite.clock import Clock
from sayiir_persist.adapters.sqlite.connection import Settings
from sayiir_persist.adapters.sqlite.driver import SqliteDriver
from sayiir_persist.driver import Guard, Presence, Push, Unit

if TYPE_CHECKING:
    from pathlib import Path


async def until_idle() -> None:
    """Let every task run until it waits for another thread."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def test_64_concurrent_writes_share_two_transactions(
    path: Path, loop: str, written: list[str]
) -> None:
    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            written.clear()

            async with anyio.create_task_group() as group:
                with write_lock(path):
                    for number in range(64):
                        start = partial(backend.start_instance, f"run-{number}", "v1", start_at="a")
                        group.start_soon(start)

                    await until_idle()

            assert len(await backend.list_snapshots()) == 64

    anyio.run(main, backend=loop)

    assert written.count("COMMIT") == 2  # the first one alone, then all that came meanwhile


def test_claims_and_writes_that_wait_share_a_transaction(path: Path, written: list[str]) -> None:
    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            for number in range(8):
                await backend.start_instance(f"run-{number}", "v1", start_at="a")

            written.clear()

            async with anyio.create_task_group() as group:
                with write_lock(path):
                    for number in range(8):
                        claim = partial(backend.claim_task, worker_id="w", ttl=None)
                        group.start_soon(claim, f"run-{number}", "a")

                    await until_idle()

    anyio.run(main)

    assert written.count("COMMIT") == 1


def test_idle_pollers_never_take_the_write_lock(path: Path, written: list[str]) -> None:
    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            await backend.start_instance("run", "v1", start_at="a", tags=("gpu",))
            written.clear()

            with write_lock(path):
                assert await backend.acquire_tasks(worker_id="w", ttl=None, tags=("cpu",)) == []

    anyio.run(main)

    assert written == []


def test_a_refused_write_leaves_its_neighbours_alone(path: Path, loop: str) -> None:
    async def main() -> list[str]:
        errors: list[str] = []

        async def start(instance_id: str) -> None:
            try:
                await backend.start_instance(instance_id, "v1", start_at="a")
            except InstanceExistsError as error:
                errors.append(error.instance_id)

        async with SqliteBackend.connect(str(path)) as backend:
            await backend.start_instance("run-5", "v1", start_at="a")

            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(start, f"run-{number}")

            assert len(await backend.list_snapshots()) == 10

        return errors

    assert anyio.run(main, backend=loop) == ["run-5"]


@pytest.mark.parametrize("together", [True, False])
def test_a_write_that_fails_leaves_its_neighbours_alone(path: Path, together: bool) -> None:
    """Whether they come in one call or in several that share a transaction."""
    ids = [f"run-{number}" for number in range(6)]
    units = [
        Unit(
            instance_id=each,
            guard=Guard(presence=Presence.ANY),
            push=Push("news", b"x", None, 10),
        )
        for each in ids
    ]
    outcomes: dict[str, object] = {}

    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            for each in ids:
                await backend.start_instance(each, "v1", start_at="a")

        with raw(path) as connection:
            connection.execute("UPDATE instances SET state = x'c1' WHERE instance_id = 'run-3'")

        settings = Settings(path=str(path), synchronous="FULL", migrate=True, timeout=10)
        driver = SqliteDriver(settings, "default", Clock(None), 10)
        await driver.open()

        async def apply(unit: Unit) -> None:
            try:
                [outcomes[unit.instance_id]] = await driver.apply([unit])
            except CodecError as error:
                outcomes[unit.instance_id] = error

        if together:
            outcomes.update(zip(ids, await driver.apply(units), strict=True))
        else:
            async with anyio.create_task_group() as group:
                with write_lock(path):
                    for unit in units:
                        group.start_soon(apply, unit)

                    await until_idle()

        await driver.close()

    anyio.run(main)

    assert [each for each, outcome in outcomes.items() if isinstance(outcome, CodecError)] == [
        "run-3"
    ]

    with raw(path) as connection:
        rows = connection.execute("SELECT instance_id, number FROM events ORDER BY 1").fetchall()

    assert rows == [(each, 1) for each in ids if each != "run-3"]


def test_a_damaged_row_is_passed_over_and_reported_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            for each in ("a", "b", "c"):
                await backend.start_instance(each, "v1", start_at="t")

            with raw(path) as connection:
                connection.execute("UPDATE instances SET state = x'c1' WHERE instance_id = 'a'")

            for _ in range(2):
                [found] = await backend.find_available_tasks(worker_id="w", limit=1)
                assert found.instance_id == "b"

            with pytest.raises(CodecError, match="'a'"):
                await backend.load_snapshot("a")

            assert len(await backend.list_snapshots()) == 3

    anyio.run(main)

    reports = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.__dict__["instance_id"] for record in reports] == ["a"]
