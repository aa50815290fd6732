"""Wake hints by NOTIFY, on their way to other processes and from them.

Usage::

    listener = Listener(connections, schema="sayiir_persist", namespace="orders")
    await listener.open()  # after connections.open(); listens from here on, `caveats` says if not
    listener.publish(hints)  # after the commit; cheap, and never raises for what the server does
    hint = await listener.wait(timeout)
    await listener.close()  # before connections.close()

Listening begins with `open`, and not with the first `wait`, so that no hint is missed between an
empty poll and the first wait. It has a connection of its own, beside the `max_size` of the others.
A direct URL is given as `direct=OwnConnections(listen_url)`; without one there is no listening
behind a pooler, nor on a pool of the caller's, and other processes' work is found by polling.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec
from msgspec import Struct

from sayiir_persist.claims import WakeHint
from sayiir_persist.errors import BackendClosedError, PersistError
from sayiir_persist.wakeups import ANYTHING, Wakeups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist.adapters.postgres.connections import Connections
    from sayiir_persist.adapters.postgres.sources import Connection, OwnConnections

logger: logging.Logger = logging.getLogger(__name__)

_LONGEST_NAME: Final = 63
_LONGEST_PAYLOAD: Final = 1024
_MOST_HINTS: Final = 16
_FIRST_FLUSH: Final = 0.005
_SLOWEST_FLUSH: Final = 0.05
_FIRST_DELAY: Final = 0.25
_LONGEST_DELAY: Final = 30.0
_HEARTBEAT: Final = 30.0
_PATIENCE: Final = 5.0
_CLOSING: Final = 1.0
_NOTIFY: Final = "SELECT pg_notify($1, $2)"
_NOT_LISTENING: Final = (
    "LISTEN needs a connection of its own to the server: without a listen_url, work that other "
    "processes make ready is found by polling"
)


class _Message(Struct, frozen=True, array_like=True):
    sender: str
    hints: tuple[tuple[str | None, str | None, str | None, tuple[str, ...] | None], ...]


_decoder: Final = msgspec.json.Decoder(_Message)


def channel_name(schema: str, namespace: str) -> str:
    """The channel of a namespace in a schema."""
    name = f"{schema}:{namespace}"

    if len(name.encode()) <= _LONGEST_NAME:
        return name

    return f"sayiir_persist:{sha256(name.encode()).hexdigest()[:40]}"


_abandoned: Final[list[Listener]] = []
"""Of a parent process: collecting them as garbage would end its session."""


class Listener:
    """The hints of one backend object: those it sends, and those it waits for.

    Hints are sent by statements of their own, after the commits that they tell of: a NOTIFY within
    a commit would make all commits wait for each other. What a few milliseconds bring shares one.
    A lost hint costs no more than the time until the next poll. While the connection is lost, hints
    of this object still arrive, and once it is back everybody is told that anything may be ready.

    Args:
        connections: Where hints are sent, and whose server is listened to.
        schema: Its name.
        namespace: The only one whose hints come and go.
        direct: Connections to the server itself, where `connections` lead to a pooler.
        notify: Whether to send and to listen; otherwise hints stay within this object.
    """

    def __init__(
        self,
        connections: Connections,
        *,
        schema: str,
        namespace: str,
        direct: OwnConnections | None = None,
        notify: bool = True,
    ) -> None:
        self.caveats: tuple[str, ...] = ()
        self._connections = connections
        self._channel = channel_name(schema, namespace)
        self._direct = direct
        self._notify = notify
        self._sender = secrets.token_hex(4)
        self._wakeups: Wakeups | None = None
        self._pending: list[WakeHint] = []
        self._flusher: asyncio.Task[None] | None = None
        self._ear: asyncio.Task[None] | None = None

    # --- Life ---

    async def open(self) -> None:
        """Begin to listen; where that fails, go on trying and poll meanwhile."""
        self._wakeups = Wakeups()
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        source = self._direct or self._connections.direct

        if not self._notify:
            return

        if source is None:
            self.caveats = (_NOT_LISTENING,)
            return

        tried = asyncio.Event()
        self._ear = asyncio.create_task(self._listen(source, self._wakeups, tried))

        try:
            await tried.wait()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End every wait; hints that were not sent yet are sent if that is quick. Idempotent."""
        wakeups, self._wakeups = self._wakeups, None

        if wakeups is None:
            return

        if self._process != os.getpid():
            _abandoned.append(self)
            return

        if self._loop is not asyncio.get_running_loop():
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._give_up, wakeups)

            return

        wakeups.close()

        with anyio.CancelScope(shield=True):
            await self._stop_listening()
            await self._stop_sending()

    def _give_up(self, wakeups: Wakeups) -> None:
        wakeups.close()

        for task in (self._ear, self._flusher):
            if task is not None:
                task.cancel()

    async def _stop_listening(self) -> None:
        ear, self._ear = self._ear, None

        if ear is not None:
            ear.cancel()
            await asyncio.wait({ear})

    async def _stop_sending(self) -> None:
        flusher = self._flusher

        if flusher is not None:
            await asyncio.wait({flusher}, timeout=_CLOSING)
            flusher.cancel()
            await asyncio.wait({flusher})

    # --- Sending ---

    def publish(self, hints: Sequence[WakeHint]) -> None:
        """Hand hints to who waits here at once, and to other processes soon."""
        if self._wakeups is None:
            return

        for hint in hints:
            self._wakeups.notify(hint)

        if not self._notify:
            return

        self._pending.extend(hints)
        del self._pending[_MOST_HINTS + 1 :]  # one more than are told apart

        if self._flusher is None and self._pending:
            self._flusher = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        pause = _FIRST_FLUSH

        try:
            while self._pending:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _SLOWEST_FLUSH)
                hints, self._pending = self._pending, []
                await self._send(hints)
        finally:
            self._flusher = None

    async def _send(self, hints: Sequence[WakeHint]) -> None:
        try:
            await self._connections.fetch(
                _NOTIFY, self._channel, self._payload(hints), writes=False
            )
        except PersistError as error:
            logger.debug("a wake hint was not sent", extra={"backend": "postgres", "error": error})

    def _payload(self, hints: Sequence[WakeHint]) -> str:
        told = tuple(
            (hint.instance_id, hint.task_id, hint.definition_hash, hint.tags) for hint in hints
        )

        if len(told) <= _MOST_HINTS:
            payload = msgspec.json.encode(_Message(self._sender, told))

            if len(payload) <= _LONGEST_PAYLOAD:
                return payload.decode()

        return msgspec.json.encode(_Message(self._sender, ())).decode()

    # --- Listening ---

    async def wait(self, timeout: float) -> WakeHint | None:
        """Wait at most `timeout` seconds for a hint, see `Driver.wait`."""
        self._connections.check_open()

        if self._wakeups is None:
            raise BackendClosedError("the backend is not open")

        return await self._wakeups.wait(timeout)

    async def _listen(self, source: OwnConnections, wakeups: Wakeups, tried: asyncio.Event) -> None:
        delay = _FIRST_DELAY
        is_well = True

        while True:
            try:
                connection, lost = await self._connect(source, wakeups)
            except Exception as error:  # noqa: BLE001  (it goes on trying, whatever it is)
                self._complain(error, is_first=is_well)
                is_well = False
                delay = min(2 * delay, _LONGEST_DELAY)
            else:
                delay = _FIRST_DELAY

                if tried.is_set():
                    wakeups.notify(ANYTHING)

                if not is_well:
                    logger.info("listening again for wake hints", extra={"backend": "postgres"})
                    is_well = True

                tried.set()
                await self._hear(connection, lost)

            tried.set()
            await asyncio.sleep(random.uniform(0.1, 1.0) * delay)  # noqa: S311

    def _complain(self, error: Exception, *, is_first: bool) -> None:
        logger.log(
            logging.WARNING if is_first else logging.DEBUG,
            "cannot listen for wake hints: work of other processes is found by polling",
            extra={"backend": "postgres", "error": type(error).__name__},
        )

    async def _connect(
        self, source: OwnConnections, wakeups: Wakeups
    ) -> tuple[Connection, asyncio.Event]:
        lost = asyncio.Event()

        def heard(_connection: Any, _pid: Any, _channel: Any, payload: Any) -> None:
            self._heard(payload, wakeups)

        connection = await source.connect(_PATIENCE)

        try:
            connection.add_termination_listener(lambda _connection: lost.set())

            async with asyncio.timeout(_PATIENCE):
                await connection.add_listener(self._channel, heard)
        except BaseException:
            connection.terminate()
            raise

        return connection, lost

    async def _hear(self, connection: Connection, lost: asyncio.Event) -> None:
        """Return once the connection is lost, or does not answer any more."""
        try:
            while not lost.is_set():
                with anyio.move_on_after(_HEARTBEAT):
                    await lost.wait()
                    return

                await connection.execute("SELECT 1", timeout=_PATIENCE)
        except Exception as error:  # noqa: BLE001  (whatever it is, another takes its place)
            logger.debug("the listener is mute", extra={"backend": "postgres", "error": error})
        finally:
            connection.terminate()

    def _heard(self, payload: str, wakeups: Wakeups) -> None:
        try:
            message = _decoder.decode(payload)
        except msgspec.MsgspecError:  # of some other sender
            wakeups.notify(ANYTHING)
            return

        if message.sender == self._sender:
            return

        for instance_id, task_id, definition_hash, tags in message.hints:
            wakeups.notify(
                WakeHint(
                    instance_id=instance_id,
                    task_id=task_id,
                    definition_hash=definition_hash,
                    tags=tags,
                )
            )

        if not message.hints:
            wakeups.notify(ANYTHING)
