-- One atomic write to one instance: the guard, then everything it does, or nothing.
--
-- The arguments are what nearly every write says; what few do stands in p_more, and their payload
-- (of an event, of a single result, the input of a new instance) in p_data. See `Unit` in
-- sayiir_persist/driver.py for what each means.
CREATE OR REPLACE FUNCTION {schema}.write(
    p_namespace text,
    p_instance_id text,
    p_presence text,
    p_statuses text,
    p_version bigint,
    p_incarnation text,
    p_task text,
    p_fence bigint,
    p_release boolean,
    p_body bytea,
    p_status text,
    p_status_is_new boolean,
    p_definition_hash text,
    p_priority smallint,
    p_tags text,
    p_last_completed text,
    p_idle boolean,
    p_entries jsonb,
    p_stays boolean,
    p_nodes text[],
    p_outputs bytea[],
    p_claim_next jsonb,
    p_more jsonb,
    p_data bytea,
    OUT now bigint,
    OUT refused text,
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
    OUT advance_due boolean,
    OUT claim text,
    OUT ordinal integer,
    OUT input bytea,
    OUT event bytea,
    OUT hints text,
    OUT view_state text,
    OUT view_body bytea,
    OUT view_input bytea
)
LANGUAGE plpgsql VOLATILE AS $$
<<here>>
DECLARE
    i {schema}.instances;
    there boolean;
    created boolean := false;
    dispatchable boolean;
    may_claim boolean;
    release_task text;
    release_fence bigint;
    c jsonb;
    e jsonb;
    push jsonb;
    queue {schema}.queues;
    head record;
    repeated boolean := false;
    entry record;
    tasks_before text[];
    offered_before text[];
    node text;
    is_task boolean;
    is_fresh boolean;
    due bigint;
    until bigint;
    expiry bigint;
    e_met bigint;
    e_lane smallint;
    e_tags text[];
    available bigint;
    hint_list jsonb;
    advances boolean := false;
    marks boolean;
    stored_key bigint;
BEGIN
    SELECT * INTO i
    FROM {schema}.instances AS t
    WHERE t.namespace = p_namespace AND t.instance_id = p_instance_id
    FOR UPDATE;
    there := FOUND;

    IF NOT there AND p_presence <> 'required' THEN
        -- There is no row to hold, so creations and events of this id take turns by this lock.
        PERFORM pg_advisory_xact_lock(
            hashtextextended('sayiir_persist ' || p_namespace || ' ' || p_instance_id, 0)
        );
        SELECT * INTO i
        FROM {schema}.instances AS t
        WHERE t.namespace = p_namespace AND t.instance_id = p_instance_id
        FOR UPDATE;
        there := FOUND;
    END IF;

    now := {schema}.clock();

    IF there AND now < i.updated_at THEN
        now := i.updated_at;
    END IF;

    IF p_release THEN
        release_task := p_task;
        release_fence := p_fence;
    ELSIF p_more ? 'release' THEN
        release_task := p_more -> 'release' ->> 'task_id';
        release_fence := (p_more -> 'release' ->> 'fence')::bigint;
    END IF;

    <<unit>>
    BEGIN
        -- The guard.
        refused := 'guard';

        IF there THEN
            EXIT unit WHEN p_presence = 'absent'
                OR p_version <> i.version
                OR p_incarnation <> i.incarnation
                OR i.status <> ALL (string_to_array(p_statuses, ','));

            IF p_fence IS NOT NULL THEN
                c := i.claims -> p_task;
                EXIT unit WHEN c IS NULL
                    OR (c ->> 'fence')::bigint <> p_fence
                    OR (c ->> 'expires_at')::bigint <= now;
            END IF;

            IF p_more IS NOT NULL THEN
                EXIT unit WHEN p_more ->> 'definition_hash' <> i.definition_hash
                    OR (p_more ? 'idle' AND {schema}.live(i.claims, now))
                    OR p_more -> 'signals' <> i.signals;
            END IF;
        ELSE
            EXIT unit WHEN p_presence = 'required';
        END IF;

        IF p_more ? 'head' THEN
            SELECT t.number INTO head
            FROM {schema}.events AS t
            WHERE t.namespace = p_namespace AND t.instance_id = p_instance_id
                AND t.name = p_more -> 'head' ->> 0
            ORDER BY t.number
            LIMIT 1;
            EXIT unit WHEN NOT FOUND OR head.number <> (p_more -> 'head' ->> 1)::bigint;
        END IF;

        push := p_more -> 'push';

        IF push IS NOT NULL THEN
            SELECT * INTO queue
            FROM {schema}.queues AS t
            WHERE t.namespace = p_namespace AND t.instance_id = p_instance_id;

            IF NOT FOUND THEN
                queue := (p_namespace, p_instance_id, 0, 0, 0);
            END IF;

            repeated := EXISTS (
                SELECT
                FROM {schema}.event_ids AS t
                WHERE t.namespace = p_namespace AND t.instance_id = p_instance_id
                    AND t.name = push ->> 'name' AND t.event_id = push ->> 'event_id'
            );

            IF queue.queued >= (push ->> 'limit')::bigint AND NOT repeated THEN
                refused := 'queue_full';
                EXIT unit WHEN NOT there OR i.status <> 'in_progress' OR i.signals <> '{}'
                    OR EXISTS (
                        SELECT
                        FROM {schema}.events AS t
                        WHERE t.namespace = p_namespace AND t.instance_id = p_instance_id
                            AND t.name = push ->> 'name'
                    )
                    OR NOT EXISTS (
                        SELECT
                        FROM {schema}.entries AS t
                        WHERE t.key = i.key AND t.event = push ->> 'name'
                            AND (t.until IS NULL OR write.now < t.until)
                    );
            END IF;
        END IF;

        IF there AND p_more ? 'record' THEN
            refused := 'elapsed';
            EXIT unit WHEN EXISTS (
                SELECT
                FROM {schema}.entries AS t
                WHERE t.key = i.key AND t.met IS NULL
                    AND t.elapses
                        <= CASE WHEN i.status = 'paused' THEN i.status_since ELSE write.now END
            );
        END IF;

        IF release_task IS NOT NULL THEN
            refused := 'guard';
            EXIT unit WHEN NOT there
                OR (i.claims -> release_task ->> 'fence')::bigint IS DISTINCT FROM release_fence;
        END IF;

        refused := NULL;

        -- What was there before.
        IF i.entry_count > 0 AND (p_body IS NULL OR p_stays) THEN
            SELECT
                array_agg(t.node_id) FILTER (WHERE t.task AND t.met IS NULL),
                array_agg(t.node_id) FILTER (WHERE t.lane > 0 AND t.available_at <= write.now)
            INTO tasks_before, offered_before
            FROM {schema}.entries AS t
            WHERE t.key = i.key;
        END IF;

        IF there AND (p_more ? 'delete' OR p_more ? 'restart') THEN
            PERFORM {schema}.clear(i);

            IF p_more ? 'delete' THEN
                DELETE FROM {schema}.instances AS t WHERE t.key = i.key;
                there := false;
                EXIT unit;
            END IF;
        END IF;

        -- A new body.
        IF p_body IS NOT NULL AND (there OR p_more ? 'create') THEN
            IF NOT there OR p_more ? 'restart' THEN
                -- A restart keeps the row, so that who waits for its lock finds the new run in it.
                created := NOT there;
                stored_key := i.key;
                i.key := nextval('{schema}.keys');
                i.namespace := p_namespace;
                i.instance_id := p_instance_id;
                i.incarnation := p_more ->> 'create';
                i.version := 0;
                i.created_at := now;
                i.status_since := now;
                i.status := p_status;
                i.entry_count := 0;
                i.claims := '{}';
                i.signals := '{}';
                there := true;
            ELSIF p_more ? 'replace' THEN
                DELETE FROM {schema}.results AS t WHERE t.key = i.key;
            END IF;

            IF p_data IS NOT NULL AND (i.version = 0 OR p_more ? 'replace') THEN
                INSERT INTO {schema}.results (key, node_id, output)
                VALUES (i.key, '', p_data);
            END IF;

            IF p_status_is_new OR i.status <> p_status THEN
                i.status_since := now;
            END IF;

            i.version := i.version + 1;
            i.updated_at := now;
            i.body_at := now;
            i.status := p_status;
            i.definition_hash := p_definition_hash;
            i.body := p_body;
            i.priority := p_priority;
            i.tags := p_tags;
            i.last_completed := p_last_completed;
            i.idle_since := CASE WHEN p_idle THEN now END;

            IF p_status NOT IN ('in_progress', 'paused') THEN
                i.claims := '{}';
                i.signals := '{}';
            END IF;

            IF p_more ? 'dropped' THEN
                DELETE FROM {schema}.results AS t
                WHERE t.key = i.key
                    AND t.node_id IN (SELECT jsonb_array_elements_text(p_more -> 'dropped'));
            END IF;

            IF cardinality(p_nodes) = 1 THEN
                INSERT INTO {schema}.results AS t (key, node_id, output)
                VALUES (i.key, p_nodes[1], p_outputs[1])
                ON CONFLICT (key, node_id) DO UPDATE SET output = excluded.output;
            ELSIF p_nodes IS NOT NULL THEN
                INSERT INTO {schema}.results AS t (key, node_id, output)
                SELECT i.key, gained.node_id, gained.output
                FROM unnest(p_nodes, p_outputs) WITH ORDINALITY AS gained (node_id, output, n)
                ORDER BY gained.n
                ON CONFLICT (key, node_id) DO UPDATE SET output = excluded.output;
            END IF;
        END IF;

        -- A single result.
        IF there AND p_more ? 'record' THEN
            node := p_more ->> 'record';
            SELECT t.ordinal, t.done INTO entry
            FROM {schema}.entries AS t
            WHERE t.key = i.key AND t.early AND t.node_id = node;
            marks := FOUND AND NOT entry.done;

            IF marks OR NOT EXISTS (
                SELECT
                FROM {schema}.results AS t
                WHERE t.key = i.key AND t.node_id = node AND t.output = p_data
            ) THEN
                INSERT INTO {schema}.results AS t (key, node_id, output)
                VALUES (i.key, node, p_data)
                ON CONFLICT (key, node_id) DO UPDATE SET output = excluded.output;
                i.last_completed := node;
                i.version := i.version + 1;
                i.updated_at := now;

                IF marks THEN
                    UPDATE {schema}.entries AS t
                    SET done = true
                    WHERE t.key = i.key AND t.ordinal = entry.ordinal;
                END IF;

                i.idle_since := CASE WHEN i.status = 'in_progress' AND NOT EXISTS (
                    SELECT FROM {schema}.entries AS t WHERE t.key = i.key AND NOT t.done
                ) THEN now END;
            END IF;
        END IF;

        -- Control signals.
        IF there AND p_more ? 'signal' THEN
            i.signals := i.signals || jsonb_build_object(
                p_more -> 'signal' ->> 'kind',
                (p_more -> 'signal') - 'kind' || jsonb_build_object('requested_at', now)
            );
        END IF;

        IF there AND p_more ? 'clear' THEN
            i.signals := i.signals - ARRAY(SELECT jsonb_array_elements_text(p_more -> 'clear'));
        END IF;

        -- Events.
        IF push IS NOT NULL AND NOT repeated THEN
            queue.queued := queue.queued + 1;
            queue.last_event := queue.last_event + 1;
            INSERT INTO {schema}.events
            VALUES (
                p_namespace, p_instance_id, push ->> 'name', queue.last_event, now, p_data
            );

            IF push ->> 'event_id' IS NOT NULL THEN
                queue.last_event_id := queue.last_event_id + 1;
                INSERT INTO {schema}.event_ids
                VALUES (
                    p_namespace, p_instance_id, push ->> 'name', push ->> 'event_id',
                    queue.last_event_id
                );
                DELETE FROM {schema}.event_ids AS t
                WHERE t.namespace = p_namespace AND t.instance_id = p_instance_id
                    AND t.number <= queue.last_event_id - 1000;
            END IF;

            INSERT INTO {schema}.queues AS t
            VALUES (queue.*)
            ON CONFLICT ON CONSTRAINT queues_pkey DO UPDATE
            SET queued = excluded.queued,
                last_event = excluded.last_event,
                last_event_id = excluded.last_event_id;
        END IF;

        IF p_more ? 'pop' THEN
            DELETE FROM {schema}.events AS t
            WHERE t.namespace = p_namespace AND t.instance_id = p_instance_id
                AND t.name = p_more ->> 'pop'
                AND t.number = (
                    SELECT h.number
                    FROM {schema}.events AS h
                    WHERE h.namespace = p_namespace AND h.instance_id = p_instance_id
                        AND h.name = p_more ->> 'pop'
                    ORDER BY h.number
                    LIMIT 1
                )
            RETURNING t.payload INTO event;

            IF FOUND THEN
                UPDATE {schema}.queues AS t
                SET queued = t.queued - 1
                WHERE t.namespace = p_namespace AND t.instance_id = p_instance_id;
            END IF;
        END IF;

        EXIT unit WHEN NOT there;

        -- Claims.
        IF release_task IS NOT NULL THEN
            i.claims := i.claims - release_task;
        END IF;

        IF p_more ? 'revoke' THEN
            c := i.claims -> (p_more ->> 'revoke');

            IF c IS NOT NULL AND ((c ->> 'expires_at')::bigint <= now) IS NOT TRUE THEN
                claim := c;
                i.claims := i.claims - (p_more ->> 'revoke');
            END IF;
        END IF;

        dispatchable := i.status = 'in_progress' AND i.signals = '{}';

        IF p_body IS NULL THEN
            -- The entries stay, their places may change.
            IF i.entry_count > 0 THEN
                PERFORM {schema}.place_entries(i);
                SELECT
                    coalesce(bool_or(t.lane = 0), false),
                    jsonb_agg(
                        jsonb_build_object('task_id', t.node_id, 'tags', t.tags)
                        ORDER BY t.ordinal
                    ) FILTER (WHERE t.lane > 0 AND t.node_id <> ALL (coalesce(offered_before, '{}')))
                INTO advances, hint_list
                FROM {schema}.entries AS t
                WHERE t.key = i.key AND t.available_at <= write.now;
            END IF;

        ELSE
            may_claim := p_claim_next IS NOT NULL AND dispatchable;

            IF may_claim AND p_claim_next ? 'waits' THEN
                SELECT count(*) = 0 INTO may_claim
                FROM jsonb_array_elements(p_entries) AS t (wait)
                WHERE t.wait ? 'event'
                    AND {schema}.met(
                        p_namespace, p_instance_id, t.wait ->> 'event',
                        {schema}.resolve(t.wait -> 'until', write.now)
                    ) IS NOT NULL;
            END IF;

            FOR n IN 0 .. jsonb_array_length(p_entries) - 1 LOOP
                e := p_entries -> n;
                node := e ->> 'node_id';
                is_task := NOT e ? 'advance';
                is_fresh := is_task AND (
                    NOT e ? 'stays' OR node <> ALL (coalesce(tasks_before, '{}'))
                );
                due := CASE WHEN e ? 'due' THEN {schema}.resolve(e -> 'due', now) ELSE now END;
                until := NULL;
                e_met := NULL;
                c := NULL;

                IF is_task AND due < i.status_since THEN
                    due := i.status_since;
                END IF;

                IF e ? 'event' THEN
                    until := {schema}.resolve(e -> 'until', now);
                    e_met := {schema}.met(p_namespace, p_instance_id, e ->> 'event', until);
                END IF;

                e_lane := CASE
                    WHEN is_task AND e_met IS NULL THEN coalesce((e ->> 'priority')::smallint, 3)
                    ELSE 0
                END;
                e_tags := CASE WHEN e ? 'tags'
                    THEN ARRAY(SELECT jsonb_array_elements_text(e -> 'tags'))
                    ELSE '{}'
                END;

                IF i.claims <> '{}' THEN
                    IF is_fresh AND (p_fence IS NULL OR p_task <> node) THEN
                        i.claims := i.claims - node;
                    END IF;

                    c := i.claims -> node;
                END IF;

                available := {schema}.available_at(
                    dispatchable, is_task, e_met, e ? 'done', due, c
                );

                IF may_claim AND available <= now AND e_lane > 0 AND NOT e ? 'stays' AND (
                    NOT p_claim_next ? 'tags'
                    OR coalesce(e -> 'tags', '[]') <@ (p_claim_next -> 'tags')
                ) THEN
                    may_claim := false;
                    ordinal := n;
                    expiry := now + (p_claim_next ->> 'ttl')::bigint;
                    available := greatest(due, expiry);
                    i.purge_at := least(i.purge_at, expiry);
                    c := p_claim_next -> 'claim' || jsonb_build_object(
                        'task_id', node,
                        'fence', nextval('{schema}.fences'),
                        'claimed_at', now,
                        'expires_at', expiry
                    );
                    claim := c;
                    i.claims := i.claims || jsonb_build_object(node, c);

                    IF e ->> 'input_from' <> '' THEN
                        SELECT t.output INTO input
                        FROM {schema}.results AS t
                        WHERE t.key = i.key AND t.node_id = e ->> 'input_from';
                    END IF;
                END IF;

                IF available <= now THEN
                    IF e_lane = 0 THEN
                        advances := true;
                    ELSIF is_fresh OR node <> ALL (coalesce(offered_before, '{}')) THEN
                        hint_list := coalesce(hint_list, '[]')
                            || jsonb_build_object('task_id', node, 'tags', e_tags);
                    END IF;
                END IF;

                IF n < i.entry_count THEN
                    UPDATE {schema}.entries AS t
                    SET definition_hash = p_definition_hash,
                        node_id = node,
                        task = is_task,
                        due = here.due,
                        early = e ? 'early',
                        done = e ? 'done',
                        reason = coalesce(e ->> 'reason', 'task'),
                        priority = coalesce((e ->> 'priority')::smallint, 3),
                        tags = e_tags,
                        input_from = e ->> 'input_from',
                        avoid = e ->> 'avoid',
                        event = e ->> 'event',
                        until = here.until,
                        elapses = {schema}.resolve(e -> 'elapses', now),
                        met = e_met,
                        lane = e_lane,
                        available_at = available
                    WHERE t.key = i.key AND t.ordinal = n;
                ELSE
                    INSERT INTO {schema}.entries
                    VALUES (
                        i.key, n, p_namespace, p_instance_id, p_definition_hash, node, is_task,
                        due, e ? 'early', e ? 'done', coalesce(e ->> 'reason', 'task'),
                        coalesce((e ->> 'priority')::smallint, 3), e_tags, e ->> 'input_from',
                        e ->> 'avoid', e ->> 'event', until, {schema}.resolve(e -> 'elapses', now), e_met,
                        e_lane, available
                    );
                END IF;
            END LOOP;

            IF i.entry_count > jsonb_array_length(p_entries) THEN
                DELETE FROM {schema}.entries AS t
                WHERE t.key = i.key AND t.ordinal >= jsonb_array_length(p_entries);
            END IF;

            i.entry_count := jsonb_array_length(p_entries);
        END IF;

        hints := hint_list;
        i.signalled_at := CASE WHEN i.signals <> '{}' THEN (
            SELECT min((mark.value ->> 'requested_at')::bigint) FROM jsonb_each(i.signals) AS mark
        ) END;

        IF i.claims = '{}' THEN
            i.purge_at := NULL;
        END IF;

        IF created THEN
            INSERT INTO {schema}.instances VALUES (i.*);
        ELSE
            UPDATE {schema}.instances AS t
            SET key = i.key,
                incarnation = i.incarnation,
                version = i.version,
                status = i.status,
                definition_hash = i.definition_hash,
                priority = i.priority,
                tags = i.tags,
                last_completed = i.last_completed,
                created_at = i.created_at,
                updated_at = i.updated_at,
                status_since = i.status_since,
                body_at = i.body_at,
                idle_since = i.idle_since,
                signalled_at = i.signalled_at,
                purge_at = i.purge_at,
                entry_count = i.entry_count,
                claims = i.claims,
                signals = i.signals,
                body = i.body
            WHERE t.key = coalesce(stored_key, i.key);
        END IF;
    END;

    IF there THEN
        incarnation := i.incarnation;
        version := i.version;
        status := i.status;
        definition_hash := i.definition_hash;
        created_at := i.created_at;
        updated_at := i.updated_at;
        status_since := i.status_since;
        last_completed := i.last_completed;
        signals := nullif(i.signals, '{}');
        live_claims := i.claims <> '{}' AND {schema}.live(i.claims, now);
        advance_due := advances;

        IF refused IS NOT NULL THEN
            claim := i.claims -> coalesce(release_task, p_task);
            advance_due := EXISTS (
                SELECT
                FROM {schema}.entries AS t
                WHERE t.key = i.key AND t.lane = 0 AND t.available_at <= write.now
            );
        END IF;

        IF p_more ? 'view' THEN
            SELECT
                json_build_object(
                    'body_at', t.body_at,
                    'priority', t.priority,
                    'tags', t.tags::json,
                    'done', t.done,
                    'heads', t.heads::json
                ),
                t.body,
                (SELECT r.output FROM {schema}.results AS r WHERE r.key = i.key AND r.node_id = '')
            INTO view_state, view_body, view_input
            FROM {schema}.views AS t
            WHERE t.key = i.key;
        END IF;
    END IF;
END
$$;
