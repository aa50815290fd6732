-- Find due work, and claim it if that is asked for; see `Poll` in sayiir_persist/driver.py.
--
-- Answers due advances, as rows with nothing but an instance id, or offers in order. Every statement
-- of the loop takes a view of its own, so what is checked under the lock is what is claimed.
CREATE OR REPLACE FUNCTION {schema}.poll(
    p_namespace text,
    p_worker text,
    p_tags text[],
    p_definitions text[],
    p_limit integer,
    p_advances integer,
    p_aging bigint,
    p_bias bigint,
    p_exclude text[],
    p_results boolean,
    p_claim jsonb,
    p_ttl bigint
)
RETURNS TABLE (
    instance_id text,
    task_id text,
    reason text,
    claim text,
    now bigint,
    incarnation text,
    version bigint,
    status text,
    definition_hash text,
    created_at bigint,
    updated_at bigint,
    status_since bigint,
    last_completed text,
    signals text,
    live_claims boolean,
    advance_due boolean,
    body bytea,
    body_at bigint,
    priority smallint,
    tags text,
    done text[],
    heads text,
    instance_input bytea,
    task_input bytea,
    nodes text[],
    outputs bytea[]
)
LANGUAGE plpgsql VOLATILE AS $$
<<here>>
DECLARE
    moment bigint := {schema}.clock();
    wanted integer := p_limit;
    slice integer;
    yields boolean := false;
    tried bigint[] := '{}';
    locked bigint[];
    looked_at integer;
    keys bigint[];
    ordinals smallint[];
    found_keys bigint[] := '{}';
    found_ordinals smallint[] := '{}';
    claims text[] := '{}';
BEGIN
    IF p_advances > 0 THEN
        RETURN QUERY
        SELECT
            due.instance_id, NULL, NULL, NULL, NULL::bigint, NULL, NULL::bigint, NULL, NULL,
            NULL::bigint, NULL::bigint, NULL::bigint, NULL, NULL, NULL::boolean, NULL::boolean,
            NULL::bytea, NULL::bigint, NULL::smallint, NULL, NULL::text[], NULL, NULL::bytea,
            NULL::bytea, NULL::text[], NULL::bytea[]
        FROM {schema}.entries AS due
        WHERE due.namespace = p_namespace AND due.lane = 0 AND due.available_at <= moment
            AND (p_definitions IS NULL OR due.definition_hash = ANY (p_definitions))
            AND due.instance_id <> ALL (p_exclude)
            AND NOT EXISTS (
                SELECT
                FROM {schema}.entries AS t
                WHERE t.key = due.key AND t.lane = 0
                    AND (t.available_at, t.ordinal) < (due.available_at, due.ordinal)
            )
        ORDER BY due.available_at, due.instance_id, due.node_id
        LIMIT p_advances;

        IF FOUND THEN
            RETURN;
        END IF;
    END IF;

    LOOP
        -- Somebody else may hold some of them, so a claimer looks at a few more.
        slice := wanted + CASE WHEN p_claim IS NULL THEN 0 ELSE 16 END;
        SELECT array_agg(c.key ORDER BY c.place), array_agg(c.ordinal ORDER BY c.place)
        INTO keys, ordinals
        FROM (
            SELECT
                t.key,
                t.ordinal,
                row_number() OVER (
                    ORDER BY
                        CASE
                            WHEN p_aging IS NULL THEN t.lane
                            ELSE t.lane * p_aging + t.available_at
                        END,
                        t.available_at, t.instance_id, t.node_id
                ) AS place
            FROM generate_series(1, 5) AS l (lane)
            CROSS JOIN LATERAL (
                SELECT t.key, t.ordinal, t.lane, t.available_at, t.instance_id, t.node_id
                FROM {schema}.entries AS t
                WHERE t.namespace = p_namespace AND t.lane = l.lane AND t.available_at <= moment
                    AND (p_definitions IS NULL OR t.definition_hash = ANY (p_definitions))
                    AND (p_tags IS NULL OR t.tags <@ p_tags)
                    AND t.instance_id <> ALL (p_exclude)
                    AND t.key <> ALL (tried)
                    AND (
                        t.avoid IS NOT DISTINCT FROM p_worker
                        AND moment - t.available_at < p_bias
                    ) = yields
                ORDER BY t.available_at, t.instance_id, t.node_id
                LIMIT slice
            ) AS t
            ORDER BY place
            LIMIT slice
        ) AS c;

        IF keys IS NULL THEN
            EXIT WHEN yields;
            yields := true;
            CONTINUE;
        END IF;

        IF p_claim IS NULL THEN
            found_keys := found_keys || keys;
            found_ordinals := found_ordinals || ordinals;
            wanted := wanted - cardinality(keys);
        ELSE
            SELECT
                array_agg(t.key),
                CASE WHEN count(*) < wanted THEN cardinality(keys) ELSE max(t.place) END
            INTO locked, looked_at
            FROM (
                SELECT t.key, c.place
                FROM {schema}.instances AS t
                JOIN (
                    SELECT c.key, min(c.place) AS place
                    FROM unnest(keys) WITH ORDINALITY AS c (key, place)
                    GROUP BY c.key
                ) AS c ON c.key = t.key
                ORDER BY c.place
                LIMIT wanted
                FOR UPDATE OF t SKIP LOCKED
            ) AS t;
            moment := greatest(moment, {schema}.clock());

            WITH due AS (
                SELECT
                    t.key, t.ordinal, t.node_id, greatest(moment, i.updated_at) AS at,
                    row_number() OVER (ORDER BY c.place) AS number
                FROM unnest(keys, ordinals) WITH ORDINALITY AS c (key, ordinal, place)
                JOIN {schema}.entries AS t ON t.key = c.key AND t.ordinal = c.ordinal
                JOIN {schema}.instances AS i ON i.key = c.key
                WHERE c.key = ANY (locked) AND t.lane > 0 AND t.available_at <= moment
                    AND (p_definitions IS NULL OR t.definition_hash = ANY (p_definitions))
                    AND (p_tags IS NULL OR t.tags <@ p_tags)
                ORDER BY c.place
                LIMIT wanted
            ), claimed AS MATERIALIZED (
                SELECT
                    due.key, due.ordinal, due.node_id, due.number, due.at + p_ttl AS expires_at,
                    p_claim || jsonb_build_object(
                        'task_id', due.node_id,
                        'fence', nextval('{schema}.fences'),
                        'claimed_at', due.at,
                        'expires_at', due.at + p_ttl,
                        'nonce', (p_claim ->> 'nonce') || '.'
                            || (cardinality(claims) + due.number - 1)
                    ) AS claim
                FROM due
            ), recorded AS (
                UPDATE {schema}.instances AS t
                SET claims = t.claims || c.claims, purge_at = least(t.purge_at, c.expires_at)
                FROM (
                    SELECT
                        claimed.key,
                        jsonb_object_agg(claimed.node_id, claimed.claim) AS claims,
                        min(claimed.expires_at) AS expires_at
                    FROM claimed
                    GROUP BY claimed.key
                ) AS c
                WHERE t.key = c.key
            ), placed AS (
                UPDATE {schema}.entries AS t
                SET available_at = CASE
                    WHEN c.expires_at IS NOT NULL THEN greatest(t.due, c.expires_at)
                END
                FROM claimed AS c
                WHERE t.key = c.key AND t.ordinal = c.ordinal
            )
            SELECT
                found_keys || array_agg(c.key ORDER BY c.number),
                found_ordinals || array_agg(c.ordinal ORDER BY c.number),
                claims || array_agg(c.claim::text ORDER BY c.number),
                wanted - count(*)
            INTO found_keys, found_ordinals, claims, wanted
            FROM claimed AS c;
            -- Others may have claimed what is locked now; those that stand behind it are still there.
            tried := tried || keys[1:looked_at];
        END IF;

        EXIT WHEN wanted <= 0;

        IF p_claim IS NULL OR (cardinality(keys) < slice AND looked_at = cardinality(keys)) THEN
            EXIT WHEN yields;
            yields := true;
        END IF;
    END LOOP;

    RETURN QUERY
    SELECT
        v.instance_id, e.node_id, e.reason, f.claim, v.now, v.incarnation, v.version, v.status,
        v.definition_hash, v.created_at, v.updated_at, v.status_since, v.last_completed, v.signals,
        v.live_claims, v.advance_due, v.body, v.body_at, v.priority, v.tags, v.done, v.heads,
        given.output,
        CASE WHEN e.input_from <> '' THEN (
            SELECT r.output FROM {schema}.results AS r
            WHERE r.key = f.key AND r.node_id = e.input_from
        ) WHEN e.input_from = '' THEN given.output END,
        recorded.nodes,
        recorded.outputs
    FROM unnest(found_keys, found_ordinals, claims) WITH ORDINALITY
        AS f (key, ordinal, claim, place)
    JOIN {schema}.entries AS e ON e.key = f.key AND e.ordinal = f.ordinal
    JOIN {schema}.views AS v ON v.key = f.key
    LEFT JOIN {schema}.results AS given ON given.key = f.key AND given.node_id = ''
    LEFT JOIN LATERAL (
        SELECT array_agg(r.node_id) AS nodes, array_agg(r.output) AS outputs
        FROM (
            SELECT r.node_id, r.output
            FROM {schema}.results AS r
            WHERE r.key = f.key AND r.node_id <> ''
            ORDER BY r.number
        ) AS r
    ) AS recorded ON p_results
    WHERE f.claim IS NOT NULL OR (
        e.lane > 0 AND e.available_at <= moment
        AND (p_definitions IS NULL OR e.definition_hash = ANY (p_definitions))
        AND (p_tags IS NULL OR e.tags <@ p_tags)
    )
    ORDER BY f.place;
END
$$;

-- Drop at most p_limit claims that ended by p_before, and say whether there are more.
CREATE OR REPLACE FUNCTION {schema}.purge(
    p_namespace text,
    p_before bigint,
    p_limit integer,
    OUT purged integer,
    OUT more boolean
)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    i {schema}.instances;
    ended text[];
    seen integer := 0;
BEGIN
    purged := 0;
    more := false;

    FOR i IN
        SELECT t.*
        FROM {schema}.instances AS t
        WHERE t.namespace = p_namespace AND t.purge_at <= p_before
        ORDER BY t.purge_at, t.instance_id
        LIMIT p_limit + 1
        FOR UPDATE SKIP LOCKED
    LOOP
        seen := seen + 1;
        more := more OR seen > p_limit;
        SELECT array_agg(claim.key) INTO ended
        FROM jsonb_each(i.claims) AS claim
        WHERE (claim.value ->> 'expires_at')::bigint <= p_before;

        IF purged + coalesce(cardinality(ended), 0) > p_limit THEN
            more := true;
            ended := ended[1:p_limit - purged];
        END IF;

        IF cardinality(ended) > 0 THEN
            purged := purged + cardinality(ended);
            i.claims := i.claims - ended;
        END IF;

        -- The instant may have been a lower bound, or that of a claim that is gone by now.
        UPDATE {schema}.instances AS t
        SET claims = i.claims,
            purge_at = (
                SELECT min((claim.value ->> 'expires_at')::bigint)
                FROM jsonb_each(i.claims) AS claim
            )
        WHERE t.key = i.key;
        PERFORM {schema}.place_entries(i);
    END LOOP;
END
$$;
