"""Random units, alone and in batches, beside the executable specification of what a unit does."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from sayiir_persist import MemoryStore, SignalKind, Status
from sayiir_persist.adapters.memory import MemoryDriver
from sayiir_persist.adapters.mongo import MongoBackend
from sayiir_persist.dispatch import Entry, EntryKind, When
from sayiir_persist.driver import (
    Answer,
    ClaimKey,
    ClaimNext,
    Content,
    Driver,
    Guard,
    Poll,
    Presence,
    Push,
    Read,
    Record,
    SignalMark,
    Take,
    Unit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

START = datetime(2026, 1, 1, tzinfo=UTC)
NODES = ("a", "b.$c", "$d")
NAMES = ("go", "$stop")
IDS = ("one", "two", "$three.4")
OPEN = (Status.IN_PROGRESS, Status.PAUSED)


class Clock:
    def __init__(self) -> None:
        self.micros = int(START.timestamp() * 1_000_000)

    def __call__(self) -> int:
        return self.micros

    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.micros / 1_000_000, UTC)


class Deck:
    """Units at random, most of them sensible for what is stored."""

    def __init__(self, seed: int, clock: Clock) -> None:
        self._random = random.Random(seed)
        self._clock = clock
        self._count = 0

    def chance(self, odds: float) -> bool:
        return self._random.random() < odds

    def pick(self, values: Sequence[Any]) -> Any:
        return self._random.choice(values)

    def when(self) -> When:
        now = self._clock()
        return self.pick(
            (
                When(after=0),
                When(after=0),
                When(after=2_000_000),
                When(at=now - 1_000_000),
                When(at=now + 1_000_000),
                When(),
                When(at=now + 500_000, after=0),
            )
        )

    def entry(self, node: str) -> Entry:
        waits = self.chance(0.3)
        ends = self.when() if waits and self.chance(0.5) else When()
        is_task = self.chance(0.8)
        return Entry(
            node_id=node,
            kind=EntryKind.TASK if is_task else EntryKind.ADVANCE,
            due=self.when(),
            early=is_task and not waits and self.chance(0.7),
            fresh=self.chance(0.6),
            done=is_task and self.chance(0.1),
            priority=self.pick((1, 3, 5)),
            tags=self.pick(((), ("gpu",), ("$x", "y.z"))),
            input_from=self.pick((None, "", *NODES)),
            avoid=self.pick((None, "w")),
            event=self.pick(NAMES) if waits else None,
            event_until=ends,
            elapses=ends if self.chance(0.5) else When(),
        )

    def content(self) -> Content:
        status = self.pick((*[Status.IN_PROGRESS] * 6, Status.PAUSED, Status.COMPLETED))
        nodes = self._random.sample(NODES, self._random.randint(0, 3))
        entries = () if status.is_terminal else tuple(map(self.entry, nodes))
        self._count += 1
        gained = {node: b"%d" % self._count for node in NODES if self.chance(0.3)}
        return Content(
            body=b"body %d" % self._count,
            status=status,
            status_is_new=self.chance(0.1),
            definition_hash="v$1",
            priority=3,
            tags=("$t",),
            last_completed=self.pick((None, *NODES)),
            entries=entries,
            idle=status is Status.IN_PROGRESS and all(entry.done for entry in entries),
            input=b"input",
            gained=gained,
            dropped=frozenset(n for n in NODES if n not in gained and self.chance(0.1)),
        )

    def unit(self, instance_id: str, view: Any, claims: Sequence[ClaimKey]) -> Unit:
        self._count += 1

        if view is None and self.chance(0.7):
            return Unit(
                instance_id=instance_id,
                guard=Guard(presence=Presence.ABSENT),
                create=f"run-{self._count}",
                content=self.content(),
            )

        make = self.pick(
            (
                *[self._commit] * 5,
                self._save,
                self._record,
                self._record,
                self._signal,
                self._clear,
                *[self._push] * 3,
                *[self._pop] * 2,
                self._release,
                self._revoke,
                self._restart,
                self._delete,
            )
        )
        unit: Unit = make(instance_id, view, claims)
        return replace(unit, view=self.chance(0.2))

    def _claim(self, claims: Sequence[ClaimKey]) -> ClaimKey | None:
        return self.pick(claims) if claims and self.chance(0.9) else None

    def _commit(self, instance_id: str, view: Any, claims: Sequence[ClaimKey]) -> Unit:
        claim = self._claim(claims)
        wish = ClaimNext("w", f"n{self._count}", self.pick(((), ("gpu",))), 3_000_000)
        version = view.facts.version if view and self.chance(0.9) else 1
        return Unit(
            instance_id=instance_id,
            guard=Guard(statuses=OPEN, claim=claim, version=version),
            content=self.content(),
            release=claim if self.chance(0.8) else None,
            claim_next=wish if self.chance(0.8) else None,
        )

    def _save(self, instance_id: str, view: Any, _: Any) -> Unit:
        signals = view.facts.signals if view and self.chance(0.3) else None
        kinds = frozenset(SignalKind) if self.chance(0.3) else frozenset[SignalKind]()
        return Unit(
            instance_id=instance_id,
            guard=Guard(statuses=OPEN, idle=self.chance(0.3), signals=signals),
            content=self.content(),
            clear=kinds,
        )

    def _record(self, instance_id: str, _: Any, claims: Sequence[ClaimKey]) -> Unit:
        claim = self._claim(claims) if self.chance(0.3) else None
        output = b"same" if self.chance(0.5) else b"%d" % self._count
        return Unit(
            instance_id=instance_id,
            guard=Guard(statuses=OPEN, claim=claim),
            record=Record(self.pick(NODES), output),
        )

    def _signal(self, instance_id: str, _: Any, __: Any) -> Unit:
        mark = SignalMark(self.pick(tuple(SignalKind)), "$why", None, 0)
        return Unit(instance_id=instance_id, guard=Guard(statuses=OPEN), signal=mark)

    def _clear(self, instance_id: str, _: Any, __: Any) -> Unit:
        kinds = frozenset({self.pick(tuple(SignalKind))})
        return Unit(instance_id=instance_id, guard=Guard(presence=Presence.ANY), clear=kinds)

    def _push(self, instance_id: str, _: Any, __: Any) -> Unit:
        event_id = self.pick((None, "e1", "e2"))
        push = Push(self.pick(NAMES), b"%d" % self._count, event_id, 3)
        return Unit(instance_id=instance_id, guard=Guard(presence=Presence.ANY), push=push)

    def _pop(self, instance_id: str, view: Any, _: Any) -> Unit:
        name = self.pick(NAMES)

        if view is None or name not in view.heads or self.chance(0.5):
            return Unit(instance_id=instance_id, guard=Guard(presence=Presence.ANY), pop=name)

        head = (name, view.heads[name].number)
        return Unit(
            instance_id=instance_id,
            guard=Guard(statuses=OPEN, version=view.facts.version, head=head),
            content=self.content(),
            pop=name,
        )

    def _release(self, instance_id: str, _: Any, claims: Sequence[ClaimKey]) -> Unit:
        claim = self._claim(claims) or ClaimKey("a", 1)
        return Unit(instance_id=instance_id, guard=Guard(presence=Presence.ANY), release=claim)

    def _revoke(self, instance_id: str, _: Any, __: Any) -> Unit:
        return Unit(instance_id=instance_id, revoke=self.pick(NODES))

    def _restart(self, instance_id: str, _: Any, __: Any) -> Unit:
        return Unit(
            instance_id=instance_id,
            guard=Guard(presence=Presence.ANY),
            create=f"run-{self._count}",
            restart=True,
            content=self.content(),
        )

    def _delete(self, instance_id: str, _: Any, __: Any) -> Unit:
        return Unit(instance_id=instance_id, delete=True)


class Pair:
    """Two stores in step; fences and the numbers of events differ, so each knows its own."""

    def __init__(self, ours: Driver, theirs: Driver) -> None:
        self.ours, self.theirs = ours, theirs
        self.fences: dict[tuple[str, int], int] = {}
        self.numbers: dict[tuple[str, str], int] = {}

    def translated(self, instance_id: str, key: ClaimKey | None) -> ClaimKey | None:
        if key is None:
            return None

        return ClaimKey(key.task_id, self.fences.get((instance_id, key.fence), key.fence))

    def unit_of_ours(self, unit: Unit) -> Unit:
        claim = self.translated(unit.instance_id, unit.guard.claim)
        release = self.translated(unit.instance_id, unit.release)
        head = unit.guard.head

        if head is not None:
            head = (head[0], self.numbers[unit.instance_id, head[0]])

        return replace(unit, guard=replace(unit.guard, claim=claim, head=head), release=release)

    def compare(self, unit: Unit, ours: Any, theirs: Any) -> None:
        assert isinstance(ours, Answer), ours
        self.learn(unit.instance_id, ours.claim, theirs.claim)
        assert plain(ours) == plain(theirs), unit

    def learn(self, instance_id: str, ours: Any, theirs: Any) -> None:
        assert (ours is None) == (theirs is None), (ours, theirs)

        if ours is not None:
            self.fences[instance_id, theirs.fence] = ours.fence

    async def look(self) -> dict[str, Any]:
        reads = [Read(instance_id=each, payloads=True) for each in IDS]
        ours, theirs = await self.ours.read(reads), await self.theirs.read(reads)
        assert [plain(each) for each in ours] == [plain(each) for each in theirs]
        self.numbers = {
            (view.instance_id, name): head.number
            for view in ours
            if view is not None
            for name, head in view.heads.items()
        }
        query = Poll(
            worker_id="w",
            tags=frozenset(),
            definitions=None,
            limit=4,
            advances=0,
            aging=300_000_000,
            bias=1_000_000,
            claim=False,
            ttl=None,
            nonce="",
            worker_tags=(),
            results=False,
            exclude=frozenset(),
        )

        for poll in (query, replace(query, advances=5), replace(query, tags=frozenset({"gpu"}))):
            found, expected = await self.ours.poll(poll), await self.theirs.poll(poll)
            assert sorted(found.advances) == sorted(expected.advances)
            assert [_offer(each) for each in found.offers] == [_offer(e) for e in expected.offers]

        return dict(zip(IDS, theirs, strict=True))


def plain(value: Any) -> Any:
    """Without fences and the order of what has none."""
    if value is None:
        return None

    if getattr(value, "claim", None) is not None:
        value = replace(value, claim=replace(value.claim, fence=0))

    if getattr(value, "entry", None) is not None and value.entry.input_from == "":
        value = replace(value, input=None)  # who asks has it in the snapshot

    if getattr(value, "view", None) is not None:
        value = replace(value, view=plain(value.view))

    facts = getattr(value, "facts", None)

    if facts is not None:
        value = replace(value, facts=replace(facts, signals=tuple(sorted(facts.signals, key=str))))

    if getattr(value, "heads", None) and not isinstance(next(iter(value.heads.values())), tuple):
        heads = {name: (head.arrived_at,) for name, head in value.heads.items()}
        value = replace(value, heads=heads)

    return value


def _offer(offer: Any) -> Any:
    return offer.view.instance_id, offer.task_id, offer.reason, offer.input


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("seed", range(8))
async def test_units_do_what_the_specification_does(
    url: str, name: str, raw: Any, seed: int, together: bool
) -> None:
    del raw
    clock = Clock()
    deck = Deck(seed, clock)
    memory = MemoryDriver(MemoryStore(clock=clock.moment), "default")
    await memory.open()

    async with MongoBackend.connect(url, database=name, _clock=clock) as backend:
        pair = Pair(backend._engine.driver, memory)
        keys: dict[str, list[ClaimKey]] = {each: [] for each in IDS}

        for _ in range(150):
            clock.micros += deck.pick((0, 0, 1, 400_000, 1_500_000))
            views = await pair.look()
            chosen = IDS if together else (deck.pick(IDS),)
            units = [deck.unit(each, views[each], keys[each][-3:]) for each in chosen]
            ours = await pair.ours.apply([pair.unit_of_ours(unit) for unit in units])
            theirs = await memory.apply(units)

            for unit, found, expected in zip(units, ours, theirs, strict=True):
                pair.compare(unit, found, expected)

                if isinstance(expected, Answer) and expected.claim is not None:
                    keys[unit.instance_id].append(
                        ClaimKey(expected.claim.task_id, expected.claim.fence)
                    )

            take = Take(
                instance_id=deck.pick(IDS),
                task_id=deck.pick(NODES),
                worker_id="w",
                ttl=deck.pick((None, 0, 2_000_000)),
                nonce=f"take-{deck.pick(range(3))}",
                tags=(),
            )
            taken, expected_taken = await pair.ours.claim(take), await memory.claim(take)
            pair.learn(take.instance_id, taken.claim, expected_taken.claim)
            assert plain(taken) == plain(expected_taken)

            if expected_taken.claim is not None:
                fence = expected_taken.claim.fence
                keys[take.instance_id].append(ClaimKey(take.task_id, fence))
