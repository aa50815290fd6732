"""Every limit of the contract: exactly at it passes, one more is refused and named."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sayiir_persist.errors import InvalidArgumentError, PayloadTooLargeError
from sayiir_persist.snapshot import ConflictPolicy
from sayiir_persist.validation import (
    EPOCH,
    MAX_ERROR_BYTES,
    MAX_ID_BYTES,
    MAX_NAMESPACE_LENGTH,
    MAX_TAGS,
    MAX_TEXT_BYTES,
    MAX_TTL,
    MICROSECOND,
    check_definitions,
    check_duration,
    check_id,
    check_instant,
    check_limit,
    check_member,
    check_namespace,
    check_payload,
    check_priority,
    check_tags,
    check_text,
    check_ttl,
    clip_error,
    from_micros,
    later,
    to_micros,
)

Check = Callable[[Any], object]


class Text(str):
    __slots__ = ()


def test_limits_are_those_of_the_contract() -> None:
    assert MAX_ID_BYTES == 256
    assert MAX_TEXT_BYTES == 4096
    assert MAX_ERROR_BYTES == 65_536
    assert MAX_NAMESPACE_LENGTH == 64
    assert MAX_TAGS == 64


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("x", id="one byte"),
        pytest.param("x" * 256, id="256 bytes"),
        pytest.param("é" * 128, id="256 bytes in 128 characters"),
        pytest.param("🎉" * 64, id="256 bytes in 64 characters"),
        pytest.param(" spaced ", id="spaces are kept"),
        pytest.param("*?%_:{}$.\n\x7f", id="no character has a meaning"),
        pytest.param(Text("sub"), id="subclass of str"),
    ],
)
def test_id_within_the_limit_comes_back_unchanged(value: str) -> None:
    assert check_id("task_id", value) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param("", "1 to 256 bytes, not 0", id="empty"),
        pytest.param("x" * 257, "1 to 256 bytes, not 257", id="257 bytes"),
        pytest.param("é" * 128 + "x", "1 to 256 bytes, not 257", id="129 characters"),
        pytest.param("🎉" * 65, "1 to 256 bytes, not 260", id="65 characters"),
        pytest.param(Text("x" * 257), "1 to 256 bytes, not 257", id="subclass of str"),
        pytest.param("a\0b", r"U\+0000", id="NUL"),
        pytest.param("é\0", r"U\+0000", id="NUL beyond ASCII"),
        pytest.param("a\ud800", "lone surrogates", id="surrogate"),
        pytest.param(b"bytes", "must be a str, not bytes", id="bytes"),
        pytest.param(7, "must be a str, not int", id="int"),
        pytest.param(None, "must be a str, not NoneType", id="None"),
    ],
)
def test_id_beyond_the_limit_is_refused_by_name(value: object, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"task_id .*{message}"):
        check_id("task_id", value)


@given(st.text(max_size=300))
def test_id_is_measured_in_bytes_of_utf8(value: str) -> None:
    try:
        encoded = value.encode()
        legal = 1 <= len(encoded) <= 256 and b"\0" not in encoded
    except UnicodeEncodeError:
        legal = False

    try:
        check_id("id", value)
        accepted = True
    except InvalidArgumentError:
        accepted = False

    assert accepted == legal


@pytest.mark.parametrize("value", [None, "", "x" * 4096, "é" * 2048])
def test_text_up_to_4_kib_passes(value: str | None) -> None:
    check_text("reason", value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x" * 4097, "reason may have 4096 bytes, not 4097"),
        ("é" * 2048 + "x", "reason may have 4096 bytes, not 4097"),
        ("\0", r"reason must not contain U\+0000"),
        ("\udfff", "reason must not contain lone surrogates"),
        (7, "reason must be a str, not int"),
    ],
)
def test_text_beyond_the_limit_is_refused_by_name(value: object, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        check_text("reason", value)


@pytest.mark.parametrize("value", [[], ["gpu"], ("b", "a", "a"), [f"t{n}" for n in range(64)]])
def test_tags_come_back_as_a_tuple_in_their_order(value: list[str]) -> None:
    assert check_tags("tags", value) == tuple(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([f"t{n}" for n in range(65)], "tags may hold 64 tags, not 65"),
        ("gpu", "tags must be a sequence of tags, not one str"),
        ([""], "tag must have 1 to 256 bytes"),
        (["x" * 257], "tag must have 1 to 256 bytes"),
        ([7], "tag must be a str"),
    ],
)
def test_tags_beyond_the_limit_are_refused(value: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        check_tags("tags", value)


def test_no_definition_filter_differs_from_an_empty_one() -> None:
    assert check_definitions(None) is None
    assert check_definitions([]) == frozenset()
    assert check_definitions(["v1", "v2", "v1"]) == {"v1", "v2"}


@pytest.mark.parametrize("value", ["v1", [""], ["x" * 257], [b"v1"]])
def test_definition_filter_holds_definition_hashes(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="definition_hash"):
        check_definitions(value)


@pytest.mark.parametrize("value", ["a", "x" * 64, "Prod-2.eu_west"])
def test_namespace_of_its_characters_passes(value: str) -> None:
    check_namespace(value)


@pytest.mark.parametrize("value", ["", "x" * 65, "a b", "a/b", "é", "a:b", "a\n", None, b"a"])
def test_other_namespace_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="namespace must have 1 to 64"):
        check_namespace(value)


@pytest.mark.parametrize("value", [1, 2, 3, 4, 5])
def test_priority_1_to_5_passes(value: int) -> None:
    check_priority("priority", value)


@pytest.mark.parametrize("value", [0, 6, -1, 3.0, "3", True, None])
def test_other_priority_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"priority must be 1 \(first\) to 5"):
        check_priority("priority", value)


@pytest.mark.parametrize("value", [ConflictPolicy.FAIL, "fail"])
def test_member_may_be_given_by_its_value(value: str) -> None:
    assert check_member("on_conflict", ConflictPolicy, value) is ConflictPolicy.FAIL


@pytest.mark.parametrize("value", ["never", None, 1])
def test_no_member_is_refused_with_those_there_are(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="one of fail, use_existing, terminate_existing"):
        check_member("on_conflict", ConflictPolicy, value)


@pytest.mark.parametrize(("value", "limit"), [(10, 10), (1, 1), (0, 0), (-1, 0), (-(10**30), 0)])
def test_limit_below_one_asks_for_nothing(value: int, limit: int) -> None:
    assert check_limit(value) == limit


@pytest.mark.parametrize("value", [None, 1.0, "1", True])
def test_limit_that_is_no_int_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="limit must be an int"):
        check_limit(value)


@pytest.mark.parametrize("value", [timedelta(0), MICROSECOND, timedelta.max])
def test_duration_from_zero_passes(value: timedelta) -> None:
    check_duration("wake_after", value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-MICROSECOND, "wake_after must not be negative"),
        (1.5, "wake_after must be a timedelta"),
        (None, "wake_after must be a timedelta"),
    ],
)
def test_negative_duration_is_refused(value: object, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        check_duration("wake_after", value)


@pytest.mark.parametrize(
    ("ttl", "micros"),
    [
        (timedelta(0), 0),
        (MICROSECOND, 1),
        (timedelta(milliseconds=50), 50_000),
        (MAX_TTL, 365_000 * 86_400 * 1_000_000),
    ],
)
def test_ttl_is_exact_in_microseconds(ttl: timedelta, micros: int) -> None:
    assert check_ttl(ttl) == micros


@pytest.mark.parametrize("ttl", [-MICROSECOND, MAX_TTL + MICROSECOND, timedelta.max, 30])
def test_ttl_that_no_calendar_holds_is_refused_not_eternal(ttl: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="ttl"):
        check_ttl(ttl)


def test_longest_ttl_ends_within_the_calendar() -> None:
    ends = datetime(2900, 1, 1, tzinfo=UTC) + MAX_TTL

    assert from_micros(to_micros(ends)) == ends


def test_instant_in_any_zone_passes() -> None:
    check_instant("deadline", datetime(2026, 1, 1, tzinfo=UTC))
    check_instant("deadline", datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5))))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (datetime(2026, 1, 1), "deadline must be zone-aware"),  # noqa: DTZ001
        ("2026-01-01", "deadline must be a datetime"),
        (None, "deadline must be a datetime"),
    ],
)
def test_instant_without_zone_is_refused(value: object, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        check_instant("deadline", value)


@pytest.mark.parametrize("value", [b"", b"x" * 10])
def test_payload_up_to_the_limit_passes(value: bytes) -> None:
    check_payload("input", value, 10)


def test_payload_above_the_limit_says_both_sizes() -> None:
    with pytest.raises(PayloadTooLargeError, match="11 bytes, the limit") as caught:
        check_payload("input", b"x" * 11, 10)

    assert (caught.value.what, caught.value.size, caught.value.limit) == ("input", 11, 10)


@pytest.mark.parametrize("value", ["text", bytearray(b"x"), memoryview(b"x"), None])
def test_payload_that_is_not_bytes_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="input must be bytes"):
        check_payload("input", value, 10)


@pytest.mark.parametrize("text", ["", "boom", "x" * 65_536, "é" * 32_768])
def test_error_text_up_to_64_kib_is_kept(text: str) -> None:
    assert clip_error(text) == text


@pytest.mark.parametrize("text", ["x" * 65_537, "é" * 32_769, "🎉" * 20_000, "x" + "🎉" * 20_000])
def test_longer_error_text_is_cut_with_a_mark(text: str) -> None:
    clipped = clip_error(text)

    assert clipped.endswith("[cut]")
    assert MAX_ERROR_BYTES - 4 < len(clipped.encode()) <= MAX_ERROR_BYTES
    assert text.startswith(clipped.removesuffix(" … [cut]"))
    assert clip_error(clipped) == clipped


def test_error_text_that_utf8_cannot_hold_is_made_legal() -> None:
    assert clip_error("a\udc80b") == "a?b"


def test_error_text_must_be_text() -> None:
    with pytest.raises(InvalidArgumentError, match="error must be a str, not ValueError"):
        clip_error(ValueError("boom"))  # type: ignore[arg-type]


@given(st.datetimes(timezones=st.just(UTC)))
def test_instants_are_exact_to_the_microsecond(instant: datetime) -> None:
    assert from_micros(to_micros(instant)) == instant


def test_instants_count_from_1970() -> None:
    assert to_micros(EPOCH) == 0
    assert to_micros(EPOCH - MICROSECOND) == -1
    assert to_micros(datetime(1970, 1, 1, 5, tzinfo=timezone(timedelta(hours=5)))) == 0


def test_sum_beyond_the_calendar_is_its_end() -> None:
    end = datetime.max.replace(tzinfo=UTC)

    assert later(EPOCH, timedelta.max) == end
    assert later(end, MICROSECOND) == end
    assert later(EPOCH, MICROSECOND) == EPOCH + MICROSECOND
