"""A Hypothesis state machine that drives a backend and the plain model side by side.

A backend author gets it in two lines, on a subject with a clock that can be moved::

    TestMyBackendMachine = backend_machine(my_subject).TestCase
    TestMyBackendMachine.settings = settings(max_examples=100, stateful_step_count=40)

The only module of the kit that imports Hypothesis.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime, timedelta
from itertools import count
from operator import attrgetter, methodcaller
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from hypothesis.strategies import DataObject, SearchStrategy, data
from msgspec import Struct
from msgspec.structs import asdict, replace

from sayiir_persist import (
    INSTANCE_INPUT,
    AcquiredTask,
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    AvailableTask,
    Commit,
    ConflictPolicy,
    InvalidArgumentError,
    PersistentBackend,
    PersistError,
    Position,
    RetryPolicy,
    SignalKind,
    SignalRequest,
    StaleSnapshotError,
    Status,
    TaskClaim,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.model import Model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from sayiir_persist.conformance.subject import Subject, SubjectFactory

T = TypeVar("T")

INSTANCES: Final = ("a", "B", "\N{LATIN SMALL LETTER U WITH DIAERESIS}")
MICROSECOND: Final = timedelta(microseconds=1)
WORKERS: Final = ("ada", "bob")
DEFINITIONS: Final = ("v1", "v2")
EVENTS: Final = ("go", "stop")
TAGS: Final[tuple[tuple[str, ...], ...]] = ((), ("gpu",), ("gpu", "eu"))
AGING: Final = timedelta(seconds=10)
QUEUED_EVENTS: Final = 4
KEPT: Final = 4

_seconds = st.sampled_from([0, 5, 10, 60]).map(lambda seconds: timedelta(seconds=seconds))
_ttls = st.sampled_from([0, 5, 30, 600]).map(lambda seconds: timedelta(seconds=seconds))
_payloads = st.sampled_from([b"", b"0", b"null", b"one", b"two"])
_instances = st.sampled_from(["a", "a", "a", "B", "B", INSTANCES[-1]])
_workers = st.sampled_from(WORKERS)
_tags = st.sampled_from([(), (), (), *TAGS])
_kinds = st.sampled_from(SignalKind)
_checks = st.sampled_from(["check_and_cancel", "check_and_pause", "check_control_signals"])
_requests = st.sampled_from([None, SignalRequest(reason="why", requested_by="who")])
_coin = st.booleans()
_rarely = st.integers(0, 5).map(lambda number: number == 5)
_filters = st.sampled_from([None, None, None, None, ["v1"], ["v2"], []])
_limits = st.sampled_from([1, 1, 2, 10, 10, 10, 0])

_with_claims = precondition(attrgetter("has_claims"))


@st.composite
def positions(draw: st.DrawFn, now: datetime, depth: int = 3) -> Position:
    """Trees with tasks, parks, forks and nodes; ids repeat from tree to tree, never within one."""
    names = count(draw(st.integers(0, 4)))

    def wake() -> dict[str, Any]:
        after = draw(_seconds)
        return (
            {"wake_at": now + after - timedelta(seconds=5)}
            if draw(_coin)
            else {"wake_after": after}
        )

    def following(depth: int) -> Position | None:
        return grown(depth - 1) if depth > 0 and draw(_coin) else None

    def task() -> AtTask:
        return AtTask(
            f"t{next(names)}",
            priority=draw(st.none() | st.integers(1, 5)),
            tags=draw(st.none() | _tags),
            input_from=draw(st.sampled_from([None, None, INSTANCE_INPUT, "t1"])),
        )

    def grown(depth: int) -> Position:
        kinds = ["task"] * 5 + ["delay", "delay", "signal", "signal", "node"]
        kinds += ["fork"] * 3 if depth > 0 else []

        match draw(st.sampled_from(kinds)):
            case "delay":
                return AtDelay(f"d{next(names)}", **wake(), next=following(depth))
            case "signal":
                ends = wake() if draw(_coin) else {}
                name = draw(st.sampled_from(EVENTS))
                return AtSignal(f"s{next(names)}", name, **ends, next=following(depth))
            case "node":
                return AtNode(f"n{next(names)}")
            case "fork":
                branches = {
                    key: grown(depth - 1) if draw(st.integers(0, 4)) else None
                    for key in "xyz"[: draw(st.integers(1, 3))]
                }
                return AtFork(f"f{next(names)}", branches, next=following(depth))
            case _:
                return task()

    return grown(depth)


class Step(Struct, frozen=True):
    """One transition, as a pure change that prints well.

    Attributes:
        name: The method of `WorkflowSnapshot`; `"same"` returns the argument.
        arguments: Its positional arguments.
        options: Its keyword arguments.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = {}

    def __call__(self, snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
        """Carry it out; one that would make a node id stand twice changes nothing."""
        if self.name == "same":
            return snapshot

        try:
            new: WorkflowSnapshot = getattr(snapshot, self.name)(*self.arguments, **self.options)
        except InvalidArgumentError:
            return snapshot

        return new


@st.composite
def _followings(draw: st.DrawFn, now: datetime) -> Position | None:
    return None if draw(_rarely) else draw(positions(now, 2))


def _completion(task_id: str, output: bytes, following: Position | None) -> Step:
    return Step("complete_task", (task_id, output), {"next": following})


@st.composite
def steps(draw: st.DrawFn, view: WorkflowSnapshot | None, now: datetime) -> Step:
    """Transitions, most of them of tasks that are ready."""
    ready = [task.task_id for task in view.ready_tasks()] if view else []
    names = ["record_result", "move_to", "move_to", "pause", "unpause", "unpause", "forget"]
    names += ["count_iteration", "with_deadline", "same"]
    names += ["complete_task"] * 6 + ["record_failure"] * 4 if ready else []
    names = ["complete", "fail", "cancel"] if draw(_rarely) else names
    name = draw(st.sampled_from(names))
    task_id = draw(st.sampled_from(ready)) if ready else "t1"

    match name:
        case "complete_task":
            return _completion(task_id, draw(_payloads), draw(_followings(now)))
        case "record_failure":
            policy = RetryPolicy(draw(st.integers(0, 3)), draw(_seconds), max_delay=AGING)
            return Step(name, (task_id, policy), {"error": "oops", "worker_id": draw(_workers)})
        case "record_result":
            return Step(name, (draw(st.sampled_from(["t1", "d1", "loop"])), draw(_payloads)))
        case "move_to":
            return Step(name, (draw(positions(now, 2)),))
        case "complete":
            return Step(name, (draw(_payloads),))
        case "fail":
            return Step(name, ("boom",))
        case "cancel" | "pause":
            return Step(name, (draw(_requests),))
        case "forget":
            return Step(name, ("t1", "s1"))
        case "count_iteration":
            return Step(name, ("loop",))
        case "with_deadline":
            return Step(name, (now + AGING,))
        case _:
            return Step(name)


def _applies(step: Step, snapshot: WorkflowSnapshot) -> bool:
    try:
        step(snapshot)
    except PersistError:
        return False

    return True


class Answer(Struct, Generic[T], frozen=True):
    """What a call returned, or the error that it raised."""

    value: T | None = None
    error: PersistError | None = None


class BackendMachine(RuleBasedStateMachine):
    """Calls two backend objects on one store and the model with the same arguments.

    The subject needs a manual clock: every instant is compared to the microsecond.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._incarnations: set[str] = set()
        self._claims: list[TaskClaim] = []
        self._held: dict[str, list[WorkflowSnapshot]] = {each: [] for each in INSTANCES}
        self._may_advance: set[str] = set()

        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise

    def make_subject(self) -> AbstractAsyncContextManager[Subject]:
        """Set up the store under test."""
        raise NotImplementedError

    def _open(self) -> None:
        self._portal: BlockingPortal = self._stack.enter_context(start_blocking_portal())
        self._subject: Subject = self._stack.enter_context(
            self._portal.wrap_async_context_manager(self.make_subject())
        )

        if not getattr(self._subject, "manual_clock", False):
            raise TypeError("the state machine needs a subject with manual_clock = True")

        namespace = f"machine-{token_hex(8)}"
        self._backends = [self._enter(namespace) for _ in range(2)]
        self._model = Model(
            self._portal.call(self._backends[0].now),
            aging_interval=AGING,
            max_queued_events=QUEUED_EVENTS,
        )

    def _enter(self, namespace: str) -> PersistentBackend:
        backend = self._subject.backend(
            namespace=namespace, aging_interval=AGING, max_queued_events=QUEUED_EVENTS
        )
        self._stack.enter_context(self._portal.wrap_async_context_manager(backend))
        return backend

    def teardown(self) -> None:
        """Close everything."""
        self._stack.close()

    # Asking both, and comparing.

    def _ask(self, call: Callable[[PersistentBackend], Awaitable[T]]) -> Answer[T]:
        self._backends.reverse()

        async def run() -> T:
            return await call(self._backends[0])

        try:
            return Answer(self._portal.call(run))
        except PersistError as error:
            return Answer(error=error)

    def _both(
        self,
        call: Callable[[PersistentBackend], Awaitable[T]],
        predict: Callable[[Model], Any],
    ) -> tuple[T, Any] | None:
        """What the store and the model answer; `None` where both refuse in the same way."""
        found = self._ask(call)

        try:
            expected: Answer[Any] = Answer(predict(self._model))
        except PersistError as error:
            expected = Answer(error=error)

        if found.error is None and expected.error is None:
            return found.value, expected.value  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

        assert type(found.error) is type(expected.error), f"found {found}, expected {expected}"

        if isinstance(found.error, StaleSnapshotError):
            assert found.error.args == getattr(expected.error, "args", ()), (
                f"found {found.error}, expected {expected.error}"
            )

        assert getattr(found.error, "status", None) == getattr(expected.error, "status", None) or (
            getattr(found.error, "status", None) is None
        ), f"found {found.error}, expected {expected.error}"
        return None

    def _equal(self, answers: tuple[Any, Any] | None) -> None:
        if answers:
            found, expected = answers
            assert found == expected, f"found {found!r}, expected {expected!r}"

    def _same_snapshot(self, found: WorkflowSnapshot | None) -> None:
        """The store's snapshot is the model's view, if need be after an advance that was due."""
        assert found is not None, "a snapshot was expected"
        instance_id = found.instance_id
        self._hold(found)
        run = self._model.runs.get(instance_id)
        assert run is not None, f"{instance_id!r} should not exist"

        if run.body.incarnation == "":
            assert found.incarnation, "a new instance gets an incarnation"
            assert found.incarnation not in self._incarnations, "an incarnation is never reused"
            self._incarnations.add(found.incarnation)
            self._model.adopt_birth(found)

        while (difference := self._difference(found)) and instance_id in self._may_advance:
            if not self._model.advance_is_due(run):
                break

            self._model.advance(run)

        assert not difference, f"{instance_id!r}: found and expected {difference}"

    def _difference(self, found: WorkflowSnapshot) -> dict[str, tuple[Any, Any]]:
        expected = self._model.view(found.instance_id)

        if not found.results.loaded:
            found = replace(found, results=expected.results)

        ours, theirs = asdict(expected), asdict(found)
        return {key: (theirs[key], ours[key]) for key in ours if theirs[key] != ours[key]}

    def _same_claim(self, found: TaskClaim, expected: TaskClaim, *, is_new: bool = True) -> None:
        if is_new:
            highest = self._model.fences.get(found.instance_id, 0)
            assert found.fence > highest, f"fence {found.fence} is not above {highest}"
            assert found.nonce, "every claim has a nonce"
            nonce = expected.nonce or found.nonce
            expected = replace(expected, fence=found.fence, nonce=nonce)

        assert found == expected, f"found {found}, expected {expected}"
        self._model.adopt_claim(found)
        self._claims = [*self._claims, found][-8:]

    def _same_task(self, found: AvailableTask, expected: AvailableTask) -> None:
        def facts(task: AvailableTask) -> dict[str, Any]:
            kept = asdict(task)
            kept.pop("snapshot")
            kept.pop("claim", None)
            return kept

        assert facts(found) == facts(expected), f"found {found}, expected {expected}"
        self._same_snapshot(found.snapshot)

        if isinstance(found, AcquiredTask) and isinstance(expected, AcquiredTask):
            self._same_claim(found.claim, expected.claim)

    def _same_tasks(
        self, found: list[Any], expected: list[Any], *, results: bool | None = None
    ) -> None:
        def names(tasks: list[Any]) -> list[tuple[str, str]]:
            return [(task.instance_id, task.task_id) for task in tasks]

        assert names(found) == names(expected), (
            f"found {names(found)}, expected {names(expected)} in this order"
        )

        for ours, theirs in zip(found, expected, strict=True):
            self._same_task(ours, theirs)
            assert results is None or ours.snapshot.results.loaded is results, (
                "results come only where they are asked for"
            )

    def _hold(self, snapshot: WorkflowSnapshot) -> None:
        held = self._held[snapshot.instance_id]

        if snapshot not in held:
            self._held[snapshot.instance_id] = [*held, snapshot][-KEPT:]

    def _view(self, instance_id: str) -> WorkflowSnapshot | None:
        return self._model.view(instance_id) if instance_id in self._model.runs else None

    @invariant()
    def the_store_shows_what_the_model_shows(self) -> None:
        """Every instance reads as the model says, at every moment."""
        for instance_id in INSTANCES:
            loaded = self._both(
                methodcaller("load_snapshot", instance_id), methodcaller("view", instance_id)
            )

            if loaded:
                self._same_snapshot(loaded[0])

        self._may_advance.clear()

    # Time.

    @rule(data=data())
    def time_passes(self, data: DataObject) -> None:
        """Move the clock: by a while, or to an instant at which something ends, or just before."""
        durations = [timedelta(seconds=seconds) for seconds in (1, 5, 30, 600, 4000)]

        for instant in self._model.instants()[:3]:
            left = instant - self._model.now
            durations += [left, left, left - MICROSECOND]

        duration = data.draw(st.sampled_from(durations))
        self._portal.call(self._subject.elapse, duration)
        self._model.now += duration
        now = self._portal.call(self._backends[0].now)
        assert now == self._model.now, f"the clock shows {now}, not {self._model.now}"

    # Snapshots.

    @initialize(data=data())
    def start_two(self, data: DataObject) -> None:
        """Begin with something to work on."""
        for instance_id in INSTANCES[:2]:
            self._start(data, instance_id)

    @rule(data=data())
    def start(self, data: DataObject) -> None:
        """Start an instance under each policy, now and then after deleting it."""
        instance_id = data.draw(_instances)

        if data.draw(_rarely):
            self._equal(
                self._both(
                    methodcaller("delete_snapshot", instance_id),
                    methodcaller("delete_snapshot", instance_id),
                )
            )
        else:
            self._start(data, instance_id)

    def _start(self, data: DataObject, instance_id: str) -> None:
        self._may_advance.add(instance_id)
        definition = "v2" if data.draw(_rarely) else "v1"
        arguments: dict[str, Any] = {
            "start_at": data.draw(positions(self._model.now)),
            "input": data.draw(st.none() | _payloads),
            "priority": data.draw(st.integers(1, 5)),
            "tags": data.draw(_tags),
            "on_conflict": data.draw(st.sampled_from(ConflictPolicy)),
        }
        answers = self._both(
            lambda b: b.start_instance(instance_id, definition, **arguments),
            lambda m: m.start_instance(instance_id, definition, **arguments),
        )

        if answers:
            found, expected = answers
            assert found.created == expected.created, f"created: {found.created}"
            self._same_snapshot(found.snapshot)

    @rule(data=data())
    def save_new(self, data: DataObject) -> None:
        """Save a snapshot that was never stored, or blindly over what is there."""
        instance_id = data.draw(_instances)
        now = self._model.now
        new = WorkflowSnapshot.start(instance_id, "v1", start_at=data.draw(positions(now)))
        step = data.draw(steps(new, now))
        overwrite = data.draw(_coin)

        try:
            new = step(new)
        except PersistError:
            return

        self._save(new, overwrite=overwrite)

    @rule(data=data())
    def save_held(self, data: DataObject) -> None:
        """Save what was loaded some time ago, after one more step."""
        instance_id = data.draw(_instances)

        if not (held := self._held[instance_id]):
            return

        snapshot = data.draw(st.sampled_from(held[::-1]))
        step = data.draw(steps(snapshot, self._model.now))
        stored = self._view(instance_id)
        is_latest = stored is not None and stored.version == snapshot.version
        overwrite = is_latest and data.draw(st.integers(0, 5)) == 0

        try:
            snapshot = step(snapshot)
        except PersistError:
            return

        self._save(snapshot, overwrite=overwrite)

    def _save(self, snapshot: WorkflowSnapshot, *, overwrite: bool) -> None:
        self._may_advance.add(snapshot.instance_id)
        answers = self._both(
            lambda b: b.save_snapshot(snapshot, overwrite=overwrite),
            lambda m: m.save_snapshot(snapshot, overwrite=overwrite),
        )

        if answers:
            self._same_snapshot(answers[0])

    @rule(data=data())
    def update(self, data: DataObject) -> None:
        """Apply a change to whatever is stored, with a claim or without."""
        instance_id, claim = self._target(data)
        step = data.draw(steps(self._view(instance_id), self._model.now))
        self._may_advance.add(instance_id)
        answers = self._both(
            lambda b: b.update_snapshot(instance_id, step, claim=claim),
            lambda m: m.update_snapshot(instance_id, step, claim=claim),
        )

        if answers:
            self._same_snapshot(answers[0])

    @rule(data=data())
    def save_result(self, data: DataObject) -> None:
        """Save one result, with a claim or without."""
        instance_id, claim = self._target(data)
        task_id = claim.task_id if claim else data.draw(self._task_ids(instance_id))
        output = data.draw(_payloads)
        self._equal(
            self._both(
                lambda b: b.save_task_result(instance_id, task_id, output, claim=claim),
                lambda m: m.save_task_result(instance_id, task_id, output, claim=claim),
            )
        )

    @rule(data=data(), results=_coin)
    def look(self, data: DataObject, results: bool) -> None:
        """Load a snapshot with results or without, load one result, list, ask what is stalled."""
        instance_id = data.draw(_instances)
        loaded = self._ask(methodcaller("load_snapshot", instance_id, results=results)).value

        if loaded:
            assert loaded.results.loaded is results, "results come only where they are asked for"
            self._same_snapshot(loaded)

        node_id = data.draw(st.sampled_from(sorted(self._model.nodes) or ["t1"]))
        load = methodcaller("load_task_result", instance_id, node_id)
        self._equal(self._both(load, load))
        page = methodcaller(
            "list_snapshots",
            status=data.draw(st.none() | st.sampled_from(Status)),
            definition_hash=data.draw(st.sampled_from([None, *DEFINITIONS])),
            after=data.draw(st.sampled_from([None, *INSTANCES, "Z", "zz"])),
            limit=data.draw(_limits),
        )
        self._equal(self._both(page, page))
        self._look_for_stalled(data.draw(_seconds))

    def _look_for_stalled(self, idle_for: timedelta) -> None:
        """Compare what dispatch can never offer; what elapsed time has yet to move on is open."""
        ask = methodcaller("find_stalled", idle_for=idle_for)
        found, expected = [
            {
                info.instance_id: info
                for info in infos
                if self._model.runs[info.instance_id].body.position
                == self._model.view(info.instance_id).position
            }
            for infos in self._both(ask, ask) or ([], [])
        ]
        assert found == expected, f"found {found}, expected {expected}"

    # Claims.

    @rule(data=data())
    def claim(self, data: DataObject) -> None:
        """Claim a task by its id."""
        instance_id = data.draw(_instances)
        task_id = data.draw(self._task_ids(instance_id))
        arguments: dict[str, Any] = {
            "worker_id": data.draw(_workers),
            "ttl": data.draw(st.none() | _ttls),
            "tags": data.draw(_tags),
            "nonce": data.draw(st.sampled_from([None, "n1", "n1", "n2"])),
        }
        self._may_advance.add(instance_id)
        run = self._model.runs.get(instance_id)
        known = run.claims.get(task_id) if run else None
        known = known if known and self._model.is_live(known) else None
        answers = self._both(
            lambda b: b.claim_task(instance_id, task_id, **arguments),
            lambda m: m.claim_task(instance_id, task_id, **arguments),
        )

        if not answers:
            return

        found, expected = answers

        if found is None or expected is None:
            assert found is expected is None, f"found {found}, expected {expected}"
        elif known is not None and known is expected:
            self._same_claim(
                found, replace(known, pending_signal=found.pending_signal), is_new=False
            )
        else:
            self._same_claim(found, expected)

    @rule(data=data(), ttl=st.none() | _ttls, limit=_limits, results=_coin)
    def acquire(self, data: DataObject, ttl: timedelta | None, limit: int, results: bool) -> None:
        """Find and claim."""
        query = self._query(data, limit)
        answers = self._both(
            lambda b: b.acquire_tasks(**query, ttl=ttl, results=results),
            lambda m: m.acquire_tasks(**query, ttl=ttl),
        )

        if answers:
            self._same_tasks(*answers, results=results)

    @rule(data=data(), limit=_limits, results=_coin)
    def find(self, data: DataObject, limit: int, results: bool) -> None:
        """Find without claiming."""
        query = self._query(data, limit)
        answers = self._both(
            lambda b: b.find_available_tasks(**query, results=results),
            lambda m: m.find_available_tasks(**query),
        )

        if answers:
            self._same_tasks(*answers, results=results)

    def _query(self, data: DataObject, limit: int) -> dict[str, Any]:
        return {
            "worker_id": data.draw(_workers),
            "tags": data.draw(_tags),
            "definition_hashes": data.draw(_filters),
            "limit": limit,
        }

    @_with_claims
    @rule(data=data(), operation=st.sampled_from(["extend", "extend", "release", "revoke"]))
    def hold(self, data: DataObject, operation: str) -> None:
        """Extend, release or revoke a claim, live, expired or lost."""
        claim = self._some_claim(data)

        match operation:
            case "extend":
                extend = methodcaller("extend_task_claim", claim, ttl=data.draw(_ttls))

                if answers := self._both(extend, extend):
                    self._same_claim(*answers, is_new=False)
            case "release":
                release = methodcaller("release_task_claim", claim)
                self._equal(self._both(release, release))
            case _:
                revoke = methodcaller("revoke_task_claim", claim.instance_id, claim.task_id)
                found, expected = self._both(revoke, revoke) or (None, None)

                if found is not None and expected is not None:
                    expected = replace(expected, pending_signal=found.pending_signal)

                self._equal((found, expected))

    @_with_claims
    @rule(data=data(), ttl=st.none() | _ttls)
    def commit_change(self, data: DataObject, ttl: timedelta | None) -> None:
        """Commit a change of what is stored, tried on a base or not."""
        claim = self._some_claim(data)
        instance_id = claim.instance_id
        view = self._view(instance_id)
        step = self._step_of(data, claim, view)
        run = self._model.runs.get(instance_id)
        # A base is what came with the task, so the step is possible on it; and what elapsed since
        # the claim may or may not be written with it.
        bases = [
            each
            for each in self._held[instance_id]
            if run and view == run.body and _applies(step, each)
        ]
        base = data.draw(st.sampled_from([None, *bases]))
        self._may_advance.add(instance_id)
        answers = self._both(
            lambda b: b.commit_task(claim, step, base=base, claim_next=ttl),
            lambda m: m.commit_task(claim, step, claim_next=ttl),
        )

        if answers:
            self._same_commit(*answers)

    @_with_claims
    @rule(data=data(), ttl=st.none() | _ttls)
    def commit_value(self, data: DataObject, ttl: timedelta | None) -> None:
        """Commit a snapshot that was made from what was seen some time ago."""
        claim = self._some_claim(data)
        instance_id = claim.instance_id

        if not (held := self._held[instance_id]):
            return

        seen = data.draw(st.sampled_from(held[::-1]))
        step = self._step_of(data, claim, seen)

        if not _applies(step, seen):
            return

        commit = methodcaller("commit_task", claim, step(seen), claim_next=ttl)
        self._may_advance.add(instance_id)

        if answers := self._both(commit, commit):
            self._same_commit(*answers)

    def _same_commit(self, found: Commit, expected: Commit) -> None:
        self._same_snapshot(found.snapshot)

        if found.next is None or expected.next is None:
            assert found.next is expected.next is None, (
                f"next: found {found.next}, expected {expected.next}"
            )
        else:
            self._same_task(found.next, expected.next)

    def _step_of(self, data: DataObject, claim: TaskClaim, view: WorkflowSnapshot | None) -> Step:
        """Mostly the completion of the claimed task itself."""
        now = self._model.now

        if data.draw(_rarely):
            return data.draw(steps(view, now))

        return _completion(claim.task_id, data.draw(_payloads), data.draw(_followings(now)))

    @rule()
    def sweep(self) -> None:
        """Let the sweep do all that is due; whether it purges first or last is its business."""
        ask = methodcaller("sweep")

        if answers := self._both(ask, ask):
            found, expected = [
                (set(report.cancelled), set(report.paused), set(report.advanced), report.more)
                for report in answers
            ]
            assert found == expected, f"found {found}, expected {expected}"
            purged = [report.purged_claims for report in answers]
            assert found[:3] != (set(), set(), set()) or purged[0] == purged[1], f"purged {purged}"

    # Control signals.

    @rule(
        instance_id=_instances,
        kind=_kinds,
        request=_requests,
        call=st.sampled_from(["store_signal", "request_signal", "clear_signal"]),
    )
    def signal(
        self, instance_id: str, kind: SignalKind, request: SignalRequest | None, call: str
    ) -> None:
        """Leave a signal, perhaps applied at once, or take it back; then see what is pending."""
        arguments = () if call == "clear_signal" else (request,)

        for ask in (
            methodcaller(call, instance_id, kind, *arguments),
            methodcaller("get_signal", instance_id, kind),
        ):
            self._equal(self._both(ask, ask))

    @rule(instance_id=_instances, task_id=st.sampled_from([None, "t1"]), call=_checks)
    def apply_signals(self, instance_id: str, task_id: str | None, call: str) -> None:
        """Apply what is pending."""
        options = {} if call == "check_and_pause" else {"interrupted_at_task": task_id}
        ask = methodcaller(call, instance_id, **options)
        self._equal(self._both(ask, ask))

    @rule(instance_id=_instances)
    def unpause(self, instance_id: str) -> None:
        """Go on."""
        ask = methodcaller("unpause", instance_id)

        if answers := self._both(ask, ask):
            self._same_snapshot(answers[0])

    # Events.

    @rule(
        instance_id=_instances,
        name=st.sampled_from(EVENTS),
        payload=_payloads,
        event_id=st.sampled_from([None, "e1", "e1", "e2"]),
    )
    def send(self, instance_id: str, name: str, payload: bytes, event_id: str | None) -> None:
        """Send an event."""
        self._may_advance.add(instance_id)
        self._equal(
            self._both(
                lambda b: b.send_event(instance_id, name, payload, event_id=event_id),
                lambda m: m.send_event(instance_id, name, payload, event_id=event_id),
            )
        )

    @rule(
        instance_id=_instances,
        name=st.sampled_from(EVENTS),
        version=st.sampled_from([None, 0, 1]),
        consume=_coin,
    )
    def take(self, instance_id: str, name: str, version: int | None, consume: bool) -> None:
        """Take an event out of the queue, or hand one to a wait."""
        if consume:
            ask = methodcaller("consume_event", instance_id, name)
            self._equal(self._both(ask, ask))
            return

        if version is not None and (run := self._model.runs.get(instance_id)):
            version += run.body.version

        ask = methodcaller("drain_signal", instance_id, version=version)

        if answers := self._both(ask, ask):
            found, expected = answers
            assert (found is None) is (expected is None), f"found {found}, expected {expected}"

            if found is not None:
                self._same_snapshot(found)

    # What rules draw from.

    def _task_ids(self, instance_id: str) -> SearchStrategy[str]:
        view = self._view(instance_id)
        ready = [task.task_id for task in view.ready_tasks()] if view else []
        known = sorted(each for each in self._model.nodes if each.startswith("t"))
        return st.sampled_from([*ready, *ready, *known, "t1"])

    @property
    def has_claims(self) -> bool:
        """Whether any claim was ever made."""
        return bool(self._claims)

    def _some_claim(self, data: DataObject) -> TaskClaim:
        """A claim that was made some time ago, mostly one that is live."""
        runs = self._model.runs.values()
        live = [
            claim
            for claim in self._claims[::-1]
            if self._model.is_live(claim)
            and any(claim.fence == each.fence for run in runs for each in run.claims.values())
        ]
        return data.draw(st.sampled_from([*live, *live, *self._claims[::-1]]))

    def _target(self, data: DataObject) -> tuple[str, TaskClaim | None]:
        if not self._claims or data.draw(_coin):
            return data.draw(_instances), None

        claim = self._some_claim(data)
        return claim.instance_id, claim


def backend_machine(subject_factory: SubjectFactory) -> type[BackendMachine]:
    """Make the state machine for one store.

    Args:
        subject_factory: Sets a subject up, once for every run of the machine. It has
            `manual_clock = True`, and its `elapse` moves the clock that the store decides by:
            the machine compares every instant to the microsecond.

    Example:
        >>> TestMyBackendMachine = backend_machine(my_subject).TestCase
    """

    class Machine(BackendMachine):
        def make_subject(self) -> AbstractAsyncContextManager[Subject]:
            return subject_factory()

    Machine.__name__ = Machine.__qualname__ = BackendMachine.__name__
    return Machine
