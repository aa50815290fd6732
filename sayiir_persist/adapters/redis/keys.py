"""Every key of the layout, minted here; see `docs/adapters/redis.md`.

All keys of a partition share the hash tag `{namespace:partition}`, so a cluster keeps them
together and a script may touch them all. A namespace has no braces, so whatever an instance id
holds, the tag is the first pair of them.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from redis.crc import key_slot

LAYOUT_VERSION: Final = 1
"""Counts incompatible changes of what is stored."""

MAX_PARTITIONS: Final = 1024
PARTITION_KEYS: Final = (
    *("floor", "listing", "signalled", "idle", "purge"),
    *("lane0", "lane1", "lane2", "lane3", "lane4", "lane5"),
)
"""In the order in which scripts declare them. Lane 0: what has to be moved on; 1 to 5: tasks."""


def bulk(data: bytes) -> bytes:
    """A string as the protocol frames it."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


def prefix_of(namespace: str, partition: int) -> bytes:
    """What all keys and the channel of a partition begin with."""
    return f"sayiir:{{{namespace}:{partition}}}:".encode()


class Partition:
    """One partition of a namespace: its keys, in the order in which scripts declare them.

    Attributes:
        number: Which.
        slot: Where a cluster keeps it.
        channel: Where its hints are published.
        shared: The keys of the partition, framed.
    """

    __slots__ = ("_prefix", "channel", "number", "shared", "slot")

    def __init__(self, namespace: str, number: int) -> None:
        self._prefix = prefix = prefix_of(namespace, number)
        self.number: int = number
        self.slot: int = key_slot(prefix)
        self.channel: bytes = prefix + b"hints"
        self.shared: bytes = b"".join(bulk(prefix + name.encode()) for name in PARTITION_KEYS)

    @property
    def layout(self) -> bytes:
        """Where the layout is recorded; that of partition 0 counts."""
        return self._prefix + b"layout"

    def of_instance(self, instance_id: str) -> tuple[bytes, bytes, bytes, bytes]:
        """The keys of one instance id: row, results, events, event ids."""
        name = instance_id.encode()
        prefix = self._prefix
        return (
            prefix + b"i:" + name,
            prefix + b"r:" + name,
            prefix + b"e:" + name,
            (prefix + b"d:" + name),
        )


class Keyspace:
    """The partitions of a namespace."""

    def __init__(self, namespace: str, partitions: int) -> None:
        self.partitions: Final = tuple(Partition(namespace, it) for it in range(partitions))

    def partition_of(self, instance_id: str) -> Partition:
        """Where an instance id belongs."""
        partitions = self.partitions

        if len(partitions) == 1:
            return partitions[0]

        return partitions[crc32(instance_id.encode()) % len(partitions)]
