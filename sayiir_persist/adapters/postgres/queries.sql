-- Every statement that runs after set-up. A block begins with its name.

-- name: now
SELECT {schema}.clock()

-- name: reads
-- A statement of its own for each thing to read, so that one plan is good for all its calls.
SELECT
    v.now, v.incarnation, v.version, v.status, v.definition_hash, v.created_at, v.updated_at,
    v.status_since, v.last_completed, v.signals, v.live_claims, v.advance_due,
    CASE WHEN $3 THEN v.body END AS body,
    v.body_at, v.priority, v.tags, v.done, v.heads,
    CASE WHEN $3 THEN (
        SELECT r.output FROM {schema}.results AS r WHERE r.key = v.key AND r.node_id = ''
    ) END AS input,
    recorded.nodes,
    recorded.outputs,
    waiting.names,
    waiting.payloads
FROM {schema}.views AS v
CROSS JOIN LATERAL ({recorded}) AS recorded
CROSS JOIN LATERAL ({waiting}) AS waiting
WHERE v.namespace = $1 AND v.instance_id = $2

-- name: recorded
SELECT array_agg(r.node_id) AS nodes, array_agg(r.output) AS outputs
FROM (
    SELECT r.node_id, r.output
    FROM {schema}.results AS r
    WHERE r.key = v.key AND r.node_id <> '' AND ($4::text[] IS NULL OR r.node_id = ANY ($4))
    ORDER BY r.number
) AS r

-- name: nothing_recorded
SELECT NULL::text[] AS nodes, NULL::bytea[] AS outputs

-- name: waiting
SELECT array_agg(head.name) AS names, array_agg(head.payload) AS payloads
FROM {schema}.heads(v.namespace, v.instance_id) AS head

-- name: nothing_waiting
SELECT NULL::text[] AS names, NULL::bytea[] AS payloads

-- name: write
SELECT *
FROM {schema}.write(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
    $22, $23, $24
)

-- name: write_batch
-- At most one result each. In the order of ids, so that two batches never wait for one another.
SELECT w.*
FROM unnest(
    $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::bigint[],
    $9::boolean[], $10::bytea[], $11::text[], $12::boolean[], $13::text[], $14::smallint[],
    $15::text[], $16::text[], $17::boolean[], $18::jsonb[], $19::boolean[], $20::text[],
    $21::bytea[], $22::jsonb[], $23::jsonb[], $24::bytea[]
) WITH ORDINALITY AS u (
    instance_id, presence, statuses, version, incarnation, task, fence, release, body, status,
    status_is_new, definition_hash, priority, tags, last_completed, idle, entries, stays, node,
    output, claim_next, more, data, place
)
CROSS JOIN LATERAL {schema}.write(
    $1, u.instance_id, u.presence, u.statuses, u.version, u.incarnation, u.task, u.fence,
    u.release, u.body, u.status, u.status_is_new, u.definition_hash, u.priority, u.tags,
    u.last_completed, u.idle, u.entries, u.stays,
    CASE WHEN u.node IS NOT NULL THEN ARRAY[u.node] END,
    CASE WHEN u.node IS NOT NULL THEN ARRAY[u.output] END,
    u.claim_next, u.more, u.data
) AS w
ORDER BY u.place

-- name: steps
-- The write that workflows are made of: a worker's commit that leads from one open task to another,
-- or to the end. Answers the place of each that was done; any other is left to `write`.
--
-- The rows are locked first, in the order of the units, so that two batches never wait for one
-- another, and what decides is evaluated after that: the time, the fence, the guard. An UPDATE alone
-- would wait with an older time in its hands: it looks again only where the row was changed.
WITH held AS MATERIALIZED (
    SELECT t.key, u.*
    FROM ({units}) AS u
    JOIN {schema}.instances AS t ON t.namespace = $1 AND t.instance_id = u.instance_id
    ORDER BY u.place
    FOR UPDATE OF t
), moved AS (
    UPDATE {schema}.instances AS t
    SET (
        version, status, status_since, definition_hash, priority, tags, last_completed, updated_at,
        body_at, idle_since, purge_at, entry_count, claims, body
    ) = (
        SELECT
            t.version + 1,
            u.status,
            CASE WHEN u.status = t.status THEN t.status_since ELSE n.now END,
            u.definition_hash,
            u.priority,
            u.tags,
            u.last_completed,
            n.now,
            n.now,
            NULL::bigint,
            CASE WHEN u.claim IS NOT NULL THEN least(t.purge_at, n.now + u.ttl) END,
            CASE WHEN u.node IS NULL THEN 0 ELSE 1 END,
            CASE WHEN u.claim IS NULL THEN '{}' ELSE jsonb_build_object(
                u.node,
                u.claim || jsonb_build_object(
                    'fence', nextval('{schema}.fences'),
                    'claimed_at', n.now,
                    'expires_at', n.now + u.ttl
                )
            ) END,
            u.body
        FROM (SELECT greatest(c.now, t.updated_at) AS now) AS n
    )
    FROM held AS u
    CROSS JOIN LATERAL (SELECT {schema}.clock() AS now WHERE u.key IS NOT NULL) AS c
    WHERE t.key = u.key
        AND t.version = u.version AND t.incarnation = u.incarnation
        AND t.status = 'in_progress' AND t.signals = '{}' AND t.entry_count = 1
        AND t.claims - u.task = '{}'
        AND (t.claims -> u.task ->> 'fence')::bigint = u.fence
        AND (
            (t.claims -> u.task ->> 'expires_at')::bigint <= greatest(c.now, t.updated_at)
        ) IS NOT TRUE
    RETURNING
        t.key, t.updated_at AS now, t.created_at, t.status_since,
        (t.claims -> u.node ->> 'fence')::bigint AS fence,
        u.place, u.definition_hash, u.node, u.node_priority, u.node_tags, u.input_from, u.ttl,
        u.gained, u.output
), entered AS (
    UPDATE {schema}.entries AS t
    SET definition_hash = moved.definition_hash,
        node_id = moved.node,
        task = true,
        due = moved.now,
        early = true,
        done = false,
        reason = 'task',
        priority = moved.node_priority,
        tags = moved.node_tags::text[],
        input_from = moved.input_from,
        avoid = NULL,
        event = NULL,
        until = NULL,
        elapses = NULL,
        met = NULL,
        lane = moved.node_priority,
        available_at = moved.now + coalesce(moved.ttl, 0)
    FROM moved
    WHERE t.key = moved.key AND t.ordinal = 0 AND moved.node IS NOT NULL
), left_behind AS (
    DELETE FROM {schema}.entries AS t
    USING moved
    WHERE t.key = moved.key AND moved.node IS NULL
), recorded AS (
    INSERT INTO {schema}.results AS t (key, node_id, output)
    SELECT moved.key, moved.gained, moved.output
    FROM moved
    WHERE moved.gained IS NOT NULL
    ON CONFLICT (key, node_id) DO UPDATE SET output = excluded.output
)
SELECT
    moved.place, moved.now, moved.created_at, moved.status_since, moved.fence,
    CASE WHEN moved.fence IS NOT NULL AND moved.input_from IS DISTINCT FROM moved.gained THEN (
        SELECT t.output
        FROM {schema}.results AS t
        WHERE t.key = moved.key AND t.node_id = moved.input_from
    ) END AS input
FROM moved

-- name: one_step
SELECT
    $2::text AS instance_id,
    $3::bigint AS version,
    $4::text AS incarnation,
    $5::text AS task,
    $6::bigint AS fence,
    $7::bytea AS body,
    $8::text AS status,
    $9::text AS definition_hash,
    $10::smallint AS priority,
    $11::text AS tags,
    $12::text AS last_completed,
    $13::text AS node,
    $14::smallint AS node_priority,
    $15::text AS node_tags,
    $16::text AS input_from,
    $17::text AS gained,
    $18::bytea AS output,
    $19::jsonb AS claim,
    $20::bigint AS ttl,
    1 AS place

-- name: many_steps
-- In the order of ids.
SELECT *
FROM unnest(
    $2::text[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bytea[], $8::text[],
    $9::text[], $10::smallint[], $11::text[], $12::text[], $13::text[], $14::smallint[],
    $15::text[], $16::text[], $17::text[], $18::bytea[], $19::jsonb[], $20::bigint[]
) WITH ORDINALITY AS u (
    instance_id, version, incarnation, task, fence, body, status, definition_hash, priority, tags,
    last_completed, node, node_priority, node_tags, input_from, gained, output, claim, ttl, place
)

-- name: claim
SELECT *
FROM {schema}.claim($1, $2, $3, $4, $5)

-- name: extend
SELECT *
FROM {schema}.extend($1, $2, $3, $4, $5)

-- name: poll
SELECT *
FROM {schema}.poll($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)

-- name: list_all
-- Served by instances_by_id.
SELECT
    instance_id, definition_hash, status, version, created_at, updated_at, status_since, priority,
    tags
FROM {schema}.instances
WHERE namespace = $1 AND instance_id > $2
ORDER BY instance_id
LIMIT $3

-- name: list_by_status
-- Served by instances_by_status.
SELECT
    instance_id, definition_hash, status, version, created_at, updated_at, status_since, priority,
    tags
FROM {schema}.instances
WHERE namespace = $1 AND instance_id > $2 AND status = $4
ORDER BY instance_id
LIMIT $3

-- name: list_by_definition
-- Served by instances_by_definition.
SELECT
    instance_id, definition_hash, status, version, created_at, updated_at, status_since, priority,
    tags
FROM {schema}.instances
WHERE namespace = $1 AND instance_id > $2 AND definition_hash = $4
ORDER BY instance_id
LIMIT $3

-- name: list_by_status_and_definition
-- Served by instances_by_status_and_definition.
SELECT
    instance_id, definition_hash, status, version, created_at, updated_at, status_since, priority,
    tags
FROM {schema}.instances
WHERE namespace = $1 AND instance_id > $2 AND status = $4 AND definition_hash = $5
ORDER BY instance_id
LIMIT $3

-- name: list_stalled
-- Served by instances_idle.
SELECT
    instance_id, definition_hash, status, version, created_at, updated_at, status_since, priority,
    tags
FROM {schema}.instances
WHERE namespace = $1 AND idle_since <= (SELECT {schema}.clock() - $2)
    AND NOT {schema}.live(claims, {schema}.clock())
ORDER BY idle_since, instance_id
LIMIT $3

-- name: chores
-- Served by instances_signalled and entries_available.
WITH signalled AS (
    SELECT t.signalled_at AS at, t.instance_id
    FROM {schema}.instances AS t
    WHERE t.namespace = $1 AND t.signalled_at IS NOT NULL AND t.instance_id <> ALL ($3)
        AND NOT {schema}.live(t.claims, {schema}.clock())
    ORDER BY t.signalled_at, t.instance_id
    LIMIT $2
), advances AS (
    SELECT e.available_at AS at, e.instance_id
    FROM {schema}.entries AS e
    WHERE e.namespace = $1 AND e.lane = 0 AND e.available_at <= (SELECT {schema}.clock())
        AND e.instance_id <> ALL ($3)
        AND NOT EXISTS (
            SELECT
            FROM {schema}.instances AS t
            WHERE t.key = e.key AND {schema}.live(t.claims, {schema}.clock())
        )
        AND NOT EXISTS (
            SELECT
            FROM {schema}.entries AS o
            WHERE o.key = e.key AND o.lane = 0
                AND (o.available_at, o.ordinal) < (e.available_at, e.ordinal)
        )
    ORDER BY e.available_at, e.instance_id, e.node_id
    LIMIT $2
)
SELECT due.instance_id
FROM (SELECT * FROM signalled UNION ALL SELECT * FROM advances) AS due
GROUP BY due.instance_id
ORDER BY min(due.at), due.instance_id
LIMIT $2

-- name: purge
SELECT purged, more
FROM {schema}.purge($1, {schema}.clock() - $2::bigint, $3)
