"""A small workflow runtime: how to build one on `sayiir_persist`, with nothing but its public API.

A workflow is a list of steps: tasks, delays, waits for events, forks, loops. `Workflow` turns the
list into positions once; from then on everything that a run has to remember (where it stands, what
its tasks gave, how often they failed) lives in the store, so any worker can take the next step.

Run the demo in memory, or on any store: `python examples/mini_runtime.py sqlite:///demo.db`
"""

from __future__ import annotations

import secrets
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from sayiir_persist import (
    AcquiredTask,
    AtDelay,
    AtFork,
    AtSignal,
    AtTask,
    BackendUnavailableError,
    Change,
    ClaimLostError,
    ClaimNotFoundError,
    Codec,
    Completed,
    JsonCodec,
    OutcomeUnknownError,
    PersistentBackend,
    Position,
    RetryPolicy,
    SignalKind,
    State,
    Status,
    TerminalStateError,
    WakeupSource,
    WorkflowSnapshot,
    connect,
)
from sayiir_persist.leases import keep_claim

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

CODEC: Codec = JsonCodec()
NO_RETRIES = RetryPolicy(0, timedelta(0))
ENDED = tuple(status for status in Status if status.is_terminal)

# --- What a workflow is made of ---------------------------------------------------------------


class Call(NamedTuple):
    """What a task's function is given."""

    task: AcquiredTask

    @property
    def input(self) -> Any:
        """What the step before gave, or what the run was started with."""
        return CODEC.decode(self.task.input) if self.task.input else None

    def result(self, name: str) -> Any:
        """What any earlier task gave."""
        return CODEC.decode(self.task.snapshot.results[name])


@dataclass(frozen=True)
class Task:
    """A function that may run more than once, and whose result is recorded once."""

    name: str
    run: Callable[[Call], Awaitable[Any]]
    retry: RetryPolicy = NO_RETRIES


@dataclass(frozen=True)
class Delay:
    """Waits, without a worker, for a time."""

    name: str
    duration: timedelta


@dataclass(frozen=True)
class Event:
    """Waits, without a worker, for an event of this name; the next task's input is its payload."""

    name: str
    within: timedelta | None = None


@dataclass(frozen=True)
class Fork:
    """Branches that run side by side; the next step begins when all of them have ended."""

    name: str
    branches: Mapping[str, Sequence[Step]]


@dataclass(frozen=True)
class Loop:
    """Steps that run again while the result of the last one, a task, asks for it.

    What the last one gives is the input of the next iteration.
    """

    name: str
    body: Sequence[Step]
    again: Callable[[Any], bool]
    at_most: int = 100


Step = Task | Delay | Event | Fork | Loop


class _Repeat(NamedTuple):
    loop: Loop
    start: Position


@dataclass
class Workflow:
    """Steps, linked: which position is the first one, and which follows each task."""

    definition: str
    steps: Sequence[Step]
    first: Position | None = None
    tasks: dict[str, Task] = field(default_factory=dict[str, Task])
    after: dict[str, Position | None] = field(default_factory=dict[str, Position | None])
    loops: dict[str, _Repeat] = field(default_factory=dict[str, "_Repeat"])

    def __post_init__(self) -> None:
        self.first = self._link(self.steps, None)

    def _link(self, steps: Sequence[Step], then: Position | None) -> Position | None:
        """The position of the first step; each step leads to the next one, the last to `then`.

        Only what needs no worker is linked by `next`. What follows a task is put in its place when
        it is done, so a stored position stays as small as the workflow is wide.
        """
        for step in reversed(steps):
            match step:
                case Task(name):
                    self.tasks[name], self.after[name] = step, then
                    then = AtTask(name)
                case Delay(name, duration):
                    then = AtDelay(name, wake_after=duration, next=then)
                case Event(name, within):
                    then = AtSignal(name, name, wake_after=within, next=then)
                case Fork(name, branches):
                    linked = {key: self._link(branch, None) for key, branch in branches.items()}
                    then = AtFork(name, linked, next=then)
                case Loop(name, body):
                    then = self._link(body, then)

                    if then is None or not isinstance(body[-1], Task):
                        raise ValueError(f"the body of loop {name!r} must end with a task")

                    self.loops[body[-1].name] = _Repeat(step, then)

        return then

    def completed(self, task_id: str, value: Any) -> Change:
        """The change that a finished task makes.

        It is pure, so the store may apply it again to whatever a parallel branch has made of the
        snapshot meanwhile.
        """
        output = CODEC.encode(value)

        def change(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
            repeat = self.loops.get(task_id)

            if repeat is None or not _goes_on(repeat.loop, snapshot, value):
                return snapshot.complete_task(task_id, output, next=self.after[task_id])

            stale = [name for name in _names(repeat.loop.body) if name != task_id]
            again = snapshot.complete_task(task_id, output, next=repeat.start)
            return again.count_iteration(repeat.loop.name).forget(*stale)

        return change

    def failed(self, task: AcquiredTask, error: Exception) -> Change:
        """The change that a failure makes: a retry with backoff, or the end of the run."""
        policy = self.tasks[task.task_id].retry
        worker_id = task.claim.worker_id
        return lambda snapshot: snapshot.record_failure(
            task.task_id, policy, error=repr(error), worker_id=worker_id
        )


def _goes_on(loop: Loop, snapshot: WorkflowSnapshot, value: Any) -> bool:
    return snapshot.loop_iterations.get(loop.name, 0) + 1 < loop.at_most and loop.again(value)


def _names(steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        yield step.name

        for inner in step.branches.values() if isinstance(step, Fork) else ():
            yield from _names(inner)

        if isinstance(step, Loop):
            yield from _names(step.body)


# --- Running it -------------------------------------------------------------------------------


@dataclass
class Runtime:
    """Starts runs of some workflows, and works on them.

    Attributes:
        backend: Any store; open.
        workflows: What its workers know how to run, by definition.
        ttl: After how long the task of a worker that died is offered to another one.
        poll: How long an idle worker waits for a hint before it asks again.
    """

    backend: PersistentBackend
    workflows: Mapping[str, Workflow]
    ttl: timedelta = timedelta(seconds=3)
    poll: timedelta = timedelta(milliseconds=50)

    async def start(self, instance_id: str, definition: str, value: Any) -> None:
        """Start a run; of concurrent calls with one id exactly one does."""
        first = self.workflows[definition].first
        assert first is not None, "a workflow has at least one step"
        data = CODEC.encode(value)
        await self.backend.start_instance(instance_id, definition, start_at=first, input=data)

    async def send(self, instance_id: str, name: str, value: Any, *, event_id: str) -> None:
        """Send an event; with an id of its own it may be sent again and still counts once."""
        data = CODEC.encode(value)
        await self.backend.send_event(instance_id, name, data, event_id=event_id)

    async def reached(self, instance_id: str, *statuses: Status) -> WorkflowSnapshot:
        """Wait until a run has one of these statuses."""
        while True:
            snapshot = await self.backend.load_snapshot(instance_id, results=False)

            if snapshot.status in statuses:
                return snapshot

            await anyio.sleep(self.poll.total_seconds())

    async def work(self, worker_id: str) -> None:
        """Run tasks, one after the other, until cancelled: one worker of any number."""
        while True:
            try:
                acquired = await self.backend.acquire_tasks(
                    worker_id=worker_id,
                    ttl=self.ttl,
                    definition_hashes=self.workflows.keys(),
                    results=True,
                )
                task = acquired[0] if acquired else None

                while task is not None:
                    task = await self._run(task)

                if not acquired:
                    await self._idle()
            except (BackendUnavailableError, OutcomeUnknownError):
                # Whatever was in doubt, the store knows: a commit that landed shows in the next
                # task, one that did not is offered again when its claim ends.
                await anyio.sleep(self.poll.total_seconds())

    async def _run(self, task: AcquiredTask) -> AcquiredTask | None:
        """Run one task; returns the next one of the same run, if the commit claimed it."""
        workflow = self.workflows[task.definition_hash]
        change: Change | None = None

        try:
            async with keep_claim(
                self.backend, task.claim, ttl=self.ttl, every=self.ttl / 10, cancel_on_signal=True
            ):
                value = await workflow.tasks[task.task_id].run(Call(task))
                change = workflow.completed(task.task_id, value)
        except ClaimLostError:
            return None  # somebody else runs it by now
        except Exception as error:  # noqa: BLE001  (whatever a task raises is a failure of it)
            change = workflow.failed(task, error)

        if change is None:
            await self._interrupted(task)
            return None

        try:
            commit = await self.backend.commit_task(
                task.claim, change, base=task.snapshot, claim_next=self.ttl
            )
        except (ClaimLostError, TerminalStateError):
            return None  # the result came too late to count

        return commit.next

    async def _interrupted(self, task: AcquiredTask) -> None:
        """A cancel or pause stopped the task: apply it, and give the task back."""
        await self.backend.check_control_signals(task.instance_id, interrupted_at_task=task.task_id)

        with suppress(ClaimNotFoundError, ClaimLostError):  # the end of a run drops its claims
            await self.backend.release_task_claim(task.claim)

    async def _idle(self) -> None:
        if isinstance(self.backend, WakeupSource):
            await self.backend.wait_for_wakeup(self.poll)
        else:
            await anyio.sleep(self.poll.total_seconds())

    async def keep_house(self, every: timedelta = timedelta(seconds=1)) -> None:
        """Finish what nobody was there to finish; run it anywhere, once or in every worker."""
        while True:
            with suppress(BackendUnavailableError, OutcomeUnknownError):
                await self.backend.sweep()

            await anyio.sleep(every.total_seconds())


# --- The demo ---------------------------------------------------------------------------------


def say(instance_id: str, what: str, worker_id: str = "") -> None:
    """Print one line of the story."""
    print(f"{instance_id:<8} {worker_id:<4} {what}", flush=True)


def step(what: str, gives: Any = None, *, takes: float = 0.05) -> Callable[[Call], Awaitable[Any]]:
    """A task's function that says what it does, takes its time and gives a value."""

    async def run(call: Call) -> Any:
        say(call.task.instance_id, what.format(call.input), call.task.claim.worker_id)
        await anyio.sleep(takes)
        return gives

    return run


async def charge(call: Call) -> Any:
    """A task that fails twice before it works."""
    say(call.task.instance_id, f"charge, attempt {call.task.attempt}", call.task.claim.worker_id)

    if call.task.attempt < 3:
        raise ConnectionError("the bank does not answer")

    return "paid"


async def track(call: Call) -> Any:
    """The body of a loop: its input is what the iteration before gave."""
    hops = call.input + 1 if isinstance(call.input, int) else 1
    say(call.task.instance_id, f"track, hop {hops}", call.task.claim.worker_id)
    return hops


async def confirm(call: Call) -> Any:
    """The task after a fork takes what it needs from the branches."""
    text = f"confirm: {call.result('ship')} and {call.result('invoice')}"
    say(call.task.instance_id, text, call.task.claim.worker_id)
    return text


async def thank(call: Call) -> Any:
    """The task after a wait is told whether the event came in time."""
    came = "review" not in call.task.snapshot.timed_out
    text = f"thanks for {call.input!r}" if came else "no review in time"
    say(call.task.instance_id, text, call.task.claim.worker_id)
    return text


def millis(number: int) -> timedelta:
    """Demo time."""
    return timedelta(milliseconds=number)


ORDER = Workflow(
    "order-v1",
    [
        Task("reserve", step("reserve {}", "reserved")),
        Fork(
            "fulfil",
            {
                "parcel": [
                    Task("pack", step("pack what is {}", "packed", takes=0.2)),
                    Delay("label dries", millis(300)),
                    Task("ship", step("ship", "shipped")),
                ],
                "money": [
                    Task("charge", charge, RetryPolicy(3, millis(50), max_delay=millis(400))),
                    Task("invoice", step("invoice what is {}", "invoiced")),
                ],
            },
        ),
        Task("confirm", confirm),
        Loop("on its way", [Task("track", track)], again=lambda hops: hops < 3),
        Delay("unpack", millis(200)),
        Event("review", within=millis(1000)),
        Task("thank", thank),
    ],
)
SLOW = Workflow(
    "slow-v1",
    [
        Task("think", step("think about {}", "thoughts", takes=1.2)),
        Task("write", step("write {}", "a page")),
    ],
)


async def demo(url: str) -> dict[str, State]:
    """Work on four runs with three workers, and say how each ended."""
    namespace = f"mini-runtime-{secrets.token_hex(4)}"
    ends: dict[str, State] = {}

    async with connect(url, namespace=namespace) as backend, anyio.create_task_group() as workers:
        runtime = Runtime(backend, {ORDER.definition: ORDER, SLOW.definition: SLOW})
        workers.start_soon(runtime.keep_house)

        for worker_id in ("w1", "w2", "w3"):
            workers.start_soon(runtime.work, worker_id)

        await runtime.start("order-1", ORDER.definition, "three books")
        await runtime.start("order-2", ORDER.definition, "a lamp")
        await runtime.start("essay-1", SLOW.definition, "time")
        await runtime.start("essay-2", SLOW.definition, "space")
        await runtime.send("order-1", "review", "five stars", event_id="click-1")  # waits there
        await anyio.sleep(0.5)

        await request(backend, "essay-1", SignalKind.CANCEL)
        await request(backend, "essay-2", SignalKind.PAUSE)

        await runtime.reached("essay-2", Status.PAUSED)
        await anyio.sleep(0.5)
        say("essay-2", "is paused: go on")
        await backend.unpause("essay-2")

        for instance_id in ("order-1", "order-2", "essay-1", "essay-2"):
            ends[instance_id] = (await runtime.reached(instance_id, *ENDED)).state

        workers.cancel_scope.cancel()

    return ends


async def request(backend: PersistentBackend, instance_id: str, kind: SignalKind) -> None:
    """Ask for a cancel or pause, and let a worker that is at it stop."""
    say(instance_id, f"please {kind}")
    await backend.request_signal(instance_id, kind)


def main() -> None:
    """Run the demo on the store that is named, or in memory."""
    url = sys.argv[1] if len(sys.argv) > 1 else "memory://"

    for instance_id, end in anyio.run(demo, url).items():
        output = f" with {CODEC.decode(end.output)!r}" if isinstance(end, Completed) else ""
        say(instance_id, f"{type(end).__name__.lower()}{output}")


if __name__ == "__main__":
    main()
