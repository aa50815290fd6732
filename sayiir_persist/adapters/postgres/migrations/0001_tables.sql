-- Instants are microseconds since 1970 in UTC; ids compare by their bytes.

CREATE SEQUENCE {schema}.keys;

-- Drawn under the lock of the instance's row, so that fences grow with the claims on it.
CREATE SEQUENCE {schema}.fences;

-- No column that every commit changes is in an index, so that commits are HOT updates.
CREATE TABLE {schema}.instances (
    key bigint PRIMARY KEY,
    namespace text COLLATE "C" NOT NULL,
    instance_id text COLLATE "C" NOT NULL,
    incarnation text NOT NULL,
    version bigint NOT NULL,
    status text COLLATE "C" NOT NULL,
    definition_hash text COLLATE "C" NOT NULL,
    priority smallint NOT NULL,
    tags text NOT NULL,                 -- JSON array
    last_completed text,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    status_since bigint NOT NULL,
    body_at bigint NOT NULL,
    idle_since bigint,                  -- dispatch can never offer anything of it
    signalled_at bigint,                -- the oldest pending control signal
    purge_at bigint,                    -- no claim on record ends before
    entry_count smallint NOT NULL,
    claims jsonb NOT NULL,              -- by task id
    signals jsonb NOT NULL,             -- by kind
    body bytea NOT NULL,                -- framed, see the codecs
    CONSTRAINT instances_by_id UNIQUE (namespace, instance_id)
) WITH (fillfactor = 70);

CREATE INDEX instances_by_status
    ON {schema}.instances (namespace, status, instance_id);

CREATE INDEX instances_by_definition
    ON {schema}.instances (namespace, definition_hash, instance_id);

CREATE INDEX instances_by_status_and_definition
    ON {schema}.instances (namespace, status, definition_hash, instance_id);

CREATE INDEX instances_idle
    ON {schema}.instances (namespace, idle_since, instance_id)
    WHERE idle_since IS NOT NULL;

CREATE INDEX instances_signalled
    ON {schema}.instances (namespace, signalled_at, instance_id)
    WHERE signalled_at IS NOT NULL;

CREATE INDEX instances_to_purge
    ON {schema}.instances (namespace, purge_at, instance_id)
    WHERE purge_at IS NOT NULL;

-- One row for each entry of an instance. What a poll finds has an instant in available_at: lane 0
-- holds what has to be moved on, lanes 1 to 5 the tasks of that priority.
CREATE TABLE {schema}.entries (
    key bigint NOT NULL,                -- instances.key
    ordinal smallint NOT NULL,          -- in tree order, from 0
    namespace text COLLATE "C" NOT NULL,
    instance_id text COLLATE "C" NOT NULL,
    definition_hash text COLLATE "C" NOT NULL,
    node_id text COLLATE "C" NOT NULL,
    task boolean NOT NULL,              -- it can be claimed; else it has to be moved on
    due bigint,                         -- NULL: never
    early boolean NOT NULL,
    done boolean NOT NULL,
    reason text NOT NULL,
    priority smallint NOT NULL,
    tags text[] NOT NULL,
    input_from text,
    avoid text,
    event text COLLATE "C",
    until bigint,                       -- an event that arrives from then on comes too late
    elapses bigint,
    met bigint,                         -- when the event arrived that it has met
    lane smallint NOT NULL,
    available_at bigint,                -- NULL: not as things are
    PRIMARY KEY (key, ordinal)
) WITH (
    fillfactor = 70,
    -- Polls step over what commits left dead in the index, so it is cleared away soon.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX entries_available
    ON {schema}.entries (namespace, lane, available_at, instance_id, node_id)
    WHERE available_at IS NOT NULL;

CREATE TABLE {schema}.results (
    key bigint NOT NULL,                -- instances.key
    node_id text COLLATE "C" NOT NULL,  -- '': the instance's input
    number bigint GENERATED ALWAYS AS IDENTITY, -- grows in the order of recording
    output bytea NOT NULL,
    PRIMARY KEY (key, node_id)
);

-- Events belong to an instance id, which may have no row yet.
CREATE TABLE {schema}.queues (
    namespace text COLLATE "C" NOT NULL,
    instance_id text COLLATE "C" NOT NULL,
    queued bigint NOT NULL,
    last_event bigint NOT NULL,         -- numbers are never given twice
    last_event_id bigint NOT NULL,
    PRIMARY KEY (namespace, instance_id)
) WITH (fillfactor = 70);

CREATE TABLE {schema}.events (
    namespace text COLLATE "C" NOT NULL,
    instance_id text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    arrived_at bigint NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (namespace, instance_id, name, number)
);

CREATE TABLE {schema}.event_ids (
    namespace text COLLATE "C" NOT NULL,
    instance_id text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    PRIMARY KEY (namespace, instance_id, name, event_id)
);

CREATE INDEX event_ids_by_age
    ON {schema}.event_ids (namespace, instance_id, number);
