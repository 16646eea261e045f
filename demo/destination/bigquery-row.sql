-- An expression that makes the same text of a row of :table at the source and there, whose types print otherwise.
SELECT string_agg(CASE WHEN :'kind' = 'source' THEN format('coalesce(%s, ''∅'')', at_source) ELSE format('COALESCE(%s, ''∅'')', at_destination) END,
                  ' || ''|'' || ' ORDER BY attnum)
  FROM (SELECT attnum, quote_ident(attname) AS name, atttypid::regtype AS type FROM pg_attribute
         WHERE attrelid = :'table'::regclass AND attnum > 0 AND NOT attisdropped) a,
       LATERAL (SELECT CASE type WHEN 'timestamptz'::regtype THEN format('(extract(epoch FROM %s) * 1000000)::bigint::text', name)
                                 WHEN 'numeric'::regtype THEN format('(%s * 100)::bigint::text', name)
                                 WHEN 'text[]'::regtype THEN format('to_json(%s)::text', name)
                                 WHEN 'jsonb'::regtype THEN format('coalesce(%1$s->>''zip'', %1$s->>''gift'')', name)
                                 ELSE name || '::text' END AS at_source,
                       CASE type WHEN 'timestamptz'::regtype THEN format('CAST(UNIX_MICROS(%s) AS STRING)', name)
                                 WHEN 'numeric'::regtype THEN format('CAST(CAST(%s * 100 AS INT64) AS STRING)', name)
                                 WHEN 'text[]'::regtype THEN format('COALESCE(NULLIF(TO_JSON_STRING(%s), ''null''), ''[]'')', name)
                                 WHEN 'jsonb'::regtype THEN format('COALESCE(JSON_VALUE(%1$s, ''$.zip''), JSON_VALUE(%1$s, ''$.gift''))', name)
                                 ELSE format('CAST(%s AS STRING)', name) END AS at_destination) t
