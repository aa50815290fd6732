"""The public API, written down: names, parameters, defaults, and the strings on disk."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_overloads

import msgspec
import pytest
from msgspec import Struct
from unit.test_errors import TREE as ERRORS

import sayiir_persist
from sayiir_persist.dispatch import EntryKind
from sayiir_persist.leases import keep_claim

if TYPE_CHECKING:
    from enum import StrEnum

NAMES = {
    *ERRORS,
    # positions and states
    "AtDelay", "AtFork", "AtNode", "AtSignal", "AtTask", "INSTANCE_INPUT", "Position",
    "Cancelled", "Completed", "Failed", "InProgress", "Paused", "State", "Status",
    # snapshots
    "Change", "ConflictPolicy", "Results", "RetryPolicy", "RetryState", "SnapshotInfo",
    "StartOutcome", "WorkflowSnapshot",
    # claims, dispatch, signals
    "AcquiredTask", "AvailableTask", "Commit", "ReadyReason", "SignalKind", "SignalRequest",
    "SweepReport", "TaskClaim", "WakeHint",
    # protocols
    "BackendInfo", "Limits", "PersistentBackend", "SignalStore", "SnapshotStore",
    "TaskClaimStore", "WakeupSource",
    # entering, codecs
    "connect", "MemoryBackend", "MemoryStore", "SqliteBackend",
    "Codec", "JsonCodec", "MsgpackCodec", "register_codec",
}  # fmt: skip

STRUCTS = {
    "AtTask": "(task_id, *, priority=None, tags=None, input_from=None, ready_at=None,"
    " reason=None, done=False)",
    "AtDelay": "(node_id, *, wake_after=None, wake_at=None, next=None, entered_at=None)",
    "AtSignal": "(node_id, name, *, wake_after=None, wake_at=None, next=None, entered_at=None)",
    "AtFork": "(node_id, branches, *, next=None, joined_at=None)",
    "AtNode": "(node_id)",
    "InProgress": "(position)",
    "Paused": "(position, *, reason=None, requested_by=None)",
    "Completed": "(output)",
    "Failed": "(error)",
    "Cancelled": "(*, reason=None, requested_by=None, interrupted_at_task=None)",
    "RetryPolicy": "(max_retries, initial_delay, multiplier=2.0, max_delay=None)",
    "RetryState": "(attempts, *, last_error=None, last_worker=None, retry_after=None,"
    " retry_at=None)",
    "WorkflowSnapshot": "(instance_id, definition_hash, state, *, input=None, results=<factory>,"
    " last_completed_task_id=None, retries=<factory>, timed_out=frozenset(),"
    " loop_iterations=<factory>, deadline=None, priority=3, tags=(), trace_parent=None,"
    " version=0, incarnation='', created_at=None, updated_at=None, status_since=None)",
    "SnapshotInfo": "(instance_id, definition_hash, status, version, created_at, updated_at,"
    " status_since, priority, tags)",
    "StartOutcome": "(snapshot, created)",
    "TaskClaim": "(instance_id, task_id, worker_id, *, fence, claimed_at, expires_at, nonce,"
    " worker_tags=(), pending_signal=None)",
    "AvailableTask": "(*, instance_id, task_id, definition_hash, reason, attempt, input,"
    " trace_parent, snapshot)",
    "AcquiredTask": "(*, instance_id, task_id, definition_hash, reason, attempt, input,"
    " trace_parent, snapshot, claim)",
    "Commit": "(snapshot, next)",
    "SweepReport": "(cancelled, paused, advanced, purged_claims, more)",
    "WakeHint": "(*, instance_id=None, task_id=None, definition_hash=None, tags=None)",
    "SignalRequest": "(*, reason=None, requested_by=None, requested_at=None)",
    "Limits": "(*, max_payload, max_queued_events)",
    "BackendInfo": "(*, name, namespace, server, codec, limits, caveats)",
}
"""What builds each value: identity first, the rest by name."""

METHODS = {
    "SnapshotStore.start_instance": "(self, instance_id, definition_hash, *, start_at, input=None,"
    " priority=3, tags=(), trace_parent=None, on_conflict=<ConflictPolicy.FAIL: 'fail'>)",
    "SnapshotStore.save_snapshot": "(self, snapshot, *, overwrite=False)",
    "SnapshotStore.update_snapshot": "(self, instance_id, change, *, claim=None)",
    "SnapshotStore.save_task_result": "(self, instance_id, task_id, output, *, claim=None)",
    "SnapshotStore.load_snapshot": "(self, instance_id, *, results=True)",
    "SnapshotStore.load_task_result": "(self, instance_id, task_id)",
    "SnapshotStore.delete_snapshot": "(self, instance_id)",
    "SnapshotStore.list_snapshots": "(self, *, status=None, definition_hash=None, after=None,"
    " limit=100)",
    "TaskClaimStore.claim_task": "(self, instance_id, task_id, *, worker_id, ttl, tags=(),"
    " nonce=None)",
    "TaskClaimStore.acquire_tasks": "(self, *, worker_id, ttl, limit=1, tags=(),"
    " definition_hashes=None, results=False)",
    "TaskClaimStore.find_available_tasks": "(self, *, worker_id, limit=10, tags=(),"
    " definition_hashes=None, results=False)",
    "TaskClaimStore.extend_task_claim": "(self, claim, *, ttl)",
    "TaskClaimStore.release_task_claim": "(self, claim)",
    "TaskClaimStore.revoke_task_claim": "(self, instance_id, task_id)",
    "TaskClaimStore.find_stalled": "(self, *, idle_for, limit=100)",
    "TaskClaimStore.sweep": "(self, *, limit=100)",
    "SignalStore.store_signal": "(self, instance_id, kind, request=None)",
    "SignalStore.get_signal": "(self, instance_id, kind)",
    "SignalStore.clear_signal": "(self, instance_id, kind)",
    "SignalStore.request_signal": "(self, instance_id, kind, request=None)",
    "SignalStore.check_and_cancel": "(self, instance_id, *, interrupted_at_task=None)",
    "SignalStore.check_and_pause": "(self, instance_id)",
    "SignalStore.check_control_signals": "(self, instance_id, *, interrupted_at_task=None)",
    "SignalStore.unpause": "(self, instance_id)",
    "SignalStore.send_event": "(self, instance_id, name, payload, *, event_id=None)",
    "SignalStore.consume_event": "(self, instance_id, name)",
    "SignalStore.drain_signal": "(self, instance_id, *, version=None)",
    "PersistentBackend.now": "(self)",
    "PersistentBackend.aclose": "(self)",
    "PersistentBackend.__aenter__": "(self)",
    "PersistentBackend.__aexit__": "(self, *exc)",
    "WakeupSource.wait_for_wakeup": "(self, timeout)",
}
"""Everything a backend can be asked, by the protocol that says so."""

COMMIT_TASK = [
    "(self, claim, snapshot, *, claim_next=None)",
    "(self, claim, change, *, base=None, claim_next=None)",
]

TRANSITIONS = {
    "WorkflowSnapshot.start": "(instance_id, definition_hash, *, start_at, input=None, priority=3,"
    " tags=(), trace_parent=None)",
    "WorkflowSnapshot.ready_tasks": "(self)",
    "WorkflowSnapshot.record_result": "(self, node_id, output)",
    "WorkflowSnapshot.complete_task": "(self, task_id, output, *, next)",
    "WorkflowSnapshot.move_to": "(self, position)",
    "WorkflowSnapshot.record_failure": "(self, task_id, policy, *, error, worker_id=None)",
    "WorkflowSnapshot.complete": "(self, output)",
    "WorkflowSnapshot.fail": "(self, error)",
    "WorkflowSnapshot.cancel": "(self, request=None, *, interrupted_at_task=None)",
    "WorkflowSnapshot.pause": "(self, request=None)",
    "WorkflowSnapshot.unpause": "(self)",
    "WorkflowSnapshot.forget": "(self, *node_ids)",
    "WorkflowSnapshot.count_iteration": "(self, loop_id)",
    "WorkflowSnapshot.with_deadline": "(self, deadline)",
    "RetryPolicy.delay": "(self, attempt)",
    "Codec.encode": "(self, value)",
    "Codec.decode": "(self, data, type=typing.Any)",
}

FUNCTIONS = {
    "connect": "(url, **options)",
    "register_codec": "(codec)",
    "MemoryStore": "(*, clock=None)",
    "MemoryBackend": "(store=None, **options)",
}

PROPERTIES = {
    "WorkflowSnapshot": {"status", "position"},
    "AtDelay": {"ends_at"},
    "AtSignal": {"ends_at"},
    "Status": {"is_terminal"},
    "Results": {"loaded"},
    "PersistentBackend": {"info"},
}

ENUMS: dict[type[StrEnum], dict[str, str]] = {
    sayiir_persist.Status: {
        "IN_PROGRESS": "in_progress",
        "PAUSED": "paused",
        "COMPLETED": "completed",
        "FAILED": "failed",
        "CANCELLED": "cancelled",
    },
    sayiir_persist.SignalKind: {"CANCEL": "cancel", "PAUSE": "pause"},
    sayiir_persist.ConflictPolicy: {
        "FAIL": "fail",
        "USE_EXISTING": "use_existing",
        "TERMINATE_EXISTING": "terminate_existing",
    },
    sayiir_persist.ReadyReason: {
        "TASK": "task",
        "RETRY": "retry",
        "DELAY_ELAPSED": "delay_elapsed",
        "EVENT": "event",
        "SIGNAL_TIMEOUT": "signal_timeout",
    },
    EntryKind: {"TASK": "task", "ADVANCE": "advance"},
}

TAGS = {
    "AtTask": "task",
    "AtDelay": "delay",
    "AtSignal": "signal",
    "AtFork": "fork",
    "AtNode": "node",
    "InProgress": "in_progress",
    "Paused": "paused",
    "Completed": "completed",
    "Failed": "failed",
    "Cancelled": "cancelled",
}


def public(name: str) -> Any:
    value: Any = sayiir_persist

    for part in name.split("."):
        value = getattr(value, part)

    return value


def shape(function: Callable[..., object]) -> str:
    """Its parameters and defaults, without annotations."""
    signature = inspect.signature(function)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def structs() -> Iterator[str]:
    for name in sayiir_persist.__all__:
        value = getattr(sayiir_persist, name)

        if isinstance(value, type) and issubclass(value, Struct):
            yield name


def test_package_gives_exactly_the_public_names() -> None:
    assert set(sayiir_persist.__all__) == NAMES
    assert len(sayiir_persist.__all__) == len(NAMES)
    assert all(hasattr(sayiir_persist, name) for name in NAMES)


def test_every_public_value_is_written_down_here() -> None:
    assert set(structs()) == set(STRUCTS)


@pytest.mark.parametrize(("name", "expected"), STRUCTS.items(), ids=STRUCTS)
def test_value_has_its_fields_and_defaults(name: str, expected: str) -> None:
    assert shape(public(name)) == expected


@pytest.mark.parametrize("name", STRUCTS)
def test_value_is_frozen(name: str) -> None:
    assert public(name).__struct_config__.frozen


@pytest.mark.parametrize(
    ("name", "expected"),
    [*METHODS.items(), *TRANSITIONS.items(), *FUNCTIONS.items()],
    ids=[*METHODS, *TRANSITIONS, *FUNCTIONS],
)
def test_function_has_its_parameters_and_defaults(name: str, expected: str) -> None:
    assert shape(public(name)) == expected


@pytest.mark.parametrize("protocol", ["SnapshotStore", "TaskClaimStore", "SignalStore"])
def test_protocol_asks_for_nothing_else(protocol: str) -> None:
    asked = {name for name in vars(public(protocol)) if not name.startswith("_")}

    known = {name.partition(".")[2] for name in METHODS if name.startswith(f"{protocol}.")}
    assert asked - {"commit_task"} == known


def test_commit_takes_a_snapshot_or_a_change() -> None:
    overloads = get_overloads(sayiir_persist.TaskClaimStore.commit_task)

    assert [shape(it) for it in overloads] == COMMIT_TASK


@pytest.mark.parametrize("backend", ["MemoryBackend", "SqliteBackend"])
@pytest.mark.parametrize(("name", "expected"), METHODS.items(), ids=METHODS)
def test_built_in_backend_answers_every_method(backend: str, name: str, expected: str) -> None:
    method = getattr(public(backend), name.partition(".")[2])

    assert shape(method) == expected


def test_sqlite_is_entered_by_a_path() -> None:
    assert shape(sayiir_persist.SqliteBackend.connect) == (
        "(path, *, clock=None, synchronous='FULL', **options)"
    )


def test_keep_claim_is_imported_from_its_module() -> None:
    assert shape(keep_claim) == "(backend, claim, *, ttl, every=None, cancel_on_signal=False)"
    assert not hasattr(sayiir_persist, "keep_claim")


@pytest.mark.parametrize(("name", "expected"), PROPERTIES.items(), ids=PROPERTIES)
def test_computed_fields_are_properties(name: str, expected: set[str]) -> None:
    for field in expected:
        assert isinstance(inspect.getattr_static(public(name), field), property)


def test_codec_is_named_by_id_and_name() -> None:
    codecs = [sayiir_persist.JsonCodec(), sayiir_persist.MsgpackCodec()]

    assert set(sayiir_persist.Codec.__annotations__) == {"id", "name"}
    assert [codec.id for codec in codecs] == [1, 2]
    assert all(isinstance(codec.name, str) for codec in codecs)


@pytest.mark.parametrize(
    ("enum", "members"), ENUMS.items(), ids=lambda it: getattr(it, "__name__", "")
)
def test_strings_on_disk_never_change(enum: type[StrEnum], members: dict[str, str]) -> None:
    assert {member.name: member.value for member in enum} == members


@pytest.mark.parametrize(("name", "tag"), TAGS.items(), ids=TAGS)
def test_tags_on_disk_never_change(name: str, tag: str) -> None:
    config = public(name).__struct_config__

    assert (config.tag_field, config.tag) == ("type", tag)


def test_fields_on_disk_are_left_out_where_they_say_nothing() -> None:
    at_task, at_delay = sayiir_persist.AtTask, sayiir_persist.AtDelay

    encoded = msgspec.json.encode(at_delay("d", wake_after=timedelta(seconds=1), next=at_task("t")))

    assert msgspec.json.decode(encoded) == {
        "type": "delay",
        "node_id": "d",
        "wake_after": "PT1S",
        "next": {"type": "task", "task_id": "t"},
    }


def test_instance_input_is_the_empty_id() -> None:
    assert sayiir_persist.INSTANCE_INPUT == ""


def test_results_are_a_mapping() -> None:
    assert issubclass(sayiir_persist.Results, Mapping)


def test_acquired_task_is_an_available_task() -> None:
    assert issubclass(sayiir_persist.AcquiredTask, sayiir_persist.AvailableTask)


def test_importing_the_package_loads_no_database_driver() -> None:
    program = (
        "import sys, sayiir_persist\n"
        "drivers = {'asyncpg', 'redis', 'pymongo', 'bson', 'gridfs', 'motor'}\n"
        "print(sorted(drivers & set(sys.modules)))"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert ran.stdout.strip() == "[]"
