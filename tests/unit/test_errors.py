"""Every error says what it is about, and survives being sent elsewhere."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest

from sayiir_persist import errors
from sayiir_persist.errors import PersistError
from sayiir_persist.snapshot import Status

TREE: dict[str, tuple[str, ...]] = {
    "PersistError": ("Exception",),
    "InstanceNotFoundError": ("PersistError", "LookupError"),
    "ClaimNotFoundError": ("PersistError", "LookupError"),
    "ResultsNotLoadedError": ("PersistError",),
    "ConflictError": ("PersistError",),
    "StaleSnapshotError": ("ConflictError",),
    "InstanceExistsError": ("ConflictError",),
    "ClaimLostError": ("ConflictError",),
    "DefinitionMismatchError": ("ConflictError",),
    "ContentionError": ("ConflictError",),
    "InvalidTransitionError": ("PersistError",),
    "TerminalStateError": ("InvalidTransitionError",),
    "InstancePausedError": ("InvalidTransitionError",),
    "CannotCancelError": ("InvalidTransitionError",),
    "CannotPauseError": ("InvalidTransitionError",),
    "InvalidArgumentError": ("PersistError", "ValueError"),
    "PayloadTooLargeError": ("InvalidArgumentError",),
    "EventQueueFullError": ("PersistError",),
    "CodecError": ("PersistError", "ValueError"),
    "BackendError": ("PersistError",),
    "BackendUnavailableError": ("BackendError",),
    "OutcomeUnknownError": ("BackendError",),
    "SchemaVersionError": ("BackendError",),
    "BackendClosedError": ("BackendError",),
    "CapabilityError": ("PersistError",),
    "ConfigurationError": ("PersistError",),
}
"""The error tree of the public API: each class with what it derives from."""

FACTS: dict[str, dict[str, Any]] = {
    "InstanceNotFoundError": {"instance_id": "run-7"},
    "ClaimNotFoundError": {"instance_id": "run-7", "task_id": "charge"},
    "ResultsNotLoadedError": {"node_id": "charge"},
    "StaleSnapshotError": {"instance_id": "run-7", "given_version": 3, "stored_version": 5},
    "InstanceExistsError": {"instance_id": "run-7", "status": Status.COMPLETED},
    "ClaimLostError": {"instance_id": "run-7", "task_id": "charge", "owner": "w2"},
    "DefinitionMismatchError": {"instance_id": "run-7", "expected": "v2", "found": "v1"},
    "ContentionError": {"instance_id": "run-7", "attempts": 50},
    "InvalidTransitionError": {"instance_id": "run-7", "reason": "not ready"},
    "TerminalStateError": {"instance_id": "run-7", "status": Status.FAILED},
    "InstancePausedError": {"instance_id": "run-7"},
    "CannotCancelError": {"instance_id": "run-7", "status": Status.COMPLETED},
    "CannotPauseError": {"instance_id": "run-7", "status": Status.CANCELLED},
    "PayloadTooLargeError": {"what": "input", "size": 11, "limit": 10},
    "EventQueueFullError": {"instance_id": "run-7", "limit": 1000},
}
"""What each error that carries facts is made of, and says in its message."""

RETRYABLE = {"ContentionError", "EventQueueFullError", "BackendUnavailableError"}


def sample(name: str) -> PersistError:
    kind = getattr(errors, name)
    return kind(**FACTS[name]) if name in FACTS else kind("what went wrong")


def everything_below(kind: type[PersistError]) -> set[type[PersistError]]:
    direct = set(kind.__subclasses__())
    return direct.union(*(everything_below(it) for it in direct))


def test_the_tree_holds_exactly_the_public_errors() -> None:
    classes = everything_below(PersistError) | {PersistError}

    public = {
        it.__name__
        for it in classes
        if it.__module__ == errors.__name__ and not it.__name__.startswith("_")
    }

    assert public == set(TREE)


@pytest.mark.parametrize(("name", "bases"), TREE.items(), ids=TREE)
def test_error_derives_from_what_the_api_says(name: str, bases: tuple[str, ...]) -> None:
    kind = getattr(errors, name)

    public = [
        base.__name__
        for base in inspect.getmro(kind)[1:]
        if not base.__name__.startswith("_") and base not in (BaseException, object)
    ]

    for base in bases:
        assert base in public

    assert public[0] == bases[0]


@pytest.mark.parametrize("name", TREE)
@pytest.mark.parametrize(
    "clone",
    [
        pytest.param(lambda error: pickle.loads(pickle.dumps(error)), id="pickle"),  # noqa: S301
        pytest.param(copy.copy, id="copy"),
        pytest.param(copy.deepcopy, id="deepcopy"),
    ],
)
def test_error_survives_being_copied(name: str, clone: Any) -> None:
    error = sample(name)

    twin = clone(error)

    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert twin.args == error.args
    assert vars(twin) == vars(error)


@pytest.mark.parametrize(("name", "facts"), FACTS.items(), ids=FACTS)
def test_facts_are_attributes(name: str, facts: dict[str, Any]) -> None:
    error = sample(name)

    found = {fact: getattr(error, fact) for fact in facts}

    assert found == facts


@pytest.mark.parametrize(("name", "facts"), FACTS.items(), ids=FACTS)
def test_the_sentence_names_every_fact(name: str, facts: dict[str, Any]) -> None:
    sentence = str(sample(name))

    for value in facts.values():
        assert str(value) in sentence


@pytest.mark.parametrize("name", sorted(set(TREE) - set(FACTS)))
def test_error_without_facts_says_what_it_was_given(name: str) -> None:
    error = sample(name)

    assert str(error) == "what went wrong"


@pytest.mark.parametrize("name", TREE)
def test_only_what_may_succeed_later_is_retryable(name: str) -> None:
    kind = getattr(errors, name)

    assert kind.retryable is (name in RETRYABLE)


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        (5, "'run-7' is at version 5, not 3"),
        (3, "'run-7' was created anew since version 3"),
        (None, "'run-7' is gone, version 3 was given"),
    ],
)
def test_stale_snapshot_says_moved_recreated_or_gone(stored: int | None, sentence: str) -> None:
    error = errors.StaleSnapshotError("run-7", 3, stored)

    assert str(error) == sentence


def test_lost_claim_without_owner_is_nobodys() -> None:
    error = errors.ClaimLostError("run-7", "charge")

    assert error.owner is None
    assert str(error) == "the claim on task 'charge' of 'run-7' is lost: it is nobody's"


def test_missing_results_need_no_node() -> None:
    error = errors.ResultsNotLoadedError()

    assert error.node_id is None
    assert "load_snapshot" in str(error)


@pytest.mark.parametrize("name", ["TerminalStateError", "CannotCancelError", "CannotPauseError"])
def test_status_errors_tell_the_reason_like_every_refused_transition(name: str) -> None:
    error = sample(name)

    assert isinstance(error, errors.InvalidTransitionError)
    assert str(error.status) in error.reason  # type: ignore[attr-defined]
    assert error.reason in str(error)
