"""Bytes and values that mean harm end in `CodecError`: no dead process, no import, no call."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.codecs.bodies import BODIES, CODECS, Body

from sayiir_persist.codecs import Codec, JsonCodec, MsgpackCodec, frame, unframe
from sayiir_persist.errors import CodecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

both = pytest.mark.parametrize("codec", CODECS, ids=repr)

DEPTH = 10**5
NESTED = {
    "JSON": [
        (b"[" * DEPTH + b"]" * DEPTH),
        (b'{"next":' * DEPTH + b"1" + b"}" * DEPTH),
        (b'{"unknown":' * DEPTH + b"1" + b"}" * DEPTH),
        (b'{"type":"delay","next":' * DEPTH),
        (b'{"state":' + b"[" * DEPTH),
    ],
    "MessagePack": [
        (b"\x91" * DEPTH + b"\xc0"),
        (b"\x81\xa4next" * DEPTH + b"\xc0"),
        (b"\x81\xa7unknown" * DEPTH + b"\xc0"),
        (b"\x82\xa4type\xa5delay\xa4next" * DEPTH),
        (b"\x81\x91" * DEPTH),
    ],
}


def nested(wrap: Callable[[Any], Any]) -> Any:
    value = None
    for _ in range(DEPTH):
        value = wrap(value)

    return value


def survive() -> None:
    """Meet deep values and bytes, on the main thread and on one with a small stack."""
    threading.stack_size(512 * 1024)
    refuse_what_is_deep()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(refuse_what_is_deep).result()

    print("alive")


def refuse_what_is_deep() -> None:
    for codec in CODECS:
        for data in NESTED[codec.name]:
            for kind in (Any, Body, list, dict[str, Any], Body | int):
                with pytest.raises(CodecError):
                    codec.decode(data, kind)

        for wrap in (lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: (inner,)):
            with pytest.raises(CodecError, match="nested too deeply"):
                codec.encode(nested(wrap))

            with pytest.raises(CodecError, match="nested too deeply"):
                frame(codec, nested(wrap))


def test_deep_nesting_leaves_the_process_alive() -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from unit.codecs import test_hostile_bytes\n"
        "test_hostile_bytes.survive()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, *sys.path], capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@both
def test_a_value_that_holds_itself_is_refused(codec: Codec) -> None:
    value: list[Any] = []
    value.append(value)

    with pytest.raises(CodecError, match="nested too deeply"):
        codec.encode(value)


@both
def test_nesting_up_to_what_can_be_written_can_be_read(codec: Codec) -> None:
    value: Any = None
    for _ in range(200):
        value = {"a": [value]}

    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff\x01",
        b"\xdd\x7f\xff\xff\xff" * 300,
        b"\xdf\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff\x01\x01",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\xff",
        b"\xdc\xff\xff\x01",
    ],
)
@pytest.mark.parametrize(
    "kind", [Any, list, list[int], tuple, tuple[int, int], set, dict, str, bytes, Body]
)
def test_huge_declared_lengths_are_refused(data: bytes, kind: Any) -> None:
    with pytest.raises(CodecError):
        MsgpackCodec().decode(data, kind)


@pytest.mark.parametrize("data", [b"1" * 10**6, b"1e999", b"-1e999", b"1" * 5000, b"0" * 10])
def test_huge_json_numbers_are_refused(data: bytes) -> None:
    for kind in (Any, int, float):
        with pytest.raises(CodecError):
            JsonCodec().decode(data, kind)


# --- Nothing stored is imported, called or opened ---

FORBIDDEN = (
    "import", "exec", "compile", "open", "os.", "subprocess.", "ctypes.", "pickle.", "marshal.",
    "code.__new__", "function.__new__", "object.__setattr__", "object.__delattr__", "socket.",
    "shutil.", "tempfile.", "urllib.", "sys.setprofile", "sys.settrace", "builtins.",
)  # fmt: skip


class _Audit:
    """Listens while it is entered. An audit hook cannot be removed, so it is added once."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._listening = False
        sys.addaudithook(self._hear)

    def __enter__(self) -> None:
        self._listening = True

    def __exit__(self, *_: object) -> None:
        self._listening = False

    def _hear(self, event: str, _args: tuple[Any, ...]) -> None:
        if self._listening and event.startswith(FORBIDDEN):
            self.events.append(event)


@pytest.fixture(scope="module")
def audit() -> _Audit:
    for codec in CODECS:  # compiling a decoder evaluates the annotations of the type
        for kind in (Any, Body):
            assert unframe(frame(codec, BODIES["fork"]), kind)

    return _Audit()


def read_every_way(data: bytes) -> Iterator[Any]:
    framed = [head + data for head in (b"", b"\x89SYR\x01\x01\x00\x00", b"\x89SYR\x01\x02\x00\x00")]
    for kind in (Any, Body):
        for read, stored in [
            *((unframe, stored) for stored in framed),
            *((codec.decode, data) for codec in CODECS),
        ]:
            try:
                yield read(stored, kind)
            except CodecError:
                continue


def test_the_audit_hook_hears_what_it_is_there_for(audit: _Audit) -> None:
    with audit:
        exec("0")  # noqa: S102

    assert {"compile", "exec"} <= set(audit.events)
    audit.events.clear()


NAMES = [b"os.system", b"!!python/object/apply:os.system", b"__import__", b"builtins.eval"]
PICKLES = [
    b"cos\nsystem\n(S'true'\ntR.",
    b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix",
]


@given(
    st.binary(max_size=80)
    | st.sampled_from(PICKLES)
    | st.sampled_from(NAMES).map(lambda name: b'{"state":{"type":"' + name + b'"}}')
    | st.sampled_from(NAMES).map(lambda name: b"\x81\xa4type\xd9" + bytes([len(name)]) + name)
    | st.sampled_from(NAMES).map(lambda name: b"\xc7" + bytes([len(name), 5]) + name)
)
def test_arbitrary_bytes_import_and_call_nothing(audit: _Audit, data: bytes) -> None:
    with audit:
        found = list(read_every_way(data))

    assert audit.events == []
    assert not any(map(callable, found))


@both
def test_mutated_bytes_import_and_call_nothing(audit: _Audit, codec: Codec) -> None:
    chance = random.Random(20260514)
    originals = [codec.encode(body) for body in BODIES.values()]
    interesting = b'\x00\x7f\x80\xc1\xc7\xd9\xdd\xff"\\{}[]'

    for _ in range(3000):
        data = bytearray(chance.choice(originals))
        for _ in range(chance.randint(1, 4)):
            start = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[start] ^= 1 << chance.randrange(8)
                case 1:
                    data[start] = chance.choice(interesting)
                case 2:
                    del data[start : start + chance.randrange(1, 8)]
                case _:
                    data[start:start] = chance.choice(NAMES + PICKLES)

            data = data or bytearray(b"\x00")

        with audit:
            list(read_every_way(bytes(data)))

    assert audit.events == []
