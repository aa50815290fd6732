"""Which server a partition is asked on, what was certainly not carried out, and asking again.

Only what a server certainly did not do is sent again: a script that it does not know, a slot that
it does not have. Everything else is the caller's to resolve.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from sayiir_persist.adapters.redis.connections import Address
from sayiir_persist.adapters.redis.errors import LostReplyError, NotSentError, ReplyError
from sayiir_persist.adapters.redis.link import framed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist.adapters.redis.calls import Call
    from sayiir_persist.adapters.redis.connections import Dialer
    from sayiir_persist.adapters.redis.keys import Partition
    from sayiir_persist.adapters.redis.link import Link, Listener
    from sayiir_persist.adapters.redis.scripts import Script

_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
_ASKING: Final = framed(b"ASKING")
_SLOTS: Final = framed(b"CLUSTER", b"SLOTS")


class Confirmation(NamedTuple):
    """A command that waits until writes are safe elsewhere, and what it has to answer."""

    command: bytes
    wanted: tuple[int, ...]

    def holds(self, reply: Any) -> bool:
        """Whether the answer says that they are."""
        if isinstance(reply, Exception):
            return False

        counts = cast("list[int]", reply if isinstance(reply, list) else [reply])
        return all(count >= wanted for count, wanted in zip(counts, self.wanted, strict=True))


class UnconfirmedError(LostReplyError):
    """The write is stored, and not known to be safe elsewhere."""


class Router(Protocol):
    """Carries calls to where their partitions are."""

    async def run(
        self, calls: Sequence[Call], confirmation: Confirmation | None = None
    ) -> Sequence[Any]:
        """Carry out calls; an error stands in the place of its reply."""
        ...

    async def ask(self, command: bytes) -> Any:
        """Send one command to some server, and answer its reply or an error."""
        ...

    async def load(self, scripts: Sequence[Script]) -> None:
        """Load scripts, wherever that is possible now; what is missing is loaded when it is."""
        ...

    async def listen(self, partitions: Sequence[Partition], listener: Listener) -> list[Group]:
        """Connect to every server that publishes for these partitions."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


class Group(NamedTuple):
    """A connection of its own, and the partitions whose hints come through it."""

    link: Link
    partitions: Sequence[Partition]


class Server:
    """One server, and the connection that all callers share."""

    def __init__(self, dialer: Dialer, address: Address | None, timeout: float) -> None:
        self.current: Link | None = None
        self._dialer = dialer
        self._address = address
        self._timeout = timeout
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False

    async def _link(self, deadline: float) -> Link:
        """A connection that takes commands; whoever needs one shares one attempt to make it."""
        if self.current is not None and self.current.usable:
            return self.current

        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add_done_callback(self._connected)

        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(self._connecting)
        except TimeoutError:
            raise NotSentError("cannot connect in time") from None

        if self.current is None:
            raise NotSentError("cannot connect")

        return self.current

    async def _connect(self) -> None:
        self.current = await self._dialer.connect(self._address, self._timeout)

        if self._closed:
            self.current.abort()

    def _connected(self, attempt: asyncio.Task[None]) -> None:
        self._connecting = None

        if not attempt.cancelled():
            attempt.exception()  # nobody may be left to look at it

    async def listen(self, listener: Listener) -> Link:
        """A connection of its own, to listen."""
        return await self._dialer.connect(self._address, self._timeout, listener)

    async def exchange(self, data: bytes, count: int) -> list[Any]:
        """Send commands and answer their replies; what failed has its error in its place."""
        deadline = asyncio.get_running_loop().time() + self._timeout

        try:
            return await (await self._link(deadline)).send(data, count, deadline)
        except (NotSentError, ReplyError) as error:
            return [error] * count
        except LostReplyError as error:
            return [*error.replies, *[error] * (count - len(error.replies))]

    async def run(
        self, calls: Sequence[Call], confirmation: Confirmation | None = None, ahead: bytes = b""
    ) -> list[Any]:
        """Carry out calls, and load the scripts that the server turns out not to know."""
        replies = await self._send(calls, confirmation, ahead)
        unknown = [number for number, reply in enumerate(replies) if _is(reply, "NOSCRIPT")]

        if unknown:
            again = [calls[number] for number in unknown]
            await self.load(tuple({call.script for call in again}))

            for number, reply in zip(
                unknown, await self._send(again, confirmation, ahead), strict=True
            ):
                replies[number] = reply

        for reply in replies:
            if _is(reply, "READONLY") and self.current is not None:
                self.current.retire()  # it was a primary once; there may be another by now

        return replies

    async def _send(
        self, calls: Sequence[Call], confirmation: Confirmation | None, ahead: bytes
    ) -> list[Any]:
        parts = [ahead + call.data if ahead else call.data for call in calls]
        count = len(calls) * (2 if ahead else 1)

        if confirmation is None:
            replies = await self.exchange(b"".join(parts), count)
            return replies[1::2] if ahead else replies

        *replies, confirmed = await self.exchange(
            b"".join([*parts, confirmation.command]), count + 1
        )
        replies = replies[1::2] if ahead else replies

        if confirmation.holds(confirmed):
            return replies

        error = UnconfirmedError(f"stored, but not confirmed as was asked: {confirmed!r}")
        return [reply if isinstance(reply, Exception) else error for reply in replies]

    async def load(self, scripts: Sequence[Script]) -> None:
        """Load scripts, if the server answers."""
        await self.exchange(b"".join(script.load for script in scripts), len(scripts))

    def close(self) -> None:
        """Close the connection; who waits for a reply on it does not get it."""
        self._closed = True

        if self._connecting is not None:
            self._connecting.cancel()

        if self.current is not None:
            self.current.retire()


class Single:
    """A server that has every partition."""

    def __init__(self, dialer: Dialer, timeout: float) -> None:
        self._server = Server(dialer, None, timeout)

    async def run(
        self, calls: Sequence[Call], confirmation: Confirmation | None = None
    ) -> Sequence[Any]:
        return await self._server.run(calls, confirmation)

    async def ask(self, command: bytes) -> Any:
        [reply] = await self._server.exchange(command, 1)
        return reply

    async def load(self, scripts: Sequence[Script]) -> None:
        await self._server.load(scripts)

    async def listen(self, partitions: Sequence[Partition], listener: Listener) -> list[Group]:
        return [Group(await self._server.listen(listener), partitions)]

    def close(self) -> None:
        self._server.close()


class Cluster:
    """Servers that share the partitions by hash slot; follows slots that move.

    Args:
        sharded: Whether hints stay with the slot; else every server has all of them.
    """

    def __init__(self, dialer: Dialer, timeout: float) -> None:
        self.sharded = True
        self._dialer = dialer
        self._timeout = timeout
        self._servers: dict[Address, Server] = {}
        self._owners: dict[int, Address] = {}  # by slot
        self._ranges: list[tuple[int, int, Address]] = []

    async def run(
        self, calls: Sequence[Call], confirmation: Confirmation | None = None
    ) -> Sequence[Any]:
        replies: list[Any] = [None] * len(calls)
        left = list(range(len(calls)))
        pause = _FIRST_PAUSE
        now = asyncio.get_running_loop().time
        deadline = now() + self._timeout

        while True:
            if not self._ranges:
                await self._refresh()

            left = await self._attempt(calls, left, replies, confirmation)

            if not left or now() + pause > deadline:
                return replies

            if any(not _is(replies[number], "MOVED") for number in left):
                await asyncio.sleep(pause)
                self._ranges.clear()
                self._owners.clear()

            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _attempt(
        self,
        calls: Sequence[Call],
        numbers: Sequence[int],
        replies: list[Any],
        confirmation: Confirmation | None,
    ) -> list[int]:
        """Carry out what is left; answers what certainly was not done, and may be elsewhere."""
        groups: dict[Address, list[int]] = {}

        for number in numbers:
            owner = self._owner(calls[number].partition.slot)

            if owner is None:
                replies[number] = NotSentError("no server of the cluster has the slot")
            else:
                groups.setdefault(owner, []).append(number)

        steps = [
            self._server(address).run([calls[number] for number in group], confirmation)
            for address, group in groups.items()
        ]
        answers = [await steps[0]] if len(steps) == 1 else await asyncio.gather(*steps)

        for group, found in zip(groups.values(), answers, strict=True):
            for number, reply in zip(group, found, strict=True):
                replies[number] = await self._redirected(calls[number], reply, confirmation)

        return [number for number in numbers if _was_not_done(replies[number])]

    async def _redirected(self, call: Call, reply: Any, confirmation: Confirmation | None) -> Any:
        if _is(reply, "MOVED"):
            self._owners[call.partition.slot] = _target(reply)
        elif _is(reply, "ASK"):
            server = self._server(_target(reply))
            [reply] = await server.run([call], confirmation, ahead=_ASKING)

        return reply

    def _owner(self, slot: int) -> Address | None:
        owner = self._owners.get(slot)

        if owner is None:
            for first, last, address in self._ranges:
                if first <= slot <= last:
                    owner = self._owners[slot] = address
                    break

        return owner

    def _server(self, address: Address) -> Server:
        server = self._servers.get(address)

        if server is None:
            server = self._servers[address] = Server(self._dialer, address, self._timeout)

        return server

    async def _refresh(self) -> None:
        """Ask any server which slots lie where."""
        for address in dict.fromkeys([*self._servers, *self._dialer.seeds]):
            [reply] = await self._server(address).exchange(_SLOTS, 1)

            if isinstance(reply, Exception):
                continue

            self._ranges = [
                (first, last, Address((host or address.host.encode()).decode(), port))
                for first, last, (host, port, *_), *_ in reply
            ]

            if self._ranges:
                return

    async def ask(self, command: bytes) -> Any:
        reply: Any = NotSentError("no server of the cluster answers")

        for address in dict.fromkeys([*self._servers, *self._dialer.seeds]):
            [reply] = await self._server(address).exchange(command, 1)

            if not isinstance(reply, NotSentError):
                break

        return reply

    async def load(self, scripts: Sequence[Script]) -> None:
        await self._refresh()

        for address in {address for _, _, address in self._ranges}:
            await self._server(address).load(scripts)

    async def listen(self, partitions: Sequence[Partition], listener: Listener) -> list[Group]:
        self._ranges.clear()
        self._owners.clear()
        await self._refresh()
        owned: dict[Address, list[Partition]] = {}

        for partition in partitions:
            if (owner := self._owner(partition.slot)) is not None:
                owned.setdefault(owner, []).append(partition)

        if not owned:
            raise NotSentError("no server of the cluster answers")

        if not self.sharded:
            owned = {next(iter(owned)): list(partitions)}

        groups: list[Group] = []

        try:
            for address, mine in owned.items():
                groups.append(Group(await self._server(address).listen(listener), mine))
        except BaseException:
            for group in groups:
                group.link.abort()

            raise

        return groups

    def close(self) -> None:
        for server in self._servers.values():
            server.close()


def _is(reply: Any, code: str) -> bool:
    return isinstance(reply, ReplyError) and reply.code == code


def _was_not_done(reply: Any) -> bool:
    if isinstance(reply, ReplyError):
        return reply.code in {"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"}

    return isinstance(reply, NotSentError)


def _target(error: ReplyError) -> Address:
    """Where `MOVED slot host:port` and `ASK slot host:port` point."""
    host, _, port = str(error).rpartition(" ")[2].rpartition(":")
    return Address(host, int(port))
