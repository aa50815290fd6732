"""The pure rules of readiness: `project` and `settle` tell the same story."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace
from unit.workflows import (
    T0,
    Write,
    at,
    dues,
    heads,
    lives,
    positions,
    recorded,
    run,
    shape,
    stored,
    us,
)

from sayiir_persist.dispatch import (
    AT_ONCE,
    NEVER,
    Entry,
    EntryKind,
    Heads,
    When,
    answered,
    elapsed_end,
    ended,
    first_met,
    fits,
    meets,
    order_key,
    project,
    settle,
)
from sayiir_persist.positions import (
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    Position,
    ReadyReason,
    leaves,
)
from sayiir_persist.snapshot import (
    Completed,
    RetryPolicy,
    Status,
    WorkflowSnapshot,
)
from sayiir_persist.validation import from_micros, to_micros

if TYPE_CHECKING:
    from collections.abc import Sequence

LAST = to_micros(datetime.max.replace(tzinfo=UTC))


def micros(offset: int) -> int:
    return to_micros(at(offset))


def delay(node_id: str, after: int, following: Position | None = None) -> AtDelay:
    return AtDelay(node_id, wake_after=us(after), next=following)


def wait(
    node_id: str, after: int | None = None, following: Position | None = None, name: str = "go"
) -> AtSignal:
    wakes = {} if after is None else {"wake_after": us(after)}
    return AtSignal(node_id, name, next=following, **wakes)


def fork(*branches: Position | None, following: Position | None = None) -> AtFork:
    return AtFork("f", dict(zip("abcdef", branches, strict=False)), next=following)


def only(snapshot: WorkflowSnapshot) -> Entry:
    [entry] = project(snapshot).entries
    return entry


def found_at(snapshot: WorkflowSnapshot, now: datetime) -> list[AtTask]:
    """The tasks that a reader sees ready for a worker at `now`."""
    return [
        task
        for task in snapshot.ready_tasks()
        if not task.done and task.ready_at is not None and task.ready_at <= now
    ]


class TestWhen:
    @pytest.mark.parametrize(
        ("when", "instant"),
        [
            (NEVER, None),
            (AT_ONCE, 100),
            (When(at=7), 7),
            (When(after=5), 105),
            (When(at=7, after=5), 105),
            (When(at=200, after=5), 200),
            (When(at=105, after=5), 105),
        ],
    )
    def test_the_later_part_counts(self, when: When, instant: int | None) -> None:
        assert when.resolve(100) == instant


class TestProjectTasks:
    def test_task_that_was_just_entered_is_due_at_the_write(self) -> None:
        assert only(run("a")) == Entry(
            node_id="a", kind=EntryKind.TASK, due=AT_ONCE, early=True, fresh=True, input_from=""
        )

    def test_task_that_was_there_keeps_its_instant(self) -> None:
        snapshot = stored(run("a"), at(3))

        entry = only(snapshot.count_iteration("loop"))

        assert entry.due == When(at=micros(3))
        assert not entry.fresh

    def test_task_carries_what_dispatch_needs(self) -> None:
        task = AtTask("a", priority=1, tags=("gpu",), input_from="x")

        entry = only(run(task))

        assert (entry.priority, entry.tags, entry.input_from) == (1, ("gpu",), "x")

    def test_unset_priority_and_tags_are_the_instances(self) -> None:
        entry = only(run("a", priority=5, tags=("eu",)))

        assert (entry.priority, entry.tags) == (5, ("eu",))

    def test_no_tags_of_its_own_are_not_the_instances(self) -> None:
        assert only(run(AtTask("a", tags=()), tags=("eu",))).tags == ()

    def test_retry_is_due_later_and_avoids_the_worker_of_the_failure(self) -> None:
        failed = run("a").record_failure("a", RetryPolicy(3, us(7)), error="no", worker_id="w1")

        entry = only(failed)

        assert entry.due == When(after=7)
        assert entry.reason is ReadyReason.RETRY
        assert entry.avoid == "w1"
        assert entry.early
        assert entry.fresh

    def test_retry_that_was_there_keeps_its_instant(self) -> None:
        failed = run("a").record_failure("a", RetryPolicy(3, us(7)), error="no", worker_id="w1")

        entry = only(stored(failed, at(3)))

        assert entry.due == When(at=micros(10))
        assert entry.reason is ReadyReason.RETRY
        assert entry.avoid == "w1"
        assert not entry.fresh

    def test_first_attempt_avoids_nobody(self) -> None:
        assert only(run("a")).avoid is None

    def test_task_recorded_is_an_entry_that_is_never_offered(self) -> None:
        entry = only(recorded(stored(run("a")), "a"))

        assert entry.done
        assert entry.kind is EntryKind.TASK

    @pytest.mark.parametrize("end", [lambda it: it.complete(b""), lambda it: it.cancel()])
    def test_what_has_ended_has_no_entries(self, end: Any) -> None:
        ended_run = end(run("a"))

        assert project(ended_run).entries == ()
        assert project(ended_run).status is ended_run.status
        assert not project(ended_run).idle

    def test_node_has_no_entry(self) -> None:
        assert project(run(AtNode("router"))).entries == ()

    def test_paused_instance_keeps_its_entries_under_its_status(self) -> None:
        projection = project(stored(run("a")).pause())

        assert projection.status is Status.PAUSED
        assert [entry.node_id for entry in projection.entries] == ["a"]

    def test_unpaused_task_is_ready_since_the_unpause(self) -> None:
        paused = stored(stored(run("a"), at(1)).pause(), at(5))

        assert only(paused).due.resolve(micros(9)) == micros(1)
        assert only(paused.unpause()).due.resolve(micros(9)) == micros(9)

    def test_parked_task_whose_delay_ended_while_paused_is_ready_since_the_unpause(self) -> None:
        paused = stored(stored(run(delay("d", 7, AtTask("a")))).pause(), at(5))

        resumed = stored(paused.unpause(), at(9))

        assert only(paused.unpause()).due.resolve(micros(9)) == micros(9)
        assert only(resumed).due == When(at=micros(9))


class TestProjectParks:
    def test_delay_before_a_task_is_that_task_from_its_end_on(self) -> None:
        entry = only(run(delay("d", 7, AtTask("a", priority=1, tags=("gpu",)))))

        assert entry == Entry(
            node_id="a",
            kind=EntryKind.TASK,
            due=When(after=7),
            early=False,
            fresh=True,
            reason=ReadyReason.DELAY_ELAPSED,
            priority=1,
            tags=("gpu",),
            input_from="",
            elapses=When(after=7),
        )

    def test_delays_of_a_chain_add_up(self) -> None:
        entry = only(run(delay("d", 7, delay("e", 5, delay("g", 0, AtTask("a"))))))

        assert (entry.node_id, entry.due) == ("a", When(after=12))
        assert entry.elapses == When(after=7)

    def test_instants_within_a_chain_hold_or_are_passed(self) -> None:
        tree = AtDelay("d", wake_at=at(10), next=delay("e", 5, AtTask("a")))
        entry = only(run(tree))

        assert entry.due.resolve(micros(0)) == micros(15)
        assert entry.due.resolve(micros(20)) == micros(25)

    def test_entered_delay_counts_from_its_entering(self) -> None:
        snapshot = stored(run(delay("d", 7, AtTask("a"))), at(3))

        entry = only(snapshot)

        assert entry.due == When(at=micros(10))
        assert not entry.fresh

    def test_wait_before_a_task_is_that_task_from_its_time_out_on(self) -> None:
        entry = only(run(wait("s", 7, AtTask("a"))))

        assert (entry.node_id, entry.kind, entry.due) == ("a", EntryKind.TASK, When(after=7))
        assert entry.reason is ReadyReason.SIGNAL_TIMEOUT
        assert (entry.event, entry.event_until) == ("go", When(after=7))
        assert entry.input_from == "s"

    def test_wait_that_ends_by_a_delay_is_due_after_both(self) -> None:
        entry = only(run(wait("s", 7, delay("d", 5, AtTask("a")))))

        assert (entry.due, entry.reason) == (When(after=12), ReadyReason.DELAY_ELAPSED)
        assert entry.event_until == When(after=7)

    def test_wait_without_an_end_is_never_due_by_itself(self) -> None:
        entry = only(run(wait("s", None, AtTask("a"))))

        assert (entry.kind, entry.due) == (EntryKind.ADVANCE, NEVER)
        assert (entry.event, entry.event_until) == ("go", NEVER)
        assert entry.due.resolve(0) is None

    @pytest.mark.parametrize(
        "following",
        [
            None,
            AtNode("router"),
            AtFork("g", {"x": AtTask("a")}),
            wait("w", 5, AtTask("a")),
        ],
        ids=["nothing", "node", "fork", "wait"],
    )
    @pytest.mark.parametrize("chained", [False, True])
    def test_park_that_leads_to_no_task_is_something_to_advance(
        self, following: Position | None, chained: bool
    ) -> None:
        tree = delay("d", 7, delay("e", 5, following) if chained else following)

        entry = only(run(tree))

        assert (entry.node_id, entry.kind) == ("d", EntryKind.ADVANCE)
        assert entry.due == When(after=12 if chained else 7)
        assert entry.event is None

    def test_retry_of_a_parked_task_is_not_before_its_backoff(self) -> None:
        failed = run("a").record_failure("a", RetryPolicy(3, us(20)), error="no", worker_id="w1")

        entry = only(failed.move_to(delay("d", 7, AtTask("a"))))

        assert entry.due == When(after=20)
        assert entry.avoid == "w1"
        assert not entry.early

    @pytest.mark.parametrize(
        "tree",
        [
            AtDelay("d", wake_after=timedelta.max, next=AtTask("a")),
            AtDelay("d", wake_after=timedelta.max),
            delay("e", 5, AtDelay("d", wake_after=timedelta.max, next=delay("g", 5, AtTask("a")))),
            AtSignal("s", "go", wake_after=timedelta.max, next=AtTask("a")),
            AtDelay("d", wake_at=datetime.max.replace(tzinfo=UTC), next=delay("e", 5, AtTask("a"))),
        ],
    )
    @pytest.mark.parametrize("entered", [False, True])
    def test_park_beyond_the_calendar_ends_with_it(self, tree: Position, entered: bool) -> None:
        snapshot = stored(run(tree)) if entered else run(tree)

        entry = only(snapshot)

        assert entry.due.resolve(micros(0)) == LAST
        assert (entry.event_until.resolve(micros(0)) or 0) <= LAST
        assert max(entry.due.at or 0, entry.due.after or 0) <= LAST

    def test_retry_beyond_the_calendar_ends_with_it(self) -> None:
        failed = run("a").record_failure("a", RetryPolicy(3, timedelta.max), error="no")

        assert only(failed).due.resolve(micros(0)) == LAST
        assert only(stored(failed)).due.resolve(micros(0)) == LAST
        assert (only(failed).due.after or 0) <= LAST


class TestProjectForks:
    def test_every_open_leaf_is_an_entry_in_tree_order(self) -> None:
        inner = AtFork("g", {"x": AtTask("b"), "y": delay("d", 5)}, next=AtTask("j"))
        tree = fork(wait("s", 5, AtTask("a")), inner, None, AtNode("n"), AtTask("c"))

        entries = project(run(tree)).entries

        assert [entry.node_id for entry in entries] == ["a", "b", "d", "c"]
        assert [entry.kind for entry in entries] == [
            EntryKind.TASK, EntryKind.TASK, EntryKind.ADVANCE, EntryKind.TASK,
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("tree", "idle"),
        [
            (AtTask("a"), False),
            (AtNode("n"), True),
            (fork(AtNode("n"), AtNode("m")), True),
            (fork(AtNode("n"), AtTask("a")), False),
            (fork(AtNode("n"), delay("d", 5)), False),
            (fork(AtNode("n"), wait("s")), False),
        ],
    )
    def test_idle_is_what_dispatch_can_never_offer_anything_of(
        self, tree: Position, idle: bool
    ) -> None:
        assert project(run(tree)).idle is idle
        assert project(run(tree).pause()).idle is False

    def test_idle_counts_tasks_recorded(self) -> None:
        snapshot = recorded(stored(run(fork(AtNode("n"), AtTask("a"), AtTask("b")))), "a")

        assert not project(snapshot).idle
        assert project(recorded(snapshot, "b")).idle


class TestSettle:
    @pytest.mark.parametrize("now", [0, 4, 5, 100])
    @pytest.mark.parametrize("tree", [AtTask("a"), AtNode("n"), fork(AtTask("a"), AtNode("n"))])
    def test_where_nothing_is_parked_time_changes_nothing(self, tree: Position, now: int) -> None:
        snapshot = stored(run(tree))

        assert settle(snapshot, at(now)) is snapshot

    def test_delay_gives_way_at_exactly_its_end(self) -> None:
        snapshot = stored(run(delay("d", 7, AtTask("a"))))

        assert settle(snapshot, at(6)) == snapshot
        assert settle(snapshot, at(7)).position == AtTask(
            "a", input_from="", ready_at=at(7), reason=ReadyReason.DELAY_ELAPSED
        )

    def test_it_does_not_matter_when_somebody_looks(self) -> None:
        snapshot = stored(run(delay("d", 7, delay("e", 5, AtTask("a")))))

        seen = {settle(snapshot, at(now)).ready_tasks()[0].ready_at for now in (12, 13, 1000)}

        assert seen == {at(12)}

    def test_next_delay_is_entered_at_the_end_of_the_one_before(self) -> None:
        snapshot = settle(stored(run(delay("d", 7, delay("e", 5, AtTask("a"))))), at(9))

        assert snapshot.position == AtDelay(
            "e", wake_after=us(5), next=AtTask("a", input_from=""), entered_at=at(7)
        )

    def test_wait_times_out_with_a_mark_and_an_empty_result(self) -> None:
        snapshot = settle(stored(run(wait("s", 7, AtTask("a")))), at(7))

        assert snapshot.results == {"s": b""}
        assert snapshot.results.delta().gained == {"s": b""}
        assert snapshot.timed_out == {"s"}
        assert snapshot.last_completed_task_id == "s"
        assert snapshot.position == AtTask(
            "a", input_from="s", ready_at=at(7), reason=ReadyReason.SIGNAL_TIMEOUT
        )

    def test_elapsed_delay_records_nothing(self) -> None:
        snapshot = settle(stored(run(delay("d", 7, AtTask("a")))), at(7))

        assert snapshot.results == {}
        assert snapshot.timed_out == frozenset()

    def test_wait_without_an_end_stays(self) -> None:
        snapshot = stored(run(wait("s", None, AtTask("a"))))

        assert settle(snapshot, datetime.max.replace(tzinfo=UTC)) == snapshot

    def test_wait_that_met_its_event_is_left_for_its_advance(self) -> None:
        snapshot = stored(run(wait("s", 7, AtTask("a"))))

        assert settle(snapshot, at(100), {"go": at(6)}) == snapshot
        assert settle(snapshot, at(100), {"stop": at(6)}) != snapshot
        assert settle(snapshot, at(100), {"go": at(7)}).timed_out == {"s"}

    def test_several_time_outs_are_recorded_in_the_order_of_their_instants(self) -> None:
        tree = fork(wait("late", 9, AtTask("a")), wait("early", 3, AtTask("b")), wait("mid", 5))

        snapshot = settle(stored(run(tree)), at(50))

        assert list(snapshot.results) == ["early", "mid", "late"]
        assert snapshot.last_completed_task_id == "late"

    def test_time_outs_at_one_instant_are_recorded_in_tree_order(self) -> None:
        tree = fork(wait("x", 5, AtTask("a")), wait("y", 5, AtTask("b")))

        assert list(settle(stored(run(tree)), at(50)).results) == ["x", "y"]

    @pytest.mark.parametrize(
        "tree",
        [
            delay("d", 7),
            wait("s", 7),
            fork(delay("d", 7)),
            fork(None, wait("s", 7)),
            delay("d", 7, AtFork("hollow", {"x": None})),
            wait("s", 7, AtFork("hollow", {"x": None})),
            fork(delay("d", 7, AtFork("hollow", {"x": None}))),
        ],
    )
    def test_what_would_end_the_workflow_stays_parked(self, tree: Position) -> None:
        snapshot = stored(run(tree))

        assert settle(snapshot, at(100)) == snapshot

    def test_all_but_the_last_branch_end_by_themselves(self) -> None:
        snapshot = settle(stored(run(fork(delay("d", 7), delay("e", 5), delay("g", 9)))), at(100))

        assert shape(snapshot.position) == ["g"]
        assert isinstance(snapshot.position, AtFork)
        assert snapshot.position.joined_at == at(7)

    def test_join_is_ready_at_the_latest_end_of_its_branches(self) -> None:
        tree = fork(delay("d", 7), delay("e", 5), following=AtTask("j"))

        snapshot = settle(stored(run(tree)), at(100))

        assert snapshot.ready_tasks()[0].ready_at == at(7)

    def test_join_counts_the_end_of_a_branch_that_was_written(self) -> None:
        tree = fork(AtTask("a"), delay("e", 5), following=AtTask("j"))
        early = stored(stored(run(tree)).complete_task("a", b"", next=None), at(3))
        late = stored(settle(stored(run(tree)), at(9)).complete_task("a", b"", next=None), at(9))

        assert settle(early, at(100)).ready_tasks()[0].ready_at == at(5)
        assert late.ready_tasks()[0].ready_at == at(9)

    def test_inner_join_hands_its_instant_to_the_outer_one(self) -> None:
        inner = AtFork("g", {"x": delay("d", 7), "y": delay("e", 3)})
        tree = fork(inner, delay("h", 5), following=AtTask("j"))

        snapshot = settle(stored(run(tree)), at(100))

        assert snapshot.ready_tasks()[0].ready_at == at(7)

    def test_fork_behind_a_delay_is_entered_whole(self) -> None:
        inner = AtFork("g", {"x": AtTask("a"), "y": delay("e", 3, AtTask("b")), "z": None})

        snapshot = settle(stored(run(delay("d", 7, inner))), at(8))

        assert snapshot.position == AtFork(
            "g",
            {
                "x": AtTask("a", input_from="", ready_at=at(7), reason=ReadyReason.DELAY_ELAPSED),
                "y": AtDelay(
                    "e", wake_after=us(3), next=AtTask("b", input_from=""), entered_at=at(7)
                ),
                "z": None,
            },
            joined_at=at(7),
        )

    def test_paused_time_does_not_pass(self) -> None:
        snapshot = stored(stored(run(delay("d", 7, AtTask("a")))).pause(), at(5))

        assert settle(snapshot, at(100)) == snapshot

    def test_what_elapsed_before_the_pause_shows_while_paused(self) -> None:
        snapshot = stored(stored(run(delay("d", 7, AtTask("a")))).pause(), at(9))

        assert settle(snapshot, at(100)).ready_tasks()[0].ready_at == at(7)

    def test_end_of_a_park_does_not_move_while_paused(self) -> None:
        paused = stored(stored(run(delay("d", 7, delay("e", 5, AtTask("a"))))).pause(), at(5))
        resumed = stored(settle(paused, at(20)).unpause(), at(20))

        [task] = settle(resumed, at(20)).ready_tasks()

        assert (task.reason, task.ready_at) == (ReadyReason.DELAY_ELAPSED, at(20))

    def test_backoff_of_a_parked_task_shows_as_its_instant(self) -> None:
        failed = run("a").record_failure("a", RetryPolicy(3, us(20)), error="no")
        snapshot = stored(failed.move_to(delay("d", 7, AtTask("a"))))

        [task] = settle(snapshot, at(30)).ready_tasks()

        assert (task.ready_at, task.reason) == (at(20), ReadyReason.DELAY_ELAPSED)
        assert only(snapshot).due == When(at=micros(20))

    @pytest.mark.parametrize("status", [Status.COMPLETED, Status.CANCELLED])
    def test_what_has_ended_stays(self, status: Status) -> None:
        snapshot = run(delay("d", 7))
        snapshot = snapshot.cancel() if status is Status.CANCELLED else snapshot.complete(b"")

        assert settle(stored(snapshot), at(100)).status is status


class TestMeetings:
    @pytest.mark.parametrize("entered", [False, True])
    @pytest.mark.parametrize(
        "park",
        [
            wait("s", 7, AtTask("a")),
            wait("s", 7),
            wait("s", 0, AtTask("a")),
            wait("s", 1),
            wait("s", None, AtTask("a")),
            AtSignal("s", "go", wake_at=at(7), next=delay("d", 3, AtTask("a"))),
            AtSignal("s", "go", wake_at=at(-3), next=AtTask("a")),
            AtSignal("s", "go", wake_after=timedelta.max),
        ],
    )
    def test_both_rules_agree_at_every_microsecond(self, park: AtSignal, entered: bool) -> None:
        """What `project` indexes decides in the store; what `meets` says decides when reading."""
        written = stored(run(park)) if entered else run(park)
        [entry] = project(written).entries
        [leaf] = leaves(stored(run(park)).position)
        assert isinstance(leaf, AtSignal)

        until = entry.event_until.resolve(micros(0))

        for arrival in range(-5, 15):
            in_time = until is None or micros(arrival) < until
            assert in_time == meets(leaf, {"go": at(arrival)}), arrival

    @given(lives(kinds=("signal", "task", "delay", "fork"), open_only=True))
    def test_both_rules_agree_on_every_wait_of_a_life(self, life: Write) -> None:
        by_name: dict[str, list[AtSignal]] = {}
        for leaf in leaves(stored(*life).position):
            if isinstance(leaf, AtSignal):
                by_name.setdefault(leaf.name, []).append(leaf)

        for name, waits in by_name.items():
            untils = [
                entry.event_until.resolve(to_micros(life.at))
                for entry in project(life.snapshot).entries
                if entry.event == name
            ]

            for arrival in range(-5, 100):
                in_time = [until is None or micros(arrival) < until for until in untils]
                assert in_time == [meets(leaf, {name: at(arrival)}) for leaf in waits]

    def test_event_that_was_there_when_the_wait_was_entered_counts(self) -> None:
        snapshot = stored(run(wait("s", 0, AtTask("a"))), at(5))
        [leaf] = leaves(snapshot.position)
        assert isinstance(leaf, AtSignal)

        assert meets(leaf, {"go": at(5)})
        assert not meets(leaf, {"go": at(6)})
        assert not meets(leaf, {})

    def test_wait_that_was_not_entered_meets_nothing(self) -> None:
        assert not meets(wait("s"), {"go": at(0)})

    def test_first_wait_in_tree_order_is_served(self) -> None:
        tree = fork(wait("x", name="stop"), wait("y"), wait("z"))
        snapshot = stored(run(tree))

        met = first_met(snapshot, {"go": at(1)})

        assert met is not None
        assert met.node_id == "y"
        assert first_met(snapshot, {}) is None
        assert first_met(snapshot, {"other": at(1)}) is None

    def test_answer_is_recorded_under_the_node_and_moves_on(self) -> None:
        snapshot = stored(run(wait("s", 9, AtTask("a"))))
        [leaf] = leaves(snapshot.position)
        assert isinstance(leaf, AtSignal)

        moved = answered(snapshot, leaf, b"yes", at(4))

        assert moved.results == {"s": b"yes"}
        assert moved.timed_out == frozenset()
        assert moved.position == AtTask(
            "a", input_from="s", ready_at=at(4), reason=ReadyReason.EVENT
        )

    def test_answer_that_was_there_before_counts_from_entering(self) -> None:
        snapshot = stored(run(wait("s", 9, delay("d", 5, AtTask("a")))), at(3))
        [leaf] = leaves(snapshot.position)
        assert isinstance(leaf, AtSignal)

        moved = answered(snapshot, leaf, b"yes", at(1))

        [park] = leaves(moved.position)
        assert isinstance(park, AtDelay)
        assert park.entered_at == at(3)

    @pytest.mark.parametrize(
        ("tree", "output"),
        [
            (wait("s"), b"yes"),
            (fork(wait("s")), b""),
            (fork(None, wait("s")), b""),
            (wait("s", None, AtFork("hollow", {"x": None})), b""),
            (fork(wait("s", None, AtFork("hollow", {"x": None}))), b""),
        ],
    )
    def test_last_answer_completes_the_workflow(self, tree: Position, output: bytes) -> None:
        snapshot = stored(run(tree))
        [leaf] = leaves(snapshot.position)
        assert isinstance(leaf, AtSignal)

        moved = answered(snapshot, leaf, b"yes", at(4))

        assert moved.state == Completed(output)
        assert moved.results == {"s": b"yes"}

    def test_answer_that_ends_a_branch_joins_when_it_arrived(self) -> None:
        snapshot = settle(stored(run(fork(wait("s"), delay("d", 2), following=AtTask("j")))), at(9))
        [leaf] = leaves(snapshot.position)
        assert isinstance(leaf, AtSignal)

        moved = answered(snapshot, leaf, b"yes", at(6))

        assert moved.position == AtTask("j", ready_at=at(6), reason=ReadyReason.EVENT)


class TestEnds:
    @pytest.mark.parametrize(
        ("tree", "node_id"),
        [
            (delay("d", 7), "d"),
            (wait("s", 7), "s"),
            (fork(None, delay("d", 7)), "d"),
            (fork(delay("e", 3), wait("s", 7)), "s"),
            (fork(AtFork("g", {"x": delay("d", 7)})), "d"),
            (delay("d", 7, AtFork("hollow", {"x": None})), "d"),
            (fork(None, wait("s", 7, AtFork("hollow", {"x": None}))), "s"),
        ],
    )
    def test_park_whose_end_completes_the_workflow_is_found_from_then_on(
        self, tree: Position, node_id: str
    ) -> None:
        snapshot = stored(run(tree))

        before = elapsed_end(settle(snapshot, at(6)), at(6))
        after = elapsed_end(settle(snapshot, at(7)), at(7))

        assert before is None
        assert after is not None
        assert after.node_id == node_id

    @pytest.mark.parametrize(
        "tree",
        [
            AtTask("a"),
            delay("d", 7, AtTask("a")),
            fork(delay("d", 7), AtTask("a")),
            fork(delay("d", 7), following=AtTask("j")),
            wait("s"),
        ],
    )
    def test_other_parks_end_nothing(self, tree: Position) -> None:
        assert elapsed_end(settle(stored(run(tree)), at(100)), at(100)) is None

    def test_what_has_ended_has_no_end_to_come(self) -> None:
        assert elapsed_end(run(delay("d", 7)).cancel(), at(100)) is None

    def test_delay_at_the_root_gives_what_was_recorded_under_its_node(self) -> None:
        snapshot = stored(run("a").record_result("d", b"kept").move_to(delay("d", 7)))
        [park] = leaves(snapshot.position)
        assert isinstance(park, AtDelay)

        assert ended(snapshot, park).state == Completed(b"kept")
        assert ended(snapshot.forget("d"), park).state == Completed(b"")

    def test_wait_that_timed_out_gives_nothing_and_a_mark(self) -> None:
        snapshot = stored(run(wait("s", 7)))
        [park] = leaves(snapshot.position)
        assert isinstance(park, AtSignal)

        finished = ended(snapshot, park)

        assert finished.state == Completed(b"")
        assert finished.timed_out == {"s"}
        assert finished.results == {"s": b""}

    def test_last_branch_of_a_fork_gives_nothing(self) -> None:
        snapshot = stored(run("a").record_result("d", b"kept").move_to(fork(delay("d", 7))))
        [park] = leaves(snapshot.position)
        assert isinstance(park, AtDelay)

        assert ended(snapshot, park).state == Completed(b"")


class TestOrder:
    @given(
        st.lists(st.tuples(st.integers(1, 5), st.integers(0, 10**17)), min_size=2),
        st.integers(10**6, 10**12),
        st.integers(0, 10**18),
    )
    def test_order_is_priority_less_age_whatever_the_time(
        self, entries: Sequence[tuple[int, int]], interval: int, now: int
    ) -> None:
        def effective(entry: tuple[int, int]) -> tuple[int, int]:
            priority, available_at = entry
            return priority * interval - (now - available_at), available_at

        by_key = sorted(entries, key=lambda it: order_key(*it, interval))

        assert by_key == sorted(entries, key=effective)

    def test_without_aging_priority_counts_first(self) -> None:
        entries = [(2, 0), (1, 10**15), (1, 5)]

        assert sorted(entries, key=lambda it: order_key(*it, None)) == [
            (1, 5), (1, 10**15), (2, 0),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("waited", "first"), [(1_999_999, "new"), (2_000_000, "old"), (2_000_001, "old")]
    )
    def test_age_lifts_a_task_past_the_next_priority(self, waited: int, first: str) -> None:
        keys = {"old": order_key(5, 0, 1_000_000), "new": order_key(3, waited, 1_000_000)}

        assert min(keys, key=keys.__getitem__) == first


class TestFits:
    @pytest.mark.parametrize(
        ("tags", "accepted", "expected"),
        [
            ((), (), True),
            ((), ("gpu",), True),
            (("gpu",), (), True),
            (("gpu",), ("gpu",), True),
            (("gpu",), ("eu", "gpu"), True),
            (("gpu", "eu"), ("eu", "gpu"), True),
            (("gpu", "gpu"), ("gpu",), True),
            (("gpu", "eu"), ("gpu",), False),
            (("gpu",), ("GPU",), False),
            (("gpu",), ("gp",), False),
        ],
    )
    def test_worker_takes_what_it_accepts_all_tags_of(
        self, tags: tuple[str, ...], accepted: tuple[str, ...], expected: bool
    ) -> None:
        assert fits(tags, frozenset(accepted)) is expected


INSTANTS = st.integers(0, 70)


class TestProperties:
    @given(lives(), INSTANTS)
    def test_what_is_due_in_the_index_is_what_a_reader_sees(
        self, life: Write, elapsed: int
    ) -> None:
        now = life.at + us(elapsed)
        entries = dues(*life)
        assume(life.snapshot.status is Status.IN_PROGRESS)
        advances = [due for entry, due in entries if entry.kind is EntryKind.ADVANCE]
        assume(not any(due is not None and due <= to_micros(now) for due in advances))

        view = settle(stored(*life), now)

        assert [
            (entry.node_id, due, entry.reason, entry.priority, entry.tags, entry.input_from)
            for entry, due in entries
            if entry.kind is EntryKind.TASK
            and not entry.done
            and due is not None
            and due <= to_micros(now)
        ] == [
            (
                task.task_id,
                to_micros(task.ready_at) if task.ready_at else None,
                task.reason,
                view.priority if task.priority is None else task.priority,
                view.tags if task.tags is None else task.tags,
                task.input_from,
            )
            for task in found_at(view, now)
        ]

    @given(lives(), INSTANTS, heads())
    def test_no_entry_is_due_before_a_reader_sees_its_task(
        self, life: Write, elapsed: int, queued: Heads
    ) -> None:
        """Whatever else has elapsed, or met its event: an offer is always in the ready set."""
        assume(life.snapshot.status is Status.IN_PROGRESS)
        now = life.at + us(elapsed)
        view = settle(stored(*life), now, queued)
        seen = {task.task_id: task for task in found_at(view, now)}

        for entry, due in dues(*life):
            if entry.kind is EntryKind.ADVANCE or entry.done or due is None:
                continue

            until = entry.event_until.resolve(to_micros(life.at))
            head = queued.get(entry.event) if entry.event else None
            met = head is not None and (until is None or to_micros(head) < until)
            offered = not met and due <= to_micros(now)

            assert offered == (entry.node_id in seen)

            if offered:
                assert seen[entry.node_id].ready_at == from_micros(due)
                assert seen[entry.node_id].reason == entry.reason

    @given(lives(), INSTANTS)
    def test_ready_set_of_a_paused_instance_is_that_of_the_pause(
        self, life: Write, elapsed: int
    ) -> None:
        assume(life.snapshot.status is Status.IN_PROGRESS)
        before = settle(stored(*life), life.at + us(3))
        paused = stored(before.pause(), life.at + us(3))

        later = settle(paused, life.at + us(3 + elapsed))

        assert later.ready_tasks() == before.ready_tasks()

    @given(positions(kinds=("delay", "signal", "task", "fork", "node")), INSTANTS)
    def test_entry_of_a_park_is_due_exactly_when_its_chain_of_delays_is_left(
        self, tree: Position, elapsed: int
    ) -> None:
        assume(isinstance(tree, AtDelay | AtSignal))
        snapshot, now = run(tree), at(elapsed)
        parks, target = _chain(tree)
        [(entry, due)] = dues(snapshot, T0)

        view = settle(stored(snapshot), now)

        left = view.position is not None and view.position.node_id not in parks
        ends = elapsed_end(view, now) is not None
        assert (due is not None and due <= to_micros(now)) == (left or ends)
        elapses = entry.elapses.resolve(to_micros(T0))
        moved = view.position is not None and view.position.node_id != tree.node_id
        assert (elapses is not None and elapses <= to_micros(now)) == (moved or ends)
        assert (entry.kind is EntryKind.TASK) == (isinstance(target, AtTask) and due is not None)

        if entry.kind is EntryKind.TASK:
            assert (shape(view.position) == [entry.node_id]) == left

    @given(lives(), INSTANTS)
    def test_nothing_ends_before_an_advance_is_due(self, life: Write, elapsed: int) -> None:
        assume(life.snapshot.status is Status.IN_PROGRESS)
        now = life.at + us(elapsed)
        advances = [due for entry, due in dues(*life) if entry.kind is EntryKind.ADVANCE]

        view = settle(stored(*life), now)

        if elapsed_end(view, now) is not None:
            assert any(due is not None and due <= to_micros(now) for due in advances)

    @given(lives(), INSTANTS, INSTANTS, heads())
    def test_settling_twice_is_settling_once(
        self, life: Write, first: int, second: int, queued: Heads
    ) -> None:
        snapshot = stored(*life)
        earlier, later = life.at + us(min(first, second)), life.at + us(max(first, second))

        in_steps = settle(settle(snapshot, earlier, queued), later, queued)
        at_once = settle(snapshot, later, queued)

        assert in_steps == at_once
        assert list(in_steps.results) == list(at_once.results)

    @given(lives(), INSTANTS, heads())
    def test_settling_never_ends_a_workflow_nor_changes_its_version(
        self, life: Write, elapsed: int, queued: Heads
    ) -> None:
        snapshot = stored(*life)

        view = settle(snapshot, life.at + us(elapsed), queued)

        assert view.status is snapshot.status
        assert view.version == snapshot.version
        assert view.timed_out >= snapshot.timed_out

    @given(lives(), INSTANTS, INSTANTS)
    def test_saving_what_was_read_moves_no_instant(
        self, life: Write, elapsed: int, lag: int
    ) -> None:
        """What was virtual becomes written, and dispatch finds it at the same instants."""
        assume(life.snapshot.status is Status.IN_PROGRESS)
        read_at = life.at + us(elapsed)
        written_at = read_at + us(lag)
        view = settle(stored(*life), read_at)

        saved = stored(view.count_iteration("loop"), written_at)

        assert saved.ready_tasks() == view.ready_tasks()
        assert [due for _, due in dues(view, written_at)] == [
            due for _, due in dues(saved, written_at)
        ]

    @given(lives())
    def test_index_of_a_write_is_that_of_what_is_read_back(self, life: Write) -> None:
        """Stamps change how an instant is written down, never the instant."""
        ours = dues(*life)
        theirs = dues(stored(*life), life.at)

        def essence(entries: list[tuple[Entry, int | None]]) -> list[tuple[Entry, object]]:
            now = to_micros(life.at)
            return [
                (
                    replace(entry, due=NEVER, event_until=NEVER, elapses=NEVER, fresh=False),
                    (due, entry.event_until.resolve(now), entry.elapses.resolve(now)),
                )
                for entry, due in entries
            ]

        assert essence(ours) == essence(theirs)
        assert not any(entry.fresh for entry, _ in theirs)

    @given(lives())
    def test_index_tells_whether_time_has_moved_anything(self, life: Write) -> None:
        """A store that sees no entry elapsed may write beside the body as it is."""
        read_back = stored(*life)
        horizon = to_micros(life.at)
        if read_back.status is Status.PAUSED and read_back.status_since is not None:
            horizon = to_micros(read_back.status_since)

        view = settle(read_back, life.at)

        instants = [entry.elapses.resolve(horizon) for entry in project(read_back).entries]
        elapsed = any(instant is not None and instant <= horizon for instant in instants)
        assert elapsed == (view != read_back or elapsed_end(view, from_micros(horizon)) is not None)

    @given(lives())
    def test_there_is_one_entry_for_each_leaf_but_nodes(self, life: Write) -> None:
        open_leaves = [leaf for leaf in leaves(life.snapshot.position)
                       if not isinstance(leaf, AtNode)]  # fmt: skip

        assert len(project(life.snapshot).entries) == len(open_leaves)

    @given(lives())
    def test_instants_stay_within_what_every_store_can_hold(self, life: Write) -> None:
        for entry, due in dues(*life):
            assert due is None or 0 <= due < 2**63
            assert 1 <= entry.priority <= 5


def _chain(tree: Position) -> tuple[set[str], Position | None]:
    """The ids of a park and of the delays right behind it, and what follows those."""
    node_ids = {tree.node_id}
    following = tree.next if isinstance(tree, AtDelay | AtSignal) else None

    while isinstance(following, AtDelay):
        node_ids.add(following.node_id)
        following = following.next

    return node_ids, following
