"""The statements of `queries.sql`, by name."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from sayiir_persist.statements import named_blocks


class Queries(Struct, frozen=True, kw_only=True):
    """One field for each block; a missing or an unknown one is an error at import."""

    find_instance: str
    find_instance_and_body: str
    next_key: str
    insert_instance: str
    update_instance: str
    update_places: str
    delete_instance: str
    find_input: str
    put_input: str
    delete_input: str
    find_result: str
    all_results: str
    put_result: str
    delete_result: str
    delete_results: str
    find_queue: str
    put_queue: str
    delete_queue: str
    event_names: str
    first_event: str
    first_event_and_payload: str
    insert_event: str
    delete_event: str
    delete_events: str
    find_event_id: str
    insert_event_id: str
    forget_event_ids: str
    delete_event_ids: str
    insert_ready: str
    move_ready: str
    delete_ready: str
    due: str
    find_fence: str
    raise_fence: str
    find_wakeups: str
    count_wakeup: str
    list_all: str
    list_by_status: str
    list_by_definition: str
    list_by_status_and_definition: str
    list_idle: str
    list_signalled: str
    list_to_purge: str


QUERIES: Final = Queries(**named_blocks("sayiir_persist.adapters.sqlite", "queries.sql"))
