"""PgBouncer, the one of the system, in transaction mode in front of a PostgreSQL of ours."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from services.postgres import parse_version
from services.process import ServerError, ServerProcess, accepts, output_of, program

if TYPE_CHECKING:
    from pathlib import Path

    from services.postgres import PostgresServer

LOOKED_AT = "there is no `pgbouncer` on PATH nor in /usr/sbin"
PREPARES_SINCE = (1, 21)

CONFIGURATION = """\
[databases]
* = host=127.0.0.1 port={backend_port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
admin_users = postgres
pool_mode = transaction
max_client_conn = 1000
default_pool_size = 20
server_login_retry = 0.1
server_lifetime = 2
{further}
"""


def find_pgbouncer() -> Path | None:
    return program("pgbouncer")


def pgbouncer_version(binary: Path) -> tuple[int, ...]:
    return parse_version(output_of([str(binary), "--version"]))


class PgBouncer(ServerProcess):
    """A connection pool that gives a client a server's connection for one transaction at a time.

    With `max_prepared_statements` above zero it knows the statements that clients prepare, which
    it can since version 1.21. With zero, a statement is prepared on a connection that the next
    transaction may not get.

    Raises:
        ServerError: This version cannot keep prepared statements.
    """

    name = "PgBouncer"
    runs_as_nobody = True
    stop_signal = signal.SIGKILL  # what others mean differs between versions

    def __init__(
        self, binary: Path, postgres: PostgresServer, *, max_prepared_statements: int = 0
    ) -> None:
        self.binary = binary
        self.version = pgbouncer_version(binary)

        if max_prepared_statements and self.version < PREPARES_SINCE:
            raise ServerError(f"PgBouncer {self.version} keeps no prepared statements")

        super().__init__()
        self._postgres = postgres
        self._max_prepared_statements = max_prepared_statements

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def prepare(self) -> None:
        super().prepare()
        (self.directory / "users").write_text('"postgres" ""\n')
        self._configuration.write_text(
            CONFIGURATION.format(
                port=self.port,
                backend_port=self._postgres.port,
                users=self.directory / "users",
                further=self._prepared_statements(),
            )
        )

    def command(self) -> list[str]:
        return [str(self.binary), str(self._configuration)]

    def is_ready(self) -> bool:
        return accepts(self.port)

    @property
    def _configuration(self) -> Path:
        return self.directory / "pgbouncer.ini"

    def _prepared_statements(self) -> str:
        if self.version < PREPARES_SINCE:
            return ""

        return f"max_prepared_statements = {self._max_prepared_statements}"
