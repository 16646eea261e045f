# The destination of the demonstration is a PostgreSQL server. Sourced by demo/run, as is every file beside this one: they define the same functions.
# shellcheck shell=bash disable=SC2154,SC2034

deleted='_PEERDB_IS_DELETED' synced_at='_PEERDB_SYNCED_AT'

destination_sql() { sql --dbname "$destination_url" "$@"; }

start_destination() {
  "$testbed/postgres" up destination 15 5433 --on-node >/dev/null
  DESTINATION_URL=$("$testbed/postgres" url destination)
}

# Prints what it is.
meet_destination() {
  local version
  : "${DESTINATION_URL:?see demo/run --help}"
  version=$(admin DESTINATION --command 'SHOW server_version') || return 1
  destination_url=$(with_database "$DESTINATION_URL" "$destination_database")
  say "DESTINATION is PostgreSQL $version"
}

make_destination() {
  destination_password=$(password) reader_password=$(password)
  role DESTINATION mirror_demo_destination "$destination_password"
  role DESTINATION mirror_demo_reader "$reader_password"
  drop_database DESTINATION "$destination_database"
  admin DESTINATION --command "CREATE DATABASE $destination_database" \
    --command "GRANT CREATE, TEMPORARY ON DATABASE $destination_database TO mirror_demo_destination"
}

clean_destination() {
  drop_database DESTINATION "$destination_database"
  admin DESTINATION --command "DROP ROLE IF EXISTS mirror_demo_reader" --command "DROP ROLE IF EXISTS mirror_demo_destination"
}

destination_peer() {
  postgres_peer shop-destination Destination DESTINATION "$destination_database" mirror_demo_destination "$destination_password"
}

# What the Mirror says of a table, beside its name: first and after the change.
table_options() { :; }

# A session that polls the live tables, as `time|orders there|payments there`.
read_on_and_on() {
  local host port
  read -r host port <<<"$(host_port "$DESTINATION_URL")"
  PGPASSWORD=$reader_password exec "${plain_psql[@]}" --host "$host" --port "$port" --username mirror_demo_reader --dbname "$destination_database" \
    < <(exec yes "$(<demo/destination/postgres.sql)")
}
let_reader_read() {
  destination_sql --command "GRANT USAGE ON SCHEMA shop TO mirror_demo_reader" \
    --command "GRANT SELECT ON shop.orders, shop.payments TO mirror_demo_reader"
}

# Of a table: number and order-independent checksum of the rows, over the source's columns; here, and at the source.
digest_there() {
  destination_sql --field-separator ' ' --command "SELECT count(*), coalesce(sum(hashtextextended(ROW($(columns "$1"))::text, 0)::numeric), 0)
    FROM shop.$1 WHERE NOT \"$deleted\""
}
digest_at_source() {
  source_sql --field-separator ' ' --command "SELECT count(*), coalesce(sum(hashtextextended(ROW($(columns "$1"))::text, 0)::numeric), 0) FROM shop.$1"
}
columns() {
  source_sql --command "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
    WHERE attrelid = 'shop.$1'::regclass AND attnum > 0 AND NOT attisdropped"
}

count_live() { destination_sql --command "SELECT count(*) FROM shop.$1 WHERE NOT \"$deleted\""; }
count_deleted() { destination_sql --command "SELECT count(*) FROM shop.$1 WHERE \"$deleted\""; }

# The payments that are deleted before the resync, with the time that the mirror noted.
flagged() {
  destination_sql --field-separator ' ' --command "SELECT count(*), coalesce(sum(hashtextextended(ROW(id, \"$synced_at\")::text, 0)::numeric), 0)
    FROM shop.payments WHERE \"$deleted\" AND id % 1000 = 7 AND id <= 240000"
}
product_is_there() { [[ $(destination_sql --command "SELECT count(*) FROM shop.products WHERE name = '$1'") == 1 ]]; }

changed_words="orders.reference is text and customers.phone is phone_number at the destination"
changed() { [[ $(destination_sql --command "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attname) FROM pg_attribute
  WHERE (attrelid, attname) IN (('shop.orders'::regclass, 'reference'), ('shop.customers'::regclass, 'phone'), ('shop.customers'::regclass, 'phone_number'))") == \
  'phone_number text, reference text' ]]; }
