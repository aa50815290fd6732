"""Random operations on each store, beside a plain-Python model of the contract."""

from __future__ import annotations

from conformance.subjects import memory_subject, sqlite_subject
from hypothesis import HealthCheck, settings

from sayiir_persist.conformance.machine import backend_machine

_SETTINGS = settings(
    deadline=None,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TestMemoryMachine = backend_machine(memory_subject).TestCase
TestMemoryMachine.settings = settings(_SETTINGS, max_examples=150)

TestSqliteMachine = backend_machine(sqlite_subject).TestCase
TestSqliteMachine.settings = settings(_SETTINGS, max_examples=40)
