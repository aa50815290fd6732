"""The storage SPI: what a store has to do, as eleven methods and the values they speak.

A driver knows rows, keys and documents. It does not know what "cancel" means: `StandardBackend`
turns every public operation into reads and guarded writes, and this module says what those are.
Instants are integer microseconds since 1970 in UTC, durations integer microseconds; every instant
that a driver decides by is its store's own.

A store that runs Python inside its atomic step can build on `sayiir_persist.aggregate`, which
carries out a `Unit` on one instance; then the driver is little more than loading and storing it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct, field

from sayiir_persist.dispatch import Entry
from sayiir_persist.positions import ReadyReason
from sayiir_persist.signals import SignalKind
from sayiir_persist.snapshot import Status

if TYPE_CHECKING:
    from sayiir_persist.claims import WakeHint

SPI_VERSION: Final = 1
"""Counts incompatible changes of this module."""

DAY: Final = 24 * 3600 * 1_000_000
REMEMBERED_EVENT_IDS: Final = 1_000
"""An event id is remembered at least until this many newer ones came, or for `DAY`."""


# --- What is stored ---------------------------------------------------------------------------


class SignalMark(Struct, frozen=True):
    """A pending control signal."""

    kind: SignalKind
    reason: str | None
    requested_by: str | None
    requested_at: int


class ClaimRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A claim as it is kept; it lives while `expires_at` is `None` or later than now."""

    task_id: str
    worker_id: str
    fence: int
    claimed_at: int
    expires_at: int | None
    nonce: str
    worker_tags: tuple[str, ...] = ()

    def live(self, now: int) -> bool:
        """Whether it is still valid at `now`; at exactly `expires_at` it is not."""
        return self.expires_at is None or now < self.expires_at


class Facts(Struct, frozen=True, kw_only=True):
    """What stands beside an instance's body.

    Attributes:
        incarnation: Differs for each creation of the id.
        version: Counts accepted writes.
        status: As projected by the last write.
        definition_hash: What the instance runs.
        created_at: When this incarnation was created.
        updated_at: When the version last grew.
        status_since: When the status last changed.
        last_completed: The node whose result was recorded last.
        signals: The pending control signals.
        live_claims: Whether any claim on the instance is live now.
        advance_due: Whether an advance is due now (in progress, no signal pending).
    """

    incarnation: str
    version: int
    status: Status
    definition_hash: str
    created_at: int
    updated_at: int
    status_since: int
    last_completed: str | None
    signals: tuple[SignalMark, ...]
    live_claims: bool
    advance_due: bool


class Head(Struct, frozen=True):
    """The oldest queued event of one name; `number` identifies it within its instance."""

    number: int
    arrived_at: int
    payload: bytes | None = None


class View(Struct, frozen=True, kw_only=True):
    """One committed version of one instance, read in one consistent step.

    Attributes:
        now: The store's time of the reading.
        facts: What stands beside the body.
        body: The framed body, as it was written; `b""` where it was not asked for.
        body_at: When the body was written: everything in it without stamps was entered then.
        priority: The instance's.
        tags: The instance's.
        input: The instance's.
        done: The nodes of its entries that are marked done.
        results: All results, those asked for, or `None` where none were asked for.
        heads: The oldest queued event of each name that an entry waits for; a reader of a later
            moment may need others, so a store may return more.
    """

    instance_id: str
    now: int
    facts: Facts
    body: bytes
    body_at: int
    priority: int
    tags: tuple[str, ...]
    input: bytes | None
    done: frozenset[str]
    results: Mapping[str, bytes] | None
    heads: Mapping[str, Head]


class Read(Struct, frozen=True, kw_only=True):
    """What to read of one instance.

    Attributes:
        instance_id: Which.
        body: Whether body and input are wanted; facts always come.
        results: `True` for all, `False` for none, or the node ids whose results are wanted.
        payloads: Whether heads come with their payloads, for every name that is queued.
    """

    instance_id: str
    body: bool = True
    results: bool | Collection[str] = True
    payloads: bool = False


# --- Writes -----------------------------------------------------------------------------------


class Presence(StrEnum):
    """What a write asks of the instance's row."""

    REQUIRED = "required"
    ABSENT = "absent"
    ANY = "any"


class ClaimKey(Struct, frozen=True):
    """A claim that a write carries: the one on record must have this fence."""

    task_id: str
    fence: int


class Guard(Struct, frozen=True, kw_only=True):
    """The predicates of a write: a plain conjunction, checked in the same atomic step.

    Attributes:
        presence: Whether a row must, must not, or may be there. The others bind only a row.
        definition_hash: The stored one.
        statuses: The stored status is one of these.
        claim: This claim is on record and live.
        version: The stored one.
        incarnation: The stored one.
        idle: No claim on the instance is live.
        signals: Exactly these control signals are pending.
        head: The oldest queued event of this name has this number.
    """

    presence: Presence = Presence.REQUIRED
    definition_hash: str | None = None
    statuses: tuple[Status, ...] | None = None
    claim: ClaimKey | None = None
    version: int | None = None
    incarnation: str | None = None
    idle: bool = False
    signals: tuple[SignalMark, ...] | None = None
    head: tuple[str, int] | None = None


class Content(Struct, frozen=True, kw_only=True):
    """A new body and everything that is indexed about it.

    Attributes:
        body: Framed bytes.
        status: From the projection.
        status_is_new: The status begins with this write even where the stored one is the same.
        definition_hash: What the instance runs.
        priority: The instance's.
        tags: The instance's.
        last_completed: The node whose result was recorded last.
        entries: From the projection, in tree order. `fresh` ones, and tasks that had no entry
            before, lose an old claim unless it fences this write. No task is due before the
            stored `status_since`.
        idle: From the projection.
        input: The instance's; written by creation and `Unit.replace`, else ignored.
        gained: Results to add or overwrite.
        dropped: Results to remove.
    """

    body: bytes
    status: Status
    status_is_new: bool
    definition_hash: str
    priority: int
    tags: tuple[str, ...]
    last_completed: str | None
    entries: tuple[Entry, ...]
    idle: bool
    input: bytes | None = None
    gained: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    dropped: frozenset[str] = frozenset()


class Record(Struct, frozen=True):
    """One result, recorded without touching the body (`save_task_result`).

    An `early` task entry of that node is marked done. Identical to what is stored, with nothing to
    mark: no version is taken. Refused where time has moved the position on since the body was
    written: where an entry that has not met its event `elapses` by now or, on a paused instance,
    by `status_since`. The body then has to be written with it.
    """

    node_id: str
    output: bytes


class Push(Struct, frozen=True):
    """An event to queue; a repeat of a remembered `(name, event_id)` is a no-op.

    With `limit` events queued already it is refused, unless it meets a wait in this very step.
    """

    name: str
    payload: bytes
    event_id: str | None
    limit: int


class ClaimNext(Struct, frozen=True):
    """Claim the first entry that this write made ready and due, whose tags the worker accepts.

    Only fresh task entries, in tree order, and none where a control signal is pending or a wait has
    met its event, which is drained first.
    """

    worker_id: str
    nonce: str
    tags: tuple[str, ...]
    ttl: int


class Unit(Struct, frozen=True, kw_only=True):
    """One atomic write to one instance: the guard, then everything it does, or nothing.

    What reaches a terminal status loses its entries, claims and signals. Body, record and
    creation take one version; nothing else does.

    Attributes:
        instance_id: Which.
        guard: Refused without any effect unless it holds.
        create: Where no row is: the incarnation of the new one. `None` creates nothing.
        restart: A row that is there goes first, with all that belongs to it, queue included.
        replace: The content's input and results replace those that are stored.
        delete: The row goes, with all that belongs to it; the fence counter stays.
        content: A new body.
        record: A single result.
        signal: A control signal to store (its `requested_at` is the store's).
        clear: Control signals to remove.
        push: An event to queue.
        pop: The name whose oldest event is removed and answered.
        release: The claim on record with this fence, live or not, goes.
        revoke: The task whose live claim goes and is answered.
        claim_next: Claim a task that this write made ready.
        view: Answer with a view (body and input, no results) of what is stored afterwards.
    """

    instance_id: str
    guard: Guard = Guard()
    create: str | None = None
    restart: bool = False
    replace: bool = False
    delete: bool = False
    content: Content | None = None
    record: Record | None = None
    signal: SignalMark | None = None
    clear: frozenset[SignalKind] = frozenset()
    push: Push | None = None
    pop: str | None = None
    release: ClaimKey | None = None
    revoke: str | None = None
    claim_next: ClaimNext | None = None
    view: bool = False


class Refusal(StrEnum):
    """Why a write was refused, where the facts do not tell."""

    GUARD = "guard"
    ELAPSED = "elapsed"
    QUEUE_FULL = "queue_full"


class Answer(Struct, frozen=True, kw_only=True):
    """What became of one unit.

    Attributes:
        now: The store's time of the write, or of the refusal.
        refused: Why nothing was done; `None`: all of it was.
        facts: Of the row as it is now; `None`: there is no row.
        claim: The claim on record of the task that the guard or `release` names (where refused),
            the one that was revoked, or the one that `claim_next` made.
        entry: The entry that `claim_next` claimed.
        input: The input of that entry, where it is another node's result.
        event: The payload that was popped.
        view: Where it was asked for and a row is there.
    """

    now: int
    refused: Refusal | None
    facts: Facts | None
    claim: ClaimRecord | None = None
    entry: Entry | None = None
    input: bytes | None = None
    event: bytes | None = None
    view: View | None = None


# --- Claims and dispatch ----------------------------------------------------------------------


class Take(Struct, frozen=True, kw_only=True):
    """A claim on one task that somebody asks for.

    Granted where the instance is in progress, the task has an entry that is due or `early`, and
    no live claim is on it. A live one of the same worker and nonce is the answer itself.
    """

    instance_id: str
    task_id: str
    worker_id: str
    ttl: int | None
    nonce: str
    tags: tuple[str, ...]


class Taken(Struct, frozen=True, kw_only=True):
    """The answer to a `Take`: facts, and the claim if it was granted.

    With `facts.advance_due` and no claim the question is worth asking again after the advance.
    """

    facts: Facts | None
    claim: ClaimRecord | None = None


class Extend(Struct, frozen=True, kw_only=True):
    """Set the end of a live claim to now + ttl; an eternal one stays eternal."""

    instance_id: str
    key: ClaimKey
    ttl: int


class Extended(Struct, frozen=True, kw_only=True):
    """The answer to an `Extend`: whether it was done, and the claim on record as it is now."""

    extended: bool
    claim: ClaimRecord | None
    signals: tuple[SignalMark, ...] = ()


class Poll(Struct, frozen=True, kw_only=True):
    """Ask for due work.

    Due advances of `definitions` come first: where there is one, up to `advances` instances are
    answered and nothing is offered or claimed. Otherwise the first `limit` entries in the exact
    order of dispatch (see `dispatch.order_key`; then instance id and task id by bytes) are.

    Attributes:
        worker_id: Entries that avoid this worker come last, for `bias` after they became
            available.
        tags: What the worker accepts; empty: everything.
        definitions: Only these; `None`: all.
        limit: How many offers.
        advances: How many due advances to answer at most; 0: offer, whatever is due.
        aging: The aging interval; `None`: none.
        bias: How long an entry yields to other workers.
        claim: Claim what is offered, in the same step; `ttl` and `nonce` are the claims', the
            n-th of a poll gets the nonce `f"{nonce}.{n}"`.
        results: Whether the views come with all results.
        exclude: Instances to pass over.
    """

    worker_id: str
    tags: frozenset[str]
    definitions: frozenset[str] | None
    limit: int
    advances: int
    aging: int | None
    bias: int
    claim: bool
    ttl: int | None
    nonce: str
    worker_tags: tuple[str, ...]
    results: bool
    exclude: frozenset[str]


class Offer(Struct, frozen=True, kw_only=True):
    """A task that is due, with its instance as it is, and the claim if one was asked for.

    Attributes:
        view: With results only if asked for.
        task_id: The entry's node.
        reason: The entry's.
        input: The result that the entry's `input_from` names, or the instance's input.
        claim: What was claimed.
    """

    view: View
    task_id: str
    reason: ReadyReason
    input: bytes | None
    claim: ClaimRecord | None


class Polled(Struct, frozen=True, kw_only=True):
    """The answer to a `Poll`: advances that are due, or offers in order."""

    advances: tuple[str, ...]
    offers: tuple[Offer, ...]


class Page(Struct, frozen=True, kw_only=True):
    """Ask for a listing, ascending by the UTF-8 bytes of the id, after `after`.

    With `idle_for` it is the stalled ones instead: idle, without live claim, and not updated for
    that long, longest first.
    """

    status: Status | None = None
    definition_hash: str | None = None
    after: str | None = None
    limit: int = 100
    idle_for: int | None = None


class Row(Struct, frozen=True, kw_only=True):
    """One line of a listing."""

    instance_id: str
    definition_hash: str
    status: Status
    version: int
    created_at: int
    updated_at: int
    status_since: int
    priority: int
    tags: tuple[str, ...]


class Chores(Struct, frozen=True, kw_only=True):
    """Ask what a sweep has to do, and purge claims that ended before `purge_before` ago.

    Attributes:
        limit: How many instances to answer, and how many claims to purge, at most.
        purge_after: How long an expired claim stays on record.
        exclude: Instances to pass over.
    """

    limit: int
    purge_after: int
    exclude: frozenset[str]


class ChoreList(Struct, frozen=True, kw_only=True):
    """Instances without live claim that have a signal pending or an advance due, oldest first."""

    instances: tuple[str, ...]
    purged: int
    more: bool


class Opened(Struct, frozen=True):
    """What a driver found when it opened its store.

    Attributes:
        server: Product and version, `""` where there is none.
        caveats: What this deployment cannot promise, in words for a log.
        writers: How many calls of `apply` may be on their way at once; what comes meanwhile waits
            and shares the next one.
    """

    server: str = ""
    caveats: tuple[str, ...] = ()
    writers: int = 1


class Driver(Protocol):
    """One namespace of one store. Everything a new backend has to implement.

    Each method is one atomic step, linearizable per instance, and on a server one round trip.
    A driver raises `BackendUnavailableError` where certainly nothing was applied,
    `OutcomeUnknownError` where a write may have been, `BackendClosedError` when it is not open,
    and no error of the library that it builds on. Cancelling a call leaves its step whole or
    absent.
    """

    @property
    def name(self) -> str:
        """What `BackendInfo.name` says."""
        ...

    @property
    def namespace(self) -> str:
        """The only namespace that it sees."""
        ...

    async def open(self) -> Opened:
        """Connect, check the schema, migrate if that is wanted."""
        ...

    async def close(self) -> None:
        """Release what `open` took; ends every `wait` with `BackendClosedError`. Idempotent."""
        ...

    async def read(self, reads: Sequence[Read]) -> Sequence[View | None]:
        """Read instances, each in one consistent step; `None` where no row is."""
        ...

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer | Exception]:
        """Carry out writes, at most one for each instance, each atomic and answered alone.

        One that is refused or fails does not touch its neighbours: its error is its answer. What
        is answered is durable. Raises what keeps all of them from being answered.
        """
        ...

    async def claim(self, take: Take) -> Taken:
        """Claim one task, with a fence above every earlier one of its instance id."""
        ...

    async def extend(self, extend: Extend) -> Extended:
        """Move the end of a claim; one that has ended is never revived."""
        ...

    async def poll(self, query: Poll) -> Polled:
        """Find due work, and claim it if that is asked for."""
        ...

    async def page(self, query: Page) -> Sequence[Row]:
        """List instances without reading their bodies."""
        ...

    async def chores(self, query: Chores) -> ChoreList:
        """List what a sweep has to do, and purge long-expired claims."""
        ...

    async def now(self) -> int:
        """The store's time."""
        ...

    async def wait(self, timeout: float) -> WakeHint | None:
        """Wait at most `timeout` seconds for a hint that a task became executable.

        One that came since this caller's previous return is answered at once.
        """
        ...
