"""What a server is, and what it does not promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from sayiir_persist.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

OLDEST: Final = (6, 2)
SHARDED_SINCE: Final = (7, 0)

EVICTS: Final = "it evicts keys when memory is short ({}), which damages instances: use noeviction"
FORGETS: Final = "nothing survives a restart of the server: neither AOF nor RDB is on"
SNAPSHOTS: Final = "a crash of the server loses what came after its last RDB snapshot: AOF is off"
FLUSHES: Final = "a loss of power takes the last acknowledged writes (appendfsync {})"
FAILS_OVER: Final = "a failover takes acknowledged writes that no replica had yet"

WARNINGS: Final = (EVICTS[:20], FORGETS[:20])
"""How the caveats begin that are logged as warnings."""


class Deployment(Struct, frozen=True):
    """What `INFO` and `CONFIG GET` tell.

    Attributes:
        server: Product and version.
        cluster: Whether it is a node of a cluster.
        sharded: Whether it has sharded pub/sub.
        caveats: What it cannot promise.
    """

    server: str
    cluster: bool
    sharded: bool
    caveats: tuple[str, ...]


def deployment_of(info: bytes, settings: Mapping[str, str]) -> Deployment:
    """Read what a server answered.

    Args:
        info: To `INFO`.
        settings: To `CONFIG GET`, as far as it is allowed.

    Raises:
        ConfigurationError: The server is too old.
    """
    facts = _facts(info)
    version = _version(facts.get("redis_version", "0"))

    if version < OLDEST:
        raise ConfigurationError(
            f"Redis 6.2 or later is needed, not {facts.get('redis_version', 'an unknown version')}"
        )

    cluster = facts.get("cluster_enabled") == "1"
    return Deployment(
        server=_server(facts),
        cluster=cluster,
        sharded=version >= SHARDED_SINCE,
        caveats=tuple(_caveats(facts, settings, cluster=cluster)),
    )


def _facts(info: bytes) -> dict[str, str]:
    lines = info.decode("utf-8", "replace").splitlines()
    named = (line.partition(":") for line in lines if ":" in line)
    return {name: value for name, _, value in named}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _server(facts: dict[str, str]) -> str:
    if "valkey_version" in facts:
        return f"Valkey {facts['valkey_version']}"

    return f"Redis {facts['redis_version']}"


def _caveats(facts: Mapping[str, str], settings: Mapping[str, str], *, cluster: bool) -> list[str]:
    found: list[str] = []
    policy = facts.get("maxmemory_policy", "noeviction")
    limited = facts.get("maxmemory", "0") != "0"

    if policy.startswith("allkeys") and limited:
        found.append(EVICTS.format(policy))

    if facts.get("aof_enabled") != "1":
        found.append(FORGETS if settings.get("save", "unknown") == "" else SNAPSHOTS)
    elif (flushing := settings.get("appendfsync", "everysec")) != "always":
        found.append(FLUSHES.format(flushing))

    if cluster or facts.get("connected_slaves", "0") != "0":
        found.append(FAILS_OVER)

    return found
