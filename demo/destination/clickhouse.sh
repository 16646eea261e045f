# The destination of the demonstration is a ClickHouse server. Sourced by demo/run, as is every file beside this one: they define the same functions.
# shellcheck shell=bash disable=SC2154,SC2034


# ask USER PASSWORD SQL: the answer, tab-separated. The password is not on the command line, where all processes can read it.
ask() {
  curl --silent --show-error --fail-with-body --noproxy '*' --config <(printf 'header = "X-ClickHouse-User: %s"\nheader = "X-ClickHouse-Key: %s"\n' "$1" "$2") \
    --data-binary "$3" "$clickhouse_server/?database=$clickhouse_database&wait_end_of_query=1"
}
there() { clickhouse_database=$destination_database ask "$clickhouse_user" "$clickhouse_password" "$1"; }
superuser() { clickhouse_database=system ask "$clickhouse_user" "$clickhouse_password" "$1"; }

start_destination() {
  "$testbed/clickhouse" up clickhouse 8123 --on-node >/dev/null
  CLICKHOUSE_URL=$("$testbed/clickhouse" url clickhouse)
}

# Prints what it is.
meet_destination() {
  local version
  : "${CLICKHOUSE_URL:?see demo/run --help}"
  [[ $CLICKHOUSE_URL =~ ^(https?)://([^:@/]+):([^@/]*)@([^:/]+):([0-9]+) ]] || die "CLICKHOUSE_URL is not http://user:password@host:port/database"
  clickhouse_scheme=${BASH_REMATCH[1]} clickhouse_user=${BASH_REMATCH[2]} clickhouse_password=${BASH_REMATCH[3]}
  clickhouse_host=${BASH_REMATCH[4]} clickhouse_port=${BASH_REMATCH[5]}
  clickhouse_server=$clickhouse_scheme://$clickhouse_host:$clickhouse_port
  version=$(superuser 'SELECT version()') || return 1
  say "DESTINATION is ClickHouse $version"
}

make_destination() {
  local user said
  superuser "DROP DATABASE IF EXISTS $destination_database SYNC"
  superuser "CREATE DATABASE $destination_database"
  destination_user=mirror_demo_destination destination_password=$(password) reader_user=mirror_demo_reader reader_password=$(password)
  for user in destination reader; do
    superuser "DROP USER IF EXISTS mirror_demo_$user"
    local key=${user}_password
    said=$(superuser "CREATE USER mirror_demo_$user IDENTIFIED BY '${!key}'" 2>&1) && continue
    # ACCESS_STORAGE_FOR_INSERTION_NOT_FOUND
    [[ $said == *'Code: 514'* ]] || die "$said"
    say "this server keeps no users beside those of its configuration: $clickhouse_user it is, for mirror and reader"
    destination_user=$clickhouse_user destination_password=$clickhouse_password
    reader_user=$clickhouse_user reader_password=$clickhouse_password
    return
  done
  superuser "GRANT SELECT, INSERT, CREATE TABLE, DROP TABLE, ALTER ON $destination_database.* TO $destination_user"
  superuser "GRANT SELECT ON system.* TO $destination_user"
  superuser "GRANT SHOW ROW POLICIES ON *.* TO $destination_user"
  superuser "GRANT TABLE ENGINE ON ReplacingMergeTree TO $destination_user"
}

clean_destination() {
  superuser "DROP DATABASE IF EXISTS $destination_database SYNC"
  superuser "DROP USER IF EXISTS mirror_demo_destination, mirror_demo_reader"
}

destination_peer() {
  secret shop-destination "$destination_password"
  cat <<YAML
apiVersion: mirror-operator.io/v1alpha1
kind: Peer
metadata: { name: shop-destination }
spec:
  roles: [Destination]
  clickhouse:
    host: "$clickhouse_host"
    port: $clickhouse_port
    database: $destination_database
    user: $destination_user
    passwordSecretRef: { name: shop-destination, key: password }
    tls: { mode: $([[ $clickhouse_scheme == https ]] && echo Require || echo Disable) }
---
YAML
}

# What the Mirror says of a table, beside its name: first and after the change, when orders are read by customer.
table_options() { [[ "$1 $2" != 'orders changed' ]] || echo '      clickhouse: { orderBy: [customer_id] }'; }

# A reader that polls the live tables, as `time|orders there|payments there`.
read_on_and_on() {
  local read
  read=$(<demo/destination/clickhouse.sql)
  while :; do
    clickhouse_database=$destination_database ask "$reader_user" "$reader_password" "$read" || echo "$read" >&2
  done
}
let_reader_read() { [[ $reader_user == "$clickhouse_user" ]] || superuser "GRANT SELECT ON $destination_database.* TO $reader_user"; }

# Of a table: number and order-independent checksum of the rows, over the source's columns; here, and at the source.
digest_there() {
  local row
  row=$(source_sql --set kind=there --set table="shop.$1" <demo/destination/clickhouse-row.sql)
  there "SELECT concat(toString(count()), ' ', toString(sum(toUInt128(reinterpretAsUInt64(reverse(substring(MD5($row), 1, 7))))))) FROM \`$1\` FINAL"
}
digest_at_source() {
  local row
  row=$(source_sql --set kind=source --set table="shop.$1" <demo/destination/clickhouse-row.sql)
  source_sql --field-separator ' ' --command "SELECT count(*), coalesce(sum(('x' || left(md5($row), 14))::bit(56)::bigint::numeric), 0) FROM shop.$1"
}

# The last version of each row, flagged ones too.
latest() { echo "(SELECT * FROM \`$1\` ORDER BY _peerdb_version DESC, _peerdb_is_deleted LIMIT 1 BY id)"; }
count_live() { there "SELECT count() FROM \`$1\` FINAL"; }
count_deleted() { there "SELECT count() FROM $(latest "$1") WHERE _peerdb_is_deleted = 1"; }

# The payments that are deleted before the resync, with the time that the mirror noted.
flagged() {
  there "SELECT concat(toString(count()), ' ', toString(sum(cityHash64(id, _peerdb_synced_at)))) FROM $(latest payments)
    WHERE _peerdb_is_deleted = 1 AND id % 1000 = 7 AND id <= 240000"
}
product_is_there() { [[ $(there "SELECT count() FROM products FINAL WHERE name = '$1'") == 1 ]]; }

changed_words="orders.reference is a String, customers.phone is phone_number, and orders are sorted by customer_id at the destination"
changed() {
  [[ $(there "SELECT arrayStringConcat(arraySort(groupArray(concat(name, ' ', type))), ', ') FROM system.columns WHERE database = currentDatabase()
    AND (table, name) IN (('orders', 'reference'), ('customers', 'phone'), ('customers', 'phone_number'))") == 'phone_number Nullable(String), reference String' ]] &&
    [[ $(there "SELECT sorting_key FROM system.tables WHERE database = currentDatabase() AND name = 'orders'") == 'customer_id, id' ]]
}
