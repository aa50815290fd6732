"""The stored form of a snapshot: its body, and the way back from what a store returns."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct, field

from sayiir_persist.codecs import frame, unframe
from sayiir_persist.dispatch import Heads, settle
from sayiir_persist.results import Results
from sayiir_persist.snapshot import RetryState, State, WorkflowSnapshot, stamped
from sayiir_persist.validation import from_micros

if TYPE_CHECKING:
    from sayiir_persist.codecs import Codec
    from sayiir_persist.driver import View


class Body(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the client encodes. Everything else of a snapshot stands beside it in the store."""

    state: State
    retries: Mapping[str, RetryState] = field(default_factory=dict[str, RetryState])
    timed_out: frozenset[str] = frozenset()
    loop_iterations: Mapping[str, int] = field(default_factory=dict[str, int])
    deadline: datetime | None = None
    trace_parent: str | None = None


def encode_body(snapshot: WorkflowSnapshot, codec: Codec) -> bytes:
    """Frame what has to be stored of a snapshot.

    Raises:
        CodecError: The codec cannot write it.
    """
    return frame(
        codec,
        Body(
            state=snapshot.state,
            retries=snapshot.retries,
            timed_out=snapshot.timed_out,
            loop_iterations=snapshot.loop_iterations,
            deadline=snapshot.deadline and snapshot.deadline.astimezone(UTC),
            trace_parent=snapshot.trace_parent,
        ),
    )


def restore(view: View) -> WorkflowSnapshot:
    """The snapshot that was written, with its stamps; not settled yet.

    Raises:
        CodecError: The body cannot be read.
    """
    body: Body = unframe(view.body, Body)
    facts = view.facts
    snapshot = WorkflowSnapshot(
        view.instance_id,
        facts.definition_hash,
        body.state,
        input=view.input,
        results=Results.stored(view.results),
        last_completed_task_id=facts.last_completed,
        retries=body.retries,
        timed_out=body.timed_out,
        loop_iterations=body.loop_iterations,
        deadline=body.deadline,
        priority=view.priority,
        tags=view.tags,
        trace_parent=body.trace_parent,
        version=facts.version,
        incarnation=facts.incarnation,
        created_at=from_micros(facts.created_at),
        updated_at=from_micros(facts.updated_at),
    )
    return stamped(
        snapshot,
        from_micros(view.body_at),
        status_since=from_micros(facts.status_since),
        done=view.done,
    )


def arrivals(view: View) -> Heads:
    """When the oldest queued events arrived."""
    if not view.heads:
        return {}

    return {name: from_micros(head.arrived_at) for name, head in view.heads.items()}


def settled(view: View) -> WorkflowSnapshot:
    """The snapshot as it is at the moment of the reading.

    Raises:
        CodecError: The body cannot be read.
    """
    return settle(restore(view), from_micros(view.now), arrivals(view))
