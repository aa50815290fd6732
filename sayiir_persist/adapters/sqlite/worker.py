"""A thread that owns a connection and carries out what tasks of an event loop wait for."""

from __future__ import annotations

import random
import time
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from sayiir_persist.adapters.sqlite.errors import in_our_words, is_busy
from sayiir_persist.errors import BackendClosedError, BackendUnavailableError, OutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sayiir_persist.adapters.sqlite.loops import Loop, Reply

MAX_BATCH: Final = 256
_SHORTEST_PAUSE: Final = 0.000_2
_LONGEST_PAUSE: Final = 0.005


class Transactions(Protocol):
    """What a worker needs of a session."""

    def begin(self) -> None:
        """Begin a transaction; busy: `sqlite3.OperationalError`."""
        ...

    def commit(self) -> Callable[[], None] | None:
        """Commit it; the answer is called in the event loop."""
        ...

    def rollback(self) -> None:
        """Roll it back, if there is one."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


S = TypeVar("S", bound=Transactions)
T = TypeVar("T")


class Job(Generic[S, T]):
    """Steps that one task waits for; each is whole or absent, and none touches the others.

    Attributes:
        steps: What to do in the transaction; may be called again after it was rolled back.
        reply: Where the task waits.
        outcomes: What each step returned, or the error that it failed with.
    """

    __slots__ = ("_ticket", "outcomes", "reply", "steps")

    def __init__(self, steps: Sequence[Callable[[S], T]], reply: Reply) -> None:
        self.steps: Sequence[Callable[[S], T]] = steps
        self.reply: Reply = reply
        self.outcomes: list[T | Exception] = []
        self._ticket = Lock()

    def take(self) -> bool:
        """Start it, or withdraw it: who comes first may, for the other it is `False`."""
        return self._ticket.acquire(blocking=False)

    @property
    def taken(self) -> bool:
        """Whether it was started or withdrawn."""
        return self._ticket.locked()

    def fail(self, error: Exception) -> None:
        """Answer every step with the same error."""
        self.outcomes = [error for _ in self.steps]


class Worker(Generic[S]):
    """Carries out jobs in the order in which they came, all that wait in one transaction.

    A transaction begins before the jobs for it are taken, so whoever gives up while another
    process holds the write lock was certainly not served.

    Args:
        name: Of the thread.
        open_session: Opens the connection, in the thread; is told whether it is still wanted.
        loop: Where the tasks wait.
    """

    def __init__(
        self, name: str, open_session: Callable[[Callable[[], bool]], S], loop: Loop
    ) -> None:
        self._open_session = open_session
        self._loop = loop
        self._jobs: SimpleQueue[Job[S, Any] | None] = SimpleQueue()
        self._stopping = False
        self._opened: Job[S, None] = Job((_nothing,), loop.reply())
        self._ended = loop.reply()
        self._thread = Thread(target=self._main, name=name, daemon=True)

    # --- In the event loop ---

    async def start(self, timeout: float) -> None:
        """Start the thread and wait until the connection is open.

        Raises:
            BackendUnavailableError: It took too long.
        """
        self._thread.start()

        if not await self._opened.reply.wait(timeout):
            raise BackendUnavailableError("another process keeps the database to itself")

        for error in self._opened.outcomes:
            if error is not None:
                raise error

    def submit(self, job: Job[S, Any]) -> None:
        """Hand over a job."""
        self._jobs.put(job)

    def stop(self) -> None:
        """Have the thread end after what it is at; who waits for more is told so."""
        self._stopping = True
        self._jobs.put(None)

    async def join(self, timeout: float) -> None:
        """Wait for the end of the thread, at most `timeout` seconds."""
        if self._thread.ident is not None and await self._ended.wait(timeout):
            self._thread.join()

    # --- In the thread ---

    def _main(self) -> None:
        try:
            session = self._open_session(lambda: self._stopping)
        except Exception as error:  # noqa: BLE001  (raised by `start`)
            self._opened.fail(error)
            self._loop.post(_arrive, (self._opened,))
        else:
            self._loop.post(_arrive, (self._opened,))

            try:
                self._serve(session)
            finally:
                session.close()

        self._refuse_waiting()
        self._loop.post(self._ended.arrive)

    def _serve(self, session: S) -> None:
        while not self._stopping:
            first = self._jobs.get()

            if first is None or first.taken:
                continue

            try:
                begun = self._begin(session, first)
            except Exception as error:  # noqa: BLE001  (raised where the job is waited for)
                self._answer_alone(first, in_our_words(error))
                continue

            if begun:
                self._carry_out(session, self._take_waiting(first))
            elif self._stopping:
                self._answer_alone(first, _closed())

    def _begin(self, session: S, wanted_by: Job[S, Any] | None = None) -> bool:
        """Begin a transaction as soon as nobody else holds the database.

        SQLite's own waiting sleeps up to 100 ms at a time, which starves who waits with it.
        """
        pause = _SHORTEST_PAUSE

        while not (self._stopping or (wanted_by is not None and wanted_by.taken)):
            try:
                session.begin()
            except Exception as error:
                session.rollback()

                if not is_busy(error):
                    raise

                time.sleep(random.uniform(pause / 2, pause))  # noqa: S311  (no secret)
                pause = min(pause * 1.5, _LONGEST_PAUSE)
            else:
                return True

        return False

    def _take_waiting(self, first: Job[S, Any]) -> list[Job[S, Any]]:
        jobs = [first] if first.take() else []

        while len(jobs) < MAX_BATCH:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break

            if job is not None and job.take():
                jobs.append(job)

        return jobs

    def _carry_out(self, session: S, jobs: Sequence[Job[S, Any]]) -> None:
        committed: Callable[[], None] | None = None

        try:
            for job in jobs:
                job.outcomes = [step(session) for step in job.steps]

            committed = session.commit()
        except OutcomeUnknownError as error:
            session.rollback()

            for job in jobs:
                job.fail(error)
        except Exception as error:  # noqa: BLE001  (raised where the jobs are waited for)
            session.rollback()
            self._carry_out_apart(session, jobs, error)

        self._loop.post(_arrive, jobs, committed)

    def _carry_out_apart(self, session: S, jobs: Sequence[Job[S, Any]], error: Exception) -> None:
        """Give each step a transaction of its own, so that only the one that fails does."""
        if len(jobs) == 1 and len(jobs[0].steps) == 1:
            jobs[0].fail(in_our_words(error))
            return

        for job in jobs:
            job.outcomes = [self._outcome(session, step) for step in job.steps]

    def _outcome(self, session: S, step: Callable[[S], T]) -> T | Exception:
        try:
            if not self._begin(session):
                return _closed()

            outcome = step(session)

            if (committed := session.commit()) is not None:
                self._loop.post(committed)
        except Exception as error:  # noqa: BLE001  (raised where the job is waited for)
            session.rollback()
            return in_our_words(error)

        return outcome

    def _refuse_waiting(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return

            if job is not None:
                self._answer_alone(job, _closed())

    def _answer_alone(self, job: Job[S, Any], error: Exception) -> None:
        if job.take():
            job.fail(error)
            self._loop.post(_arrive, (job,))


def _arrive(jobs: Sequence[Job[Any, Any]], committed: Callable[[], None] | None = None) -> None:
    if committed is not None:
        committed()

    for job in jobs:
        job.reply.arrive()


def _closed() -> BackendClosedError:
    return BackendClosedError("the backend was closed")


def _nothing(session: object) -> None:
    del session
