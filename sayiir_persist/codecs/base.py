"""What a codec is."""

from __future__ import annotations

from typing import Any, Protocol


class Codec(Protocol):
    """Turns values into bytes and back, without ever changing one silently.

    Snapshots are stored through a codec, in a frame that carries its id; so the codec of a
    backend can change while the system runs, as long as readers know both (`register_codec`).
    Inputs, outputs and event payloads are bytes to every backend: `encode` and `decode` are
    there for the caller's own values.

    A codec is immutable and may be used from several threads. Decoding never imports, calls or
    looks up anything that the bytes name.

    Attributes:
        id: What the frame records: 1 is JSON, 2 MessagePack, 128 to 255 are free for others.
        name: What messages call it.

    Example:
        A codec that keeps stored bodies small:

        >>> import zlib
        >>> from sayiir_persist.codecs import JsonCodec, register_codec
        >>> from sayiir_persist.errors import CodecError
        >>> class ZippedJson:
        ...     id = 200
        ...     name = "zipped JSON"
        ...     _inner = JsonCodec()
        ...
        ...     def encode(self, value):
        ...         return zlib.compress(self._inner.encode(value))
        ...
        ...     def decode(self, data, type=Any):
        ...         try:
        ...             return self._inner.decode(zlib.decompress(data), type)
        ...         except zlib.error as exc:
        ...             raise CodecError("not zipped JSON") from exc
        >>> register_codec(codec := ZippedJson())
        >>> codec.decode(codec.encode({"paid": True}))
        {'paid': True}
    """

    id: int
    name: str

    def encode(self, value: Any) -> bytes:
        """Write a value.

        Deterministic for values without sets.

        Raises:
            CodecError: The value, or a part of it, is of a type that the codec does not write,
                or no `decode` could bring it back equal and of equal type.
        """
        ...

    def decode(self, data: bytes, type: Any = Any) -> Any:
        """Read what `encode` wrote.

        Args:
            data: What `encode` returned.
            type: What was written: a class, or any type expression such as `list[Order]`. Where
                it says nothing (`Any`, a bare `list` or `dict`), the value has the natural form
                of the format: JSON has no tuples, and a date is a string there.

        Raises:
            CodecError: The bytes are damaged, or are not of that type; they stay out of the
                message.
        """
        ...
