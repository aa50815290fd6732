"""From what a driver answers to the values of the public API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from sayiir_persist.body import restore, settled
from sayiir_persist.claims import AvailableTask, TaskClaim
from sayiir_persist.errors import BackendError, InvalidArgumentError
from sayiir_persist.results import Results
from sayiir_persist.signals import SignalKind, SignalRequest
from sayiir_persist.snapshot import SnapshotInfo, WorkflowSnapshot, stamped
from sayiir_persist.validation import from_micros

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist.driver import Answer, ClaimRecord, Facts, Offer, Row, SignalMark, View


def facts_of(answer: Answer) -> Facts:
    """The facts of an accepted write to a row."""
    if answer.facts is None:
        raise BackendError("the store answered an accepted write without its facts")

    return answer.facts


def with_all_results(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
    """The snapshot as a write of everything sees it: each result is one to store."""
    if not snapshot.results.loaded:
        raise InvalidArgumentError("the results were not loaded: load the snapshot whole")

    return replace(snapshot, results=Results(snapshot.results.at_hand()))


def with_results_of(snapshot: WorkflowSnapshot, known: WorkflowSnapshot) -> WorkflowSnapshot:
    """The next version of `known`, with the results that came with it."""
    if snapshot.results.loaded or snapshot.version != known.version + 1:
        return snapshot

    results = known.results

    for node_id, output in snapshot.results.at_hand().items():
        results = results.with_result(node_id, output)

    return replace(snapshot, results=results.saved())


def stored_form(snapshot: WorkflowSnapshot, answer: Answer) -> WorkflowSnapshot:
    """A snapshot that was just written, with the stamps of the store."""
    facts = facts_of(answer)
    written = replace(
        snapshot,
        results=snapshot.results.saved(),
        version=facts.version,
        incarnation=facts.incarnation,
        created_at=from_micros(facts.created_at),
        updated_at=from_micros(facts.updated_at),
    )
    done = frozenset([task.task_id for task in snapshot.ready_tasks() if task.done])
    return stamped(
        written, from_micros(answer.now), status_since=from_micros(facts.status_since), done=done
    )


def restored(view: View, known: WorkflowSnapshot | None) -> WorkflowSnapshot:
    """What is stored; `known` where that is it, for it may have its results at hand."""
    facts = view.facts

    if known is not None and (known.version, known.incarnation) == (
        facts.version,
        facts.incarnation,
    ):
        return known

    return restore(view)


def pending_mark(signals: Sequence[SignalMark], kind: SignalKind) -> SignalMark | None:
    """The pending signal of one kind."""
    return next((mark for mark in signals if mark.kind is kind), None)


def request_of(mark: SignalMark) -> SignalRequest:
    """What a pending signal asked for."""
    return SignalRequest(
        reason=mark.reason,
        requested_by=mark.requested_by,
        requested_at=from_micros(mark.requested_at),
    )


def claim_of(instance_id: str, record: ClaimRecord, signals: Sequence[SignalMark]) -> TaskClaim:
    """A claim as its holder sees it; of two pending signals the cancel counts."""
    pending: SignalKind | None = None

    if signals:
        cancels = pending_mark(signals, SignalKind.CANCEL) is not None
        pending = SignalKind.CANCEL if cancels else SignalKind.PAUSE

    return TaskClaim(
        instance_id,
        record.task_id,
        record.worker_id,
        fence=record.fence,
        claimed_at=from_micros(record.claimed_at),
        expires_at=None if record.expires_at is None else from_micros(record.expires_at),
        nonce=record.nonce,
        worker_tags=record.worker_tags,
        pending_signal=pending,
    )


def attempt_of(snapshot: WorkflowSnapshot, task_id: str) -> int:
    """1 and the failures of a task so far."""
    retry = snapshot.retries.get(task_id)
    return 1 if retry is None else 1 + retry.attempts


def input_of(snapshot: WorkflowSnapshot, task_id: str, stored: bytes | None) -> bytes | None:
    """The input of a ready task: `stored`, unless elapsed time has recorded another since."""
    gained = snapshot.results.delta().gained

    if not gained:
        return stored

    source = next((it.input_from for it in snapshot.ready_tasks() if it.task_id == task_id), None)
    return stored if source is None else gained.get(source, stored)


def available_task(offer: Offer) -> AvailableTask:
    """What dispatch found, settled to the moment of the poll.

    Raises:
        CodecError: The body cannot be read.
    """
    snapshot = settled(offer.view)
    return AvailableTask(
        instance_id=snapshot.instance_id,
        task_id=offer.task_id,
        definition_hash=snapshot.definition_hash,
        reason=offer.reason,
        attempt=attempt_of(snapshot, offer.task_id),
        input=input_of(snapshot, offer.task_id, offer.input),
        trace_parent=snapshot.trace_parent,
        snapshot=snapshot,
    )


def info_of(row: Row) -> SnapshotInfo:
    """One line of a listing."""
    return SnapshotInfo(
        row.instance_id,
        row.definition_hash,
        row.status,
        row.version,
        from_micros(row.created_at),
        from_micros(row.updated_at),
        from_micros(row.status_since),
        row.priority,
        row.tags,
    )
