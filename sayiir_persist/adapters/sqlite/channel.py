"""Wake hints between the drivers of one process, and a count that tells of the others'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final

from sayiir_persist.claims import WakeHint

Listener = Callable[[Sequence[WakeHint]], None]


class Channel:
    """What the drivers of this process on one namespace of one file share.

    Attributes:
        wakeups: How many transactions of this process made a task executable.
        users: How many drivers have joined.
    """

    def __init__(self) -> None:
        self.wakeups: int = 0
        self.users: int = 0
        self._guard = Lock()
        self._listeners: tuple[Listener, ...] = ()

    def listen(self, listener: Listener) -> None:
        """Hand every hint to `listener`, which is called in the loop of the writer."""
        with self._guard:
            self._listeners = (*self._listeners, listener)

    def leave(self, listener: Listener) -> None:
        """Hand it nothing more."""
        with self._guard:
            self._listeners = tuple(each for each in self._listeners if each != listener)

    def count(self, wakeups: int) -> None:
        """Count transactions that made a task executable; from any thread."""
        with self._guard:
            self.wakeups += wakeups

    def announce(self, hints: Sequence[WakeHint]) -> None:
        """Hand hints to every listener."""
        for listener in self._listeners:
            listener(hints)


Address = tuple[int, int, str]
"""Device and number of the file, and the namespace."""

_channels: Final[dict[Address, Channel]] = {}
_guard: Final = Lock()


def join(address: Address) -> Channel:
    """The channel of a namespace, made where there is none; give it back with `part`."""
    with _guard:
        channel = _channels.setdefault(address, Channel())
        channel.users += 1
        return channel


def part(address: Address, channel: Channel) -> None:
    """Give a channel back; the last one removes it."""
    with _guard:
        channel.users -= 1

        if not channel.users:
            _channels.pop(address, None)
