//! The rows of a batch and the statements that bring them into a table. No I/O.
//!
//! Staged rows have the columns `C0, C1, …` for the copied ones and `K0, K1, …` for the key of the row that a change of the key takes its other values from; `U` says
//! which are unchanged, `OP` what the row does, `S` its place in the batch, `B` the batch. `T` is for rows that are put back.

use super::super::{
    encode::{Refused, RowEncoder},
    load::{columns_and_values, copy_sql},
    own::Own,
    quote::ident,
};
use crate::{
    destination::{Cell, RowChange},
    table::TableSchema,
};

/// The row reads so.
const UPSERT: u8 = b'U';
/// It was written and deleted.
const BURY: u8 = b'X';
/// The row with this key is gone.
const DELETE: u8 = b'D';
/// The row reads so, with what is unchanged from that with the old key.
const REKEY: u8 = b'R';
/// One more row like this.
const ADD: u8 = b'A';
/// One row less like this.
const REMOVE: u8 = b'-';
/// Of rows that are put back: it stays.
const KEEP: u8 = b'=';

/// A table's names as the statements use them, quoted.
#[derive(Debug)]
pub(super) struct Names {
    table: String,
    /// The temporary table.
    stage: String,
    /// Names and types.
    columns: Vec<(String, String)>,
    /// Indexes into `columns`.
    key: Vec<usize>,
    own: Own,
}

/// A batch's changes of one table.
#[derive(Default)]
pub(super) struct Batch {
    /// Lines of CSV.
    pub(super) rows: Vec<u8>,
    /// How many.
    pub(super) count: u64,
    /// By place, whether some row leaves the column as it is.
    unchanged: Vec<bool>,
    rekeys: bool,
    adds: bool,
    removes: bool,
}

impl Batch {
    /// Adds a change.
    pub(super) fn add(&mut self, encoder: &RowEncoder, names: &Names, change: &RowChange) -> Result<(), Refused> {
        self.unchanged.resize(names.columns.len(), false);
        match change {
            RowChange::Upsert { row, deleted } => self.row(encoder, names, row, None, if *deleted { BURY } else { UPSERT }),
            RowChange::Delete { key } => self.row(encoder, names, &names.only_key(key), None, DELETE),
            RowChange::Rekey { old_key, row } => {
                self.rekeys = true;
                self.row(encoder, names, row, Some(old_key), REKEY)?;
                self.row(encoder, names, &names.only_key(old_key), None, DELETE)
            }
            RowChange::Add { row } => {
                self.adds = true;
                self.row(encoder, names, row, None, ADD)
            }
            RowChange::Remove { row } => {
                self.removes = true;
                self.row(encoder, names, row, None, REMOVE)
            }
        }
    }

    fn row(&mut self, encoder: &RowEncoder, names: &Names, row: &[Cell], base: Option<&[Cell]>, op: u8) -> Result<(), Refused> {
        let start = self.rows.len();
        let written = self.fields(encoder, names, row, base, op);
        if written.is_err() {
            self.rows.truncate(start);
        }
        written
    }

    fn fields(&mut self, encoder: &RowEncoder, names: &Names, row: &[Cell], base: Option<&[Cell]>, op: u8) -> Result<(), Refused> {
        encoder.cells(row, &mut self.rows)?;
        for place in &names.key {
            let cell = base.and_then(|base| base.get(*place)).unwrap_or(&Cell::Null);
            encoder.cell(*place, cell, &mut self.rows)?;
        }
        let matters = matches!(op, UPSERT | BURY | REKEY);
        for (place, cell) in row.iter().enumerate() {
            let unchanged = matters && *cell == Cell::Unchanged;
            self.rows.push(if unchanged { b'u' } else { b'.' });
            if let Some(any) = self.unchanged.get_mut(place).filter(|_| unchanged) {
                *any = true;
            }
        }
        self.rows.extend_from_slice(&[b',', op, b',']);
        self.rows.extend_from_slice(itoa::Buffer::new().format(self.count).as_bytes());
        self.rows.extend_from_slice(b",\n");
        self.count += 1;
        Ok(())
    }
}

impl Names {
    pub(super) fn new(table: &TableSchema, whole: &str, stage: String, own: Own) -> Self {
        Self {
            table: whole.into(),
            stage,
            columns: table.copied().map(|c| (ident(&c.destination), c.destination_type.clone())).collect(),
            key: table.copied_key(),
            own,
        }
    }

    fn only_key(&self, key: &[Cell]) -> Vec<Cell> {
        let cell = |place| if self.key.contains(&place) { key.get(place).cloned().unwrap_or(Cell::Null) } else { Cell::Null };
        (0..self.columns.len()).map(cell).collect()
    }

    fn each(&self, value: impl Fn(usize, &str) -> String) -> String {
        self.columns.iter().enumerate().map(|(place, (name, _))| value(place, name)).collect::<Vec<_>>().join(", ")
    }

    /// The temporary table.
    pub(super) fn create_stage(&self) -> String {
        let columns = self.columns.iter().enumerate().map(|(i, (_, type_))| format!("\"C{i}\" {type_}"));
        let keys = self.key.iter().enumerate().filter_map(|(i, k)| Some(format!("\"K{i}\" {}", self.columns.get(*k)?.1)));
        let own =
            ["\"U\" VARCHAR", "\"OP\" VARCHAR", "\"S\" NUMBER(38,0)", "\"B\" NUMBER(38,0)", "\"T\" TIMESTAMP_NTZ(6)"].map(str::to_string);
        format!("CREATE TEMPORARY TABLE IF NOT EXISTS {} ({})", self.stage, columns.chain(keys).chain(own).collect::<Vec<_>>().join(", "))
    }

    pub(super) fn clear_stage(&self) -> String {
        format!("TRUNCATE TABLE {}", self.stage)
    }

    /// Brings a file of a path in the stage into the temporary table.
    pub(super) fn stage_rows(&self, table: &TableSchema, from: &str, file: String, batch: u64) -> String {
        let (_, mut values) = columns_and_values(table, &[]);
        let mut columns: Vec<String> = (0..values.len()).map(|i| format!("\"C{i}\"")).collect();
        columns.extend((0..self.key.len()).map(|i| format!("\"K{i}\"")));
        columns.extend(["\"U\"", "\"OP\"", "\"S\""].map(str::to_string));
        values.extend((values.len()..columns.len()).map(|place| format!("${}", place + 1)));
        columns.push("\"B\"".into());
        values.push(batch.to_string());
        copy_sql(&self.stage, &columns, &values, from, &[file], false)
    }

    /// What brings a set of staged rows into the table, in this order.
    pub(super) fn statements(&self, batch: &Batch, number: u64) -> Vec<String> {
        if !self.key.is_empty() {
            return vec![self.merge(batch, number)];
        }
        let mut all = Vec::new();
        if batch.adds {
            // Before any is removed: it may be one of these.
            all.push(self.add(number));
        }
        if batch.removes {
            all.extend(self.remove(number));
        }
        all
    }

    fn merge(&self, batch: &Batch, number: u64) -> String {
        let partial = |place: usize| batch.unchanged.get(place).copied().unwrap_or(false);
        let is_unchanged = |place: usize| format!("SUBSTR(s.\"U\", {}, 1) = 'u'", place + 1);
        let value = |place: usize, name: &str| match batch.rekeys && partial(place) {
            true => format!("IFF(s.\"OP\" = 'R' AND {}, x.{name}, s.\"C{place}\") AS \"C{place}\"", is_unchanged(place)),
            false => format!("s.\"C{place}\""),
        };
        let (join, found) = match (batch.rekeys, self.key.first()) {
            (true, Some(first)) => {
                let same: Vec<String> =
                    self.key.iter().enumerate().map(|(i, k)| format!("x.{} = s.\"K{i}\"", self.columns[*k].0)).collect();
                let join = format!(" LEFT JOIN {} AS x ON s.\"OP\" = 'R' AND {}", self.table, same.join(" AND "));
                (join, format!("x.{} IS NOT NULL", self.columns[*first].0))
            }
            _ => (String::new(), "FALSE".into()),
        };
        let keys: Vec<String> = self.key.iter().map(|k| format!("s.\"C{k}\"")).collect();
        // Two texts can be equal keys (1.0 and 1.00), but only one of them is live. Of those that are gone the last one counts.
        let rows = format!(
            "SELECT {}, s.\"U\", s.\"OP\", {found} AS \"F\" FROM {} AS s{join} WHERE s.\"B\" = {number} \
             QUALIFY ROW_NUMBER() OVER (PARTITION BY {} ORDER BY IFF(s.\"OP\" IN ('U', 'R'), 0, 1), s.\"S\" DESC) = 1",
            self.each(value),
            self.stage,
            keys.join(", ")
        );
        let same: Vec<String> = self.key.iter().map(|k| format!("t.{} = s.\"C{k}\"", self.columns[*k].0)).collect();
        let set = |place: usize, name: &str| match partial(place) {
            true => format!("{name} = IFF(s.\"OP\" <> 'R' AND {}, t.{name}, s.\"C{place}\")", is_unchanged(place)),
            false => format!("{name} = s.\"C{place}\""),
        };
        let (gone, buried) = match self.own.flag {
            Some(_) => (
                format!("WHEN MATCHED AND s.\"OP\" = 'D' THEN UPDATE SET {}", assignments(&self.own.values("TRUE", "SYSDATE()"))),
                "'U', 'R', 'X'",
            ),
            None => ("WHEN MATCHED AND s.\"OP\" IN ('D', 'X') THEN DELETE".into(), "'U', 'R'"),
        };
        let own = self.own.values("s.\"OP\" = 'X'", "SYSDATE()");
        let all_set: Vec<String> = std::iter::once(self.each(set)).chain((!own.is_empty()).then(|| assignments(&own))).collect();
        let (own_names, own_values): (Vec<String>, Vec<String>) = own.into_iter().unzip();
        let names = [vec![self.each(|_, name| name.into())], own_names].concat().join(", ");
        let values = [vec![self.each(|place, _| format!("s.\"C{place}\""))], own_values].concat().join(", ");
        format!(
            "MERGE INTO {} AS t USING ({rows}) AS s ON {} {gone} WHEN MATCHED THEN UPDATE SET {} \
             WHEN NOT MATCHED AND s.\"OP\" IN ({buried}) AND (s.\"F\" OR NOT CONTAINS(s.\"U\", 'u')) THEN INSERT ({names}) VALUES ({values})",
            self.table,
            same.join(" AND "),
            all_set.join(", ")
        )
    }

    fn add(&self, number: u64) -> String {
        let (names, values): (Vec<String>, Vec<String>) = self.own.values("FALSE", "SYSDATE()").into_iter().unzip();
        format!(
            "INSERT INTO {} ({}) SELECT {} FROM {} WHERE \"B\" = {number} AND \"OP\" = '{}'",
            self.table,
            [vec![self.each(|_, name| name.into())], names].concat().join(", "),
            [vec![self.each(|place, _| format!("\"C{place}\""))], values].concat().join(", "),
            self.stage,
            char::from(ADD)
        )
    }

    /// Takes away one row for each staged one that is like it. Rows have nothing that tells equal ones apart: all that are alike are numbered aside, deleted, and
    /// those that stay are put back.
    fn remove(&self, number: u64) -> [String; 3] {
        let staged = self.each(|place, _| format!("\"C{place}\""));
        let live = |alias: &str| self.own.flag.as_ref().map_or("TRUE".into(), |flag| format!("NOT {alias}{}", ident(flag)));
        let time = self.own.synced_at.as_ref().map_or("NULL".into(), |name| ident(name));
        let wanted = format!(
            "SELECT {staged}, COUNT(*) AS \"N\" FROM {} WHERE \"B\" = {number} AND \"OP\" = '{}' GROUP BY {staged}",
            self.stage,
            char::from(REMOVE)
        );
        let present = format!(
            "SELECT {}, {time} AS \"T\", ROW_NUMBER() OVER (PARTITION BY {} ORDER BY {time}) AS \"NTH\" FROM {} WHERE {}",
            self.each(|place, name| format!("{name} AS \"C{place}\"")),
            self.each(|_, name| name.into()),
            self.table,
            live("")
        );
        let same: Vec<String> = (0..self.columns.len()).map(|i| format!("EQUAL_NULL(p.\"C{i}\", w.\"C{i}\")")).collect();
        let aside = format!(
            "INSERT INTO {} ({staged}, \"OP\", \"B\", \"T\") SELECT {}, IFF(p.\"NTH\" <= w.\"N\", '{}', '{}'), -{number}, p.\"T\" FROM ({present}) AS p JOIN ({wanted}) AS w ON {}",
            self.stage,
            self.each(|place, _| format!("p.\"C{place}\"")),
            char::from(REMOVE),
            char::from(KEEP),
            same.join(" AND ")
        );
        let alike: Vec<String> =
            self.columns.iter().enumerate().map(|(i, (name, _))| format!("EQUAL_NULL(t.{name}, w.\"C{i}\")")).collect();
        let delete = format!(
            "DELETE FROM {} AS t USING (SELECT DISTINCT {staged} FROM {} WHERE \"B\" = -{number}) AS w WHERE {} AND {}",
            self.table,
            self.stage,
            live("t."),
            alike.join(" AND ")
        );
        let gone = format!("\"OP\" = '{}'", char::from(REMOVE));
        let (names, values): (Vec<String>, Vec<String>) =
            self.own.values(&gone, &format!("IFF({gone}, SYSDATE(), \"T\")")).into_iter().unzip();
        let back = format!(
            "INSERT INTO {} ({}) SELECT {} FROM {} WHERE \"B\" = -{number}{}",
            self.table,
            [vec![self.each(|_, name| name.into())], names].concat().join(", "),
            [vec![staged], values].concat().join(", "),
            self.stage,
            if self.own.flag.is_some() { String::new() } else { format!(" AND \"OP\" = '{}'", char::from(KEEP)) }
        );
        [aside, delete, back]
    }

    /// All rows. Not TRUNCATE, which is DDL.
    pub(super) fn empty(&self) -> String {
        match &self.own.flag {
            None => format!("DELETE FROM {}", self.table),
            Some(flag) => {
                format!("UPDATE {} SET {} WHERE NOT {}", self.table, assignments(&self.own.values("TRUE", "SYSDATE()")), ident(flag))
            }
        }
    }
}

fn assignments(values: &[(String, String)]) -> String {
    values.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", ")
}

/// The text of a field.
pub(super) fn unquoted(field: &[u8]) -> String {
    let text = String::from_utf8_lossy(field);
    let text = text.strip_suffix(',').unwrap_or(&text);
    match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inside) => inside.replace("\"\"", "\""),
        None => text.to_string(),
    }
}
