"""MongoDB: the server that was named, or the `mongod` on PATH."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from services.process import ServerError, ServerProcess, program, wait_until

if TYPE_CHECKING:
    from pathlib import Path

URL_VARIABLE = "SAYIIR_TEST_MONGODB_URL"
LOOKED_AT = (
    f"{URL_VARIABLE} is not set, and there is no `mongod` on PATH; give the tests either, the "
    "variable with the URL of a replica set such as mongodb://127.0.0.1:27017/?replicaSet=rs0"
)
REPLICA_SET = "rs0"


@dataclass(frozen=True)
class ExternalMongo:
    """A server that somebody else runs: it can be used, not killed."""

    url: str
    version: tuple[int, ...]
    is_replica_set: bool


def external_mongo() -> ExternalMongo | None:
    """The server that the environment names, if it names one.

    Raises:
        ServerError: It cannot be reached.
    """
    url = os.environ.get(URL_VARIABLE)

    if not url:
        return None

    try:
        with MongoClient(url) as client:
            return ExternalMongo(url, _version(client), "setName" in _role(client))
    except PyMongoError as error:
        raise ServerError(f"{URL_VARIABLE} is set, but there is no answer: {error}") from error


def find_mongod() -> Path | None:
    return program("mongod")


class MongoServer(ServerProcess):
    """A MongoDB of our own without users: a replica set of one node, or a server on its own.

    Test commands are on, so `configureFailPoint` works. It is ready when it accepts writes.
    """

    name = "mongod"

    def __init__(self, binary: Path, *, replica_set: bool = True) -> None:
        super().__init__()
        self.binary = binary
        self.replica_set = replica_set
        self._is_initiated = False

    @property
    def url(self) -> str:
        """Where a client finds the server; in a replica set, by way of the set's members."""
        options = f"?replicaSet={REPLICA_SET}" if self.replica_set else ""
        return f"mongodb://127.0.0.1:{self.port}/{options}"

    @property
    def direct_url(self) -> str:
        """This server and no other member: the one to give to a proxy."""
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    @property
    def version(self) -> tuple[int, ...]:
        with self.client() as client:
            return _version(client)

    def client(self) -> MongoClient[dict[str, Any]]:
        """A client of this server; the caller closes it."""
        return MongoClient(self.direct_url, serverSelectionTimeoutMS=5_000)

    def prepare(self) -> None:
        super().prepare()
        self._data.mkdir()

    def command(self) -> list[str]:
        return [
            str(self.binary),
            *("--dbpath", str(self._data)),
            *("--port", str(self.port)),
            *("--bind_ip", "127.0.0.1"),
            "--nounixsocket",
            *("--setParameter", "enableTestCommands=1"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            *("--wiredTigerCacheSizeGB", "0.25"),
            *(["--replSet", REPLICA_SET] if self.replica_set else []),
        ]

    def is_ready(self) -> bool:
        try:
            with self.client() as client:
                return client.admin.command("serverStatus")["pid"] == self.pid
        except PyMongoError:
            return False

    def start(self) -> Self:
        super().start()

        if self.replica_set:
            try:
                self._become_primary()
            except BaseException:
                self.kill()
                raise

        return self

    def _become_primary(self) -> None:
        with self.client() as client:
            if not self._is_initiated:
                member = {"_id": 0, "host": f"127.0.0.1:{self.port}"}
                configuration = {"_id": REPLICA_SET, "members": [member]}
                client.admin.command("replSetInitiate", configuration)
                self._is_initiated = True

            wait_until(lambda: _role(client)["ismaster"], "mongod becomes primary", timeout=60)
            client.admin.command("fsync")  # a set that is killed before it has none forgets itself

    @property
    def _data(self) -> Path:
        return self.directory / "data"


def _role(client: MongoClient[dict[str, Any]]) -> dict[str, Any]:
    return client.admin.command("isMaster")


def _version(client: MongoClient[dict[str, Any]]) -> tuple[int, ...]:
    return tuple(client.server_info()["versionArray"][:3])
