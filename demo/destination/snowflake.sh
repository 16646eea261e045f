# The destination of the demonstration is a stand-in for Snowflake, on the testbed only. Sourced by demo/run, as is every file beside this one: they define
# the same functions.
# shellcheck shell=bash disable=SC2154,SC2034

snowflake_schema=MIRROR_DEMO

# Answers of several columns are tab-separated.
there() { python3 "$testbed/snowflake_query.py" "$snowflake_url" "$1"; }

start_destination() {
  "$testbed/snowflake" up snowflake 9481 --on-node >/dev/null
  snowflake_url=$("$testbed/snowflake" url snowflake)
}

# Prints what it is.
meet_destination() {
  [[ ${snowflake_url-} =~ ^http://([^:]+):([^@]+)@([^:]+):([0-9]+)/(.+)$ ]] || die "with DESTINATION=snowflake the demonstration runs on the testbed's cluster only"
  snowflake_user=${BASH_REMATCH[1]} snowflake_password=${BASH_REMATCH[2]} snowflake_host=${BASH_REMATCH[3]} snowflake_port=${BASH_REMATCH[4]}
  snowflake_database=${BASH_REMATCH[5]}
  there 'SELECT 1' >/dev/null || return 1
  say "DESTINATION is a stand-in for Snowflake"
}

make_destination() {
  there "DROP SCHEMA IF EXISTS $snowflake_database.$snowflake_schema" >/dev/null
  there "CREATE SCHEMA $snowflake_database.$snowflake_schema" >/dev/null
}
clean_destination() { there "DROP SCHEMA IF EXISTS $snowflake_database.$snowflake_schema" >/dev/null; }

destination_peer() {
  secret shop-destination "$snowflake_password"
  cat <<YAML
apiVersion: mirror-operator.io/v1alpha1
kind: Peer
metadata: { name: shop-destination }
spec:
  roles: [Destination]
  snowflake:
    account: testbed
    host: "$snowflake_host"
    port: $snowflake_port
    database: $snowflake_database
    schema: $snowflake_schema
    user: $snowflake_user
    warehouse: TESTING
    passwordSecretRef: { name: shop-destination, key: password }
    tls: { mode: Disable }
---
YAML
}

# What the Mirror says of a table, beside its name: first and after the change.
table_options() { :; }
# Each change of the stream is a MERGE for each table.
batch_interval=2s
# A table takes a statement of its own, and the stand-in runs them one after the other.
swap_limit=10000

live() { echo "$snowflake_database.$snowflake_schema.${1^^}"; }

# A reader that polls the live tables, as `time|orders there|payments there`. The stand-in has one transaction at a time: one who never pauses would keep the mirror out.
read_on_and_on() {
  local read
  read="SELECT (DATE_PART('epoch_millisecond', CURRENT_TIMESTAMP()) / 1000)::NUMBER(20,3)::VARCHAR || '|' || IFF(EXISTS(SELECT 1 FROM $(live orders)), 't', 'f') || '|' || IFF(EXISTS(SELECT 1 FROM $(live payments)), 't', 'f')"
  exec python3 "$testbed/snowflake_query.py" "$snowflake_url" < <(while sleep 0.05; do echo "$read"; done)
}
let_reader_read() { :; }

# Of a table: number and checksum of the rows, over the source's columns; here, and at the source. The checksum is that of checksums of a thousand keys each.
digest_there() {
  local row
  row=$(source_sql --set kind=there --set table="shop.$1" <demo/destination/snowflake-row.sql)
  echo "$(count_live "$1") $(there "SELECT MD5(LISTAGG(MD5($row), '') WITHIN GROUP (ORDER BY ID)) FROM $(live "$1") WHERE NOT _PEERDB_IS_DELETED
    GROUP BY FLOOR(ID / 1000) ORDER BY FLOOR(ID / 1000)" | md5sum | cut -d ' ' -f 1)"
}
digest_at_source() {
  local row
  row=$(source_sql --set kind=source --set table="shop.$1" <demo/destination/snowflake-row.sql)
  echo "$(source_sql --command "SELECT count(*) FROM shop.$1") $(source_sql --command "SELECT md5(string_agg(md5($row), '' ORDER BY id)) FROM shop.$1
    GROUP BY id / 1000 ORDER BY id / 1000" | md5sum | cut -d ' ' -f 1)"
}

count_live() { there "SELECT COUNT(*) FROM $(live "$1") WHERE NOT _PEERDB_IS_DELETED"; }
count_deleted() { there "SELECT COUNT(*) FROM $(live "$1") WHERE _PEERDB_IS_DELETED"; }

# The payments that are deleted before the resync, with the time that the mirror noted.
flagged() {
  there "SELECT COUNT(*)::VARCHAR || ' ' || COALESCE(MD5(LISTAGG(ID::VARCHAR || DATE_PART('epoch_microsecond', _PEERDB_SYNCED_AT)::VARCHAR, ',') WITHIN GROUP (ORDER BY ID)), '')
    FROM $(live payments) WHERE _PEERDB_IS_DELETED AND MOD(ID, 1000) = 7 AND ID <= 240000"
}
product_is_there() { [[ $(there "SELECT COUNT(*) FROM $(live products) WHERE NAME = '$1'") == 1 ]]; }

changed_words="orders.reference is TEXT and customers.phone is phone_number at the destination"
changed() {
  [[ $(there "SELECT COLUMN_NAME || ' ' || DATA_TYPE FROM $snowflake_database.INFORMATION_SCHEMA.COLUMNS WHERE TABLE_SCHEMA = '$snowflake_schema'
    AND (TABLE_NAME = 'ORDERS' AND COLUMN_NAME = 'REFERENCE' OR TABLE_NAME = 'CUSTOMERS' AND COLUMN_NAME IN ('PHONE', 'PHONE_NUMBER')) ORDER BY 1" | paste -sd ,) == \
    'PHONE_NUMBER TEXT,REFERENCE TEXT' ]]
}
