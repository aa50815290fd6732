"""Stores that break the contract on purpose, each in one way: the proof that the kit sees it.

A saboteur is the memory store with one defect of a few lines; its docstring says which, and
`caught_by` names the checks that have to fail on it. They are real bugs: most of them were found
in stores that people run in production.
"""

from __future__ import annotations

from conformance.saboteurs import (
    cancellation,
    claims,
    dispatching,
    events,
    lifecycle,
    signals,
    snapshots,
    starting,
    tenancy,
)
from conformance.saboteurs.base import CONTROL, SABOTEURS, Saboteur

__all__ = [
    "CONTROL",
    "SABOTEURS",
    "Saboteur",
    "cancellation",
    "claims",
    "dispatching",
    "events",
    "lifecycle",
    "signals",
    "snapshots",
    "starting",
    "tenancy",
]
