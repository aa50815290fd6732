"""A shelf in memory, and units and contents in one line, for the tests of `carry_out`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sayiir_persist.aggregate import Aggregate, Outcome, carry_out
from sayiir_persist.dispatch import project
from sayiir_persist.driver import (
    ClaimRecord,
    Content,
    Guard,
    Head,
    Presence,
    SignalMark,
    Unit,
)
from sayiir_persist.snapshot import WorkflowSnapshot

if TYPE_CHECKING:
    from collections.abc import Collection

    from sayiir_persist.positions import Position
    from sayiir_persist.signals import SignalKind

NOW = 1_000


class MemoryShelf:
    """What lies beside one instance, kept in plain containers."""

    def __init__(self) -> None:
        self.given: bytes | None = None
        self.kept: dict[str, bytes] = {}
        self.queue: list[tuple[str, Head]] = []
        self.event_ids: set[tuple[str, str]] = set()
        self.fence = 0
        self.numbers = 0

    def state(self) -> tuple[object, ...]:
        """Everything, to be compared before and after."""
        return (
            self.given, dict(self.kept), list(self.queue), set(self.event_ids), self.fence,
        )  # fmt: skip

    def input(self) -> bytes | None:
        return self.given

    def set_input(self, data: bytes | None) -> None:
        self.given = data

    def result(self, node_id: str) -> bytes | None:
        return self.kept.get(node_id)

    def results(self) -> dict[str, bytes]:
        return dict(self.kept)

    def put_result(self, node_id: str, output: bytes) -> None:
        self.kept[node_id] = output

    def drop_results(self, node_ids: Collection[str] | None) -> None:
        for node_id in list(self.kept) if node_ids is None else node_ids:
            self.kept.pop(node_id, None)

    def head(self, name: str, *, payload: bool = False) -> Head | None:
        found = next((head for queued, head in self.queue if queued == name), None)
        return found if found is None or payload else Head(found.number, found.arrived_at)

    def names(self) -> Collection[str]:
        return {name for name, _ in self.queue}

    def queued(self) -> int:
        return len(self.queue)

    def push(self, name: str, payload: bytes, now: int) -> None:
        self.numbers += 1
        self.queue.append((name, Head(self.numbers, now, payload)))

    def pop(self, name: str) -> bytes | None:
        for at, (queued, head) in enumerate(self.queue):
            if queued == name:
                del self.queue[at]
                return head.payload

        return None

    def remembers(self, name: str, event_id: str) -> bool:
        return (name, event_id) in self.event_ids

    def remember(self, name: str, event_id: str, now: int) -> None:
        del now
        self.event_ids.add((name, event_id))

    def next_fence(self) -> int:
        self.fence += 1
        return self.fence

    def clear(self) -> None:
        self.given = None
        self.kept.clear()
        self.queue.clear()
        self.event_ids.clear()


def content(snapshot: WorkflowSnapshot, **fields: Any) -> Content:
    """What a write of this snapshot carries."""
    projection = project(snapshot)
    gained, dropped = snapshot.results.delta()
    given = {
        "body": b"body",
        "status": projection.status,
        "status_is_new": snapshot.version > 0 and snapshot.status_since is None,
        "definition_hash": snapshot.definition_hash,
        "priority": snapshot.priority,
        "tags": snapshot.tags,
        "last_completed": snapshot.last_completed_task_id,
        "entries": projection.entries,
        "idle": projection.idle,
        "input": snapshot.input,
        "gained": gained,
        "dropped": dropped,
        **fields,
    }
    return Content(**given)


def start(position: str | Position = "a", **fields: Any) -> Content:
    return content(WorkflowSnapshot.start("run", "v1", start_at=position, **fields))


def unit(guard: Guard | None = None, **fields: Any) -> Unit:
    return Unit(instance_id="run", guard=guard or Guard(), **fields)


def created(
    shelf: MemoryShelf, position: str | Position = "a", *, now: int = NOW, **fields: Any
) -> Aggregate:
    """An instance that was just started."""
    outcome = carry_out(None, creation(position, **fields), shelf, now)
    assert outcome.aggregate is not None

    return outcome.aggregate


def creation(position: str | Position = "a", **fields: Any) -> Unit:
    return unit(Guard(presence=Presence.ABSENT), create="one", content=start(position, **fields))


def claimed(
    aggregate: Aggregate,
    task_id: str = "a",
    *,
    fence: int = 7,
    until: int | None = NOW + 100,
    worker_id: str = "w1",
) -> ClaimRecord:
    """Put a claim on record."""
    record = ClaimRecord(
        task_id=task_id,
        worker_id=worker_id,
        fence=fence,
        claimed_at=NOW,
        expires_at=until,
        nonce="n",
    )
    aggregate.claims[task_id] = record
    return record


def mark(kind: SignalKind, at: int = NOW) -> SignalMark:
    return SignalMark(kind, None, None, at)


def done(outcome: Outcome) -> Aggregate:
    """The instance after a write that was accepted."""
    assert outcome.answer.refused is None
    assert outcome.aggregate is not None

    return outcome.aggregate
