"""Group commit: writes that concurrent tasks wait for share one call to the driver."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint

from sayiir_persist.errors import OutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sayiir_persist.background import Background
    from sayiir_persist.driver import Answer, Unit

MAX_BATCH: Final = 256


class _Waiting:
    __slots__ = ("answer", "done", "unit")

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.done = anyio.Event()
        self.answer: Answer | Exception | None = None


class Coalescer:
    """Stands in front of `Driver.apply`.

    Alone, a write goes out at once, in the caller's own task. While every writer is busy, writes
    gather; the next writer that is free takes its share of them, at most one for each instance and
    in order for each, in a task that no caller can cancel. Every caller gets its own answer.

    Cancelling a caller whose write still waits withdraws it; once it is on its way it lands whole
    or not at all.

    Args:
        apply: The driver's.
        writers: How many calls may be on their way at once.
    """

    def __init__(
        self,
        apply: Callable[[Sequence[Unit]], Awaitable[Sequence[Answer | Exception]]],
        background: Background,
        *,
        writers: int = 1,
    ) -> None:
        self._apply = apply
        self._background = background
        self._writers = writers
        self._idle_writers = writers
        self._waiting: deque[_Waiting] = deque()
        self._underway: set[str] = set()

    async def submit(self, unit: Unit) -> Answer:
        """Carry out one write, perhaps together with others."""
        if self._idle_writers and not self._has_predecessor(unit.instance_id):
            return await self._alone(unit)

        waiting = _Waiting(unit)
        self._waiting.append(waiting)

        try:
            await waiting.done.wait()
        except BaseException:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

            raise

        if waiting.answer is None:
            raise OutcomeUnknownError("the write was interrupted: it may have been applied")

        return _answered(waiting.answer)

    def _has_predecessor(self, instance_id: str) -> bool:
        return instance_id in self._underway or any(
            waiting.unit.instance_id == instance_id for waiting in self._waiting
        )

    async def _alone(self, unit: Unit) -> Answer:
        self._idle_writers -= 1
        self._underway.add(unit.instance_id)

        try:
            return _answered((await self._apply((unit,)))[0])
        finally:
            self._finished((unit.instance_id,))

    def _finished(self, instance_ids: Sequence[str]) -> None:
        self._underway.difference_update(instance_ids)
        self._idle_writers += 1

        while self._waiting and self._idle_writers and (batch := self._next_batch()):
            self._idle_writers -= 1
            self._underway.update(waiting.unit.instance_id for waiting in batch)
            self._background.start(self._together, batch)

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        held = set(self._underway)
        kept: list[_Waiting] = []
        # An equal share, so that one batch is under way while another is made and answered.
        share = -(-(len(self._waiting) + len(held)) // self._writers)

        while self._waiting and len(batch) < min(share, MAX_BATCH):
            waiting = self._waiting.popleft()

            if waiting.unit.instance_id in held:
                kept.append(waiting)
            else:
                batch.append(waiting)

            held.add(waiting.unit.instance_id)

        self._waiting.extendleft(reversed(kept))
        return batch

    async def _together(self, batch: list[_Waiting]) -> None:
        try:
            answers = await self._apply([waiting.unit for waiting in batch])
        except Exception as exc:  # noqa: BLE001  (every caller raises it in its own task)
            for waiting in batch:
                waiting.answer = exc
        else:
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.answer = answer
        finally:
            for waiting in batch:
                waiting.done.set()

            try:  # callers that go on with another write come first, and share the next call
                await cancel_shielded_checkpoint()
            finally:
                self._finished([waiting.unit.instance_id for waiting in batch])


def _answered(answer: Answer | Exception) -> Answer:
    if isinstance(answer, Exception):
        raise answer

    return answer
