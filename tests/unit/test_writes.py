"""What guards a write, and what its refusal is called, in the one order of checks."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from msgspec.structs import replace
from unit.workflows import T0, run, stored

from sayiir_persist.claims import TaskClaim
from sayiir_persist.codecs import JsonCodec
from sayiir_persist.driver import (
    Answer,
    ClaimKey,
    ClaimRecord,
    Content,
    Facts,
    Guard,
    Presence,
    Push,
    Refusal,
    Unit,
)
from sayiir_persist.errors import (
    ClaimLostError,
    DefinitionMismatchError,
    EventQueueFullError,
    InstanceExistsError,
    InstanceNotFoundError,
    InstancePausedError,
    InvalidArgumentError,
    PayloadTooLargeError,
    PersistError,
    StaleSnapshotError,
    TerminalStateError,
)
from sayiir_persist.positions import AtTask
from sayiir_persist.protocols import Limits
from sayiir_persist.snapshot import Status
from sayiir_persist.writes import OPEN, RUNNING, content_of, key_of, refusal, save_guard

LIMITS = Limits(max_payload=10, max_queued_events=3)
CLAIM = TaskClaim("run", "a", "w1", fence=7, claimed_at=T0, expires_at=None, nonce="n")
NOW = 100


def record(fence: int = 7, until: int | None = None) -> ClaimRecord:
    return ClaimRecord(
        task_id="a", worker_id="w2", fence=fence, claimed_at=0, expires_at=until, nonce="n"
    )


def facts(**fields: Any) -> Facts:
    given = {
        "incarnation": "one", "version": 5, "status": Status.IN_PROGRESS, "definition_hash": "v1",
        "created_at": 0, "updated_at": 0, "status_since": 0, "last_completed": None,
        "signals": (), "live_claims": False, "advance_due": False, **fields,
    }  # fmt: skip
    return Facts(**given)


def answer(found: Facts | None, claim: ClaimRecord | None = None) -> Answer:
    return Answer(now=NOW, refused=Refusal.GUARD, facts=found, claim=claim)


def written(guard: Guard, status: Status = Status.IN_PROGRESS) -> Unit:
    body = Content(
        body=b"", status=status, status_is_new=False, definition_hash="v1", priority=3, tags=(),
        last_completed=None, entries=(), idle=False,
    )  # fmt: skip
    return Unit(instance_id="run", guard=guard, content=body)


def named(guard: Guard, found: Answer, status: Status = Status.IN_PROGRESS) -> str | None:
    error = refusal(written(guard, status), found)
    return None if error is None else type(error).__name__


@pytest.mark.parametrize(
    ("guard", "error"),
    [
        (Guard(), InstanceNotFoundError("run")),
        (Guard(version=3), StaleSnapshotError("run", 3, None)),
        (Guard(claim=ClaimKey("a", 7)), ClaimLostError("run", "a")),
        (Guard(claim=ClaimKey("a", 7), version=3), ClaimLostError("run", "a")),
    ],
)
def test_where_nothing_is_stored_the_caller_hears_what_it_assumed(
    guard: Guard, error: PersistError
) -> None:
    found = refusal(written(guard), answer(None))

    assert type(found) is type(error)
    assert found is not None
    assert found.args == error.args


@pytest.mark.parametrize(
    ("terminal", "lost", "paused", "stale"), list(product([False, True], repeat=4))
)
def test_first_check_that_fails_is_the_answer(
    terminal: bool, lost: bool, paused: bool, stale: bool
) -> None:
    """Terminal, then the claim, then paused, then the version; `None` where all of it holds."""
    guard = Guard(statuses=OPEN, claim=ClaimKey("a", 7), version=5, incarnation="one")
    status = Status.COMPLETED if terminal else Status.PAUSED if paused else Status.IN_PROGRESS
    found = answer(facts(status=status, version=6 if stale else 5), None if lost else record())

    name = named(guard, found)

    expected = None
    if terminal:
        expected = "TerminalStateError"
    elif lost:
        expected = "ClaimLostError"
    elif paused and stale:
        expected = "InstancePausedError"
    elif stale:
        expected = "StaleSnapshotError"

    assert name == expected


def test_write_that_needs_a_running_instance_is_refused_by_a_pause_alone() -> None:
    guard = Guard(statuses=RUNNING, version=5)

    assert named(guard, answer(facts(status=Status.PAUSED))) == "InstancePausedError"


def test_write_of_a_pause_may_replace_a_pause() -> None:
    guard = Guard(statuses=OPEN, version=4)

    found = named(guard, answer(facts(status=Status.PAUSED)), Status.PAUSED)

    assert found == "StaleSnapshotError"


def test_same_version_of_another_incarnation_is_stale() -> None:
    guard = Guard(statuses=OPEN, version=5, incarnation="zero")

    assert named(guard, answer(facts())) == "StaleSnapshotError"


def test_mismatching_definition_comes_before_any_policy() -> None:
    guard = Guard(presence=Presence.ABSENT, definition_hash="v2")

    error = refusal(written(guard), answer(facts(status=Status.COMPLETED)))

    assert isinstance(error, DefinitionMismatchError)
    assert (error.expected, error.found) == ("v2", "v1")


@pytest.mark.parametrize("status", Status)
def test_taken_id_is_told_with_its_status(status: Status) -> None:
    error = refusal(written(Guard(presence=Presence.ABSENT)), answer(facts(status=status)))

    assert isinstance(error, InstanceExistsError)
    assert error.status is status


@pytest.mark.parametrize("guard", [Guard(idle=True), Guard(signals=()), Guard(head=("go", 1))])
def test_what_the_caller_did_not_state_has_no_name(guard: Guard) -> None:
    assert named(guard, answer(facts())) is None


def test_full_queue_is_told_with_its_limit() -> None:
    unit = Unit(instance_id="run", push=Push("go", b"", None, 3))

    error = refusal(unit, Answer(now=NOW, refused=Refusal.QUEUE_FULL, facts=None))

    assert isinstance(error, EventQueueFullError)
    assert error.limit == 3


@pytest.mark.parametrize(
    ("held", "owner"),
    [
        (None, None),
        (record(until=NOW), None),
        (record(fence=8), "w2"),
        (record(fence=8, until=NOW + 1), "w2"),
    ],
)
def test_lost_claim_names_whose_claim_is_there_instead(
    held: ClaimRecord | None, owner: str | None
) -> None:
    error = refusal(written(Guard(claim=ClaimKey("a", 7))), answer(facts(), held))

    assert isinstance(error, ClaimLostError)
    assert error.owner == owner


def test_terminal_instance_is_told_only_to_who_asked_for_an_open_one() -> None:
    over = answer(facts(status=Status.CANCELLED))

    error = refusal(written(Guard(statuses=OPEN)), over)

    assert isinstance(error, TerminalStateError)
    assert error.status is Status.CANCELLED
    assert refusal(written(Guard()), over) is None


@pytest.mark.parametrize(
    ("ends", "with_claim", "statuses"),
    [(False, False, OPEN), (False, True, OPEN), (True, False, RUNNING), (True, True, OPEN)],
)
def test_only_a_live_claim_ends_what_is_paused(
    ends: bool, with_claim: bool, statuses: tuple[Status, ...]
) -> None:
    snapshot = stored(run("a"))
    snapshot = snapshot.complete(b"") if ends else snapshot

    guard = save_guard(snapshot, CLAIM if with_claim else None)

    assert guard.statuses == statuses
    assert guard.claim == (ClaimKey("a", 7) if with_claim else None)
    assert (guard.version, guard.incarnation) == (1, "first")


def test_cancelling_what_is_paused_needs_only_its_version() -> None:
    assert save_guard(stored(run("a").pause()).cancel(), None).statuses == OPEN


def test_no_claim_has_no_key() -> None:
    assert key_of(None) is None
    assert key_of(CLAIM) == ClaimKey("a", 7)


class TestContent:
    def test_everything_that_is_indexed_comes_from_the_snapshot(self) -> None:
        snapshot = run("a", priority=2, tags=("gpu",), input=b"in").record_result("x", b"1")

        made = content_of(snapshot, JsonCodec(), LIMITS)

        assert (made.status, made.definition_hash) == (Status.IN_PROGRESS, "v1")
        assert (made.priority, made.tags, made.input) == (2, ("gpu",), b"in")
        assert (made.gained, made.dropped) == ({"x": b"1"}, frozenset())
        assert made.last_completed == "x"
        assert [entry.node_id for entry in made.entries] == ["a"]

    @pytest.mark.parametrize(
        ("change", "is_new"),
        [
            (lambda it: it, False),
            (lambda it: it.complete_task("a", b"", next=AtTask("b")), False),
            (lambda it: it.pause(), True),
            (lambda it: it.pause().unpause(), True),
            (lambda it: it.cancel(), True),
        ],
    )
    def test_status_begins_anew_where_a_transition_changed_it(
        self, change: Any, is_new: bool
    ) -> None:
        made = content_of(change(stored(run("a"))), JsonCodec(), LIMITS)

        assert made.status_is_new is is_new

    @pytest.mark.parametrize(
        "snapshot",
        [
            run("a", input=b"x" * 10),
            run("a").record_result("x", b"x" * 10),
            run("a").complete(b"x" * 10),
        ],
    )
    def test_payload_at_the_limit_passes(self, snapshot: Any) -> None:
        content_of(snapshot, JsonCodec(), LIMITS)

    @pytest.mark.parametrize(
        ("snapshot", "what"),
        [
            (run("a", input=b"x" * 11), "input"),
            (run("a").record_result("x", b"x" * 11), "the result of 'x'"),
            (run("a").complete(b"x" * 11), "output"),
        ],
    )
    def test_payload_above_the_limit_is_named(self, snapshot: Any, what: str) -> None:
        with pytest.raises(PayloadTooLargeError) as caught:
            content_of(snapshot, JsonCodec(), LIMITS)

        assert (caught.value.what, caught.value.size, caught.value.limit) == (what, 11, 10)

    @pytest.mark.parametrize(
        ("snapshot", "message"),
        [
            ("run", "a WorkflowSnapshot is wanted, not str"),
            (run("a").record_result("", b""), "node_id must have 1 to 256"),
            (run("a").record_result("x", "text"), "must be bytes, not str"),  # type: ignore[arg-type]
            (run("a", input="text"), "input must be bytes, not str"),
            (replace(run("a"), priority=9), "priority must be 1"),
        ],
    )
    def test_what_breaks_a_limit_is_refused(self, snapshot: Any, message: str) -> None:
        with pytest.raises(InvalidArgumentError, match=message):
            content_of(snapshot, JsonCodec(), LIMITS)


def test_pause_is_an_error_of_its_own() -> None:
    error = InstancePausedError("run")

    assert "unpause" in str(error)
