"""The codec that people can read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import msgspec.json

from sayiir_persist.codecs.checked import CheckedCodec

if TYPE_CHECKING:
    from collections.abc import Callable


@final
class JsonCodec(CheckedCodec):
    """JSON: the default, readable by people and by every other language.

    Writes None, bool, int, finite float, str, bytes (as base64), aware datetimes, date, time,
    timedelta, Decimal, UUID, enums of strings or of ints, structs, dataclasses, attrs classes
    and NamedTuples of these, and dict, list, tuple, set and frozenset. Each comes back equal and
    of equal type when `decode` is given its type; anything that would not is refused by `encode`:
    NaN and infinities, naive datetimes, offsets with seconds, lone surrogates, a bare dict with
    other keys than strings, instances of subclasses of the types above.

    Example:
        >>> from datetime import date
        >>> codec = JsonCodec()
        >>> codec.encode({"due": date(2026, 5, 1)})
        b'{"due":"2026-05-01"}'
        >>> codec.decode(_, dict[str, date])
        {'due': datetime.date(2026, 5, 1)}
    """

    id = 1
    name = "JSON"

    def __init__(self) -> None:
        super().__init__()
        self._encode = msgspec.json.Encoder().encode

    def _write(self, value: Any) -> bytes:
        data = self._encode(value)
        # A lone digit is a whole MessagePack document as well; with a line end it is none.
        return data if len(data) > 1 else data + b"\n"

    def _compile(self, type: Any) -> Callable[[bytes], Any]:
        return msgspec.json.Decoder(type).decode
