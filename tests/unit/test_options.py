from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sayiir_persist.codecs import JsonCodec
from sayiir_persist.errors import ConfigurationError, InvalidArgumentError
from sayiir_persist.options import Options, read_options

SECOND = timedelta(seconds=1)


def test_defaults_are_those_of_the_contract() -> None:
    options = read_options({})

    assert options.namespace == "default"
    assert isinstance(options.codec, JsonCodec)
    assert options.aging_interval == timedelta(minutes=5)
    assert options.operation_timeout == timedelta(seconds=10)
    assert options.migrate is True
    assert options.limits.max_payload == 16 * 1024 * 1024
    assert options.limits.max_queued_events == 10_000


@pytest.mark.parametrize(
    "given",
    [
        {"namespace": "x" * 64},
        {"aging_interval": SECOND},
        {"aging_interval": None},
        {"max_payload": 1},
        {"max_queued_events": 1},
        {"operation_timeout": SECOND},
        {"migrate": False},
    ],
)
def test_option_at_its_limit_is_taken(given: dict[str, Any]) -> None:
    options = read_options(given)

    assert {name: getattr(options, name) for name in given} == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"namespace": ""}, "namespace must have 1 to 64"),
        ({"namespace": "x" * 65}, "namespace must have 1 to 64"),
        ({"aging_interval": SECOND - timedelta(microseconds=1)}, "aging_interval must be at least"),
        ({"aging_interval": 5}, "aging_interval must be a timedelta"),
        ({"max_payload": 0}, "max_payload must be an int of at least 1"),
        ({"max_payload": 1.5}, "max_payload must be an int of at least 1"),
        ({"max_queued_events": 0}, "max_queued_events must be an int of at least 1"),
        ({"operation_timeout": -SECOND}, "operation_timeout must not be negative"),
        ({"operation_timeout": 10}, "operation_timeout must be a timedelta"),
    ],
)
def test_option_beyond_its_limit_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        read_options(given)


def test_unknown_option_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="unknown option 'nam'; there are: namespace, "):
        read_options({"nam": "x"})


def test_options_are_given_by_name() -> None:
    with pytest.raises(TypeError):
        Options("orders")  # type: ignore[call-arg]
