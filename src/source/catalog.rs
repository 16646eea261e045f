//! Reads the mirrored tables from the source's catalog. I/O; the rules are in [`super::schema`].

use std::collections::HashMap;

use tokio_postgres::{Client, Row};

use super::{
    Error,
    error::failure,
    partition::Relation,
    schema::{self, ColumnFacts, LeafFacts, TableFacts},
    type_map::{Element, Kind, SourceType},
};
use crate::{
    brief::Brief,
    report::Failure,
    table::{TableName, TableSchema},
};

/// What the catalog says of the brief's tables. What is wrong with one that stays as it is is told apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    /// Those with which nothing is wrong.
    pub tables: Vec<TableSchema>,
    /// What is wrong with the others, each with its cure.
    pub problems: Vec<Failure>,
    /// The same of those that stay as they are, by their numbers.
    pub of_kept: HashMap<u32, Failure>,
}

impl Catalog {
    /// Those that are to be loaded.
    pub fn loaded(&self, brief: &Brief) -> Vec<TableSchema> {
        self.tables.iter().filter(|table| !brief.keeps(table.number)).cloned().collect()
    }
}

/// Reads the brief's tables as the session's snapshot sees them.
pub async fn read(client: &Client, brief: &Brief) -> Result<Catalog, Error> {
    let names: Vec<Option<TableName>> = brief.tables.iter().map(|t| TableName::parse(&t.source)).collect();
    let facts = read_facts(client, &names).await?;
    let listed: HashMap<u32, usize> = facts.iter().map(|(index, table)| (table.oid, *index)).collect();
    let one = |index: usize, name: &TableName| {
        let Some(table) = facts.get(&index) else {
            return Err(vec![failure("TableMissing", format!("the source has no table {name}; create it or correct the Mirror"))]);
        };
        if listed.get(&table.oid) != Some(&index) {
            return Err(vec![failure("TableListedTwice", format!("{name} is listed twice; list it once"))]);
        }
        if let Some(root) = table.ancestors.iter().find_map(|oid| listed.get(oid)) {
            let root = &brief.tables[*root].source;
            return Err(vec![failure(
                "TableListedTwice",
                format!("{name} is a partition of {root}, which brings its rows; list only one of them"),
            )]);
        }
        schema::build(brief, index as u32, &brief.tables[index], name, table)
    };
    let mut catalog = Catalog::default();
    for (index, name) in names.iter().enumerate() {
        let bad = || vec![failure("BadTableName", format!("{:?} is not of the form schema.table", brief.tables[index].source))];
        match name.as_ref().ok_or_else(bad).and_then(|name| one(index, name)) {
            Ok(schema) => catalog.tables.push(schema),
            Err(problems) if brief.keeps(index as u32) => catalog.of_kept.extend(problems.into_iter().take(1).map(|p| (index as u32, p))),
            Err(problems) => catalog.problems.extend(problems),
        }
    }
    Ok(catalog)
}

/// The facts of each table that exists, by its index.
async fn read_facts(client: &Client, names: &[Option<TableName>]) -> Result<HashMap<usize, TableFacts>, Error> {
    let part = |of: fn(&TableName) -> &str| names.iter().map(|n| n.as_ref().map(|n| of(n).to_string())).collect::<Vec<_>>();
    let (schemas, tables) = (part(|n| &n.schema), part(|n| &n.name));
    let doing = || Error::query("reading the source's catalog");
    let rows = client.query(TABLES, &[&schemas, &tables]).await.map_err(doing())?;
    let mut facts: HashMap<usize, TableFacts> = HashMap::new();
    for row in &rows {
        let index: i64 = row.get("index");
        facts.insert(index as usize - 1, table_facts(row));
    }
    let by_oid: HashMap<u32, usize> = facts.iter().map(|(index, table)| (table.oid, *index)).collect();
    let oids: Vec<u32> = by_oid.keys().copied().collect();
    for row in client.query(COLUMNS, &[&oids]).await.map_err(doing())? {
        if let Some(table) = by_oid.get(&row.get("attrelid")).and_then(|index| facts.get_mut(index)) {
            table.columns.push(column_facts(&row));
        }
    }
    let partitioned: Vec<u32> = facts.values().filter(|t| t.kind == 'p').map(|t| t.oid).collect();
    if !partitioned.is_empty() {
        for row in client.query(LEAVES, &[&partitioned]).await.map_err(doing())? {
            if let Some(table) = by_oid.get(&row.get("root")).and_then(|index| facts.get_mut(index)) {
                table.leaves.push(leaf_facts(&row));
            }
        }
    }
    Ok(facts)
}

/// The relations that hold the rows of `tables`, with their sizes. A relation's size is that of now, its rows are the statistics' estimate. Of views and
/// foreign tables nothing is known but that they are there: see [`super::keys::measure`].
pub async fn relations(client: &Client, tables: &[TableSchema]) -> Result<Vec<Relation>, Error> {
    let oids: Vec<u32> = tables.iter().map(|t| t.source_oid).collect();
    let numbers: HashMap<u32, u32> = tables.iter().map(|t| (t.source_oid, t.number)).collect();
    let rows = client.query(RELATIONS, &[&oids]).await.map_err(Error::query("reading the sizes of the tables"))?;
    let relation = |row: &Row| {
        let size = |name: &str| row.get::<_, i64>(name).max(0) as u64;
        let table = *numbers.get(&row.get::<_, u32>("root"))?;
        Some(Relation { table, oid: row.get("oid"), positions: 0..size("blocks"), bytes: size("bytes"), rows: size("rows") })
    };
    Ok(rows.iter().filter_map(relation).collect())
}

fn letter(row: &Row, column: &str) -> char {
    row.get::<_, i8>(column) as u8 as char
}

fn table_facts(row: &Row) -> TableFacts {
    TableFacts {
        oid: row.get("oid"),
        kind: letter(row, "relkind"),
        persistence: letter(row, "relpersistence"),
        replica_identity: letter(row, "relreplident"),
        populated: row.get("relispopulated"),
        has_children: row.get("has_children"),
        row_security: row.get("row_security"),
        schema_usable: row.get("schema_usable"),
        readable: row.get("readable"),
        ancestors: row.get("ancestors"),
        deferrable_key: row.get("deferrable_key"),
        primary_key: row.get::<_, Option<_>>("primary_key").unwrap_or_default(),
        identity_index: row.get::<_, Option<_>>("identity_index").unwrap_or_default(),
        columns: Vec::new(),
        leaves: Vec::new(),
    }
}

/// A type with its modifier, domains resolved to what they are made of; `None` if it is gone.
pub async fn source_type_of(client: &Client, oid: u32, modifier: i32) -> Result<Option<SourceType>, Error> {
    let row = client.query_opt(TYPE, &[&oid, &modifier]).await.map_err(Error::query("reading a type"))?;
    Ok(row.as_ref().map(source_type))
}

fn source_type(row: &Row) -> SourceType {
    let element = row.get::<_, Option<u32>>("element_oid").map(|oid| Element {
        oid,
        text: row.get("element_text"),
        separator: letter(row, "element_separator"),
    });
    SourceType {
        oid: row.get("base_oid"),
        text: row.get("base_text"),
        kind: Kind::of(letter(row, "base_kind")),
        element,
        sendable: row.get("sendable"),
    }
}

fn column_facts(row: &Row) -> ColumnFacts {
    ColumnFacts {
        number: row.get("attnum"),
        name: row.get("attname"),
        not_null: row.get("attnotnull"),
        type_text: row.get("type_text"),
        type_oid: row.get("atttypid"),
        base: source_type(row),
        generated: row.get("generated"),
        reads: row.get("reads"),
    }
}

fn leaf_facts(row: &Row) -> LeafFacts {
    LeafFacts {
        name: TableName { schema: row.get("schema"), name: row.get("name") },
        kind: letter(row, "relkind"),
        persistence: letter(row, "relpersistence"),
        replica_identity: letter(row, "relreplident"),
        readable: row.get("readable"),
        row_security: row.get("row_security"),
    }
}

/// Compared as text in the C collation: a cast to `name` would cut a longer name and might then find another table.
const TABLES: &str = r#"
SELECT w.index, c.oid, c.relkind, c.relpersistence, c.relreplident, c.relispopulated,
       c.relkind IN ('r', 'f') AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) AS has_children,
       row_security_active(c.oid) AS row_security,
       has_schema_privilege(n.oid, 'USAGE') AS schema_usable,
       has_table_privilege(c.oid, 'SELECT') AS readable,
       ARRAY(SELECT a.relid::oid FROM pg_partition_ancestors(c.oid) a WHERE a.relid <> c.oid) AS ancestors,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate) AS deferrable_key,
       (SELECT (string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts] FROM pg_index i
         WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid) AS primary_key,
       (SELECT (string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts] FROM pg_index i
         WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid) AS identity_index
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (schema, name, index)
  JOIN pg_namespace n ON n.nspname::text = w.schema COLLATE "C"
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname::text = w.name COLLATE "C"
 WHERE c.relkind NOT IN ('i', 'I', 't', 'c')"#;

/// A domain is followed to what it is made of; its modifier is the one that the innermost domain states.
const COLUMNS: &str = r#"
SELECT a.attrelid, a.attnum, a.attname, a.attnotnull, a.atttypid, format_type(a.atttypid, a.atttypmod) AS type_text,
       t.oid AS base_oid, format_type(base.oid, base.typmod) AS base_text, t.typtype AS base_kind,
       t.typsend <> 0 AND t.typreceive <> 0 AS sendable,
       e.oid AS element_oid, format_type(e.oid, NULL) AS element_text, e.typdelim AS element_separator,
       CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid) END AS generated,
       ARRAY(SELECT DISTINCT p.refobjsubid::int2 FROM pg_depend p
              WHERE a.attgenerated <> '' AND p.refclassid = 'pg_class'::regclass AND p.refobjid = a.attrelid
                AND p.refobjsubid > 0 AND p.refobjsubid <> a.attnum
                AND (p.classid = 'pg_class'::regclass AND p.objid = a.attrelid AND p.objsubid = a.attnum
                     OR p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid)) AS reads
  FROM pg_attribute a
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 CROSS JOIN LATERAL (
       WITH RECURSIVE step (oid, typmod, depth) AS (
         SELECT a.atttypid, a.atttypmod, 0
          UNION ALL
         SELECT y.typbasetype, y.typtypmod, s.depth + 1 FROM step s JOIN pg_type y ON y.oid = s.oid AND y.typtype = 'd')
       SELECT s.oid, s.typmod FROM step s ORDER BY s.depth DESC LIMIT 1) base
  JOIN pg_type t ON t.oid = base.oid
  LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
 WHERE a.attrelid = ANY ($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum"#;

/// One type, as [`COLUMNS`] has a column's.
const TYPE: &str = r#"
  WITH RECURSIVE step (oid, typmod, depth) AS (
    SELECT $1::oid, $2::int4, 0
     UNION ALL
    SELECT y.typbasetype, y.typtypmod, s.depth + 1 FROM step s JOIN pg_type y ON y.oid = s.oid AND y.typtype = 'd')
SELECT t.oid AS base_oid, format_type(base.oid, base.typmod) AS base_text, t.typtype AS base_kind,
       t.typsend <> 0 AND t.typreceive <> 0 AS sendable,
       e.oid AS element_oid, format_type(e.oid, NULL) AS element_text, e.typdelim AS element_separator
  FROM (SELECT oid, typmod FROM step ORDER BY depth DESC LIMIT 1) base
  JOIN pg_type t ON t.oid = base.oid
  LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'"#;

const LEAVES: &str = r#"
SELECT root.oid AS root, n.nspname::text AS schema, c.relname::text AS name, c.relkind, c.relpersistence, c.relreplident,
       has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE') AS readable, row_security_active(c.oid) AS row_security
  FROM unnest($1::oid[]) AS root (oid)
 CROSS JOIN LATERAL pg_partition_tree(root.oid) p
  JOIN pg_class c ON c.oid = p.relid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE p.isleaf AND c.relkind <> 'p'
 ORDER BY 1, 2, 3"#;

/// A relation of an access method that is not the heap has blocks 0: it is read whole. Rows: the estimate, scaled to the size of now as the planner does it;
/// a table that was never analyzed is taken for rows of about 100 bytes.
const RELATIONS: &str = r#"
WITH leaf AS (
  SELECT root.oid AS root, c.oid, c.reltuples, c.relpages, c.reltoastrelid, m.amname,
         pg_relation_size(c.oid) AS heap, current_setting('block_size')::int8 AS block
    FROM unnest($1::oid[]) AS root (oid)
   CROSS JOIN LATERAL (SELECT relid FROM pg_partition_tree(root.oid) WHERE isleaf UNION SELECT root.oid) p
    JOIN pg_class c ON c.oid = p.relid AND c.relkind IN ('r', 'm', 'v', 'f')
    LEFT JOIN pg_am m ON m.oid = c.relam)
SELECT root, oid, CASE WHEN amname = 'heap' THEN coalesce(heap / block, 0) ELSE 0 END AS blocks,
       coalesce(heap, 0) + coalesce(pg_relation_size(nullif(reltoastrelid, 0)), 0) AS bytes,
       CASE WHEN reltuples >= 0 AND relpages > 0 THEN (reltuples::float8 / relpages * coalesce(heap / block, 0))::int8
            ELSE coalesce(heap, 0) / 100 END AS rows
  FROM leaf"#;
