"""Control signals: asking an instance to cancel or to pause."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from msgspec import Struct


class SignalKind(StrEnum):
    """What a control signal asks for."""

    CANCEL = "cancel"
    PAUSE = "pause"


class SignalRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asks, and why.

    Attributes:
        reason: Free text of at most 4 KiB.
        requested_by: Free text of at most 4 KiB.
        requested_at: When the store took the request; stamped by the store.

    Example:
        >>> SignalRequest(reason="customer called", requested_by="support").reason
        'customer called'
    """

    reason: str | None = None
    requested_by: str | None = None
    requested_at: datetime | None = None
