"""What every backend can be told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from msgspec import Struct

from sayiir_persist.codecs import Codec, JsonCodec
from sayiir_persist.errors import ConfigurationError, InvalidArgumentError
from sayiir_persist.protocols import Limits
from sayiir_persist.validation import check_duration, check_namespace

DEFAULT_AGING: Final = timedelta(minutes=5)
SHORTEST_AGING: Final = timedelta(seconds=1)


class Options(Struct, frozen=True, kw_only=True):
    """What every backend can be told; see `sayiir_persist.connect`."""

    namespace: str = "default"
    codec: Codec = JsonCodec()
    aging_interval: timedelta | None = DEFAULT_AGING
    max_payload: int = 16 * 1024 * 1024
    max_queued_events: int = 10_000
    operation_timeout: timedelta = timedelta(seconds=10)
    migrate: bool = True

    def __post_init__(self) -> None:
        check_namespace(self.namespace)

        if self.aging_interval is not None:
            check_duration("aging_interval", self.aging_interval)

            if self.aging_interval < SHORTEST_AGING:
                raise InvalidArgumentError("aging_interval must be at least 1 s, or None")

        for name, value in (
            ("max_payload", self.max_payload),
            ("max_queued_events", self.max_queued_events),
        ):
            if not isinstance(value, int) or value < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidArgumentError(f"{name} must be an int of at least 1, not {value!r}")

        check_duration("operation_timeout", self.operation_timeout)

    @property
    def limits(self) -> Limits:
        """The limits among the options, as `BackendInfo` shows them."""
        return Limits(max_payload=self.max_payload, max_queued_events=self.max_queued_events)


def read_options(options: dict[str, Any]) -> Options:
    """The options that a user gave, or an error that names the one that is unknown."""
    unknown = options.keys() - set(Options.__struct_fields__)

    if unknown:
        known = ", ".join(Options.__struct_fields__)
        raise ConfigurationError(f"unknown option {min(unknown)!r}; there are: {known}")

    return Options(**options)
