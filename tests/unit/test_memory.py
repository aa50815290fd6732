"""The sorted keys by which the memory store finds everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sayiir_persist.adapters import memory
from sayiir_persist.adapters.memory import _SortedKeys


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=200), st.integers(-1, 41))
def test_sorted_keys_are_a_sorted_set_whatever_comes_and_goes(
    steps: list[tuple[bool, int]], pivot: int
) -> None:
    keys, model = _SortedKeys(), set[int]()

    for adds, key in steps:
        if not adds:
            keys.discard(key)
            model.discard(key)
        elif key not in model:
            keys.add(key)
            model.add(key)

    assert list(keys) == sorted(model)
    assert list(keys.after(pivot)) == [key for key in sorted(model) if key > pivot]
    assert list(keys.after(None)) == sorted(model)


def test_no_chunk_of_sorted_keys_outgrows_its_bound() -> None:
    keys = _SortedKeys()
    count = 20 * memory._CHUNK

    for key in range(count):
        keys.add(key * 7919 % count)

    assert list(keys) == list(range(count))
    assert max(map(len, keys._chunks)) <= 2 * memory._CHUNK


def test_sorted_keys_that_all_went_leave_nothing() -> None:
    keys = _SortedKeys()

    for key in range(2_000):
        keys.add(key)

    for key in range(2_000):
        keys.discard(key)

    assert list(keys) == []
    assert keys._chunks == []
