"""The limits of section "Validation" of the contract, each checked before any I/O."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

from sayiir_persist.errors import InvalidArgumentError, PayloadTooLargeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

MAX_ID_BYTES: Final = 256
MAX_TEXT_BYTES: Final = 4 * 1024
MAX_ERROR_BYTES: Final = 64 * 1024
MAX_NAMESPACE_LENGTH: Final = 64
MAX_TAGS: Final = 64
MAX_TTL: Final = timedelta(days=365_000)
MICROSECOND: Final = timedelta(microseconds=1)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST: Final = (datetime.max.replace(tzinfo=UTC) - EPOCH) // MICROSECOND
"""The end of the calendar in microseconds: what would be later saturates here."""

E = TypeVar("E", bound=StrEnum)

_NAMESPACE_CHARACTERS: Final = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-."
)
_CUT_MARK: Final = " … [cut]"


def _byte_length(name: str, value: str) -> int:
    if "\0" in value:
        raise InvalidArgumentError(f"{name} must not contain U+0000")

    if value.isascii():
        return len(value)

    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{name} must not contain lone surrogates") from None


def _check_str(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a str, not {type(value).__name__}")

    return value


def check_id(name: str, value: object) -> str:
    """Refuse what is not an id: 1 to 256 bytes of UTF-8 without U+0000."""
    if (
        type(value) is str
        and value.isascii()
        and 0 < len(value) <= MAX_ID_BYTES
        and "\0" not in value
    ):
        return value  # nearly every id, and each of them on the way of every write

    text = _check_str(name, value)
    length = _byte_length(name, text)

    if not 1 <= length <= MAX_ID_BYTES:
        raise InvalidArgumentError(f"{name} must have 1 to {MAX_ID_BYTES} bytes, not {length}")

    return text


def check_text(name: str, value: object) -> None:
    """Refuse free text (a reason, a requester, a trace parent) above 4 KiB."""
    if value is None:
        return

    length = _byte_length(name, _check_str(name, value))

    if length > MAX_TEXT_BYTES:
        raise InvalidArgumentError(f"{name} may have {MAX_TEXT_BYTES} bytes, not {length}")


def check_tags(name: str, value: Iterable[object]) -> tuple[str, ...]:
    """Refuse more than 64 tags, or one that is not an id; return them as a tuple."""
    if isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a sequence of tags, not one str")

    tags = tuple(check_id("tag", tag) for tag in value)

    if len(tags) > MAX_TAGS:
        raise InvalidArgumentError(f"{name} may hold {MAX_TAGS} tags, not {len(tags)}")

    return tags


def check_definitions(value: Collection[object] | None) -> frozenset[str] | None:
    """Check a filter by definition hash; `None` is no filter, an empty one matches nothing."""
    if value is None:
        return None

    if isinstance(value, str):
        raise InvalidArgumentError("definition_hashes must be a collection, not one str")

    return frozenset(check_id("definition_hash", it) for it in value)


def check_namespace(value: object) -> None:
    """Refuse a namespace that is not 1 to 64 of A-Z a-z 0-9 `_ - .`."""
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= MAX_NAMESPACE_LENGTH
        or not _NAMESPACE_CHARACTERS.issuperset(value)
    ):
        raise InvalidArgumentError(
            f"namespace must have 1 to {MAX_NAMESPACE_LENGTH} of A-Z a-z 0-9 _ - ., not {value!r}"
        )


def check_priority(name: str, value: object) -> None:
    """Refuse a priority outside 1 (first) to 5."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 5:
        raise InvalidArgumentError(f"{name} must be 1 (first) to 5, not {value!r}")


def check_member(name: str, kind: type[E], value: object) -> E:
    """Refuse what is no member of an enumeration, nor the value of one."""
    for member in kind:
        if member == value:
            return member

    known = ", ".join(kind)
    raise InvalidArgumentError(f"{name} must be one of {known}, not {value!r}")


def check_limit(value: object) -> int:
    """Refuse a limit that is no integer; one of 0 or less asks for nothing."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgumentError(f"limit must be an int, not {value!r}")

    return max(value, 0)


def check_duration(name: str, value: object) -> None:
    """Refuse a negative duration, or what is no `timedelta`."""
    if not isinstance(value, timedelta):
        raise InvalidArgumentError(f"{name} must be a timedelta, not {value!r}")

    if value < timedelta(0):
        raise InvalidArgumentError(f"{name} must not be negative, not {value}")


def check_ttl(value: timedelta) -> int:
    """Refuse a ttl that is negative or beyond the calendar; return it in microseconds."""
    check_duration("ttl", value)

    if value > MAX_TTL:
        raise InvalidArgumentError(f"ttl may be {MAX_TTL.days} days, not {value}; None never ends")

    return value // MICROSECOND


def check_instant(name: str, value: object) -> datetime:
    """Refuse an instant without a time zone, or what is no `datetime`; return it in UTC."""
    if not isinstance(value, datetime):
        raise InvalidArgumentError(f"{name} must be a datetime, not {value!r}")

    if value.utcoffset() is None:
        raise InvalidArgumentError(f"{name} must be zone-aware, not {value!r}")

    if value.tzinfo is UTC:
        return value

    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidArgumentError(f"{name} is not in the calendar of UTC: {value!r}") from None


def check_payload(what: str, value: object, limit: int) -> None:
    """Refuse a payload that is not `bytes`, or one larger than `limit` bytes."""
    if not isinstance(value, bytes):
        raise InvalidArgumentError(f"{what} must be bytes, not {type(value).__name__}")

    if len(value) > limit:
        raise PayloadTooLargeError(what, len(value), limit)


def clip_error(text: str) -> str:
    """Cut an error text to 64 KiB of UTF-8, with a mark; replace what UTF-8 cannot hold."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgumentError(f"error must be a str, not {type(text).__name__}")

    encoded = text.encode("utf-8", "replace")

    if len(encoded) <= MAX_ERROR_BYTES:
        return encoded.decode()

    kept = encoded[: MAX_ERROR_BYTES - len(_CUT_MARK.encode())]
    return kept.decode("utf-8", "ignore") + _CUT_MARK


def to_micros(instant: datetime) -> int:
    """An instant as the stores keep it: integer microseconds since 1970 in UTC."""
    return (instant - EPOCH) // MICROSECOND


@lru_cache(maxsize=1024)  # one write asks for the same few instants again and again
def from_micros(micros: int) -> datetime:
    """The instant that is `micros` microseconds after 1970, in UTC."""
    return EPOCH + timedelta(microseconds=micros)


def later(instant: datetime, duration: timedelta) -> datetime:
    """`instant + duration`, or the end of the calendar where that is beyond it."""
    try:
        return instant + duration
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
