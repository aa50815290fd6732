"""One connection: commands go out as they come, and every reply finds its own caller.

Replies come in the order of commands, so each waits in a queue. Whoever gives up leaves its place
in the queue: its reply is read and dropped, and never handed to another. A connection on which a
reply is overdue takes no more commands.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol, final

import hiredis

from sayiir_persist.adapters.redis.errors import LostReplyError, NotSentError, ReplyError

if TYPE_CHECKING:
    from collections.abc import Sequence

_INCOMPLETE: Final = object()
_PUSH: Final[type | None] = getattr(hiredis, "PushNotification", None)
"""What a server says unasked in the newer protocol; older releases of hiredis do not tell."""


class Listener(Protocol):
    """Takes what the server says unasked; its link sends no commands that are answered."""

    def heard(self, message: Any) -> None:
        """Take a message, or a reply."""
        ...

    def lost(self) -> None:
        """Learn that nothing more will come."""
        ...


class _Exchange:
    __slots__ = ("deadline", "future", "missing", "replies")

    def __init__(self, future: asyncio.Future[list[Any]], count: int, deadline: float) -> None:
        self.future = future
        self.missing = count
        self.replies: list[Any] = []
        self.deadline = deadline


@final
class Link(asyncio.Protocol):
    """A connection that is past its handshake.

    Args:
        listener: Who listens, on a link that does nothing else.
        keep: Held as long as the link lives.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        listener: Listener | None = None,
        keep: object = None,
    ) -> None:
        self.usable: bool = True
        self._transport = transport
        self._listener = listener
        self._keep = keep
        self._reader: Any = hiredis.Reader(replyError=ReplyError, notEnoughData=_INCOMPLETE)
        self._pending: deque[_Exchange] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        transport.set_protocol(self)

        if transport.is_closing():
            self.connection_lost(None)

    def send(self, data: bytes, count: int, deadline: float) -> asyncio.Future[list[Any]]:
        """Send `count` commands; their replies come together, errors among them.

        Args:
            data: The commands.
            count: How many.
            deadline: Until when the replies have to be there, on the clock of the loop.

        Raises:
            NotSentError: The connection takes no more commands.
        """
        if not self.usable:
            raise NotSentError("the connection was lost")

        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self._pending.append(_Exchange(future, count, deadline))
        self._transport.write(data)

        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._expire)

        return future

    def tell(self, data: bytes) -> None:
        """Send commands whose replies go to the listener."""
        self._transport.write(data)

    def pause(self) -> None:
        """Leave what comes where it is, for a while."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def retire(self) -> None:
        """Take no more commands; close once every reply has come."""
        self.usable = False

        if not self._pending:
            self._transport.close()

    def abort(self) -> None:
        """Close at once; who waits for a reply does not get it."""
        self.usable = False
        self._transport.abort()

    def _expire(self) -> None:
        now = self._time()

        for exchange in self._pending:
            if exchange.deadline > now:
                self._timer = self._loop.call_at(exchange.deadline, self._expire)
                return

            self.usable = False
            _fail(exchange, "no answer in time (operation_timeout)")

        self._timer = None

        if not self.usable:
            self._transport.abort()

    # --- asyncio.Protocol ---

    def data_received(self, data: bytes) -> None:
        reader = self._reader

        try:
            reader.feed(data)

            while (reply := reader.gets()) is not _INCOMPLETE:
                self._take(reply)
        except hiredis.ProtocolError:
            self.abort()

    def _take(self, reply: Any) -> None:
        if self._listener is not None:
            self._listener.heard(reply)
            return

        if _is_push(reply) or not self._pending:
            return

        exchange = self._pending[0]
        exchange.replies.append(reply)
        exchange.missing -= 1

        if exchange.missing:
            return

        self._pending.popleft()

        if not exchange.future.done():
            exchange.future.set_result(exchange.replies)

        if not self.usable and not self._pending:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False

        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

        reason = "the connection was lost" if exc is None else f"the connection was lost: {exc}"

        while self._pending:
            _fail(self._pending.popleft(), reason)

        self._keep = None

        if self._listener is not None:
            self._listener.lost()


def _fail(exchange: _Exchange, reason: str) -> None:
    if not exchange.future.done():
        exchange.future.set_exception(LostReplyError(reason, tuple(exchange.replies)))
        exchange.future.exception()  # nobody may be left to look at it


def _is_push(reply: Any) -> bool:
    return _PUSH is not None and isinstance(reply, _PUSH)


def framed(*arguments: bytes) -> bytes:
    """One command as the protocol frames it."""
    parts: Sequence[bytes] = [b"$%d\r\n%b\r\n" % (len(each), each) for each in arguments]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))
