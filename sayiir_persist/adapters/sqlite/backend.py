"""The public face of the SQLite store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self, final
from urllib.parse import unquote

from sayiir_persist.adapters.sqlite.clock import Clock
from sayiir_persist.adapters.sqlite.connection import Settings, check_settings
from sayiir_persist.adapters.sqlite.driver import SqliteDriver
from sayiir_persist.backend import StandardBackend
from sayiir_persist.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sayiir_persist.options import Options
    from sayiir_persist.protocols import PersistentBackend, WakeupSource

_URL: Final = "sqlite:///"


@final
class SqliteBackend(StandardBackend[SqliteDriver]):
    """Workflows in one SQLite file, for one machine: any number of processes may share it.

    Runs on asyncio and on trio, with the standard library alone. Every acknowledged write
    survives `kill -9` and, with `synchronous="FULL"`, the loss of power. Not for network file
    systems, nor for volumes that several machines share: SQLite's log needs shared memory. What
    the SQLite at hand cannot promise stands in `info.caveats`.

    Example:
        >>> async def main() -> None:
        ...     async with SqliteBackend.connect("runs.db") as backend:
        ...         await backend.start_instance("order-7", "v1", start_at="charge")
    """

    @classmethod
    def connect(
        cls,
        path: str,
        *,
        clock: Callable[[], datetime] | None = None,
        synchronous: str = "FULL",
        **options: Any,
    ) -> Self:
        """Build a backend on the file at `path`; entering it opens the file, or makes it.

        Args:
            path: Of the file; its directory must be there.
            clock: What the time is; default: the system's. It is called from other threads.
            synchronous: `"FULL"`, or `"NORMAL"`, which is faster and may lose the last commits
                (nothing else) when the power fails.
            options: Those of every backend, see `sayiir_persist.connect`.

        Raises:
            ConfigurationError: Path or option cannot be used; says what to give.
            InvalidArgumentError: An option breaks its limit.
        """
        check_settings(path, synchronous)

        def driver(chosen: Options) -> SqliteDriver:
            timeout = chosen.operation_timeout.total_seconds()
            settings = Settings(
                path=path, synchronous=synchronous, migrate=chosen.migrate, timeout=timeout
            )
            return SqliteDriver(settings, chosen.namespace, Clock(clock), timeout)

        return cls(driver, **options)


def from_url(url: str, **options: Any) -> SqliteBackend:
    """Build the backend that `sqlite:///relative.db` or `sqlite:////absolute/path.db` names.

    Raises:
        ConfigurationError: The URL names no file.
    """
    if not url.lower().startswith(_URL):
        raise ConfigurationError(
            "a SQLite URL has three slashes and a relative path (sqlite:///runs.db), "
            "or four and an absolute one (sqlite:////var/lib/runs.db)"
        )

    path = url[len(_URL) :]

    if "?" in path or "#" in path:
        raise ConfigurationError(
            "a SQLite URL has no options: give them as in connect(url, synchronous='NORMAL')"
        )

    return SqliteBackend.connect(unquote(path), **options)


if TYPE_CHECKING:
    _backend: type[PersistentBackend] = SqliteBackend
    _wakeups: type[WakeupSource] = SqliteBackend
