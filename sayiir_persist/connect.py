"""From a URL to a backend."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sayiir_persist.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sayiir_persist.protocols import PersistentBackend

ENTRY_POINTS: Final = "sayiir_persist.backends"
"""Where other distributions register `scheme = "module:function"`; see `connect`."""


class _Adapter(NamedTuple):
    module: str
    extra: str | None = None


_MEMORY: Final = _Adapter("sayiir_persist.adapters.memory")
_SQLITE: Final = _Adapter("sayiir_persist.adapters.sqlite")
_POSTGRES: Final = _Adapter("sayiir_persist.adapters.postgres", "postgres")
_REDIS: Final = _Adapter("sayiir_persist.adapters.redis", "redis")
_MONGO: Final = _Adapter("sayiir_persist.adapters.mongo", "mongo")
_MOTOR: Final = _Adapter("sayiir_persist.adapters.mongo", "motor")

_BUILT_IN: Final = {
    "memory": _MEMORY,
    "sqlite": _SQLITE,
    "postgres": _POSTGRES,
    "postgresql": _POSTGRES,
    "redis": _REDIS,
    "rediss": _REDIS,
    "redis+cluster": _REDIS,
    "rediss+cluster": _REDIS,
    "unix": _REDIS,
    "mongodb": _MONGO,
    "mongodb+srv": _MONGO,
    "mongodb+motor": _MOTOR,
}


def connect(url: str, **options: Any) -> PersistentBackend:
    """Build the backend that a URL names; entering it with `async with` opens it.

    - `memory://`: a `MemoryBackend`; `store=` shares a `MemoryStore`.
    - `sqlite:///runs.db`: a `SqliteBackend` on a relative path; `clock=`, `synchronous=`.
    - `sqlite:////var/runs.db`: the same on an absolute path.
    - `postgresql://user@host/database`, `postgres://...`: a `PostgresBackend`; `schema=`,
      `max_size=`, `listen_url=`, ...
    - `redis://host`, `rediss://host` (TLS), `redis+cluster://host`, `rediss+cluster://host`,
      `unix:///path`: a `RedisBackend`; `partitions=`, `replicas=`, `fsync=`.
    - `mongodb://host`, `mongodb+srv://host`, `mongodb+motor://host` (Motor): a `MongoBackend`;
      `database=`, `strict=`, ...

    A distribution of your own adds a scheme by an entry point in the group
    `sayiir_persist.backends`, named like the scheme: a function that takes the URL and the
    options and returns a backend.

    Args:
        url: What to open. Nothing is opened, created or imported for any other scheme.
        options: Those of the adapter, and those that every backend takes: `namespace="default"`,
            `codec=JsonCodec()`, `aging_interval` (default 5 minutes, at least 1 s; `None`: off),
            `max_payload` and `max_queued_events`, `operation_timeout` (default 10 s),
            `migrate=True` (`False`: check the schema and change nothing).

    Raises:
        ConfigurationError: No adapter has this scheme, the extra that it needs is not installed,
            or the URL or an option means nothing to it.
        InvalidArgumentError: An option breaks its limit.

    Example:
        >>> connect("memory://", namespace="orders").info.name
        'memory'
    """
    scheme, separator, rest = url.partition(":")
    scheme = scheme.lower()

    if not separator:
        raise ConfigurationError("a URL starts with a scheme, such as sqlite:///runs.db")

    return _factory(scheme)(f"{scheme}:{rest}", **options)


def _factory(scheme: str) -> Callable[..., PersistentBackend]:
    adapter = _BUILT_IN.get(scheme)

    if adapter is not None:
        return _load(adapter)

    found = tuple(entry_points(group=ENTRY_POINTS, name=scheme))

    if not found:
        known = ", ".join(sorted(_BUILT_IN))
        raise ConfigurationError(
            f"no backend for {scheme}:// URLs: built in are {known}; "
            f"others come with a package that registers {scheme!r} in the group {ENTRY_POINTS!r}"
        )

    factory: Callable[..., PersistentBackend] = found[0].load()
    return factory


def _load(adapter: _Adapter) -> Callable[..., PersistentBackend]:
    try:
        module = import_module(adapter.module)
    except ModuleNotFoundError as error:
        if adapter.extra is None:
            raise

        raise ConfigurationError(
            f"{error.name} is not installed: pip install 'sayiir-persist[{adapter.extra}]'"
        ) from error

    factory: Callable[..., PersistentBackend] = module.from_url
    return factory
