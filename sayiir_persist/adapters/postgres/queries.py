"""The statements of `queries.sql`, by name."""

from __future__ import annotations

from msgspec import Struct

from sayiir_persist.statements import named_blocks


class Queries(Struct, frozen=True, kw_only=True):
    """One field for each block; a missing or an unknown one is an error."""

    now: str
    read: str
    read_results: str
    read_payloads: str
    read_all: str
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
    reads = blocks.pop("reads")
    results, no_results = blocks.pop("recorded"), blocks.pop("nothing_recorded")
    payloads, no_payloads = blocks.pop("waiting"), blocks.pop("nothing_waiting")
    blocks["read"] = _filled(reads, recorded=no_results, waiting=no_payloads)
    blocks["read_results"] = _filled(reads, recorded=results, waiting=no_payloads)
    blocks["read_payloads"] = _filled(reads, recorded=no_results, waiting=payloads)
    blocks["read_all"] = _filled(reads, recorded=results, waiting=payloads)
    steps = blocks.pop("steps")
    blocks["step"] = _filled(steps, units=blocks.pop("one_step"))
    blocks["step_batch"] = _filled(steps, units=blocks.pop("many_steps"))
    return Queries(**{name: text.replace("{schema}", schema) for name, text in blocks.items()})


def _filled(text: str, **parts: str) -> str:
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)

    return text
