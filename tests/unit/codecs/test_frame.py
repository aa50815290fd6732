from __future__ import annotations

import zlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Struct
from unit.codecs.bodies import BODIES, CODECS, Body, InProgress, Task, golden_frame

from sayiir_persist.codecs import Codec, JsonCodec, MsgpackCodec, frame, register_codec, unframe
from sayiir_persist.errors import CodecError


def sealed(head: bytes, payload: bytes) -> bytes:
    return head + zlib.crc32(head + payload).to_bytes(4, "big") + payload


class Reversed:
    """A codec of somebody else: sloppy about its errors."""

    def __init__(self, codec_id: int) -> None:
        self.id = codec_id
        self.name = "reversed"

    def encode(self, value: Any) -> bytes:
        return JsonCodec().encode(value)[::-1]

    def decode(self, data: bytes, type: Any = Any) -> Any:
        if data == b"":
            raise KeyError("secret")

        return JsonCodec().decode(data[::-1], type)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_golden_frames_are_read_and_written_byte_for_byte(codec: Codec, name: str) -> None:
    stored = golden_frame(codec, name)

    assert unframe(stored, Body) == BODIES[name]
    assert frame(codec, BODIES[name]) == stored


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_later_releases_read_golden_frames(codec: Codec) -> None:
    class GrownBody(Struct, frozen=True, kw_only=True):
        state: InProgress
        priority: int = 3

    class GrownTask(Struct, frozen=True, tag="task"):
        node_id: str
        weight: float = 1.0

    stored = frame(codec, Body(state=InProgress(Task("ship")), loops={"poll": 1}))

    assert unframe(stored, GrownBody) == GrownBody(state=InProgress(Task("ship")))
    assert unframe(frame(codec, Task("ship", ("eu",))), GrownTask) == GrownTask("ship")


def test_header_has_the_documented_layout() -> None:
    for codec in CODECS:
        data = frame(codec, BODIES["fork"])

        assert data[:8] == b"\x89SYR\x01" + bytes([codec.id]) + b"\x00\x00"
        assert data[8:12] == zlib.crc32(data[:8] + data[12:]).to_bytes(4, "big")
        assert codec.decode(data[12:], Body) == BODIES["fork"]


def test_any_reader_decodes_every_registered_codec() -> None:
    codec = Reversed(201)
    with pytest.raises(CodecError, match=r"'reversed' \(201\) is not registered.*register_codec"):
        frame(codec, BODIES["fork"])

    register_codec(codec)

    assert unframe(frame(codec, BODIES["fork"]), Body) == BODIES["fork"]
    assert [unframe(frame(known, BODIES["fork"]), Body) for known in CODECS] == 2 * [BODIES["fork"]]


def test_an_impostor_of_a_registered_codec_writes_no_frame() -> None:
    register_codec(Reversed(202))

    for impostor in (Reversed(202), Reversed(1)):
        with pytest.raises(CodecError, match="not registered"):
            frame(impostor, BODIES["fork"])


def test_what_a_registered_codec_raises_becomes_a_codec_error() -> None:
    codec = Reversed(203)
    register_codec(codec)

    with pytest.raises(CodecError, match=r"'reversed' failed to read: KeyError$"):
        unframe(sealed(b"\x89SYR\x01\xcb\x00\x00", b""))

    codec.encode = lambda value: "no bytes"  # type: ignore[method-assign,return-value]
    with pytest.raises(CodecError, match=r"'reversed' failed to write: TypeError$"):
        frame(codec, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a stored body.*backup"),
        (b"\x89", "cut short, 1 bytes are left.*backup"),
        (b"\x89SYR\x01\x01\x00\x00\x00\x00\x00", "cut short, 11 bytes are left"),
        (b"SYR\x89", "not a stored body"),
        (b'{"state":{"type":"completed"}}', "not a stored body"),
        (sealed(b"\x89syr\x01\x01\x00\x00", b"{}"), "not a stored body"),
        (sealed(b"\x89SYR\x02\x01\x00\x00", b"{}"), "format 2.*knows format 1.*newer.*upgrade"),
        (sealed(b"\x89SYR\x00\x01\x00\x00", b"{}"), "format 0"),
        (sealed(b"\x89SYR\x01\x01\x80\x01", b"{}"), "flags 0x8001.*newer release.*upgrade"),
        (sealed(b"\x89SYR\x01\x7f\x00\x00", b"{}"), "codec 127, which is not registered.*register"),
        (sealed(b"\x89SYR\x01\x00\x00\x00", b"{}"), "codec 0, which is not registered"),
        (b"\x89SYR\x01\x01\x00\x00" + bytes(4) + b"{}", "damaged or cut short.*backup"),
        (sealed(b"\x89SYR\x01\x01\x00\x00", b""), "read as JSON of type Body: Input.*truncated"),
        (sealed(b"\x89SYR\x01\x01\x00\x00", b"{}"), "read as JSON of type Body: Object missing"),
        (sealed(b"\x89SYR\x01\x02\x00\x00", b"{}"), "read as MessagePack of type Body: Expected"),
    ],
)
def test_a_bad_frame_says_what_to_do(data: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        unframe(data, Body)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_every_truncation_is_noticed(codec: Codec) -> None:
    data = frame(codec, BODIES["fork"])

    for size in range(len(data)):
        with pytest.raises(CodecError):
            unframe(data[:size], Body)

    with pytest.raises(CodecError, match="damaged"):
        unframe(data + b"\n", Body)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_every_flipped_bit_is_noticed(codec: Codec) -> None:
    data = frame(codec, BODIES["fork"])

    for index in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[index] ^= 1 << bit

            with pytest.raises(CodecError):
                unframe(bytes(flipped), Body)


@given(st.binary(max_size=64))
@example(b"\x89SYR\x01\x01\x00\x00")
def test_other_bytes_are_never_taken_for_a_frame(data: bytes) -> None:
    for prefix in (b"", b"\x89SYR\x01\x01\x00\x00", b"\x89SYR\x01\x02\x00\x00"):
        with pytest.raises(CodecError):
            unframe(prefix + data)


def test_a_body_that_cannot_be_written_is_refused() -> None:
    for codec in (JsonCodec(), MsgpackCodec()):
        with pytest.raises(CodecError, match="cannot hold this dict: it has a string with lone"):
            frame(codec, {"reason": "\ud800"})
