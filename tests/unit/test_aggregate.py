"""What a unit does to one instance, step by step: everything it says, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from unit.shelves import (
    NOW,
    MemoryShelf,
    claimed,
    content,
    created,
    creation,
    done,
    mark,
    start,
    unit,
)
from unit.workflows import Write, at, lives, run, stored, us

from sayiir_persist.aggregate import (
    ADVANCE_LANE,
    Aggregate,
    carry_out,
    entry_input,
    extend,
    take,
    view,
)
from sayiir_persist.dispatch import EntryKind
from sayiir_persist.driver import (
    ClaimKey,
    ClaimNext,
    Extend,
    Guard,
    Presence,
    Push,
    Read,
    Record,
    Refusal,
    Take,
    Unit,
)
from sayiir_persist.positions import (
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    Position,
    ReadyReason,
)
from sayiir_persist.signals import SignalKind
from sayiir_persist.snapshot import RetryPolicy, Status, WorkflowSnapshot, stamped
from sayiir_persist.validation import from_micros, to_micros

TERMINAL = [status for status in Status if status.is_terminal]


def fork(*tasks: str | Position, following: Position | None = None) -> AtFork:
    branches = [AtTask(task) if isinstance(task, str) else task for task in tasks]
    return AtFork("f", dict(zip("xyz", branches, strict=False)), next=following)


def read(aggregate: Aggregate, snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
    """The snapshot as it reads once the aggregate holds it."""
    marked = frozenset(entry.node_id for entry in aggregate.entries if entry.done)
    return stamped(
        replace(snapshot, version=aggregate.version, results=snapshot.results.saved()),
        from_micros(aggregate.body_at),
        status_since=from_micros(aggregate.status_since),
        done=marked,
    )


def frozen(aggregate: Aggregate) -> Aggregate:
    """A copy that later changes do not reach."""
    return replace(
        aggregate,
        entries=[replace(entry) for entry in aggregate.entries],
        claims=dict(aggregate.claims),
        signals=dict(aggregate.signals),
    )


def ready(aggregate: Aggregate, now: int = NOW) -> list[str]:
    """What a poll finds, tasks and advances alike."""
    return [
        entry.node_id
        for entry in aggregate.entries
        if (available := aggregate.available_at(entry)) is not None and available <= now
    ]


class TestCreation:
    def test_first_write_makes_version_one(self) -> None:
        shelf = MemoryShelf()

        aggregate = done(carry_out(None, creation(input=b"in"), shelf, NOW))

        assert (aggregate.version, aggregate.incarnation) == (1, "one")
        assert (aggregate.created_at, aggregate.updated_at, aggregate.status_since) == (NOW,) * 3
        assert aggregate.body_at == NOW
        assert shelf.given == b"in"
        assert ready(aggregate) == ["a"]

    def test_results_of_the_first_write_are_stored(self) -> None:
        shelf = MemoryShelf()
        snapshot = run("a").record_result("x", b"1")

        done(carry_out(None, unit(Guard(presence=Presence.ANY), create="one",
                                  content=content(snapshot)), shelf, NOW))  # fmt: skip

        assert shelf.kept == {"x": b"1"}

    def test_taken_id_is_refused(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)

        outcome = carry_out(aggregate, creation("b"), shelf, NOW + 5)

        assert outcome.answer.refused is Refusal.GUARD
        assert outcome.answer.facts is not None
        assert outcome.answer.facts.version == 1

    def test_content_without_creation_creates_nothing(self) -> None:
        shelf = MemoryShelf()

        outcome = carry_out(None, unit(Guard(presence=Presence.ANY), content=start()), shelf, NOW)

        assert outcome.aggregate is None
        assert outcome.answer.facts is None

    def test_queued_events_wait_for_the_instance(self) -> None:
        shelf = MemoryShelf()
        shelf.push("go", b"early", NOW - 5)

        aggregate = created(shelf, AtSignal("s", "go", next=AtTask("b")))

        [entry] = aggregate.entries
        assert entry.met == NOW - 5
        assert aggregate.advance_due(NOW)

    def test_restart_takes_everything_of_the_old_run_away(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, input=b"old")
        shelf.put_result("x", b"1")
        shelf.push("go", b"late", NOW)
        claimed(aggregate)
        aggregate.signals[SignalKind.PAUSE] = mark(SignalKind.PAUSE)

        again = done(carry_out(
            aggregate,
            unit(Guard(presence=Presence.ANY), create="two", restart=True,
                 content=start("b", input=b"new")),
            shelf,
            NOW + 5,
        ))  # fmt: skip

        assert (again.version, again.incarnation, again.created_at) == (1, "two", NOW + 5)
        assert (again.claims, again.signals) == ({}, {})
        assert (shelf.kept, shelf.queue, shelf.given) == ({}, [], b"new")

    def test_restart_where_nothing_is_keeps_the_events_that_wait(self) -> None:
        shelf = MemoryShelf()
        shelf.push("go", b"early", NOW)

        done(carry_out(
            None,
            unit(Guard(presence=Presence.ANY), create="one", restart=True, content=start()),
            shelf,
            NOW,
        ))  # fmt: skip

        assert shelf.queued() == 1

    def test_deletion_takes_all_but_the_fences(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, input=b"in")
        shelf.fence = 41
        shelf.put_result("x", b"1")
        shelf.push("go", b"1", NOW)
        shelf.remember("go", "e1", NOW)

        outcome = carry_out(aggregate, unit(delete=True), shelf, NOW)

        assert outcome.aggregate is None
        assert outcome.answer.facts is None
        assert shelf.state() == (None, {}, [], set(), 41)


GUARDS: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing": ({}, True),
    "present": ({"presence": Presence.REQUIRED}, True),
    "absent": ({"presence": Presence.ABSENT}, False),
    "any": ({"presence": Presence.ANY}, True),
    "definition": ({"definition_hash": "v1"}, True),
    "other definition": ({"definition_hash": "v2"}, False),
    "status": ({"statuses": (Status.PAUSED, Status.IN_PROGRESS)}, True),
    "other status": ({"statuses": (Status.PAUSED,)}, False),
    "no status": ({"statuses": ()}, False),
    "claim": ({"claim": ClaimKey("a", 7)}, True),
    "older claim": ({"claim": ClaimKey("a", 6)}, False),
    "other task": ({"claim": ClaimKey("b", 7)}, False),
    "expired claim": ({"claim": ClaimKey("dead", 5)}, False),
    "version": ({"version": 1}, True),
    "older version": ({"version": 0}, False),
    "newer version": ({"version": 2}, False),
    "incarnation": ({"incarnation": "one"}, True),
    "other incarnation": ({"incarnation": "two"}, False),
    "idle": ({"idle": True}, False),
    "signals": ({"signals": (mark(SignalKind.PAUSE),)}, True),
    "no signals": ({"signals": ()}, False),
    "other signals": ({"signals": (mark(SignalKind.CANCEL),)}, False),
    "more signals": ({"signals": (mark(SignalKind.PAUSE), mark(SignalKind.CANCEL))}, False),
    "older signal": ({"signals": (mark(SignalKind.PAUSE, NOW - 1),)}, False),
    "head": ({"head": ("go", 1)}, True),
    "other head": ({"head": ("go", 2)}, False),
    "no head": ({"head": ("stop", 1)}, False),
}


def guarded() -> tuple[Aggregate, MemoryShelf]:
    """An instance about which every predicate has something to say."""
    shelf = MemoryShelf()
    aggregate = created(shelf, fork("a", "dead"))
    shelf.push("go", b"1", NOW)
    claimed(aggregate, "a", fence=7)
    claimed(aggregate, "dead", fence=5, until=NOW)
    aggregate.signals[SignalKind.PAUSE] = mark(SignalKind.PAUSE)
    return aggregate, shelf


class TestGuard:
    @pytest.mark.parametrize(("fields", "holds"), GUARDS.values(), ids=GUARDS)
    def test_each_predicate_decides_alone(self, fields: dict[str, Any], holds: bool) -> None:
        aggregate, shelf = guarded()

        outcome = carry_out(aggregate, unit(Guard(**fields)), shelf, NOW)

        assert (outcome.answer.refused is None) == holds
        assert outcome.changed == holds

    @given(st.lists(st.sampled_from(sorted(GUARDS)), max_size=4))
    def test_predicates_are_a_conjunction(self, names: list[str]) -> None:
        aggregate, shelf = guarded()
        fields = {field: value for name in names for field, value in GUARDS[name][0].items()}
        last = {next(iter(GUARDS[name][0]), ""): GUARDS[name][1] for name in names}

        outcome = carry_out(aggregate, unit(Guard(**fields)), shelf, NOW)

        assert (outcome.answer.refused is None) == all(last.values())

    @pytest.mark.parametrize(
        ("fields", "holds"),
        [
            ({}, False),
            ({"presence": Presence.ABSENT}, True),
            ({"presence": Presence.ANY}, True),
            ({"presence": Presence.ANY, "version": 3, "claim": ClaimKey("a", 1)}, True),
            ({"presence": Presence.ANY, "head": ("go", 1)}, True),
            ({"presence": Presence.ANY, "head": ("go", 2)}, False),
        ],
    )
    def test_without_a_row_only_presence_and_queue_bind(
        self, fields: dict[str, Any], holds: bool
    ) -> None:
        shelf = MemoryShelf()
        shelf.push("go", b"1", NOW)

        outcome = carry_out(None, unit(Guard(**fields)), shelf, NOW)

        assert (outcome.answer.refused is None) == holds

    @pytest.mark.parametrize(("until", "holds"), [(NOW + 1, True), (NOW, False), (None, True)])
    def test_claim_is_dead_at_exactly_its_end(self, until: int | None, holds: bool) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        claimed(aggregate, until=until)

        outcome = carry_out(aggregate, unit(Guard(claim=ClaimKey("a", 7))), shelf, NOW)

        assert (outcome.answer.refused is None) == holds

    def test_refused_unit_does_nothing_of_all_that_it_says(self) -> None:
        aggregate, shelf = guarded()
        before, beside = frozen(aggregate), shelf.state()
        everything = unit(
            Guard(version=9),
            content=start("z", input=b"x"),
            replace=True,
            record=Record("a", b"1"),
            signal=mark(SignalKind.CANCEL),
            clear=frozenset({SignalKind.PAUSE}),
            push=Push("go", b"2", "e", 10),
            pop="go",
            release=ClaimKey("a", 7),
            revoke="a",
            claim_next=ClaimNext("w1", "n", (), 5),
        )

        outcome = carry_out(aggregate, everything, shelf, NOW + 1)

        assert outcome.answer.refused is Refusal.GUARD
        assert outcome.aggregate == before
        assert shelf.state() == beside
        assert not outcome.hints

    def test_refusal_tells_the_claim_that_is_on_record(self) -> None:
        aggregate, shelf = guarded()

        outcome = carry_out(aggregate, unit(Guard(claim=ClaimKey("a", 6))), shelf, NOW)

        assert outcome.answer.claim == aggregate.claims["a"]
        assert outcome.answer.facts == aggregate.facts(NOW)

    def test_refusal_answers_the_view_that_was_asked_for(self) -> None:
        aggregate, shelf = guarded()

        outcome = carry_out(aggregate, unit(Guard(version=9), view=True), shelf, NOW)

        assert outcome.answer.view is not None
        assert outcome.answer.view.body == b"body"
        assert outcome.answer.view.results is None


class TestWrite:
    def test_each_body_takes_one_version(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)

        for version in (2, 3, 4):
            aggregate = done(carry_out(aggregate, unit(content=start("b")), shelf, NOW + version))
            assert (aggregate.version, aggregate.updated_at) == (version, NOW + version)
            assert aggregate.body_at == NOW + version

        assert aggregate.created_at == NOW

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"signal": mark(SignalKind.PAUSE)},
            {"clear": frozenset({SignalKind.PAUSE})},
            {"push": Push("go", b"1", None, 10)},
            {"pop": "go"},
            {"revoke": "a"},
            {"release": ClaimKey("a", 7)},
        ],
    )
    def test_nothing_else_takes_a_version(self, fields: dict[str, Any]) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        claimed(aggregate)

        after = done(carry_out(aggregate, unit(**fields), shelf, NOW + 5))

        assert (after.version, after.updated_at, after.body_at) == (1, NOW, NOW)

    def test_write_stores_exactly_its_delta(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, input=b"in")
        shelf.kept = {"x": b"1", "y": b"2", "z": b"3"}

        done(carry_out(
            aggregate,
            unit(content=content(run("a"), gained={"y": b"9", "w": b""},
                                 dropped=frozenset({"x", "v"}))),
            shelf,
            NOW,
        ))  # fmt: skip

        assert shelf.kept == {"y": b"9", "z": b"3", "w": b""}
        assert shelf.given == b"in"

    def test_replacing_write_stores_everything_anew(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, input=b"in")
        shelf.kept = {"x": b"1"}

        done(carry_out(
            aggregate,
            unit(replace=True, content=content(run("a", input=b"new"), gained={"y": b"2"})),
            shelf,
            NOW,
        ))  # fmt: skip

        assert shelf.kept == {"y": b"2"}
        assert shelf.given == b"new"

    def test_status_counts_from_its_change(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        running = start("b")

        same = done(carry_out(aggregate, unit(content=running), shelf, NOW + 1)).status_since
        anew = done(
            carry_out(aggregate, unit(content=replace(running, status_is_new=True)), shelf, NOW + 2)
        ).status_since
        paused = done(
            carry_out(aggregate, unit(content=content(run("b").pause())), shelf, NOW + 3)
        ).status_since

        assert (same, anew, paused) == (NOW, NOW + 2, NOW + 3)

    @pytest.mark.parametrize("status", TERMINAL)
    def test_what_ends_loses_entries_claims_and_signals_and_keeps_its_events(
        self, status: Status
    ) -> None:
        aggregate, shelf = guarded()
        snapshot = {
            Status.COMPLETED: run("a").complete(b""),
            Status.FAILED: run("a").fail("boom"),
            Status.CANCELLED: run("a").cancel(),
        }[status]

        after = done(carry_out(aggregate, unit(content=content(snapshot)), shelf, NOW + 1))

        assert after.status is status
        assert (after.entries, after.claims, after.signals) == ([], {}, {})
        assert not after.idle
        assert shelf.queued() == 1

    def test_instants_of_entries_count_from_the_write(self) -> None:
        shelf = MemoryShelf()
        failed = run(fork("a", AtDelay("d", wake_after=us(30), next=AtTask("b")), "c"))
        failed = failed.record_failure("c", RetryPolicy(3, us(7)), error="no", worker_id="w1")

        aggregate = done(carry_out(
            None, unit(Guard(presence=Presence.ANY), create="one", content=content(failed)),
            shelf, NOW,
        ))  # fmt: skip

        assert {entry.node_id: entry.due for entry in aggregate.entries} == {
            "a": NOW,
            "b": NOW + 30,
            "c": NOW + 7,
        }
        assert [entry.avoid for entry in aggregate.entries] == [None, None, "w1"]


class TestClaimsOnEntering:
    def test_entering_a_task_drops_an_old_claim_on_it(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        claimed(aggregate)

        after = done(carry_out(aggregate, unit(content=start("a")), shelf, NOW + 1))

        assert after.claims == {}

    def test_claim_that_fences_the_write_stays(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        claimed(aggregate)

        after = done(carry_out(
            aggregate, unit(Guard(claim=ClaimKey("a", 7)), content=start("a")), shelf, NOW + 1
        ))  # fmt: skip

        assert set(after.claims) == {"a"}

    def test_task_that_was_there_keeps_its_claim(self) -> None:
        shelf = MemoryShelf()
        snapshot = WorkflowSnapshot.start("run", "v1", start_at=fork("a", "b"))
        aggregate = created(shelf, fork("a", "b"))
        claimed(aggregate, "a")
        claimed(aggregate, "b")
        moved = read(aggregate, snapshot).complete_task("a", b"", next=AtTask("c"))

        after = done(carry_out(aggregate, unit(content=content(moved)), shelf, NOW + 1))

        assert "b" in after.claims

    def test_task_behind_a_park_had_no_entry_that_could_keep_a_claim(self) -> None:
        """An old claim on a task that shows up without being fresh, for its park has elapsed."""
        shelf = MemoryShelf()
        snapshot = run(AtSignal("s", "go", next=AtTask("a")))
        aggregate = created(shelf, AtSignal("s", "go", next=AtTask("a")))
        claimed(aggregate, "a")
        ready_now = AtTask("a", ready_at=from_micros(NOW), reason=ReadyReason.EVENT)
        moved = read(aggregate, snapshot).move_to(ready_now)

        after = done(carry_out(aggregate, unit(content=content(moved)), shelf, NOW + 1))

        assert not content(moved).entries[0].fresh
        assert after.claims == {}


class TestRecord:
    def recorded(
        self, aggregate: Aggregate, shelf: MemoryShelf, node_id: str, output: bytes = b"1"
    ) -> Aggregate:
        return done(carry_out(aggregate, unit(record=Record(node_id, output)), shelf, NOW + 1))

    def test_result_is_kept_and_the_ready_task_marked(self) -> None:
        shelf = MemoryShelf()

        after = self.recorded(created(shelf, fork("a", "b")), shelf, "a")

        assert shelf.kept == {"a": b"1"}
        assert (after.version, after.updated_at, after.last_completed) == (2, NOW + 1, "a")
        assert after.body_at == NOW
        assert [entry.done for entry in after.entries] == [True, False]
        assert ready(after) == ["b"]

    def test_same_output_again_is_no_write(self) -> None:
        shelf = MemoryShelf()
        aggregate = self.recorded(created(shelf), shelf, "a")

        after = done(carry_out(aggregate, unit(record=Record("a", b"1")), shelf, NOW + 9))

        assert (after.version, after.updated_at) == (2, NOW + 1)

    def test_other_output_is_the_last_word(self) -> None:
        shelf = MemoryShelf()
        aggregate = self.recorded(created(shelf), shelf, "a")

        after = self.recorded(aggregate, shelf, "a", b"2")

        assert after.version == 3
        assert shelf.kept == {"a": b"2"}

    def test_same_output_still_marks_a_task_that_is_ready_anew(self) -> None:
        shelf = MemoryShelf()
        shelf.put_result("a", b"1")

        after = self.recorded(created(shelf), shelf, "a")

        assert after.version == 2
        assert after.entries[0].done

    def test_result_of_a_node_that_is_not_ready_marks_nothing(self) -> None:
        shelf = MemoryShelf()

        after = self.recorded(created(shelf), shelf, "elsewhere")

        assert after.version == 2
        assert not after.entries[0].done

    @pytest.mark.parametrize("node_id", ["a", "b", "elsewhere"])
    @pytest.mark.parametrize("following", [AtTask("a"), None, AtNode("n")])
    @pytest.mark.parametrize(("elapsed", "refused"), [(4, False), (5, True), (6, True)])
    def test_where_a_park_has_elapsed_the_body_has_to_be_written(
        self, elapsed: int, refused: bool, following: Position | None, node_id: str
    ) -> None:
        shelf = MemoryShelf()
        tree = fork(AtDelay("d", wake_after=us(5), next=following), "b")
        aggregate = created(shelf, tree)
        before = frozen(aggregate)

        outcome = carry_out(aggregate, unit(record=Record(node_id, b"1")), shelf, NOW + elapsed)

        assert outcome.answer.refused is (Refusal.ELAPSED if refused else None)
        assert (outcome.aggregate == before) == refused
        assert (shelf.kept == {}) == refused

    def test_park_of_a_chain_has_elapsed_before_the_chain_has(self) -> None:
        shelf = MemoryShelf()
        chain = AtDelay("d", wake_after=us(5), next=AtDelay("e", wake_after=us(9)))

        outcome = carry_out(created(shelf, chain), unit(record=Record("a", b"1")), shelf, NOW + 5)

        assert outcome.answer.refused is Refusal.ELAPSED

    def test_task_behind_a_park_that_has_not_elapsed_is_not_marked(self) -> None:
        shelf = MemoryShelf()
        wait = AtDelay("d", wake_after=us(5), next=AtTask("a"))

        after = self.recorded(created(shelf, wait), shelf, "a")

        assert shelf.kept == {"a": b"1"}
        assert not after.entries[0].done

    def test_refusal_of_the_guard_comes_first(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, AtDelay("d", wake_after=us(5)))

        outcome = carry_out(
            aggregate, unit(Guard(version=9), record=Record("a", b"1")), shelf, NOW + 5
        )

        assert outcome.answer.refused is Refusal.GUARD

    def test_task_that_backs_off_is_marked(self) -> None:
        shelf = MemoryShelf()
        failed = run("a").record_failure("a", RetryPolicy(3, us(90)), error="no")
        aggregate = done(carry_out(
            None, unit(Guard(presence=Presence.ANY), create="one", content=content(failed)),
            shelf, NOW,
        ))  # fmt: skip

        assert self.recorded(aggregate, shelf, "a").entries[0].done

    def test_task_behind_a_wait_that_met_its_event_is_not_marked(self) -> None:
        shelf = MemoryShelf()
        shelf.push("go", b"1", NOW)
        wait = AtSignal("s", "go", wake_after=us(0), next=AtTask("a"))

        assert not self.recorded(created(shelf, wait), shelf, "a").entries[0].done

    @pytest.mark.parametrize(
        ("pause_at", "refused"), [(4, None), (5, Refusal.ELAPSED), (6, Refusal.ELAPSED)]
    )
    def test_on_a_paused_instance_the_pause_decides_what_has_elapsed(
        self, pause_at: int, refused: Refusal | None
    ) -> None:
        shelf = MemoryShelf()
        snapshot = run(AtDelay("d", wake_after=us(5), next=AtTask("a")))
        aggregate = created(shelf, AtDelay("d", wake_after=us(5), next=AtTask("a")))
        paused = read(aggregate, snapshot).pause()
        aggregate = done(carry_out(aggregate, unit(content=content(paused)), shelf, NOW + pause_at))

        outcome = carry_out(aggregate, unit(record=Record("a", b"1")), shelf, NOW + 50)

        assert outcome.answer.refused is refused
        assert aggregate.status is Status.PAUSED

    def test_last_open_task_makes_the_instance_idle(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, fork("a", "b", AtNode("n")))

        first = self.recorded(aggregate, shelf, "a").idle
        second = self.recorded(aggregate, shelf, "b").idle

        assert (first, second) == (False, True)

    def test_recording_gives_no_hint(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, fork("a", "b"))

        outcome = carry_out(aggregate, unit(record=Record("a", b"1")), shelf, NOW + 1)

        assert not outcome.hints


class TestSignals:
    def test_signal_is_stored_at_the_stores_time(self) -> None:
        shelf = MemoryShelf()
        given = replace(mark(SignalKind.CANCEL, 0), reason="why")

        after = done(carry_out(created(shelf), unit(signal=given), shelf, NOW + 5))

        assert after.signals == {SignalKind.CANCEL: replace(given, requested_at=NOW + 5)}

    def test_pending_signal_of_a_kind_is_replaced_and_the_other_stays(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        for at_ in (1, 2):
            for kind in SignalKind:
                done(carry_out(aggregate, unit(signal=mark(kind)), shelf, NOW + at_))

        after = done(carry_out(aggregate, unit(clear=frozenset({SignalKind.PAUSE})), shelf, NOW))

        assert after.signals == {SignalKind.CANCEL: mark(SignalKind.CANCEL, NOW + 2)}

    def test_nothing_is_found_while_a_signal_is_pending(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, fork("a", AtDelay("d", wake_after=us(0))))

        before = ready(aggregate)
        after = ready(done(carry_out(aggregate, unit(signal=mark(SignalKind.PAUSE)), shelf, NOW)))

        assert (before, after) == (["a", "d"], [])
        assert not aggregate.advance_due(NOW)

    def test_clearing_hints_at_what_is_found_again(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        aggregate.signals[SignalKind.PAUSE] = mark(SignalKind.PAUSE)

        outcome = carry_out(aggregate, unit(clear=frozenset({SignalKind.PAUSE})), shelf, NOW)

        assert [entry.node_id for entry in outcome.hints] == ["a"]


class TestQueue:
    def test_events_are_answered_oldest_first(self) -> None:
        shelf = MemoryShelf()
        anywhere = Guard(presence=Presence.ANY)
        for payload in (b"1", b"2"):
            carry_out(None, unit(anywhere, push=Push("go", payload, None, 10)), shelf, NOW)

        popped = [
            carry_out(None, unit(anywhere, pop="go"), shelf, NOW).answer.event for _ in range(3)
        ]

        assert popped == [b"1", b"2", None]

    def test_remembered_event_is_queued_once_whatever_its_payload(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        for name, payload in (("go", b"1"), ("go", b"2"), ("stop", b"3")):
            done(carry_out(aggregate, unit(push=Push(name, payload, "e1", 10)), shelf, NOW))

        assert [(name, head.payload) for name, head in shelf.queue] == [
            ("go", b"1"),
            ("stop", b"3"),
        ]

    def test_event_that_was_consumed_is_still_remembered(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        push = unit(push=Push("go", b"1", "e1", 10))
        done(carry_out(aggregate, push, shelf, NOW))
        done(carry_out(aggregate, unit(pop="go"), shelf, NOW))

        done(carry_out(aggregate, push, shelf, NOW))

        assert shelf.queue == []

    @pytest.mark.parametrize(
        ("queued", "refused"), [(2, None), (3, Refusal.QUEUE_FULL), (4, Refusal.QUEUE_FULL)]
    )
    def test_full_queue_refuses(self, queued: int, refused: Refusal | None) -> None:
        shelf = MemoryShelf()
        for number in range(queued):
            shelf.push(f"other{number}", b"", NOW)

        outcome = carry_out(created(shelf), unit(push=Push("go", b"1", None, 3)), shelf, NOW)

        assert outcome.answer.refused is refused
        assert shelf.queued() == (queued if refused else queued + 1)

    def test_repeat_is_no_matter_of_room(self) -> None:
        shelf = MemoryShelf()
        shelf.push("other", b"", NOW)
        shelf.remember("go", "e1", NOW)

        outcome = carry_out(created(shelf), unit(push=Push("go", b"1", "e1", 1)), shelf, NOW)

        assert outcome.answer.refused is None
        assert shelf.queued() == 1

    def full(self, position: Position, **push: Any) -> tuple[Aggregate, MemoryShelf, Unit]:
        shelf = MemoryShelf()
        shelf.push("other", b"", NOW)
        aggregate = created(shelf, position)
        return aggregate, shelf, unit(push=Push("go", b"1", None, 1), **push)

    def test_event_that_a_wait_takes_at_once_needs_no_room(self) -> None:
        aggregate, shelf, push = self.full(AtSignal("s", "go", next=AtTask("a")))

        after = done(carry_out(aggregate, push, shelf, NOW + 3))

        assert after.entries[0].met == NOW + 3
        assert after.entries[0].lane == ADVANCE_LANE

    @pytest.mark.parametrize(("elapsed", "fits"), [(4, True), (5, False)])
    def test_wait_that_is_over_takes_none(self, elapsed: int, fits: bool) -> None:
        wait = AtSignal("s", "go", wake_after=us(5), next=AtTask("a"))
        aggregate, shelf, push = self.full(wait)

        outcome = carry_out(aggregate, push, shelf, NOW + elapsed)

        assert (outcome.answer.refused is None) == fits

    def test_wait_for_another_name_takes_none(self) -> None:
        aggregate, shelf, push = self.full(AtSignal("s", "stop"))

        assert carry_out(aggregate, push, shelf, NOW).answer.refused is Refusal.QUEUE_FULL

    def test_wait_of_a_paused_or_signalled_instance_takes_none(self) -> None:
        aggregate, shelf, push = self.full(AtSignal("s", "go"))
        aggregate.signals[SignalKind.CANCEL] = mark(SignalKind.CANCEL)

        signalled = carry_out(aggregate, push, shelf, NOW).answer.refused
        aggregate.signals.clear()
        aggregate.status = Status.PAUSED
        paused = carry_out(aggregate, push, shelf, NOW).answer.refused

        assert (signalled, paused) == (Refusal.QUEUE_FULL, Refusal.QUEUE_FULL)

    def test_event_behind_an_older_one_of_its_name_is_not_taken_at_once(self) -> None:
        aggregate, shelf, push = self.full(AtSignal("s", "go"))
        shelf.push("go", b"0", NOW)

        assert carry_out(aggregate, push, shelf, NOW).answer.refused is Refusal.QUEUE_FULL

    def test_event_meets_a_wait_in_the_step_that_queues_it(self) -> None:
        shelf = MemoryShelf()
        wait = AtSignal("s", "go", wake_after=us(50), next=AtTask("a"))
        aggregate = created(shelf, wait)

        outcome = carry_out(aggregate, unit(push=Push("go", b"1", None, 10)), shelf, NOW + 3)

        after = done(outcome)
        assert after.advance_due(NOW + 3)
        assert ready(after, NOW + 3) == ["a"]
        assert not after.entries[0].is_task
        assert not outcome.hints

    def test_event_that_came_too_late_is_only_queued(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, AtSignal("s", "go", wake_after=us(5), next=AtTask("a")))

        after = done(carry_out(aggregate, unit(push=Push("go", b"1", None, 9)), shelf, NOW + 5))

        assert after.entries[0].met is None
        assert after.entries[0].is_task

    def test_wait_is_no_longer_met_once_its_event_is_gone(self) -> None:
        shelf = MemoryShelf()
        shelf.push("go", b"1", NOW)
        aggregate = created(shelf, AtSignal("s", "go", next=AtTask("a")))

        after = done(carry_out(aggregate, unit(pop="go"), shelf, NOW))

        assert after.entries[0].met is None


class TestReleaseAndRevoke:
    @pytest.mark.parametrize("until", [NOW + 9, NOW - 9, None])
    def test_release_removes_the_record_live_or_not(self, until: int | None) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        claimed(aggregate, until=until)

        after = done(carry_out(aggregate, unit(release=ClaimKey("a", 7)), shelf, NOW))

        assert after.claims == {}

    @pytest.mark.parametrize("key", [ClaimKey("a", 6), ClaimKey("a", 8), ClaimKey("b", 7)])
    def test_release_of_another_claim_is_refused_and_tells_whose_it_is(self, key: ClaimKey) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        record = claimed(aggregate)

        outcome = carry_out(aggregate, unit(release=key), shelf, NOW)

        assert outcome.answer.refused is Refusal.GUARD
        assert outcome.answer.claim == (record if key.task_id == "a" else None)
        assert aggregate.claims == {"a": record}

    def test_release_without_a_row_is_refused(self) -> None:
        anywhere = Guard(presence=Presence.ANY)

        outcome = carry_out(None, unit(anywhere, release=ClaimKey("a", 7)), MemoryShelf(), NOW)

        assert outcome.answer.refused is Refusal.GUARD

    def test_release_hints_at_the_task(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        claimed(aggregate)

        outcome = carry_out(aggregate, unit(release=ClaimKey("a", 7)), shelf, NOW)

        assert [entry.node_id for entry in outcome.hints] == ["a"]

    @pytest.mark.parametrize(
        ("until", "revoked"), [(NOW + 1, True), (None, True), (NOW, False), (NOW - 1, False)]
    )
    def test_revoke_answers_the_live_claim(self, until: int | None, revoked: bool) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        record = claimed(aggregate, until=until)

        outcome = carry_out(aggregate, unit(revoke="a"), shelf, NOW)

        assert outcome.answer.claim == (record if revoked else None)
        assert ("a" in done(outcome).claims) != revoked


class TestClaimNext:
    def committed(
        self, following: Position | None, tags: tuple[str, ...] = (), *, pending: bool = False
    ) -> tuple[Aggregate, Any, MemoryShelf]:
        shelf = MemoryShelf()
        aggregate = created(shelf, input=b"in")
        claimed(aggregate, fence=shelf.next_fence())
        if pending:
            aggregate.signals[SignalKind.PAUSE] = mark(SignalKind.PAUSE)
        moved = read(aggregate, run("a")).complete_task("a", b"out", next=following)

        outcome = carry_out(
            aggregate,
            unit(
                Guard(claim=ClaimKey("a", 1)),
                content=content(moved),
                release=ClaimKey("a", 1),
                claim_next=ClaimNext("w1", "n", tags, 30),
            ),
            shelf,
            NOW + 5,
        )
        return done(outcome), outcome, shelf

    def test_the_task_that_follows_is_claimed_in_the_same_step(self) -> None:
        aggregate, outcome, _ = self.committed(AtTask("b"))

        claim = outcome.answer.claim
        assert (claim.task_id, claim.worker_id, claim.nonce) == ("b", "w1", "n")
        assert (claim.claimed_at, claim.expires_at) == (NOW + 5, NOW + 35)
        assert claim.fence > 1
        assert aggregate.claims == {"b": claim}
        assert outcome.answer.entry.node_id == "b"
        assert outcome.answer.input == b"out"
        assert not outcome.hints

    def test_a_task_that_follows_itself_is_claimed_anew(self) -> None:
        _, outcome, _ = self.committed(AtTask("a"))

        assert (outcome.answer.claim.task_id, outcome.answer.claim.fence) == ("a", 2)

    def test_the_first_that_fits_in_tree_order_is_chosen(self) -> None:
        tree = AtFork("f", {
            "u": AtDelay("d", wake_after=us(0), next=AtNode("n")),
            "v": AtDelay("e", wake_after=us(9), next=AtTask("later")),
            "w": AtTask("gpu", tags=("gpu",), priority=1),
            "x": AtTask("eu", tags=("eu",), priority=5),
            "y": AtTask("free", tags=(), priority=1),
        })  # fmt: skip

        aggregate, outcome, _ = self.committed(tree, ("eu",))

        assert outcome.answer.claim.task_id == "eu"
        assert [entry.node_id for entry in outcome.hints] == ["gpu", "free"]
        assert set(aggregate.claims) == {"eu"}

    def test_without_tags_of_its_own_the_worker_takes_the_first(self) -> None:
        tree = AtFork("f", {"w": AtTask("gpu", tags=("gpu",)), "x": AtTask("b")})

        assert self.committed(tree)[1].answer.claim.task_id == "gpu"

    def test_a_delay_that_has_no_length_is_no_obstacle(self) -> None:
        tree = AtDelay("d", wake_after=us(0), next=AtTask("b"))

        assert self.committed(tree)[1].answer.claim.task_id == "b"

    @pytest.mark.parametrize(
        ("following", "tags"),
        [
            (None, ()),
            (AtNode("n"), ()),
            (AtTask("b", tags=("gpu",)), ("eu",)),
            (AtDelay("d", wake_after=us(1), next=AtTask("b")), ()),
            (AtSignal("s", "go", next=AtTask("b")), ()),
        ],
    )
    def test_nothing_is_claimed_where_nothing_is_ready(
        self, following: Position | None, tags: tuple[str, ...]
    ) -> None:
        aggregate, outcome, shelf = self.committed(following, tags)

        assert outcome.answer.claim is None
        assert outcome.answer.entry is None
        assert aggregate.claims == {}
        assert shelf.fence == 1

    def test_nothing_is_claimed_while_a_signal_is_pending(self) -> None:
        aggregate, outcome, _ = self.committed(AtTask("b"), pending=True)

        assert outcome.answer.claim is None
        assert aggregate.claims == {}
        assert not outcome.hints

    def test_a_task_that_was_ready_before_is_left_to_others(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, fork("a", "old"))
        claimed(aggregate)
        moved = read(aggregate, run(fork("a", "old"))).complete_task("a", b"", next=None)

        outcome = carry_out(
            aggregate,
            unit(content=content(moved), release=ClaimKey("a", 7),
                 claim_next=ClaimNext("w1", "n", (), 30)),
            shelf,
            NOW + 1,
        )  # fmt: skip

        assert outcome.answer.claim is None
        assert ready(done(outcome), NOW + 1) == ["old"]

    def test_input_comes_from_where_the_entry_says(self) -> None:
        from_instance = self.committed(AtTask("b", input_from=""))[1].answer.input
        from_nowhere = self.committed(AtTask("b", input_from="missing"))[1].answer.input

        assert (from_instance, from_nowhere) == (b"in", None)


class TestHints:
    @pytest.mark.parametrize(
        ("position", "hinted"),
        [
            (AtTask("a"), ["a"]),
            (fork("a", "b"), ["a", "b"]),
            (AtDelay("d", wake_after=us(0), next=AtTask("a")), ["a"]),
            (AtDelay("d", wake_after=us(1), next=AtTask("a")), []),
            (AtSignal("s", "go", next=AtTask("a")), []),
            (AtDelay("d", wake_after=us(0)), []),
            (AtNode("n"), []),
        ],
    )
    def test_hints_name_what_can_run_now(self, position: Position, hinted: list[str]) -> None:
        outcome = carry_out(None, creation(position), MemoryShelf(), NOW)

        assert [entry.node_id for entry in outcome.hints] == hinted

    def test_paused_instance_gives_none(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)

        outcome = carry_out(aggregate, unit(content=content(run("b").pause())), shelf, NOW)

        assert not outcome.hints

    def test_task_that_was_offered_before_is_not_hinted_at_again(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, fork("a", "b"))
        moved = read(aggregate, run(fork("a", "b"))).complete_task("a", b"", next=AtTask("c"))

        outcome = carry_out(aggregate, unit(content=content(moved)), shelf, NOW + 1)

        assert [entry.node_id for entry in outcome.hints] == ["c"]


class TestAvailableAt:
    def available(self, aggregate: Aggregate) -> int | None:
        [entry] = aggregate.entries
        return aggregate.available_at(entry)

    @pytest.mark.parametrize(
        ("until", "available"), [(NOW + 9, NOW + 9), (NOW - 9, NOW), (None, None)]
    )
    def test_claimed_task_is_available_from_the_end_of_the_claim_on(
        self, until: int | None, available: int | None
    ) -> None:
        aggregate = created(MemoryShelf())
        claimed(aggregate, until=until)

        assert self.available(aggregate) == available

    @pytest.mark.parametrize("status", [status for status in Status if status != "in_progress"])
    def test_only_what_is_in_progress_is_available(self, status: Status) -> None:
        aggregate = created(MemoryShelf())
        aggregate.status = status

        assert self.available(aggregate) is None

    def test_done_task_is_not_available(self) -> None:
        aggregate = created(MemoryShelf())
        aggregate.entries[0].done = True

        assert self.available(aggregate) is None

    def test_advance_is_available_although_a_claim_is_on_its_node(self) -> None:
        aggregate = created(MemoryShelf(), AtDelay("d", wake_after=us(5)))
        claimed(aggregate, "d")

        assert self.available(aggregate) == NOW + 5

    @given(lives(), st.integers(0, 60))
    def test_task_that_is_found_is_running_ready_due_and_not_done(
        self, life: Write, elapsed: int
    ) -> None:
        written_at, now = to_micros(life.at), to_micros(life.at) + elapsed
        aggregate = done(carry_out(
            None,
            unit(Guard(presence=Presence.ANY), create="one", content=content(life.snapshot)),
            MemoryShelf(),
            written_at,
        ))  # fmt: skip
        tasks = {task.task_id: task for task in stored(*life).ready_tasks()}

        for entry in aggregate.entries:
            available = aggregate.available_at(entry)

            if available is None or available > now or entry.kind is EntryKind.ADVANCE:
                continue

            assert life.snapshot.status is Status.IN_PROGRESS
            assert not entry.done
            assert entry.due is not None
            assert entry.due <= now

            if (task := tasks.get(entry.node_id)) is not None:
                assert not task.done
                assert task.ready_at is not None
                assert task.ready_at <= life.at + us(elapsed)


def wish(task_id: str = "a", **fields: Any) -> Take:
    given = {"worker_id": "w2", "ttl": 50, "nonce": "m", "tags": ("gpu",), **fields}
    return Take(instance_id="run", task_id=task_id, **given)


class TestTake:
    def test_ready_task_is_granted(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)

        taken = take(aggregate, wish(), shelf, NOW + 1)

        assert taken.claim is not None
        assert taken.claim == aggregate.claims["a"]
        assert (taken.claim.fence, taken.claim.claimed_at, taken.claim.expires_at) == (
            1, NOW + 1, NOW + 51,
        )  # fmt: skip
        assert (taken.claim.worker_id, taken.claim.nonce) == ("w2", "m")
        assert taken.claim.worker_tags == ("gpu",)
        assert taken.facts is not None
        assert taken.facts.live_claims

    def test_unknown_instance_has_no_facts(self) -> None:
        taken = take(None, wish(), MemoryShelf(), NOW)

        assert (taken.facts, taken.claim) == (None, None)

    @pytest.mark.parametrize("ttl", [0, 50, None])
    def test_ttl_counts_from_now_and_none_is_for_ever(self, ttl: int | None) -> None:
        shelf = MemoryShelf()

        taken = take(created(shelf), wish(ttl=ttl), shelf, NOW)

        assert taken.claim is not None
        assert taken.claim.expires_at == (None if ttl is None else NOW + ttl)
        assert taken.claim.live(NOW) == (ttl != 0)

    @pytest.mark.parametrize(
        ("worker_id", "nonce", "granted"),
        [("w1", "n", True), ("w1", "m", False), ("w2", "n", False), ("w2", "m", False)],
    )
    def test_live_claim_is_answered_only_to_its_own_request(
        self, worker_id: str, nonce: str, granted: bool
    ) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        record = claimed(aggregate)

        taken = take(aggregate, wish(worker_id=worker_id, nonce=nonce), shelf, NOW)

        assert taken.claim == (record if granted else None)
        assert aggregate.claims == {"a": record}
        assert shelf.fence == 0

    @pytest.mark.parametrize(("until", "granted"), [(NOW + 1, False), (NOW, True), (NOW - 1, True)])
    def test_expired_claim_is_taken_over_with_a_larger_fence(
        self, until: int, granted: bool
    ) -> None:
        shelf = MemoryShelf()
        shelf.fence = 7
        aggregate = created(shelf)
        claimed(aggregate, until=until)

        taken = take(aggregate, wish(), shelf, NOW)

        assert (taken.claim is not None) == granted
        assert aggregate.claims["a"].fence == (8 if granted else 7)

    @pytest.mark.parametrize("status", [status for status in Status if status != "in_progress"])
    def test_only_what_is_in_progress_is_granted(self, status: Status) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        aggregate.status = status

        assert take(aggregate, wish(), shelf, NOW).claim is None

    def test_task_that_is_not_current_is_not_granted(self) -> None:
        shelf = MemoryShelf()
        tree = fork("a", AtDelay("d", wake_after=us(5)), AtNode("n"))
        aggregate = created(shelf, tree)

        for task_id in ("f", "d", "n", "elsewhere"):
            assert take(aggregate, wish(task_id), shelf, NOW + 9).claim is None

    def test_pending_signal_and_mark_do_not_stop_a_claim(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        aggregate.signals[SignalKind.CANCEL] = mark(SignalKind.CANCEL)
        aggregate.entries[0].done = True

        taken = take(aggregate, wish(), shelf, NOW)

        assert taken.claim is not None
        assert taken.facts is not None
        assert taken.facts.signals == (mark(SignalKind.CANCEL),)

    def test_backing_off_task_is_granted_early_a_parked_one_is_not(self) -> None:
        shelf = MemoryShelf()
        failed = run(fork("a", AtDelay("d", wake_after=us(5), next=AtTask("b"))))
        failed = failed.record_failure("a", RetryPolicy(3, us(90)), error="no")
        aggregate = done(carry_out(
            None, unit(Guard(presence=Presence.ANY), create="one", content=content(failed)),
            shelf, NOW,
        ))  # fmt: skip

        assert take(aggregate, wish("a"), shelf, NOW).claim is not None
        assert take(aggregate, wish("b"), shelf, NOW + 4).claim is None
        assert take(aggregate, wish("b"), shelf, NOW + 5).claim is not None

    def test_task_behind_a_wait_that_met_its_event_asks_for_the_advance_first(self) -> None:
        shelf = MemoryShelf()
        shelf.push("go", b"1", NOW)
        aggregate = created(shelf, AtSignal("s", "go", wake_after=us(5), next=AtTask("a")))

        taken = take(aggregate, wish(), shelf, NOW + 9)

        assert taken.claim is None
        assert taken.facts is not None
        assert taken.facts.advance_due


class TestExtend:
    def extended(
        self, aggregate: Aggregate | None, fence: int = 7, ttl: int = 20, now: int = NOW
    ) -> tuple[bool, Any]:
        answer = extend(
            aggregate, Extend(instance_id="run", key=ClaimKey("a", fence), ttl=ttl), now
        )
        return answer.extended, answer.claim

    @pytest.mark.parametrize("ttl", [20, 500, 0])
    def test_end_is_set_and_not_added_to(self, ttl: int) -> None:
        aggregate = created(MemoryShelf())
        record = claimed(aggregate)

        outcome = self.extended(aggregate, ttl=ttl, now=NOW + 3)

        assert outcome == (True, replace(record, expires_at=NOW + 3 + ttl))
        assert aggregate.claims["a"].expires_at == NOW + 3 + ttl

    def test_eternal_claim_stays_eternal(self) -> None:
        aggregate = created(MemoryShelf())
        record = claimed(aggregate, until=None)

        assert self.extended(aggregate) == (True, record)

    @pytest.mark.parametrize(("fence", "until"), [(6, NOW + 9), (8, NOW + 9), (7, NOW), (7, 1)])
    def test_lost_claim_is_never_revived(self, fence: int, until: int) -> None:
        aggregate = created(MemoryShelf())
        record = claimed(aggregate, until=until)

        assert self.extended(aggregate, fence) == (False, record)
        assert aggregate.claims["a"] == record

    def test_without_a_record_nothing_is_extended(self) -> None:
        assert self.extended(created(MemoryShelf())) == (False, None)
        assert self.extended(None) == (False, None)

    def test_pending_signals_are_told(self) -> None:
        aggregate = created(MemoryShelf())
        claimed(aggregate)
        aggregate.signals[SignalKind.PAUSE] = mark(SignalKind.PAUSE)

        answer = extend(aggregate, Extend(instance_id="run", key=ClaimKey("a", 7), ttl=20), NOW)

        assert answer.signals == (mark(SignalKind.PAUSE),)


class TestView:
    def seen(self, aggregate: Aggregate, shelf: MemoryShelf, **fields: Any) -> Any:
        return view(aggregate, shelf, Read(instance_id="run", **fields), NOW)

    def test_everything_is_read_in_one_step(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, fork("a", "b"), input=b"in", priority=2, tags=["gpu"])
        shelf.kept = {"x": b"1", "y": b"2"}
        aggregate.entries[1].done = True

        seen = self.seen(aggregate, shelf)

        assert (seen.body, seen.body_at, seen.input) == (b"body", NOW, b"in")
        assert (seen.priority, seen.tags, seen.done) == (2, ("gpu",), {"b"})
        assert seen.results == {"x": b"1", "y": b"2"}
        assert seen.heads == {}
        assert seen.facts == aggregate.facts(NOW)

    @pytest.mark.parametrize(
        ("wanted", "results"),
        [
            (True, {"x": b"1", "y": b""}),
            (False, None),
            (("y", "z"), {"y": b""}),
            ((), {}),
        ],
    )
    def test_only_results_that_are_wanted_come(self, wanted: Any, results: Any) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        shelf.kept = {"x": b"1", "y": b""}

        assert self.seen(aggregate, shelf, results=wanted).results == results

    def test_without_the_body_only_facts_come(self) -> None:
        shelf = MemoryShelf()
        seen = self.seen(created(shelf, input=b"in"), shelf, body=False)

        assert (seen.body, seen.input) == (b"", None)
        assert seen.facts.version == 1

    @pytest.mark.parametrize(
        ("position", "told"),
        [
            (AtTask("a"), False),
            (AtSignal("s", "go"), True),
            (AtDelay("d", wake_after=us(5), next=AtSignal("s", "go")), True),
            (AtDelay("d", wake_after=us(5), next=AtTask("a")), False),
        ],
    )
    def test_heads_come_where_a_wait_is_open_or_to_come(
        self, position: Position, told: bool
    ) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, position)
        shelf.push("go", b"1", NOW - 3)

        heads = self.seen(aggregate, shelf).heads

        assert {name: head.arrived_at for name, head in heads.items()} == (
            {"go": NOW - 3} if told else {}
        )

    def test_payloads_come_for_every_name_if_wanted(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf)
        shelf.push("go", b"1", NOW)
        shelf.push("stop", b"2", NOW)

        heads = self.seen(aggregate, shelf, payloads=True).heads

        assert {name: head.payload for name, head in heads.items()} == {"go": b"1", "stop": b"2"}

    def test_facts_tell_live_claims_and_due_advances(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, fork("a", AtDelay("d", wake_after=us(5))))
        claimed(aggregate, until=NOW + 5)

        told = [
            (facts.live_claims, facts.advance_due)
            for facts in (aggregate.facts(NOW + 4), aggregate.facts(NOW + 5))
        ]

        assert told == [(True, False), (False, True)]

    def test_entry_without_a_source_has_no_input(self) -> None:
        shelf = MemoryShelf()
        aggregate = created(shelf, input=b"in")
        [entry] = aggregate.entries

        assert entry_input(entry, shelf) == b"in"
        assert entry_input(replace(entry, input_from=None), shelf) is None


def test_instants_are_those_of_the_store() -> None:
    assert to_micros(at(5)) - to_micros(at(0)) == 5
