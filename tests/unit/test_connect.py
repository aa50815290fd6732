"""From a URL to a backend; what cannot be built says what to do."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest
from unit import test_connect as this_module

from sayiir_persist import connect as connect_function
from sayiir_persist.adapters.memory import MemoryBackend, MemoryStore
from sayiir_persist.errors import ConfigurationError, InvalidArgumentError

if TYPE_CHECKING:
    from sayiir_persist.protocols import PersistentBackend

module = sys.modules["sayiir_persist.connect"]


def third_party(url: str, **options: Any) -> PersistentBackend:
    """What a distribution of somebody else registers."""
    del url
    return MemoryBackend(namespace=options.get("namespace", "theirs"))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("theirs", f"{this_module.__name__}:third_party", module.ENTRY_POINTS)

    def found(*, group: str, name: str) -> tuple[EntryPoint, ...]:
        return (point,) if (group, name) == (point.group, point.name) else ()

    monkeypatch.setattr(module, "entry_points", found)


@pytest.mark.parametrize("url", ["memory://", "memory:", "Memory://"])
def test_scheme_names_the_adapter(url: str) -> None:
    backend = connect_function(url)

    assert backend.info.name == "memory"
    assert backend.info.namespace == "default"


def test_options_reach_the_adapter() -> None:
    store = MemoryStore()

    backend = connect_function("memory://", store=store, namespace="orders", max_payload=7)

    assert backend.info.namespace == "orders"
    assert backend.info.limits.max_payload == 7


@pytest.mark.parametrize("url", ["", "runs.db", "/var/runs.db"])
def test_url_without_a_scheme_says_what_one_looks_like(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"starts with a scheme, such as sqlite:///"):
        connect_function(url)


@pytest.mark.parametrize("url", ["mysql://host", "mem://", "://", ":memory:"])
def test_unknown_scheme_says_which_there_are(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"built in are memory, .*sqlite"):
        connect_function(url)


def test_scheme_of_another_distribution_is_found(registered: None) -> None:
    backend = connect_function("theirs://host/path", namespace="mine")

    assert backend.info.namespace == "mine"


def test_unknown_option_is_named() -> None:
    with pytest.raises(ConfigurationError, match="unknown option 'timeout'; there are: namespace"):
        connect_function("memory://", timeout=3)


def test_option_beyond_its_limit_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="namespace must have 1 to 64"):
        connect_function("memory://", namespace="a b")


def test_url_that_means_nothing_to_its_adapter_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="takes no host and no path"):
        connect_function("memory://host")


def test_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = module._Adapter("sayiir_persist_absent_driver", "postgres")
    monkeypatch.setitem(module._BUILT_IN, "postgres", absent)

    with pytest.raises(ConfigurationError) as caught:
        connect_function("postgres://host/db")

    assert "pip install 'sayiir-persist[postgres]'" in str(caught.value)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://somebody@127.0.0.1/runs", "postgres"),
        ("postgres://somebody@127.0.0.1/runs", "postgres"),
        ("redis://127.0.0.1", "redis"),
        ("rediss://127.0.0.1", "redis"),
        ("redis+cluster://127.0.0.1", "redis"),
        ("mongodb://127.0.0.1", "mongo"),
        ("mongodb+motor://127.0.0.1", "mongo"),
    ],
)
def test_server_is_not_connected_before_the_backend_is_entered(url: str, name: str) -> None:
    assert connect_function(url, namespace="mine").info.name == name


def test_error_never_shows_the_url() -> None:
    with pytest.raises(ConfigurationError) as caught:
        connect_function("unknown://user:secret@host")

    assert "secret" not in str(caught.value)
