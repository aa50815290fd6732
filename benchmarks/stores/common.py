"""Targets that every embedded store has."""

from __future__ import annotations

from typing import Final

from benchmarks.harness import Target
from benchmarks.workloads import ACQUIRE_ALONE, ACQUIRE_CROWDED, FIND_ALONE, FIND_CROWDED

FLAT_DISPATCH: Final = (
    Target("W5", ACQUIRE_CROWDED, ACQUIRE_ALONE, 1.3),
    Target("W5", FIND_CROWDED, FIND_ALONE, 1.3),
)
"""The cost of a poll does not follow what is stored."""

FLAT: Final = (Target("W1", "10,000 steps", "10 steps", 1.3), *FLAT_DISPATCH)
"""The cost of a step or a poll follows neither the length of the workflow nor what is stored."""
