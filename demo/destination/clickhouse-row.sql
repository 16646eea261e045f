-- An expression that makes the same text of a row of :table at the source and there, whose types print otherwise.
SELECT string_agg(CASE WHEN :'kind' = 'source' THEN format('coalesce(%s, ''∅'')', at_source) ELSE format('ifNull(%s, ''∅'')', at_destination) END,
                  ' || ''|'' || ' ORDER BY attnum)
  FROM (SELECT attnum, quote_ident(attname) AS name, atttypid::regtype AS type FROM pg_attribute
         WHERE attrelid = :'table'::regclass AND attnum > 0 AND NOT attisdropped) a,
       LATERAL (SELECT CASE type WHEN 'timestamptz'::regtype THEN format('to_char(%s AT TIME ZONE ''UTC'', ''YYYY-MM-DD HH24:MI:SS.US'')', name)
                                 WHEN 'text[]'::regtype THEN format('array_to_string(%s, '','')', name)
                                 WHEN 'numeric'::regtype THEN format('trim_scale(%s)::text', name)
                                 ELSE name || '::text' END AS at_source,
                       CASE type WHEN 'text[]'::regtype THEN format('arrayStringConcat(%s, '','')', name)
                                 ELSE format('toString(%s)', name) END AS at_destination) t
