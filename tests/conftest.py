"""Options of the whole test session: which services must be there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICES = ("postgres", "redis", "mongo")

_required = pytest.StashKey[frozenset[str]]()


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


@pytest.fixture(scope="session")
def service_missing(pytestconfig: pytest.Config) -> Callable[[str, str], NoReturn]:
    """End a test whose service is not there: skip it loudly, or fail where it is required."""

    def missing(name: str, message: str) -> NoReturn:
        if name not in SERVICES:
            raise ValueError(f"unknown service {name!r}")
        if name in pytestconfig.stash[_required]:
            pytest.fail(f"{name} is required: {message}", pytrace=False)
        pytest.skip(f"no {name}: {message}")

    return missing
