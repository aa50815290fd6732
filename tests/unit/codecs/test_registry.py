from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sayiir_persist.codecs import JsonCodec, MsgpackCodec, register_codec
from sayiir_persist.codecs.registry import codec_by_id
from sayiir_persist.errors import ConfigurationError, InvalidArgumentError


class OtherCodec:
    def __init__(self, codec_id: Any, name: str = "other") -> None:
        self.id = codec_id
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OtherCodec) and self.name == other.name

    __hash__ = None  # type: ignore[assignment]

    def encode(self, value: Any) -> bytes:
        raise NotImplementedError

    def decode(self, data: bytes, type: Any = Any) -> Any:
        raise NotImplementedError


def test_json_and_messagepack_are_known_from_the_start() -> None:
    assert codec_by_id(1) == JsonCodec()
    assert codec_by_id(2) == MsgpackCodec()
    assert codec_by_id(3) is None


def test_codecs_without_options_are_equal() -> None:
    assert JsonCodec() == JsonCodec() != MsgpackCodec()
    assert len({JsonCodec(), JsonCodec(), MsgpackCodec()}) == 2
    assert repr(JsonCodec()) == "JsonCodec()"


def test_registering_an_equal_codec_again_does_nothing() -> None:
    first = OtherCodec(240)
    register_codec(first)

    register_codec(first)
    register_codec(OtherCodec(240))
    register_codec(JsonCodec())

    assert codec_by_id(240) is first


def test_a_taken_id_is_refused() -> None:
    register_codec(OtherCodec(241))

    with pytest.raises(ConfigurationError, match=r"'usurper' has the id 241.*of 'other': choose"):
        register_codec(OtherCodec(241, "usurper"))

    with pytest.raises(ConfigurationError, match=r"'other' has the id 1.*of 'JSON'"):
        register_codec(OtherCodec(1))


@pytest.mark.parametrize("codec_id", [-1, 0, 3, 127, 256, 1000, "130", None, 130.5])
def test_an_id_out_of_range_is_refused(codec_id: object) -> None:
    with pytest.raises(InvalidArgumentError, match="choose one from 128 to 255"):
        register_codec(OtherCodec(codec_id))

    assert codec_by_id(codec_id) is None  # type: ignore[arg-type]


def test_of_codecs_that_race_for_an_id_one_wins() -> None:
    rivals = [OtherCodec(242, f"rival {number}") for number in range(16)]

    def enters(codec: OtherCodec) -> bool:
        try:
            register_codec(codec)
        except ConfigurationError:
            return False

        return True

    with ThreadPoolExecutor(8) as pool:
        entered = list(pool.map(enters, rivals))

    assert entered.count(True) == 1
    assert codec_by_id(242) is rivals[entered.index(True)]
