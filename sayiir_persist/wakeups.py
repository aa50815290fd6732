"""Wake hints on their way from a write to the callers that wait for work."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

import anyio

from sayiir_persist.claims import WakeHint
from sayiir_persist.errors import BackendClosedError

ANYTHING: Final = WakeHint()
_KEPT_HINTS: Final = 256
_KEPT_CALLERS: Final = 1024


class Wakeups:
    """The hints of one backend object, and its waiting callers.

    Every caller (one asyncio or trio task) is answered at once when a hint came since its last
    answer, so none is missed between an empty poll and the wait. What is kept is bounded: who
    fell behind is told that anything may have become ready.
    """

    def __init__(self) -> None:
        self._hints: deque[tuple[int, WakeHint]] = deque(maxlen=_KEPT_HINTS)
        self._count = 0
        self._answered: OrderedDict[int, int] = OrderedDict()
        self._arrival: anyio.Event | None = None  # there while somebody waits
        self._closed = False

    def notify(self, hint: WakeHint) -> None:
        """Hand a hint to everybody who waits, or will wait before having seen it."""
        self._count += 1
        self._hints.append((self._count, hint))
        self._wake()

    def close(self) -> None:
        """End every wait with `BackendClosedError`."""
        self._closed = True
        self._wake()

    async def wait(self, timeout: float) -> WakeHint | None:
        """Wait at most `timeout` seconds for a hint; `None`: there was none."""
        caller = anyio.get_current_task().id

        with anyio.move_on_after(timeout):
            while not self._closed and self._seen(caller) == self._count:
                self._arrival = self._arrival or anyio.Event()
                await self._arrival.wait()

        if self._closed:
            raise BackendClosedError("the backend was closed while waiting for work")

        return self._answer(caller)

    def _wake(self) -> None:
        if self._arrival is not None:
            self._arrival.set()
            self._arrival = None

    def _seen(self, caller: int) -> int:
        return self._answered.get(caller, 0)

    def _answer(self, caller: int) -> WakeHint | None:
        missed = [hint for number, hint in self._hints if number > self._seen(caller)]
        self._answered[caller] = self._count
        self._answered.move_to_end(caller)

        if len(self._answered) > _KEPT_CALLERS:
            self._answered.popitem(last=False)

        if not missed:
            return None

        return missed[0] if len(missed) == 1 else ANYTHING
