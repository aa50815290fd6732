from __future__ import annotations

import pytest
from msgspec.structs import asdict, replace
from unit.workflows import T0, run

from sayiir_persist.claims import AcquiredTask, AvailableTask, TaskClaim, WakeHint
from sayiir_persist.driver import ClaimRecord
from sayiir_persist.positions import ReadyReason
from sayiir_persist.signals import SignalKind

CLAIM = TaskClaim("run", "a", "w1", fence=7, claimed_at=T0, expires_at=None, nonce="n")


def test_claims_compare_by_value() -> None:
    assert replace(CLAIM) == CLAIM
    assert replace(CLAIM, fence=8) != CLAIM
    assert replace(CLAIM, pending_signal=SignalKind.PAUSE) != CLAIM
    assert hash(CLAIM) == hash(replace(CLAIM))


def test_claim_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        CLAIM.fence = 8  # type: ignore[misc]


def test_claim_accepts_everything_unless_it_says_otherwise() -> None:
    assert CLAIM.worker_tags == ()
    assert CLAIM.pending_signal is None


def test_acquired_task_is_the_available_one_with_its_claim() -> None:
    available = AvailableTask(
        instance_id="run",
        task_id="a",
        definition_hash="v1",
        reason=ReadyReason.TASK,
        attempt=1,
        input=b"in",
        trace_parent=None,
        snapshot=run("a"),
    )

    fields = {name: getattr(available, name) for name in available.__struct_fields__}
    acquired = AcquiredTask(**fields, claim=CLAIM)

    assert acquired.claim == CLAIM
    assert acquired.snapshot is available.snapshot


def test_hint_without_facts_means_anything() -> None:
    assert set(asdict(WakeHint()).values()) == {None}


@pytest.mark.parametrize(
    ("expires_at", "now", "live"),
    [(None, 10**18, True), (100, 99, True), (100, 100, False), (100, 101, False)],
)
def test_record_is_dead_at_exactly_its_end(expires_at: int | None, now: int, live: bool) -> None:
    record = ClaimRecord(
        task_id="a", worker_id="w1", fence=1, claimed_at=0, expires_at=expires_at, nonce="n"
    )

    assert record.live(now) is live
