"""The status machine, transitions, retries and stamps of a snapshot."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from unit.workflows import (
    T0,
    Write,
    at,
    lives,
    nodes,
    positions,
    recorded,
    run,
    shape,
    stored,
    us,
    without_history,
)

from sayiir_persist.dispatch import settle
from sayiir_persist.errors import (
    CannotCancelError,
    CannotPauseError,
    InvalidArgumentError,
    InvalidTransitionError,
    TerminalStateError,
)
from sayiir_persist.positions import (
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    Position,
    ReadyReason,
    check_tree,
)
from sayiir_persist.results import Results
from sayiir_persist.signals import SignalRequest
from sayiir_persist.snapshot import (
    Cancelled,
    Completed,
    Failed,
    InProgress,
    Paused,
    RetryPolicy,
    RetryState,
    Status,
    WorkflowSnapshot,
    check_snapshot,
    marked_done,
    never_stored,
    stamped,
)

SECOND = timedelta(seconds=1)
POLICY = RetryPolicy(2, SECOND)
REQUEST = SignalRequest(reason="changed my mind", requested_by="support")

Transition = Callable[[WorkflowSnapshot], WorkflowSnapshot]

TRANSITIONS: dict[str, Transition] = {
    "record_result": lambda it: it.record_result("a", b"x"),
    "complete_task": lambda it: it.complete_task("a", b"x", next=AtTask("b")),
    "move_to": lambda it: it.move_to(AtTask("b")),
    "record_failure": lambda it: it.record_failure("a", POLICY, error="no"),
    "complete": lambda it: it.complete(b"end"),
    "fail": lambda it: it.fail("boom"),
    "cancel": lambda it: it.cancel(REQUEST),
    "pause": lambda it: it.pause(REQUEST),
    "unpause": lambda it: it.unpause(),
    "forget": lambda it: it.forget("a"),
    "count_iteration": lambda it: it.count_iteration("loop"),
    "with_deadline": lambda it: it.with_deadline(T0),
}

STATES: dict[Status, WorkflowSnapshot] = {
    Status.IN_PROGRESS: run("a"),
    Status.PAUSED: run("a").pause(),
    Status.COMPLETED: run("a").complete(b"end"),
    Status.FAILED: run("a").fail("boom"),
    Status.CANCELLED: run("a").cancel(),
}

STAYS = {
    "record_result", "complete_task", "move_to", "record_failure",
    "forget", "count_iteration", "with_deadline",
}  # fmt: skip
ENDS = {"complete": Status.COMPLETED, "fail": Status.FAILED, "cancel": Status.CANCELLED}


def expected(status: Status, transition: str) -> Status | type[InvalidTransitionError]:
    """The status machine, row by row."""
    if status.is_terminal:
        refusals = {
            "cancel": CannotCancelError,
            "pause": CannotPauseError,
            "unpause": CannotPauseError,
        }
        return refusals.get(transition, TerminalStateError)

    if transition in STAYS:
        return status

    if transition in ENDS:
        return ENDS[transition]

    wanted = Status.IN_PROGRESS if transition == "pause" else Status.PAUSED
    after = Status.PAUSED if transition == "pause" else Status.IN_PROGRESS
    return after if status is wanted else CannotPauseError


class TestStatusMachine:
    @pytest.mark.parametrize("status", Status)
    @pytest.mark.parametrize("transition", TRANSITIONS)
    def test_transition_leads_where_the_table_says(self, status: Status, transition: str) -> None:
        before = STATES[status]
        outcome = expected(status, transition)

        if isinstance(outcome, Status):
            assert TRANSITIONS[transition](before).status is outcome
            return

        with pytest.raises(outcome) as caught:
            TRANSITIONS[transition](before)

        assert type(caught.value) is outcome
        assert caught.value.instance_id == "run"
        assert caught.value.status is status  # type: ignore[attr-defined]

    def test_only_three_statuses_are_terminal(self) -> None:
        terminal = {status for status in Status if status.is_terminal}

        assert terminal == {Status.COMPLETED, Status.FAILED, Status.CANCELLED}

    @pytest.mark.parametrize("status", Status)
    def test_only_an_open_snapshot_has_a_position(self, status: Status) -> None:
        snapshot = STATES[status]

        assert snapshot.status is status
        assert (snapshot.position is None) == status.is_terminal
        assert bool(snapshot.ready_tasks()) != status.is_terminal

    @pytest.mark.parametrize("end", [Status.COMPLETED, Status.FAILED])
    def test_ending_clears_deadline_retries_and_loops_and_keeps_results(self, end: Status) -> None:
        busy = _busy()

        ended = busy.complete(b"end") if end is Status.COMPLETED else busy.fail("boom")

        assert (ended.deadline, dict(ended.retries), dict(ended.loop_iterations)) == (None, {}, {})
        assert ended.results == busy.results
        assert ended.timed_out == busy.timed_out
        assert ended.last_completed_task_id == busy.last_completed_task_id
        assert ended.status_since is None

    @pytest.mark.parametrize("paused", [False, True])
    def test_cancelling_clears_the_deadline_only(self, paused: bool) -> None:
        busy = _busy().pause().with_deadline(T0) if paused else _busy()

        cancelled = busy.cancel(REQUEST, interrupted_at_task="a")

        assert cancelled.state == Cancelled(
            reason="changed my mind", requested_by="support", interrupted_at_task="a"
        )
        assert cancelled.deadline is None
        assert cancelled.results == busy.results
        assert cancelled.retries == busy.retries
        assert cancelled.loop_iterations == busy.loop_iterations

    def test_cancelling_needs_no_request(self) -> None:
        assert run("a").cancel().state == Cancelled()

    def test_pause_keeps_everything_but_the_deadline(self) -> None:
        busy = _busy()

        paused = busy.pause(REQUEST)

        assert busy.position is not None
        assert paused.state == Paused(
            busy.position, reason="changed my mind", requested_by="support"
        )
        assert replace(paused, state=busy.state, deadline=T0, status_since=T0) == busy

    def test_paused_snapshot_moves_on_and_stays_paused_with_its_reason(self) -> None:
        paused = run(AtFork("f", {"x": AtTask("a"), "y": AtTask("b")})).pause(REQUEST)

        moved = paused.complete_task("a", b"1", next=AtTask("c"))

        assert isinstance(moved.state, Paused)
        assert moved.state.reason == "changed my mind"
        assert shape(moved.position) == ["c", "b"]

    def test_paused_snapshot_ends_when_its_last_task_completes(self) -> None:
        assert run("a").pause().complete_task("a", b"1", next=None).state == Completed(b"1")

    def test_a_status_that_is_new_has_no_instant_yet(self) -> None:
        snapshot = stored(run("a"))

        assert snapshot.status_since == T0
        assert snapshot.pause().status_since is None
        assert stored(snapshot.pause()).unpause().status_since is None
        assert snapshot.complete(b"").status_since is None
        assert snapshot.complete_task("a", b"", next=AtTask("b")).status_since == T0

    @given(lives())
    def test_what_has_ended_is_final(self, life: Write) -> None:
        ended = life.snapshot

        if not ended.status.is_terminal:
            ended = ended.cancel()

        for name, transition in TRANSITIONS.items():
            with pytest.raises(InvalidTransitionError) as caught:
                transition(ended)

            assert type(caught.value) is expected(ended.status, name)

    @given(lives(open_only=True))
    def test_unpause_is_the_inverse_of_pause(self, life: Write) -> None:
        snapshot = life.snapshot

        if snapshot.status is Status.PAUSED:
            snapshot = snapshot.unpause()

        paused = snapshot.pause(REQUEST)

        assert paused.unpause() == replace(snapshot, deadline=None, status_since=None)
        assert paused.unpause().pause(REQUEST) == paused

    @given(lives())
    def test_transitions_leave_the_old_value_as_it_was(self, life: Write) -> None:
        snapshot = life.snapshot
        before = pickle.dumps(snapshot)

        for transition in TRANSITIONS.values():
            try:
                transition(snapshot)
            except InvalidTransitionError:
                continue

        assert pickle.loads(before) == snapshot  # noqa: S301


def _busy() -> WorkflowSnapshot:
    snapshot = run("zero").complete_task("zero", b"0", next=AtTask("a"))
    snapshot = snapshot.record_failure("a", POLICY, error="no").count_iteration("loop")
    return replace(snapshot, timed_out=frozenset({"s"}), deadline=T0, status_since=T0)


class TestStart:
    def test_a_string_is_a_task_that_gets_the_instance_input(self) -> None:
        snapshot = WorkflowSnapshot.start(
            "run", "v1", start_at="a", input=b"in", priority=1, tags=["gpu"], trace_parent="00-x"
        )

        assert snapshot.state == InProgress(AtTask("a", input_from=""))
        assert (snapshot.input, snapshot.priority, snapshot.tags) == (b"in", 1, ("gpu",))
        assert snapshot.trace_parent == "00-x"
        assert (snapshot.version, snapshot.incarnation) == (0, "")
        assert snapshot.results == {}
        assert snapshot.results.loaded

    def test_stamps_of_an_old_position_are_stripped(self) -> None:
        old = stored(run(AtFork("f", {"x": None, "y": AtTask("a"), "z": AtSignal("s", "go")})))
        assert old.position is not None

        assert (
            run(old.position).position
            == run(AtFork("f", {"x": None, "y": AtTask("a"), "z": AtSignal("s", "go")})).position
        )

    def test_start_wires_the_instance_input_but_not_behind_waits_and_forks(self) -> None:
        tree = AtFork(
            "f",
            {"x": AtDelay("d", wake_after=SECOND, next=AtTask("a")),
             "y": AtSignal("s", "go", next=AtTask("b"))},
            next=AtTask("j"),
        )  # fmt: skip

        assert wires(run(tree)) == {"a": "", "b": "s", "j": None}

    def test_fork_without_open_branches_starts_behind_it(self) -> None:
        assert run(AtFork("f", {"x": None}, next=AtTask("j"))).position == AtTask("j")
        assert run(AtFork("f", {"x": None})).state == Completed(b"")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"instance_id": ""}, "instance_id must have 1 to 256"),
            ({"instance_id": "x" * 257}, "instance_id must have 1 to 256"),
            ({"definition_hash": "x" * 257}, "definition_hash must have 1 to 256"),
            ({"start_at": ""}, "task_id must have 1 to 256"),
            ({"priority": 0}, "priority must be 1"),
            ({"priority": 6}, "priority must be 1"),
            ({"tags": [f"t{n}" for n in range(65)]}, "tags may hold 64"),
            ({"tags": "gpu"}, "tags must be a sequence"),
            ({"trace_parent": "x" * 4097}, "trace_parent may have 4096 bytes"),
            ({"start_at": 7}, "a position must be"),
        ],
    )
    def test_argument_beyond_its_limit_is_refused_by_name(
        self, fields: dict[str, Any], message: str
    ) -> None:
        arguments = {"instance_id": "run", "definition_hash": "v1", "start_at": "a", **fields}

        with pytest.raises(InvalidArgumentError, match=message):
            WorkflowSnapshot.start(
                arguments.pop("instance_id"), arguments.pop("definition_hash"), **arguments
            )

    def test_arguments_at_their_limits_pass(self) -> None:
        WorkflowSnapshot.start(
            "x" * 256, "y" * 256, start_at="z" * 256, priority=5, trace_parent="t" * 4096,
            tags=[f"t{n}" for n in range(64)],
        )  # fmt: skip


def wires(snapshot: WorkflowSnapshot) -> dict[str, str | None]:
    """What every task of the tree gets as its input."""
    return {it.task_id: it.input_from for it in nodes(snapshot.position) if isinstance(it, AtTask)}


class TestCompleteTask:
    def test_result_is_recorded_and_next_takes_the_place(self) -> None:
        snapshot = run("a").complete_task("a", b"1", next=AtTask("b"))

        assert snapshot.state == InProgress(AtTask("b", input_from="a"))
        assert snapshot.results == {"a": b"1"}
        assert snapshot.last_completed_task_id == "a"

    def test_at_the_root_the_workflow_completes_with_the_output(self) -> None:
        snapshot = run("a").complete_task("a", b"1", next=None)

        assert snapshot.state == Completed(b"1")
        assert snapshot.results == {"a": b"1"}

    def test_retries_of_the_task_are_cleared_and_those_of_others_stay(self) -> None:
        tree = AtFork("f", {"x": AtTask("a"), "y": AtTask("b")})
        failed = run(tree)
        failed = failed.record_failure("a", POLICY, error="no")
        failed = failed.record_failure("b", POLICY, error="no")

        completed = failed.complete_task("a", b"1", next=None)

        assert set(completed.retries) == {"b"}

    def test_only_the_branch_moves(self) -> None:
        tree = AtFork("f", {"x": AtTask("a"), "y": AtTask("b")}, next=AtTask("j"))

        snapshot = run(tree).complete_task("a", b"1", next=AtTask("a2"))

        assert shape(snapshot.position) == ["a2", "b"]
        assert wires(snapshot) == {"a2": "a", "b": "", "j": None}

    def test_last_branch_makes_the_join_ready_without_an_input(self) -> None:
        tree = AtFork("f", {"x": AtTask("a"), "y": AtTask("b")}, next=AtTask("j"))

        snapshot = run(tree).complete_task("a", b"1", next=None).complete_task("b", b"2", next=None)

        assert snapshot.position == AtTask("j")
        assert snapshot.results == {"a": b"1", "b": b"2"}

    def test_join_that_names_its_input_keeps_it(self) -> None:
        tree = AtFork("f", {"x": AtTask("a")}, next=AtTask("j", input_from="a"))

        snapshot = run(tree).complete_task("a", b"1", next=None)

        assert snapshot.position == AtTask("j", input_from="a")

    def test_last_branch_without_a_join_completes_with_nothing(self) -> None:
        tree = AtFork("f", {"x": AtTask("a")})

        assert run(tree).complete_task("a", b"1", next=None).state == Completed(b"")

    def test_next_that_opens_nothing_completes_with_nothing(self) -> None:
        snapshot = run("a").complete_task("a", b"1", next=AtFork("f", {"x": None}))

        assert snapshot.state == Completed(b"")

    def test_stamps_of_next_are_stripped_for_it_is_entered_anew(self) -> None:
        old = AtTask("b", ready_at=T0, reason=ReadyReason.RETRY, done=True)

        snapshot = run("a").complete_task("a", b"1", next=old)

        assert snapshot.position == AtTask("b", input_from="a")

    def test_stamps_of_other_branches_stay(self) -> None:
        tree = AtFork("f", {"x": AtTask("a"), "y": AtTask("b"), "z": AtSignal("s", "go")})
        snapshot = stored(run(tree))

        moved = snapshot.complete_task("a", b"1", next=None)

        assert isinstance(moved.position, AtFork)
        assert moved.position.branches["y"] == AtTask(
            "b", input_from="", ready_at=T0, reason=ReadyReason.TASK
        )
        assert moved.position.branches["z"] == AtSignal("s", "go", entered_at=T0)

    def test_task_may_follow_itself(self) -> None:
        snapshot = stored(run("a")).complete_task("a", b"1", next=AtTask("a"))

        assert snapshot.position == AtTask("a", input_from="a")

    def test_chain_of_parks_keeps_the_result_until_a_wait(self) -> None:
        following = AtDelay(
            "d", wake_after=SECOND,
            next=AtDelay("e", wake_after=SECOND, next=AtSignal("s", "go", next=AtTask("b"))),
        )  # fmt: skip
        straight = AtDelay("d", wake_after=SECOND, next=AtDelay("e", wake_at=T0, next=AtTask("b")))

        assert wires(run("a").complete_task("a", b"1", next=following)) == {"b": "s"}
        assert wires(run("a").complete_task("a", b"1", next=straight)) == {"b": "a"}

    def test_fork_within_a_branch_joins_inside_it(self) -> None:
        inner = AtFork("g", {"p": AtTask("a"), "q": AtTask("b")}, next=AtTask("ij"))
        tree = AtFork("f", {"x": inner, "y": AtTask("c")}, next=AtTask("oj"))
        snapshot = run(tree)

        shapes = []
        for task_id in ("a", "c", "b", "ij"):
            snapshot = snapshot.complete_task(task_id, b"1", next=None)
            shapes.append(shape(snapshot.position))

        assert shapes == [["b", "c"], ["b"], ["ij"], ["oj"]]

    @pytest.mark.parametrize("order", list(permutations("abc")))
    def test_order_in_which_branches_finish_does_not_change_the_join(
        self, order: tuple[str, ...]
    ) -> None:
        inner = AtFork("g", {"p": AtTask("b"), "q": AtTask("c")})
        snapshot = run(AtFork("f", {"x": AtTask("a"), "y": inner}, next=AtTask("j")))

        for task_id in order:
            snapshot = snapshot.complete_task(task_id, task_id.encode(), next=None)

        assert snapshot.position == AtTask("j")
        assert snapshot.results == {"a": b"a", "b": b"b", "c": b"c"}

    @pytest.mark.parametrize("task_id", ["elsewhere", "d", "s", "n", "f", "behind", "join", ""])
    def test_task_that_is_not_ready_is_refused(self, task_id: str) -> None:
        branches = {
            "w": AtTask("a"), "x": AtDelay("d", wake_after=SECOND, next=AtTask("behind")),
            "y": AtSignal("s", "go"), "z": AtNode("n"),
        }  # fmt: skip
        snapshot = run(AtFork("f", branches, next=AtTask("join")))

        with pytest.raises(InvalidTransitionError, match="is not ready"):
            snapshot.complete_task(task_id, b"", next=None)

        with pytest.raises(InvalidTransitionError, match="is not ready"):
            snapshot.record_failure(task_id, POLICY, error="no")

    @pytest.mark.parametrize("following", [AtTask("b"), AtTask("j"), AtTask("f")])
    def test_next_with_an_id_that_stands_in_the_tree_is_refused(self, following: AtTask) -> None:
        tree = AtFork("f", {"x": AtTask("a"), "y": AtTask("b")}, next=AtTask("j"))

        with pytest.raises(InvalidArgumentError, match="stands twice"):
            run(tree).complete_task("a", b"", next=following)

    @pytest.mark.parametrize(
        ("following", "message"),
        [
            (AtTask("x" * 257), "task_id must have 1 to 256"),
            (AtDelay("d", wake_after=SECOND, next=AtTask("t", priority=9)), "priority must be 1"),
            ("b", "a position must be an At"),
            (AtDelay("d", wake_after=SECOND, next="b"), "a position must be an At"),  # type: ignore[arg-type]
            (AtFork("f", {"x": "b"}), "a position must be an At"),  # type: ignore[dict-item]
        ],
    )
    def test_next_beyond_a_limit_is_refused(self, following: Any, message: str) -> None:
        with pytest.raises(InvalidArgumentError, match=message):
            run("a").complete_task("a", b"", next=following)

        with pytest.raises(InvalidArgumentError, match=message):
            run("a").move_to(following)

    def test_next_of_any_depth_is_refused_and_not_walked(self) -> None:
        deep: Position = AtTask("t")
        for number in range(5000):
            deep = AtDelay(f"d{number}", wake_after=SECOND, next=deep)

        for enter in (
            lambda: run("a").complete_task("a", b"", next=deep),
            lambda: run("a").move_to(deep),
            lambda: run(deep),
        ):
            with pytest.raises(InvalidArgumentError, match="nest 128 deep"):
                enter()

    def test_refused_completion_leaves_nothing_behind(self) -> None:
        snapshot = run("a")

        with pytest.raises(InvalidArgumentError):
            snapshot.complete_task("a", b"1", next=AtTask(""))

        assert snapshot.results == {}
        assert snapshot.complete_task("a", b"2", next=None).results == {"a": b"2"}


class TestMoveTo:
    def test_whole_tree_is_replaced_and_wired_to_the_last_result(self) -> None:
        snapshot = run("a").record_result("a", b"1").move_to(AtTask("b"))

        assert snapshot.position == AtTask("b", input_from="a")

    def test_before_any_result_it_is_wired_to_the_instance_input(self) -> None:
        assert run("a").move_to(AtTask("b")).position == AtTask("b", input_from="")

    @pytest.mark.parametrize(
        ("tree", "expected_wires"),
        [
            (AtSignal("s", "go", next=AtTask("b")), {"b": "s"}),
            (AtDelay("d", wake_after=SECOND, next=AtTask("b")), {"b": "a"}),
            (AtFork("f", {"x": AtTask("b")}, next=AtTask("j")), {"b": "a", "j": None}),
        ],
    )
    def test_wiring_follows_the_tree(
        self, tree: Position, expected_wires: dict[str, str | None]
    ) -> None:
        snapshot = run("a").record_result("a", b"1").move_to(tree)

        assert wires(snapshot) == expected_wires

    def test_leaf_handed_in_with_its_stamps_is_the_old_one(self) -> None:
        snapshot = stored(run(AtFork("f", {"x": AtTask("a"), "y": AtTask("b")})), at(5))
        [old, _] = snapshot.ready_tasks()

        moved = snapshot.move_to(AtFork("g", {"x": old, "y": AtTask("c")}))

        assert moved.ready_tasks() == (old, AtTask("c", input_from=""))

    def test_tree_that_opens_nothing_completes_with_nothing(self) -> None:
        assert run("a").move_to(AtFork("f", {"x": None})).state == Completed(b"")

    def test_node_is_a_place_without_tasks(self) -> None:
        snapshot = run("a").move_to(AtNode("router"))

        assert snapshot.position == AtNode("router")
        assert snapshot.ready_tasks() == ()


class TestReadyTasks:
    def test_tasks_come_in_tree_order_done_and_backing_off_ones_included(self) -> None:
        tree = AtFork("f", {"z": AtTask("a"), "y": AtFork("g", {"p": AtTask("b")}),
                            "x": AtTask("c"), "w": AtNode("n")})  # fmt: skip
        snapshot = recorded(run(tree).record_failure("b", POLICY, error="no"), "c")

        assert [task.task_id for task in snapshot.ready_tasks()] == ["a", "b", "c"]


class TestRetries:
    def test_failure_schedules_the_retry_and_enters_the_task_again(self) -> None:
        snapshot = recorded(stored(run("a")), "a")

        failed = snapshot.record_failure("a", POLICY, error="no", worker_id="w1")

        assert failed.retries == {
            "a": RetryState(1, last_error="no", last_worker="w1", retry_after=SECOND)
        }
        assert failed.position == AtTask("a", input_from="")
        assert failed.status is Status.IN_PROGRESS

    def test_retry_is_due_after_the_save_that_recorded_the_failure(self) -> None:
        failed = stored(run("a")).record_failure("a", POLICY, error="no")

        saved = stored(failed, at(7))

        assert saved.retries["a"].retry_at == at(7) + SECOND
        assert saved.ready_tasks()[0].ready_at == at(7) + SECOND
        assert saved.ready_tasks()[0].reason is ReadyReason.RETRY

    def test_each_retry_waits_longer_until_the_policy_is_exhausted(self) -> None:
        policy = RetryPolicy(3, SECOND, max_delay=3 * SECOND)
        snapshot, delays = stored(run("a")), []

        for _ in range(3):
            snapshot = stored(snapshot.record_failure("a", policy, error="no"), T0)
            delays.append(snapshot.retries["a"].retry_after)

        assert delays == [SECOND, 2 * SECOND, 3 * SECOND]
        assert snapshot.retries["a"].attempts == 3

        ended = snapshot.record_failure("a", policy, error="last")

        assert ended.state == Failed("last")
        assert ended.retries == {}

    def test_without_retries_the_first_failure_fails_the_workflow(self) -> None:
        assert run("a").record_failure("a", RetryPolicy(0, SECOND), error="x").state == Failed("x")

    def test_failing_branch_takes_the_others_with_it(self) -> None:
        tree = AtFork("f", {"x": AtTask("a"), "y": AtTask("b")})

        assert run(tree).record_failure("a", RetryPolicy(0, SECOND), error="x").position is None

    def test_other_branches_keep_their_stamps(self) -> None:
        snapshot = stored(run(AtFork("f", {"x": AtTask("a"), "y": AtTask("b")})), at(5))

        failed = snapshot.record_failure("a", POLICY, error="no")

        assert failed.ready_tasks() == (AtTask("a", input_from=""), snapshot.ready_tasks()[1])

    def test_retry_counts_across_saves_and_starts_over_after_success(self) -> None:
        snapshot = stored(run("a")).record_failure("a", POLICY, error="no")
        snapshot = stored(snapshot, at(1)).complete_task("a", b"1", next=AtTask("a"))

        assert snapshot.retries == {}
        assert snapshot.record_failure("a", POLICY, error="no").retries["a"].attempts == 1

    def test_last_error_is_cut_like_the_final_one(self) -> None:
        failed = run("a").record_failure("a", POLICY, error="x" * 70_000)

        error = failed.retries["a"].last_error
        assert error is not None
        assert len(error.encode()) <= 65_536
        assert error.endswith("[cut]")
        assert run("a").fail("x" * 70_000).state == Failed(error)

    def test_paused_workflow_schedules_retries_too(self) -> None:
        failed = run("a").pause().record_failure("a", POLICY, error="no")

        assert failed.status is Status.PAUSED
        assert failed.retries["a"].attempts == 1

    @pytest.mark.parametrize(
        ("policy", "attempt", "delay"),
        [
            (RetryPolicy(9, SECOND), 1, SECOND),
            (RetryPolicy(9, SECOND), 2, 2 * SECOND),
            (RetryPolicy(9, SECOND), 5, 16 * SECOND),
            (RetryPolicy(9, SECOND, multiplier=1.0), 50, SECOND),
            (RetryPolicy(9, SECOND, multiplier=0.5), 2, SECOND / 2),
            (RetryPolicy(9, SECOND, multiplier=1.5), 3, timedelta(seconds=2.25)),
            (RetryPolicy(9, us(1), multiplier=1.5), 2, us(2)),
            (RetryPolicy(9, timedelta(0)), 9, timedelta(0)),
            (RetryPolicy(9, SECOND, max_delay=4 * SECOND), 3, 4 * SECOND),
            (RetryPolicy(9, SECOND, max_delay=4 * SECOND), 4, 4 * SECOND),
            (RetryPolicy(9, SECOND, max_delay=4 * SECOND - us(1)), 3, 4 * SECOND - us(1)),
            (RetryPolicy(9, 9 * SECOND, max_delay=4 * SECOND), 1, 4 * SECOND),
            (RetryPolicy(9, SECOND, max_delay=timedelta(0)), 1, timedelta(0)),
            (RetryPolicy(9, SECOND), 10_000, timedelta.max),
            (RetryPolicy(9, SECOND, multiplier=1e308), 2, timedelta.max),
            (RetryPolicy(9, SECOND, multiplier=1e308), 3, timedelta.max),
            (RetryPolicy(9, timedelta.max), 1, timedelta.max),
            (RetryPolicy(9, timedelta.max), 2, timedelta.max),
            (RetryPolicy(9, SECOND, max_delay=SECOND * 60), 10_000, SECOND * 60),
            (RetryPolicy(9, timedelta(0), multiplier=1e308), 10_000, timedelta(0)),
        ],
    )
    def test_delay_grows_by_the_multiplier_and_saturates(
        self, policy: RetryPolicy, attempt: int, delay: timedelta
    ) -> None:
        assert policy.delay(attempt) == delay

    @given(
        st.timedeltas(timedelta(0), timedelta(days=1)),
        st.floats(1, 1e6),
        st.none() | st.timedeltas(timedelta(0), timedelta(days=10)),
        st.integers(1, 5000),
    )
    def test_delay_never_shrinks_nor_exceeds_its_maximum(
        self, initial: timedelta, multiplier: float, longest: timedelta | None, attempt: int
    ) -> None:
        policy = RetryPolicy(9, initial, multiplier=multiplier, max_delay=longest)

        assert timedelta(0) <= policy.delay(attempt) <= policy.delay(attempt + 1)
        assert policy.delay(attempt) <= (timedelta.max if longest is None else longest)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"max_retries": -1}, "max_retries must not be negative"),
            ({"initial_delay": -us(1)}, "initial_delay must not be negative"),
            ({"initial_delay": 1.0}, "initial_delay must be a timedelta"),
            ({"multiplier": 0.0}, "multiplier must be finite and > 0"),
            ({"multiplier": -1.0}, "multiplier must be finite and > 0"),
            ({"multiplier": float("inf")}, "multiplier must be finite and > 0"),
            ({"multiplier": float("nan")}, "multiplier must be finite and > 0"),
            ({"max_delay": -us(1)}, "max_delay must not be negative"),
        ],
    )
    def test_policy_that_means_nothing_is_refused(
        self, fields: dict[str, Any], message: str
    ) -> None:
        arguments = {"max_retries": 3, "initial_delay": SECOND, **fields}

        with pytest.raises(InvalidArgumentError, match=message):
            RetryPolicy(**arguments)

    def test_retry_that_never_comes_saturates_at_the_end_of_the_calendar(self) -> None:
        policy = RetryPolicy(9, timedelta.max)

        saved = stored(run("a").record_failure("a", policy, error="no"))

        assert saved.retries["a"].retry_at == datetime.max.replace(tzinfo=UTC)


class TestBookkeeping:
    def test_record_result_does_not_move(self) -> None:
        snapshot = run("a").record_result("elsewhere", b"1")

        assert snapshot.position == run("a").position
        assert snapshot.last_completed_task_id == "elsewhere"
        assert snapshot.results == {"elsewhere": b"1"}

    def test_last_write_of_a_result_wins(self) -> None:
        snapshot = run("a").record_result("a", b"1").record_result("a", b"2")

        assert snapshot.results == {"a": b"2"}

    def test_forget_drops_results_retries_and_time_out_marks(self) -> None:
        snapshot = _busy().record_result("b", b"2")

        forgotten = snapshot.forget("zero", "a", "s", "unknown")

        assert forgotten.results == {"b": b"2"}
        assert forgotten.retries == {}
        assert forgotten.timed_out == frozenset()
        assert forgotten.position == snapshot.position
        assert forgotten.loop_iterations == snapshot.loop_iterations

    def test_iterations_are_counted_by_loop(self) -> None:
        snapshot = run("a").count_iteration("x").count_iteration("y").count_iteration("x")

        assert snapshot.loop_iterations == {"x": 2, "y": 1}

    def test_deadline_is_set_and_cleared(self) -> None:
        assert run("a").with_deadline(at(3)).deadline == at(3)
        assert run("a").with_deadline(at(3)).with_deadline(None).deadline is None

    @pytest.mark.parametrize("deadline", [datetime(2026, 1, 1), "tomorrow"])  # noqa: DTZ001
    def test_deadline_must_be_an_instant(self, deadline: Any) -> None:
        with pytest.raises(InvalidArgumentError, match="deadline must be"):
            run("a").with_deadline(deadline)

    @given(lives())
    def test_snapshot_survives_pickle_and_copy(self, life: Write) -> None:
        snapshot = life.snapshot

        for twin in (
            pickle.loads(pickle.dumps(snapshot)),  # noqa: S301
            copy.copy(snapshot),
            copy.deepcopy(snapshot),
        ):
            assert twin == snapshot
            assert twin.results.delta() == snapshot.results.delta()

    @given(lives())
    def test_delta_of_a_save_applied_to_the_base_is_the_snapshot(self, life: Write) -> None:
        base = settle(stored(*life), life.at)
        known = dict(base.results)
        base = replace(base, results=Results.stored(known))

        if base.status.is_terminal:
            return

        later = base.record_result("x", b"1").forget("elsewhere").record_result("y", b"")
        later = later.record_result("x", b"2").forget("y")
        gained, dropped = later.results.delta()

        kept = {node_id: out for node_id, out in known.items() if node_id not in dropped}
        assert {**kept, **gained} == later.results


class TestForkProperties:
    @given(st.data(), positions(kinds=("task", "fork"), none_branches=True))
    def test_order_in_which_branches_finish_does_not_change_the_end(
        self, data: st.DataObject, tree: Position
    ) -> None:
        def finish(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
            while ready := snapshot.ready_tasks():
                task_id = data.draw(st.sampled_from(ready)).task_id
                snapshot = snapshot.complete_task(task_id, task_id.encode(), next=None)

            return snapshot

        first, second = finish(run(tree)), finish(run(tree))

        assert without_history(first) == without_history(second)
        assert set(first.results) == {it.node_id for it in nodes(tree) if isinstance(it, AtTask)}

    @given(st.data(), positions(kinds=("task", "fork", "delay")))
    def test_order_of_commits_at_one_instant_does_not_change_the_stored_tree(
        self, data: st.DataObject, tree: Position
    ) -> None:
        started = settle(stored(run(tree)), at(10))

        def finish(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
            for task in data.draw(st.permutations(started.ready_tasks())):
                following = AtDelay(f"after-{task.task_id}", wake_after=us(5))
                snapshot = snapshot.complete_task(task.task_id, b"", next=following)
                snapshot = stored(snapshot, at(10))

            return settle(snapshot, at(40))

        first, second = finish(started), finish(started)

        assert without_history(first) == without_history(second)


class TestStamped:
    def test_what_the_write_entered_gets_its_instant(self) -> None:
        tree = AtFork(
            "f",
            {"w": None, "x": AtTask("a"), "y": AtDelay("d", wake_after=us(5)),
             "z": AtSignal("s", "go")},
        )  # fmt: skip

        position = stored(run(tree), at(3)).position

        assert position == AtFork(
            "f",
            {"w": None,
             "x": AtTask("a", input_from="", ready_at=at(3), reason=ReadyReason.TASK),
             "y": AtDelay("d", wake_after=us(5), entered_at=at(3)),
             "z": AtSignal("s", "go", entered_at=at(3))},
            joined_at=at(3),
        )  # fmt: skip

    def test_mark_done_lies_beside_the_body(self) -> None:
        tree = AtFork("f", {"x": AtTask("a"), "y": AtTask("b")})

        marked = stamped(run(tree), T0, status_since=T0, done=frozenset({"b"}))
        cleared = stamped(marked, T0, status_since=T0)

        assert [task.done for task in marked.ready_tasks()] == [False, True]
        assert [task.done for task in cleared.ready_tasks()] == [False, False]

    def test_nothing_is_ready_before_its_instance_is_in_progress(self) -> None:
        snapshot = stored(stored(run("a"), at(1)).pause(), at(5))

        resumed = stored(snapshot.unpause(), at(9))

        assert snapshot.ready_tasks()[0].ready_at == at(1)
        assert resumed.ready_tasks()[0].ready_at == at(9)

    def test_retry_that_is_due_later_keeps_its_instant_through_a_pause(self) -> None:
        failed = run("a").record_failure("a", RetryPolicy(3, us(20)), error="no")
        snapshot = stored(stored(failed, at(1)).pause(), at(5))

        resumed = stored(snapshot.unpause(), at(9))

        assert resumed.ready_tasks()[0].ready_at == at(21)
        assert resumed.retries["a"].retry_at == at(21)

    @given(lives(), st.integers(0, 50))
    def test_stamps_that_are_there_never_move(self, life: Write, later: int) -> None:
        once = stored(*life)
        since = once.status_since
        assert since is not None
        done = frozenset(task.task_id for task in once.ready_tasks() if task.done)

        again = stamped(once, life.at + us(later), status_since=since, done=done)

        assert again == once

    @given(lives(), st.integers(0, 50))
    def test_new_status_moves_nothing_but_tasks_that_were_ready_before(
        self, life: Write, later: int
    ) -> None:
        once = stored(*life)
        since = life.at + us(later)
        done = frozenset(task.task_id for task in once.ready_tasks() if task.done)

        again = stamped(once, since, status_since=since, done=done)

        moves = once.status is Status.IN_PROGRESS
        assert [task.ready_at for task in again.ready_tasks()] == [
            max(task.ready_at, since) if moves and task.ready_at else task.ready_at
            for task in once.ready_tasks()
        ]
        assert again.retries == once.retries
        assert never_stored(again) == never_stored(once)

    @given(lives())
    def test_everything_open_is_stamped(self, life: Write) -> None:
        snapshot = stored(*life)

        for leaf in _open(snapshot.position):
            if isinstance(leaf, AtTask):
                assert leaf.ready_at is not None
                assert leaf.reason is not None
            elif isinstance(leaf, AtDelay | AtSignal):
                assert leaf.entered_at is not None
            elif isinstance(leaf, AtFork):
                assert (leaf.joined_at is None) == (None not in leaf.branches.values())

    @given(lives())
    def test_never_stored_carries_no_stamp(self, life: Write) -> None:
        bare = never_stored(stored(*life))

        assert (bare.version, bare.incarnation) == (0, "")
        assert (bare.created_at, bare.updated_at, bare.status_since) == (None, None, None)
        assert all(retry.retry_at is None for retry in bare.retries.values())

        for leaf in _open(bare.position):
            instants = ("ready_at", "reason", "entered_at", "joined_at")
            assert all(getattr(leaf, name, None) is None for name in instants)
            assert not getattr(leaf, "done", False)

    def test_never_stored_passes_a_fork_without_open_branches(self) -> None:
        emptied = replace(run("a"), state=InProgress(AtFork("f", {"x": None}, next=AtTask("j"))))
        ended = replace(run("a"), state=InProgress(AtFork("f", {"x": None})))

        assert never_stored(emptied).position == AtTask("j")
        assert never_stored(ended).state == Completed(b"")


def _open(position: Position | None) -> list[Position]:
    if position is None:
        return []

    if isinstance(position, AtFork):
        return [position, *(it for branch in position.branches.values() for it in _open(branch))]

    return [position]


class TestMarkedDone:
    def test_open_task_is_marked_and_nothing_else(self) -> None:
        snapshot = stored(run(AtFork("f", {"x": AtTask("a"), "y": AtTask("b")})))

        marked = marked_done(snapshot, "b")

        assert [task.done for task in marked.ready_tasks()] == [False, True]
        assert stored(marked, at(9)).ready_tasks() == marked.ready_tasks()
        assert marked.results == {}

    @pytest.mark.parametrize("task_id", ["elsewhere", "d", "n", "behind", "marked"])
    def test_where_there_is_nothing_to_mark_it_is_the_same_object(self, task_id: str) -> None:
        delay = AtDelay("d", wake_after=SECOND, next=AtTask("behind"))
        tree = AtFork("f", {"x": AtTask("marked"), "y": delay, "z": AtNode("n")})
        snapshot = marked_done(run(tree), "marked")

        assert marked_done(snapshot, task_id) is snapshot

    def test_what_has_ended_has_nothing_to_mark(self) -> None:
        ended = run("a").cancel()

        assert marked_done(ended, "a") is ended

    def test_paused_snapshot_stays_paused(self) -> None:
        marked = marked_done(run("a").pause(REQUEST), "a")

        assert isinstance(marked.state, Paused)
        assert marked.state.reason == "changed my mind"
        assert marked.ready_tasks()[0].done


class TestCheckSnapshot:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"instance_id": "\0"}, r"instance_id must not contain U\+0000"),
            ({"definition_hash": ""}, "definition_hash must have 1 to 256"),
            ({"priority": 0}, "priority must be 1"),
            ({"tags": ("",)}, "tag must have 1 to 256"),
            ({"trace_parent": "x" * 4097}, "trace_parent may have 4096"),
            ({"deadline": datetime(2026, 1, 1)}, "deadline must be zone-aware"),  # noqa: DTZ001
            ({"retries": {"": RetryState(1)}}, "task_id must have 1 to 256"),
            ({"timed_out": frozenset({"x" * 257})}, "node_id must have 1 to 256"),
            ({"loop_iterations": {"x" * 257: 1}}, "loop_id must have 1 to 256"),
            ({"state": InProgress(AtTask(""))}, "task_id must have 1 to 256"),
            ({"state": Paused(AtTask(""))}, "task_id must have 1 to 256"),
            ({"state": Paused(AtTask("a"), reason="x" * 4097)}, "reason may have 4096"),
            ({"state": Paused(AtTask("a"), requested_by="x" * 4097)}, "requested_by may have"),
            ({"state": Cancelled(reason="x" * 4097)}, "reason may have 4096"),
            ({"state": Cancelled(requested_by="x" * 4097)}, "requested_by may have 4096"),
        ],
    )
    def test_field_beyond_its_limit_is_refused_by_name(
        self, fields: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidArgumentError, match=message):
            check_snapshot(run("a", **fields))

    @pytest.mark.parametrize(
        "state",
        [
            Paused(AtTask("a"), reason="x" * 4096, requested_by="é" * 2048),
            Cancelled(reason="x" * 4096, requested_by="x" * 4096, interrupted_at_task="a"),
            Completed(b""),
            Failed(""),
        ],
    )
    def test_state_at_its_limits_passes(self, state: Any) -> None:
        check_snapshot(run("a", state=state))

    @given(lives())
    def test_every_transition_keeps_the_limits(self, life: Write) -> None:
        check_snapshot(life.snapshot)

        if life.snapshot.position is not None:
            check_tree(life.snapshot.position)
