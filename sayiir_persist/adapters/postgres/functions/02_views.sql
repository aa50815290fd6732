-- An instance as a reader sees it, in one consistent step.
CREATE OR REPLACE VIEW {schema}.views AS
SELECT
    i.key,
    i.namespace,
    i.instance_id,
    t.now,
    i.incarnation,
    i.version,
    i.status,
    i.definition_hash,
    i.created_at,
    i.updated_at,
    i.status_since,
    i.last_completed,
    nullif(i.signals, '{}')::text AS signals,
    {schema}.live(i.claims, t.now) AS live_claims,
    coalesce(entry.advance_due, false) AS advance_due,
    i.body,
    i.body_at,
    i.priority,
    i.tags,
    entry.done,
    CASE WHEN queue.queued > 0 THEN (
        SELECT json_object_agg(head.name, json_build_array(head.number, head.arrived_at))
        FROM {schema}.heads(i.namespace, i.instance_id) AS head
    )::text END AS heads
FROM {schema}.instances AS i
CROSS JOIN LATERAL (SELECT greatest({schema}.clock(), i.updated_at) AS now) AS t
LEFT JOIN LATERAL (
    SELECT
        array_agg(e.node_id) FILTER (WHERE e.done) AS done,
        bool_or(e.lane = 0 AND e.available_at <= t.now) AS advance_due
    FROM {schema}.entries AS e
    WHERE e.key = i.key
) AS entry ON true
LEFT JOIN {schema}.queues AS queue
    ON queue.namespace = i.namespace AND queue.instance_id = i.instance_id;
