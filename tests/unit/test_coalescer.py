"""Group commit: alone at once, under load together, and nobody pays for a neighbour."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from unit.loops import execute, on_both_loops, settle_down

from sayiir_persist.background import Background
from sayiir_persist.coalescer import MAX_BATCH, Coalescer
from sayiir_persist.driver import Answer, Unit
from sayiir_persist.errors import BackendUnavailableError, OutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Store:
    """A driver's `apply` that waits at a gate and keeps what came together."""

    def __init__(self, *, writers: int = 1) -> None:
        self.batches: list[list[str]] = []
        self.tasks: list[int] = []
        self.gate = anyio.Event()
        self.failure: Exception | None = None
        self.background = Background()
        self.coalescer = Coalescer(self.apply, self.background, writers=writers)

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        self.batches.append([label(it) for it in units])
        self.tasks.append(anyio.get_current_task().id)
        await self.gate.wait()

        if self.failure is not None:
            raise self.failure

        return [Answer(now=int(it.pop or 0), refused=None, facts=None) for it in units]

    async def write(self, name: str) -> int:
        """Submit a write, named by its instance and a number: "a1"."""
        answer = await self.coalescer.submit(Unit(instance_id=name[0], pop=name[1:] or None))
        return answer.now

    def open_gate(self) -> None:
        """Let everything that is on its way through, but nothing that follows."""
        gate, self.gate = self.gate, anyio.Event()
        gate.set()


def label(unit: Unit) -> str:
    return unit.instance_id + (unit.pop or "")


@on_both_loops
def test_write_that_is_alone_goes_out_at_once_in_its_own_task(loop: str) -> None:
    async def check() -> None:
        store = Store()
        store.gate.set()

        assert await store.write("a7") == 7
        assert await store.write("b8") == 8

        assert store.batches == [["a7"], ["b8"]]
        assert store.tasks == [anyio.get_current_task().id] * 2

    execute(loop, check)


@on_both_loops
def test_writes_gather_while_the_writer_is_busy(loop: str) -> None:
    async def check() -> None:
        store, answers = Store(), {}

        async def write(name: str) -> None:
            answers[name] = await store.write(name)

        async with anyio.create_task_group() as group:
            for name in ("a1", "b2", "c3", "d4"):
                group.start_soon(write, name)
                await settle_down()

            assert store.batches == [["a1"]]
            store.open_gate()
            await settle_down()
            assert store.batches == [["a1"], ["b2", "c3", "d4"]]
            store.open_gate()

        assert answers == {"a1": 1, "b2": 2, "c3": 3, "d4": 4}

    execute(loop, check)


@on_both_loops
def test_at_most_one_write_of_an_instance_goes_out_and_they_keep_their_order(loop: str) -> None:
    async def check() -> None:
        store = Store()

        async with anyio.create_task_group() as group:
            for name in ("x0", "a1", "b1", "a2", "c1", "a3", "b2"):
                group.start_soon(store.write, name)
                await settle_down()

            for _ in range(4):
                store.open_gate()
                await settle_down()

        assert store.batches == [["x0"], ["a1", "b1", "c1"], ["a2", "b2"], ["a3"]]

    execute(loop, check)


@on_both_loops
def test_write_waits_for_one_of_its_instance_that_is_on_its_way(loop: str) -> None:
    async def check() -> None:
        store = Store()

        async with anyio.create_task_group() as group:
            for name in ("a1", "a2", "b1"):
                group.start_soon(store.write, name)
                await settle_down()

            store.open_gate()
            await settle_down()
            store.open_gate()

        assert store.batches == [["a1"], ["a2", "b1"]]

    execute(loop, check)


def test_callers_that_go_on_with_another_write_stay_together() -> None:
    async def check() -> None:
        store = Store()

        async def write_twice(instance: str) -> None:
            await store.write(f"{instance}1")
            await store.write(f"{instance}2")

        async with anyio.create_task_group() as group:
            group.start_soon(store.write, "x0")
            await settle_down()

            for instance in "abc":
                group.start_soon(write_twice, instance)

            for _ in range(3):
                await settle_down()
                store.open_gate()

        assert store.batches == [["x0"], ["a1", "b1", "c1"], ["a2", "b2", "c2"]]

    execute("asyncio", check)  # trio runs what is ready in an order of its own


@on_both_loops
def test_several_writers_share_what_waits(loop: str) -> None:
    async def check() -> None:
        store = Store(writers=2)

        async with anyio.create_task_group() as group:
            for name in ("a1", "b1", "c1", "d1", "e1", "f1", "g1", "h1"):
                group.start_soon(store.write, name)
                await settle_down()

            for _ in range(2):
                store.open_gate()
                await settle_down()

        assert store.batches[:2] == [["a1"], ["b1"]]
        assert sorted(len(batch) for batch in store.batches[2:]) == [2, 4]

    execute(loop, check)


@on_both_loops
def test_batch_has_a_largest_size(loop: str) -> None:
    async def check() -> None:
        store = Store()
        answered = []

        async def write(number: int) -> None:
            unit = Unit(instance_id=f"run{number}", pop=str(number))
            answered.append((await store.coalescer.submit(unit)).now)

        async with anyio.create_task_group() as group:
            for number in range(MAX_BATCH + 11):
                group.start_soon(write, number)

            await settle_down()
            for _ in range(3):
                store.open_gate()
                await settle_down()

        assert [len(batch) for batch in store.batches] == [1, MAX_BATCH, 10]
        assert sorted(answered) == list(range(MAX_BATCH + 11))

    execute(loop, check)


@on_both_loops
def test_several_writers_are_busy_before_anything_gathers(loop: str) -> None:
    async def check() -> None:
        store = Store(writers=2)

        async with anyio.create_task_group() as group:
            for name in ("a1", "b1", "c1", "d1"):
                group.start_soon(store.write, name)
                await settle_down()

            assert store.batches == [["a1"], ["b1"]]
            store.open_gate()
            await settle_down()
            assert store.batches == [["a1"], ["b1"], ["c1", "d1"]]
            store.open_gate()

    execute(loop, check)


@on_both_loops
def test_write_in_line_for_its_instance_does_not_hold_up_an_idle_writer(loop: str) -> None:
    async def check() -> None:
        store = Store(writers=2)

        async with anyio.create_task_group() as group:
            for name in ("a1", "a2", "b1"):
                group.start_soon(store.write, name)
                await settle_down()

            seen = list(store.batches)
            for _ in range(3):
                store.open_gate()
                await settle_down()

        assert seen == [["a1"], ["b1"]]

    execute(loop, check)


@on_both_loops
def test_failing_batch_reports_to_everybody_in_it_and_to_nobody_else(loop: str) -> None:
    async def check() -> None:
        store, outcomes = Store(), {}
        broken = BackendUnavailableError("no answer")

        async def write(name: str) -> None:
            try:
                outcomes[name] = await store.write(name)
            except BackendUnavailableError as error:
                outcomes[name] = error

        async with anyio.create_task_group() as group:
            for name in ("a1", "b2", "c3"):
                group.start_soon(write, name)
                await settle_down()

            store.open_gate()
            await settle_down()
            store.failure = broken
            store.open_gate()
            await settle_down()
            store.failure = None
            store.gate.set()
            await write("d4")

        assert outcomes == {"a1": 1, "b2": broken, "c3": broken, "d4": 4}

    execute(loop, check)


@on_both_loops
def test_failure_of_a_write_that_is_alone_frees_the_writer(loop: str) -> None:
    async def check() -> None:
        store = Store()
        store.gate.set()
        store.failure = BackendUnavailableError("no answer")

        with pytest.raises(BackendUnavailableError):
            await store.write("a1")

        store.failure = None
        assert await store.write("a2") == 2

    execute(loop, check)


@on_both_loops
def test_write_that_waits_is_withdrawn_with_its_caller(loop: str) -> None:
    async def check() -> None:
        store = Store()
        scope = anyio.CancelScope()

        async def cancelled() -> None:
            with scope:
                await store.write("b2")

        async with anyio.create_task_group() as group:
            group.start_soon(store.write, "a1")
            await settle_down()
            group.start_soon(cancelled)
            await settle_down()
            group.start_soon(store.write, "c3")
            await settle_down()
            scope.cancel()
            await settle_down()
            store.open_gate()
            await settle_down()
            store.open_gate()

        assert scope.cancelled_caught
        assert store.batches == [["a1"], ["c3"]]

    execute(loop, check)


@on_both_loops
def test_write_that_is_on_its_way_with_others_lands_without_its_caller(loop: str) -> None:
    async def check() -> None:
        store, answers = Store(), {}
        scope = anyio.CancelScope()

        async def write(name: str) -> None:
            answers[name] = await store.write(name)

        async def cancelled() -> None:
            with scope:
                await write("b2")

        async with anyio.create_task_group() as group:
            group.start_soon(write, "a1")
            await settle_down()
            group.start_soon(cancelled)
            await settle_down()
            group.start_soon(write, "c3")
            await settle_down()
            store.open_gate()
            await settle_down()
            scope.cancel()
            await settle_down()
            group.start_soon(write, "b4")
            await settle_down()
            store.open_gate()
            await settle_down()
            store.open_gate()

        assert scope.cancelled_caught
        assert store.batches == [["a1"], ["b2", "c3"], ["b4"]]
        assert answers == {"a1": 1, "c3": 3, "b4": 4}

    execute(loop, check)


@on_both_loops
def test_cancelled_leader_harms_nobody_behind_it(loop: str) -> None:
    async def check() -> None:
        store, answers = Store(), {}
        scope = anyio.CancelScope()

        async def write(name: str) -> None:
            answers[name] = await store.write(name)

        async def leader() -> None:
            with scope:
                await write("a1")

        async with anyio.create_task_group() as group:
            group.start_soon(leader)
            await settle_down()
            for name in ("a2", "b3"):
                group.start_soon(write, name)
                await settle_down()

            scope.cancel()
            await settle_down()
            store.open_gate()

        assert scope.cancelled_caught
        assert store.batches == [["a1"], ["a2", "b3"]]
        assert answers == {"a2": 2, "b3": 3}

    execute(loop, check)


async def test_leader_cancelled_as_a_task_harms_nobody_behind_it() -> None:
    store = Store()
    leader = asyncio.create_task(store.write("a1"))
    await settle_down()
    followers = [asyncio.create_task(store.write(name)) for name in ("a2", "b3")]
    await settle_down()

    leader.cancel()
    await settle_down()
    store.open_gate()

    assert await asyncio.gather(*followers) == [2, 3]
    assert leader.cancelled()


async def test_waiting_write_cancelled_as_a_task_is_withdrawn() -> None:
    store = Store()
    leader = asyncio.create_task(store.write("a1"))
    await settle_down()
    follower = asyncio.create_task(store.write("b2"))
    await settle_down()

    follower.cancel()
    await settle_down()
    store.gate.set()

    assert await leader == 1
    assert follower.cancelled()
    assert store.batches == [["a1"]]
    assert await store.write("c3") == 3


async def test_batch_that_was_interrupted_leaves_the_outcome_open() -> None:
    store = Store()
    leader = asyncio.create_task(store.write("a1"))
    await settle_down()
    follower = asyncio.create_task(store.write("b2"))
    await settle_down()
    store.open_gate()
    await settle_down()

    [together] = store.background._tasks
    together.cancel()

    with pytest.raises(OutcomeUnknownError, match="may have been applied"):
        await follower

    assert await leader == 1


@on_both_loops
def test_everything_is_written_once_under_any_load(loop: str) -> None:
    async def check() -> None:
        store = Store(writers=2)
        answered: list[tuple[str, int]] = []

        async def write(instance_id: str, number: int) -> None:
            answered.append((instance_id, await store.write(f"{instance_id}{number}")))

        async with anyio.create_task_group() as group:
            for number in range(20):
                for instance_id in "abcde":
                    group.start_soon(write, instance_id, number)

            while len(answered) < 100:
                store.open_gate()
                await settle_down()

        flat = [name for batch in store.batches for name in batch]
        assert len(flat) == len(set(flat)) == 100
        for instance_id in "abcde":
            ours = [int(name[1:]) for name in flat if name[0] == instance_id]
            theirs = [number for name, number in answered if name == instance_id]
            assert sorted(ours) == list(range(20))
            assert ours == theirs

        for batch in store.batches:
            assert len({name[0] for name in batch}) == len(batch)

    execute(loop, check)
