"""EVENT: queues of events, and the waits that they answer."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from sayiir_persist import (
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    Completed,
    ConflictPolicy,
    EventQueueFullError,
    InstanceNotFoundError,
    PayloadTooLargeError,
    PersistentBackend,
    Position,
    ReadyReason,
    SignalKind,
    StaleSnapshotError,
    Status,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import ExpectationError, Kit, expect, expect_equal, raises
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import (
    TERMINAL,
    claim,
    expect_refused,
    fork,
    fresh,
    held,
    start,
    stored,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

MICROSECOND: Final = timedelta(microseconds=1)
TICK: Final = timedelta(milliseconds=5)
"""Apart enough for every store's resolution."""

WINDOW: Final = 4 * Kit.short
"""How long a wait stays open in which a few calls are made before it ends."""

SHIP: Final = AtTask("ship")


def _wait(
    next: Position | None = SHIP,
    *,
    node_id: str = "wait",
    name: str = "paid",
    within: timedelta | None = None,
) -> AtSignal:
    return AtSignal(node_id, name, wake_after=within, next=next)


def _parks(position: Position) -> Callable[[WorkflowSnapshot], WorkflowSnapshot]:
    """The change that completes the task "charge" and parks."""
    return lambda found: found.complete_task("charge", b"charged", next=position)


def _end(snapshot: WorkflowSnapshot) -> datetime:
    """When the wait ends at which a snapshot stands."""
    position = snapshot.position

    if not isinstance(position, AtSignal) or position.ends_at is None:
        raise ExpectationError(f"a wait that was entered has an end, found {position!r}")

    return position.ends_at


async def _queue(backend: PersistentBackend, instance_id: str, name: str = "paid") -> list[bytes]:
    """Take everything off a queue."""
    taken: list[bytes] = []

    while (payload := await backend.consume_event(instance_id, name)) is not None:
        taken.append(payload)

    return taken


async def _expect_waiting(
    backend: PersistentBackend, instance_id: str, expectation: str
) -> WorkflowSnapshot:
    """Fail the check unless the wait is still open, to whoever reads."""
    loaded = await backend.load_snapshot(instance_id)
    expect(
        isinstance(loaded.position, AtSignal) and "wait" not in loaded.results,
        f"{expectation}: found {loaded.position!r}",
    )
    return loaded


async def _expect_answered(
    backend: PersistentBackend, instance_id: str, payload: bytes, expectation: str
) -> AtTask:
    """Fail the check unless the wait has its event and "ship" is ready, to whoever reads.

    A load drains nothing, so this tells what the call before it has left.
    """
    loaded = await backend.load_snapshot(instance_id)
    expect_equal(
        loaded.results.get("wait"), payload, f"{expectation}, recorded under the wait's node"
    )
    ready = [(task.task_id, task.reason) for task in loaded.ready_tasks()]
    expect_equal(
        ready, [("ship", ReadyReason.EVENT)], f"{expectation}, and what follows is ready by it"
    )
    expect("wait" not in loaded.timed_out, f"{expectation}, and has not timed out")
    return loaded.ready_tasks()[0]


# --- Queues -------------------------------------------------------------------------------------


@check("EVENT-001", "Events of one name are consumed in the order in which they were sent.")
async def first_in_first_out(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    instance_id = (await start(kit, backend)).instance_id

    for number, store in enumerate([backend, other] * 5):
        await store.send_event(instance_id, "paid", b"%d" % number)

    expect_equal(
        await _queue(other, instance_id),
        [b"%d" % number for number in range(10)],
        "a queue is first in, first out, whoever sends and consumes",
    )


@check("EVENT-002", "Every name has a queue of its own.")
async def names_are_isolated(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id
    names = ("paid", "Paid", "paid ", "pai", "paid.x", "shipped")

    for payload in (b"1", b"2"):
        for name in names:
            await backend.send_event(instance_id, name, name.encode() + payload)

    for name in names:
        expect_equal(
            await _queue(backend, instance_id, name),
            [name.encode() + b"1", name.encode() + b"2"],
            f"{name!r} is a queue of its own",
        )


@check("EVENT-003", "Every instance has queues of its own.")
async def instances_are_isolated(kit: Kit) -> None:
    backend = await kit.open()
    one, two, waiting = [await start(kit, backend, at) for at in ("a", "b", _wait())]

    await backend.send_event(one.instance_id, "paid", b"one")
    await backend.send_event(two.instance_id, "paid", b"two")

    await _expect_waiting(
        backend, waiting.instance_id, "an event of another instance answers no wait"
    )
    expect_equal(await _queue(backend, two.instance_id), [b"two"], "an instance gets its own")
    expect_equal(await _queue(backend, one.instance_id), [b"one"], "and no other's")


@check("EVENT-004", "consume_event gives None for an empty queue, and only then.")
async def consumes_nothing(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id

    expect_equal(await backend.consume_event("nobody", "paid"), None, "an unknown id has no events")
    expect_equal(await backend.consume_event(instance_id, "paid"), None, "an empty queue is None")

    for payload in (b"", b"null", b"0", bytes(range(256))):
        await backend.send_event(instance_id, "paid", payload)
        expect_equal(
            await backend.consume_event(instance_id, "paid"), payload, "payloads stay as they are"
        )
        expect_equal(await backend.consume_event(instance_id, "paid"), None, "each is taken once")


@check("EVENT-005", "An event that nobody waits for is queued, whatever the instance does.")
async def queued_without_a_wait(kit: Kit) -> None:
    backend = await kit.open()
    scenes = {f"is {each}": await stored(kit, backend, each) for each in TERMINAL}
    scenes["is paused"] = await stored(kit, backend, Status.PAUSED)
    scenes["is paused at a wait"] = await stored(kit, backend, Status.PAUSED, _wait())
    scenes["is at a task"] = await start(kit, backend)
    scenes["waits for another name"] = await start(kit, backend, _wait(name="approved"))
    scenes["waits later"] = await start(
        kit, backend, AtDelay("nap", wake_after=Kit.long, next=_wait())
    )

    for scene, run in scenes.items():
        before = await backend.load_snapshot(run.instance_id)
        await backend.send_event(run.instance_id, "paid", b"1")
        await backend.send_event(run.instance_id, "paid", b"2")

        after = await backend.load_snapshot(run.instance_id)
        expect_equal(after, before, f"an event changes nothing of an instance that {scene}")
        expect_equal(
            await _queue(backend, run.instance_id),
            [b"1", b"2"],
            f"an event for an instance that {scene} is queued",
        )


@check("EVENT-006", "Events for an id that does not exist wait, and make no instance.")
async def queued_without_an_instance(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = kit.instance()

    await backend.send_event(instance_id, "paid", b"1")
    await backend.send_event(instance_id, "paid", b"2")

    with raises(InstanceNotFoundError, "an event makes no instance"):
        await backend.load_snapshot(instance_id)

    expect_equal(await backend.list_snapshots(), [], "nor is one listed")
    expect_equal(await _queue(backend, instance_id), [b"1", b"2"], "its events can be consumed")


@check("EVENT-007", "Whatever creates an id takes over the events that wait for it.")
async def taken_over(kit: Kit) -> None:
    backend = await kit.open()
    creations: dict[str, Callable[[str], Awaitable[object]]] = {
        f"start_instance by {policy}": partial(
            backend.start_instance, definition_hash="v1", start_at="charge", on_conflict=policy
        )
        for policy in ConflictPolicy
    }
    creations["save_snapshot of version 0"] = lambda id: backend.save_snapshot(
        replace(fresh(kit), instance_id=id)
    )
    creations["save_snapshot with overwrite"] = lambda id: backend.save_snapshot(
        replace(fresh(kit), instance_id=id), overwrite=True
    )

    for name, create in creations.items():
        instance_id = kit.instance()
        await backend.send_event(instance_id, "paid", b"1")
        await backend.send_event(instance_id, "paid", b"2")

        await create(instance_id)

        expect_equal(
            await _queue(backend, instance_id), [b"1", b"2"], f"{name} takes over what waits"
        )


@check("EVENT-008", "delete_snapshot drops the instance's queued events.")
async def dropped_by_delete(kit: Kit) -> None:
    backend = await kit.open()
    run, other = await start(kit, backend), await start(kit, backend)

    for each in (run, other):
        await backend.send_event(each.instance_id, "paid", b"1")
        await backend.send_event(each.instance_id, "shipped", b"2")

    await backend.delete_snapshot(run.instance_id)

    for name in ("paid", "shipped"):
        expect_equal(await _queue(backend, run.instance_id, name), [], "a deletion drops events")

    started = await backend.start_instance(run.instance_id, "v1", start_at=_wait())
    expect(isinstance(started.snapshot.position, AtSignal), "none of them reaches a later instance")
    expect_equal(await _queue(backend, other.instance_id), [b"1"], "others keep theirs")


@check("EVENT-009", "terminate_existing drops the events of the instance that it replaces.")
async def dropped_by_restart(kit: Kit) -> None:
    backend = await kit.open()

    for status in Status:
        instance_id = (await stored(kit, backend, status)).instance_id
        await backend.send_event(instance_id, "paid", b"old")

        await backend.start_instance(
            instance_id,
            "v1",
            start_at=_wait(),
            on_conflict=ConflictPolicy.TERMINATE_EXISTING,
        )

        await _expect_waiting(backend, instance_id, f"old events of what was {status} answer none")
        expect_equal(await _queue(backend, instance_id), [], "nor are they queued any more")


@check("EVENT-010", "use_existing leaves the queued events of what exists.")
async def kept_by_use_existing(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id
    await backend.send_event(instance_id, "paid", b"1")

    await backend.start_instance(
        instance_id, "v1", start_at=_wait(), on_conflict=ConflictPolicy.USE_EXISTING
    )

    expect_equal(await _queue(backend, instance_id), [b"1"], "it writes nothing, events included")


# --- Answers ------------------------------------------------------------------------------------


@check("EVENT-011", "send_event to an open wait has moved the instance on before it returns.")
async def send_answers(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()

    for payload in (b"yes", b""):
        run = await start(kit, backend, _wait())
        before = await backend.now()

        await backend.send_event(run.instance_id, "paid", payload)

        after = await other.now()
        task = await _expect_answered(other, run.instance_id, payload, "a wait is answered")
        expect(
            task.ready_at is not None and before <= task.ready_at <= after,
            "what follows is ready since the event arrived",
        )
        loaded = await other.load_snapshot(run.instance_id)
        expect_equal(loaded.version, run.version + 1, "that takes one version")
        expect_equal(await _queue(other, run.instance_id), [], "and takes the event off the queue")


@check("EVENT-012", "start_instance at a wait takes the event that was sent before the start.")
async def start_answers(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = kit.instance()
    await backend.send_event(instance_id, "paid", b"yes")
    await kit.elapse(TICK)

    started = await backend.start_instance(instance_id, "v1", start_at=_wait())

    await _expect_answered(backend, instance_id, b"yes", "start_instance answers its wait")
    expect_equal(
        started.snapshot, await backend.load_snapshot(instance_id), "it returns what is stored"
    )
    expect_equal(await _queue(backend, instance_id), [], "the event is taken off the queue")


@check("EVENT-013", "save_snapshot that parks where an event waits moves on before it returns.")
async def save_answers(kit: Kit) -> None:
    backend = await kit.open()

    for how in ("version 0", "its version", "overwrite"):
        snapshot = fresh(kit) if how == "version 0" else await start(kit, backend)
        await backend.send_event(snapshot.instance_id, "paid", b"yes")
        await kit.elapse(TICK)

        saved = await backend.save_snapshot(_parks(_wait())(snapshot), overwrite=how == "overwrite")

        await _expect_answered(backend, saved.instance_id, b"yes", f"a save by {how} answers")
        expect_equal(
            saved, await backend.load_snapshot(saved.instance_id), "it returns what is stored"
        )
        expect_equal(saved.results.get("charge"), b"charged", "with what it saved itself")
        expect_equal(await _queue(backend, saved.instance_id), [], "the event is taken")


@check("EVENT-014", "update_snapshot that parks where an event waits moves on before it returns.")
async def update_answers(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)
    await backend.send_event(run.instance_id, "paid", b"yes")

    updated = await backend.update_snapshot(run.instance_id, _parks(_wait()))

    await _expect_answered(backend, run.instance_id, b"yes", "update_snapshot answers its wait")
    expect_equal(updated, await backend.load_snapshot(run.instance_id), "it returns what is stored")


@check("EVENT-015", "commit_task that parks where an event waits moves on before it returns.")
async def commit_answers(kit: Kit) -> None:
    backend = await kit.open()

    for how in ("a snapshot", "a change", "a change with a base"):
        snapshot, mine = await held(kit, backend)
        await backend.send_event(snapshot.instance_id, "paid", b"yes")
        step = _parks(_wait())

        if how == "a snapshot":
            commit = await backend.commit_task(mine, step(snapshot), claim_next=kit.long)
        elif how == "a change":
            commit = await backend.commit_task(mine, step, claim_next=kit.long)
        else:
            commit = await backend.commit_task(mine, step, base=snapshot, claim_next=kit.long)

        await _expect_answered(backend, snapshot.instance_id, b"yes", f"{how} answers its wait")
        expect_equal(
            commit.snapshot,
            await backend.load_snapshot(snapshot.instance_id),
            f"a commit of {how} returns what is stored",
        )
        expect_equal(commit.next, None, "and claims nothing where a wait met its event")


@check("EVENT-016", "The task after a wait is offered for its event, with it as its input.")
async def input_is_wired(kit: Kit) -> None:
    backend = await kit.open()
    sent = await start(kit, backend, _wait())
    found_there = await start(kit, backend)
    wired = await start(kit, backend, _wait(AtTask("ship", input_from="")))

    await backend.send_event(found_there.instance_id, "paid", b"yes")
    await backend.update_snapshot(found_there.instance_id, _parks(_wait()))

    for run in (sent, wired):
        await backend.send_event(run.instance_id, "paid", b"yes")

    found = await backend.find_available_tasks(worker_id="worker")
    expect_equal(
        {task.instance_id: (task.task_id, task.reason, task.input) for task in found},
        {
            sent.instance_id: ("ship", ReadyReason.EVENT, b"yes"),
            found_there.instance_id: ("ship", ReadyReason.EVENT, b"yes"),
            wired.instance_id: ("ship", ReadyReason.EVENT, b"order"),
        },
        "the event is the input, unless input_from names another",
    )


@check("EVENT-017", "An event is recorded under the wait's node, never under its own name.")
async def recorded_by_node(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait(node_id="node", name="name"))

    await backend.send_event(run.instance_id, "name", b"yes")

    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(dict(loaded.results), {"node": b"yes"}, "the node's id names the result")
    expect_equal(await backend.load_task_result(run.instance_id, "node"), b"yes", "also by itself")
    expect_equal(await backend.load_task_result(run.instance_id, "name"), None, "the name does not")


@check("EVENT-018", "What follows a queued event is ready since the wait was entered.")
async def ready_since_entering(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)
    await backend.send_event(run.instance_id, "paid", b"yes")
    await kit.elapse(TICK)
    before = await backend.now()

    await backend.update_snapshot(run.instance_id, _parks(_wait()))

    after = await backend.now()
    task = await _expect_answered(backend, run.instance_id, b"yes", "a wait takes a queued event")
    expect(
        task.ready_at is not None and before <= task.ready_at <= after,
        f"a task is not ready before its wait was entered: {task.ready_at} is not "
        f"between {before} and {after}",
    )


@check("EVENT-019", "A wait takes the oldest event; the others stay queued in their order.")
async def takes_the_head(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)

    for payload in (b"1", b"2", b"3"):
        await backend.send_event(run.instance_id, "paid", payload)

    await backend.update_snapshot(run.instance_id, _parks(_wait()))

    await _expect_answered(backend, run.instance_id, b"1", "the oldest event answers")
    expect_equal(await _queue(backend, run.instance_id), [b"2", b"3"], "the others stay")


@check("EVENT-020", "An event that was queued during a pause is not overtaken by a later one.")
async def pause_keeps_the_order(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait())
    await backend.save_snapshot(run.pause())
    await backend.send_event(run.instance_id, "paid", b"1")
    await backend.unpause(run.instance_id)

    await backend.send_event(run.instance_id, "paid", b"2")

    await _expect_answered(backend, run.instance_id, b"1", "the older event answers")
    expect_equal(await _queue(backend, run.instance_id), [b"2"], "the later one stays queued")


@check("EVENT-021", "One event answers one wait: the next wait for its name takes the next event.")
async def one_event_one_wait(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait(_wait(node_id="again")))

    await backend.send_event(run.instance_id, "paid", b"1")

    for _ in range(2):
        await backend.find_available_tasks(worker_id="worker")
        await backend.sweep()

    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(dict(loaded.results), {"wait": b"1"}, "one event is recorded once")
    expect_equal(loaded.version, run.version + 1, "and moves an instance once")
    expect_equal(await backend.drain_signal(run.instance_id), None, "nothing is left to drain")

    await backend.send_event(run.instance_id, "paid", b"2")

    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(
        dict(loaded.results), {"wait": b"1", "again": b"2"}, "the next event answers the next wait"
    )
    expect_equal([task.task_id for task in loaded.ready_tasks()], ["ship"], "and so on")


@check("EVENT-022", "A chain of waits takes queued events in their order, in one call.")
async def chain_of_waits(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = kit.instance()
    last = _wait(node_id="last")
    other = _wait(last, node_id="other", name="approved")
    await backend.send_event(instance_id, "paid", b"1")
    await backend.send_event(instance_id, "approved", b"2")
    await backend.send_event(instance_id, "paid", b"3")
    await backend.send_event(instance_id, "paid", b"4")

    await backend.start_instance(instance_id, "v1", start_at=_wait(other))

    loaded = await backend.load_snapshot(instance_id)
    expect_equal(
        dict(loaded.results),
        {"wait": b"1", "other": b"2", "last": b"3"},
        "each wait takes the oldest event of its name",
    )
    expect_equal([task.task_id for task in loaded.ready_tasks()], ["ship"], "all are answered")
    expect_equal(await _queue(backend, instance_id), [b"4"], "what is left stays queued")


@check("EVENT-023", "Of several waits for one name the first in tree order takes the event.")
async def first_in_tree_order(kit: Kit) -> None:
    backend = await kit.open()
    inner = AtFork("inner", {"y": _wait(AtTask("2-done"), node_id="2")})
    branches: dict[str, Position | None] = {
        "z": _wait(AtTask("1-done"), node_id="1"),
        "m": inner,
        "a": _wait(AtTask("3-done"), node_id="3"),
    }
    run = await start(kit, backend, AtFork("outer", branches))
    order = ("1", "2", "3")

    for number, node_id in enumerate(order):
        await backend.send_event(run.instance_id, "paid", node_id.encode())

        loaded = await backend.load_snapshot(run.instance_id)
        expect_equal(
            dict(loaded.results),
            {each: each.encode() for each in order[: number + 1]},
            f"the event after {number} others answers the first open wait, branch by branch",
        )


@check("EVENT-024", "A wait in a branch moves its branch on, and leaves the others as they are.")
async def wait_in_a_branch(kit: Kit) -> None:
    backend = await kit.open()
    branches: dict[str, Position | None] = {"task": AtTask("pack"), "wait": _wait()}
    run = await start(kit, backend, AtFork("split", branches, next=AtTask("join")))
    mine = await claim(backend, run.instance_id, "pack")
    await kit.elapse(TICK)

    await backend.send_event(run.instance_id, "paid", b"yes")

    loaded = await backend.load_snapshot(run.instance_id)
    ready = {task.task_id: task for task in loaded.ready_tasks()}
    expect_equal(set(ready), {"pack", "ship"}, "the branch that waited goes on")
    expect_equal(
        (ready["pack"].ready_at, ready["pack"].reason),
        (run.created_at, ReadyReason.TASK),
        "the other branch stays as it was",
    )
    commit = await backend.commit_task(
        mine, lambda found: found.complete_task("pack", b"packed", next=None)
    )
    expect_equal(
        dict(commit.snapshot.results),
        {"wait": b"yes", "pack": b"packed"},
        "its worker commits beside the event",
    )


@check("EVENT-025", "An event may end the last branch: the join is ready since it arrived.")
async def event_joins(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(
        kit, backend, AtFork("split", {"wait": _wait(None), "over": None}, next=AtTask("join"))
    )
    await kit.elapse(TICK)
    before = await backend.now()

    await backend.send_event(run.instance_id, "paid", b"yes")

    after = await backend.now()
    [join] = await backend.find_available_tasks(worker_id="worker")
    expect_equal((join.task_id, join.input), ("join", None), "the event ends the last branch")
    [ready] = join.snapshot.ready_tasks()
    expect(
        ready.ready_at is not None and before <= ready.ready_at <= after,
        "the join is ready since the event arrived",
    )
    expect_equal(
        await backend.load_task_result(run.instance_id, "wait"), b"yes", "the event is recorded"
    )


@check("EVENT-026", "An event that ends a fork without `next` completes the workflow with b''.")
async def event_ends_a_fork(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, AtFork("split", {"wait": _wait(None), "over": None}))

    await backend.send_event(run.instance_id, "paid", b"yes")

    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(loaded.state, Completed(b""), "a fork completes with an empty output")
    expect_equal(dict(loaded.results), {"wait": b"yes"}, "and the event is recorded")


@check("EVENT-027", "A wait at the root without `next` completes the workflow with its event.")
async def event_completes(kit: Kit) -> None:
    backend = await kit.open()

    for payload in (b"receipt", b""):
        sent_to = await start(kit, backend, _wait(None))
        found_there = await start(kit, backend)
        await backend.send_event(found_there.instance_id, "paid", payload)

        await backend.send_event(sent_to.instance_id, "paid", payload)
        await backend.update_snapshot(found_there.instance_id, _parks(_wait(None)))

        for run in (sent_to, found_there):
            loaded = await backend.load_snapshot(run.instance_id)
            expect_equal(loaded.state, Completed(payload), "the payload is the final output")
            expect_equal(loaded.results.get("wait"), payload, "and the result of the wait's node")
            expect_equal(await _queue(backend, run.instance_id), [], "the event is taken")


@check("EVENT-028", "An event leads to whatever follows its wait, entered when it arrived.")
async def event_leads_anywhere(kit: Kit) -> None:
    backend = await kit.open()
    to_delay = await start(kit, backend, _wait(AtDelay("nap", wake_after=Kit.long, next=SHIP)))
    to_fork = await start(kit, backend, _wait(fork("left", "right")))
    to_node = await start(kit, backend, _wait(AtNode("child")))
    to_wait = await start(kit, backend, _wait(_wait(node_id="next", name="approved")))
    await kit.elapse(TICK)
    before = await backend.now()

    for run in (to_delay, to_fork, to_node, to_wait):
        await backend.send_event(run.instance_id, "paid", b"yes")

    after = await backend.now()
    loaded = [
        await backend.load_snapshot(run.instance_id)
        for run in (to_delay, to_fork, to_node, to_wait)
    ]
    nap, child, next_wait = [loaded[place].position for place in (0, 2, 3)]

    for park in (nap, next_wait):
        expect(
            isinstance(park, AtDelay | AtSignal)
            and park.entered_at is not None
            and before <= park.entered_at <= after,
            f"a park behind a wait is entered when the event arrives: {park!r}",
        )

    expect_equal(
        [(task.task_id, task.reason) for task in loaded[1].ready_tasks()],
        [("left", ReadyReason.EVENT), ("right", ReadyReason.EVENT)],
        "every branch of a fork behind a wait is ready by the event",
    )
    expect_equal(child, AtNode("child"), "a node behind a wait is entered")


@check("EVENT-029", "A wait behind an elapsed delay is open: an event that is sent answers it.")
async def wait_behind_a_delay(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, AtDelay("nap", wake_after=Kit.short, next=_wait()))
    await kit.elapse(Kit.short)
    before = await backend.now()

    await backend.send_event(run.instance_id, "paid", b"yes")

    after = await backend.now()
    task = await _expect_answered(backend, run.instance_id, b"yes", "a virtual wait is answered")
    expect(
        task.ready_at is not None and before <= task.ready_at <= after,
        "what follows is ready since the event arrived",
    )
    expect_equal(await _queue(backend, run.instance_id), [], "the event is taken")


@check("EVENT-030", "An event from before a delay's end answers the wait behind it, at that end.")
async def event_before_the_delay_ends(kit: Kit) -> None:
    backend = await kit.open()
    nap = AtDelay("nap", wake_after=WINDOW, next=_wait(within=Kit.long))
    run = await start(kit, backend, nap)
    await backend.send_event(run.instance_id, "paid", b"yes")
    ends_at = run.position.ends_at if isinstance(run.position, AtDelay) else None

    early = await backend.find_available_tasks(worker_id="worker")
    expect_equal(early, [], "an event does not end a delay")
    await kit.until(backend, ends_at)
    [task] = await backend.find_available_tasks(worker_id="worker")

    expect_equal(
        (task.task_id, task.reason, task.input),
        ("ship", ReadyReason.EVENT, b"yes"),
        "an event that was there when a wait is entered answers it",
    )
    ready = await _expect_answered(backend, run.instance_id, b"yes", "the wait takes the event")
    expect_equal(ready.ready_at, ends_at, "what follows is ready since the wait was entered")


@check("EVENT-031", "A wait that is entered again, in a loop, takes the next event.")
async def wait_in_a_loop(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait())
    await backend.send_event(run.instance_id, "paid", b"1")

    again = await backend.update_snapshot(
        run.instance_id, lambda found: found.forget("wait").move_to(_wait())
    )
    expect(isinstance(again.position, AtSignal), "an event that was taken answers no later wait")

    await backend.send_event(run.instance_id, "paid", b"2")
    await _expect_answered(backend, run.instance_id, b"2", "the next event answers")


# --- Deadlines ----------------------------------------------------------------------------------


@check("EVENT-032", "From exactly its end on a wait is over: a later event is queued only.")
async def deadline_is_exact(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait(within=Kit.short))

    await kit.until(backend, _end(run))
    await backend.send_event(run.instance_id, "paid", b"late")

    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(loaded.timed_out, frozenset({"wait"}), "at its end a wait has timed out")
    expect_equal(loaded.results.get("wait"), b"", "with an empty output")
    [task] = await backend.find_available_tasks(worker_id="worker")
    expect_equal(task.reason, ReadyReason.SIGNAL_TIMEOUT, "what follows is offered for that")
    expect_equal(await _queue(backend, run.instance_id), [b"late"], "a late event stays queued")


@check("EVENT-033", "A microsecond before its end a wait is open.")
async def open_until_the_deadline(kit: Kit) -> None:
    if not kit.manual_clock:
        kit.skip("needs a clock that can be moved: a microsecond is too short to hit")

    backend = await kit.open()
    run = await start(kit, backend, _wait(within=Kit.short))
    await kit.until(backend, _end(run) - MICROSECOND)

    await backend.send_event(run.instance_id, "paid", b"just so")
    await kit.elapse(Kit.long)

    task = await _expect_answered(backend, run.instance_id, b"just so", "an event in time wins")
    expect_equal(task.ready_at, _end(run) - MICROSECOND, "ready since it arrived")


@check("EVENT-034", "An event that was queued during a pause, in time, wins when it is over.")
async def queued_in_time_while_paused(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait(within=WINDOW))
    await backend.save_snapshot(run.pause())
    await backend.send_event(run.instance_id, "paid", b"in time")
    await kit.until(backend, _end(run))
    await kit.elapse(TICK)

    resumed = await backend.unpause(run.instance_id)
    [task] = await backend.find_available_tasks(worker_id="worker")

    expect_equal(task.reason, ReadyReason.EVENT, "an event that came in time wins over the end")
    ready = await _expect_answered(backend, run.instance_id, b"in time", "a wait has its event")
    expect_equal(ready.ready_at, resumed.status_since, "and paused time does not age what follows")


@check("EVENT-035", "An event that was queued under a signal, in time, wins when it is cleared.")
async def queued_in_time_under_a_signal(kit: Kit) -> None:
    backend = await kit.open()

    for kind in SignalKind:
        run = await start(kit, backend, _wait(within=WINDOW))
        await backend.store_signal(run.instance_id, kind)
        before = await backend.now()
        await backend.send_event(run.instance_id, "paid", b"in time")
        after = await backend.now()
        await kit.until(backend, _end(run))
        loaded = await _expect_waiting(backend, run.instance_id, "a met wait never times out")
        expect_equal(loaded.timed_out, frozenset[str](), "nor is it shown so")

        await backend.clear_signal(run.instance_id, kind)
        await backend.find_available_tasks(worker_id="worker")

        ready = await _expect_answered(backend, run.instance_id, b"in time", "the event wins")
        expect(
            ready.ready_at is not None and before <= ready.ready_at <= after,
            "what follows is ready since the event arrived, whenever that was noticed",
        )


@check("EVENT-036", "An event that was queued during a pause after the wait's end came too late.")
async def queued_late_while_paused(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait(within=Kit.short))
    await backend.save_snapshot(run.pause())
    await kit.until(backend, _end(run))
    await backend.send_event(run.instance_id, "paid", b"late")

    resumed = await backend.unpause(run.instance_id)

    expect_equal(resumed.timed_out, frozenset({"wait"}), "a pause does not move a wait's end")
    [task] = await backend.find_available_tasks(worker_id="worker")
    expect_equal((task.reason, task.input), (ReadyReason.SIGNAL_TIMEOUT, b""), "it timed out")
    expect_equal(await _queue(backend, run.instance_id), [b"late"], "the event stays queued")


@check("EVENT-037", "An event that was queued under a signal after the wait's end came too late.")
async def queued_late_under_a_signal(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait(within=Kit.short))
    await backend.store_signal(run.instance_id, SignalKind.PAUSE)
    await kit.until(backend, _end(run))
    await backend.send_event(run.instance_id, "paid", b"late")

    await backend.clear_signal(run.instance_id, SignalKind.PAUSE)

    [task] = await backend.find_available_tasks(worker_id="worker")
    expect_equal((task.reason, task.input), (ReadyReason.SIGNAL_TIMEOUT, b""), "it timed out")
    expect_equal(await _queue(backend, run.instance_id), [b"late"], "the event stays queued")


@check("EVENT-038", "An event that is there when a wait is entered answers it, however short.")
async def queued_before_a_short_wait(kit: Kit) -> None:
    backend = await kit.open()
    past = await backend.now() - Kit.long

    for wait in (_wait(within=timedelta(0)), AtSignal("wait", "paid", wake_at=past, next=SHIP)):
        instance_id = kit.instance()
        await backend.send_event(instance_id, "paid", b"early")
        await kit.elapse(TICK)

        await backend.start_instance(instance_id, "v1", start_at=wait)

        await _expect_answered(backend, instance_id, b"early", "a queued event wins over the end")


@check("EVENT-039", "A wait that was answered never times out, though its end comes later.")
async def answered_never_times_out(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait(_wait(node_id="again"), within=WINDOW))
    await backend.send_event(run.instance_id, "paid", b"yes")

    await kit.until(backend, _end(run))
    await backend.find_available_tasks(worker_id="worker")
    await backend.sweep()

    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(dict(loaded.results), {"wait": b"yes"}, "an answer is final")
    expect_equal(loaded.timed_out, frozenset[str](), "and no time-out")
    expect_equal(loaded.version, run.version + 1, "one event is one move")


@check("EVENT-040", "An event that is consumed before anybody drained it leaves the wait open.")
async def consumed_from_under_a_wait(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait())
    await backend.save_snapshot(run.pause())
    await backend.send_event(run.instance_id, "paid", b"1")
    await backend.unpause(run.instance_id)

    expect_equal(await _queue(backend, run.instance_id), [b"1"], "a met event can be consumed")

    await backend.find_available_tasks(worker_id="worker")
    await backend.sweep()
    await _expect_waiting(backend, run.instance_id, "an event goes to exactly one consumer")
    await backend.send_event(run.instance_id, "paid", b"2")
    await _expect_answered(backend, run.instance_id, b"2", "the wait takes the next")


@check("EVENT-041", "A wait whose met event was consumed ends at its end like any other.")
async def consumed_then_timed_out(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait(within=WINDOW))
    await backend.store_signal(run.instance_id, SignalKind.PAUSE)
    await backend.send_event(run.instance_id, "paid", b"1")
    await backend.clear_signal(run.instance_id, SignalKind.PAUSE)
    expect_equal(await _queue(backend, run.instance_id), [b"1"], "a met event can be consumed")

    await kit.until(backend, _end(run))

    [task] = await backend.find_available_tasks(worker_id="worker")
    expect_equal(
        (task.task_id, task.reason, task.input),
        ("ship", ReadyReason.SIGNAL_TIMEOUT, b""),
        "without its event a wait times out",
    )


# --- Who drains ---------------------------------------------------------------------------------


async def _by_acquire(backend: PersistentBackend, instance_id: str) -> None:
    found = await backend.acquire_tasks(worker_id="worker", ttl=Kit.long, limit=99)
    expect(instance_id in {task.instance_id for task in found}, "acquire_tasks offers what follows")


async def _by_find(backend: PersistentBackend, instance_id: str) -> None:
    found = await backend.find_available_tasks(worker_id="worker", limit=99)
    expect(instance_id in {task.instance_id for task in found}, "find offers what follows")


async def _by_claim(backend: PersistentBackend, instance_id: str) -> None:
    await claim(backend, instance_id, "ship")


async def _by_sweep(backend: PersistentBackend, instance_id: str) -> None:
    report = await backend.sweep()
    expect_equal(report.advanced, (instance_id,), "sweep says what it moved on")


async def _by_drain(backend: PersistentBackend, instance_id: str) -> None:
    expect(await backend.drain_signal(instance_id) is not None, "drain_signal drains")


async def _by_update(backend: PersistentBackend, instance_id: str) -> None:
    await backend.update_snapshot(instance_id, lambda found: found.count_iteration("loop"))


async def _by_send(backend: PersistentBackend, instance_id: str) -> None:
    await backend.send_event(instance_id, "paid", b"later")


DRAINS: Final[dict[str, Callable[[PersistentBackend, str], Awaitable[None]]]] = {
    "acquire_tasks": _by_acquire,
    "find_available_tasks": _by_find,
    "claim_task": _by_claim,
    "sweep": _by_sweep,
    "drain_signal": _by_drain,
    "update_snapshot": _by_update,
    "send_event": _by_send,
}


@check("EVENT-042", "unpause only makes a met wait due; whoever looks next moves it on.")
async def unpause_makes_due(kit: Kit) -> None:
    backend = await kit.open()

    for name, drain in DRAINS.items():
        run = await start(kit, backend, _wait())
        await backend.save_snapshot(run.pause())
        await backend.send_event(run.instance_id, "paid", b"yes")
        resumed = await backend.unpause(run.instance_id)
        expect(isinstance(resumed.position, AtSignal), "unpause itself drains nothing")
        await _expect_waiting(backend, run.instance_id, "nor does a load")

        await drain(backend, run.instance_id)

        await _expect_answered(backend, run.instance_id, b"yes", f"{name} carries it out")


@check("EVENT-043", "clear_signal only makes a met wait due; whoever looks next moves it on.")
async def clear_makes_due(kit: Kit) -> None:
    backend = await kit.open()

    for name, drain in DRAINS.items():
        run = await start(kit, backend, _wait())
        await backend.store_signal(run.instance_id, SignalKind.CANCEL)
        await backend.send_event(run.instance_id, "paid", b"yes")
        await backend.clear_signal(run.instance_id, SignalKind.CANCEL)
        await _expect_waiting(backend, run.instance_id, "clear_signal itself drains nothing")

        await drain(backend, run.instance_id)

        await _expect_answered(backend, run.instance_id, b"yes", f"{name} carries it out")


@check("EVENT-044", "While any control signal is pending no wait is answered, whoever looks.")
async def signals_stop_answers(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait())

    for kind in SignalKind:
        await backend.store_signal(run.instance_id, kind)

    await backend.send_event(run.instance_id, "paid", b"yes")
    before = await _expect_waiting(backend, run.instance_id, "an event is queued under a signal")

    for kind in SignalKind:
        found = await backend.find_available_tasks(worker_id="worker")
        expect_equal(found, [], "nothing is offered")
        granted = await backend.claim_task(
            run.instance_id, "ship", worker_id="worker", ttl=Kit.long
        )
        expect_equal(granted, None, "nor claimed")
        drained = await backend.drain_signal(run.instance_id)
        expect_equal(drained, None, "nor drained")
        loaded = await backend.load_snapshot(run.instance_id)
        expect_equal(loaded, before, "nor moved on")
        await backend.clear_signal(run.instance_id, kind)

    await backend.find_available_tasks(worker_id="worker")
    await _expect_answered(backend, run.instance_id, b"yes", "without any it is answered")


@check("EVENT-045", "While an instance is paused no wait is answered, whoever looks.")
async def pause_stops_answers(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait())
    await backend.save_snapshot(run.pause())
    await backend.send_event(run.instance_id, "paid", b"yes")
    before = await backend.load_snapshot(run.instance_id)

    await backend.find_available_tasks(worker_id="worker")
    await backend.acquire_tasks(worker_id="worker", ttl=Kit.long)
    await backend.claim_task(run.instance_id, "ship", worker_id="worker", ttl=Kit.long)
    await backend.sweep()
    await backend.drain_signal(run.instance_id)

    expect_equal(await backend.load_snapshot(run.instance_id), before, "a pause stops answers")
    saved = await backend.save_snapshot(before.count_iteration("loop"))
    expect(isinstance(saved.position, AtSignal), "a save that stays paused drains nothing either")
    expect_equal(await _queue(backend, run.instance_id), [b"yes"], "the event stays queued")


@check("EVENT-046", "A save that sets a paused instance going answers its wait before it returns.")
async def save_that_unpauses_answers(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait())
    paused = await backend.save_snapshot(run.pause())
    await backend.send_event(run.instance_id, "paid", b"yes")

    saved = await backend.save_snapshot(paused.unpause())

    await _expect_answered(backend, run.instance_id, b"yes", "a save drains")
    expect_equal(saved, await backend.load_snapshot(run.instance_id), "and returns what is stored")


@check("EVENT-047", "A commit on a paused instance that parks where an event waits drains nothing.")
async def paused_commit_drains_nothing(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    await backend.save_snapshot(snapshot.pause())
    await backend.send_event(snapshot.instance_id, "paid", b"yes")

    commit = await backend.commit_task(mine, _parks(_wait()), base=snapshot)

    expect_equal(commit.snapshot.status, Status.PAUSED, "the commit leaves it paused")
    await _expect_waiting(backend, snapshot.instance_id, "its wait stays unanswered")
    await backend.unpause(snapshot.instance_id)
    await backend.find_available_tasks(worker_id="worker")
    await _expect_answered(backend, snapshot.instance_id, b"yes", "until it goes on")


# --- Event ids ----------------------------------------------------------------------------------


@check("EVENT-048", "A repeat under the same event_id is a no-op, whatever its payload.")
async def event_id_dedupes(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    instance_id = (await start(kit, backend)).instance_id

    await backend.send_event(instance_id, "paid", b"first", event_id="e1")
    await other.send_event(instance_id, "paid", b"first", event_id="e1")
    await backend.send_event(instance_id, "paid", b"other", event_id="e1")

    expect_equal(await _queue(backend, instance_id), [b"first"], "an event is queued once")


@check("EVENT-049", "An event_id is remembered after its event was consumed.")
async def event_id_outlives_consumption(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id
    await backend.send_event(instance_id, "paid", b"first", event_id="e1")
    expect_equal(await _queue(backend, instance_id), [b"first"], "the event is there")

    await backend.send_event(instance_id, "paid", b"first", event_id="e1")

    expect_equal(await _queue(backend, instance_id), [], "a repeat brings no second event")


@check("EVENT-050", "An event_id is remembered after its event answered a wait.")
async def event_id_outlives_an_answer(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, _wait(_wait(node_id="again")))
    await backend.send_event(run.instance_id, "paid", b"yes", event_id="e1")

    await backend.send_event(run.instance_id, "paid", b"yes", event_id="e1")

    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(dict(loaded.results), {"wait": b"yes"}, "a repeat answers no second wait")
    expect_equal(loaded.version, run.version + 1, "and moves nothing")
    expect_equal(await _queue(backend, run.instance_id), [], "nor is it queued")


@check("EVENT-051", "An event_id counts for one name of one instance; without one nothing is.")
async def event_ids_are_scoped(kit: Kit) -> None:
    backend = await kit.open()
    one, two = [(await start(kit, backend)).instance_id for _ in range(2)]

    for instance_id in (one, two):
        for name in ("paid", "shipped"):
            await backend.send_event(instance_id, name, b"x", event_id="e1")
            await backend.send_event(instance_id, name, b"y", event_id="E1")
            await backend.send_event(instance_id, name, b"z")
            await backend.send_event(instance_id, name, b"z")

    for instance_id in (one, two):
        for name in ("paid", "shipped"):
            expect_equal(
                await _queue(backend, instance_id, name),
                [b"x", b"y", b"z", b"z"],
                "the same id under another name or instance is another event",
            )


@check("EVENT-052", "An event_id that came before its instance still counts after the start.")
async def event_id_outlives_the_start(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = kit.instance()
    await backend.send_event(instance_id, "paid", b"yes", event_id="e1")
    await backend.start_instance(instance_id, "v1", start_at=_wait(_wait(node_id="again")))

    await backend.send_event(instance_id, "paid", b"yes", event_id="e1")

    loaded = await backend.load_snapshot(instance_id)
    expect_equal(dict(loaded.results), {"wait": b"yes"}, "a repeat is a no-op all the same")


@check("EVENT-053", "The last 1,000 event ids of an instance are remembered.")
async def event_ids_of_a_thousand(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id

    # They stay queued, so that all of it is a thousand writes; that many fit into every queue.
    for number in range(1000):
        name = "edge" if number in (0, 999) else "paid"
        await backend.send_event(instance_id, name, b"%d" % number, event_id=f"e{number}")

    for number in (0, 999):
        await backend.send_event(instance_id, "edge", b"again", event_id=f"e{number}")

    expect_equal(
        await _queue(backend, instance_id, "edge"),
        [b"0", b"999"],
        "a repeat of the first or the last of 1,000 event ids is a no-op",
    )


@check("EVENT-054", "An event id is remembered for a day.")
async def event_ids_of_a_day(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id
    await backend.send_event(instance_id, "paid", b"x", event_id="e1")
    await backend.consume_event(instance_id, "paid")

    await kit.elapse(timedelta(hours=24) - TICK)
    await backend.sweep()
    await backend.send_event(instance_id, "paid", b"x", event_id="e1")

    expect_equal(await _queue(backend, instance_id), [], "a repeat on the same day is a no-op")


# --- Limits -------------------------------------------------------------------------------------


@check("EVENT-055", "At most max_queued_events of an instance are queued, of all names together.")
async def queue_is_bounded(kit: Kit) -> None:
    backend = await kit.open(max_queued_events=3)
    one, two = [(await start(kit, backend)).instance_id for _ in range(2)]
    nobody = kit.instance()

    for instance_id in (one, two, nobody):
        for name in ("paid", "shipped", "paid"):
            await backend.send_event(instance_id, name, b"x")

        for name in ("paid", "other"):
            with raises(EventQueueFullError, f"a full queue refuses an event named {name!r}"):
                await backend.send_event(instance_id, name, b"y")

    expect_equal(await _queue(backend, one), [b"x", b"x"], "what was refused is not queued")
    await backend.send_event(one, "other", b"z")
    expect_equal(await _queue(backend, one, "other"), [b"z"], "consuming makes room")


@check("EVENT-056", "An event that is answered at once needs no room.")
async def answer_needs_no_room(kit: Kit) -> None:
    backend = await kit.open(max_queued_events=1)
    run = await start(kit, backend, _wait())
    await backend.send_event(run.instance_id, "shipped", b"x")

    await backend.send_event(run.instance_id, "paid", b"yes")

    await _expect_answered(backend, run.instance_id, b"yes", "an open wait is answered")
    with raises(EventQueueFullError, "without a wait there is no room"):
        await backend.send_event(run.instance_id, "paid", b"no")


@check("EVENT-057", "A full queue refuses an event whose wait cannot take it now.")
async def no_room_without_an_answer(kit: Kit) -> None:
    backend = await kit.open(max_queued_events=1)
    paused, signalled, over = [
        await start(kit, backend, _wait(within=within)) for within in (None, None, Kit.short)
    ]

    for run in (paused, signalled, over):
        await backend.send_event(run.instance_id, "shipped", b"x")

    await backend.save_snapshot(paused.pause())
    await backend.store_signal(signalled.instance_id, SignalKind.PAUSE)
    await kit.until(backend, _end(over))

    for why, run in (("paused", paused), ("a signal", signalled), ("its end", over)):
        with raises(EventQueueFullError, f"a wait under {why} takes no event, so it needs room"):
            await backend.send_event(run.instance_id, "paid", b"y")


@check("EVENT-058", "A repeat under a known event_id is a no-op on a full queue too.")
async def repeat_needs_no_room(kit: Kit) -> None:
    backend = await kit.open(max_queued_events=1)
    instance_id = (await start(kit, backend)).instance_id
    await backend.send_event(instance_id, "paid", b"x", event_id="e1")

    await backend.send_event(instance_id, "paid", b"x", event_id="e1")

    with raises(EventQueueFullError, "another id is another event"):
        await backend.send_event(instance_id, "paid", b"x", event_id="e2")

    expect_equal(await _queue(backend, instance_id), [b"x"], "one event is queued")
    await backend.send_event(instance_id, "paid", b"x", event_id="e2")
    expect_equal(
        await _queue(backend, instance_id), [b"x"], "an id that was refused is not remembered"
    )


@check("EVENT-059", "A payload of max_payload bytes is taken, a longer one refused.")
async def payload_is_bounded(kit: Kit) -> None:
    backend = await kit.open(max_payload=1024)
    run = await start(kit, backend, _wait())

    error = await expect_refused(
        backend,
        run,
        PayloadTooLargeError,
        "a payload above max_payload is refused",
        partial(backend.send_event, run.instance_id, "paid", b"x" * 1025, event_id="e1"),
    )

    expect_equal((error.size, error.limit), (1025, 1024), "the error names size and limit")
    await backend.send_event(run.instance_id, "paid", b"x" * 1024, event_id="e1")
    await _expect_answered(backend, run.instance_id, b"x" * 1024, "the longest payload is taken")


# --- drain_signal -------------------------------------------------------------------------------


async def _due(kit: Kit, backend: PersistentBackend, position: Position) -> WorkflowSnapshot:
    """An instance in progress whose wait has met the event b"yes", and nobody has drained it."""
    run = await start(kit, backend, position)
    await backend.store_signal(run.instance_id, SignalKind.PAUSE)
    await backend.send_event(run.instance_id, "paid", b"yes")
    await backend.clear_signal(run.instance_id, SignalKind.PAUSE)
    return run


@check("EVENT-060", "drain_signal takes the event and moves the wait on, in one step.")
async def drains(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()

    for version in (None, 1):
        run = await _due(kit, backend, _wait())

        drained = await backend.drain_signal(run.instance_id, version=version)

        loaded = await other.load_snapshot(run.instance_id)
        expect_equal(drained and drained.version, loaded.version, "it returns what is stored")
        expect_equal(drained and drained.position, loaded.position, "position included")
        expect_equal(loaded.version, run.version + 1, "that takes one version")
        await _expect_answered(other, run.instance_id, b"yes", "drain_signal drains")
        expect_equal(await _queue(other, run.instance_id), [], "the event is taken")


@check("EVENT-061", "drain_signal of another version is StaleSnapshotError, and drains nothing.")
async def drains_only_its_version(kit: Kit) -> None:
    backend = await kit.open()
    run = await _due(kit, backend, _wait())
    before = await backend.load_snapshot(run.instance_id)

    for version in (run.version + 1, 77):
        error = await expect_refused(
            backend,
            before,
            StaleSnapshotError,
            f"version {version} is not the stored one",
            partial(backend.drain_signal, run.instance_id, version=version),
        )
        expect_equal(
            (error.given_version, error.stored_version),
            (version, run.version),
            "the error names both versions",
        )

    drained = await backend.drain_signal(run.instance_id, version=run.version)
    expect(drained is not None, "with the stored version it drains")

    with raises(StaleSnapshotError, "a blind repeat with the version drains nothing twice"):
        await backend.drain_signal(run.instance_id, version=run.version)


@check("EVENT-062", "drain_signal of an unknown instance is InstanceNotFoundError.")
async def drains_the_unknown(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = kit.instance()
    await backend.send_event(instance_id, "paid", b"yes")

    for version in (None, 1):
        with raises(InstanceNotFoundError, "there is nothing to drain into"):
            await backend.drain_signal(instance_id, version=version)

    expect_equal(await _queue(backend, instance_id), [b"yes"], "the event stays queued")


@check("EVENT-063", "drain_signal is None, and changes nothing, where nothing can be drained.")
async def drains_nothing(kit: Kit) -> None:
    backend = await kit.open()
    scenes = {
        "it is at a task": await start(kit, backend),
        "the wait is for another name": await start(kit, backend, _wait(name="approved")),
        "it is paused": await stored(kit, backend, Status.PAUSED, _wait()),
    }
    scenes |= {f"it is {each}": await stored(kit, backend, each) for each in TERMINAL}

    for kind in SignalKind:
        signalled = await start(kit, backend, _wait())
        await backend.store_signal(signalled.instance_id, kind)
        scenes[f"a {kind} is pending"] = signalled

    late = await start(kit, backend, _wait(within=Kit.short))
    await kit.until(backend, _end(late))
    scenes["the event came too late"] = late

    for scene, run in scenes.items():
        await backend.send_event(run.instance_id, "paid", b"yes")
        before = await backend.load_snapshot(run.instance_id)

        for version in (None, run.version):
            expect_equal(
                await backend.drain_signal(run.instance_id, version=version),
                None,
                f"nothing is drained where {scene}",
            )

        expect_equal(await backend.load_snapshot(run.instance_id), before, "nothing is written")
        expect_equal(await _queue(backend, run.instance_id), [b"yes"], "the event stays queued")


@check("EVENT-064", "drain_signal moves one wait on with each call.")
async def drains_one_by_one(kit: Kit) -> None:
    backend = await kit.open()
    branches: dict[str, Position | None] = {
        "left": _wait(_wait(AtTask("3-done"), node_id="3"), node_id="1"),
        "right": _wait(AtTask("2-done"), node_id="2", name="approved"),
    }
    run = await start(kit, backend, AtFork("split", branches))
    await backend.store_signal(run.instance_id, SignalKind.PAUSE)

    for name in ("paid", "paid", "approved"):
        await backend.send_event(run.instance_id, name, name.encode())

    await backend.clear_signal(run.instance_id, SignalKind.PAUSE)

    for number in range(1, 4):
        drained = await backend.drain_signal(run.instance_id, version=run.version + number - 1)
        expect_equal(drained and drained.version, run.version + number, "one version a call")
        loaded = await backend.load_snapshot(run.instance_id)
        expect_equal(len(loaded.results), number, "one wait a call")

    expect_equal(await backend.drain_signal(run.instance_id), None, "then nothing is left")
    expect_equal(
        dict((await backend.load_snapshot(run.instance_id)).results),
        {"1": b"paid", "2": b"approved", "3": b"paid"},
        "every wait has its event",
    )


@check("EVENT-065", "drain_signal completes the workflow where nothing follows the wait.")
async def drain_completes(kit: Kit) -> None:
    backend = await kit.open()
    at_root = await _due(kit, backend, _wait(None))
    in_fork = await _due(kit, backend, AtFork("split", {"wait": _wait(None), "over": None}))

    for run, output in ((at_root, b"yes"), (in_fork, b"")):
        drained = await backend.drain_signal(run.instance_id)

        expect_equal(drained and drained.state, Completed(output), "it completes")
        loaded = await backend.load_snapshot(run.instance_id)
        expect_equal(loaded.state, Completed(output), "and is stored so")
        expect_equal(loaded.results.get("wait"), b"yes", "with the event recorded")


@check("EVENT-066", "drain_signal answers a wait behind an elapsed delay.")
async def drains_behind_a_delay(kit: Kit) -> None:
    backend, instance_id = await kit.open(), kit.instance()
    nap = AtDelay("nap", wake_after=Kit.short, next=_wait())
    await backend.send_event(instance_id, "paid", b"yes")
    run = (await backend.start_instance(instance_id, "v1", start_at=nap)).snapshot
    await kit.elapse(Kit.short)

    drained = await backend.drain_signal(run.instance_id, version=run.version)

    expect(drained is not None, "a virtual wait is drained")
    await _expect_answered(backend, run.instance_id, b"yes", "a delay's end opens its wait")


@check("EVENT-067", "A commit that meets an event in one branch claims no task of another.")
async def commit_meets_in_a_branch(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    await backend.send_event(snapshot.instance_id, "paid", b"yes")
    branches: dict[str, Position | None] = {"task": AtTask("pack"), "wait": _wait()}

    commit = await backend.commit_task(mine, _parks(AtFork("split", branches)), claim_next=kit.long)

    expect_equal(
        [task.task_id for task in commit.snapshot.ready_tasks()],
        ["pack", "ship"],
        "the wait is answered before the commit returns",
    )
    expect_equal(commit.next, None, "after a drain nothing is claimed, of whatever branch")
    acquired = await backend.acquire_tasks(worker_id="other", ttl=kit.long, limit=9)
    expect_equal({task.task_id for task in acquired}, {"pack", "ship"}, "both are free")


@check("EVENT-068", "A drain returns the instance as it shows now, with all that has elapsed.")
async def drained_is_settled(kit: Kit) -> None:
    backend = await kit.open()
    again = _wait(node_id="again", within=Kit.short)

    async def was_met_long_ago() -> str:
        run = await start(kit, backend, _wait(again))
        await backend.save_snapshot(run.pause())
        await backend.send_event(run.instance_id, "paid", b"yes")
        await kit.elapse(Kit.short)
        return run.instance_id

    async def drains(instance_id: str) -> WorkflowSnapshot | None:
        await backend.unpause(instance_id)
        return await backend.drain_signal(instance_id)

    async def saves(instance_id: str) -> WorkflowSnapshot:
        paused = await backend.load_snapshot(instance_id)
        return await backend.save_snapshot(paused.unpause())

    async def updates(instance_id: str) -> WorkflowSnapshot:
        return await backend.update_snapshot(instance_id, lambda found: found.unpause())

    for name, call in (("drain_signal", drains), ("a save", saves), ("an update", updates)):
        instance_id = await was_met_long_ago()

        drained = await call(instance_id)

        expect_equal(
            drained,
            await backend.load_snapshot(instance_id),
            f"{name} that drains returns what a load shows",
        )
        expect(
            drained is not None and drained.timed_out == frozenset({"again"}),
            "a wait behind the one that was answered has ended meanwhile",
        )
