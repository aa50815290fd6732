"""The error tree: what went wrong, grouped by what the caller can do about it.

::

    PersistError
    ├── InstanceNotFoundError, ClaimNotFoundError   (LookupError) nothing is stored there
    ├── ResultsNotLoadedError                       load the snapshot with its results
    ├── ConflictError                               read again and decide
    │   ├── StaleSnapshotError, InstanceExistsError, ClaimLostError
    │   └── DefinitionMismatchError, ContentionError
    ├── InvalidTransitionError                      never retry
    │   ├── TerminalStateError, InstancePausedError
    │   └── CannotCancelError, CannotPauseError
    ├── InvalidArgumentError                        (ValueError) the call itself is wrong
    │   └── PayloadTooLargeError
    ├── EventQueueFullError                         consume some events first
    ├── CodecError                                  (ValueError) cannot be read or written
    ├── BackendError                                the store
    │   ├── BackendUnavailableError                 certainly not applied: try again
    │   ├── OutcomeUnknownError                     perhaps applied: ask before trying again
    │   └── SchemaVersionError, BackendClosedError
    ├── CapabilityError                             this store or deployment cannot do that
    └── ConfigurationError                          the backend was set up wrongly
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from sayiir_persist.snapshot import Status


class PersistError(Exception):
    """Root of everything this package raises.

    Facts are attributes; `retryable` says whether the very same call may succeed later.
    """

    retryable: ClassVar[bool] = False


class InstanceNotFoundError(PersistError, LookupError):
    """Nothing is stored under this instance id."""

    def __init__(self, instance_id: str) -> None:
        self.instance_id = instance_id
        super().__init__(instance_id)

    def __str__(self) -> str:
        return f"no instance {self.instance_id!r}"


class ClaimNotFoundError(PersistError, LookupError):
    """The task has no claim on record: it was released, swept, or never made."""

    def __init__(self, instance_id: str, task_id: str) -> None:
        self.instance_id = instance_id
        self.task_id = task_id
        super().__init__(instance_id, task_id)

    def __str__(self) -> str:
        return f"no claim on task {self.task_id!r} of {self.instance_id!r}"


class ResultsNotLoadedError(PersistError):
    """The snapshot was loaded without its results, so it cannot tell whether there is one."""

    def __init__(self, node_id: str | None = None) -> None:
        self.node_id = node_id
        super().__init__(node_id)

    def __str__(self) -> str:
        what = "the results" if self.node_id is None else f"the result of {self.node_id!r}"
        return f"{what} were not loaded: use load_snapshot or ask for results=True"


class ConflictError(PersistError):
    """The store holds something else than the caller assumed: read again and decide."""


class StaleSnapshotError(ConflictError):
    """The stored snapshot moved on since it was read, or its row is gone."""

    def __init__(self, instance_id: str, given_version: int, stored_version: int | None) -> None:
        self.instance_id = instance_id
        self.given_version = given_version
        self.stored_version = stored_version
        super().__init__(instance_id, given_version, stored_version)

    def __str__(self) -> str:
        if self.stored_version is None:
            return f"{self.instance_id!r} is gone, version {self.given_version} was given"

        if self.stored_version == self.given_version:
            return f"{self.instance_id!r} was created anew since version {self.given_version}"

        return f"{self.instance_id!r} is at version {self.stored_version}, not {self.given_version}"


class InstanceExistsError(ConflictError):
    """The instance id is taken, by a running or a finished instance."""

    def __init__(self, instance_id: str, status: Status | None = None) -> None:
        self.instance_id = instance_id
        self.status = status
        super().__init__(instance_id, status)

    def __str__(self) -> str:
        return f"instance {self.instance_id!r} exists already ({self.status})"


class ClaimLostError(ConflictError):
    """The claim is no longer the valid one: it expired, was taken over, revoked or dropped.

    `owner` is the worker whose claim is on record instead, if there is one.
    """

    def __init__(self, instance_id: str, task_id: str, owner: str | None = None) -> None:
        self.instance_id = instance_id
        self.task_id = task_id
        self.owner = owner
        super().__init__(instance_id, task_id, owner)

    def __str__(self) -> str:
        now = "nobody's" if self.owner is None else f"{self.owner!r}'s"
        return f"the claim on task {self.task_id!r} of {self.instance_id!r} is lost: it is {now}"


class DefinitionMismatchError(ConflictError):
    """The instance runs another workflow definition."""

    def __init__(self, instance_id: str, expected: str, found: str) -> None:
        self.instance_id = instance_id
        self.expected = expected
        self.found = found
        super().__init__(instance_id, expected, found)

    def __str__(self) -> str:
        return f"{self.instance_id!r} runs definition {self.found!r}, not {self.expected!r}"


class ContentionError(ConflictError):
    """Gave up after a bounded number of tries, each overtaken by another writer."""

    retryable = True

    def __init__(self, instance_id: str, attempts: int) -> None:
        self.instance_id = instance_id
        self.attempts = attempts
        super().__init__(instance_id, attempts)

    def __str__(self) -> str:
        return f"{self.instance_id!r} changed under each of {self.attempts} attempts"


class InvalidTransitionError(PersistError):
    """The instance's state does not allow this step; trying again does not help."""

    def __init__(self, instance_id: str, reason: str) -> None:
        self.instance_id = instance_id
        self.reason = reason
        super().__init__(instance_id, reason)

    def __str__(self) -> str:
        return f"{self.instance_id!r}: {self.reason}"


class _StatusError(InvalidTransitionError):
    _sentence: ClassVar[str]

    def __init__(self, instance_id: str, status: Status) -> None:
        self.instance_id = instance_id
        self.status = status
        self.reason: str = self._sentence.format(status)
        Exception.__init__(self, instance_id, status)


class TerminalStateError(_StatusError):
    """The instance has ended; only deletion or a restart changes it."""

    _sentence = "it has ended ({})"


class InstancePausedError(InvalidTransitionError):
    """The instance is paused, and this write would set it going or end it unseen."""

    def __init__(self, instance_id: str) -> None:
        self.instance_id = instance_id
        self.reason = "it is paused: unpause it, or load it and save what was loaded"
        Exception.__init__(self, instance_id)


class CannotCancelError(_StatusError):
    """The instance is in a status that cannot be cancelled."""

    _sentence = "cannot cancel what is {}"


class CannotPauseError(_StatusError):
    """The instance is in a status that cannot be paused, or not be unpaused."""

    _sentence = "cannot pause or unpause what is {}"


class InvalidArgumentError(PersistError, ValueError):
    """An argument breaks a documented limit; raised before any I/O."""


class PayloadTooLargeError(InvalidArgumentError):
    """An input, result, output or event is larger than the backend's `max_payload` bytes."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        self.what = what
        self.size = size
        self.limit = limit
        super().__init__(what, size, limit)

    def __str__(self) -> str:
        return f"{self.what} has {self.size} bytes, the limit (max_payload) is {self.limit}"


class EventQueueFullError(PersistError):
    """The instance has as many events queued as `max_queued_events` allows."""

    retryable = True

    def __init__(self, instance_id: str, limit: int) -> None:
        self.instance_id = instance_id
        self.limit = limit
        super().__init__(instance_id, limit)

    def __str__(self) -> str:
        return f"{self.instance_id!r} has {self.limit} events queued already (max_queued_events)"


class CodecError(PersistError, ValueError):
    """Bytes that no registered codec can read, or a value that the codec cannot write."""


class BackendError(PersistError):
    """The store failed; says nothing about the caller's data."""


class BackendUnavailableError(BackendError):
    """The store did not answer in time or refused; certainly nothing was applied."""

    retryable = True


class OutcomeUnknownError(BackendError):
    """A write was sent and its answer was lost: it may have been applied.

    Ask before repeating: by version (saves), by nonce (claims), by event id (events).
    """


class SchemaVersionError(BackendError):
    """The store's schema is not one that this release can work with."""


class BackendClosedError(BackendError):
    """The backend is not open: it was closed, or never entered with `async with`."""


class CapabilityError(PersistError):
    """This store, or the way it is deployed, cannot do what was asked."""


class ConfigurationError(PersistError):
    """A backend cannot be built from these options, URL or installed packages."""
