"""The frame of a stored body: which format and codec wrote it, and whether it is whole.

::

    offset  size  content
         0     4  magic: 89 53 59 52 (89 "SYR")
         4     1  format version: 1
         5     1  codec id: 1 JSON, 2 MessagePack, 128 to 255 registered by others
         6     2  flags, big-endian: none is defined, so all are 0
         8     4  CRC-32 (that of zlib), big-endian, of all the other bytes in their order
        12        payload: what the codec wrote, to the end
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from sayiir_persist.codecs.json import JsonCodec
from sayiir_persist.codecs.msgpack import MsgpackCodec
from sayiir_persist.codecs.registry import codec_by_id
from sayiir_persist.errors import CodecError

if TYPE_CHECKING:
    from sayiir_persist.codecs.base import Codec

MAGIC: Final = b"\x89SYR"
FORMAT_VERSION: Final = 1

_HEAD: Final = Struct(">4sBBH")
_CHECKSUM: Final = Struct(">I")
_HEADER_SIZE: Final = _HEAD.size + _CHECKSUM.size


def frame(codec: Codec, value: Any) -> bytes:
    """Write a body of the library's own in a frame.

    The body must consist of types that are known to come back unchanged: the codecs of this
    library do not prove it here.

    Raises:
        CodecError: The codec refuses the value, or is not registered, so nobody could read it.
    """
    try:
        if type(codec) is JsonCodec or type(codec) is MsgpackCodec:
            payload = codec.encode_trusted(value)
        else:
            _check_registered(codec)
            payload = codec.encode(value)

        head = _HEAD.pack(MAGIC, FORMAT_VERSION, codec.id, 0)
        return head + _CHECKSUM.pack(crc32(payload, crc32(head))) + payload
    except CodecError:
        raise
    except Exception as exc:
        raise CodecError(f"codec {codec.name!r} failed to write: {type(exc).__name__}") from exc


def unframe(data: bytes, type: Any = Any) -> Any:
    """Read the body in a frame, with the codec that wrote it.

    Raises:
        CodecError: It is no frame, or one from a newer release, or it is damaged, or its codec
            is not registered here, or the body is not of that type. The message says what to do.
    """
    codec, payload = _open(data)
    try:
        return codec.decode(payload, type)
    except CodecError:
        raise
    except Exception as exc:
        raise CodecError(f"codec {codec.name!r} failed to read: {exc.__class__.__name__}") from exc


def _check_registered(codec: Codec) -> None:
    if codec_by_id(codec.id) != codec:
        raise CodecError(
            f"codec {codec.name!r} ({codec.id}) is not registered, so nobody could read what it"
            " writes: call register_codec with it first"
        )


def _open(data: bytes) -> tuple[Codec, bytes]:
    if len(data) < _HEADER_SIZE:
        raise _too_short(data)

    magic, version, codec_id, flags = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise _not_a_frame()

    if version != FORMAT_VERSION:
        raise CodecError(
            f"stored in format {version}, this release knows format {FORMAT_VERSION}: it was"
            " written by a newer release, so upgrade this one; if there is none, it is damaged"
        )

    payload = data[_HEADER_SIZE:]
    (checksum,) = _CHECKSUM.unpack_from(data, _HEAD.size)
    if crc32(payload, crc32(data[: _HEAD.size])) != checksum:
        raise CodecError(
            "the stored body is damaged or cut short (its checksum is wrong): restore it from a"
            " backup, or delete the instance"
        )

    if flags:
        raise CodecError(
            f"stored with the flags {flags:#06x}, of which this release knows none: it was"
            " written by a newer release, so upgrade this one"
        )

    codec = codec_by_id(codec_id)
    if codec is None:
        raise CodecError(
            f"written by codec {codec_id}, which is not registered in this process: call"
            " register_codec with it at start-up"
        )

    return codec, payload


def _too_short(data: bytes) -> CodecError:
    if not data or data[: len(MAGIC)] != MAGIC[: len(data)]:
        return _not_a_frame()

    return CodecError(
        f"the stored body is cut short, {len(data)} bytes are left: restore it from a backup, or"
        " delete the instance"
    )


def _not_a_frame() -> CodecError:
    return CodecError(
        "not a stored body: it lacks the frame that this library writes around each. Something"
        " else wrote or changed it; restore it from a backup, or delete the instance"
    )
