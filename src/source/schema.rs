//! From what the catalog says of a table, and what the Mirror wants of it, to its [`TableSchema`], or to what is wrong. Pure.

use std::collections::HashMap;

use super::{error::failure, keys, type_map::SourceType};
use crate::{
    api::mirror::{Mode, Table},
    brief::Brief,
    destination::{column_name, column_type},
    postgres::qualified,
    report::Failure,
    table::{Column, Identity, TableName, TableSchema},
};

/// What the catalog says of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct TableFacts {
    /// Its oid.
    pub oid: u32,
    /// `pg_class.relkind`.
    pub kind: char,
    /// `pg_class.relpersistence`.
    pub persistence: char,
    /// `pg_class.relreplident`.
    pub replica_identity: char,
    /// `pg_class.relispopulated`: false for a materialized view that nobody may read yet.
    pub populated: bool,
    /// Whether tables inherit from it. Partitions are told apart from that.
    pub has_children: bool,
    /// Whether row security would hide rows from this role.
    pub row_security: bool,
    /// Whether this role may use its schema.
    pub schema_usable: bool,
    /// Whether this role may read it.
    pub readable: bool,
    /// Tables that it is a partition of, at any distance.
    pub ancestors: Vec<u32>,
    /// Whether it has a primary key that may be checked at a transaction's end only: no replica identity.
    pub deferrable_key: bool,
    /// Attribute numbers of the primary key, in its order; empty without one that is checked at once.
    pub primary_key: Vec<i16>,
    /// Attribute numbers of the REPLICA IDENTITY index.
    pub identity_index: Vec<i16>,
    /// Its columns, in order.
    pub columns: Vec<ColumnFacts>,
    /// The partitions that hold rows, if it is partitioned.
    pub leaves: Vec<LeafFacts>,
}

/// What the catalog says of a column.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnFacts {
    /// Its attribute number.
    pub number: i16,
    /// Its name.
    pub name: String,
    /// NOT NULL.
    pub not_null: bool,
    /// Its type as declared.
    pub type_text: String,
    /// The oid of that.
    pub type_oid: u32,
    /// Its type, domains resolved.
    pub base: SourceType,
    /// The expression of a generated column.
    pub generated: Option<String>,
    /// Attribute numbers of the columns that the expression reads.
    pub reads: Vec<i16>,
}

/// What the catalog says of a partition that holds rows.
#[derive(Clone, Debug, PartialEq)]
pub struct LeafFacts {
    /// Its name.
    pub name: TableName,
    /// `pg_class.relkind`.
    pub kind: char,
    /// `pg_class.relpersistence`.
    pub persistence: char,
    /// `pg_class.relreplident`.
    pub replica_identity: char,
    /// Whether this role may read it, which rights on the partitioned table do not cover.
    pub readable: bool,
    /// Whether row security would hide rows from this role: the load reads it by its own name.
    pub row_security: bool,
}

/// The schema of the brief's table `number`, or everything that is wrong with it.
pub fn build(brief: &Brief, number: u32, wanted: &Table, name: &TableName, facts: &TableFacts) -> Result<TableSchema, Vec<Failure>> {
    let mut problems = Vec::new();
    refuse_kinds(brief, wanted, name, facts, &mut problems);
    refuse_rights(brief, name, facts, &mut problems);
    refuse_unknown_columns(wanted, name, facts, &mut problems);
    let kept: Vec<&ColumnFacts> = facts.columns.iter().filter(|c| !wanted.exclude_columns.contains(&c.name)).collect();
    let columns: Vec<Column> = kept.iter().map(|facts| column(brief, wanted, facts)).collect();
    refuse_generated(wanted, name, facts, &kept, &mut problems);
    refuse_clashes(brief, name, &columns, &mut problems);
    refuse_partition_key(wanted, name, facts, &kept, &mut problems);
    if columns.iter().all(|c| c.generated.is_some()) {
        problems.push(failure("NoColumns", format!("{name} has no column to copy; list it no more, or exclude fewer columns")));
    }
    let identity = match brief.mode {
        // The key that the stream would have, if any: what was carried by it before still is.
        Mode::SnapshotOnly => match [&facts.identity_index, &facts.primary_key].into_iter().find(|key| !key.is_empty()) {
            Some(key) => keyed(name, facts, &kept, key, &mut problems),
            None => Some(Identity::FullRow),
        },
        Mode::Continuous => identity(name, facts, &kept, &mut problems),
    };
    let destination = wanted.destination.as_deref().map_or(Some(name.clone()), TableName::parse);
    match (problems.is_empty(), identity, destination) {
        (true, Some(identity), Some(destination)) => {
            let (source, partition_key) = (name.clone(), wanted.partition_key.clone());
            Ok(TableSchema { number, source, source_oid: facts.oid, destination, columns, identity, partition_key })
        }
        (_, _, None) => {
            let text = wanted.destination.as_deref().unwrap_or_default();
            problems.push(failure("BadTableName", format!("{text:?} is not of the form schema.table")));
            Err(problems)
        }
        _ => Err(problems),
    }
}

fn column(brief: &Brief, wanted: &Table, facts: &ColumnFacts) -> Column {
    let own = wanted.columns.iter().find(|c| c.source == facts.name);
    let mapped = column_type(brief, wanted, &facts.name, &facts.base, facts.not_null);
    Column {
        source: facts.name.clone(),
        destination: column_name(brief, own.and_then(|c| c.destination.as_deref()).unwrap_or(&facts.name)),
        source_type: facts.type_text.clone(),
        base_type: facts.base.base_of(&facts.type_text),
        source_type_oid: facts.type_oid,
        destination_type: mapped.destination_type,
        not_null: facts.not_null,
        generated: facts.generated.clone(),
        binary: mapped.binary,
        as_text: mapped.as_text,
    }
}

/// What has no changes to follow can be loaded once, and what has no blocks by ranges of a key.
fn refuse_kinds(brief: &Brief, wanted: &Table, name: &TableName, facts: &TableFacts, problems: &mut Vec<Failure>) {
    let once = brief.mode == Mode::SnapshotOnly;
    let once_by_key = once && wanted.partition_key.is_some();
    let what = match facts.kind {
        'r' | 'f' if facts.has_children => {
            Some("a table that others inherit from: its children's changes are published under their own names. List the children instead")
        }
        'r' | 'p' => None,
        'm' if once && facts.populated => None,
        'm' if once => Some("a materialized view without data. REFRESH MATERIALIZED VIEW fills it"),
        'v' | 'f' if once_by_key => None,
        'v' if once => Some("a view, which has no blocks to read. Name an integer column to read it by as its partitionKey"),
        'f' if once => Some("a foreign table, which has no blocks to read. Name an integer column to read it by as its partitionKey"),
        'v' => Some(
            "a view, which has no change stream. List the tables that it reads, or load it once: mode SnapshotOnly, with a partitionKey",
        ),
        'm' => Some("a materialized view, which has no change stream. List the tables that it reads, or load it once: mode SnapshotOnly"),
        'f' => Some(
            "a foreign table, whose changes are in another server's log. Mirror it from that server, or load it once: mode SnapshotOnly, with a partitionKey",
        ),
        'S' => Some("a sequence. List tables only"),
        _ => Some("not a table. List tables only"),
    };
    if let Some(what) = what {
        problems.push(failure("UnsupportedTable", format!("{name} is {what}.")));
    }
    for leaf in facts.leaves.iter().filter(|l| l.kind != 'r' && !once_by_key) {
        let message =
            format!("{name} has the partition {}, a foreign table, whose changes are in another server's log; detach it.", leaf.name);
        problems.push(failure("UnsupportedTable", message));
    }
    let logged = std::iter::once((name, facts.persistence)).chain(facts.leaves.iter().map(|l| (&l.name, l.persistence)));
    for (table, persistence) in logged.filter(|(_, persistence)| *persistence != 'p') {
        let (kind, cure) = match persistence {
            't' => ("temporary", String::new()),
            _ => ("unlogged", format!(": ALTER TABLE {} SET LOGGED", sql(table))),
        };
        problems
            .push(failure("UnsupportedTable", format!("{table} is {kind}: its changes are not in the log and cannot be streamed{cure}")));
    }
}

fn refuse_rights(brief: &Brief, name: &TableName, facts: &TableFacts, problems: &mut Vec<Failure>) {
    let role = crate::postgres::ident(&brief.source.user);
    let mut need = |what: String, statement: String| {
        problems.push(failure("SourcePermissionDenied", format!("role {role} may not {what}: {statement}")));
    };
    if !facts.schema_usable {
        need(format!("use schema {}", name.schema), format!("GRANT USAGE ON SCHEMA {} TO {role}", crate::postgres::ident(&name.schema)));
    }
    let tables = std::iter::once((name, facts.readable)).chain(facts.leaves.iter().map(|l| (&l.name, l.readable)));
    for (table, _) in tables.filter(|(_, readable)| !readable) {
        need(format!("read {table}"), format!("GRANT SELECT ON {} TO {role}", sql(table)));
    }
    let tables = std::iter::once((name, facts.row_security)).chain(facts.leaves.iter().map(|l| (&l.name, l.row_security)));
    for (table, _) in tables.filter(|(_, hidden)| *hidden) {
        let cure = format!("ALTER ROLE {role} BYPASSRLS, or, as its owner, ALTER TABLE {} NO FORCE ROW LEVEL SECURITY", sql(table));
        need(format!("see every row of {table}, which has row security"), cure);
    }
}

fn refuse_unknown_columns(wanted: &Table, name: &TableName, facts: &TableFacts, problems: &mut Vec<Failure>) {
    let listed = wanted.exclude_columns.iter().map(|c| ("excludeColumns", c)).chain(wanted.columns.iter().map(|c| ("columns", &c.source)));
    for (field, column) in listed {
        if !facts.columns.iter().any(|c| c.name == *column) {
            problems.push(failure("ColumnMissing", format!("{name} has no column {column:?}, which {field} lists; correct the Mirror")));
        }
    }
}

/// A generated column is computed at the destination with the source's expression, which must find every column there under the same name.
fn refuse_generated(wanted: &Table, name: &TableName, facts: &TableFacts, kept: &[&ColumnFacts], problems: &mut Vec<Failure>) {
    let renamed = |column: &str| {
        let own = wanted.columns.iter().find(|c| c.source == column).and_then(|c| c.destination.as_deref());
        own.is_some_and(|destination| destination != column)
    };
    for generated in kept.iter().filter(|c| c.generated.is_some()) {
        for read in generated.reads.iter().filter_map(|number| facts.columns.iter().find(|c| c.number == *number)) {
            let is = match (kept.iter().any(|c| c.number == read.number), renamed(&read.name)) {
                (false, _) => "excluded",
                (true, true) => "renamed",
                (true, false) => continue,
            };
            let message = format!(
                "{name}: column {:?} is generated from {:?}, which the Mirror has {is}, so it cannot be computed at the destination; exclude {:?} too",
                generated.name, read.name, generated.name
            );
            problems.push(failure("GeneratedColumn", message));
        }
    }
}

fn refuse_clashes(brief: &Brief, name: &TableName, columns: &[Column], problems: &mut Vec<Failure>) {
    let mut taken: HashMap<&str, &str> = HashMap::new();
    if brief.soft_delete.enabled {
        taken.insert(&brief.soft_delete.column, "softDelete.column");
    }
    if !brief.synced_at_column.is_empty() {
        taken.insert(&brief.synced_at_column, "syncedAtColumn");
    }
    for column in columns {
        if let Some(by) = taken.insert(&column.destination, "another column") {
            let message = format!(
                "{name}: column {:?} would be called {:?} at the destination, which is the name of {by}; give it another with columns[].destination",
                column.source, column.destination
            );
            problems.push(failure("ColumnClash", message));
        }
    }
}

/// The column whose ranges are read is one of those that are copied, and an integer.
fn refuse_partition_key(wanted: &Table, name: &TableName, facts: &TableFacts, kept: &[&ColumnFacts], problems: &mut Vec<Failure>) {
    let Some(key) = &wanted.partition_key else { return };
    let problem = match (kept.iter().find(|c| c.name == *key), facts.columns.iter().any(|c| c.name == *key)) {
        (Some(column), _) if keys::TYPES.contains(&column.base.oid) => return,
        (Some(column), _) => failure(
            "PartitionKey",
            format!("{name}: partitionKey {key:?} is of type {}; name a column of type smallint, integer or bigint", column.type_text),
        ),
        (None, true) => {
            let message = format!("{name}: partitionKey {key:?} is excluded; remove it from excludeColumns, or name another column");
            failure("PartitionKey", message)
        }
        (None, false) => failure("ColumnMissing", format!("{name} has no column {key:?}, which partitionKey names; correct the Mirror")),
    };
    problems.push(problem);
}

/// What tells rows apart: what the source sends as the old row's key.
fn identity(name: &TableName, facts: &TableFacts, kept: &[&ColumnFacts], problems: &mut Vec<Failure>) -> Option<Identity> {
    let holders: Vec<(&TableName, char)> = match facts.kind {
        'p' => facts.leaves.iter().map(|l| (&l.name, l.replica_identity)).collect(),
        'r' => vec![(name, facts.replica_identity)],
        // Has no change stream, and is refused for that.
        _ => return None,
    };
    if let Some((table, _)) = holders.iter().find(|(_, identity)| *identity == 'n') {
        let message = format!(
            "{table} has REPLICA IDENTITY NOTHING, so updates and deletes do not say which row they mean: ALTER TABLE {} REPLICA IDENTITY DEFAULT",
            sql(table)
        );
        problems.push(failure("NoReplicaIdentity", message));
        return None;
    }
    if let Some((table, _)) = holders.iter().find(|(_, identity)| facts.kind == 'p' && *identity == 'i') {
        let message = format!(
            "partition {table} has a REPLICA IDENTITY index of its own, where all partitions of {name} must have the same key: \
             ALTER TABLE {} REPLICA IDENTITY DEFAULT",
            sql(table)
        );
        problems.push(failure("NoReplicaIdentity", message));
        return None;
    }
    let by_index = holders.iter().any(|(_, identity)| *identity == 'i');
    let key = if by_index { &facts.identity_index } else { &facts.primary_key };
    if !key.is_empty() {
        return keyed(name, facts, kept, key, problems);
    }
    if !holders.is_empty() && holders.iter().all(|(_, identity)| *identity == 'f') {
        return Some(Identity::FullRow);
    }
    if facts.deferrable_key {
        let message = format!(
            "the primary key of {name} is DEFERRABLE, so updates and deletes do not say which row they mean: make it anew without that \
             (ALTER TABLE {0} DROP CONSTRAINT …, ADD PRIMARY KEY (…)), or else ALTER TABLE {0} REPLICA IDENTITY FULL",
            sql(name)
        );
        problems.push(failure("NoPrimaryKey", message));
        return None;
    }
    let without = holders.iter().find(|(_, identity)| *identity != 'f').map_or(name, |(table, _)| table);
    let message = format!(
        "{name} has no primary key, so updates and deletes do not say which row they mean: ALTER TABLE {} ADD PRIMARY KEY (…), \
         or else ALTER TABLE {} REPLICA IDENTITY FULL",
        sql(name),
        sql(without)
    );
    problems.push(failure("NoPrimaryKey", message));
    None
}

fn keyed(name: &TableName, facts: &TableFacts, kept: &[&ColumnFacts], key: &[i16], problems: &mut Vec<Failure>) -> Option<Identity> {
    let before = problems.len();
    let mut places = Vec::with_capacity(key.len());
    for number in key {
        let Some(column) = facts.columns.iter().find(|c| c.number == *number) else { continue };
        match kept.iter().position(|c| c.number == *number) {
            None => {
                let message =
                    format!("{name}: column {:?} is part of the key and cannot be excluded; remove it from excludeColumns", column.name);
                problems.push(failure("KeyColumnExcluded", message));
            }
            Some(_) if column.generated.is_some() => {
                let message = format!(
                    "{name}: column {:?} is part of the key and generated, and generated values are not published; use another key as REPLICA IDENTITY",
                    column.name
                );
                problems.push(failure("GeneratedColumn", message));
            }
            Some(place) => places.push(place),
        }
    }
    (problems.len() == before && !places.is_empty()).then_some(Identity::Key(places))
}

fn sql(table: &TableName) -> String {
    qualified(&table.schema, &table.name)
}
