"""Errors of servers and connections in the words of this package."""

from __future__ import annotations

import re
from typing import Final

from sayiir_persist.errors import (
    BackendError,
    BackendUnavailableError,
    CodecError,
    ConfigurationError,
    OutcomeUnknownError,
)

_PASSING: Final = frozenset(
    {
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOAUTH",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "TRYAGAIN",
    }
)
"""The server did nothing, and may do it later."""

_WITHIN: Final = re.compile(r": -([A-Z]+) ")
_DENIED: Final = frozenset({"NOAUTH", "NOPERM", "WRONGPASS"})


class ReplyError(Exception):
    """An error that the server answered; `code` is its first word."""

    def __init__(self, text: str) -> None:
        # Before version 7 a refusal within a script comes in the text of the script's error.
        within = _WITHIN.search(text) if text.startswith("ERR ") else None
        self.code: str = within[1] if within else text.partition(" ")[0]
        super().__init__(text)


class NotSentError(Exception):
    """The connection was lost, or never made, before anything was sent."""


class LostReplyError(Exception):
    """The connection was lost, or the time was up, after something was sent.

    `replies` are those that came before.
    """

    def __init__(self, text: str, replies: tuple[object, ...] = ()) -> None:
        self.replies = replies
        super().__init__(text)


def in_our_words(error: Exception, *, writes: bool, about: str = "an instance") -> Exception:
    """What an error of one command means for who sent it.

    Args:
        error: What happened.
        writes: Whether the command may have changed anything.
        about: The instance that it was about.
    """
    if isinstance(error, ReplyError):
        ours = _refusal(error, about)
    elif isinstance(error, LostReplyError) and writes:
        ours = OutcomeUnknownError(f"the answer of Redis was lost: {error}")
    elif isinstance(error, NotSentError | LostReplyError):
        ours = BackendUnavailableError(f"Redis: {error}")
    else:
        return error

    ours.__cause__ = error
    return ours


def _refusal(error: ReplyError, about: str) -> Exception:
    text = str(error)

    if error.code == "DAMAGED":
        return CodecError(f"{about!r} is damaged: {text.partition(' ')[2]}")

    if error.code == "NOPERM":
        return ConfigurationError(f"Redis denies what the backend needs: {text}")

    if error.code in _PASSING:
        return BackendUnavailableError(f"Redis: {text}")

    if error.code in {"MOVED", "ASK", "CROSSSLOT"}:
        return BackendUnavailableError(f"the cluster is being rearranged: {text}")

    return BackendError(f"Redis: {text}")


def opening_error(error: Exception) -> Exception:
    """What an error means while a backend is opened."""
    if isinstance(error, ReplyError) and error.code in _DENIED:
        return ConfigurationError(f"Redis does not let us in: {error}")

    return in_our_words(error, writes=False)
