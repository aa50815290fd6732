"""The loop behind every composite operation: read, decide (pure), write under a guard, again."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import anyio
from msgspec.structs import replace

from sayiir_persist.background import Background
from sayiir_persist.body import arrivals, settled
from sayiir_persist.coalescer import Coalescer
from sayiir_persist.dispatch import answered, elapsed_end, ended, first_met, settle
from sayiir_persist.driver import (
    Answer,
    ClaimNext,
    Content,
    Driver,
    Facts,
    Guard,
    Opened,
    Read,
    SignalMark,
    Unit,
    View,
)
from sayiir_persist.errors import (
    BackendClosedError,
    BackendError,
    ClaimLostError,
    CodecError,
    ConfigurationError,
    ContentionError,
    InstanceNotFoundError,
    PersistError,
    TerminalStateError,
)
from sayiir_persist.positions import AtDelay, AtSignal, AtTask, leaves
from sayiir_persist.signals import SignalKind
from sayiir_persist.snapshot import Status, WorkflowSnapshot
from sayiir_persist.validation import EPOCH, from_micros
from sayiir_persist.values import facts_of, pending_mark, request_of, restored, stored_form
from sayiir_persist.writes import OPEN, content_of, key_of, refusal, save_guard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from datetime import datetime

    from sayiir_persist.claims import TaskClaim
    from sayiir_persist.options import Options
    from sayiir_persist.protocols import Limits

logger: logging.Logger = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 50
"""After this many tries, each overtaken by another writer, an operation gives up."""

LONGEST_CLOSE: Final = 5
"""In seconds."""

D = TypeVar("D", bound=Driver)
T = TypeVar("T")


class Engine(Generic[D]):
    """An open driver, and the steps that several operations of `StandardBackend` share."""

    def __init__(self, driver: D, options: Options) -> None:
        self.options = options
        self.limits: Limits = options.limits
        self.opened: Opened | None = None
        self._driver = driver
        self._process = 0
        self._closing = False
        self._background = Background()
        self._writes = Coalescer(driver.apply, self._background)
        self._reported: set[tuple[str, str, int]] = set()

    async def open(self) -> None:
        """Open the driver."""
        if self.opened is not None:
            raise ConfigurationError("the backend is open already")

        self.opened = await self._driver.open()
        self._writes = Coalescer(self._driver.apply, self._background, writers=self.opened.writers)
        self._process = os.getpid()

    async def close(self) -> None:
        """Close the driver, and wait for the writes that are on their way.

        Interrupted, it goes on when it is called again.
        """
        if self.opened is None and not self._closing:
            return

        self.opened, self._closing = None, True

        with anyio.move_on_after(LONGEST_CLOSE, shield=True):
            await self._driver.close()
            await self._background.aclose()

        self._closing = False

    @property
    def name(self) -> str:
        """The driver's name."""
        return self._driver.name

    @property
    def driver(self) -> D:
        """The driver, if it is open here."""
        if self.opened is None:
            raise BackendClosedError("the backend is not open: use `async with`")

        if self._process != os.getpid():
            raise BackendClosedError("the backend was opened before a fork: open one of your own")

        return self._driver

    async def submit(self, unit: Unit) -> Answer:
        """Carry out one write, perhaps together with those of others."""
        _ = self.driver
        return await self._writes.submit(unit)

    async def write(self, unit: Unit) -> Answer:
        """Carry out one write, or raise what refused it."""
        answer = await self.submit(unit)

        if answer.refused is not None:
            raise required(refusal(unit, answer))

        return answer

    async def view(
        self,
        instance_id: str,
        *,
        body: bool = True,
        results: bool | Collection[str] = True,
        payloads: bool = False,
    ) -> View | None:
        """Read one instance; see `Read`."""
        read = Read(instance_id=instance_id, body=body, results=results, payloads=payloads)
        [view] = await self.driver.read((read,))
        return view

    def content(self, snapshot: WorkflowSnapshot) -> Content:
        """Everything that a write of this snapshot stores."""
        return content_of(snapshot, self.options.codec, self.limits)

    def saving(
        self,
        snapshot: WorkflowSnapshot,
        claim: TaskClaim | None,
        *,
        release: bool = False,
        claim_next: ClaimNext | None = None,
    ) -> Unit:
        """The write of a snapshot that was made from a stored version."""
        guard = save_guard(snapshot, claim)
        return Unit(
            instance_id=snapshot.instance_id,
            guard=guard,
            content=self.content(snapshot),
            release=guard.claim if release else None,
            claim_next=claim_next,
        )

    async def apply_signals(
        self,
        instance_id: str,
        *,
        idle: bool = False,
        kinds: frozenset[SignalKind] = frozenset(SignalKind),
        interrupted_at_task: str | None = None,
        view: View | None = None,
    ) -> Applied | None:
        """Carry out the pending signal that counts, if it is one of `kinds`; cancel wins.

        With `idle` only where no claim is live. Nothing to apply: `None`.
        """
        for _ in range(MAX_ATTEMPTS):
            if view is None:
                view = await self.view(instance_id, body=False, results=False)

                if view is None or _applicable(view.facts, kinds, idle=idle) is None:
                    return None

                view = await self.view(instance_id, results=False)

            mark = _applicable(view.facts, kinds, idle=idle) if view else None

            if view is None or mark is None:
                return None

            current = settled(view)
            request = request_of(mark)

            if mark.kind is SignalKind.CANCEL:
                new = current.cancel(request, interrupted_at_task=interrupted_at_task)
            else:
                new = current.pause(request)

            unit = Unit(
                instance_id=instance_id,
                guard=replace(_guard_of(view), idle=idle),
                clear=frozenset({mark.kind}),
                content=self.content(new),
            )
            answer = await self.submit(unit)

            if answer.refused is None:
                return Applied(mark.kind, stored_form(new, answer))

            view = None

        raise ContentionError(instance_id, MAX_ATTEMPTS)

    async def advance(
        self, instance_id: str, *, known: WorkflowSnapshot | None = None, answers: bool = False
    ) -> WorkflowSnapshot | None:
        """Write every move that is due: answered waits, and parks that lead to no task.

        Args:
            instance_id: Whose.
            known: What is stored as far as the caller knows, with its results.
            answers: Only waits that met their event; elapsed parks are left to dispatch.

        Returns:
            What was stored last; `None`: there was nothing to write, or nobody may.
        """
        moved: WorkflowSnapshot | None = None

        for _ in range(MAX_ATTEMPTS):
            view = await self.view(instance_id, results=False, payloads=True)

            if view is None or not can_move(view.facts) or not view.facts.advance_due:
                return moved

            step = await self._next_step(view, restored(view, moved or known), answers=answers)

            if step is None:
                return moved

            answer = await self.submit(self.stepping(view, step))

            if answer.refused is None:
                moved = stored_form(step.snapshot, answer)

                if not facts_of(answer).advance_due:
                    return moved

        raise ContentionError(instance_id, MAX_ATTEMPTS)

    async def _next_step(
        self, view: View, stored: WorkflowSnapshot, *, answers: bool
    ) -> Step | None:
        now = from_micros(view.now)
        current = settle(stored, now, arrivals(view))

        if (step := drain_step(view, current)) is not None or answers:
            return step

        park = elapsed_end(current, now)

        if park is None:
            return None if current is stored else Step(current)

        if current.position == park and isinstance(park, AtDelay) and not current.results.loaded:
            current = await self._with_result(current, park.node_id)

        return Step(ended(current, park))

    async def _with_result(self, snapshot: WorkflowSnapshot, node_id: str) -> WorkflowSnapshot:
        view = await self.view(snapshot.instance_id, body=False, results=(node_id,))
        output = view.results.get(node_id) if view and view.results else None
        results = snapshot.results
        known = results.without(node_id) if output is None else results.with_result(node_id, output)
        return replace(snapshot, results=known)

    def stepping(self, view: View, step: Step) -> Unit:
        """The write of a move, on what the view has read and nothing else."""
        head = None

        if step.event is not None:
            head = (step.event, view.heads[step.event].number)

        return Unit(
            instance_id=view.instance_id,
            guard=replace(_guard_of(view), head=head),
            content=self.content(step.snapshot),
            pop=step.event,
        )

    async def after_write(self, snapshot: WorkflowSnapshot, answer: Answer) -> WorkflowSnapshot:
        """What is stored after an accepted write, and after the drain that it brought about."""
        stored = stored_form(snapshot, answer)

        if facts_of(answer).advance_due:
            moved = await self.follow_up(
                stored.instance_id, self.advance, known=stored, answers=True
            )
            stored = moved or stored

        return await self.shown(stored, max(from_micros(answer.now), stored.updated_at or EPOCH))

    async def shown(self, stored: WorkflowSnapshot, now: datetime) -> WorkflowSnapshot:
        """What a load would show; asks for the queue only where a wait ended as it was entered."""
        if stored.position is None or isinstance(stored.position, AtTask):
            return stored  # nothing that time could move

        over = any(
            isinstance(leaf, AtSignal) and leaf.ends_at is not None and leaf.ends_at <= now
            for leaf in leaves(stored.position)
        )
        view = await self.view(stored.instance_id, results=False) if over else None
        return settle(stored, now, arrivals(view) if view else {})

    async def follow_up(
        self, instance_id: str, step: Callable[..., Awaitable[T]], **arguments: Any
    ) -> T | None:
        """What comes after a write that is stored already must not make it look refused.

        Dispatch or a sweep does what failed here.
        """
        try:
            return await step(instance_id, **arguments)
        except (BackendError, CodecError, ContentionError) as error:
            logger.warning(
                "left to dispatch or sweep what follows a write",
                extra={
                    "instance_id": instance_id,
                    "namespace": self.options.namespace,
                    "backend": self.name,
                    "error": str(error),
                },
            )
            return None

    async def report_unreadable(self, instance_id: str, error: CodecError) -> None:
        """Like `report`, for an instance that has yet to be looked at."""
        view = await self.view(instance_id, body=False, results=False)

        if view is not None:
            self.report(instance_id, view.facts, error)

    def report(self, instance_id: str, facts: Facts, error: CodecError) -> None:
        """Log an unreadable instance, once for each version of it."""
        known = (instance_id, facts.incarnation, facts.version)

        if known not in self._reported:
            self._reported.add(known)
            logger.error(
                "cannot read an instance, dispatch passes it over",
                extra={
                    "instance_id": instance_id,
                    "namespace": self.options.namespace,
                    "backend": self.name,
                    "error": str(error),
                },
            )

    async def load_for_change(self, instance_id: str, claim: TaskClaim | None) -> WorkflowSnapshot:
        """What a change works on; raises what would refuse its write for sure."""
        view = await self.view(instance_id)

        if view is None:
            if claim is not None:
                raise ClaimLostError(instance_id, claim.task_id)

            raise InstanceNotFoundError(instance_id)

        if view.facts.status.is_terminal:
            raise TerminalStateError(instance_id, view.facts.status)

        return settled(view)

    async def check_live(self, claim: TaskClaim) -> None:
        """A fenced write of nothing: raises if the claim is lost."""
        unit = Unit(
            instance_id=claim.instance_id,
            guard=Guard(statuses=OPEN, claim=key_of(claim)),
        )
        await self.write(unit)


class Applied(NamedTuple):
    """A control signal that was carried out, and what is stored since."""

    kind: SignalKind
    snapshot: WorkflowSnapshot


class Step(NamedTuple):
    """A move to write, and the name of the event that it takes from the queue."""

    snapshot: WorkflowSnapshot
    event: str | None = None


def required(error: PersistError | None) -> PersistError:
    """The error of a refusal that the facts must explain."""
    return error or BackendError("the store refused a write and its facts do not say why")


def drain_step(view: View, current: WorkflowSnapshot) -> Step | None:
    """The move of the first wait that met its event, if there is one."""
    wait = first_met(current, arrivals(view))

    if wait is None:
        return None

    head = view.heads[wait.name]

    if head.payload is None:
        raise BackendError("the store answered an event without its payload")

    return Step(answered(current, wait, head.payload, from_micros(head.arrived_at)), wait.name)


def can_move(facts: Facts) -> bool:
    """Whether an instance may be moved on at all: in progress, and no signal pending."""
    return facts.status is Status.IN_PROGRESS and not facts.signals


def _guard_of(view: View) -> Guard:
    """Nothing has moved since the view was read, pending signals included."""
    return Guard(
        statuses=OPEN,
        version=view.facts.version,
        incarnation=view.facts.incarnation,
        signals=view.facts.signals,
    )


def _applicable(facts: Facts, kinds: frozenset[SignalKind], *, idle: bool) -> SignalMark | None:
    if facts.status.is_terminal or (idle and facts.live_claims):
        return None

    if (cancel := pending_mark(facts.signals, SignalKind.CANCEL)) is not None:
        return cancel if SignalKind.CANCEL in kinds else None

    if facts.status is not Status.IN_PROGRESS or SignalKind.PAUSE not in kinds:
        return None

    return pending_mark(facts.signals, SignalKind.PAUSE)
