"""Codecs: how values become bytes, and the frame that says which codec made them."""

from sayiir_persist.codecs.base import Codec
from sayiir_persist.codecs.frame import frame, unframe
from sayiir_persist.codecs.json import JsonCodec
from sayiir_persist.codecs.msgpack import MsgpackCodec
from sayiir_persist.codecs.registry import register_codec

__all__ = ["Codec", "JsonCodec", "MsgpackCodec", "frame", "register_codec", "unframe"]
