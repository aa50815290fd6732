"""A body like the stored ones (tagged unions, a tree, instants, bytes), and its golden frames."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from sayiir_persist.codecs import Codec, JsonCodec, MsgpackCodec

GOLDEN = Path(__file__).parent / "golden"
CODECS: list[Codec] = [JsonCodec(), MsgpackCodec()]


class Reason(StrEnum):
    RETRY = "retry"


class Task(Struct, frozen=True, tag="task", omit_defaults=True):
    node_id: str
    tags: tuple[str, ...] = ()
    reason: Reason | None = None


class Delay(Struct, frozen=True, tag="delay", omit_defaults=True):
    node_id: str
    wake_after: timedelta | None = None
    wake_at: datetime | None = None
    next: Position | None = None


class Fork(Struct, frozen=True, tag="fork"):
    node_id: str
    branches: dict[str, Position]
    join: str


Position = Task | Delay | Fork


class InProgress(Struct, frozen=True, tag="in_progress"):
    position: Position


class Completed(Struct, frozen=True, tag="completed"):
    output: bytes


class Body(Struct, frozen=True, kw_only=True, omit_defaults=True):
    state: InProgress | Completed
    timed_out: frozenset[str] = frozenset()
    loops: dict[str, int] = {}


BODIES = {
    "fork": Body(
        state=InProgress(
            Fork(
                "fan-out",
                {
                    "left": Task("zahlen-\u20ac", ("eu", "gpu"), Reason.RETRY),
                    "right": Delay(
                        "cool-off",
                        wake_at=datetime(2026, 5, 14, 8, 30, 0, 123456, UTC),
                        next=Delay("rest", timedelta(days=1, microseconds=1), next=Task("ship")),
                    ),
                },
                "join",
            )
        ),
        timed_out=frozenset({"approval"}),
        loops={"poll": 2**40},
    ),
    "completed": Body(state=Completed(bytes(range(256)))),
}


def golden_frame(codec: Codec, name: str) -> bytes:
    return bytes.fromhex((GOLDEN / f"{codec.name.lower()}-1-{name}.hex").read_text())
