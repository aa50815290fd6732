"""The time of a driver."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING

from sayiir_persist.validation import to_micros

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime


class Clock:
    """Microseconds since 1970 that never go back; may be read from any thread."""

    def __init__(self, source: Callable[[], datetime] | None) -> None:
        self._source = source
        self._latest = 0
        self._guard = Lock()

    def __call__(self) -> int:
        now = time.time_ns() // 1000 if self._source is None else to_micros(self._source())

        with self._guard:
            self._latest = max(self._latest, now)
            return self._latest
