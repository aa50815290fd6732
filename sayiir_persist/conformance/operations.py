"""Every public operation of a backend, by name, as a call on one instance."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec.structs import replace

from sayiir_persist import PersistentBackend, SignalKind, TaskClaim, WorkflowSnapshot

Operation = Callable[[PersistentBackend, str], Awaitable[object]]

_TTL: Final = timedelta(minutes=1)


def _snapshot(instance_id: str, version: int = 0) -> WorkflowSnapshot:
    snapshot = WorkflowSnapshot.start("placeholder", "v1", start_at="charge")
    return replace(snapshot, instance_id=instance_id, version=version)


def _claim(instance_id: str) -> TaskClaim:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return TaskClaim(
        instance_id, "charge", "worker", fence=1, claimed_at=now, expires_at=None, nonce="n-1"
    )


INSTANCE_OPERATIONS: Final[Mapping[str, Operation]] = {
    "start_instance": lambda backend, id: backend.start_instance(id, "v1", start_at="charge"),
    "save_snapshot": lambda backend, id: backend.save_snapshot(_snapshot(id)),
    "save_snapshot of a version": lambda backend, id: backend.save_snapshot(_snapshot(id, 1)),
    "save_snapshot with overwrite": lambda backend, id: backend.save_snapshot(
        _snapshot(id), overwrite=True
    ),
    "update_snapshot": lambda backend, id: backend.update_snapshot(id, lambda found: found),
    "save_task_result": lambda backend, id: backend.save_task_result(id, "charge", b"x"),
    "load_snapshot": lambda backend, id: backend.load_snapshot(id),
    "load_task_result": lambda backend, id: backend.load_task_result(id, "charge"),
    "delete_snapshot": lambda backend, id: backend.delete_snapshot(id),
    "claim_task": lambda backend, id: backend.claim_task(
        id, "charge", worker_id="worker", ttl=_TTL
    ),
    "extend_task_claim": lambda backend, id: backend.extend_task_claim(_claim(id), ttl=_TTL),
    "release_task_claim": lambda backend, id: backend.release_task_claim(_claim(id)),
    "revoke_task_claim": lambda backend, id: backend.revoke_task_claim(id, "charge"),
    "commit_task of a snapshot": lambda backend, id: backend.commit_task(
        _claim(id), _snapshot(id, 1)
    ),
    "commit_task of a change": lambda backend, id: backend.commit_task(
        _claim(id), lambda found: found
    ),
    "store_signal": lambda backend, id: backend.store_signal(id, SignalKind.PAUSE),
    "get_signal": lambda backend, id: backend.get_signal(id, SignalKind.PAUSE),
    "clear_signal": lambda backend, id: backend.clear_signal(id, SignalKind.PAUSE),
    "request_signal": lambda backend, id: backend.request_signal(id, SignalKind.PAUSE),
    "check_and_cancel": lambda backend, id: backend.check_and_cancel(id),
    "check_and_pause": lambda backend, id: backend.check_and_pause(id),
    "check_control_signals": lambda backend, id: backend.check_control_signals(id),
    "unpause": lambda backend, id: backend.unpause(id),
    "send_event": lambda backend, id: backend.send_event(id, "paid", b"x"),
    "consume_event": lambda backend, id: backend.consume_event(id, "paid"),
    "drain_signal": lambda backend, id: backend.drain_signal(id),
}
"""What is done to one instance."""

STORE_OPERATIONS: Final[Mapping[str, Operation]] = {
    "list_snapshots": lambda backend, _: backend.list_snapshots(),
    "acquire_tasks": lambda backend, _: backend.acquire_tasks(worker_id="worker", ttl=_TTL),
    "find_available_tasks": lambda backend, _: backend.find_available_tasks(worker_id="worker"),
    "find_stalled": lambda backend, _: backend.find_stalled(idle_for=timedelta(0)),
    "sweep": lambda backend, _: backend.sweep(),
    "now": lambda backend, _: backend.now(),
}
"""What is done to the whole namespace; the id is not used."""
