"""Options of the whole test session: which services must be there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest
from services.fixtures import (  # noqa: F401
    each_postgres,
    each_redis,
    mongo_replica_set,
    mongo_standalone,
    mongo_to_crash,
    mongod,
    own_mongo,
    own_postgres,
    own_redis,
    pgbouncer,
    pgbouncer_binary,
    pgbouncer_preparing,
    postgres,
    postgres_binaries,
    postgres_durable,
    redis_binary,
    redis_cluster,
    redis_durable,
    redis_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

SERVICES = ("postgres", "redis", "mongo", "pgbouncer")

_required = pytest.StashKey[frozenset[str]]()
_missing = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-services",
        default="",
        metavar="NAMES",
        help=f"fail, instead of skip, tests of these services ({', '.join(SERVICES)}) if missing",
    )


def pytest_configure(config: pytest.Config) -> None:
    names = (name.strip() for name in config.getoption("--require-services").split(","))
    required = frozenset(filter(None, names))
    if unknown := required.difference(SERVICES):
        known = ", ".join(SERVICES)
        raise pytest.UsageError(
            f"--require-services: unknown {', '.join(sorted(unknown))}; known: {known}"
        )
    config.stash[_required] = required
    config.stash[_missing] = {}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None]:
    yield

    for name, message in config.stash[_missing].items():
        line = f"{name.upper()} WAS NOT TESTED: {message}"
        terminalreporter.write_line(line, red=True, bold=True)


@pytest.fixture(scope="session")
def service_missing(pytestconfig: pytest.Config) -> Callable[[str, str], NoReturn]:
    """End a test whose service is not there: skip it loudly, or fail where it is required."""

    def missing(name: str, message: str) -> NoReturn:
        if name not in SERVICES:
            raise ValueError(f"unknown service {name!r}")
        pytestconfig.stash[_missing][name] = message
        if name in pytestconfig.stash[_required]:
            pytest.fail(f"{name} is required: {message}", pytrace=False)
        pytest.skip(f"no {name}: {message}")

    return missing
