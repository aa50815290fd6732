"""The tree of positions: its shape, its limits, its wiring and its stamps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from unit.workflows import T0, at, nodes, positions, shape, us

from sayiir_persist.errors import InvalidArgumentError
from sayiir_persist.positions import (
    INSTANCE_INPUT,
    MAX_DEPTH,
    MAX_NODES,
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    Leaf,
    Position,
    ReadyReason,
    check_tree,
    entered,
    leaves,
    map_open,
    replace_leaf,
    stamp,
    unstamped,
    wired,
)

WAKE = timedelta(seconds=1)


def fork(**branches: Position | None) -> AtFork:
    return AtFork("f", branches, next=AtTask("join"))


def chain(length: int) -> Position:
    position: Position = AtTask("n0")

    for number in range(1, length):
        position = AtDelay(f"n{number}", wake_after=WAKE, next=position)

    return position


def nest(depth: int) -> Position:
    position: Position = AtTask("n0")

    for number in range(1, depth):
        position = AtFork(f"n{number}", {"b": position})

    return position


def wide(count: int) -> Position:
    return AtFork("f", {f"b{n}": AtTask(f"t{n}") for n in range(count - 1)})


class TestConstruction:
    def test_delay_takes_a_duration_or_an_instant(self) -> None:
        assert AtDelay("d", wake_after=WAKE).wake_at is None
        assert AtDelay("d", wake_at=T0).wake_after is None

    @pytest.mark.parametrize("wakes", [{}, {"wake_after": WAKE, "wake_at": T0}])
    def test_delay_takes_exactly_one_of_them(self, wakes: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgumentError, match="exactly one of wake_after and wake_at"):
            AtDelay("d", **wakes)

    @pytest.mark.parametrize("wakes", [{}, {"wake_after": WAKE}, {"wake_at": T0}])
    def test_wait_takes_at_most_one_of_them(self, wakes: dict[str, Any]) -> None:
        assert AtSignal("s", "go", **wakes).next is None

    def test_wait_refuses_both(self) -> None:
        with pytest.raises(InvalidArgumentError, match="at most one of wake_after and wake_at"):
            AtSignal("s", "go", wake_after=WAKE, wake_at=T0)

    @pytest.mark.parametrize(
        ("wakes", "message"),
        [
            ({"wake_after": -us(1)}, "wake_after must not be negative"),
            ({"wake_after": 5}, "wake_after must be a timedelta"),
            ({"wake_at": datetime(2026, 1, 1)}, "wake_at must be zone-aware"),  # noqa: DTZ001
            ({"wake_at": "2026-01-01"}, "wake_at must be a datetime"),
        ],
    )
    def test_parks_refuse_a_wrong_duration_or_instant(
        self, wakes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidArgumentError, match=message):
            AtDelay("d", **wakes)

        with pytest.raises(InvalidArgumentError, match=message):
            AtSignal("s", "go", **wakes)

    @pytest.mark.parametrize("branches", [{}, [], None, "ab"])
    def test_fork_takes_a_mapping_of_at_least_one_branch(self, branches: Any) -> None:
        with pytest.raises(InvalidArgumentError, match="AtFork takes"):
            AtFork("f", branches)

    def test_every_position_has_a_node_id(self) -> None:
        tree = fork(a=AtTask("t"), b=AtNode("n"))

        assert [it.node_id for it in nodes(tree)] == ["f", "t", "n", "join"]

    def test_positions_compare_by_value_and_cannot_be_changed(self) -> None:
        left, right = AtDelay("d", wake_after=WAKE), AtDelay("d", wake_after=WAKE)

        assert left == right
        assert left != AtSignal("d", "go", wake_after=WAKE)

        with pytest.raises(AttributeError):
            left.node_id = "other"  # type: ignore[misc]


class TestEndsAt:
    @pytest.mark.parametrize(
        "park",
        [AtDelay("d", wake_after=WAKE), AtDelay("d", wake_at=at(9)), AtSignal("s", "go")],
    )
    def test_park_that_was_not_entered_has_no_end(self, park: AtDelay | AtSignal) -> None:
        assert park.ends_at is None

    @pytest.mark.parametrize(
        ("wakes", "ends_at"),
        [
            ({"wake_after": us(5)}, at(12)),
            ({"wake_after": us(0)}, at(7)),
            ({"wake_at": at(9)}, at(9)),
            ({"wake_at": at(7)}, at(7)),
            ({"wake_at": at(2)}, at(7)),
            ({"wake_after": timedelta.max}, datetime.max.replace(tzinfo=UTC)),
        ],
    )
    def test_end_counts_from_entering_and_is_never_before_it(
        self, wakes: dict[str, Any], ends_at: datetime
    ) -> None:
        assert AtDelay("d", **wakes, entered_at=at(7)).ends_at == ends_at
        assert AtSignal("s", "go", **wakes, entered_at=at(7)).ends_at == ends_at

    def test_wait_without_either_never_ends(self) -> None:
        assert AtSignal("s", "go", entered_at=T0).ends_at is None


class TestLeaves:
    def test_leaves_come_in_tree_order_without_what_follows(self) -> None:
        inner = AtFork("g", {"x": AtTask("t2"), "y": None, "z": AtNode("n")}, next=AtTask("j2"))
        tree = fork(
            a=AtTask("t1"), b=inner, c=AtDelay("d", wake_after=WAKE, next=AtTask("t3")), d=None
        )

        assert shape(tree) == ["t1", "t2", "n", "d"]

    def test_nowhere_has_no_leaves(self) -> None:
        assert list(leaves(None)) == []

    @given(positions())
    def test_unchanged_tree_is_the_same_object(self, tree: Position) -> None:
        assert map_open(tree, lambda leaf: leaf) is tree

    @given(positions())
    def test_map_changes_every_open_leaf_and_nothing_else(self, tree: Position) -> None:
        def rename(leaf: Leaf) -> Leaf:
            if isinstance(leaf, AtTask):
                return replace(leaf, task_id="x" + leaf.task_id)

            return replace(leaf, node_id="x" + leaf.node_id)

        mapped = map_open(tree, rename)

        open_before = set(shape(tree))
        expected = [f"x{it.node_id}" if it.node_id in open_before else it.node_id
                    for it in nodes(tree)]  # fmt: skip
        assert [it.node_id for it in nodes(mapped)] == expected


class TestStamps:
    def test_entering_stamps_parks_and_forks_but_not_what_follows(self) -> None:
        tree = fork(
            a=None,
            b=AtDelay("d", wake_after=WAKE, next=AtDelay("e", wake_after=WAKE)),
            c=AtSignal("s", "go"),
        )

        stamped = stamp(tree, at(3))

        assert isinstance(stamped, AtFork)
        assert stamped.joined_at == at(3)
        assert [getattr(leaf, "entered_at", None) for leaf in leaves(stamped)] == [at(3), at(3)]
        assert [it for it in nodes(stamped) if it.node_id == "e"] == [AtDelay("e", wake_after=WAKE)]

    def test_fork_without_a_done_branch_has_not_joined(self) -> None:
        stamped = stamp(fork(a=AtTask("t")), at(3))

        assert isinstance(stamped, AtFork)
        assert stamped.joined_at is None

    @given(positions(), st.integers(0, 50), st.integers(0, 50))
    def test_stamps_that_are_there_stay(self, tree: Position, first: int, second: int) -> None:
        once = stamp(tree, at(first))

        assert stamp(once, at(second)) is once

    @given(positions(), st.integers(0, 50))
    def test_unstamped_tree_reads_as_never_stored(self, tree: Position, instant: int) -> None:
        assert unstamped(stamp(tree, at(instant))) == tree

    def test_unstamped_task_has_neither_instant_reason_nor_mark(self) -> None:
        task = AtTask("t", priority=2, ready_at=T0, reason=ReadyReason.RETRY, done=True)

        assert unstamped(fork(a=task)) == fork(a=AtTask("t", priority=2))


class TestWiring:
    def test_task_gets_the_source_unless_it_names_one(self) -> None:
        assert wired(AtTask("t"), "a") == AtTask("t", input_from="a")
        assert wired(AtTask("t", input_from="b"), "a") == AtTask("t", input_from="b")
        assert wired(AtTask("t", input_from=INSTANCE_INPUT), "a").input_from == ""  # type: ignore[union-attr]

    def test_instance_input_is_a_source_like_any_other(self) -> None:
        assert wired(AtTask("t"), INSTANCE_INPUT) == AtTask("t", input_from=INSTANCE_INPUT)

    def test_without_a_source_nothing_is_wired(self) -> None:
        tree = AtDelay("d", wake_after=WAKE, next=AtTask("t"))

        assert wired(tree, None) is tree
        assert wired(None, "a") is None
        assert wired(AtNode("n"), "a") == AtNode("n")

    def test_delays_pass_the_source_on(self) -> None:
        tree = AtDelay("d", wake_after=WAKE, next=AtDelay("e", wake_after=WAKE, next=AtTask("t")))

        wires = {it.node_id: it.input_from for it in nodes(wired(tree, "a")) if _is_task(it)}

        assert wires == {"t": "a"}

    def test_after_a_wait_comes_its_event(self) -> None:
        tree = AtSignal("s", "go", next=AtDelay("d", wake_after=WAKE, next=AtTask("t")))

        wires = {it.node_id: it.input_from for it in nodes(wired(tree, "a")) if _is_task(it)}

        assert wires == {"t": "s"}

    def test_branches_get_the_source_and_the_join_none(self) -> None:
        tree = AtFork(
            "f",
            {
                "x": AtTask("t"),
                "y": AtSignal("s", "go", next=AtTask("u")),
                "z": AtFork("g", {"v": AtTask("w")}, next=AtTask("j2")),
            },
            next=AtTask("j"),
        )

        wires = {it.node_id: it.input_from for it in nodes(wired(tree, "a")) if _is_task(it)}

        assert wires == {"t": "a", "u": "s", "w": "a", "j2": None, "j": None}

    def test_wait_behind_a_fork_still_hands_on_its_event(self) -> None:
        tree = AtFork("f", {"x": AtTask("t")}, next=AtSignal("s", "go", next=AtTask("u")))

        wires = {it.node_id: it.input_from for it in nodes(wired(tree, "a")) if _is_task(it)}

        assert wires == {"t": "a", "u": "s"}

    def test_what_was_entered_was_wired_then(self) -> None:
        tree = fork(
            a=AtTask("t", ready_at=T0),
            b=AtDelay("d", wake_after=WAKE, entered_at=T0, next=AtTask("u")),
            c=AtSignal("s", "go", entered_at=T0, next=AtTask("v", input_from=None)),
        )

        assert wired(tree, "a") == tree

    @given(positions())
    def test_wiring_twice_is_wiring_once(self, tree: Position) -> None:
        once = wired(tree, "a")

        assert wired(once, "b") == once

    @given(positions(), st.sampled_from(["a", INSTANCE_INPUT]))
    def test_wiring_changes_inputs_only(self, tree: Position, source: str) -> None:
        new = wired(tree, source)

        def inputs_of(position: Position | None) -> list[Position]:
            return [
                replace(it, input_from=None) if isinstance(it, AtTask) else it.node_id  # type: ignore[misc]
                for it in nodes(position)
            ]

        assert inputs_of(new) == inputs_of(tree)


def _is_task(position: Position) -> bool:
    return isinstance(position, AtTask)


class TestEntered:
    def test_fork_without_open_branches_is_its_next(self) -> None:
        assert entered(fork(a=None, b=None)) == AtTask("join")
        assert entered(AtFork("f", {"a": None})) is None

    def test_emptied_fork_inside_a_branch_gives_way(self) -> None:
        inner = AtFork("g", {"x": None}, next=AtTask("after"))
        empty = AtFork("h", {"x": None})

        tree = entered(fork(a=inner, b=empty, c=AtTask("t")))

        assert tree == fork(a=AtTask("after"), b=None, c=AtTask("t"))

    def test_chain_of_emptied_forks_is_followed_to_its_end(self) -> None:
        last = AtFork("h", {"x": None}, next=AtTask("end"))

        tree = entered(AtFork("f", {"a": AtFork("g", {"x": None})}, next=last))

        assert tree == AtTask("end")

    @given(positions())
    def test_entered_tree_has_no_fork_without_open_branches(self, tree: Position) -> None:
        def closed_forks(position: Position | None) -> list[str]:
            if not isinstance(position, AtFork):
                return []

            inner = [it for branch in position.branches.values() for it in closed_forks(branch)]
            return inner if any(position.branches.values()) else [position.node_id, *inner]

        first = entered(tree)

        assert closed_forks(first) == []
        assert entered(first) is first


class TestReplaceLeaf:
    def test_leaf_at_the_root_gives_way(self) -> None:
        assert replace_leaf(AtTask("a"), "a", AtTask("b")) == AtTask("b")
        assert replace_leaf(AtTask("a"), "a", None) is None

    def test_unknown_leaf_changes_nothing(self) -> None:
        tree = fork(a=AtTask("t"))

        assert replace_leaf(tree, "elsewhere", None) is tree
        assert replace_leaf(tree, "join", None) is tree
        assert replace_leaf(tree, "f", None) is tree

    def test_branch_moves_on_alone(self) -> None:
        tree = replace_leaf(fork(a=AtTask("t"), b=AtTask("u")), "t", AtTask("t2"))

        assert tree == fork(a=AtTask("t2"), b=AtTask("u"))

    def test_ended_branch_waits_for_the_others(self) -> None:
        tree = replace_leaf(fork(a=AtTask("t"), b=AtTask("u")), "t", None)

        assert tree == fork(a=None, b=AtTask("u"))

    def test_last_branch_enters_what_follows_the_fork(self) -> None:
        tree = replace_leaf(fork(a=AtTask("t"), b=None), "t", None)

        assert tree == AtTask("join")

    def test_last_branch_of_all_ends_every_fork_around_it(self) -> None:
        inner = AtFork("g", {"x": AtTask("t")})

        assert replace_leaf(AtFork("f", {"a": inner, "b": None}), "t", None) is None

    def test_following_fork_without_open_branches_is_passed(self) -> None:
        tree = replace_leaf(AtTask("a"), "a", AtFork("g", {"x": None}, next=AtTask("b")))

        assert tree == AtTask("b")

    def test_end_at_a_known_instant_is_kept_as_the_latest(self) -> None:
        tree = AtFork("f", {"a": AtTask("t"), "b": None, "c": AtTask("u")}, joined_at=at(9))

        early = replace_leaf(tree, "t", None, ended_at=at(4))
        late = replace_leaf(tree, "t", None, ended_at=at(12))

        assert isinstance(early, AtFork)
        assert isinstance(late, AtFork)
        assert early.joined_at == at(9)
        assert late.joined_at == at(12)

    def test_end_by_the_write_itself_is_stamped_by_the_write(self) -> None:
        tree = AtFork("f", {"a": AtTask("t"), "b": None, "c": AtTask("u")}, joined_at=at(9))

        ended = replace_leaf(tree, "t", None)

        assert isinstance(ended, AtFork)
        assert ended.joined_at is None

    def test_join_is_entered_at_the_latest_end_of_its_branches(self) -> None:
        tree = AtFork("f", {"a": AtTask("t"), "b": None}, next=AtTask("join"), joined_at=at(9))
        seen: list[datetime | None] = []

        def enter(position: Position, instant: datetime | None) -> Position:
            seen.append(instant)
            return position

        replace_leaf(tree, "t", None, ended_at=at(4), enter=enter)

        assert seen == [at(9)]


class TestLimits:
    @pytest.mark.parametrize(
        "tree",
        [
            pytest.param(AtTask("x" * 256), id="id of 256 bytes"),
            pytest.param(AtTask("t", tags=tuple(f"t{n}" for n in range(64))), id="64 tags"),
            pytest.param(AtTask("t", priority=5, input_from=""), id="instance input"),
            pytest.param(AtSignal("s", "x" * 256), id="event name of 256 bytes"),
            pytest.param(AtFork("f", {"x" * 256: None}), id="branch id of 256 bytes"),
            pytest.param(chain(MAX_DEPTH), id="deep through nexts"),
            pytest.param(nest(MAX_DEPTH), id="deep through branches"),
            pytest.param(wide(MAX_NODES), id="wide"),
        ],
    )
    def test_tree_at_a_limit_passes(self, tree: Position) -> None:
        check_tree(tree)

    @pytest.mark.parametrize(
        ("tree", "message"),
        [
            (AtTask(""), "task_id must have 1 to 256 bytes"),
            (AtTask("x" * 257), "task_id must have 1 to 256 bytes"),
            (AtNode("x" * 257), "node_id must have 1 to 256 bytes"),
            (AtDelay("", wake_after=WAKE), "node_id must have 1 to 256 bytes"),
            (AtFork("x" * 257, {"a": None}), "node_id must have 1 to 256 bytes"),
            (AtFork("f", {"x" * 257: None}), "branch id must have 1 to 256 bytes"),
            (AtFork("f", {"": AtTask("t")}), "branch id must have 1 to 256 bytes"),
            (AtSignal("s", "x" * 257), "event name must have 1 to 256 bytes"),
            (AtTask("t", input_from="x" * 257), "input_from must have 1 to 256 bytes"),
            (AtTask("t", priority=0), "priority must be 1"),
            (AtTask("t", priority=6), "priority must be 1"),
            (AtTask("t", tags=tuple(f"t{n}" for n in range(65))), "tags may hold 64"),
            (AtTask("t", tags=("",)), "tag must have 1 to 256 bytes"),
            (chain(MAX_DEPTH + 1), "nest 128 deep"),
            (nest(MAX_DEPTH + 1), "nest 128 deep"),
            (wide(MAX_NODES + 1), "hold 10000 nodes"),
        ],
    )
    def test_tree_beyond_a_limit_is_refused_wherever_it_is(
        self, tree: Position, message: str
    ) -> None:
        with pytest.raises(InvalidArgumentError, match=message):
            check_tree(tree)

        with pytest.raises(InvalidArgumentError, match=message):
            check_tree(AtFork("outer", {"a": AtSignal("inner", "go", next=tree)}))

    @pytest.mark.parametrize(
        "tree",
        [
            AtDelay("a", wake_after=WAKE, next=AtTask("a")),
            AtSignal("a", "go", next=AtTask("a")),
            AtFork("a", {"x": AtTask("a")}),
            AtFork("f", {"x": AtTask("a"), "y": AtNode("a")}),
            AtFork("f", {"x": AtTask("a")}, next=AtTask("a")),
        ],
    )
    def test_node_id_stands_only_once_in_the_whole_tree(self, tree: Position) -> None:
        with pytest.raises(InvalidArgumentError, match="node id 'a' stands twice"):
            check_tree(tree)

    def test_branch_may_share_its_id_with_a_node_and_other_forks(self) -> None:
        check_tree(AtFork("a", {"a": AtFork("b", {"a": AtTask("c")})}))

    @pytest.mark.parametrize("stranger", ["task", 7, object()])
    def test_what_is_no_position_is_refused(self, stranger: Any) -> None:
        with pytest.raises(InvalidArgumentError, match=r"a position must be an At\.\.\., not"):
            check_tree(stranger)

        with pytest.raises(InvalidArgumentError, match=r"a position must be an At\.\.\., not"):
            check_tree(AtFork("f", {"a": stranger}))

    @given(positions())
    def test_every_well_made_tree_passes(self, tree: Position) -> None:
        check_tree(tree)
