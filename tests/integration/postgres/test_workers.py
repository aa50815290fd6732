"""Many workers in several processes, some of which are killed: each step is recorded once."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack, contextmanager
from random import Random
from signal import SIGKILL
from threading import Thread
from typing import TYPE_CHECKING

from integration.postgres.processes import STEPS, start_process
from integration.postgres.support import eventually, sql
from integration.postgres.workloads import connect, started

from sayiir_persist import Status

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator
    from typing import Any

    import asyncpg

INSTANCES = 1000
PROCESSES = 4
WORKERS = 5
KILLS = 6
SAFETY = 120.0


class Crew:
    """Processes that work, each replaced when it is killed; what they say is collected."""

    def __init__(self, url: str, schema: str) -> None:
        self.said: list[str] = []
        self._where = (url, schema)
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[Thread] = []

    def hire(self) -> None:
        process = start_process("work", *self._where, WORKERS)
        reader = Thread(target=self._listen, args=(process,))
        reader.start()
        self._processes.append(process)
        self._readers.append(reader)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None

        for line in process.stdout:
            if line.endswith("\n"):  # and not cut short by a kill
                self.said.append(line)

    def lose(self, chance: Random) -> None:
        victim = chance.choice([each for each in self._processes if each.poll() is None])
        victim.kill()
        victim.wait()
        self.hire()

    async def until_said(self, count: int) -> None:
        async def reached() -> bool:
            return len(self.said) >= count or all(each.poll() == 0 for each in self._processes)

        await eventually(reached, f"{count} steps")

    async def finish(self) -> None:
        for process in self._processes:
            code = await asyncio.to_thread(process.wait, SAFETY)
            assert process.stderr is not None
            assert code in {0, -SIGKILL}, process.stderr.read()

    def dismiss(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

        for reader in self._readers:
            reader.join()

        for process in self._processes:
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()


@contextmanager
def hired(url: str, schema: str) -> Generator[Crew]:
    crew = Crew(url, schema)

    with ExitStack() as stack:
        stack.callback(crew.dismiss)

        for _ in range(PROCESSES):
            crew.hire()

        yield crew


async def test_every_step_is_recorded_once_whoever_is_killed(
    url: str, schema: str, admin: asyncpg.Connection[Any]
) -> None:
    chance = Random(7)

    async with connect(url, schema) as backend:
        await asyncio.gather(*(started(backend, f"run-{n:03}") for n in range(INSTANCES)))

        with hired(url, schema) as crew:
            for kill in range(1, KILLS + 1):
                await crew.until_said(kill * len(STEPS) * INSTANCES // (KILLS + 2))
                crew.lose(chance)

            await crew.finish()

        rows = await backend.list_snapshots(limit=INSTANCES + 1)
        assert len(rows) == INSTANCES
        assert {(row.status, row.version) for row in rows} == {(Status.COMPLETED, 1 + len(STEPS))}

    stored = {
        (row["instance_id"], row["node_id"]): row["output"].decode()
        for row in await admin.fetch(
            sql(
                "SELECT instance_id, node_id, output FROM {schema}.results "
                "JOIN {schema}.instances USING (key) WHERE node_id <> ''",
                schema=schema,
            )
        )
    }
    acknowledged = [tuple(line.split()) for line in crew.said]
    times = Counter((instance_id, task_id) for instance_id, task_id, _ in acknowledged)

    assert len(stored) == len(STEPS) * INSTANCES
    assert max(times.values()) == 1
    assert all(
        stored[instance_id, task_id] == token for instance_id, task_id, token in acknowledged
    )
