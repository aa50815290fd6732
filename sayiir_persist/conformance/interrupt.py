"""Cancelling a call exactly at its n-th suspension point, on any event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from anyio import CancelScope
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

T = TypeVar("T")


class Interruption(Struct, frozen=True):
    """What became of a call that was cancelled on its way.

    Attributes:
        reached: Whether the call was suspended often enough to be cancelled at all.
        returned: Whether it returned all the same.
        error: What it raised, other than its cancellation.
    """

    reached: bool
    returned: bool
    error: Exception | None


async def interrupted(call: Callable[[], Awaitable[object]], at: int) -> Interruption:
    """Make a call, and cancel it when it is suspended for the `at`-th time.

    The call stays cancelled, as in any cancelled scope: whatever it then waits for is cancelled as
    well, unless it is shielded.
    """
    scope = CancelScope()
    stepped = _Stepped(call, at, scope.cancel)
    returned, error = False, None

    with scope:
        try:
            await stepped
            returned = True
        except Exception as raised:  # noqa: BLE001  (the caller looks at it)
            error = raised

    return Interruption(stepped.suspensions >= at, returned, error)


class _Stepped(Generic[T]):
    """Awaits a call by hand: passes on what it asks of the event loop, and counts that."""

    def __init__(
        self, call: Callable[[], Awaitable[T]], at: int, cancel: Callable[[], object]
    ) -> None:
        self._call, self._at, self._cancel = call, at, cancel
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._run().__await__()
        answer: Any = None
        error: BaseException | None = None

        while True:
            try:
                asked = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as stop:
                result: T = stop.value
                return result

            self.suspensions += 1

            if self.suspensions == self._at:
                self._cancel()

            answer, error = None, None

            try:
                answer = yield asked
            except BaseException as raised:  # noqa: BLE001  (handed on)
                error = raised

    async def _run(self) -> T:
        return await self._call()
