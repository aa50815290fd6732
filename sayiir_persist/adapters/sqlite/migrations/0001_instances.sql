-- Everything of one file. Instants are microseconds since 1970 in UTC; ids compare by their bytes.

PRAGMA application_id = 1398370896;

PRAGMA user_version = 1;

CREATE TABLE migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL           -- SHA-256 of the file that was applied
);

CREATE TABLE instances (
    key INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    status TEXT NOT NULL,
    definition_hash TEXT NOT NULL,
    priority INTEGER NOT NULL,
    tags TEXT NOT NULL,              -- JSON array
    created_at INTEGER NOT NULL,
    status_since INTEGER NOT NULL,
    idle_since INTEGER,              -- dispatch can never offer anything of it
    signalled_at INTEGER,            -- the oldest pending control signal
    purge_at INTEGER,                -- no claim on record ends before
    version INTEGER NOT NULL,
    fence INTEGER NOT NULL,          -- of the last claim
    last_completed TEXT,
    updated_at INTEGER NOT NULL,
    body_at INTEGER NOT NULL,
    state BLOB NOT NULL,             -- MessagePack: entries, claims, signals
    body BLOB NOT NULL               -- framed, see the codecs
);

CREATE UNIQUE INDEX instances_by_id
    ON instances (namespace, instance_id);

CREATE INDEX instances_by_status
    ON instances (namespace, status, instance_id);

CREATE INDEX instances_by_definition
    ON instances (namespace, definition_hash, instance_id);

CREATE INDEX instances_by_status_and_definition
    ON instances (namespace, status, definition_hash, instance_id);

CREATE INDEX instances_idle
    ON instances (namespace, idle_since, instance_id)
    WHERE idle_since IS NOT NULL;

CREATE INDEX instances_signalled
    ON instances (namespace, signalled_at, instance_id)
    WHERE signalled_at IS NOT NULL;

CREATE INDEX instances_to_purge
    ON instances (namespace, purge_at, instance_id)
    WHERE purge_at IS NOT NULL;

-- What a poll walks: one row for each entry that is, or will be, available as things stand. Lane 0
-- holds what has to be moved on, lanes 1 to 5 the tasks of that priority.
CREATE TABLE ready (
    namespace TEXT NOT NULL,
    lane INTEGER NOT NULL,
    available_at INTEGER NOT NULL,
    instance_id TEXT NOT NULL,
    node_id TEXT NOT NULL,
    definition_hash TEXT NOT NULL,
    tags TEXT NOT NULL,              -- JSON array
    avoid TEXT,                      -- the worker that yields to others for a while
    PRIMARY KEY (namespace, lane, available_at, instance_id, node_id)
) WITHOUT ROWID;

CREATE TABLE inputs (
    instance INTEGER PRIMARY KEY,    -- instances.key
    data BLOB NOT NULL
);

CREATE TABLE results (
    instance INTEGER NOT NULL,       -- instances.key
    node_id TEXT NOT NULL,
    number INTEGER NOT NULL,         -- grows in the order of recording
    output BLOB NOT NULL,
    PRIMARY KEY (instance, node_id)
) WITHOUT ROWID;

-- Events belong to an instance id, which may have no row yet.
CREATE TABLE queues (
    namespace TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    queued INTEGER NOT NULL,
    last_event INTEGER NOT NULL,     -- numbers are never given twice
    last_event_id INTEGER NOT NULL,
    PRIMARY KEY (namespace, instance_id)
) WITHOUT ROWID;

CREATE TABLE events (
    namespace TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    name TEXT NOT NULL,
    number INTEGER NOT NULL,
    arrived_at INTEGER NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (namespace, instance_id, name, number)
) WITHOUT ROWID;

CREATE TABLE event_ids (
    namespace TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    name TEXT NOT NULL,
    event_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (namespace, instance_id, name, event_id)
) WITHOUT ROWID;

CREATE INDEX event_ids_by_age
    ON event_ids (namespace, instance_id, number);

-- Outlives every instance.
CREATE TABLE counters (
    namespace TEXT PRIMARY KEY,
    fence INTEGER NOT NULL,          -- no instance that was deleted had a larger one
    wakeups INTEGER NOT NULL         -- transactions that made a task executable
) WITHOUT ROWID;
