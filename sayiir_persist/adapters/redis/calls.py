"""Calls of scripts as the protocol frames them, with the keys that they declare."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sayiir_persist.adapters.redis.keys import Partition, bulk

if TYPE_CHECKING:
    from sayiir_persist.adapters.redis.scripts import Script


class Call(NamedTuple):
    """One call of a script, framed."""

    script: Script
    partition: Partition
    data: bytes


def instance_call(script: Script, partition: Partition, instance_id: str, argument: bytes) -> Call:
    """A call that declares the keys of a partition and of one instance."""
    row, results, events, ids = partition.of_instance(instance_id)
    data = (
        b"*19\r\n%b$2\r\n15\r\n%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
        % (
            *(script.head, partition.shared),
            *(len(row), row, len(results), results, len(events), events, len(ids), ids),
            *(len(argument), argument),
        )
    )
    return Call(script, partition, data)


def partition_call(script: Script, partition: Partition, argument: bytes) -> Call:
    """A call that declares the keys of a partition."""
    data = b"*15\r\n%b$2\r\n11\r\n%b%b" % (script.head, partition.shared, bulk(argument))
    return Call(script, partition, data)


def layout_call(script: Script, partition: Partition, argument: bytes) -> Call:
    """A call that declares where the layout is recorded."""
    keys = b"$1\r\n1\r\n" + bulk(partition.layout)
    return Call(script, partition, b"*5\r\n%b%b%b" % (script.head, keys, bulk(argument)))
