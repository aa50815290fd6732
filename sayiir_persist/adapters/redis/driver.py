"""The storage SPI on Redis: every method one script, on each partition that it asks."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import replace

from sayiir_persist.adapters.redis.answers import Found, Ranked, found_of, unit_answer, view_answer
from sayiir_persist.adapters.redis.calls import Call, instance_call, layout_call, partition_call
from sayiir_persist.adapters.redis.deployment import WARNINGS, Deployment, deployment_of
from sayiir_persist.adapters.redis.errors import in_our_words, opening_error
from sayiir_persist.adapters.redis.hints import Hints
from sayiir_persist.adapters.redis.keys import LAYOUT_VERSION, Keyspace
from sayiir_persist.adapters.redis.link import framed
from sayiir_persist.adapters.redis.routing import Cluster, Confirmation, Single
from sayiir_persist.adapters.redis.scripts import composed
from sayiir_persist.adapters.redis.wire import (
    aggregate_of,
    commits,
    cut,
    exact,
    packed,
    packed_unit,
    paired,
    row_of,
)
from sayiir_persist.driver import (
    Answer,
    ChoreList,
    Chores,
    Extend,
    Extended,
    Opened,
    Page,
    Poll,
    Polled,
    Read,
    Row,
    Take,
    Taken,
    Unit,
    View,
)
from sayiir_persist.errors import (
    BackendClosedError,
    BackendError,
    ConfigurationError,
    SchemaVersionError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sayiir_persist.adapters.redis.connections import Dialer
    from sayiir_persist.adapters.redis.keys import Partition
    from sayiir_persist.adapters.redis.routing import Router
    from sayiir_persist.adapters.redis.scripts import Script, Scripts
    from sayiir_persist.claims import WakeHint

logger: logging.Logger = logging.getLogger(__name__)

MOST: Final = 1_000_000
"""No answer holds more instances than that."""

_INFO: Final = framed(b"INFO")
_SETTINGS: Final = (b"save", b"appendfsync")


class Settings(Struct, frozen=True, kw_only=True):
    """How a namespace is opened.

    Attributes:
        namespace: Which.
        partitions: Into how many it is divided.
        migrate: Whether its layout may be recorded.
        timeout: The time limit of an operation, in seconds.
        confirmation: What has to confirm writes beside the server that takes them.
        clock: The Lua piece that tells the time; for tests.
    """

    namespace: str
    partitions: int
    migrate: bool
    timeout: float
    confirmation: Confirmation | None = None
    clock: str | None = None


class _Open:
    """What an open driver holds."""

    def __init__(self, router: Router, scripts: Scripts) -> None:
        self.loop = asyncio.get_running_loop()
        self.router = router
        self.scripts = scripts
        self.hints: Hints | None = None
        self.next_partition = 0
        self.reported: set[str] = set()

    async def close(self) -> None:
        if self.hints is not None:
            await self.hints.stop()

        self.router.close()


class RedisDriver:
    """One namespace on a server or a cluster.

    Args:
        dialer: Makes a dialer of connections; called when the driver is opened.
        settings: How the namespace is opened.
    """

    name = "redis"

    def __init__(self, dialer: Callable[[], Dialer], settings: Settings) -> None:
        self.namespace: str = settings.namespace
        self._dialer = dialer
        self._settings = settings
        self._keys = Keyspace(settings.namespace, settings.partitions)
        self._open: _Open | None = None

    # --- Life ---

    async def open(self) -> Opened:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError("the Redis backend runs on asyncio only") from None

        dialer, settings = self._dialer(), self._settings
        router: Single | Cluster = (
            Cluster(dialer, settings.timeout)
            if dialer.cluster
            else Single(dialer, settings.timeout)
        )

        try:
            deployment = await _examined(router, cluster=dialer.cluster)
            publish = "SPUBLISH" if deployment.sharded else "PUBLISH"
            state = _Open(router, composed(publish=publish, clock=settings.clock))
            await router.load(state.scripts)
            await self._check_layout(state)

            if isinstance(router, Cluster):
                router.sharded = deployment.sharded

            state.hints = Hints(
                router,
                self._keys.partitions,
                sharded=deployment.sharded,
                namespace=self.namespace,
            )
            await state.hints.start()
        except BaseException:
            router.close()
            raise

        self._open = state
        self._warn(deployment)
        return Opened(deployment.server, deployment.caveats)

    def _warn(self, deployment: Deployment) -> None:
        for caveat in deployment.caveats:
            if caveat.startswith(WARNINGS):
                logger.warning(
                    "this server can lose what was stored",
                    extra={"namespace": self.namespace, "backend": "redis", "caveat": caveat},
                )

    async def _check_layout(self, state: _Open) -> None:
        partition, wanted = self._keys.partitions[0], self._settings.partitions
        argument = packed((LAYOUT_VERSION, wanted, self._settings.migrate))
        call = layout_call(state.scripts.layout, partition, argument)
        [recorded] = await state.router.run((call,))

        if isinstance(recorded, Exception):
            raise opening_error(recorded)

        if recorded is None:
            raise SchemaVersionError("nothing is set up here: open once with migrate=True")

        version, partitions = recorded

        if version != LAYOUT_VERSION:
            raise SchemaVersionError(
                f"the layout has version {version}, this release works with {LAYOUT_VERSION}"
            )

        if partitions != wanted:
            raise ConfigurationError(
                f"the namespace was set up with partitions={partitions}, not {wanted}: "
                "give the number that is recorded"
            )

    async def close(self) -> None:
        state, self._open = self._open, None

        if state is not None and state.loop is asyncio.get_running_loop():
            await state.close()

    def _opened(self) -> _Open:
        state = self._open

        if state is None:
            raise BackendClosedError("the backend is not open")

        if state.loop is not asyncio.get_running_loop():
            raise BackendError("the backend was opened in another event loop: open one in this")

        return state

    # --- The SPI ---

    def _call(self, script: Script, instance_id: str, argument: bytes) -> Call:
        return instance_call(script, self._keys.partition_of(instance_id), instance_id, argument)

    async def _ask(self, call: Call, *, writes: bool, about: str = "an instance") -> Any:
        confirmation = self._settings.confirmation if writes else None
        [reply] = await self._opened().router.run((call,), confirmation)

        if isinstance(reply, Exception):
            raise in_our_words(reply, writes=writes, about=about)

        return reply

    async def now(self) -> int:
        script, partition = self._opened().scripts.now, self._keys.partitions[0]
        reply: int = await self._ask(layout_call(script, partition, b""), writes=False)
        return reply

    async def read(self, reads: Sequence[Read]) -> Sequence[View | None]:
        state = self._opened()
        calls = [self._call(state.scripts.read, each.instance_id, packed(each)) for each in reads]
        replies = await state.router.run(calls)
        return [view_answer(read, reply) for read, reply in zip(reads, replies, strict=True)]

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer | Exception]:
        state = self._opened()
        scripts = state.scripts
        calls = [
            self._call(
                scripts.commit if commits(unit) else scripts.apply,
                unit.instance_id,
                packed_unit(unit),
            )
            for unit in units
        ]
        replies = await state.router.run(calls, self._settings.confirmation)
        return [unit_answer(unit, reply) for unit, reply in zip(units, replies, strict=True)]

    async def claim(self, take: Take) -> Taken:
        script = self._opened().scripts.claim
        argument = packed((take, exact(take.ttl)))
        call = self._call(script, take.instance_id, argument)
        now, row, granted = await self._ask(call, writes=True, about=take.instance_id)

        if row is None:
            return Taken(facts=None)

        found = aggregate_of(take.instance_id, row)
        claim = found.claims[take.task_id] if granted else None
        return Taken(facts=found.facts(now), claim=claim)

    async def extend(self, extend: Extend) -> Extended:
        script = self._opened().scripts.extend
        argument = packed((extend, exact(extend.ttl)))
        call = self._call(script, extend.instance_id, argument)
        _, row, extended = await self._ask(call, writes=True, about=extend.instance_id)

        if row is None:
            return Extended(extended=False, claim=None)

        found = aggregate_of(extend.instance_id, row)
        claim = found.claims.get(extend.key.task_id)

        if claim is None:
            return Extended(extended=False, claim=None)

        return Extended(extended=bool(extended), claim=claim, signals=tuple(found.signals.values()))

    async def poll(self, query: Poll) -> Polled:
        query = replace(
            query,
            limit=min(query.limit, MOST),
            advances=min(query.advances, MOST),
            aging=cut(query.aging),
            bias=cut(query.bias) or 0,
        )
        return await (self._acquire(query) if query.claim else self._find(query))

    async def _find(self, query: Poll) -> Polled:
        """Ask all partitions at once, and merge what they answer in the exact order."""
        state = self._opened()
        calls = [self._poll_call(state, each, query, 0) for each in self._keys.partitions]
        found = [self._polled(state, query, it) for it in await state.router.run(calls)]
        advances = tuple(instance_id for each in found for instance_id in each.advances)

        if advances:
            return Polled(advances=advances[: query.advances], offers=())

        ranked = sorted((each for part in found for each in part.offers), key=lambda it: it.rank)
        return Polled(advances=(), offers=tuple(it.offer for it in ranked[: query.limit]))

    async def _acquire(self, query: Poll) -> Polled:
        """Ask one partition after the other, each time another one first, until served."""
        state = self._opened()
        partitions = self._keys.partitions
        first = state.next_partition
        state.next_partition = (first + 1) % len(partitions)
        taken: list[Ranked] = []

        for partition in (*partitions[first:], *partitions[:first]):
            left = replace(query, limit=query.limit - len(taken))

            try:
                [reply] = await state.router.run(
                    (self._poll_call(state, partition, left, len(taken)),),
                    self._settings.confirmation,
                )
                found = self._polled(state, left, reply)
            except BackendError:
                if taken:
                    break  # what is claimed already is not to be lost

                raise

            if found.advances:
                return Polled(advances=found.advances, offers=())

            taken += found.offers

            if len(taken) >= query.limit:
                break

            if taken:
                query = replace(query, advances=0)

        taken.sort(key=lambda each: each.rank)
        return Polled(advances=(), offers=tuple(each.offer for each in taken))

    def _poll_call(self, state: _Open, partition: Partition, query: Poll, number: int) -> Call:
        argument = packed((replace(query, ttl=None), exact(query.ttl), number))
        return partition_call(state.scripts.poll, partition, argument)

    def _polled(self, state: _Open, query: Poll, reply: Any) -> Found:
        if isinstance(reply, Exception):
            raise in_our_words(reply, writes=query.claim)

        found = found_of(query, reply)
        self._report(state, found.unreadable)
        return found

    def _report(self, state: _Open, unreadable: Mapping[str, str]) -> None:
        """Log instances that cannot be read, once for each."""
        for instance_id, flaw in unreadable.items():
            if instance_id not in state.reported:
                state.reported.add(instance_id)
                logger.error(
                    "cannot read an instance, it is passed over",
                    extra={
                        "instance_id": instance_id,
                        "namespace": self.namespace,
                        "backend": self.name,
                        "error": flaw,
                    },
                )

    async def page(self, query: Page) -> Sequence[Row]:
        query = replace(query, limit=min(query.limit, MOST), idle_for=cut(query.idle_for))
        rows = [
            row_of(name.decode(), data)
            for reply in await self._everywhere(self._opened().scripts.page, packed(query))
            for name, data in zip(reply[1::2], reply[2::2], strict=True)
        ]

        if query.idle_for is None:
            rows.sort(key=lambda row: row.instance_id.encode())
        else:
            rows.sort(key=lambda row: (row.updated_at, row.instance_id.encode()))

        return rows[: query.limit]

    async def chores(self, query: Chores) -> ChoreList:
        limit = min(query.limit, MOST)
        argument = packed(replace(query, limit=limit, purge_after=cut(query.purge_after) or 0))
        due: list[tuple[int, bytes]] = []
        purged, more = 0, False

        for found, dropped, left in await self._everywhere(
            self._opened().scripts.chores, argument, writes=True
        ):
            due += zip(found[1::2], found[::2], strict=True)
            purged, more = purged + dropped, more or bool(left)

        due.sort()
        return ChoreList(
            instances=tuple(name.decode() for _, name in due[:limit]),
            purged=purged,
            more=more or len(due) > limit,
        )

    async def _everywhere(
        self, script: Script, argument: bytes, *, writes: bool = False
    ) -> Sequence[Any]:
        calls = [partition_call(script, each, argument) for each in self._keys.partitions]
        replies = await self._opened().router.run(calls)

        for reply in replies:
            if isinstance(reply, Exception):
                raise in_our_words(reply, writes=writes)

        return replies

    async def wait(self, timeout: float) -> WakeHint | None:
        hints = self._opened().hints
        assert hints is not None  # noqa: S101  (it is there while the driver is open)
        return await hints.wait(timeout)


async def _examined(router: Router, *, cluster: bool) -> Deployment:
    info = await router.ask(_INFO)

    if isinstance(info, Exception):
        raise opening_error(info)

    settings: dict[str, str] = {}

    for name in _SETTINGS:
        reply = await router.ask(framed(b"CONFIG", b"GET", name))

        if not isinstance(reply, Exception):
            settings |= paired(reply)

    deployment = deployment_of(info, settings)

    if deployment.cluster and not cluster:
        raise ConfigurationError(
            "this server is part of a cluster: use redis+cluster://, or a RedisCluster client"
        )

    return deployment
