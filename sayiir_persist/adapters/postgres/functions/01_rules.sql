-- The store's time. Everything that decides by time asks here, after it holds the row.
CREATE OR REPLACE FUNCTION {schema}.clock() RETURNS bigint
LANGUAGE sql VOLATILE AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
$$;

-- An instant that may depend on the moment of the write, see `When`: [at, after] in microseconds.
CREATE OR REPLACE FUNCTION {schema}.resolve(moment jsonb, now bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT least(
        CASE
            WHEN moment ->> 1 IS NULL THEN (moment ->> 0)::bigint
            ELSE greatest((moment ->> 0)::bigint, now + (moment ->> 1)::bigint)
        END,
        CASE WHEN moment ->> 0 IS NOT NULL OR moment ->> 1 IS NOT NULL THEN 253402300799999999 END
    )
$$;

-- Whether any claim is live.
CREATE OR REPLACE FUNCTION {schema}.live(claims jsonb, now bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT claims <> '{}' AND EXISTS (
        SELECT
        FROM jsonb_each(claims) AS claim
        WHERE claim.value ->> 'expires_at' IS NULL
            OR now < (claim.value ->> 'expires_at')::bigint
    )
$$;

-- From when on a poll finds an entry; NULL: not as things are.
CREATE OR REPLACE FUNCTION {schema}.available_at(
    dispatchable boolean, task boolean, met bigint, done boolean, due bigint, claim jsonb
) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN NOT dispatchable THEN NULL
        WHEN met IS NOT NULL THEN met
        WHEN NOT task THEN due
        WHEN done OR due IS NULL THEN NULL
        WHEN claim IS NULL THEN due
        WHEN claim ->> 'expires_at' IS NULL THEN NULL
        ELSE greatest(due, (claim ->> 'expires_at')::bigint)
    END
$$;

-- When the event arrived that an entry has met; NULL: it has met none.
CREATE OR REPLACE FUNCTION {schema}.met(
    p_namespace text, p_instance_id text, p_event text, p_until bigint
) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN p_until IS NULL OR head.arrived_at < p_until THEN head.arrived_at END
    FROM (
        SELECT e.arrived_at
        FROM {schema}.events AS e
        WHERE e.namespace = p_namespace AND e.instance_id = p_instance_id AND e.name = p_event
        ORDER BY e.number
        LIMIT 1
    ) AS head
$$;

-- The oldest event of each name; steps from name to name instead of walking the queue.
CREATE OR REPLACE FUNCTION {schema}.heads(p_namespace text, p_instance_id text)
RETURNS TABLE (name text, number bigint, arrived_at bigint, payload bytea)
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE head AS (
        (
            SELECT e.name, e.number, e.arrived_at, e.payload
            FROM {schema}.events AS e
            WHERE e.namespace = p_namespace AND e.instance_id = p_instance_id
            ORDER BY e.name, e.number
            LIMIT 1
        )
        UNION ALL
        SELECT following.*
        FROM head
        CROSS JOIN LATERAL (
            SELECT e.name, e.number, e.arrived_at, e.payload
            FROM {schema}.events AS e
            WHERE e.namespace = p_namespace AND e.instance_id = p_instance_id
                AND e.name > head.name
            ORDER BY e.name, e.number
            LIMIT 1
        ) AS following
    )
    SELECT head.name, head.number, head.arrived_at, head.payload
    FROM head
$$;

-- Remove all that belongs to an instance but its row.
CREATE OR REPLACE FUNCTION {schema}.clear(i {schema}.instances) RETURNS void
LANGUAGE sql VOLATILE AS $$
    DELETE FROM {schema}.entries WHERE key = i.key;
    DELETE FROM {schema}.results WHERE key = i.key;
    DELETE FROM {schema}.events WHERE namespace = i.namespace AND instance_id = i.instance_id;
    DELETE FROM {schema}.event_ids WHERE namespace = i.namespace AND instance_id = i.instance_id;
    DELETE FROM {schema}.queues WHERE namespace = i.namespace AND instance_id = i.instance_id;
$$;

-- Bring the places of an instance's entries in line with its signals, claims and events.
CREATE OR REPLACE FUNCTION {schema}.place_entries(i {schema}.instances) RETURNS void
LANGUAGE sql VOLATILE AS $$
    UPDATE {schema}.entries AS e
    SET met = place.met, lane = place.lane, available_at = place.available_at
    FROM (
        SELECT
            now_met.ordinal,
            now_met.met,
            CASE WHEN NOT task OR now_met.met IS NOT NULL THEN 0 ELSE priority END AS lane,
            {schema}.available_at(
                i.status = 'in_progress' AND i.signals = '{}',
                task, now_met.met, done, due, i.claims -> node_id
            ) AS available_at
        FROM (
            SELECT
                *,
                CASE WHEN event IS NOT NULL
                    THEN {schema}.met(i.namespace, i.instance_id, event, until)
                END AS met
            FROM (
                SELECT ordinal, task, done, due, priority, node_id, event, until
                FROM {schema}.entries
                WHERE key = i.key
            ) AS entry
        ) AS now_met
    ) AS place
    WHERE e.key = i.key AND e.ordinal = place.ordinal
        AND (e.met, e.lane, e.available_at)
            IS DISTINCT FROM (place.met, place.lane::smallint, place.available_at)
$$;
