"""Random position trees and random lives of a workflow, and a store's part in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import assume
from hypothesis import strategies as st
from msgspec.structs import replace

from sayiir_persist.dispatch import project, settle
from sayiir_persist.positions import (
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    Position,
    leaves,
)
from sayiir_persist.snapshot import RetryPolicy, Status, WorkflowSnapshot, marked_done, stamped
from sayiir_persist.validation import to_micros

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sayiir_persist.dispatch import Entry

T0 = datetime(2026, 1, 1, tzinfo=UTC)
"""When the first write of every test happens."""

KINDS = ("task", "task", "delay", "signal", "fork", "node")
EVENTS = ("go", "stop")


def us(micros: int) -> timedelta:
    return timedelta(microseconds=micros)


def at(micros: int) -> datetime:
    """That many microseconds after `T0`."""
    return T0 + us(micros)


def run(start_at: str | Position = "first", **fields: object) -> WorkflowSnapshot:
    return replace(WorkflowSnapshot.start("run", "v1", start_at=start_at), **fields)


def stored(snapshot: WorkflowSnapshot, now: datetime = T0) -> WorkflowSnapshot:
    """What a store returns that has written `snapshot` at `now`."""
    done = frozenset(task.task_id for task in snapshot.ready_tasks() if task.done)
    written = replace(
        snapshot,
        version=snapshot.version + 1,
        incarnation=snapshot.incarnation or "first",
        created_at=snapshot.created_at or now,
        updated_at=now,
        results=snapshot.results.saved(),
    )
    return stamped(written, now, status_since=snapshot.status_since or now, done=done)


def recorded(snapshot: WorkflowSnapshot, task_id: str) -> WorkflowSnapshot:
    """The snapshot as it reads after `save_task_result` of a ready task."""
    return marked_done(snapshot.record_result(task_id, b"saved"), task_id)


def without_history(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
    """The snapshot without what tells in which order its results came."""
    return replace(snapshot, last_completed_task_id=None)


def dues(snapshot: WorkflowSnapshot, now: datetime) -> list[tuple[Entry, int | None]]:
    """The entries that a write of `snapshot` at `now` indexes, each with its instant."""
    resolved = to_micros(now)
    return [(entry, entry.due.resolve(resolved)) for entry in project(snapshot).entries]


def shape(position: Position | None) -> list[str]:
    """The ids of the open leaves."""
    return [leaf.node_id for leaf in leaves(position)]


def nodes(position: Position | None) -> Iterator[Position]:
    """Every position of the tree, `next`s included."""
    if position is None:
        return

    yield position

    if isinstance(position, AtFork):
        for branch in position.branches.values():
            yield from nodes(branch)

    if isinstance(position, AtDelay | AtSignal | AtFork):
        yield from nodes(position.next)


@st.composite
def positions(
    draw: st.DrawFn,
    *,
    prefix: str = "n",
    kinds: tuple[str, ...] = KINDS,
    size: int = 8,
    none_branches: bool = True,
) -> Position:
    """A tree of at most `size` positions with ids of its own."""
    tags = st.none() | st.sampled_from([(), ("gpu",), ("gpu", "eu")])
    inner = tuple(kind for kind in kinds if kind in {"task", "node"}) or kinds
    count = 0

    def grow(depth: int) -> Position:
        nonlocal count
        count += 1
        node_id = f"{prefix}{count}"
        kind = draw(st.sampled_from(kinds if count < size and depth < 4 else inner))

        match kind:
            case "task":
                return AtTask(
                    node_id,
                    priority=draw(st.none() | st.integers(1, 5)),
                    tags=draw(tags),
                    input_from=draw(st.sampled_from([None, None, "", "elsewhere"])),
                )
            case "delay":
                return AtDelay(node_id, **draw(wakes()), next=follow(depth))
            case "signal":
                wake = draw(st.just({}) | wakes())
                return AtSignal(node_id, draw(st.sampled_from(EVENTS)), **wake, next=follow(depth))
            case "fork":
                branches = {
                    key: None if none_branches and draw(st.integers(0, 5)) == 5 else grow(depth + 1)
                    for key in "abc"[: draw(st.integers(1, 3))]
                }
                return AtFork(node_id, branches, next=follow(depth))
            case _:
                return AtNode(node_id)

    def follow(depth: int) -> Position | None:
        return grow(depth + 1) if count < size and draw(st.booleans()) else None

    return grow(0)


def wakes() -> st.SearchStrategy[dict[str, object]]:
    after = st.integers(0, 20).map(lambda micros: {"wake_after": us(micros)})
    until = st.integers(-5, 40).map(lambda micros: {"wake_at": at(micros)})
    return after | until


def heads() -> st.SearchStrategy[Mapping[str, datetime]]:
    """When the oldest queued events arrived."""
    return st.dictionaries(st.sampled_from(EVENTS), st.integers(-5, 60).map(at))


class Write(NamedTuple):
    """A write that is about to happen."""

    snapshot: WorkflowSnapshot
    at: datetime


@st.composite
def lives(
    draw: st.DrawFn, *, kinds: tuple[str, ...] = KINDS, steps: int = 5, open_only: bool = False
) -> Write:
    """The last write of a random life: transitions on what was read, written a little later."""
    now, write = T0, Write(run(draw(positions(kinds=kinds))), T0)
    assume(not (open_only and write.snapshot.status.is_terminal))

    for step in range(draw(st.integers(0, steps))):
        now += us(draw(st.integers(0, 15)))
        read = settle(stored(*write), now)

        if read.status.is_terminal:
            break

        following = _transition(draw, read, f"s{step}.", kinds)

        if open_only and following.status.is_terminal:
            break

        now += us(draw(st.integers(0, 3)))
        write = Write(following, now)

    return write


def _transition(
    draw: st.DrawFn, read: WorkflowSnapshot, prefix: str, kinds: tuple[str, ...]
) -> WorkflowSnapshot:
    ready = [task.task_id for task in read.ready_tasks()]
    choices = ["record", "count", "deadline", "move"]
    choices += ["pause"] if read.status is Status.IN_PROGRESS else ["unpause"]
    choices += ["complete", "fail", "done"] * 3 + ["forget"] if ready else []
    choices += ["park"] * 3 if read.retries else []
    task_id = draw(st.sampled_from(ready)) if ready else ""

    match draw(st.sampled_from(choices)):
        case "complete":
            following = draw(st.none() | positions(prefix=prefix, kinds=kinds, size=4))
            return read.complete_task(task_id, b"out", next=following)
        case "fail":
            policy = RetryPolicy(draw(st.sampled_from([3, 3, 3, 0])), us(draw(st.integers(0, 20))))
            return read.record_failure(task_id, policy, error="no", worker_id="w1")
        case "done":
            return recorded(read, task_id)
        case "forget":
            return read.forget(task_id)
        case "park":
            failed = AtTask(draw(st.sampled_from(sorted(read.retries))))
            return read.move_to(AtDelay(f"{prefix}park", **draw(wakes()), next=failed))
        case "move":
            return read.move_to(draw(positions(prefix=prefix, kinds=kinds, size=5)))
        case "pause":
            return read.pause()
        case "unpause":
            return read.unpause()
        case "count":
            return read.count_iteration("loop")
        case "deadline":
            return read.with_deadline(at(100))
        case _:
            return read.record_result("elsewhere", b"noted")
