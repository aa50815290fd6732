"""What clients send, and ways to be a bad server."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener

from sayiir_persist import AtTask

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Generator, Mapping

    from pymongo import MongoClient
    from pymongo.monitoring import (
        CommandFailedEvent,
        CommandStartedEvent,
        CommandSucceededEvent,
    )

    from sayiir_persist import AcquiredTask, PersistentBackend

TTL = timedelta(minutes=10)
ASIDE = frozenset({"isMaster", "ismaster", "hello", "endSessions", "killCursors", "buildInfo"})
"""What the driver sends by itself."""


class Commands(CommandListener):
    """Notes the commands of a client, those of its change streams left out."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.bodies: list[Mapping[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        is_stream = event.command_name == "getMore" or "$changeStream" in str(
            event.command.get("pipeline", "")
        )

        if event.command_name not in ASIDE and not is_stream:
            self.sent.append(event.command_name)
            self.bodies.append(event.command)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass

    async def of(self, call: Awaitable[Any]) -> list[str]:
        """The commands of one call."""
        self.sent.clear()
        self.bodies.clear()
        await call
        return list(self.sent)


@asynccontextmanager
async def client_of(
    url: str, *, motor: bool = False, commands: Commands | None = None, **options: Any
) -> AsyncGenerator[Any]:
    """A client of the user's own."""
    if commands is not None:
        options["event_listeners"] = [commands]

    if motor:
        client = AsyncIOMotorClient(url, **options)

        try:
            yield client
        finally:
            client.close()
    else:
        async with AsyncMongoClient[dict[str, Any]](url, **options) as made:
            yield made


@contextmanager
def failing(
    client: MongoClient[dict[str, Any]], *commands: str, times: int = 1, **how: Any
) -> Generator[None]:
    """Make the server fail the next of these commands.

    Args:
        client: Of the server.
        commands: Which.
        times: How many of them.
        how: `errorCode`, `closeConnection`, `writeConcernError`, ...
    """
    point = {"configureFailPoint": "failCommand"}
    data = {"failCommands": list(commands), **how}
    client.admin.command({**point, "mode": {"times": times}, "data": data})

    try:
        yield
    finally:
        client.admin.command({**point, "mode": "off"})


async def begin(backend: PersistentBackend, instance_id: str = "run") -> AcquiredTask:
    """An instance at its first task, claimed."""
    await backend.start_instance(instance_id, "v1", start_at="t0", input=b"{}")
    [task] = await backend.acquire_tasks(worker_id="w", ttl=TTL)
    assert task.instance_id == instance_id
    return task


async def walk(
    backend: PersistentBackend, task: AcquiredTask, steps: range, output: bytes = b"done"
) -> AcquiredTask:
    """Run through some steps, `t0` being the first of a workflow."""
    for number in steps:
        following = AtTask(f"t{number + 1}")
        step = task.snapshot.complete_task(f"t{number}", output, next=following)
        commit = await backend.commit_task(task.claim, step, claim_next=TTL)
        assert commit.next is not None
        task = commit.next

    return task
