"""What a check is written with: backends on one store, time, races, and expectations."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, cast

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from sayiir_persist import PersistentBackend, WakeupSource
    from sayiir_persist.conformance.subject import Subject

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

LONGEST_SLEEP: Final = timedelta(seconds=2)
"""How long the kit lets time pass on a store whose clock cannot be moved."""


class ExpectationError(AssertionError):
    """The backend broke the contract; the message names the expectation."""


class NotApplicableError(Exception):
    """The check cannot be made on this subject."""


def expect(condition: object, expectation: str) -> None:
    """Fail the check unless `condition` holds.

    Args:
        condition: What was observed, as a truth value.
        expectation: What the contract promises, as a sentence.

    Raises:
        ExpectationError: It does not hold.
    """
    if not condition:
        raise ExpectationError(expectation)


def expect_equal(found: object, expected: object, expectation: str) -> None:
    """Fail the check unless both are equal; the message shows them.

    Raises:
        ExpectationError: They differ.
    """
    if found != expected:
        raise ExpectationError(f"{expectation}: found {found!r}, expected {expected!r}")


class Raised(Generic[E]):
    """The error that a `raises` block caught; there once the block is left."""

    def __init__(self) -> None:
        self._error: E | None = None

    @property
    def error(self) -> E:
        """The error itself."""
        if self._error is None:
            raise RuntimeError("the block has not raised yet")

        return self._error

    def catch(self, error: E) -> None:
        """Keep the error."""
        self._error = error


class raises(Generic[E]):
    """Expect the block to raise an error of one type, or of one of several.

    Example:
        >>> from sayiir_persist.conformance import raises
        >>> with raises(KeyError, "an unknown key is an error") as caught:
        ...     {}["missing"]
        >>> caught.error.args
        ('missing',)
    """

    def __init__(self, error: type[E] | tuple[type[E], ...], expectation: str) -> None:
        self._types = error if isinstance(error, tuple) else (error,)
        self._expectation = expectation
        self._raised = Raised[E]()

    def __enter__(self) -> Raised[E]:
        return self._raised

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if isinstance(error, self._types):
            self._raised.catch(error)
            return True

        if error is not None and not isinstance(error, Exception):
            return False

        wanted = " or ".join(each.__name__ for each in self._types)
        got = "nothing was raised" if error is None else f"{type(error).__name__} was: {error}"
        raise ExpectationError(f"{self._expectation}: expected {wanted}, {got}") from error


class Kit:
    """What a check receives. Made anew for every check, and closed after it.

    Attributes:
        subject: The store under test.
        namespace: The check's own namespace, fresh and unique.
        short: A ttl or delay to wait out: longer than any jitter, yet short on a real clock.
        long: A ttl that no check outlives.
    """

    short: Final = timedelta(milliseconds=150)
    long: Final = timedelta(minutes=10)

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.namespace: str = f"check-{token_hex(8)}"
        self._numbers = count(1)
        self._opened = AsyncExitStack()

    def backend(self, *, namespace: str | None = None, **options: Any) -> PersistentBackend:
        """Make a backend object that is not entered; closing it is the check's business."""
        return self.subject.backend(namespace=namespace or self.namespace, **options)

    async def open(self, *, namespace: str | None = None, **options: Any) -> PersistentBackend:
        """Open another backend object on the store, in the check's namespace unless given.

        It is closed after the check. To be called in the check's own task.
        """
        backend = await self.backend(namespace=namespace, **options).__aenter__()
        self._opened.push_async_callback(backend.__aexit__, None, None, None)
        return backend

    async def elapse(self, duration: timedelta) -> None:
        """Let that much of the store's time pass.

        Raises:
            NotApplicableError: It is long, and the subject's clock cannot be moved.
        """
        if duration > LONGEST_SLEEP and not self.manual_clock:
            self.skip(f"needs a clock that can be moved: {duration} is too long to wait")

        await self.subject.elapse(max(duration, timedelta(0)))

    async def until(self, backend: PersistentBackend, instant: datetime | None) -> None:
        """Let time pass until the store's clock shows `instant`: exactly, if it can be moved.

        Raises:
            ExpectationError: It is no instant, or the store's time does not pass.
        """
        if instant is None:
            raise ExpectationError("the store stamps an instant here, not None")

        for _ in range(10):
            if (left := instant - await backend.now()) <= timedelta(0):
                return

            await self.elapse(left)

        raise ExpectationError("the store's clock goes on while time passes")

    @property
    def manual_clock(self) -> bool:
        """Whether time stands still between the calls of `elapse`."""
        return bool(getattr(self.subject, "manual_clock", False))

    async def corrupt(self, instance_id: str, *, namespace: str | None = None) -> None:
        """Damage the stored body of an instance.

        Raises:
            NotApplicableError: The subject cannot do that.
        """
        corrupt = getattr(self.subject, "corrupt", None)

        if corrupt is None:
            self.skip("needs a subject with `corrupt`")

        await corrupt(namespace or self.namespace, instance_id)

    def wakeups(self, backend: PersistentBackend) -> WakeupSource:
        """The backend as a source of wake hints.

        Raises:
            NotApplicableError: It is none.
        """
        if not hasattr(backend, "wait_for_wakeup"):
            self.skip("needs a backend that gives wake hints")

        return cast("WakeupSource", backend)

    def instance(self, label: str = "run") -> str:
        """An instance id that no one has used yet."""
        return f"{label}-{next(self._numbers)}"

    def skip(self, reason: str) -> NoReturn:
        """Leave the check: it cannot be made on this subject.

        Raises:
            NotApplicableError: Always.
        """
        raise NotApplicableError(reason)

    async def together(self, *calls: Callable[[], Awaitable[T]]) -> list[T | Exception]:
        """Start calls at one barrier, each in a task of its own, and wait for all of them.

        Returns:
            What each returned, or the exception that it raised, in the order of the calls.
        """
        outcomes: dict[int, T | Exception] = {}
        barrier, waiting = anyio.Event(), count(1)

        async def run(number: int, call: Callable[[], Awaitable[T]]) -> None:
            if next(waiting) == len(calls):
                barrier.set()

            await barrier.wait()

            try:
                outcomes[number] = await call()
            except Exception as error:  # noqa: BLE001  (an outcome)
                outcomes[number] = error

        async with anyio.create_task_group() as tasks:
            for number, call in enumerate(calls):
                tasks.start_soon(run, number, call)

        return [outcomes[number] for number in range(len(calls))]

    async def aclose(self) -> None:
        """Close every backend that `open` made, the last one first."""
        with anyio.move_on_after(30, shield=True):
            await self._opened.aclose()


def succeeded(outcomes: list[T | Exception]) -> list[T]:
    """Of the outcomes of `Kit.together`, those that are no exceptions."""
    return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]


def refused(outcomes: list[T | Exception], error: type[E]) -> list[E]:
    """Of the outcomes of `Kit.together`, the exceptions, all of which must be of one type.

    Raises:
        ExpectationError: One is of another type.
    """
    errors: list[E] = []

    for outcome in outcomes:
        if isinstance(outcome, error):
            errors.append(outcome)
        elif isinstance(outcome, Exception):
            raise ExpectationError(
                f"a call that loses the race raises {error.__name__}, not {outcome!r}"
            ) from outcome

    return errors
