-- An expression that makes the same text of a row of :table at the source and there, whose types print otherwise.
SELECT string_agg(CASE WHEN :'kind' = 'source' THEN format('coalesce(%s, ''∅'')', at_source) ELSE format('COALESCE(%s, ''∅'')', at_destination) END,
                  ' || ''|'' || ' ORDER BY attnum)
  FROM (SELECT attnum, quote_ident(attname) AS name, upper(attname) AS there, atttypid::regtype AS type FROM pg_attribute
         WHERE attrelid = :'table'::regclass AND attnum > 0 AND NOT attisdropped) a,
       LATERAL (SELECT CASE type WHEN 'timestamptz'::regtype THEN format('(extract(epoch FROM %s) * 1000000)::bigint::text', name)
                                 WHEN 'text[]'::regtype THEN format('to_json(%s)::text', name)
                                 WHEN 'jsonb'::regtype THEN format('coalesce(%1$s->>''zip'', %1$s->>''gift'')', name)
                                 ELSE name || '::text' END AS at_source,
                       CASE type WHEN 'timestamptz'::regtype THEN format('DATE_PART(''epoch_microsecond'', %s)::VARCHAR', there)
                                 WHEN 'jsonb'::regtype THEN format('COALESCE(%1$s:zip::VARCHAR, %1$s:gift::VARCHAR)', there)
                                 ELSE there || '::VARCHAR' END AS at_destination) t
