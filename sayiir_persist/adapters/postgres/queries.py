"""The statements of `queries.sql`, by name."""

from __future__ import annotations

from msgspec import Struct

from sayiir_persist.statements import named_blocks


class Queries(Struct, frozen=True, kw_only=True):
    """One field for each block; a missing or an unknown one is an error."""

    now: str
    read: str
    write: str
    write_batch: str
    step: str
    step_batch: str
    claim: str
    extend: str
    poll: str
    list_all: str
    list_by_status: str
    list_by_definition: str
    list_by_status_and_definition: str
    list_stalled: str
    chores: str
    purge: str


def queries(schema: str) -> Queries:
    """The statements for one schema.

    Args:
        schema: Validated, the only thing that is ever put into a statement.
    """
    blocks = named_blocks("sayiir_persist.adapters.postgres", "queries.sql")
    steps = blocks.pop("steps")
    blocks["step"] = steps.replace("{units}", blocks.pop("one_step"))
    blocks["step_batch"] = steps.replace("{units}", blocks.pop("many_steps"))
    return Queries(**{name: text.replace("{schema}", schema) for name, text in blocks.items()})
