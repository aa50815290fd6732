"""Claims and fences."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from anyio.lowlevel import checkpoint
from conformance.saboteurs.base import (
    SabotagedBackend,
    SabotagedDriver,
    caught_by,
    unguarded,
)
from msgspec.structs import replace

from sayiir_persist import ClaimNotFoundError, InstanceNotFoundError, Status
from sayiir_persist.aggregate import IndexedEntry
from sayiir_persist.dispatch import EntryKind
from sayiir_persist.driver import DAY, Guard, Presence, Take, Taken

if TYPE_CHECKING:
    from typing import Any

    from sayiir_persist import TaskClaim
    from sayiir_persist.aggregate import Aggregate
    from sayiir_persist.driver import (
        Answer,
        ChoreList,
        Chores,
        ClaimRecord,
        Extend,
        Extended,
        Poll,
        Polled,
        Unit,
    )


@caught_by(
    "FENCE-001",
    "FENCE-002",
    "FENCE-003",
    "FENCE-004",
    "FENCE-006",
    "FENCE-012",
    "FENCE-014",
    "RACE-007",
    "FENCE-024",
    "FENCE-027",
    "TENANCY-002",
)
class NoFence(SabotagedDriver):
    """Writes do not look at the claim that they carry."""

    def write(self, unit: Unit) -> Answer:
        if unit.guard.claim is None:
            return super().write(unit)

        answer = super().write(replace(unguarded(unit, "claim"), release=None))
        row = self.row(unit.instance_id)

        if row is not None and unit.release is not None and answer.refused is None:
            row.claims.pop(unit.release.task_id, None)
            self.reindex(unit.instance_id)

        return answer


@caught_by("FENCE-003", "FENCE-006", "CLAIM-023", "CLAIM-020")
class SameNameFence(SabotagedDriver):
    """The fence is the worker's name, so an earlier execution of the same worker passes."""

    async def grant(self, take: Take) -> Taken:
        taken = await super().grant(take)
        row = self.row(take.instance_id)

        if row is None or taken.claim is None:
            return taken

        named = replace(taken.claim, fence=crc32(take.worker_id.encode()))
        row.claims[take.task_id] = named
        return replace(taken, claim=named)


@caught_by("FENCE-006", "CLAIM-023")
class FenceRestartsAfterDeletion(SabotagedDriver):
    """The counter of fences goes with the instance that is deleted."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)

        if unit.delete and answer.refused is None:
            self._space.last_fence = 0

        return answer


@caught_by("FENCE-001", "FENCE-011", "DISPATCH-065")
class ExpiredClaimsWrite(SabotagedDriver):
    """The fence is compared, but not whether the claim is still live."""

    def write(self, unit: Unit) -> Answer:
        key, row = unit.guard.claim, self.row(unit.instance_id)
        held = row.claims.get(key.task_id) if row and key else None

        if key is not None and held is not None and held.fence == key.fence:
            return super().write(unguarded(unit, "claim"))

        return super().write(unit)


@caught_by(
    "CLAIM-005", "CLAIM-008", "CLAIM-009", "CLAIM-044", "FENCE-001", "CLAIM-052", "SIGNAL-052"
)
class ClaimsNeverExpire(SabotagedDriver):
    """A claim shows when it ends, but it does not end."""

    async def grant(self, take: Take) -> Taken:
        taken = await super().grant(replace(take, ttl=None))

        if taken.claim is None or take.ttl is None:
            return taken

        return replace(
            taken, claim=replace(taken.claim, expires_at=taken.claim.claimed_at + take.ttl)
        )


@caught_by("CLAIM-008", "CLAIM-010", "CLAIM-042", "RACE-003")
class ClaimsLiveAtTheirEnd(SabotagedDriver):
    """A claim is still live at exactly the instant at which it ends."""

    async def grant(self, take: Take) -> Taken:
        held = _held(self.row(take.instance_id), take.task_id)

        if held is not None and held.expires_at == await self.now():
            return await super().grant(replace(take, task_id="nothing that could be claimed"))

        return await super().grant(take)


@caught_by("CLAIM-001", "CLAIM-041")
class ClientClockDecides(SabotagedDriver):
    """Claims go by the clocks of those who make them, a minute ahead of the store or more."""

    async def grant(self, take: Take) -> Taken:
        with self.clock_ahead(self._ahead):
            return await super().grant(take)

    async def offer(self, query: Poll) -> Polled:
        with self.clock_ahead(self._ahead):
            return await super().offer(query)

    @property
    def _ahead(self) -> int:
        machines: list[object] = self.notes.setdefault("machines", [])

        if self not in machines:
            machines.append(self)

        return (machines.index(self) + 1) * 60_000_000


@caught_by("CLAIM-041")
class AdditiveExtend(SabotagedDriver):
    """An extension is added to what is left of the claim."""

    async def prolong(self, extend: Extend) -> Extended:
        held = _held(self.row(extend.instance_id), extend.key.task_id)
        left = held.expires_at - await self.now() if held and held.expires_at else 0
        return await super().prolong(replace(extend, ttl=extend.ttl + max(0, left)))


@caught_by("CLAIM-044", "FENCE-001")
class ExtendRevives(SabotagedDriver):
    """An expired claim that nobody took over is extended like a live one."""

    async def prolong(self, extend: Extend) -> Extended:
        row, now = self.row(extend.instance_id), await self.now()
        held = _held(row, extend.key.task_id)

        if row is not None and held is not None and not held.live(now):
            row.claims[held.task_id] = replace(held, expires_at=now + 1)

        return await super().prolong(extend)


@caught_by("CLAIM-045", "FENCE-002", "FENCE-012")
class ExtendUnfenced(SabotagedDriver):
    """An extension is for whoever holds the task now."""

    async def prolong(self, extend: Extend) -> Extended:
        held = _held(self.row(extend.instance_id), extend.key.task_id)
        key = replace(extend.key, fence=held.fence) if held else extend.key
        return await super().prolong(replace(extend, key=key))


@caught_by("CLAIM-043")
class EternalClaimsEnd(SabotagedDriver):
    """Extending a claim that never expires gives it an end."""

    async def prolong(self, extend: Extend) -> Extended:
        row, now = self.row(extend.instance_id), await self.now()
        held = _held(row, extend.key.task_id)

        if row is not None and held is not None and held.expires_at is None:
            row.claims[held.task_id] = replace(held, expires_at=now + 1)

        return await super().prolong(extend)


@caught_by("CLAIM-004")
class NonceIgnored(SabotagedDriver):
    """A worker that asks again with its nonce does not get its claim back."""

    async def grant(self, take: Take) -> Taken:
        taken, now = await super().grant(take), await self.now()

        if taken.claim is None or taken.claim.claimed_at == now:
            return taken

        return replace(taken, claim=None)


@caught_by("CLAIM-004")
class NonceIsEnough(SabotagedDriver):
    """Whoever knows the nonce of a claim gets it, another worker as well."""

    async def grant(self, take: Take) -> Taken:
        held = _held(self.row(take.instance_id), take.task_id)

        if held is not None and held.nonce == take.nonce:
            take = replace(take, worker_id=held.worker_id)

        return await super().grant(take)


@caught_by("CLAIM-007", "CLAIM-019", "DISPATCH-038")
class ClaimsWhatIsNotReady(SabotagedDriver):
    """A claim is granted on any task of a running instance, wherever it stands."""

    async def grant(self, take: Take) -> Taken:
        row = self.row(take.instance_id)

        if row is None or any(entry.node_id == take.task_id for entry in row.entries):
            return await super().grant(take)

        anything = IndexedEntry(node_id=take.task_id, kind=EntryKind.TASK, due=None, early=True)
        row.entries.append(anything)
        taken = await super().grant(take)
        row.entries.remove(anything)
        return taken


@caught_by("CLAIM-007", "CLAIM-017", "DISPATCH-031")
class ClaimsBehindAPark(SabotagedDriver):
    """The task behind a park can be claimed before the park has ended."""

    async def grant(self, take: Take) -> Taken:
        row = self.row(take.instance_id)

        for entry in row.entries if row else ():
            entry.early = True

        return await super().grant(take)


@caught_by("CLAIM-021", "CLAIM-022", "RACE-001", "RACE-002")
class DoubleClaim(SabotagedDriver):
    """A claim looks whether the task is free, awaits, and then writes without looking again."""

    async def grant(self, take: Take) -> Taken:
        row, now = self.row(take.instance_id), await self.now()
        held = _held(row, take.task_id)
        free = held is None or not held.live(now)
        await checkpoint()

        if row is not None and free:
            row.claims.pop(take.task_id, None)

        return await super().grant(take)


@caught_by("RACE-004", "RACE-005")
class AcquiredTwice(SabotagedDriver):
    """Acquiring finds tasks, awaits, and then claims what it found without looking again."""

    async def offer(self, query: Poll) -> Polled:
        found = await super().offer(replace(query, claim=False))

        if not query.claim:
            return found

        await checkpoint()
        offers = []

        for offer in found.offers:
            instance_id = offer.view.instance_id
            self.rows()[instance_id].claims.pop(offer.task_id, None)
            taken = await super().grant(
                Take(
                    instance_id=instance_id,
                    task_id=offer.task_id,
                    worker_id=query.worker_id,
                    ttl=query.ttl,
                    nonce=f"{query.nonce}.{len(offers)}",
                    tags=query.worker_tags,
                )
            )
            offers.append(replace(offer, claim=taken.claim))

        return replace(found, offers=tuple(offers))


@caught_by("CLAIM-135", "DISPATCH-041", "RACE-020")
class OneClaimForAllBranches(SabotagedDriver):
    """An instance has room for one claim: that on a branch pushes out that on another."""

    async def grant(self, take: Take) -> Taken:
        taken = await super().grant(take)

        if taken.claim is not None:
            self._keep(take.instance_id, taken.claim)

        return taken

    async def offer(self, query: Poll) -> Polled:
        polled = await super().offer(query)

        for offer in polled.offers:
            if offer.claim is not None:
                self._keep(offer.view.instance_id, offer.claim)

        return polled

    def _keep(self, instance_id: str, claim: ClaimRecord) -> None:
        self.rows()[instance_id].claims = {claim.task_id: claim}
        self.reindex(instance_id)


@caught_by("CLAIM-101", "CLAIM-102", "CLAIM-110", "RACE-006", "SNAPSHOT-119")
class CommitKeepsTheClaim(SabotagedDriver):
    """A commit saves, but does not release."""

    def write(self, unit: Unit) -> Answer:
        return super().write(replace(unit, release=None) if unit.content else unit)


@caught_by("CLAIM-121", "CLAIM-135")
class CommitReleasesAnybody(SabotagedDriver):
    """A commit of one branch releases the claims on the others."""

    def write(self, unit: Unit) -> Answer:
        row = self.row(unit.instance_id)
        answer = super().write(unit)

        if row is not None and unit.content and unit.release and answer.refused is None:
            row.claims.clear()
            self.reindex(unit.instance_id)

        return answer


@caught_by("CLAIM-032", "FENCE-002", "FENCE-003")
class ReleaseUnfenced(SabotagedDriver):
    """A release removes whatever claim is on the task."""

    def write(self, unit: Unit) -> Answer:
        held = _held(self.row(unit.instance_id), unit.release.task_id) if unit.release else None

        if held is not None and unit.content is None and unit.guard.claim is None:
            unit = replace(unit, release=replace(unit.release, fence=held.fence))

        return super().write(unit)


@caught_by("CLAIM-051")
class RevokeSparesEternalClaims(SabotagedDriver):
    """An operator cannot end a claim that never expires."""

    def write(self, unit: Unit) -> Answer:
        held = _held(self.row(unit.instance_id), unit.revoke) if unit.revoke else None

        if held is not None and held.expires_at is None:
            unit = replace(unit, revoke=None)

        return super().write(unit)


@caught_by("CLAIM-054", "DISPATCH-056")
class PurgesAtOnce(SabotagedDriver):
    """A sweep forgets claims as soon as they have expired."""

    async def chores(self, query: Chores) -> ChoreList:
        return await super().chores(replace(query, purge_after=0))


@caught_by("CLAIM-122", "CLAIM-123")
class NextIgnoresTags(SabotagedDriver):
    """claim_next hands a worker tasks that it does not accept."""

    def write(self, unit: Unit) -> Answer:
        return super().write(_with_next(unit, tags=()))


@caught_by("CLAIM-121")
class NextWithoutNonce(SabotagedDriver):
    """The claim of claim_next has a nonce that its worker does not know."""

    def write(self, unit: Unit) -> Answer:
        return super().write(_with_next(unit, nonce="another"))


@caught_by("CLAIM-126", "RACE-021", "CLAIM-140")
class NextIsWhateverIsReady(SabotagedDriver):
    """claim_next takes any task of the instance that is free, not only what the commit entered."""

    def write(self, unit: Unit) -> Answer:
        if unit.claim_next is not None and unit.content is not None:
            entries = tuple(replace(entry, fresh=True) for entry in unit.content.entries)
            unit = replace(unit, content=replace(unit.content, entries=entries))

        return super().write(unit)


@caught_by("SIGNAL-046", "SNAPSHOT-113")
class CompletionKeepsClaims(SabotagedDriver):
    """Claims outlive the completion of their workflow."""

    def write(self, unit: Unit) -> Answer:
        row = self.row(unit.instance_id)
        claims = dict(row.claims) if row else {}
        answer = super().write(unit)

        if row is not None and row.status is Status.COMPLETED and answer.refused is None:
            row.claims.update(claims)

        return answer


@caught_by("CLAIM-003", "CLAIM-034")
class OwnClaimsAreNoObstacle(SabotagedDriver):
    """A worker gets a second claim on a task that it holds already."""

    async def grant(self, take: Take) -> Taken:
        row = self.row(take.instance_id)
        held = _held(row, take.task_id)

        if row is not None and held is not None and held.worker_id == take.worker_id:
            del row.claims[take.task_id]

        return await super().grant(take)


@caught_by("CLAIM-011")
class EternalIsADay(SabotagedDriver):
    """A ttl of None stands for a day."""

    async def grant(self, take: Take) -> Taken:
        return await super().grant(replace(take, ttl=DAY if take.ttl is None else take.ttl))


@caught_by("CLAIM-010")
class ZeroIsEternal(SabotagedDriver):
    """A ttl of zero is taken for none."""

    async def grant(self, take: Take) -> Taken:
        return await super().grant(replace(take, ttl=take.ttl or None))

    async def offer(self, query: Poll) -> Polled:
        return await super().offer(replace(query, ttl=query.ttl or None))


@caught_by("CLAIM-002")
class UnknownIsClaimed(SabotagedBackend):
    """Claiming a task of an instance that is not there is answered like one that is taken."""

    async def claim_task(self, *args: Any, **options: Any) -> TaskClaim | None:
        try:
            return await super().claim_task(*args, **options)
        except InstanceNotFoundError:
            return None


@caught_by("CLAIM-006", "CLAIM-024")
class OneNonceForAll(SabotagedBackend):
    """Where no nonce is given all claims have the same one."""

    async def claim_task(
        self, *args: Any, nonce: str | None = None, **options: Any
    ) -> TaskClaim | None:
        return await super().claim_task(*args, nonce=nonce or "none", **options)


@caught_by("SIGNAL-042", "CLAIM-015")
class SignalNotTold(SabotagedDriver):
    """A claim does not tell that a signal is pending."""

    async def grant(self, take: Take) -> Taken:
        taken = await super().grant(take)

        if taken.facts is None:
            return taken

        return replace(taken, facts=replace(taken.facts, signals=()))


@caught_by("CLAIM-018", "DISPATCH-026")
class DoneCannotBeClaimed(SabotagedDriver):
    """Nobody can claim a task that is marked done, so nobody can move it on."""

    async def grant(self, take: Take) -> Taken:
        row = self.row(take.instance_id)
        done = (
            any(entry.done for entry in row.entries if entry.node_id == take.task_id) if row else 0
        )
        return await super().grant(replace(take, task_id="no such task") if done else take)


@caught_by("CLAIM-016", "DISPATCH-028")
class BackoffCannotBeClaimed(SabotagedDriver):
    """A task that backs off cannot be claimed by its id."""

    async def grant(self, take: Take) -> Taken:
        row, now = self.row(take.instance_id), await self.now()

        for entry in row.entries if row else ():
            entry.early = entry.due is not None and entry.due <= now

        return await super().grant(take)


@caught_by("RACE-003")
class ExtendsBlindly(SabotagedDriver):
    """An extension looks whether the claim is live, awaits, and then writes it back."""

    async def prolong(self, extend: Extend) -> Extended:
        row, now = self.row(extend.instance_id), await self.now()
        seen = _held(row, extend.key.task_id)

        for _ in range(3):
            await checkpoint()

        live = seen is not None and seen.fence == extend.key.fence and seen.live(now)

        if row is not None and seen is not None and live and seen.expires_at is not None:
            row.claims[seen.task_id] = replace(seen, expires_at=await self.now() + 1)

        return await super().prolong(extend)


@caught_by("CLAIM-041", "SNAPSHOT-222", "SNAPSHOT-309", "FENCE-009")
class ExtendChangesTheFence(SabotagedDriver):
    """An extended claim has a new fence, and the value from before is worth nothing."""

    async def prolong(self, extend: Extend) -> Extended:
        extended = await super().prolong(extend)
        row = self.row(extend.instance_id)

        if row is None or extended.claim is None or not extended.extended:
            return extended

        self._space.last_fence += 1
        claim = replace(extended.claim, fence=self._space.last_fence)
        row.claims[claim.task_id] = claim
        return replace(extended, claim=claim)


@caught_by("SNAPSHOT-109", "FENCE-026")
class SavesDropClaims(SabotagedDriver):
    """A save of an instance drops the claims on its tasks."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if row is not None and unit.content and unit.guard.claim is None and not answer.refused:
            row.claims.clear()
            self.reindex(unit.instance_id)

        return answer


@caught_by("FENCE-005", "FENCE-021", "SNAPSHOT-404", "RACE-012")
class ClaimBringsBack(SabotagedDriver):
    """A commit recreates the instance that was deleted under its worker's hands."""

    def write(self, unit: Unit) -> Answer:
        if unit.content is not None and unit.guard.claim and self.row(unit.instance_id) is None:
            unit = replace(unit, guard=Guard(presence=Presence.ANY), release=None, create="late")

        return super().write(unit)


@caught_by("CLAIM-031", "CLAIM-034", "CLAIM-035", "CLAIM-033", "CLAIM-111", "DISPATCH-064")
class ReleasesTwice(SabotagedBackend):
    """Releasing a claim that is not there is a success."""

    async def release_task_claim(self, claim: TaskClaim) -> None:
        try:
            await super().release_task_claim(claim)
        except ClaimNotFoundError:
            return


@caught_by("CLAIM-053", "FENCE-004", "FENCE-014")
class RevokeOnlyExpires(SabotagedDriver):
    """A revoked claim stays on record as one that has expired."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if row is not None and unit.revoke and answer.claim is not None:
            row.claims[unit.revoke] = replace(answer.claim, expires_at=answer.now)
            self.reindex(unit.instance_id)

        return answer


@caught_by("CLAIM-127")
class NextIsEternal(SabotagedDriver):
    """The claim of claim_next never expires."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if row is None or unit.claim_next is None or answer.claim is None or answer.refused:
            return answer

        claim = replace(answer.claim, expires_at=None)
        row.claims[claim.task_id] = claim
        return replace(answer, claim=claim)


@caught_by("CLAIM-128", "DISPATCH-010", "DISPATCH-011", "SNAPSHOT-236")
class InputOfTheInstance(SabotagedDriver):
    """Every task gets the input of its instance, wherever it is wired to."""

    def write(self, unit: Unit) -> Answer:
        if unit.content is not None:
            entries = tuple(replace(entry, input_from="") for entry in unit.content.entries)
            unit = replace(unit, content=replace(unit.content, entries=entries))

        return super().write(unit)


def _held(row: Aggregate | None, task_id: str) -> ClaimRecord | None:
    return row.claims.get(task_id) if row else None


def _with_next(unit: Unit, **changes: Any) -> Unit:
    if unit.claim_next is None:
        return unit

    return replace(unit, claim_next=replace(unit.claim_next, **changes))
