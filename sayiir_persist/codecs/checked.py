"""What the two msgspec codecs share: compiled decoders, exactness, and one kind of error."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, cast

from sayiir_persist.codecs.base import Codec
from sayiir_persist.codecs.exact import ALWAYS_EXACT, change
from sayiir_persist.errors import CodecError

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_DECODERS = 1024

_QUOTES_NO_DATA = re.compile(
    r"Expected `|Object missing required field `|Input data was truncated$"
    r"|(JSON|MessagePack data) is malformed: |(Number|(Integer|date) value) out of range"
    r"|Invalid (UUID|RFC3339 encoded \w+|ISO8601 duration|base64 encoded string|decimal string)"
    r"( - at |$)|Encoding objects of type |Only dicts with |can't serialize ints |Enums must "
    r"|Type unions may not contain "
)


class CheckedCodec(Codec):
    """A codec whose `encode` proves that what it wrote can be read back unchanged.

    The proof reads everything back and compares, which takes many times as long as writing. What
    this library stores consists of types that are known to come back: it takes `encode_trusted`.
    """

    def __init__(self) -> None:
        self._decoders: dict[Any, Callable[[bytes], Any]] = {}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def encode(self, value: Any) -> bytes:
        data = self.encode_trusted(value)
        try:
            self._check(value)
        except CodecError:
            raise
        except Exception as exc:
            raise self._refusal(value, exc) from exc

        return data

    def encode_trusted(self, value: Any) -> bytes:
        """Write a value that is known to come back unchanged: no proof."""
        try:
            return self._write(value)
        except Exception as exc:
            raise self._refusal(value, exc) from exc

    def decode(self, data: bytes, type: Any = Any) -> Any:
        try:
            return self._decoder(type)(data)
        except Exception as exc:
            wanted = getattr(type, "__qualname__", None) or repr(type)
            raise CodecError(
                f"these bytes cannot be read as {self.name} of type {wanted}: {_reason(exc)}"
            ) from exc

    @abstractmethod
    def _write(self, value: Any) -> bytes: ...

    @abstractmethod
    def _compile(self, type: Any) -> Callable[[bytes], Any]: ...

    def _decoder(self, type: Any) -> Callable[[bytes], Any]:
        try:
            decoder = self._decoders.get(type)
        except TypeError:  # an unhashable type, such as Annotated[int, {}]
            return self._compile(type)

        if decoder is None:
            if len(self._decoders) >= _MAX_DECODERS:
                self._decoders.clear()

            decoder = self._decoders[type] = self._compile(type)

        return decoder

    def _check(self, value: Any) -> None:
        """Refuse what no declared type brings back.

        A class declares what it holds, so an instance must survive a round trip as that class. A
        bare container declares nothing: the reader names the types of its items, and each item
        must survive by itself. Only the keys of a bare dict must come back undeclared, because
        JSON turns 1 and "1" into the same key.
        """
        kind = cast("type[object]", type(value))
        if kind in ALWAYS_EXACT:
            return

        if kind in {list, tuple, set, frozenset}:
            for item in value:
                self._check(item)

        elif kind is dict:
            self._check_keys(cast("dict[Any, Any]", value))
            for item in value.values():
                self._check(item)

        elif found := self._change(value, kind):
            raise self._unfaithful(kind, found)

    def _check_keys(self, value: dict[Any, Any]) -> None:
        if all(type(key) is str for key in value):
            return

        keys = dict.fromkeys(value)
        if found := self._change(keys, dict):
            raise self._unfaithful(dict, f"a key of type {found}")

    def _change(self, value: object, kind: type[object]) -> str | None:
        try:
            return change(value, self._decoder(kind)(self._write(value)))
        except Exception as exc:
            raise self._refusal(value, exc) from exc

    def _unfaithful(self, kind: type, found: str) -> CodecError:
        return CodecError(f"{self.name} would not keep this {kind.__qualname__} as it is: {found}")

    def _refusal(self, value: object, exc: Exception) -> CodecError:
        kind = type(value).__qualname__
        return CodecError(f"{self.name} cannot hold this {kind}: {_reason(exc)}")


def _reason(exc: Exception) -> str:
    """What went wrong, in words that never quote the data."""
    if isinstance(exc, RecursionError):
        return "it is nested too deeply"

    if isinstance(exc, UnicodeEncodeError):
        return "it has a string with lone surrogates, which is no text"

    text = str(exc)
    return text if _QUOTES_NO_DATA.match(text) else type(exc).__name__
