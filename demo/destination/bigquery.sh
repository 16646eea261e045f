# The destination of the demonstration is an emulator of BigQuery, on the testbed only. Sourced by demo/run, as is every file beside this one: they define
# the same functions.
# shellcheck shell=bash disable=SC2154,SC2034

bigquery_dataset=mirror_demo

# there SQL: rows of the answer, each column separated by a tab
there() {
  "$testbed/bigquery" query bigquery "$1" | python3 -c '
import json, sys
for row in json.load(sys.stdin).get("rows", []):
    print("\t".join(str(column["v"]) for column in row["f"]))'
}

start_destination() {
  "$testbed/bigquery" up bigquery 9053 --on-node >/dev/null
  bigquery_url=$("$testbed/bigquery" url bigquery)
}

# Prints what it is.
meet_destination() {
  [[ ${bigquery_url-} =~ ^(http://[^/]+):([0-9]+)/(.+)$ ]] || die "with DESTINATION=bigquery the demonstration runs on the testbed's cluster only"
  bigquery_endpoint=${BASH_REMATCH[1]}:${BASH_REMATCH[2]} bigquery_storage=${BASH_REMATCH[1]}:$((BASH_REMATCH[2] + 1)) bigquery_project=${BASH_REMATCH[3]}
  there 'SELECT 1' >/dev/null || return 1
  say "DESTINATION is an emulator of BigQuery"
}

make_destination() {
  clean_destination
  there "CREATE SCHEMA $bigquery_dataset"
}
clean_destination() { there "DROP SCHEMA IF EXISTS $bigquery_dataset CASCADE"; }

destination_peer() {
  cat <<YAML
apiVersion: mirror-operator.io/v1alpha1
kind: Peer
metadata: { name: shop-destination }
spec:
  roles: [Destination]
  bigquery:
    project: $bigquery_project
    dataset: $bigquery_dataset
    endpoint: "$bigquery_endpoint"
    storageEndpoint: "$bigquery_storage"
---
YAML
}

# What the Mirror says of a table, beside its name: first and after the change, when orders are read by customer.
table_options() { [[ "$1 $2" != 'orders changed' ]] || echo '      bigquery: { clusterBy: [customer_id] }'; }
# Each change of the stream is a MERGE for each table.
batch_interval=2s
# A table takes a copy job.
swap_limit=20000

live() { echo "$bigquery_dataset.$1"; }

# A reader that polls the live tables, as `time|orders there|payments there`.
read_on_and_on() {
  while :; do
    there "SELECT CONCAT(CAST(UNIX_MILLIS(CURRENT_TIMESTAMP()) / 1000 AS STRING), '|', IF(EXISTS(SELECT 1 FROM $(live orders)), 't', 'f'), '|', IF(EXISTS(SELECT 1 FROM $(live payments)), 't', 'f'))"
  done
}
let_reader_read() { :; }

# Of a table: number and checksum of the rows, over the source's columns; here, and at the source. The checksum is that of checksums of a thousand keys each.
digest_there() {
  local row
  row=$(source_sql --set kind=there --set table="shop.$1" <demo/destination/bigquery-row.sql)
  echo "$(count_live "$1") $(there "SELECT TO_HEX(MD5(STRING_AGG(TO_HEX(MD5($row)), '' ORDER BY id))) FROM $(live "$1") WHERE NOT _PEERDB_IS_DELETED
    GROUP BY DIV(id, 1000) ORDER BY DIV(id, 1000)" | md5sum | cut -d ' ' -f 1)"
}
digest_at_source() {
  local row
  row=$(source_sql --set kind=source --set table="shop.$1" <demo/destination/bigquery-row.sql)
  echo "$(source_sql --command "SELECT count(*) FROM shop.$1") $(source_sql --command "SELECT md5(string_agg(md5($row), '' ORDER BY id)) FROM shop.$1
    GROUP BY id / 1000 ORDER BY id / 1000" | md5sum | cut -d ' ' -f 1)"
}

count_live() { there "SELECT COUNT(*) FROM $(live "$1") WHERE NOT _PEERDB_IS_DELETED"; }
count_deleted() { there "SELECT COUNT(*) FROM $(live "$1") WHERE _PEERDB_IS_DELETED"; }

# The payments that are deleted before the resync, with the time that the mirror noted.
flagged() {
  there "SELECT CONCAT(CAST(COUNT(*) AS STRING), ' ', COALESCE(TO_HEX(MD5(STRING_AGG(CONCAT(CAST(id AS STRING), '@', CAST(UNIX_MICROS(_PEERDB_SYNCED_AT) AS STRING)), ',' ORDER BY id))), ''))
    FROM $(live payments) WHERE _PEERDB_IS_DELETED AND MOD(id, 1000) = 7 AND id <= 240000"
}
product_is_there() { [[ $(there "SELECT COUNT(*) FROM $(live products) WHERE name = '$1'") == 1 ]]; }

changed_words="orders.reference is STRING and customers.phone is phone_number at the destination"
changed() {
  [[ $(there "SELECT CONCAT(column_name, ' ', data_type) FROM $bigquery_dataset.INFORMATION_SCHEMA.COLUMNS
    WHERE table_name = 'orders' AND column_name = 'reference' OR table_name = 'customers' AND column_name IN ('phone', 'phone_number') ORDER BY 1" | paste -sd ,) == \
    'phone_number STRING,reference STRING' ]]
}
