//! How the rows of the stream become rows of ours: by the columns' names. No I/O.

use crate::{
    destination::Cell,
    source::{
        pgoutput::{OldRow, Relation},
        present,
    },
    stream::fold::Change,
    table::{Identity, TableSchema},
};

/// What a relation message says of one of our tables.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// How its rows are read.
    pub mapping: Mapping,
    /// Places of columns that are new to us.
    pub added: Vec<usize>,
    /// Indexes into our columns of those that the source no longer has.
    pub gone: Vec<usize>,
    /// What differs and wants a resync.
    pub drift: Vec<String>,
    /// Why its changes cannot be applied at all, if so.
    pub unusable: Option<String>,
}

/// Where each copied column of ours is in the stream's rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mapping {
    places: Vec<Option<usize>>,
    /// Columns of the stream's rows.
    width: usize,
    /// Whether rows can be taken as they are.
    same: bool,
    /// The key's places in our rows.
    key: Vec<usize>,
}

/// Compares a relation message with the schema that we have. `types` are the message's column types as `format_type` prints them.
pub fn read(relation: &Relation, schema: &TableSchema, excluded: &[String], types: &[String]) -> Reading {
    let place = |name: &str| relation.columns.iter().position(|c| c.name == name);
    let places: Vec<_> = schema.copied().map(|c| place(&c.source)).collect();
    let width = relation.columns.len();
    let same = places.len() == width && places.iter().enumerate().all(|(i, p)| *p == Some(i));
    let known = |name: &str| schema.columns.iter().any(|c| c.source == name) || excluded.iter().any(|e| e == name);
    let added = (0..width).filter(|i| !known(&relation.columns[*i].name)).collect();
    let mut drift = Vec::new();
    if relation.oid != schema.source_oid {
        drift.push(present::made_again(relation.oid, schema.source_oid));
    }
    for (column, place) in schema.copied().zip(&places) {
        match place {
            None => drift.push(format!("column {:?} was dropped or renamed at the source", column.source)),
            Some(i) => {
                let (oid, text) = (relation.columns[*i].type_oid, types.get(*i));
                if oid != column.source_type_oid || text.is_some_and(|t| *t != column.source_type) {
                    let now = text.map_or("another type", String::as_str);
                    drift.push(format!("column {:?} is {now} at the source, it was {}", column.source, column.source_type));
                }
            }
        }
    }
    let gone = (0..schema.columns.len()).filter(|i| schema.columns[*i].generated.is_none() && place(&schema.columns[*i].source).is_none());
    let gone = gone.collect();
    let unusable = unusable(relation, schema, &places);
    Reading { mapping: Mapping { places, width, same, key: schema.copied_key() }, added, gone, drift, unusable }
}

fn unusable(relation: &Relation, schema: &TableSchema, places: &[Option<usize>]) -> Option<String> {
    match schema.identity {
        Identity::Key(_) => {
            let marked = |place: usize| places[place].is_some_and(|i| relation.columns[i].key);
            let lost = schema.copied_key().into_iter().find(|place| !marked(*place))?;
            let name = schema.copied().nth(lost).map(|c| c.source.as_str()).unwrap_or_default();
            Some(format!("column {name:?} is no longer part of the source table's key or replica identity"))
        }
        Identity::FullRow if relation.identity != b'f' => Some("the source table no longer has REPLICA IDENTITY FULL".into()),
        Identity::FullRow if places.contains(&None) => Some("without a key, rows cannot be found once a column is gone".into()),
        Identity::FullRow => None,
    }
}

impl Mapping {
    /// An insert. Columns that the source no longer has are NULL.
    pub fn insert(&self, row: Vec<Cell>) -> Option<Change> {
        Some(Change::Insert(self.row(row, &Cell::Null)?))
    }

    /// An update. Columns that the source no longer has keep their values.
    pub fn update(&self, old: Option<OldRow>, row: Vec<Cell>) -> Option<Change> {
        let row = self.row(row, &Cell::Unchanged)?;
        let (old, full) = match old {
            None => (None, false),
            Some(OldRow::Key(cells)) => (Some(self.row(cells, &Cell::Null)?), false),
            Some(OldRow::Full(cells)) => (Some(self.row(cells, &Cell::Unchanged)?), true),
        };
        Some(Change::Update { old, full, row })
    }

    /// A delete.
    pub fn delete(&self, old: OldRow) -> Option<Change> {
        let (OldRow::Key(cells) | OldRow::Full(cells)) = old;
        Some(Change::Delete(self.row(cells, &Cell::Null)?))
    }

    /// The key's places in our rows.
    pub fn key(&self) -> &[usize] {
        &self.key
    }

    /// `None` if the row does not have the columns that were announced.
    fn row(&self, mut cells: Vec<Cell>, absent: &Cell) -> Option<Vec<Cell>> {
        if cells.len() != self.width {
            return None;
        }
        if self.same {
            return Some(cells);
        }
        let mut take = |i: usize| std::mem::replace(&mut cells[i], Cell::Null);
        Some(self.places.iter().map(|place| place.map_or_else(|| absent.clone(), &mut take)).collect())
    }
}

/// A row's change as it was sent.
pub(super) enum Sent {
    Insert(Vec<Cell>),
    Update(Option<OldRow>, Vec<Cell>),
    Delete(OldRow),
}

impl Sent {
    /// What it does to the mapped columns; `None` where that is nothing to us.
    pub(super) fn read(self, mapping: &Mapping) -> Option<Change> {
        match self {
            Self::Insert(row) => mapping.insert(row),
            Self::Update(old, row) => mapping.update(old, row),
            Self::Delete(old) => mapping.delete(old),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        source::pgoutput::RelationColumn,
        table::{Column, TableName},
    };

    fn column(name: &str, generated: Option<&str>) -> Column {
        Column {
            source: name.into(),
            destination: name.into(),
            source_type: "integer".into(),
            base_type: None,
            source_type_oid: 23,
            destination_type: "integer".into(),
            not_null: false,
            generated: generated.map(Into::into),
            binary: true,
            as_text: false,
        }
    }

    fn schema(identity: Identity) -> TableSchema {
        let name = || TableName { schema: "public".into(), name: "t".into() };
        let columns = vec![column("g", Some("1")), column("id", None), column("a", None), column("b", None)];
        TableSchema { number: 0, source: name(), source_oid: 5, destination: name(), columns, identity, partition_key: None }
    }

    fn relation(columns: &[(&str, bool, u32)]) -> Relation {
        let column =
            |(name, key, oid): &(&str, bool, u32)| RelationColumn { key: *key, name: (*name).into(), type_oid: *oid, type_modifier: -1 };
        Relation { oid: 5, schema: "public".into(), name: "t".into(), identity: b'd', columns: columns.iter().map(column).collect() }
    }

    fn types(n: usize) -> Vec<String> {
        vec!["integer".into(); n]
    }

    fn text(t: &'static str) -> Cell {
        Cell::Text(t.into())
    }

    #[test]
    fn rows_are_read_by_the_names_of_columns() {
        let reading =
            read(&relation(&[("b", false, 23), ("x", false, 23), ("id", true, 23)]), &schema(Identity::Key(vec![1])), &[], &types(3));
        assert_eq!((reading.added, reading.gone, reading.drift.len(), reading.unusable), (vec![1], vec![2], 1, None));
        let row = vec![text("1"), text("2"), text("3")];
        assert_eq!(reading.mapping.insert(row.clone()), Some(Change::Insert(vec![text("3"), Cell::Null, text("1")])));
        let kept = Change::Update { old: None, full: false, row: vec![text("3"), Cell::Unchanged, text("1")] };
        assert_eq!(reading.mapping.update(None, row), Some(kept));
        assert_eq!(reading.mapping.key(), [0]);
        assert_eq!(reading.mapping.insert(vec![text("1")]), None, "a row of another width");
    }

    #[test]
    fn excluded_columns_are_neither_new_nor_read() {
        let reading = read(
            &relation(&[("id", true, 23), ("a", false, 23), ("b", false, 23), ("secret", false, 25)]),
            &schema(Identity::Key(vec![1])),
            &["secret".into()],
            &types(4),
        );
        assert_eq!((reading.added, reading.drift), (vec![], vec![]));
    }

    #[test]
    fn another_type_is_drift_and_another_key_cannot_be_applied() {
        let key = || schema(Identity::Key(vec![1]));
        let columns = |oid, marked| relation(&[("id", marked, 23), ("a", false, oid), ("b", false, 23)]);
        assert_eq!(read(&columns(20, true), &key(), &[], &["integer".into(), "bigint".into(), "integer".into()]).drift.len(), 1);
        assert!(read(&columns(23, false), &key(), &[], &types(3)).unusable.is_some());
        assert!(read(&columns(23, true), &schema(Identity::FullRow), &[], &types(3)).unusable.is_some());
    }
}
