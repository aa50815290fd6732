"""Where a workflow stands: a small tree of positions, and the pure functions over it.

A leaf that carries its stamps was entered by an earlier write; one without them is entered by the
write that stores it. `next` positions are never stamped before they are entered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, TypeVar, assert_never

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from sayiir_persist.errors import InvalidArgumentError
from sayiir_persist.validation import (
    check_duration,
    check_id,
    check_instant,
    check_priority,
    check_tags,
    later,
)

INSTANCE_INPUT: Final = ""
"""For `input_from`: the instance's own input."""

MAX_DEPTH: Final = 128
"""How deep positions may nest, counted through branches and `next`s."""

MAX_NODES: Final = 10_000
"""How many positions one tree may hold, `next`s included."""


class ReadyReason(StrEnum):
    """Why a task is offered."""

    TASK = "task"
    RETRY = "retry"
    DELAY_ELAPSED = "delay_elapsed"
    EVENT = "event"
    SIGNAL_TIMEOUT = "signal_timeout"


class _TaskIdentity(Struct, frozen=True):
    task_id: str


class AtTask(_TaskIdentity, frozen=True, kw_only=True, tag="task", omit_defaults=True):
    """A task that may run: the only position that a worker can claim.

    Attributes:
        task_id: The node's id, unique in the whole tree.
        priority: 1 (first) to 5; `None`: the instance's.
        tags: What a worker must accept; `None`: the instance's.
        input_from: The node whose result is the input, or `INSTANCE_INPUT`. `None`: wired when
            the position is handed over (see `WorkflowSnapshot.complete_task`).
        ready_at: Since when it is ready; stamped by the store.
        reason: Why it is ready; stamped by the store.
        done: Its result is recorded, the position has not moved yet; stamped by the store.
    """

    priority: int | None = None
    tags: tuple[str, ...] | None = None
    input_from: str | None = None
    ready_at: datetime | None = None
    reason: ReadyReason | None = None
    done: bool = False

    @property
    def node_id(self) -> str:
        """The task's id, under the name that every position has."""
        return self.task_id


class _NodeIdentity(Struct, frozen=True):
    node_id: str


class AtDelay(_NodeIdentity, frozen=True, kw_only=True, tag="delay", omit_defaults=True):
    """Waits for a time: `wake_after` from entering it, or `wake_at`; exactly one is given.

    Attributes:
        node_id: The node's id, unique in the whole tree.
        wake_after: Counted from entering, on the store's clock.
        wake_at: An instant; the delay never ends before it is entered.
        next: What follows; `None` ends this branch or, at the root, the workflow.
        entered_at: Stamped by the store.
    """

    wake_after: timedelta | None = None
    wake_at: datetime | None = None
    next: Position | None = None
    entered_at: datetime | None = None

    def __post_init__(self) -> None:
        if (self.wake_after is None) == (self.wake_at is None):
            raise InvalidArgumentError("AtDelay takes exactly one of wake_after and wake_at")

        _check_wake(self)

    @property
    def ends_at(self) -> datetime | None:
        """When the delay ends; `None` before it is entered."""
        return _ends_at(self.entered_at, self.wake_after, self.wake_at)


class _SignalIdentity(_NodeIdentity, frozen=True):
    name: str


class AtSignal(_SignalIdentity, frozen=True, kw_only=True, tag="signal", omit_defaults=True):
    """Waits for the event `name` until it ends; with neither instant nor duration for ever.

    Attributes:
        node_id: The node's id, under which the event's payload is recorded.
        name: The event's name.
        wake_after: How long to wait, from entering; at most one of this and `wake_at`.
        wake_at: Until when to wait.
        next: What follows, whether the event came or not (see `WorkflowSnapshot.timed_out`).
        entered_at: Stamped by the store.
    """

    wake_after: timedelta | None = None
    wake_at: datetime | None = None
    next: Position | None = None
    entered_at: datetime | None = None

    def __post_init__(self) -> None:
        if self.wake_after is not None and self.wake_at is not None:
            raise InvalidArgumentError("AtSignal takes at most one of wake_after and wake_at")

        _check_wake(self)

    @property
    def ends_at(self) -> datetime | None:
        """When the wait ends without an event; `None`: never, or before it is entered."""
        return _ends_at(self.entered_at, self.wake_after, self.wake_at)


class _ForkIdentity(_NodeIdentity, frozen=True):
    branches: Mapping[str, Position | None]


class AtFork(_ForkIdentity, frozen=True, kw_only=True, tag="fork", omit_defaults=True):
    """Open branches, each at a position of its own; a branch that is `None` is done.

    When the last branch is done, `next` is entered; without `next` at the root the workflow
    completes with `b""`.

    Attributes:
        node_id: The node's id, unique in the whole tree.
        branches: At least one, by branch id.
        next: What follows once every branch is done.
        joined_at: The latest end of its done branches; stamped by the store.
    """

    next: Position | None = None
    joined_at: datetime | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.branches, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgumentError("AtFork takes a mapping of branches")

        if not self.branches:
            raise InvalidArgumentError("AtFork takes at least one branch")


class AtNode(_NodeIdentity, frozen=True, tag="node", omit_defaults=True):
    """A node that the runtime handles itself (a router, a child workflow). Never dispatched."""


Position = AtTask | AtDelay | AtSignal | AtFork | AtNode
Leaf = AtTask | AtDelay | AtSignal | AtNode
_Park = TypeVar("_Park", AtDelay, AtSignal)


def _check_wake(park: AtDelay | AtSignal) -> None:
    if park.wake_after is not None:
        check_duration("wake_after", park.wake_after)

    if park.wake_at is not None and getattr(park.wake_at, "tzinfo", None) is not UTC:
        force_setattr(park, "wake_at", check_instant("wake_at", park.wake_at))


def _ends_at(
    entered_at: datetime | None, wake_after: timedelta | None, wake_at: datetime | None
) -> datetime | None:
    if entered_at is None:
        return None

    if wake_after is not None:
        return later(entered_at, wake_after)

    return None if wake_at is None else max(wake_at, entered_at)


def leaves(position: Position | None) -> Iterator[Leaf]:
    """The open leaves, in tree order; `next`s are not open yet."""
    if isinstance(position, AtFork):
        for branch in position.branches.values():
            yield from leaves(branch)
    elif position is not None:
        yield position


def map_open(position: Position, change: Callable[[Leaf], Leaf]) -> Position:
    """The tree with every open leaf changed; the same object where nothing did."""
    if not isinstance(position, AtFork):
        return change(position)

    branches = {
        key: None if branch is None else map_open(branch, change)
        for key, branch in position.branches.items()
    }

    if all(branches[key] is branch for key, branch in position.branches.items()):
        return position

    return replace(position, branches=branches)


def stamp(position: Position, at: datetime) -> Position:
    """Stamp what a write at `at` entered, except tasks, whose stamps depend on their retries."""
    match position:
        case AtDelay() | AtSignal():
            return position if position.entered_at else replace(position, entered_at=at)
        case AtFork():
            return _stamp_fork(position, at)
        case AtTask() | AtNode():
            return position
        case _:
            assert_never(position)


def _stamp_fork(fork: AtFork, at: datetime) -> AtFork:
    branches = {
        key: None if branch is None else stamp(branch, at) for key, branch in fork.branches.items()
    }
    joined_at = fork.joined_at

    if joined_at is None and None in branches.values():
        joined_at = at

    if joined_at is fork.joined_at and all(
        branches[key] is branch for key, branch in fork.branches.items()
    ):
        return fork

    return replace(fork, branches=branches, joined_at=joined_at)


def unstamped(position: Position) -> Position:
    """The tree as if it had never been stored."""
    match position:
        case AtTask():
            return replace(position, ready_at=None, reason=None, done=False)
        case AtDelay() | AtSignal():
            return replace(position, entered_at=None)
        case AtFork():
            branches = {k: b and unstamped(b) for k, b in position.branches.items()}
            return replace(position, branches=branches, joined_at=None)
        case AtNode():
            return position
        case _:
            assert_never(position)


def wired(position: Position | None, source: str | None) -> Position | None:
    """Give every leaf without `input_from` the node whose result it gets.

    That is `source`; after a wait the node of the wait; after a fork none. What carries stamps was
    wired when it was entered.
    """
    match position:
        case None | AtNode():
            return position
        case AtTask():
            if source is None or position.input_from is not None or position.ready_at is not None:
                return position

            return replace(position, input_from=source)
        case AtDelay():
            if position.entered_at is not None:
                return position

            return _with_next(position, wired(position.next, source))
        case AtSignal():
            if position.entered_at is not None:
                return position

            return _with_next(position, wired(position.next, position.node_id))
        case AtFork():
            branches = {key: wired(branch, source) for key, branch in position.branches.items()}
            return replace(position, branches=branches, next=wired(position.next, None))
        case _:
            assert_never(position)


def _with_next(position: _Park, following: Position | None) -> _Park:
    return position if following is position.next else replace(position, next=following)


def entered(position: Position | None) -> Position | None:
    """What is entered when this position is: a fork without open branches is its `next`."""
    if not isinstance(position, AtFork):
        return position

    branches = {key: entered(branch) for key, branch in position.branches.items()}

    if not any(branches.values()):
        return entered(position.next)

    if all(branches[key] is branch for key, branch in position.branches.items()):
        return position

    return replace(position, branches=branches)


Enter = Callable[[Position, datetime | None], Position]


def replace_leaf(
    position: Position,
    node_id: str,
    following: Position | None,
    *,
    ended_at: datetime | None = None,
    enter: Enter | None = None,
) -> Position | None:
    """Put `following` in the place of an open leaf, wherever it stands; `None` ends its branch.

    The last branch to end enters the fork's `next`. A branch that ends by the write itself has no
    instant yet; one that ended at a known instant has `ended_at`, and `enter` stamps what is
    entered then.
    """
    new = _replaced(position, node_id, following, ended_at, enter)
    return new[0] if new else position


def _replaced(
    position: Position,
    node_id: str,
    following: Position | None,
    ended_at: datetime | None,
    enter: Enter | None,
) -> tuple[Position | None, datetime | None] | None:
    """The new tree and the instant of its end if it is `None`; nothing if the leaf is elsewhere."""
    if not isinstance(position, AtFork):
        if position.node_id != node_id:
            return None

        new = entered(following)
        return (enter(new, ended_at) if new and enter else new), ended_at

    for key, branch in position.branches.items():
        if branch is None or not (found := _replaced(branch, node_id, following, ended_at, enter)):
            continue

        new_branch, branch_end = found
        branches = {**position.branches, key: new_branch}

        if new_branch is not None:
            return replace(position, branches=branches), None

        joined_at = branch_end and max(branch_end, position.joined_at or branch_end)

        if any(branches.values()):
            return replace(position, branches=branches, joined_at=joined_at), None

        new = entered(position.next)
        return (enter(new, joined_at) if new and enter else new), joined_at

    return None


def check_tree(position: Position) -> None:
    """Refuse a tree whose ids, tags or priorities break a limit, or repeat a node id."""
    if isinstance(position, AtTask):  # most trees
        check_id("task_id", position.task_id)
        _check_node(position)
        return

    seen: set[str] = set()
    stack: list[tuple[Position, int]] = [(position, 1)]

    while stack:
        node, depth = stack.pop()

        if not isinstance(node, Position):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgumentError(f"a position must be an At..., not {type(node).__name__}")

        if depth > MAX_DEPTH or len(seen) >= MAX_NODES:
            raise InvalidArgumentError(
                f"a position may nest {MAX_DEPTH} deep and hold {MAX_NODES} nodes"
            )

        check_id("task_id" if isinstance(node, AtTask) else "node_id", node.node_id)

        if node.node_id in seen:
            raise InvalidArgumentError(f"node id {node.node_id!r} stands twice in the tree")

        seen.add(node.node_id)
        stack.extend((child, depth + 1) for child in _check_node(node))


def _check_node(node: Position) -> Sequence[Position]:
    match node:
        case AtTask():
            if node.priority is not None:
                check_priority("priority", node.priority)

            if node.tags is not None:
                check_tags("tags", node.tags)

            if node.input_from:
                check_id("input_from", node.input_from)

            return ()
        case AtNode():
            return ()
        case AtDelay():
            return () if node.next is None else (node.next,)
        case AtSignal():
            check_id("event name", node.name)
            return () if node.next is None else (node.next,)
        case AtFork():
            for branch_id in node.branches:
                check_id("branch id", branch_id)

            return [it for it in (*node.branches.values(), node.next) if it is not None]
        case _:
            assert_never(node)
