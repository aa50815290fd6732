"""One round trip for every hot operation, with no key but those that are declared or minted."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from integration.redis.support import TTL, WORKER, acquired, next_step, started

from sayiir_persist import AtDelay, AtTask
from sayiir_persist.adapters.redis.scripts import composed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis import Redis
    from services.proxy import Proxy

    from sayiir_persist import PersistentBackend
    from sayiir_persist.adapters.redis import RedisBackend

Operation = tuple[str, "Callable[[PersistentBackend], Awaitable[object]]"]

LOOK_UPS: list[Operation] = [
    ("load_snapshot", lambda b: b.load_snapshot("run")),
    ("load_snapshot, results=False", lambda b: b.load_snapshot("run", results=False)),
    ("load_task_result", lambda b: b.load_task_result("run", "charge")),
    ("get_signal", lambda b: b.get_signal("run", "cancel")),
    ("check_control_signals", lambda b: b.check_control_signals("run")),
    ("list_snapshots", lambda b: b.list_snapshots()),
    ("find_available_tasks", lambda b: b.find_available_tasks(worker_id=WORKER)),
    ("find_stalled", lambda b: b.find_stalled(idle_for=timedelta(0))),
    ("now", lambda b: b.now()),
]
WRITES: list[Operation] = [
    ("start_instance", lambda b: b.start_instance("other", "v1", start_at="charge")),
    ("save_task_result", lambda b: b.save_task_result("run", "charge", b"x")),
    ("claim_task", lambda b: b.claim_task("run", "charge", worker_id=WORKER, ttl=TTL)),
    ("acquire_tasks", lambda b: b.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=10)),
    ("send_event", lambda b: b.send_event("run", "go", b"x", event_id="1")),
    ("consume_event", lambda b: b.consume_event("run", "go")),
    ("store_signal", lambda b: b.store_signal("run", "cancel")),
    ("delete_snapshot", lambda b: b.delete_snapshot("run")),
]


@pytest.mark.parametrize("operation", LOOK_UPS + WRITES, ids=lambda it: it[0])
async def test_one_round_trip(
    operation: Operation, make: Callable[..., RedisBackend], proxy: Proxy
) -> None:
    async with make(proxy.url) as backend:
        await started(backend)
        proxy.reset_counts()

        await operation[1](backend)

        assert proxy.round_trips == 1


async def test_a_step_is_one_round_trip(make: Callable[..., RedisBackend], proxy: Proxy) -> None:
    async with make(proxy.url) as backend:
        await started(backend)
        task = await acquired(backend)
        await backend.extend_task_claim(task.claim, ttl=TTL)
        proxy.reset_counts()

        commit = await backend.commit_task(task.claim, next_step(task), claim_next=TTL)
        assert commit.next is not None
        assert proxy.round_trips == 1

        await backend.commit_task(
            commit.next.claim,
            lambda s: s.complete_task("ship", b"", next=AtTask("bill")),
            base=commit.next.snapshot,
        )
        assert proxy.round_trips == 2


async def test_bytes_of_a_commit_follow_the_step_and_not_the_workflow(
    make: Callable[..., RedisBackend], proxy: Proxy
) -> None:
    async with make(proxy.url) as backend:
        await started(backend, input=b"x" * 10_000)
        task = await acquired(backend)
        sizes: dict[int, int] = {}

        for step in range(1, 301):
            proxy.reset_counts()
            snapshot = next_step(task, following=f"task-{step:04}")
            task = (await backend.commit_task(task.claim, snapshot, claim_next=TTL)).next
            assert task is not None
            sizes[step] = proxy.bytes_to_server + proxy.bytes_to_client

    assert sizes[300] < 1.2 * sizes[10]


async def test_polls_do_not_touch_what_is_not_due(
    backend: RedisBackend, raw: Redis, namespace: str
) -> None:
    parked = AtDelay("nap", wake_after=TTL, next=AtTask("charge"))

    async def calls() -> int:
        raw.config_resetstat()
        await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=5)
        return sum(it["calls"] for name, it in raw.info("commandstats").items() if "z" in name)

    alone = await calls()

    for number in range(50):
        await backend.start_instance(f"parked-{number}", "v1", start_at=parked)
        await started(backend, f"done-{number}")
        await backend.update_snapshot(f"done-{number}", lambda s: s.complete(b""))

    assert await calls() == alone


async def test_scripts_touch_no_key_outside_the_prefix(
    url: str, raw: Redis, namespace: str, make: Callable[..., RedisBackend]
) -> None:
    raw.acl_setuser(
        "limited",
        enabled=True,
        passwords=["+secret"],
        keys=[f"sayiir:{{{namespace}:*"],
        channels=[f"sayiir:{{{namespace}:*"],
        commands=["+@all", "-@dangerous", "+info", "-keys", "-scan", "-flushall"],
    )

    try:
        async with make(url.replace("redis://", "redis://limited:secret@")) as backend:
            await started(backend)
            await backend.send_event("run", "go", b"", event_id="1")
            task = await acquired(backend, results=True)
            await backend.commit_task(task.claim, next_step(task))
            assert await backend.wait_for_wakeup(timedelta(seconds=5)) is not None
            await backend.list_snapshots()
            await backend.request_signal("run", "cancel")
            await backend.sweep()
            await backend.delete_snapshot("run")
    finally:
        raw.acl_deluser("limited")


@pytest.mark.parametrize("command", ["PUBLISH", "SPUBLISH"])
def test_no_name_of_lua_is_left_open(command: str) -> None:
    for script in composed(publish=command):
        text = script.text.decode()
        assert not {"FLOOR", "LANE", "IN_PROGRESS", "PUBLISH_", "--{"} & set(text.split("(")[0:])
        assert "OWN_" not in text
        assert "KEYS" in text or script.name in {"now"}


@pytest.mark.parametrize(
    "instance_id", ["*", "?", "[a]", "{b}", "}{", "%s", ": :", "日本 🎈", "\\", "'\"", "a\n\x01b"]
)
async def test_hostile_ids_are_ids(backend: RedisBackend, instance_id: str) -> None:
    await started(backend, instance_id)
    await started(backend, instance_id + "-not")
    await backend.send_event(instance_id, instance_id, b"event", event_id=instance_id)

    assert await backend.consume_event(instance_id, instance_id) == b"event"
    [task, other] = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=2)
    assert {task.instance_id, other.instance_id} == {instance_id, instance_id + "-not"}
    await backend.delete_snapshot(instance_id)
    assert [it.instance_id for it in await backend.list_snapshots()] == [instance_id + "-not"]
