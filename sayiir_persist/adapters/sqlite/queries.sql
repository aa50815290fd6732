-- Every statement that runs after set-up. A block begins with its name.

-- --- Instances ---

-- name: find_instance
-- Without the body, which most writes only replace. Served by instances_by_id.
SELECT
    incarnation, status, definition_hash, priority, tags, created_at, status_since,
    idle_since, signalled_at, purge_at,
    version, fence, last_completed, updated_at, body_at, state, key
FROM instances
WHERE namespace = ? AND instance_id = ?

-- name: find_instance_and_body
-- Served by instances_by_id.
SELECT
    incarnation, status, definition_hash, priority, tags, created_at, status_since,
    idle_since, signalled_at, purge_at,
    version, fence, last_completed, updated_at, body_at, state, key, body
FROM instances
WHERE namespace = ? AND instance_id = ?

-- name: next_key
SELECT COALESCE(MAX(key), 0) + 1
FROM instances

-- name: insert_instance
INSERT INTO instances (
    incarnation, status, definition_hash, priority, tags, created_at, status_since,
    idle_since, signalled_at, purge_at,
    version, fence, last_completed, updated_at, body_at, state, body, key, namespace, instance_id
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: update_instance
-- What nearly every write changes; no column of an index is among it.
UPDATE instances
SET
    version = ?,
    fence = ?,
    last_completed = ?,
    updated_at = ?,
    body_at = ?,
    state = ?,
    body = COALESCE(?, body)
WHERE key = ?

-- name: update_places
-- What few writes change, and with it the indexes.
UPDATE instances
SET
    incarnation = ?,
    status = ?,
    definition_hash = ?,
    priority = ?,
    tags = ?,
    created_at = ?,
    status_since = ?,
    idle_since = ?,
    signalled_at = ?,
    purge_at = ?
WHERE key = ?

-- name: delete_instance
DELETE FROM instances
WHERE key = ?

-- --- Input and results ---

-- name: find_input
SELECT data
FROM inputs
WHERE instance = ?

-- name: put_input
INSERT INTO inputs (instance, data)
VALUES (?, ?)
ON CONFLICT (instance) DO UPDATE
SET data = excluded.data

-- name: delete_input
DELETE FROM inputs
WHERE instance = ?

-- name: find_result
SELECT output
FROM results
WHERE instance = ? AND node_id = ?

-- name: all_results
SELECT number, node_id, output
FROM results
WHERE instance = ?

-- name: put_result
-- One that is overwritten keeps its place in the order.
INSERT INTO results (instance, node_id, number, output)
VALUES (?, ?, ?, ?)
ON CONFLICT (instance, node_id) DO UPDATE
SET output = excluded.output

-- name: delete_result
DELETE FROM results
WHERE instance = ? AND node_id = ?

-- name: delete_results
DELETE FROM results
WHERE instance = ?

-- --- Events ---

-- name: find_queue
SELECT queued, last_event, last_event_id
FROM queues
WHERE namespace = ? AND instance_id = ?

-- name: put_queue
INSERT INTO queues (namespace, instance_id, queued, last_event, last_event_id)
VALUES (?, ?, ?, ?, ?)
ON CONFLICT (namespace, instance_id) DO UPDATE
SET
    queued = excluded.queued,
    last_event = excluded.last_event,
    last_event_id = excluded.last_event_id

-- name: delete_queue
DELETE FROM queues
WHERE namespace = ? AND instance_id = ?

-- name: event_names
-- Steps from name to name instead of walking the events.
WITH RECURSIVE names (name) AS (
    SELECT MIN(name)
    FROM events
    WHERE namespace = ?1 AND instance_id = ?2
    UNION ALL
    SELECT (
        SELECT MIN(events.name)
        FROM events
        WHERE namespace = ?1 AND instance_id = ?2 AND events.name > names.name
    )
    FROM names
    WHERE names.name IS NOT NULL
)
SELECT name
FROM names
WHERE name IS NOT NULL

-- name: first_event
SELECT number, arrived_at
FROM events
WHERE namespace = ? AND instance_id = ? AND name = ?
ORDER BY number
LIMIT 1

-- name: first_event_and_payload
SELECT number, arrived_at, payload
FROM events
WHERE namespace = ? AND instance_id = ? AND name = ?
ORDER BY number
LIMIT 1

-- name: insert_event
INSERT INTO events (namespace, instance_id, name, number, arrived_at, payload)
VALUES (?, ?, ?, ?, ?, ?)

-- name: delete_event
DELETE FROM events
WHERE namespace = ? AND instance_id = ? AND name = ? AND number = ?

-- name: delete_events
DELETE FROM events
WHERE namespace = ? AND instance_id = ?

-- name: find_event_id
SELECT number
FROM event_ids
WHERE namespace = ? AND instance_id = ? AND name = ? AND event_id = ?

-- name: insert_event_id
INSERT INTO event_ids (namespace, instance_id, name, event_id, number)
VALUES (?, ?, ?, ?, ?)

-- name: forget_event_ids
-- Served by event_ids_by_age.
DELETE FROM event_ids
WHERE namespace = ? AND instance_id = ? AND number <= ?

-- name: delete_event_ids
DELETE FROM event_ids
WHERE namespace = ? AND instance_id = ?

-- --- Dispatch ---

-- name: insert_ready
INSERT INTO ready (
    lane, available_at, node_id, definition_hash, tags, avoid, namespace, instance_id
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: move_ready
-- The one entry of a linear workflow, in one statement.
UPDATE ready
SET
    lane = ?,
    available_at = ?,
    node_id = ?,
    definition_hash = ?,
    tags = ?,
    avoid = ?
WHERE namespace = ? AND instance_id = ? AND lane = ? AND available_at = ? AND node_id = ?

-- name: delete_ready
DELETE FROM ready
WHERE namespace = ? AND instance_id = ? AND lane = ? AND available_at = ? AND node_id = ?

-- name: due
-- One lane in order, a slice at a time: cost follows what is read, not what is stored.
SELECT available_at, instance_id, node_id, definition_hash, tags, avoid
FROM ready
WHERE namespace = ?
    AND lane = ?
    AND available_at <= ?
    AND (available_at, instance_id, node_id) > (?, ?, ?)
ORDER BY available_at, instance_id, node_id
LIMIT ?

-- name: find_fence
SELECT fence
FROM counters
WHERE namespace = ?

-- name: raise_fence
INSERT INTO counters (namespace, fence, wakeups)
VALUES (?, ?, 0)
ON CONFLICT (namespace) DO UPDATE
SET fence = MAX(fence, excluded.fence)

-- name: find_wakeups
SELECT wakeups
FROM counters
WHERE namespace = ?

-- name: count_wakeup
INSERT INTO counters (namespace, fence, wakeups)
VALUES (?, 0, 1)
ON CONFLICT (namespace) DO UPDATE
SET wakeups = wakeups + 1

-- --- Listings ---

-- name: list_all
-- Served by instances_by_id.
SELECT
    instance_id, definition_hash, status, version, created_at, updated_at, status_since, priority,
    tags
FROM instances
WHERE namespace = ? AND instance_id > ?
ORDER BY instance_id
LIMIT ?

-- name: list_by_status
-- Served by instances_by_status.
SELECT
    instance_id, definition_hash, status, version, created_at, updated_at, status_since, priority,
    tags
FROM instances
WHERE namespace = ? AND status = ? AND instance_id > ?
ORDER BY instance_id
LIMIT ?

-- name: list_by_definition
-- Served by instances_by_definition.
SELECT
    instance_id, definition_hash, status, version, created_at, updated_at, status_since, priority,
    tags
FROM instances
WHERE namespace = ? AND definition_hash = ? AND instance_id > ?
ORDER BY instance_id
LIMIT ?

-- name: list_by_status_and_definition
-- Served by instances_by_status_and_definition.
SELECT
    instance_id, definition_hash, status, version, created_at, updated_at, status_since, priority,
    tags
FROM instances
WHERE namespace = ? AND status = ? AND definition_hash = ? AND instance_id > ?
ORDER BY instance_id
LIMIT ?

-- name: list_idle
-- Served by instances_idle.
SELECT
    instance_id, definition_hash, status, version, created_at, updated_at, status_since, priority,
    tags, state
FROM instances
WHERE namespace = ? AND idle_since <= ?
ORDER BY idle_since, instance_id

-- name: list_signalled
-- Served by instances_signalled.
SELECT signalled_at, instance_id
FROM instances
WHERE namespace = ? AND signalled_at IS NOT NULL
ORDER BY signalled_at, instance_id

-- name: list_to_purge
-- Served by instances_to_purge.
SELECT instance_id
FROM instances
WHERE namespace = ? AND purge_at <= ?
ORDER BY purge_at, instance_id
LIMIT ?
