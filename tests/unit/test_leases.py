"""`keep_claim`: renews while the block runs, and ends it when the claim is gone."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
from msgspec.structs import replace
from unit.loops import execute, on_both_loops, settle_down
from unit.workflows import T0

from sayiir_persist.claims import TaskClaim
from sayiir_persist.errors import (
    BackendClosedError,
    BackendUnavailableError,
    ClaimLostError,
    ClaimNotFoundError,
    InvalidArgumentError,
    OutcomeUnknownError,
)
from sayiir_persist.leases import keep_claim
from sayiir_persist.signals import SignalKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sayiir_persist.protocols import PersistentBackend

TTL = timedelta(seconds=30)
SOON = timedelta(milliseconds=3)
CLAIM = TaskClaim(
    "run", "a", "w1", fence=7, claimed_at=T0, expires_at=T0 + TTL, nonce="n"
)  # fmt: skip


class Backend:
    """Extends claims as it was told to, the last answer again and again."""

    def __init__(self, *answers: TaskClaim | Exception) -> None:
        self.answers: Sequence[TaskClaim | Exception] = answers or (CLAIM,)
        self.asked: list[tuple[TaskClaim, timedelta]] = []
        self._watched: list[tuple[int, anyio.Event]] = []

    async def extend_task_claim(self, claim: TaskClaim, *, ttl: timedelta) -> TaskClaim:
        self.asked.append((claim, ttl))
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]

        for count, event in self._watched:
            if len(self.asked) >= count:
                event.set()

        if isinstance(answer, Exception):
            raise answer

        return answer

    async def asked_for(self, count: int) -> None:
        """Wait until that many renewals were asked for."""
        event = anyio.Event()
        self._watched.append((count, event))

        if len(self.asked) < count:
            await event.wait()


def keep(backend: Backend, claim: TaskClaim = CLAIM, **options: Any) -> Any:
    given = {"ttl": TTL, "every": SOON, **options}
    return keep_claim(cast("PersistentBackend", backend), claim, **given)


@on_both_loops
def test_claim_is_renewed_while_the_block_runs_and_not_after(loop: str) -> None:
    async def check() -> None:
        backend = Backend()

        async with keep(backend) as claim:
            assert claim is CLAIM
            await backend.asked_for(3)

        asked = len(backend.asked)
        await settle_down()

        assert backend.asked == [(CLAIM, TTL)] * asked

    execute(loop, check)


@on_both_loops
def test_block_that_ends_first_needs_no_renewal(loop: str) -> None:
    async def check() -> None:
        backend = Backend()

        async with keep(backend, every=None):
            pass

        assert backend.asked == []

    execute(loop, check)


@pytest.mark.parametrize(
    ("ttl", "every"),
    [
        (TTL, TTL / 3 + timedelta(microseconds=1)),
        (TTL, TTL),
        (TTL, timedelta(0)),
        (TTL, -SOON),
        (timedelta(0), None),
        (-TTL, None),
        (timedelta.max, None),
    ],
)
async def test_interval_above_a_third_of_the_ttl_is_refused(
    ttl: timedelta, every: timedelta | None
) -> None:
    backend, entered = Backend(), False

    with pytest.raises(InvalidArgumentError):
        async with keep(backend, ttl=ttl, every=every):
            entered = True

    assert not entered
    assert backend.asked == []


@pytest.mark.parametrize("every", [TTL / 3, SOON, None])
async def test_interval_up_to_a_third_of_the_ttl_is_accepted(every: timedelta | None) -> None:
    async with keep(Backend(), every=every) as claim:
        assert claim is CLAIM


@on_both_loops
@pytest.mark.parametrize(
    ("answer", "owner"),
    [(ClaimLostError("run", "a", "w2"), "w2"), (ClaimNotFoundError("run", "a"), None)],
)
def test_loss_cancels_the_block_and_says_so(
    loop: str, answer: Exception, owner: str | None
) -> None:
    async def check() -> None:
        backend, steps = Backend(CLAIM, answer), []

        async def work() -> None:
            async with keep(backend):
                steps.append("begun")
                await anyio.sleep_forever()
                steps.append("never")

        with pytest.raises(ClaimLostError) as caught:
            await work()

        assert steps == ["begun"]
        assert (caught.value.instance_id, caught.value.task_id) == ("run", "a")
        assert caught.value.owner == owner
        assert len(backend.asked) == 2

    execute(loop, check)


@on_both_loops
def test_cancelled_block_may_clean_up(loop: str) -> None:
    async def check() -> None:
        steps = []

        async def work() -> None:
            async with keep(Backend(ClaimLostError("run", "a"))):
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await settle_down()
                        steps.append("cleaned")

        with pytest.raises(ClaimLostError):
            await work()

        assert steps == ["cleaned"]

    execute(loop, check)


@on_both_loops
def test_exception_of_the_block_comes_out_as_it_is(loop: str) -> None:
    async def check() -> None:
        boom = KeyError("boom")

        async def work() -> None:
            async with keep(Backend()):
                await settle_down()
                raise boom

        with pytest.raises(KeyError) as caught:
            await work()

        assert caught.value is boom

    execute(loop, check)


@on_both_loops
def test_group_of_exceptions_of_the_block_comes_out_as_it_is(loop: str) -> None:
    async def check() -> None:
        group = ExceptionGroup("several", [KeyError("a"), ValueError("b")])

        with pytest.raises(ExceptionGroup) as caught:
            async with keep(Backend()):
                raise group

        assert caught.value is group

    execute(loop, check)


@pytest.mark.parametrize("exit_", [SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_exit_from_the_block_comes_out_as_it_is(exit_: BaseException) -> None:
    with pytest.raises(type(exit_)) as caught:
        async with keep(Backend()):
            raise exit_

    assert caught.value is exit_


@on_both_loops
def test_cancellation_from_outside_passes_through(loop: str) -> None:
    async def check() -> None:
        backend = Backend()

        with anyio.CancelScope() as scope:
            async with keep(backend):
                await backend.asked_for(1)
                scope.cancel()
                await anyio.sleep_forever()

        assert scope.cancelled_caught

    execute(loop, check)


async def test_task_cancelled_from_outside_ends_cancelled() -> None:
    backend = Backend()

    async def work() -> None:
        async with keep(backend):
            await anyio.sleep_forever()

    task = asyncio.create_task(work())
    await backend.asked_for(1)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@on_both_loops
@pytest.mark.parametrize("kind", SignalKind)
def test_pending_signal_ends_the_block_quietly_if_asked_to(loop: str, kind: SignalKind) -> None:
    async def check() -> None:
        signalled = replace(CLAIM, pending_signal=kind)
        backend, steps = Backend(CLAIM, signalled), []

        async with keep(backend, cancel_on_signal=True):
            steps.append("begun")
            await anyio.sleep_forever()
            steps.append("never")

        steps.append("after")
        assert steps == ["begun", "after"]
        assert len(backend.asked) == 2

    execute(loop, check)


@on_both_loops
def test_pending_signal_leaves_the_block_alone_unless_asked_to(loop: str) -> None:
    async def check() -> None:
        backend, steps = Backend(replace(CLAIM, pending_signal=SignalKind.CANCEL)), []

        async with keep(backend):
            await backend.asked_for(3)
            steps.append("finished")

        assert steps == ["finished"]

    execute(loop, check)


@on_both_loops
@pytest.mark.parametrize("error", [BackendUnavailableError("down"), OutcomeUnknownError("lost")])
def test_renewal_that_did_not_get_through_is_tried_again(
    loop: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        backend = Backend(error, error, CLAIM)

        async with keep(backend):
            await backend.asked_for(5)

        warnings = [it for it in caplog.records if it.levelno == logging.WARNING]
        assert len(warnings) == 2
        assert vars(warnings[0]).items() >= {
            "instance_id": "run", "task_id": "a", "worker_id": "w1",
        }.items()  # fmt: skip

    execute(loop, check)


@on_both_loops
def test_claim_that_must_have_ended_is_lost_though_the_store_is_silent(loop: str) -> None:
    async def check() -> None:
        backend = Backend(BackendUnavailableError("down"))

        with pytest.raises(ClaimLostError):
            async with keep(backend, ttl=SOON * 4):
                await anyio.sleep_forever()

        assert backend.asked

    execute(loop, check)


@on_both_loops
def test_eternal_claim_outlives_a_silent_store(loop: str) -> None:
    async def check() -> None:
        backend = Backend(BackendUnavailableError("down"))

        async with keep(backend, replace(CLAIM, expires_at=None), ttl=SOON * 3):
            await backend.asked_for(8)

    execute(loop, check)


@on_both_loops
def test_block_that_blocked_the_loop_learns_its_loss_when_the_loop_runs_again(loop: str) -> None:
    """The store saw no renewal for longer than the ttl, so it refuses the next one."""

    async def check() -> None:
        began = time.monotonic()

        class Expiring(Backend):
            async def extend_task_claim(self, claim: TaskClaim, *, ttl: timedelta) -> TaskClaim:
                await super().extend_task_claim(claim, ttl=ttl)
                raise ClaimLostError(claim.instance_id, claim.task_id, "w2")

        backend, steps = Expiring(), []

        async def work() -> None:
            async with keep(backend, ttl=SOON * 3):
                while time.monotonic() < began + 0.02:
                    pass

                steps.append("worked")
                await anyio.sleep_forever()

        with pytest.raises(ClaimLostError, match="w2"):
            await work()

        assert steps == ["worked"]
        assert len(backend.asked) == 1

    execute(loop, check)


@on_both_loops
def test_renewal_that_hangs_does_not_keep_the_block_from_ending(loop: str) -> None:
    async def check() -> None:
        class Hanging(Backend):
            async def extend_task_claim(self, claim: TaskClaim, *, ttl: timedelta) -> TaskClaim:
                await super().extend_task_claim(claim, ttl=ttl)
                await anyio.sleep_forever()
                raise AssertionError

        backend = Hanging()

        async with keep(backend):
            await backend.asked_for(1)

        assert len(backend.asked) == 1

    execute(loop, check)


@on_both_loops
def test_blocks_may_be_nested(loop: str) -> None:
    async def check() -> None:
        lost, kept = Backend(ClaimLostError("run", "a", "w2")), Backend()
        steps: list[str] = []
        record: Callable[[str], None] = steps.append

        async with keep(kept):
            with pytest.raises(ClaimLostError):
                async with keep(lost):
                    await anyio.sleep_forever()

            record("outer goes on")
            await kept.asked_for(len(kept.asked) + 1)

        assert steps == ["outer goes on"]

    execute(loop, check)


@on_both_loops
def test_unexpected_error_of_a_renewal_comes_out_as_it_is(loop: str) -> None:
    async def check() -> None:
        with pytest.raises(BackendClosedError):
            async with keep(Backend(BackendClosedError("closed meanwhile"))):
                await anyio.sleep_forever()

    execute(loop, check)
