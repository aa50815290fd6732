"""Whatever is encoded comes back equal and of equal type, or is refused."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta, Struct
from unit.codecs.bodies import CODECS

from sayiir_persist.codecs import Codec, JsonCodec, MsgpackCodec
from sayiir_persist.errors import CodecError

JSON, MSGPACK = JsonCodec(), MsgpackCodec()
PARIS = ZoneInfo("Europe/Paris")
INDIA = timezone(timedelta(hours=5, minutes=30))
AMSTERDAM_1900 = timezone(timedelta(minutes=19, seconds=32))

both = pytest.mark.parametrize("codec", CODECS, ids=repr)


class Color(StrEnum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Plain(Enum):
    A = "a"
    B = "b"


class Mixed(Enum):
    A = "a"
    ONE = 1


class Bits(Flag):
    X = 1
    Y = 2


class Point(NamedTuple):
    x: int
    at: datetime


Untyped = namedtuple("Untyped", "x")


class Row(TypedDict, total=False):
    id: UUID
    due: date


@dataclass(frozen=True)
class Money:
    amount: Decimal
    currency: Color = Color.RED


@dataclass(slots=True)
class Node:
    value: int | str | None
    children: list[Node] = field(default_factory=list)


@attrs.define
class Parcel:
    weight: float
    codes: tuple[bytes, ...] = ()


@attrs.define
class Hidden:
    _secret: int = 0


class Cat(Struct, tag="cat"):
    lives: int


class Dog(Struct, tag="dog"):
    name: str
    born: date


class Puppy(Dog, tag="puppy"):
    mother: str


class Order(Struct, omit_defaults=True):
    id: UUID
    pet: Cat | Dog
    price: Money
    placed: datetime
    notes: dict[str, Any] = {}
    per_day: dict[date, int] = {}
    per_count: dict[int, str] = {}
    levels: frozenset[Level] = frozenset()
    window: tuple[time, timedelta] | None = None


class Loose(Struct):
    anything: Any = None


class Kennel(Struct):
    dog: Dog


class Shelf(Struct):
    names: set[str]


class ById(Struct, eq=False):
    number: float


class Empty(Struct, eq=False):
    pass


@dataclass
class Sloppy:
    compared: int
    ignored: str = field(default="", compare=False)


def normal(value: Any) -> Any:
    """A value as nested tuples that say its types, written apart from the code under test."""
    kind = type(value)
    if kind in {list, tuple, Point}:
        return kind, tuple(map(normal, value))

    if kind in {set, frozenset}:
        return kind, frozenset(map(normal, value))

    if kind is dict:
        return kind, tuple((normal(key), normal(item)) for key, item in value.items())

    if isinstance(value, Struct):
        return kind, tuple(normal(getattr(value, name)) for name in value.__struct_fields__)

    if kind is Node:
        return kind, normal(value.value), normal(value.children)

    if kind is Money:
        return kind, normal(value.amount), normal(value.currency)

    if kind is Parcel:
        return kind, normal(value.weight), normal(value.codes)

    if kind is datetime:
        return kind, value.replace(tzinfo=None, fold=0) - (value.utcoffset() or timedelta())

    if kind in {float, Decimal}:
        return kind, str(value)

    return kind, value


def assert_same(codec: Codec, value: Any, declared: Any) -> None:
    assert normal(codec.decode(codec.encode(value), declared)) == normal(value)


# --- What must be accepted ---

offsets = st.builds(
    lambda minutes: timezone(timedelta(minutes=minutes)), st.integers(-14 * 60, 14 * 60)
)
datetimes = st.datetimes(
    datetime(1, 1, 3),  # noqa: DTZ001 - hypothesis adds the zone
    datetime(9999, 12, 29),  # noqa: DTZ001
    timezones=st.one_of(st.just(UTC), offsets),
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
int64 = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)

LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    int: int64,
    float: floats,
    str: text,
    bytes: st.binary(max_size=40),
    datetime: datetimes,
    date: st.dates(),
    time: st.times(timezones=st.one_of(st.none(), st.just(UTC), offsets)),
    timedelta: st.timedeltas(),
    Decimal: st.decimals(allow_nan=False),
    UUID: st.uuids(),
    Color: st.sampled_from(Color),
    Level: st.sampled_from(Level),
    Plain: st.sampled_from(Plain),
    Bits: st.sampled_from([Bits.X, Bits.Y, Bits.X | Bits.Y]),
}
natural = st.recursive(
    st.one_of(st.none(), st.booleans(), int64, floats, text),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
moneys = st.builds(Money, st.decimals(allow_nan=False, allow_infinity=False))
pets = st.builds(Cat, int64) | st.builds(Dog, text, st.dates())
orders = st.builds(
    Order,
    st.uuids(),
    pets,
    moneys,
    datetimes,
    notes=st.dictionaries(text, natural, max_size=3),
    per_day=st.dictionaries(st.dates(), int64, max_size=3),
    per_count=st.dictionaries(int64, text, max_size=3),
    levels=st.frozensets(st.sampled_from(Level)),
    window=st.none() | st.tuples(st.times(), st.timedeltas()),
)
nodes = st.recursive(
    st.builds(Node, int64 | text | st.none()),
    lambda inner: st.builds(Node, int64, st.lists(inner, max_size=3)),
    max_leaves=8,
)
CLASSES: dict[Any, st.SearchStrategy[Any]] = {
    Order: orders,
    Cat | Dog: pets,
    Money: moneys,
    Node: nodes,
    Parcel: st.builds(Parcel, floats, st.lists(st.binary(max_size=9), max_size=3).map(tuple)),
    Point: st.builds(Point, int64, datetimes),
    Row: st.fixed_dictionaries({}, optional={"id": st.uuids(), "due": st.dates()}),
    Empty | None: st.builds(Empty) | st.none(),
    Literal["on", "off"]: st.sampled_from(["on", "off"]),
    Annotated[int, Meta(ge=0)]: st.integers(0, 2**64 - 1),
    float | int: floats | int64,
}
ALL = LEAVES | CLASSES
HASHABLE = [kind for kind in LEAVES if kind not in {type(None), time, datetime}]


def _container_of(kind: Any, values: st.SearchStrategy[Any]) -> Any:
    lists = st.lists(values, max_size=4)
    containers = [
        (list[kind], lists),
        (tuple[kind, ...], lists.map(tuple)),
        (tuple[kind, str], st.tuples(values, text)),
        (dict[str, kind], st.dictionaries(text, values, max_size=4)),
        (dict[str, list[kind]], st.dictionaries(text, lists, max_size=4)),
    ]
    if kind in HASHABLE:
        containers.append((set[kind], st.sets(values, max_size=4)))
        containers.append((frozenset[kind], st.frozensets(values, max_size=4)))

    return st.one_of(
        *(content.map(lambda value, declared=declared: (declared, value))
          for declared, content in containers)
    )  # fmt: skip


declared_values = st.sampled_from(list(ALL)).flatmap(
    lambda kind: st.tuples(st.just(kind), ALL[kind])
)
declared_containers = st.sampled_from(list(ALL)).flatmap(
    lambda kind: _container_of(kind, ALL[kind])
)


@both
@given(declared=st.one_of(declared_values, declared_containers))
def test_declared_values_come_back(codec: Codec, declared: tuple[Any, Any]) -> None:
    kind, value = declared

    assert_same(codec, value, kind)


@both
@given(value=natural)
def test_natural_values_come_back_undeclared(codec: Codec, value: Any) -> None:
    assert_same(codec, value, Any)
    assert_same(codec, value, type(value))


@both
@given(order=orders)
def test_encoding_is_deterministic_and_trusted_bytes_are_the_same(
    codec: JsonCodec | MsgpackCodec, order: Order
) -> None:
    order.levels = frozenset()

    assert codec.encode(order) == codec.encode(order) == codec.encode_trusted(order)


keys = st.one_of(
    int64, floats, text, st.booleans(), st.none(), st.binary(max_size=9), st.tuples(int64, text)
)


@given(st.dictionaries(keys, text, max_size=4))
def test_messagepack_keeps_keys_of_many_types(value: dict[Any, str]) -> None:
    assert_same(MSGPACK, value, dict)


@given(st.floats())
@example(math.nan)
@example(-math.inf)
def test_messagepack_keeps_every_float(value: float) -> None:
    assert_same(MSGPACK, value, Any)


@given(st.integers())
@example(2**64)
@example(-(2**63) - 1)
@example(10**4000)
def test_json_keeps_ints_of_any_size(value: int) -> None:
    assert_same(JSON, value, int)
    assert_same(JSON, value, Any)


@both
@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 10, 25, 2, 30, fold=0, tzinfo=PARIS),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=PARIS),
        datetime(2026, 3, 29, 2, 30, tzinfo=PARIS),
        datetime(2026, 7, 1, 12, 0, 0, 1, tzinfo=INDIA),
    ],
    ids=str,
)
def test_a_datetime_comes_back_as_the_same_instant(codec: Codec, value: datetime) -> None:
    back = codec.decode(codec.encode(value), datetime)

    assert back.astimezone(UTC) == value.astimezone(UTC)
    assert back.tzinfo is not None


def test_json_keeps_the_offset_and_messagepack_turns_it_into_utc() -> None:
    noon = datetime(2026, 7, 1, 12, tzinfo=INDIA)

    assert JSON.decode(JSON.encode(noon), datetime).utcoffset() == INDIA.utcoffset(None)
    assert MSGPACK.decode(MSGPACK.encode(noon)).tzinfo is UTC


@both
def test_an_int_is_at_home_in_a_float_field(codec: Codec) -> None:
    assert codec.decode(codec.encode(Parcel(3)), Parcel) == Parcel(3.0)
    with pytest.raises(CodecError, match="int would come back as float"):
        codec.encode(Parcel(2**53 + 1))


@both
def test_classes_without_equality_are_compared_by_their_fields(codec: Codec) -> None:
    assert_same(codec, ById(1.5), ById)
    assert_same(codec, Empty(), Empty)


# --- What must be refused ---


@both
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("\ud800", "str: it has a string with lone surrogates"),
        ({"\udfff": 1}, "dict: it has a string with lone surrogates"),
        (datetime(2026, 1, 1), "datetime as it is: datetime has no time zone"),  # noqa: DTZ001
        ([{"at": datetime(2026, 1, 1)}], "datetime has no time zone"),  # noqa: DTZ001
        (Loose(datetime(2026, 1, 1)), "Loose"),  # noqa: DTZ001
        (Point(1, datetime(2026, 1, 1)), "Point as it is: datetime has no time zone"),  # noqa: DTZ001
        (time(1, 2, tzinfo=PARIS), "time would come back changed"),
        (time(1, 2, tzinfo=AMSTERDAM_1900), "time would come back changed"),
        (Loose((1, 2)), "Loose as it is: tuple would come back as list"),
        (Loose([{"tags": {"a"}}]), "set would come back as list"),
        (Loose(date(2026, 1, 1)), "date would come back as str"),
        (Loose(Color.RED), "Color would come back as str"),
        (Loose(Level.LOW), "Level would come back as int"),
        (Loose(Loose()), "Loose would come back as dict"),
        (Loose(Decimal("1.0")), "Decimal would come back as str"),
        (Untyped((1,)), "tuple would come back as list"),
        (Untyped(Point(1, datetime(2026, 1, 1, tzinfo=UTC))), "Point would come back as list"),
        (Kennel(Puppy("Rex", date(2026, 1, 1), "Ada")), "Kennel: ValidationError"),
        (Shelf({Color.RED}), "Color would come back as str"),
        (Money(3), "int would come back as Decimal"),
        (Money(Decimal(1), "red"), "str would come back as Color"),
        (Node(1.5), r"Node: Expected `int \| str \| null`, got `float` - at `\$.value`"),
        (Node(value=True), "Expected `int"),
        (Hidden(7), "Hidden as it is: int would come back changed"),
        (Sloppy(1, Color.RED), "Color would come back as str"),
        ({Color.RED: 1}, "a key of type Color would come back as str"),
        ({UUID(int=1): 1}, "a key of type UUID would come back as str"),
        (Mixed.A, "Mixed: Enums must contain either all str or all int"),
        ([Mixed.A], "Mixed: Enums must contain"),
        (OrderedDict(a=1), "OrderedDict: Expected `collections.OrderedDict`, got `dict`"),
        ([defaultdict(int, a=1)], "defaultdict: Expected `collections.defaultdict`, got `dict`"),
        ({"n": Counter("a")}, "Expected `Counter`, got `dict`"),
        (type("Text", (str,), {})("a"), "Text: Encoding objects of type Text is unsupported"),
        (type("Number", (int,), {})(1), "Number: Encoding objects of type Number is unsupported"),
        ([object()], "list: Encoding objects of type object is unsupported"),
        (1j, "complex: Encoding objects"),
        (range(3), "range: Encoding objects"),
        (int, "type: Encoding objects"),
        (ValueError("secret"), "ValueError: Encoding objects"),
        (lambda: 1, "function: Encoding objects"),
    ],
)
def test_what_would_change_is_refused(codec: Codec, value: Any, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        codec.encode(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "JSON cannot hold this float: Expected `float`, got `null`"),
        (math.inf, "Expected `float`, got `null`"),
        ([1.0, -math.inf], "JSON cannot hold this float: Expected `float`, got `null`"),
        (Parcel(math.nan), r"Expected `float`, got `null` - at `\$.weight`"),
        (Loose(math.nan), "float would come back as NoneType"),
        ({"\u00e4": {"b": (math.nan,)}}, "Expected `float`, got `null`"),
        ({1: "a"}, "JSON would not keep this dict as it is: a key of type int would come back"),
        ({"rows": [{1.5: "a"}]}, "a key of type float would come back as str"),
        ({1: "a", "1": "b"}, "a key of type int"),
        ({b"k": 1}, "a key of type bytes"),
        ({date(2026, 1, 1): 1}, "a key of type date"),
        ({None: 1}, "Only dicts with str-like or number-like keys are supported"),
        ({(1, 2): 1}, "Only dicts with"),
        (Loose({1: "a"}), "int would come back as str"),
        (Loose(b"a"), "bytes would come back as str"),
        (datetime(1900, 1, 1, tzinfo=AMSTERDAM_1900), "datetime would come back changed"),
        (Loose(datetime(2026, 1, 1, tzinfo=UTC)), "datetime would come back as str"),
    ],
)
def test_what_json_would_change_is_refused(value: Any, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        JSON.encode(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2**64, "MessagePack cannot hold this int: can't serialize ints"),
        ([-(2**63) - 1], "list: can't serialize ints"),
        ({date(2026, 1, 1): 1}, "a key of type date would come back as str"),
        ({frozenset({1}): 1}, "a key of type frozenset would come back as tuple"),
        (datetime.min.replace(tzinfo=INDIA), "datetime: date value out of range"),
    ],
)
def test_what_messagepack_would_change_is_refused(value: Any, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        MSGPACK.encode(value)


wild = st.recursive(
    st.one_of(
        *LEAVES.values(),
        *CLASSES.values(),
        st.integers(),
        st.floats(),
        st.text(st.characters()),
        st.datetimes(timezones=st.none() | st.timezones()),
        st.times(timezones=st.none() | st.timezones()),
        st.decimals(allow_nan=True),
        st.complex_numbers(),
        st.sampled_from(Mixed),
    ),
    lambda inner: st.one_of(
        inner.map(Loose),
        st.builds(Node, inner),
        st.builds(Money, inner),
        st.builds(Parcel, inner),
        st.builds(Point, inner, inner),
        st.builds(ById, inner),
        st.lists(inner, max_size=3).map(Loose),
        st.dictionaries(keys, inner, max_size=3).map(Loose),
    ),
    max_leaves=5,
)


@both
@given(value=wild)
@example(Decimal("sNaN"))
@example(datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=PARIS))
def test_a_value_comes_back_as_its_own_type_or_is_refused(codec: Codec, value: Any) -> None:
    try:
        data = codec.encode(value)
    except CodecError:
        return

    kind = type(value)
    if kind not in {list, tuple, dict, set, frozenset}:
        back = codec.decode(data, kind)

        assert type(back) is kind
        assert normal(_floats_where_declared(back)) == normal(_floats_where_declared(value))


def _floats_where_declared(value: Any) -> Any:
    match value:
        case ById(number):
            return ById(float(number))
        case Parcel(weight=weight, codes=codes):
            return Parcel(float(weight), codes)
        case _:
            return value


@both
@given(value=st.dictionaries(keys, st.none(), max_size=4))
def test_a_bare_dict_keeps_its_keys_or_is_refused(codec: Codec, value: dict[Any, None]) -> None:
    try:
        data = codec.encode(value)
    except CodecError:
        return

    assert normal(codec.decode(data)) == normal(value)


@given(natural, st.sampled_from([Any, int, str, list, dict]))
@example(7, Any)
@example(0, int)
@example([], Any)
@example("", Any)
def test_what_one_codec_wrote_the_other_refuses(value: Any, kind: Any) -> None:
    for writer, reader in ((JSON, MSGPACK), (MSGPACK, JSON)):
        with pytest.raises(CodecError):
            reader.decode(writer.encode(value), kind)


# --- Decoding ---


@both
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, str), ("1", int), (1, bool), (True, int), (1.0, int), (None, str), ([1], list[str]),
        ({"a": 1}, list), ([1, 2], tuple[int]), ("red", Plain), ("maybe", Literal["on", "off"]),
        ({"type": "fox"}, Cat | Dog), ({"lives": 9}, Dog), ("x", UUID), ("1", date), (-1, bytes),
        (1, complex), (1, datetime | str | date), (1, Mixed), (1, "no such type"), (1, 5),
    ],
)  # fmt: skip
def test_another_type_than_was_written_is_refused(codec: Codec, value: Any, kind: Any) -> None:
    with pytest.raises(CodecError, match=f"cannot be read as {codec.name} of type"):
        codec.decode(codec.encode(value), kind)


@both
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("s3cret", Plain),
        ("s3cret", Literal["on"]),
        ({"type": "s3cret"}, Cat | Dog),
        ({"s3cret": "s3cret"}, dict[str, int]),
        ({"s3cret": {"s3cret": [1]}}, dict[str, dict[str, list[str]]]),
        ("s3cret", UUID),
        ("s3cret", Decimal),
    ],
)
def test_messages_never_quote_what_was_stored(codec: Codec, value: Any, kind: Any) -> None:
    with pytest.raises(CodecError) as caught:
        codec.decode(codec.encode(value), kind)

    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is not None


@both
@pytest.mark.parametrize(
    "words", ["Invalid UUID s3cret", "s3cret is malformed", "s3cret: Expected"]
)
def test_messages_never_quote_what_a_class_says_about_its_content(codec: Codec, words: str) -> None:
    class Picky(Struct):
        text: str

        def __post_init__(self) -> None:
            raise ValueError(words)

    with pytest.raises(CodecError, match=r"ValidationError$") as caught:
        codec.decode(codec.encode({"text": "s3cret"}), Picky)

    assert "s3cret" not in str(caught.value)


@both
def test_messages_never_quote_what_is_refused(codec: Codec) -> None:
    class Guarded(Struct):
        text: Any

        def __post_init__(self) -> None:
            if self.text != "s3cret":
                raise KeyError(self.text)

    guarded = Guarded("s3cret")
    guarded.text = "s4cret"
    for value in (guarded, Loose(("s4cret",)), {"s4cret\ud800": 1}, Point("s4cret", "s4cret")):
        with pytest.raises(CodecError) as caught:
            codec.encode(value)

        assert "s4cret" not in str(caught.value)


@both
def test_unhashable_types_are_decoded(codec: Codec) -> None:
    kind = Annotated[list[int], {"unit": "days"}]

    assert codec.decode(codec.encode([1, 2]), kind) == [1, 2]
    with pytest.raises(CodecError, match="Expected `int`"):
        codec.decode(codec.encode(["a"]), kind)


@both
def test_decoders_are_compiled_once_and_their_number_is_bounded(
    codec: JsonCodec | MsgpackCodec,
) -> None:
    first = codec._decoder(Order)
    assert codec._decoder(Order) is first

    for number in range(3000):
        codec.decode(codec.encode(number), Annotated[int, number])

    assert len(codec._decoders) <= 1024
    assert codec.decode(codec.encode(Cat(9)), Cat) == Cat(9)
