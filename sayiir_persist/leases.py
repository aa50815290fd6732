"""Keeping a claim alive around a block of work."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio

from sayiir_persist.errors import (
    BackendUnavailableError,
    ClaimLostError,
    ClaimNotFoundError,
    InvalidArgumentError,
    OutcomeUnknownError,
    PersistError,
)
from sayiir_persist.validation import check_ttl

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import timedelta

    from sayiir_persist.claims import TaskClaim
    from sayiir_persist.protocols import PersistentBackend

logger: logging.Logger = logging.getLogger(__name__)

_RENEWALS_PER_TTL: Final = 3


@asynccontextmanager
async def keep_claim(
    backend: PersistentBackend,
    claim: TaskClaim,
    *,
    ttl: timedelta,
    every: timedelta | None = None,
    cancel_on_signal: bool = False,
) -> AsyncGenerator[TaskClaim]:
    """Renew a claim in the background while a block of work runs.

    When the claim is gone the block is cancelled and `ClaimLostError` is raised. A renewal that
    does not get through is tried again until the claim must have ended. Work that blocks the
    event loop starves the renewal too: the block then learns that its claim is lost as soon as
    the loop runs again, and a write that carries the claim is refused by the store in any case.

    Commit after the block: a commit releases the claim, and to a renewal a released claim is a
    lost one. An exception of the block comes out as it is.

    Args:
        backend: Where the claim was made.
        claim: A claim that is live.
        ttl: How far each renewal moves the claim's end, from the moment it is made.
        every: How often to renew, at most a third of `ttl`, which is also the default.
        cancel_on_signal: Whether a pending cancel or pause cancels the block too. It then ends
            quietly, like a block of `anyio.move_on_after`: whatever it would have assigned is
            missing, and `check_control_signals` applies the signal.

    Raises:
        InvalidArgumentError: `every` is not above 0 or exceeds a third of `ttl`.
        ClaimLostError: The claim expired, was taken over, revoked or dropped.

    Example:
        >>> async def work(backend: PersistentBackend, task: AcquiredTask) -> None:
        ...     async with keep_claim(backend, task.claim, ttl=timedelta(seconds=30)):
        ...         output = await charge(task.input)
        ...     await backend.commit_task(task.claim, lambda s: s.complete_task(...))
    """
    check_ttl(ttl)
    longest = ttl / _RENEWALS_PER_TTL
    interval = (longest if every is None else every).total_seconds()

    if not 0 < interval <= longest.total_seconds():
        raise InvalidArgumentError(f"every must be above 0 and at most ttl / 3 ({longest})")

    lost: ClaimLostError | None = None
    failure: BaseException | None = None

    async def renew() -> None:
        nonlocal lost, failure
        known_live_until = anyio.current_time() + ttl.total_seconds()

        while lost is None:
            await anyio.sleep(interval)

            try:
                asked_at = anyio.current_time()
                renewed = await backend.extend_task_claim(claim, ttl=ttl)
            except ClaimLostError as error:
                lost = error
            except ClaimNotFoundError:
                lost = ClaimLostError(claim.instance_id, claim.task_id)
            except (BackendUnavailableError, OutcomeUnknownError) as error:
                if claim.expires_at is not None and anyio.current_time() >= known_live_until:
                    lost = ClaimLostError(claim.instance_id, claim.task_id)

                logger.warning("a claim was not renewed", extra={**facts, "error": str(error)})
            except PersistError as error:
                failure = failure or error
                break
            else:
                known_live_until = asked_at + ttl.total_seconds()

                if cancel_on_signal and renewed.pending_signal is not None:
                    break

        group.cancel_scope.cancel()

    facts = {
        "instance_id": claim.instance_id,
        "task_id": claim.task_id,
        "worker_id": claim.worker_id,
    }

    async with anyio.create_task_group() as group:
        group.start_soon(renew)

        try:
            yield claim
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  (raised below, outside of the group)
            failure = error

        group.cancel_scope.cancel()

    if failure is not None:
        raise failure

    if lost is not None:
        raise lost
