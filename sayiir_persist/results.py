"""The results of a workflow: an immutable mapping that grows in O(1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from sayiir_persist.errors import ResultsNotLoadedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMPACT_ABOVE: Final = 64


class _Change(NamedTuple):
    number: int
    value: bytes | None  # None: dropped
    older: _Change | None


class _Ledger:
    """What came after the base, in order. Shared by every `Results` of one line of descent."""

    __slots__ = ("inherited", "latest", "order")

    def __init__(self) -> None:
        self.latest: dict[str, _Change] = {}
        self.order: list[str] = []
        self.inherited = 0  # how many changes a copy began with


class ResultsDelta(NamedTuple):
    """What a save has to write: the results gained and the node ids whose results go."""

    gained: dict[str, bytes]
    dropped: frozenset[str]


class Results(Mapping[str, bytes]):
    """Results by node id, in the order in which they were recorded.

    Immutable. Adding one shares everything there was, so a long workflow pays for its step and
    not for its past. Where the snapshot was loaded without results, a look-up of one that is not
    at hand raises `ResultsNotLoadedError` instead of claiming that there is none.

    Example:
        >>> Results({"charge": b"paid"})["charge"]
        b'paid'
    """

    # A value is the base (as loaded, never mutated) plus the first `_length` changes of a ledger
    # that only grows. The newest value appends to it; an older one that gains a result copies.
    # The first `_saved` changes are stored already, the rest is the delta of the next save.
    __slots__ = ("_base", "_count", "_ledger", "_length", "_loaded", "_saved")

    _base: Mapping[str, bytes]
    _count: int
    _ledger: _Ledger
    _length: int
    _loaded: bool
    _saved: int

    def __init__(self, results: Mapping[str, bytes] | None = None) -> None:
        self._base, self._count, self._ledger = {}, 0, _Ledger()
        self._length, self._saved, self._loaded = 0, 0, True

        for node_id, output in (results or {}).items():
            self._append(node_id, output)

    @classmethod
    def stored(cls, results: Mapping[str, bytes] | None) -> Self:
        """The results as a store holds them; `None`: they were left out."""
        new = cls()
        new._base = {} if results is None else results
        new._count = len(new._base)
        new._loaded = results is not None
        return new

    @property
    def loaded(self) -> bool:
        """Whether all results of the instance are at hand."""
        return self._loaded

    def with_result(self, node_id: str, output: bytes) -> Self:
        """These results and one more, or another output of that node."""
        new = self._successor()
        new._append(node_id, output)
        return new

    def without(self, node_id: str) -> Self:
        """These results less one; where they were not loaded, whether or not it is there."""
        if self._loaded and node_id not in self:
            return self

        new = self._successor()
        new._append(node_id, None)
        return new

    def delta(self) -> ResultsDelta:
        """What was gained and dropped since these results were loaded or saved."""
        changed = dict.fromkeys(self._ledger.order[self._saved : self._length])
        gained: dict[str, bytes] = {}
        dropped: set[str] = set()

        for node_id in changed:
            value = self._find(node_id)

            if value is None:
                dropped.add(node_id)
            else:
                gained[node_id] = value

        return ResultsDelta(gained, frozenset(dropped))

    def saved(self) -> Self:
        """The same results, with nothing left to save."""
        new = self._share()
        new._saved = new._length
        return new

    def at_hand(self) -> dict[str, bytes]:
        """The results that are at hand: all of them, or those gained since a partial load."""
        visible = {k: v for k in self._base if (v := self._find(k)) is not None}

        for node_id in self._ledger.order[: self._length]:
            if node_id not in visible and (value := self._find(node_id)) is not None:
                visible[node_id] = value

        return visible

    def __getitem__(self, node_id: str) -> bytes:
        change = self._ledger.latest.get(node_id)

        while change is not None and change.number >= self._length:
            change = change.older

        if change is not None:
            if change.value is None:
                raise KeyError(node_id)

            return change.value

        try:
            return self._base[node_id]
        except KeyError:
            if self._loaded:
                raise

            raise ResultsNotLoadedError(node_id) from None

    def __iter__(self) -> Iterator[str]:
        if not self._loaded:
            raise ResultsNotLoadedError

        return iter(self.at_hand())

    def __len__(self) -> int:
        if not self._loaded:
            raise ResultsNotLoadedError

        return self._count

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Results):
            return self._loaded == other._loaded and self.at_hand() == other.at_hand()

        if isinstance(other, Mapping):
            return self._loaded and self.at_hand() == other

        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> tuple[object, ...]:
        return type(self)._of_parts, self._parts()

    def __repr__(self) -> str:
        if not self._loaded:
            return "Results(<not loaded>)"

        return f"Results(<{self._count}>)"

    def _find(self, node_id: str) -> bytes | None:
        try:
            return self[node_id]
        except (KeyError, ResultsNotLoadedError):
            return None

    def _share(self) -> Self:
        new = object.__new__(type(self))
        new._base, new._count, new._ledger = self._base, self._count, self._ledger
        new._length, new._saved, new._loaded = self._length, self._saved, self._loaded
        return new

    def _successor(self) -> Self:
        ledger = self._ledger

        if len(ledger.order) != self._length:  # another value grew first
            return self._copy()

        if self._length > _COMPACT_ABOVE + 2 * max(self._count, ledger.inherited):
            return self._copy()  # mostly superseded changes

        return self._share()

    def _copy(self) -> Self:
        return self._of_parts(*self._parts())

    def _parts(self) -> tuple[bool, dict[str, bytes], frozenset[str], ResultsDelta]:
        before = self._share()
        before._length = self._saved
        stored = before.at_hand()
        # Only where results were left out does it matter which ones are known to be gone.
        known = () if self._loaded else self._ledger.order[: self._saved]
        return self._loaded, stored, frozenset(known).difference(stored), self.delta()

    @classmethod
    def _of_parts(
        cls, loaded: bool, stored: dict[str, bytes], gone: frozenset[str], delta: ResultsDelta
    ) -> Self:
        new = cls.stored(stored)
        new._loaded = loaded

        for node_id in gone:
            new._append(node_id, None)

        new._saved = new._length

        for node_id in delta.dropped:
            new._append(node_id, None)

        for node_id, output in delta.gained.items():
            new._append(node_id, output)

        new._ledger.inherited = new._length
        return new

    def _append(self, node_id: str, value: bytes | None) -> None:
        had = self._find(node_id) is not None
        ledger = self._ledger
        ledger.latest[node_id] = _Change(len(ledger.order), value, ledger.latest.get(node_id))
        ledger.order.append(node_id)
        self._length += 1
        self._count += (value is not None) - had
