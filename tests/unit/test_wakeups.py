"""Wake hints: none is missed between an empty poll and the wait, and nothing grows."""

from __future__ import annotations

import asyncio
import math

import anyio
import anyio.lowlevel
import pytest
from unit.loops import execute, on_both_loops, settle_down

from sayiir_persist.claims import WakeHint
from sayiir_persist.errors import BackendClosedError
from sayiir_persist.wakeups import ANYTHING, Wakeups

FOREVER = math.inf
HINT = WakeHint(instance_id="run", task_id="a", definition_hash="v1", tags=("gpu",))
OTHER = WakeHint(instance_id="other", task_id="b", definition_hash="v1", tags=())


@on_both_loops
def test_wait_ends_with_the_hint_that_comes(loop: str) -> None:
    async def check() -> None:
        wakeups, got = Wakeups(), []

        async def wait() -> None:
            got.append(await wakeups.wait(FOREVER))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await settle_down()
            wakeups.notify(HINT)

        assert got == [HINT]

    execute(loop, check)


@on_both_loops
def test_hint_that_came_between_poll_and_wait_is_answered_at_once(loop: str) -> None:
    async def check() -> None:
        wakeups = Wakeups()
        assert await wakeups.wait(0) is None

        wakeups.notify(HINT)

        assert await wakeups.wait(FOREVER) == HINT

    execute(loop, check)


@on_both_loops
def test_hint_is_answered_even_where_no_time_is_left(loop: str) -> None:
    async def check() -> None:
        wakeups = Wakeups()
        wakeups.notify(HINT)

        assert await wakeups.wait(0) == HINT
        assert await wakeups.wait(0) is None

    execute(loop, check)


@on_both_loops
def test_every_caller_gets_every_hint(loop: str) -> None:
    async def check() -> None:
        wakeups, got = Wakeups(), []

        async def worker() -> None:
            got.extend([await wakeups.wait(FOREVER), await wakeups.wait(FOREVER)])

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(worker)

            await settle_down()
            wakeups.notify(HINT)
            await settle_down()
            wakeups.notify(OTHER)

        assert got == [HINT, OTHER] * 3

    execute(loop, check)


@on_both_loops
def test_several_hints_at_once_mean_anything(loop: str) -> None:
    async def check() -> None:
        wakeups = Wakeups()
        await wakeups.wait(0)

        wakeups.notify(HINT)
        wakeups.notify(OTHER)

        assert await wakeups.wait(FOREVER) == ANYTHING == WakeHint()
        assert await wakeups.wait(0) is None

    execute(loop, check)


@on_both_loops
def test_who_fell_far_behind_is_told_that_anything_may_be_ready(loop: str) -> None:
    async def check() -> None:
        wakeups = Wakeups()
        await wakeups.wait(0)

        for _ in range(100_000):
            wakeups.notify(HINT)

        assert await wakeups.wait(FOREVER) == ANYTHING
        assert await wakeups.wait(0) is None

    execute(loop, check)


@on_both_loops
def test_hint_that_comes_while_a_cancelled_wait_unwinds_is_there_for_the_next(loop: str) -> None:
    async def check() -> None:
        wakeups = Wakeups()
        await wakeups.wait(0)

        with anyio.CancelScope() as scope:
            scope.cancel()
            await wakeups.wait(FOREVER)

        assert scope.cancelled_caught
        wakeups.notify(HINT)
        assert await wakeups.wait(FOREVER) == HINT

    execute(loop, check)


@on_both_loops
def test_cancelled_waits_leave_nothing_behind(loop: str) -> None:
    async def check() -> None:
        wakeups = Wakeups()

        for _ in range(10):
            async with anyio.create_task_group() as group:
                for _ in range(1_000):
                    group.start_soon(wakeups.wait, FOREVER)

                await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()

        wakeups.notify(HINT)

        assert _kept(wakeups) <= 3
        assert await wakeups.wait(FOREVER) == HINT

    execute(loop, check)


@on_both_loops
def test_callers_that_come_and_go_are_forgotten(loop: str) -> None:
    async def check() -> None:
        wakeups = Wakeups()

        async with anyio.create_task_group() as group:
            for _ in range(5_000):
                group.start_soon(wakeups.wait, 0)

        for _ in range(5_000):
            wakeups.notify(HINT)

        assert _kept(wakeups) < 2_000

    execute(loop, check)


def _kept(wakeups: Wakeups) -> int:
    waiting = 0 if wakeups._arrival is None else wakeups._arrival.statistics().tasks_waiting
    return len(wakeups._hints) + len(wakeups._answered) + waiting


@on_both_loops
def test_close_ends_every_wait(loop: str) -> None:
    async def check() -> None:
        wakeups, ended = Wakeups(), []

        async def wait() -> None:
            with pytest.raises(BackendClosedError):
                await wakeups.wait(FOREVER)

            ended.append(1)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(wait)

            await settle_down()
            wakeups.close()

        assert len(ended) == 5

    execute(loop, check)


@on_both_loops
def test_wait_on_what_is_closed_ends_at_once(loop: str) -> None:
    async def check() -> None:
        wakeups = Wakeups()
        wakeups.notify(HINT)
        wakeups.close()
        wakeups.close()

        with pytest.raises(BackendClosedError):
            await wakeups.wait(FOREVER)

    execute(loop, check)


async def test_wait_cancelled_as_a_task_ends_cancelled() -> None:
    wakeups = Wakeups()
    waiting = asyncio.create_task(wakeups.wait(FOREVER))
    await settle_down()

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting


@on_both_loops
def test_no_caller_misses_a_hint_however_waits_and_hints_interleave(loop: str) -> None:
    """Each worker waits until it has seen the last hint; a missed one would hang it."""

    async def check() -> None:
        wakeups, posted = Wakeups(), []

        async def worker() -> None:
            seen = 0

            while seen < 200:
                seen = len(posted)  # the poll
                await anyio.lowlevel.checkpoint()

                if seen < 200:
                    await wakeups.wait(FOREVER)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(worker)

            for number in range(200):
                posted.append(number)
                wakeups.notify(HINT)

                for _ in range(number % 4):
                    await anyio.lowlevel.checkpoint()

    execute(loop, check)
