from __future__ import annotations

import pytest

from sayiir_persist.codecs import registry


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_codecs", dict(registry._codecs))
