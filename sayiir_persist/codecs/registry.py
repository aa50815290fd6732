"""The codecs that readers know, by the id that frames carry."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final

from sayiir_persist.codecs.json import JsonCodec
from sayiir_persist.codecs.msgpack import MsgpackCodec
from sayiir_persist.errors import ConfigurationError, InvalidArgumentError

if TYPE_CHECKING:
    from sayiir_persist.codecs.base import Codec

FOREIGN_IDS: Final = range(128, 256)
"""Ids of codecs that are not part of this library; it keeps those below for itself."""

_codecs: Final[dict[int, Codec]] = {codec.id: codec for codec in (JsonCodec(), MsgpackCodec())}
_registering: Final = Lock()


def register_codec(codec: Codec) -> None:
    """Let every backend of this process read what a codec wrote.

    Do this at start-up, in each process that reads. Registering an equal codec again does
    nothing.

    Raises:
        InvalidArgumentError: The id is not one from 128 to 255.
        ConfigurationError: The id is taken by another codec.
    """
    with _registering:
        known = _codecs.get(codec.id)
        if known is None:
            if codec.id not in FOREIGN_IDS:
                raise InvalidArgumentError(
                    f"codec {codec.name!r} has the id {codec.id!r}:"
                    f" choose one from {FOREIGN_IDS[0]} to {FOREIGN_IDS[-1]}"
                )

            _codecs[codec.id] = codec

        elif known != codec:
            raise ConfigurationError(
                f"codec {codec.name!r} has the id {codec.id},"
                f" which is that of {known.name!r}: choose another"
            )


def codec_by_id(codec_id: int) -> Codec | None:
    """The codec that is registered under an id."""
    return _codecs.get(codec_id)
