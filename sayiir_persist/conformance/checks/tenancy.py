"""TENANCY: namespaces and ids keep everything apart, however they are spelt."""

from __future__ import annotations

from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING

from sayiir_persist import (
    AtTask,
    ClaimLostError,
    ClaimNotFoundError,
    InstanceNotFoundError,
    InvalidArgumentError,
    PersistentBackend,
    PersistError,
    SignalKind,
    SignalRequest,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import Kit, expect, expect_equal, raises, succeeded
from sayiir_persist.conformance.operations import INSTANCE_OPERATIONS
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import BAD_IDS, claim, expect_missing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_HOSTILE = r"""
a A b ab aa 0 00 -1 1e3 null None true {} [] ~
% _ a% a_ * ? a* [ab] a? ^a$ (a|b) a{1} {a} }{ %61 %00
: a: :a a:b :: / a/b ../a \ a\ \x61 \0 | ; , # . a.b .a a. $a $where
' " a'b '' ` -- ';DROP/**/TABLE/**/a;-- <a> &amp;
é ﬁ fi ß ss 🚚 שלום
"""
HOSTILE_IDS = (
    *_HOSTILE.split(),
    *("a ", " a", "a b", "a\n", "\t", "a\x01", "\x7f", "\x85"),
    *("e\u0301", "\u0131", "\u0130", "\u200b", "\ufeffa", "\u202ea", "\uffff", "\U0010ffff"),
    *("x" * 255, "x" * 256, "é" * 128),
)
"""Ids that differ, though patterns, prefixes, cases or normal forms may confuse them."""


async def _fill(backend: PersistentBackend, instance_id: str, mark: str) -> WorkflowSnapshot:
    """Make an instance to which everything belongs that can, all of it marked."""
    await backend.start_instance(instance_id, "v1", start_at=AtTask("charge"), input=mark.encode())
    await backend.save_task_result(instance_id, "step", mark.encode())
    await backend.send_event(instance_id, "paid", mark.encode())
    await backend.store_signal(instance_id, SignalKind.PAUSE, SignalRequest(reason=mark))
    return await backend.load_snapshot(instance_id)


async def _expect_intact(
    backend: PersistentBackend, before: WorkflowSnapshot, mark: str, expectation: str
) -> None:
    """Fail the check unless the instance is as it was filled. Its event is consumed."""
    instance_id = before.instance_id
    expect_equal(await backend.load_snapshot(instance_id), before, expectation)
    expect_equal(await backend.load_task_result(instance_id, "step"), mark.encode(), expectation)
    request = await backend.get_signal(instance_id, SignalKind.PAUSE)
    expect_equal(request and request.reason, mark, expectation)
    expect_equal(await backend.consume_event(instance_id, "paid"), mark.encode(), expectation)
    expect_equal(await backend.consume_event(instance_id, "paid"), None, expectation)


@check("TENANCY-001", "No operation sees or touches another namespace's instances.")
async def namespaces(kit: Kit) -> None:
    here, there = await kit.open(), await kit.open(namespace=f"{kit.namespace}-other")
    before = await _fill(here, "run", "here")

    with raises(InstanceNotFoundError, "another namespace does not have the instance"):
        await there.load_snapshot("run")

    with raises(InstanceNotFoundError, "nor can it be deleted from there"):
        await there.delete_snapshot("run")

    expect_equal(await there.list_snapshots(), [], "it is not listed there")
    expect_equal(
        await there.find_available_tasks(worker_id="worker"), [], "nor are its tasks offered there"
    )
    expect_equal(
        await there.get_signal("run", SignalKind.PAUSE), None, "nor are its signals seen there"
    )
    expect_equal(await there.consume_event("run", "paid"), None, "nor are its events")

    other = await _fill(there, "run", "there")
    expect(other.incarnation != before.incarnation, "the same id is another instance there")
    mine, theirs = await claim(here, "run"), await claim(there, "run")
    await there.release_task_claim(theirs)
    await here.extend_task_claim(mine, ttl=kit.long)
    await there.delete_snapshot("run")
    await there.sweep()
    await _expect_intact(here, before, "here", "what is done in one namespace stays there")


@check("TENANCY-002", "A claim of one namespace is worth nothing in another.")
async def foreign_claims(kit: Kit) -> None:
    here, there = await kit.open(), await kit.open(namespace=f"{kit.namespace}-other")
    await here.start_instance("run", "v1", start_at="charge")
    await there.start_instance("run", "v1", start_at="charge")
    foreign = await claim(here, "run")

    with raises(ClaimLostError, "no write passes with a foreign claim"):
        await there.save_task_result("run", "charge", b"x", claim=foreign)

    with raises(ClaimNotFoundError, "a foreign claim is not released"):
        await there.release_task_claim(foreign)

    await claim(there, "run")


@check("TENANCY-003", "Namespaces are compared whole and exactly: by case, prefix, separator.")
async def similar_namespaces(kit: Kit) -> None:
    prefix = token_hex(4)
    names = [f"{prefix}{suffix}" for suffix in ("", "a", "A", "ab", "a.b", "a-b", "a_b", "_", ".")]
    longest = f"{prefix}{'x' * (64 - len(prefix))}"
    backends = {
        name: await kit.open(namespace=name) for name in [*names, longest, f"{longest[:-1]}y"]
    }

    for name, backend in backends.items():
        expect_equal(await backend.list_snapshots(), [], f"the namespace {name} is its own")
        await backend.start_instance("run", "v1", start_at="charge", input=name.encode())
        expect_equal(backend.info.namespace, name, "`info` names the namespace")

    for name, backend in backends.items():
        loaded = await backend.load_snapshot("run")
        expect_equal(loaded.input, name.encode(), f"the namespace {name} is its own")
        [task] = await backend.acquire_tasks(worker_id="worker", ttl=kit.long, limit=9)
        expect_equal(task.input, name.encode(), "and so is what is acquired in it")


@check("TENANCY-004", "A namespace is 1 to 64 of A-Z a-z 0-9 _ - . and nothing else.")
async def invalid_namespaces(kit: Kit) -> None:
    for bad in ("x" * 65, "a b", "a:b", "a/b", "a{b}", "é", "a\n", "a\0", "*", "a'b", "$a", "%"):
        with raises(InvalidArgumentError, f"the namespace {bad!r} is refused"):
            await kit.open(namespace=bad)

    with raises(InvalidArgumentError, "an empty namespace is refused"):
        kit.subject.backend(namespace="")


@check("TENANCY-005", "Ids are opaque: what is done to one never touches another.")
async def hostile_instances(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()

    for first in (0, 1):
        await _destroy_every_second(kit, backend, other, first)

        for instance_id in HOSTILE_IDS[1 - first :: 2]:
            await backend.delete_snapshot(instance_id)


async def _destroy_every_second(
    kit: Kit, backend: PersistentBackend, other: PersistentBackend, first: int
) -> None:
    filled = await kit.together(
        *(
            partial(_fill, backend, instance_id, str(number))
            for number, instance_id in enumerate(HOSTILE_IDS)
        )
    )
    snapshots = {snapshot.instance_id: snapshot for snapshot in succeeded(filled)}
    expect_equal(set(snapshots), set(HOSTILE_IDS), "every id can be used")

    async def destroy(instance_id: str) -> None:
        mine = await claim(backend, instance_id)
        await backend.update_snapshot(instance_id, lambda found: found.count_iteration("loop"))
        await backend.clear_signal(instance_id, SignalKind.PAUSE)
        await backend.release_task_claim(mine)
        await backend.consume_event(instance_id, "paid")
        await backend.delete_snapshot(instance_id)

    destroyed = await kit.together(
        *(partial(destroy, instance_id) for instance_id in HOSTILE_IDS[first::2])
    )
    expect_equal(set(destroyed), {None}, "and whatever is done to an id finds its instance")

    for number, instance_id in enumerate(HOSTILE_IDS):
        if number % 2 == first:
            await expect_missing(other, instance_id, f"the instance {instance_id!r} is deleted")
        else:
            await _expect_intact(
                other,
                snapshots[instance_id],
                str(number),
                f"the instance {instance_id!r} is touched by nothing that is done to others",
            )


@check(
    "TENANCY-006", "Listings hold every id as it was given, in the order of bytes, literally paged."
)
async def hostile_listings(kit: Kit) -> None:
    backend = await kit.open()

    await kit.together(
        *(partial(backend.start_instance, each, "v1", start_at="charge") for each in HOSTILE_IDS)
    )

    expected = sorted(HOSTILE_IDS, key=str.encode)
    listed = [info.instance_id for info in await backend.list_snapshots(limit=1000)]
    expect_equal(listed, expected, "every id is listed as it was given, in the order of bytes")

    for number, after in enumerate(expected):
        page = await backend.list_snapshots(after=after, limit=1)
        expect_equal(
            [info.instance_id for info in page],
            expected[number + 1 : number + 2],
            f"after={after!r} is literal",
        )


@check("TENANCY-007", "Task ids and event names are opaque as well.")
async def hostile_names(kit: Kit) -> None:
    backend = await kit.open()
    await backend.start_instance("run", "v1", start_at="charge")

    async def name_it(name: str, payload: bytes) -> None:
        await backend.save_task_result("run", name, payload)
        await backend.send_event("run", name, payload)

    named = await kit.together(
        *(partial(name_it, name, b"%d" % number) for number, name in enumerate(HOSTILE_IDS))
    )
    expect_equal(set(named), {None}, "every name can be used")

    loaded = await backend.load_snapshot("run")
    expect_equal(
        dict(loaded.results),
        {name: b"%d" % number for number, name in enumerate(HOSTILE_IDS)},
        "every node keeps its own result",
    )

    for number, name in enumerate(HOSTILE_IDS):
        expect_equal(
            await backend.load_task_result("run", name),
            b"%d" % number,
            f"the result of {name!r} is its own",
        )
        expect_equal(
            await backend.consume_event("run", name),
            b"%d" % number,
            f"the event {name!r} is its own",
        )


@check("TENANCY-008", "Workers, tags and definitions are opaque as well, and match exactly.")
async def hostile_filters(kit: Kit) -> None:
    backend = await kit.open()

    for number, name in enumerate(HOSTILE_IDS):
        await backend.start_instance(
            f"run-{number}", name, start_at=AtTask(name, tags=(name,)), tags=[name]
        )

    for number, name in enumerate(HOSTILE_IDS):
        found = await backend.find_available_tasks(worker_id=name, tags=[name], limit=99)
        expect_equal(
            [task.instance_id for task in found], [f"run-{number}"], f"the tag {name!r} is literal"
        )
        [task] = await backend.acquire_tasks(
            worker_id=name, ttl=kit.long, definition_hashes=[name], limit=99
        )
        expect_equal(
            (task.instance_id, task.task_id, task.claim.worker_id),
            (f"run-{number}", name, name),
            f"the definition {name!r} is literal",
        )


@check("TENANCY-009", "Every operation refuses an invalid instance id, look-ups too.")
async def invalid_instances(kit: Kit) -> None:
    backend = await kit.open()

    for what, bad in BAD_IDS.items():
        for name, operation in INSTANCE_OPERATIONS.items():
            with raises(InvalidArgumentError, f"{name} refuses {what} as instance id"):
                await operation(backend, bad)

    with raises(InvalidArgumentError, "the error names the limit") as caught:
        await backend.load_snapshot("x" * 257)

    expect("256" in str(caught.error), "the error names the limit")
    expect_equal(await backend.list_snapshots(), [], "what was refused creates nothing")


@check("TENANCY-010", "Ids of exactly 256 bytes are accepted by every operation.")
async def longest_instances(kit: Kit) -> None:
    backend = await kit.open()

    for name, operation in INSTANCE_OPERATIONS.items():
        for longest in ("x" * 256, "é" * 128):
            try:
                await operation(backend, longest)
            except InvalidArgumentError as error:
                expect(False, f"{name} accepts an instance id of 256 bytes, but: {error}")
            except PersistError:
                continue  # it got past the limits, which is what counts here


@check("TENANCY-011", "Names of tasks and events obey the limits of ids in every look-up.")
async def invalid_names(kit: Kit) -> None:
    backend = await kit.open()
    await backend.start_instance("run", "v1", start_at="charge")

    for what, bad in BAD_IDS.items():
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "load_task_result": partial(backend.load_task_result, "run", bad),
            "save_task_result": partial(backend.save_task_result, "run", bad, b"x"),
            "send_event": partial(backend.send_event, "run", bad, b"x"),
            "send_event, as event id,": partial(
                backend.send_event, "run", "paid", b"x", event_id=bad
            ),
            "consume_event": partial(backend.consume_event, "run", bad),
            "list_snapshots": partial(backend.list_snapshots, definition_hash=bad),
            "check_and_cancel": partial(backend.check_and_cancel, "run", interrupted_at_task=bad),
        }

        for name, call in calls.items():
            with raises(InvalidArgumentError, f"{name} refuses {what}"):
                await call()
