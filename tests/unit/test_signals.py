from __future__ import annotations

import pytest
from unit.workflows import T0

from sayiir_persist.signals import SignalKind, SignalRequest


def test_request_needs_neither_reason_nor_requester() -> None:
    request = SignalRequest()

    assert (request.reason, request.requested_by, request.requested_at) == (None, None, None)


def test_requests_compare_by_value() -> None:
    assert SignalRequest(reason="a", requested_at=T0) == SignalRequest(reason="a", requested_at=T0)
    assert SignalRequest(reason="a") != SignalRequest(requested_by="a")


def test_request_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        SignalRequest().reason = "late"  # type: ignore[misc]


def test_kind_reads_as_its_string() -> None:
    assert f"{SignalKind.CANCEL} {SignalKind.PAUSE}" == "cancel pause"
