-- Claim one task, if it may be claimed; see `Take` in sayiir_persist/driver.py.
CREATE OR REPLACE FUNCTION {schema}.claim(
    p_namespace text,
    p_instance_id text,
    p_task text,
    p_ttl bigint,
    p_claim jsonb,
    OUT now bigint,
    OUT claim text,
    OUT incarnation text,
    OUT version bigint,
    OUT status text,
    OUT definition_hash text,
    OUT created_at bigint,
    OUT updated_at bigint,
    OUT status_since bigint,
    OUT last_completed text,
    OUT signals text,
    OUT live_claims boolean,
    OUT advance_due boolean
)
LANGUAGE plpgsql VOLATILE AS $$
<<here>>
DECLARE
    i {schema}.instances;
    c jsonb;
    entry record;
    expiry bigint;
BEGIN
    SELECT * INTO i
    FROM {schema}.instances AS t
    WHERE t.namespace = p_namespace AND t.instance_id = p_instance_id
    FOR UPDATE;

    IF NOT FOUND THEN
        RETURN;
    END IF;

    now := greatest({schema}.clock(), i.updated_at);
    c := i.claims -> p_task;

    IF c IS NOT NULL AND ((c ->> 'expires_at')::bigint <= now) IS NOT TRUE THEN
        IF c ->> 'worker_id' = p_claim ->> 'worker_id' AND c ->> 'nonce' = p_claim ->> 'nonce' THEN
            claim := c;
        END IF;
    ELSIF i.status = 'in_progress' THEN
        SELECT t.ordinal, t.due INTO entry
        FROM {schema}.entries AS t
        WHERE t.key = i.key AND t.node_id = p_task AND t.task AND t.met IS NULL
            AND (t.early OR t.due <= claim.now)
        LIMIT 1;

        IF FOUND THEN
            expiry := now + p_ttl;
            c := p_claim || jsonb_build_object(
                'task_id', p_task,
                'fence', nextval('{schema}.fences'),
                'claimed_at', now,
                'expires_at', expiry
            );
            claim := c;
            i.claims := i.claims || jsonb_build_object(p_task, c);
            UPDATE {schema}.instances AS t
            SET claims = i.claims, purge_at = least(t.purge_at, expiry)
            WHERE t.key = i.key;
            PERFORM {schema}.place_entries(i);
        END IF;
    END IF;

    incarnation := i.incarnation;
    version := i.version;
    status := i.status;
    definition_hash := i.definition_hash;
    created_at := i.created_at;
    updated_at := i.updated_at;
    status_since := i.status_since;
    last_completed := i.last_completed;
    signals := nullif(i.signals, '{}');
    live_claims := {schema}.live(i.claims, now);
    advance_due := EXISTS (
        SELECT
        FROM {schema}.entries AS t
        WHERE t.key = i.key AND t.lane = 0 AND t.available_at <= claim.now
    );
END
$$;

-- Set the end of a live claim; see `Extend` in sayiir_persist/driver.py.
CREATE OR REPLACE FUNCTION {schema}.extend(
    p_namespace text,
    p_instance_id text,
    p_task text,
    p_fence bigint,
    p_ttl bigint,
    OUT extended boolean,
    OUT claim text,
    OUT signals text
)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    i {schema}.instances;
    c jsonb;
    at bigint;
BEGIN
    extended := false;
    SELECT * INTO i
    FROM {schema}.instances AS t
    WHERE t.namespace = p_namespace AND t.instance_id = p_instance_id
    FOR UPDATE;
    c := i.claims -> p_task;

    IF c IS NULL THEN
        RETURN;
    END IF;

    at := greatest({schema}.clock(), i.updated_at);
    signals := nullif(i.signals, '{}');

    IF (c ->> 'fence')::bigint = p_fence AND ((c ->> 'expires_at')::bigint <= at) IS NOT TRUE THEN
        extended := true;

        IF c ->> 'expires_at' IS NOT NULL THEN
            c := c || jsonb_build_object('expires_at', at + p_ttl);
            i.claims := i.claims || jsonb_build_object(p_task, c);
            UPDATE {schema}.instances AS t
            SET claims = i.claims, purge_at = least(t.purge_at, at + p_ttl)
            WHERE t.key = i.key;
            PERFORM {schema}.place_entries(i);
        END IF;
    END IF;

    claim := c;
END
$$;
