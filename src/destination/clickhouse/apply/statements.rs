//! The rows of a batch and the statements that bring them into a table. No I/O.
//!
//! The rows travel as the table `rows`: `c0, c1, …` are the copied columns, `u` says which of them are unchanged, `b0, b1, …` are the key of the row
//! from which those are taken, `d` is the flag and `v` the version.

use bytes::Bytes;

use super::super::{
    encode::{Refused, RowEncoder, put_string},
    error::ROWS_MISSING,
    own::{Own, VERSION, sorting_key},
    quote::{ident, qualified},
};
use crate::{
    api::clickhouse::{ClickHouseTable, Engine},
    destination::{Cell, Position, RowChange},
    table::TableSchema,
};

/// Rows whose last versions are looked for at a time.
const PORTION: u64 = 1_000_000;

/// A table's names as the statements use them, quoted.
#[derive(Debug)]
pub(super) struct Names {
    table: String,
    columns: Vec<(String, String)>,
    /// Indexes into `columns`.
    key: Vec<usize>,
    /// Columns of the sorting key beside the key: when their values change, the row's earlier versions are rows of their own.
    movable: Vec<usize>,
    /// Whether the engine itself finds the last version of each row.
    versions: bool,
    own: Own,
}

/// A batch's changes of one table, in two sets.
#[derive(Default)]
pub(super) struct Batch {
    whole: Vec<u8>,
    partial: Vec<u8>,
}

impl Batch {
    /// Adds a change.
    pub(super) fn add(&mut self, encoder: &RowEncoder, names: &Names, change: &RowChange, position: Position) -> Result<(), Refused> {
        let mut row = |row: &[Cell], base: Option<&[Cell]>, deleted: bool, whole: bool| {
            let out = if whole && names.movable.is_empty() { &mut self.whole } else { &mut self.partial };
            names.encode(encoder, row, base.unwrap_or(row), deleted, position, out)
        };
        match change {
            RowChange::Upsert { row: cells, deleted } => row(cells, None, *deleted, !cells.contains(&Cell::Unchanged)),
            RowChange::Add { row: cells } => row(cells, None, false, true),
            RowChange::Remove { row: cells } => row(cells, None, true, true),
            RowChange::Delete { key } => row(&names.only_key(key), None, true, false),
            RowChange::Rekey { old_key, row: cells } => {
                row(cells, Some(old_key), false, false)?;
                row(&names.only_key(old_key), None, true, false)
            }
        }
    }

    /// The rows that are whole, and those that need the row that is there.
    pub(super) fn finish(self) -> (Bytes, Bytes) {
        (self.whole.into(), self.partial.into())
    }
}

impl Names {
    pub(super) fn new(table: &TableSchema, options: &ClickHouseTable, own: Own) -> Self {
        let key = table.copied_key();
        let sorting = sorting_key(table, options);
        let movable = |(place, column): (usize, &crate::table::Column)| {
            (!key.contains(&place) && !key.is_empty() && sorting.contains(&column.destination)).then_some(place)
        };
        Self {
            table: qualified(&table.destination.schema, &table.destination.name),
            columns: table.copied().map(|c| (ident(&c.destination), c.destination_type.clone())).collect(),
            movable: table.copied().enumerate().filter_map(movable).collect(),
            key,
            versions: matches!(options.engine, Engine::ReplacingMergeTree | Engine::CoalescingMergeTree),
            own,
        }
    }

    /// The columns of `rows` and their types.
    pub(super) fn structure(&self) -> String {
        let columns = self.columns.iter().enumerate().map(|(i, (_, type_))| format!("c{i} {type_}"));
        let bases = self.key.iter().enumerate().filter_map(|(i, k)| Some(format!("b{i} {}", self.columns.get(*k)?.1)));
        let own = ["u String", "d UInt8", "v UInt128"].map(str::to_string);
        columns.chain(bases).chain(own).collect::<Vec<_>>().join(", ")
    }

    fn only_key(&self, key: &[Cell]) -> Vec<Cell> {
        let cell = |place| if self.key.contains(&place) { key.get(place).cloned().unwrap_or(Cell::Null) } else { Cell::Unchanged };
        (0..self.columns.len()).map(cell).collect()
    }

    fn encode(
        &self,
        encoder: &RowEncoder,
        row: &[Cell],
        base: &[Cell],
        deleted: bool,
        position: Position,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let start = out.len();
        let mut write = || {
            encoder.cells(row, out)?;
            for place in &self.key {
                encoder.cell(*place, base.get(*place).unwrap_or(&Cell::Null), out)?;
            }
            Ok(())
        };
        let written = write();
        if written.is_err() {
            out.truncate(start);
            return written;
        }
        let unchanged: Vec<u8> = row.iter().map(|cell| if *cell == Cell::Unchanged { b'u' } else { b'.' }).collect();
        put_string(&unchanged, out);
        out.push(u8::from(deleted));
        out.extend_from_slice(&position.version().to_le_bytes());
        Ok(())
    }

    /// `INSERT INTO` with all columns but the time, which is now.
    fn into(&self) -> String {
        let columns: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
        format!("INSERT INTO {} ({}, {}, {})", self.table, columns.join(", "), ident(&self.own.flag), ident(VERSION))
    }

    fn each(&self, value: impl Fn(usize) -> String) -> String {
        (0..self.columns.len()).map(value).collect::<Vec<_>>().join(", ")
    }

    /// Rows as they are.
    pub(super) fn insert(&self, fence: &str) -> String {
        format!("{} SELECT {}, d, v FROM rows WHERE {fence}", self.into(), self.each(|i| format!("c{i}")))
    }

    /// The last version of each row that `rows` is based on: `x0, x1, …`, its flag and its version.
    fn base(&self) -> String {
        let columns = self.columns.iter().enumerate().map(|(i, (name, _))| format!("{name} AS x{i}")).collect::<Vec<_>>().join(", ");
        let names =
            |of: &[usize]| of.iter().filter_map(|k| self.columns.get(*k)).map(|(name, _)| name.clone()).collect::<Vec<_>>().join(", ");
        let bases = (0..self.key.len()).map(|i| format!("b{i}")).collect::<Vec<_>>().join(", ");
        format!(
            "SELECT {columns}, {} AS flag, {} AS version, 1 AS found FROM {} WHERE ({}) IN (SELECT {bases} FROM rows) ORDER BY {} LIMIT 1 BY {}",
            ident(&self.own.flag),
            ident(VERSION),
            self.table,
            names(&self.key),
            self.own.newest_first(),
            names(&self.key)
        )
    }

    fn joined(&self, kind: &str) -> String {
        let same: Vec<String> = self.key.iter().enumerate().map(|(i, k)| format!("s.b{i} = x.x{k}")).collect();
        format!("FROM rows AS s {kind} ANY JOIN ({}) AS x ON {}", self.base(), same.join(" AND "))
    }

    fn unchanged(place: usize) -> String {
        format!("substring(s.u, {}, 1) = 'u'", place + 1)
    }

    /// Rows with what they leave unchanged from the row that is there. Without that row only a delete is written, and nothing where a later version is there
    /// already: then this was written before, and is done again on top of what came after it.
    ///
    /// `watchful`: it throws [`ROWS_MISSING`] instead of leaving a row out because the one that is to complete it is missing.
    pub(super) fn insert_merged(&self, fence: &str, watchful: bool) -> String {
        let values = self.each(|i| format!("if({}, x.x{i}, s.c{i})", Self::unchanged(i)));
        let possible = "(x.found = 1 OR s.d = 1 OR position(s.u, 'u') = 0)";
        let possible =
            if watchful { format!("NOT throwIf(NOT {possible}, 'rows are missing', toInt16({ROWS_MISSING}))") } else { possible.into() };
        format!("{} SELECT {values}, s.d, s.v {} WHERE x.version <= s.v AND {possible} AND {fence}", self.into(), self.joined("LEFT"))
    }

    /// Flags the row that is there where the new one has another sorting key; nothing if it cannot have.
    pub(super) fn bury_moved(&self, fence: &str) -> Option<String> {
        let moved: Vec<String> =
            self.movable.iter().map(|i| format!("(NOT ({}) AND s.c{i} IS DISTINCT FROM x.x{i})", Self::unchanged(*i))).collect();
        (!moved.is_empty()).then(|| {
            format!(
                "{} SELECT {}, 1, s.v {} WHERE x.flag = 0 AND x.version < s.v AND ({}) AND {fence}",
                self.into(),
                self.each(|i| format!("x.x{i}")),
                self.joined("INNER"),
                moved.join(" OR ")
            )
        })
    }

    /// Whether a row's earlier versions may be rows of their own.
    pub(super) fn is_movable(&self) -> bool {
        !self.movable.is_empty()
    }

    /// Flags every row that was there before `position`, of which there are about so many. FINAL merges as it reads, in memory that does not grow with the table;
    /// for an engine that has none, the last versions are found for a portion of the keys at a time.
    pub(super) fn bury_all(&self, position: Position, rows: u64, fence: &str) -> Vec<String> {
        let key: Vec<&str> = self.key.iter().filter_map(|k| self.columns.get(*k)).map(|(name, _)| name.as_str()).collect();
        let columns: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
        let (flag, version, key) = (ident(&self.own.flag), ident(VERSION), key.join(", "));
        let bury = |last: String| {
            format!(
                "{} SELECT {columns}, 1, {position} FROM {last} WHERE {flag} = 0 AND {version} < {position} AND {fence}",
                self.into(),
                columns = columns.join(", "),
                position = format_args!("toUInt128('{}')", position.version()),
            )
        };
        if self.versions {
            return vec![bury(format!("{} FINAL", self.table))];
        }
        let portions = rows / PORTION + 1;
        let last = |portion: u64| {
            format!(
                "(SELECT * FROM {} WHERE cityHash64({key}) % {portions} = {portion} ORDER BY {} LIMIT 1 BY {key})",
                self.table,
                self.own.newest_first()
            )
        };
        (0..portions).map(|portion| bury(last(portion))).collect()
    }
}
