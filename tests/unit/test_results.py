from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sayiir_persist.errors import ResultsNotLoadedError
from sayiir_persist.results import Results, ResultsDelta

NODES = ("a", "b", "c", "d")
OUTPUTS = st.binary(max_size=2)
BASES = st.dictionaries(st.sampled_from(NODES), OUTPUTS)


class Step(tuple[str, int, str, bytes]):
    """What happens to which of the values that there are: add, drop or save."""

    __slots__ = ()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "drop", "save"]),
        st.integers(0, 200),
        st.sampled_from(NODES),
        OUTPUTS,
    ).map(Step),
    max_size=30,
)

CLONES = [
    pytest.param(lambda value: pickle.loads(pickle.dumps(value)), id="pickle"),  # noqa: S301
    pytest.param(copy.copy, id="copy"),
    pytest.param(copy.deepcopy, id="deepcopy"),
]


class CountingBase(Mapping[str, bytes]):
    """A base that counts how often it is walked through."""

    def __init__(self, size: int) -> None:
        self._entries = {f"old{n}": b"x" for n in range(size)}
        self.walks = 0

    def __getitem__(self, node_id: str) -> bytes:
        return self._entries[node_id]

    def __iter__(self) -> Any:
        self.walks += 1
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def applied(base: Mapping[str, bytes], delta: ResultsDelta) -> dict[str, bytes]:
    """The base after the delta was written to it."""
    kept = {node_id: output for node_id, output in base.items() if node_id not in delta.dropped}
    return {**kept, **delta.gained}


def found(results: Results, node_id: str) -> bytes | str:
    try:
        return results[node_id]
    except KeyError:
        return "none"
    except ResultsNotLoadedError:
        return "not loaded"


def test_results_are_a_mapping_in_the_order_of_recording() -> None:
    results = Results({"b": b"1"}).with_result("a", b"2").with_result("c", b"")

    assert list(results) == ["b", "a", "c"]
    assert dict(results.items()) == {"b": b"1", "a": b"2", "c": b""}
    assert len(results) == 3
    assert "a" in results
    assert results.get("z") is None


def test_empty_output_is_a_result() -> None:
    results = Results().with_result("a", b"")

    assert results["a"] == b""
    assert "a" in results
    assert results.delta().gained == {"a": b""}


def test_missing_result_is_a_key_error() -> None:
    results = Results({"a": b"1"})

    with pytest.raises(KeyError, match="z"):
        results["z"]


def test_results_do_not_alias_what_they_were_made_of() -> None:
    given_ = {"a": b"1"}
    results = Results(given_)

    given_["a"] = b"2"
    results.at_hand()["a"] = b"3"
    results.delta().gained["a"] = b"4"

    assert results["a"] == b"1"


def test_results_are_not_hashable() -> None:
    with pytest.raises(TypeError):
        hash(Results())


def test_results_equal_any_mapping_with_the_same_content() -> None:
    results = Results({"a": b"1"}).with_result("b", b"2")

    assert results == {"b": b"2", "a": b"1"}
    assert results == Results.stored({"a": b"1", "b": b"2"})
    assert results != {"a": b"1"}
    assert results != 7


def test_results_that_were_left_out_equal_none_that_are_there() -> None:
    partial = Results.stored(None)

    assert partial != Results()
    assert partial != {}
    assert partial == Results.stored(None)


def test_repr_never_shows_outputs() -> None:
    assert repr(Results({"a": b"secret"})) == "Results(<1>)"
    assert repr(Results.stored(None).with_result("a", b"secret")) == "Results(<not loaded>)"


@pytest.mark.parametrize(
    "look",
    [
        pytest.param(lambda results: results["z"], id="look-up"),
        pytest.param(lambda results: results.get("z"), id="get"),
        pytest.param(lambda results: "z" in results, id="in"),
        pytest.param(list, id="iteration"),
        pytest.param(len, id="len"),
        pytest.param(dict, id="dict"),
    ],
)
def test_results_that_were_left_out_never_claim_that_there_is_none(
    look: Callable[[Results], object],
) -> None:
    results = Results.stored(None).with_result("a", b"1")

    with pytest.raises(ResultsNotLoadedError):
        look(results)


def test_results_at_hand_are_found_though_the_others_were_left_out() -> None:
    results = Results.stored(None).with_result("a", b"1").with_result("b", b"2").without("b")

    assert not results.loaded
    assert results["a"] == b"1"
    assert results.at_hand() == {"a": b"1"}

    with pytest.raises(KeyError):
        results["b"]


def test_new_results_are_all_to_be_saved() -> None:
    assert Results({"a": b"1"}).delta() == ({"a": b"1"}, frozenset())


def test_loaded_results_have_nothing_to_save() -> None:
    results = Results.stored({"a": b"1"})

    assert results.loaded
    assert results.delta() == ({}, frozenset())


def test_delta_names_what_was_gained_and_dropped_since_the_load() -> None:
    loaded = Results.stored({"a": b"1", "b": b"2", "c": b"3"})

    changed = loaded.with_result("a", b"9").without("b").with_result("d", b"4")

    assert changed.delta() == ({"a": b"9", "d": b"4"}, {"b"})


def test_delta_holds_the_last_word_on_each_node() -> None:
    loaded = Results.stored({"a": b"1"})

    flipped = loaded.without("a").with_result("a", b"2").with_result("b", b"1").without("b")

    assert flipped.delta().gained == {"a": b"2"}
    assert applied({"a": b"1"}, flipped.delta()) == {"a": b"2"}


def test_saved_results_have_nothing_left_and_look_the_same() -> None:
    results = Results({"a": b"1"}).with_result("b", b"2")

    saved = results.saved()

    assert saved.delta() == ({}, frozenset())
    assert saved == results
    assert results.delta().gained == {"a": b"1", "b": b"2"}


def test_dropping_what_is_not_there_changes_nothing() -> None:
    results = Results.stored({"a": b"1"})

    assert results.without("z") is results


def test_dropping_where_nothing_was_loaded_is_saved_all_the_same() -> None:
    results = Results.stored(None).without("a")

    assert results.delta() == ({}, {"a"})


@pytest.mark.parametrize("clone", CLONES)
@pytest.mark.parametrize(
    "results",
    [
        Results({"a": b"1"}),
        Results.stored({"a": b"1"}),
        Results.stored({"a": b"1"}).with_result("a", b"2"),
        Results.stored({"a": b"1", "b": b"2"}).without("a").with_result("c", b"3"),
        Results.stored({"a": b"1"}).without("a"),
        Results({"a": b"1"}).saved().with_result("b", b"2"),
        Results.stored(None),
        Results.stored(None).with_result("a", b"1"),
        Results.stored(None).without("a").with_result("b", b"2"),
        Results.stored(None).with_result("a", b"1").saved(),
        Results.stored(None).without("a").saved(),
    ],
    ids=lambda results: f"{results!r}-{results.delta()}",
)
def test_copies_keep_what_is_there_and_what_is_to_be_saved(
    results: Results, clone: Callable[[Results], Results]
) -> None:
    twin = clone(results)

    assert twin == results
    assert twin.loaded == results.loaded
    assert twin.delta() == results.delta()
    assert [found(twin, node) for node in NODES] == [found(results, node) for node in NODES]


@given(BASES, STEPS)
def test_branching_histories_agree_with_plain_dicts(
    base: dict[str, bytes], steps: list[Step]
) -> None:
    """Every value ever made is compared at the end: what came later changed none of them."""
    made: list[tuple[Results, dict[str, bytes], dict[str, bytes]]] = [
        (Results.stored(base), dict(base), dict(base))
    ]

    for action, which, node_id, output in steps:
        results, model, saved = made[which % len(made)]

        if action == "add":
            made.append((results.with_result(node_id, output), {**model, node_id: output}, saved))
        elif action == "drop":
            left = {key: value for key, value in model.items() if key != node_id}
            made.append((results.without(node_id), left, saved))
        else:
            made.append((results.saved(), model, model))

    for results, model, saved in made:
        assert dict(results) == model
        assert len(results) == len(model)
        assert [found(results, node) for node in NODES] == [model.get(n, "none") for n in NODES]
        assert applied(saved, results.delta()) == model
        assert results.at_hand() == model


@given(STEPS)
def test_partial_histories_agree_with_a_model_of_what_is_known(steps: list[Step]) -> None:
    """A model value: the outputs at hand, and `None` for what is known to be gone."""
    empty: dict[str, bytes | None] = {}
    made = [(Results.stored(None), empty, empty)]

    for action, which, node_id, output in steps:
        results, known, unsaved = made[which % len(made)]

        if action == "add":
            new = results.with_result(node_id, output)
            made.append((new, {**known, node_id: output}, {**unsaved, node_id: output}))
        elif action == "drop":
            new = results.without(node_id)
            made.append((new, {**known, node_id: None}, {**unsaved, node_id: None}))
        else:
            made.append((results.saved(), known, empty))

    for results, known, unsaved in made:
        expected = {key: "none" if value is None else value for key, value in known.items()}
        assert [found(results, n) for n in NODES] == [expected.get(n, "not loaded") for n in NODES]
        assert results.delta().gained == {k: v for k, v in unsaved.items() if v is not None}
        assert results.delta().dropped == {k for k, v in unsaved.items() if v is None}


@given(BASES, STEPS)
def test_linear_histories_keep_the_order_of_first_recording(
    base: dict[str, bytes], steps: list[Step]
) -> None:
    results, model = Results.stored(base), dict(base)

    for _, _, node_id, output in steps:
        results, model = results.with_result(node_id, output), {**model, node_id: output}

    assert list(results) == list(model)


def test_linear_history_never_walks_through_its_base() -> None:
    base = CountingBase(1000)
    results = Results.stored(base)

    for number in range(5000):
        results = results.with_result(f"new{number}", b"x").saved()

    assert base.walks == 0
    assert len(results) == 6000


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Results]:
    """The values that had to be copied, as they come."""
    seen: list[Results] = []
    original = Results._copy

    def counting(self: Results) -> Results:
        seen.append(self)
        return original(self)

    monkeypatch.setattr(Results, "_copy", counting)
    return seen


def test_linear_history_never_copies_what_it_has(copies: list[Results]) -> None:
    results = Results()

    for number in range(5000):
        results = results.with_result(f"node{number}", b"x")

    assert copies == []


def test_forgetting_what_was_never_loaded_copies_seldom(copies: list[Results]) -> None:
    results = Results.stored(None)

    for number in range(5000):
        results = results.without(f"node{number}").saved()

    assert len(copies) < 10
    assert found(results, "node0") == "none"


def test_loop_over_few_nodes_keeps_its_memory_bounded(copies: list[Results]) -> None:
    results = Results.stored({"a": b"0"})
    longest = 0

    for number in range(5000):
        results = results.with_result("a", b"%d" % number).saved()
        longest = max(longest, len(results._ledger.order))

    assert dict(results) == {"a": b"4999"}
    assert longest < 100
    assert len(copies) < 100


def test_second_successor_copies_once_and_then_shares() -> None:
    base = CountingBase(10)
    results = Results.stored(base)
    first = results.with_result("a", b"1")

    second = results.with_result("a", b"2")
    walks = base.walks

    for number in range(100):
        second = second.with_result(f"n{number}", b"x")

    assert walks <= 2
    assert base.walks == walks
    assert first["a"] == b"1"
    assert second["a"] == b"2"


def test_delta_of_one_step_costs_the_step() -> None:
    base = CountingBase(1000)
    results = Results.stored(base)

    for number in range(100):
        results = results.with_result(f"new{number}", b"x")

    delta = results.saved().with_result("last", b"y").delta()

    assert delta == ({"last": b"y"}, frozenset())
    assert base.walks == 0
