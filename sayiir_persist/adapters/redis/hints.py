"""Wake hints by pub/sub; what is lost on the way, polling finds."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, cast

from sayiir_persist.adapters.redis.errors import NotSentError, ReplyError
from sayiir_persist.adapters.redis.link import framed
from sayiir_persist.adapters.redis.wire import hint_of
from sayiir_persist.wakeups import ANYTHING, Wakeups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist.adapters.redis.keys import Partition
    from sayiir_persist.adapters.redis.routing import Group, Router
    from sayiir_persist.claims import WakeHint

logger: logging.Logger = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
_PING_EVERY: Final = 15.0
_REST: Final = 0.05
_CATCHING_UP: Final = 0.25
_PONG: Final = b"PONG"
_PING: Final = framed(b"PING")
_MESSAGES: Final = frozenset({b"message", b"smessage"})
_CONFIRMED: Final = frozenset({b"subscribe", b"ssubscribe"})
_REVOKED: Final = frozenset({b"unsubscribe", b"sunsubscribe"})


def _kind_of(message: Any) -> Any:
    """What a message of pub/sub is; `None`: it is none."""
    return cast("Any", message)[0] if isinstance(message, list) and message else None


class _Subscription:
    """What is heard on the connections of one attempt.

    While nobody waits, messages are read in bulk: who commits and never waits is not to pay for
    each hint of its own.
    """

    def __init__(self, hints: Hints, channels: int) -> None:
        self.ready = asyncio.Event()
        self.broken = asyncio.Event()
        self.refusal: str | None = None
        self.silent = False
        self.groups: Sequence[Group] = ()
        self._asked = self._answered = 0
        self._sign = asyncio.Event()
        self._hints = hints
        self._missing = channels
        self._rest: asyncio.TimerHandle | None = None

    def ping(self) -> int:
        """Ask every server for a sign of life; answers how many signs there have to be then."""
        for group in self.groups:
            group.link.tell(_PING)

        self._asked += len(self.groups)
        return self._asked

    async def catch_up(self) -> None:
        """Return when what was published before this call has been heard, or soon."""
        self._resume()
        expected = self.ping()

        try:
            async with asyncio.timeout(_CATCHING_UP):
                while self._answered < expected and not self.broken.is_set():
                    await self._sign.wait()
        except TimeoutError:
            return

    def heard(self, message: Any) -> None:
        self.silent = False

        if isinstance(message, ReplyError):
            self.refusal = str(message)
            self.broken.set()
            self._signal()
        elif message == _PONG:
            self._answered += 1
            self._signal()
        elif _kind_of(message) is not None:
            self._told(message)

    def _told(self, message: list[Any]) -> None:
        kind = message[0]

        if kind == _PONG.lower():
            self._answered += 1
            self._signal()
        elif kind in _MESSAGES:
            self._hints.wakeups.notify(hint_of(message[2]))

            if not self._hints.waiting and self._rest is None:
                self._pause()
        elif kind in _CONFIRMED:
            self._missing -= 1

            if self._missing == 0:
                self.ready.set()
        elif kind in _REVOKED:
            self.broken.set()  # the slot moved to another server

    def _pause(self) -> None:
        for group in self.groups:
            group.link.pause()

        self._rest = asyncio.get_running_loop().call_later(_REST, self._resume)

    def _resume(self) -> None:
        if self._rest is None:
            return

        self._rest.cancel()
        self._rest = None

        for group in self.groups:
            group.link.resume()

    def _signal(self) -> None:
        sign, self._sign = self._sign, asyncio.Event()
        sign.set()

    def lost(self) -> None:
        self.broken.set()
        self._signal()

    def close(self) -> None:
        """Give the connections up."""
        self._resume()

        for group in self.groups:
            group.link.abort()


class Hints:
    """Listens to the channels of a namespace for as long as it is open.

    After a loss it subscribes again, and wakes everybody once, for a hint may have been missed.

    Args:
        sharded: Whether hints are published with the slot of their partition.
    """

    def __init__(
        self,
        router: Router,
        partitions: Sequence[Partition],
        *,
        sharded: bool,
        namespace: str,
    ) -> None:
        self.wakeups: Wakeups = Wakeups()
        self.waiting: int = 0
        self._router = router
        self._partitions = partitions
        self._subscribe = b"SSUBSCRIBE" if sharded else b"SUBSCRIBE"
        self._namespace = namespace
        self._first_try = asyncio.Event()
        self._subscription: _Subscription | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; returns when the first attempt has succeeded or failed."""
        self._task = asyncio.get_running_loop().create_task(self._listen())
        await self._first_try.wait()

    async def stop(self) -> None:
        """Listen no more; ends every wait."""
        self.wakeups.close()

        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def wait(self, timeout: float) -> WakeHint | None:
        """Wait for a hint; see `Driver.wait`.

        What was published before the call is not on its way any more when the wait begins.
        """
        if (hint := await self.wakeups.wait(0)) is not None:
            return hint

        self.waiting += 1

        try:
            if self._subscription is not None:
                await self._subscription.catch_up()

            return await self.wakeups.wait(timeout)
        finally:
            self.waiting -= 1

    async def _listen(self) -> None:
        pause = _FIRST_PAUSE

        while True:
            try:
                await self._listen_once()
                pause = _FIRST_PAUSE
            except (NotSentError, ReplyError) as error:
                self._complain(str(error))
            finally:
                self._first_try.set()

            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _listen_once(self) -> None:
        """Subscribe, and return when the subscription is lost."""
        self._subscription = subscription = _Subscription(self, len(self._partitions))

        try:
            subscription.groups = await self._router.listen(self._partitions, subscription)
            self._ask(subscription.groups)
            await self._confirmed(subscription)

            if self._first_try.is_set():
                self.wakeups.notify(ANYTHING)

            self._first_try.set()
            await self._until_broken(subscription)
        finally:
            subscription.close()

        self._complain(subscription.refusal or "the connection was lost")

    def _ask(self, groups: Sequence[Group]) -> None:
        for group in groups:
            # One command for each: in a cluster a command may name channels of one slot only.
            channels = [partition.channel for partition in group.partitions]
            group.link.tell(b"".join(framed(self._subscribe, each) for each in channels))

    async def _confirmed(self, subscription: _Subscription) -> None:
        waits = [
            asyncio.ensure_future(event.wait())
            for event in (subscription.ready, subscription.broken)
        ]

        try:
            await asyncio.wait(waits, timeout=_PING_EVERY, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

        if not subscription.ready.is_set():
            raise NotSentError(subscription.refusal or "the subscription was not confirmed")

    async def _until_broken(self, subscription: _Subscription) -> None:
        while not subscription.broken.is_set() and not subscription.silent:
            subscription.silent = True
            subscription.ping()

            try:
                async with asyncio.timeout(_PING_EVERY):
                    await subscription.broken.wait()
            except TimeoutError:
                continue

    def _complain(self, reason: str) -> None:
        logger.warning(
            "no wake hints from the server for now, polling finds the work",
            extra={"namespace": self._namespace, "backend": "redis", "error": reason},
        )
