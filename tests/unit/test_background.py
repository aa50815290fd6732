from __future__ import annotations

import anyio
import anyio.lowlevel
from unit.loops import execute, on_both_loops, settle_down

from sayiir_persist.background import Background


@on_both_loops
def test_task_outlives_the_caller_that_started_it(loop: str) -> None:
    async def check() -> None:
        background, gate, ended = Background(), anyio.Event(), anyio.Event()

        async def work(name: str) -> None:
            await gate.wait()
            assert name == "job"
            ended.set()

        with anyio.CancelScope() as caller:
            background.start(work, "job")
            caller.cancel()
            await anyio.lowlevel.checkpoint()

        gate.set()
        await ended.wait()
        await background.aclose()

    execute(loop, check)


@on_both_loops
def test_close_waits_for_every_task(loop: str) -> None:
    async def check() -> None:
        background, gates, ended = Background(), [anyio.Event(), anyio.Event()], []

        async def work(number: int) -> None:
            await gates[number].wait()
            ended.append(number)

        async def close() -> None:
            await background.aclose()
            assert ended == [1, 0]
            ended.append(-1)

        for number in (0, 1):
            background.start(work, number)

        async with anyio.create_task_group() as group:
            group.start_soon(close)
            await settle_down()
            gates[1].set()
            await settle_down()
            assert ended == [1]
            gates[0].set()

        assert ended == [1, 0, -1]

    execute(loop, check)


@on_both_loops
def test_close_without_tasks_returns_and_may_be_repeated(loop: str) -> None:
    async def check() -> None:
        background = Background()

        await background.aclose()
        await background.aclose()

    execute(loop, check)


@on_both_loops
def test_close_waits_for_tasks_that_start_others(loop: str) -> None:
    async def check() -> None:
        background, ended = Background(), []

        async def second() -> None:
            await settle_down()
            ended.append("second")

        async def first() -> None:
            background.start(second)
            ended.append("first")

        background.start(first)
        await background.aclose()

        assert ended == ["first", "second"]

    execute(loop, check)
