"""The storage SPI on PostgreSQL: one statement for each call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sayiir_persist.adapters.postgres import wire
from sayiir_persist.adapters.postgres.queries import queries
from sayiir_persist.driver import (
    Answer,
    ChoreList,
    Chores,
    Extend,
    Extended,
    Opened,
    Page,
    Poll,
    Polled,
    Read,
    Row,
    Take,
    Taken,
    Unit,
    View,
)
from sayiir_persist.errors import (
    BackendClosedError,
    BackendUnavailableError,
    ConfigurationError,
    OutcomeUnknownError,
    PersistError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist.adapters.postgres.connections import Connections
    from sayiir_persist.adapters.postgres.listener import Listener
    from sayiir_persist.adapters.postgres.schema import Schema
    from sayiir_persist.claims import WakeHint

_LONGEST_AGING: Final = 10**18
"""In microseconds. More lies between no two instants, so then priority alone decides."""

_ISOLATION: Final = "SELECT current_setting('transaction_isolation')"
_WANTED_ISOLATION: Final = "read committed"
"""What waited for a lock has to see what was committed meanwhile, or events miss their waits."""

_SERVER_LOST: Final = (BackendUnavailableError, OutcomeUnknownError, BackendClosedError)


class PostgresDriver:
    """One namespace of one schema.

    Args:
        connections: Where statements run.
        schema: Where the tables and functions are.
        listener: How hints come and go.
        namespace: The only one that it sees.
    """

    name = "postgres"

    def __init__(
        self, connections: Connections, schema: Schema, listener: Listener, namespace: str
    ) -> None:
        self.namespace = namespace
        self._connections = connections
        self._schema = schema
        self._listener = listener
        self._sql = queries(schema.quoted)

    # --- Life ---

    async def open(self) -> Opened:
        await self._connections.open()

        try:
            await self._check_isolation()
            await self._schema.prepare(self._connections)
            await self._listener.open()
        except BaseException:
            await self._connections.close()
            raise

        return Opened(
            self._connections.server,
            caveats=(*self._connections.caveats, *self._listener.caveats),
            writers=self._connections.writers,
        )

    async def close(self) -> None:
        try:
            await self._listener.close()
        finally:
            await self._connections.close()

    async def _check_isolation(self) -> None:
        [row] = await self._read(_ISOLATION)

        if row[0] != _WANTED_ISOLATION:
            raise ConfigurationError(
                f"transactions are {row[0]} by default and must be {_WANTED_ISOLATION}: set "
                "default_transaction_isolation for the role, or in server_settings"
            )

    # --- The SPI ---

    async def now(self) -> int:
        [row] = await self._read(self._sql.now)
        return int(row[0])

    async def read(self, reads: Sequence[Read]) -> Sequence[View | None]:
        return [await self._view(read) for read in reads]

    async def _view(self, read: Read) -> View | None:
        sql, results = self._sql, read.results is not False
        asked = (self.namespace, read.instance_id, read.body)

        if results:
            wanted = None if isinstance(read.results, bool) else list(read.results)
            statement = sql.read_all if read.payloads else sql.read_results
            rows = await self._read(statement, *asked, wanted)
        else:
            statement = sql.read_payloads if read.payloads else sql.read
            rows = await self._read(statement, *asked)

        return wire.view(read.instance_id, rows[0], results=results) if rows else None

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer | Exception]:
        answers: dict[str, Answer | Exception] = {}
        left: list[Unit] = []
        steps: list[tuple[Unit, wire.Arguments]] = []

        # In one order everywhere, so that two batches never wait for one another.
        for unit in sorted(units, key=_by_id) if len(units) > 1 else units:
            step = None if len(units) > 1 and wire.is_heavy(unit) else wire.step(unit)

            if step is None:
                left.append(unit)
            else:
                steps.append((unit, step))

        if steps:
            answers.update(await self._step(steps))
            left.extend(unit for unit, _ in steps if unit.instance_id not in answers)
            left.sort(key=_by_id)

        if left:
            answers.update(await self._write_all(left))

        return [answers[unit.instance_id] for unit in units]

    async def _step(
        self, steps: Sequence[tuple[Unit, wire.Arguments]]
    ) -> dict[str, Answer | Exception]:
        """Answer those that the statement did; all of them where it says nothing of any."""
        try:
            if len(steps) == 1:
                rows = await self._write(self._sql.step, self.namespace, *steps[0][1])
            else:
                columns = wire.columns([said for _, said in steps])
                rows = await self._write(self._sql.step_batch, self.namespace, *columns)
        except _SERVER_LOST as error:
            return {unit.instance_id: error for unit, _ in steps}
        except PersistError:  # the server refuses one of them, and so has done none
            return {}

        answers: dict[str, Answer | Exception] = {}

        for row in rows:
            place: int = row[0]
            unit = steps[place - 1][0]
            answers[unit.instance_id] = self._told(wire.stepped(unit, row))

        return answers

    async def _write_all(self, units: Sequence[Unit]) -> dict[str, Answer | Exception]:
        alone: list[tuple[Unit, wire.Arguments]] = []
        together: list[tuple[Unit, wire.Arguments]] = []
        answers: dict[str, Answer | Exception] = {}

        for unit in units:
            said = wire.arguments(unit)
            goes_alone = len(units) == 1 or wire.is_wide(said) or wire.is_heavy(unit)
            (alone if goes_alone else together).append((unit, said))

        if together:
            answers.update(await self._write_together(together))

        for unit, said in alone:
            answers[unit.instance_id] = await self._write_alone(unit, said)

        return answers

    async def _write_together(
        self, batch: Sequence[tuple[Unit, wire.Arguments]]
    ) -> dict[str, Answer | Exception]:
        columns = wire.narrow_columns([said for _, said in batch])

        try:
            rows = await self._write(self._sql.write_batch, self.namespace, *columns)
        except _SERVER_LOST as error:
            return {unit.instance_id: error for unit, _ in batch}
        except PersistError:  # the server refuses one of them: which?
            return {unit.instance_id: await self._write_alone(unit, said) for unit, said in batch}

        return {
            unit.instance_id: self._told(wire.answer(unit, row))
            for (unit, _), row in zip(batch, rows, strict=True)
        }

    async def _write_alone(self, unit: Unit, said: wire.Arguments) -> Answer | Exception:
        try:
            [row] = await self._write(self._sql.write, self.namespace, *said)
        except PersistError as error:
            return error

        return self._told(wire.answer(unit, row))

    def _told(self, said: tuple[Answer, Sequence[WakeHint]]) -> Answer:
        answer, hints = said

        if hints:
            self._listener.publish(hints)

        return answer

    async def claim(self, take: Take) -> Taken:
        [row] = await self._write(
            self._sql.claim,
            self.namespace,
            take.instance_id,
            take.task_id,
            take.ttl,
            wire.to_json(wire.claim_fields(take.worker_id, take.nonce, take.tags)),
        )
        return wire.taken(row)

    async def extend(self, extend: Extend) -> Extended:
        [row] = await self._write(
            self._sql.extend,
            self.namespace,
            extend.instance_id,
            extend.key.task_id,
            extend.key.fence,
            extend.ttl,
        )
        return wire.extended(row)

    async def poll(self, query: Poll) -> Polled:
        claim = None

        if query.claim:
            claim = wire.to_json(wire.claim_fields(query.worker_id, query.nonce, query.worker_tags))

        run = self._write if query.claim else self._read
        rows = await run(
            self._sql.poll,
            self.namespace,
            query.worker_id,
            list(query.tags) or None,
            None if query.definitions is None else list(query.definitions),
            query.limit,
            query.advances,
            None if query.aging is None else min(query.aging, _LONGEST_AGING),
            query.bias,
            list(query.exclude),
            query.results,
            claim,
            query.ttl,
        )

        if rows and rows[0][1] is None:
            return Polled(advances=tuple(row[0] for row in rows), offers=())

        return Polled(
            advances=(), offers=tuple(wire.offer(row, results=query.results) for row in rows)
        )

    async def page(self, query: Page) -> Sequence[Row]:
        sql, after = self._sql, query.after or ""
        listing = (self.namespace, after, query.limit)
        status, definition = query.status, query.definition_hash

        if query.idle_for is not None:
            rows = await self._read(sql.list_stalled, self.namespace, query.idle_for, query.limit)
        elif status is not None and definition is not None:
            rows = await self._read(
                sql.list_by_status_and_definition, *listing, status.value, definition
            )
        elif status is not None:
            rows = await self._read(sql.list_by_status, *listing, status.value)
        elif definition is not None:
            rows = await self._read(sql.list_by_definition, *listing, definition)
        else:
            rows = await self._read(sql.list_all, *listing)

        return [wire.listed(row) for row in rows]

    async def chores(self, query: Chores) -> ChoreList:
        rows = await self._read(
            self._sql.chores, self.namespace, query.limit + 1, list(query.exclude)
        )
        [(purged, more)] = await self._write(
            self._sql.purge, self.namespace, query.purge_after, query.limit
        )
        return ChoreList(
            instances=tuple(row[0] for row in rows[: query.limit]),
            purged=purged,
            more=more or len(rows) > query.limit,
        )

    async def wait(self, timeout: float) -> WakeHint | None:
        return await self._listener.wait(timeout)

    async def _read(self, statement: str, *args: Any) -> Sequence[Any]:
        return await self._connections.fetch(statement, *args, writes=False)

    async def _write(self, statement: str, *args: Any) -> Sequence[Any]:
        return await self._connections.fetch(statement, *args, writes=True)


def _by_id(unit: Unit) -> bytes:
    return unit.instance_id.encode()
