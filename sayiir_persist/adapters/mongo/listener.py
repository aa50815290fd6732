"""Wake hints: a change stream where the deployment has one, else nothing but our own."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio

from sayiir_persist.adapters.mongo.layout import INSTANCES, id_of
from sayiir_persist.claims import WakeHint
from sayiir_persist.errors import BackendClosedError, BackendUnavailableError
from sayiir_persist.wakeups import ANYTHING, Wakeups

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sayiir_persist.adapters.mongo.connections import Connections, Deployment
    from sayiir_persist.adapters.mongo.layout import Document

    Recent = Callable[[int], Awaitable[tuple[int, list[Document]]]]

logger: logging.Logger = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
_KEPT_HINTS: Final = 256
_KEPT_SEEN: Final = 4_096
_LOOK_EVERY: Final = 0.1
_OVERLAP: Final = 1_000_000
"""In microseconds: what became available so long before it was visible is told all the same."""
_LONGEST_CLOSE: Final = 3.0


class Listener:
    """Follows the changes of one namespace, and tells the callers that wait.

    After a failure it goes on where it was; where that is no longer possible, everybody is woken
    once, for anything may have happened in between.
    """

    def __init__(self, connections: Connections, namespace: str) -> None:
        self._connections = connections
        self._namespace = namespace
        self._wakeups: Wakeups | None = None
        self._task: asyncio.Task[None] | None = None
        self._told: deque[tuple[str, str]] = deque(maxlen=_KEPT_HINTS)
        self._recent: Recent | None = None
        self._since = 0
        self._seen: OrderedDict[tuple[Any, ...], None] = OrderedDict()

    async def open(self, deployment: Deployment) -> None:
        """Begin to listen."""
        self._wakeups = Wakeups()

        if not deployment.has_change_streams:
            if self._recent is not None:
                now, _ = await self._recent(2**62)
                self._since = now - _OVERLAP

            return

        ready = asyncio.Event()
        self._task = asyncio.create_task(self._follow(self._wakeups, ready))

        with suppress(asyncio.TimeoutError):  # without a stream, polling finds all work
            await asyncio.wait_for(ready.wait(), self._connections.timeout)

    async def close(self) -> None:
        """Stop listening, and end every wait."""
        if self._wakeups is not None:
            self._wakeups.close()

        task = self._task

        if task is None:
            return

        task.cancel()

        with anyio.CancelScope(shield=True):
            await asyncio.wait([task], timeout=_LONGEST_CLOSE)

        self._task = None

    def publish(self, document: Document) -> None:
        """Tell the callers of this very backend at once, of what it has written itself."""
        if self._wakeups is None:
            return

        self._told.append((document["_id"], document["hint"]))
        _tell(self._wakeups, document["_id"], document["hint"])

    def _pass_on(self, wakeups: Wakeups, change: Document) -> None:
        key, hint = change["documentKey"]["_id"], change.get("hint") or ""

        if (key, hint) in self._told:
            self._told.remove((key, hint))
        else:
            _tell(wakeups, key, hint)

    async def wait(self, timeout: float) -> WakeHint | None:
        """Wait for a hint."""
        wakeups = self._wakeups

        if wakeups is None:
            raise BackendClosedError("the backend is not open")

        if self._task is not None or self._recent is None:
            return await wakeups.wait(timeout)

        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout

        while True:
            await self._look(wakeups, self._recent)
            left = deadline - loop.time()
            hint = await wakeups.wait(max(min(left, _LOOK_EVERY), 0))

            if hint is not None or left <= 0:
                return hint

    def ask(self, recent: Recent) -> None:
        """Where no stream is: ask this, while somebody waits, what became available of late."""
        self._recent = recent

    async def _look(self, wakeups: Wakeups, recent: Recent) -> None:
        try:
            now, found = await recent(self._since)
        except BackendUnavailableError:
            return  # a poll says so

        for each in found:
            self._pass_on_once(wakeups, each)

        self._since = now - _OVERLAP

    def _pass_on_once(self, wakeups: Wakeups, each: Document) -> None:
        known = (each["_id"], each["inc"], each["at"], each["hint"])

        if known not in self._seen:
            self._seen[known] = None
            _tell(wakeups, each["_id"], f"\n{each['hint']}")

        while len(self._seen) > _KEPT_SEEN:
            self._seen.popitem(last=False)

    async def _follow(self, wakeups: Wakeups, ready: asyncio.Event) -> None:
        token: Any = None
        pause = _FIRST_PAUSE
        is_gap = False

        while True:
            stream: Any = None

            try:
                stream = await self._watch(token)

                if is_gap:
                    wakeups.notify(ANYTHING)
                    is_gap = False

                ready.set()
                pause = _FIRST_PAUSE

                while True:
                    change = await stream.try_next()
                    token = stream.resume_token

                    if change is not None:
                        self._pass_on(wakeups, change)
                    else:
                        await asyncio.sleep(self._connections.client.pause)
            except Exception as error:  # noqa: BLE001  (polling is the truth; this only hastens)
                ready.set()
                logger.warning(
                    "wake hints of other processes are late, polling finds their work",
                    extra={
                        "namespace": self._namespace,
                        "backend": "mongo",
                        "error": type(error).__name__,
                    },
                )
                is_gap = True

                if _is_lost(error):
                    token = None
            finally:
                if stream is not None:
                    with suppress(Exception):
                        await stream.close()

            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _watch(self, token: Any) -> Any:
        options: dict[str, Any] = {
            "max_await_time_ms": self._connections.client.longest_await,
            **({"resume_after": token} if token is not None else {}),
        }
        return await self._connections.watch(INSTANCES, _pipeline(self._namespace), **options)


def _pipeline(namespace: str) -> list[Document]:
    """Those changes that made a task executable, and of them only the hints."""
    whole = {
        "operationType": {"$in": ["insert", "replace"]},
        "fullDocument.ns": namespace,
        "$expr": {"$eq": ["$fullDocument.hinted", "$fullDocument.rev"]},
    }
    partly = {
        "operationType": "update",
        "documentKey._id": {"$gt": f"{namespace}/", "$lt": f"{namespace}0"},
        "updateDescription.updatedFields.hinted": {"$exists": True},
    }
    return [
        {"$match": {"$or": [whole, partly]}},
        {
            "$project": {
                "documentKey": 1,
                "hint": {
                    "$ifNull": ["$fullDocument.hint", "$updateDescription.updatedFields.hint"]
                },
            }
        },
    ]


def _tell(wakeups: Wakeups, key: str, hint: str) -> None:
    """What a write has left in its document: its `rev`, and a line for each task."""
    instance_id = id_of(key)
    _, *texts = hint.split("\n")

    for text in texts:
        if text:
            node_id, definition_hash, tags = json.loads(text)
            wakeups.notify(
                WakeHint(
                    instance_id=instance_id,
                    task_id=node_id,
                    definition_hash=definition_hash,
                    tags=tuple(tags),
                )
            )


def _is_lost(error: Exception) -> bool:
    """Whether the log no longer reaches back to where the stream was."""
    return getattr(error, "code", None) in {136, 260, 280, 286}
