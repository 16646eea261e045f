//! The statements that bring staged changes into a table. No I/O.
//!
//! The stage holds a batch's changes of one table: `op` says what a row is for, `c0, c1, …` are the copied columns, `k0, k1, …` the key that a row had.

use crate::{postgres::ident, table::TableSchema};

/// The whole row is written, live.
pub(super) const UPSERT: u32 = 0;
/// The whole row is written, flagged as deleted.
pub(super) const BURY: u32 = 1;
/// The row with this key, or a row like this one, is deleted.
pub(super) const DELETE: u32 = 2;
/// From here on: changes that do not bring the whole row, one number for each [`Partial`].
pub(super) const PARTIAL: u32 = 3;

/// Changes that leave the same columns as they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Partial {
    /// For each copied column whether it is unchanged.
    pub unchanged: Vec<bool>,
    /// What is done with the row.
    pub kind: PartialKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PartialKind {
    Update { deleted: bool },
    Rekey,
}

/// A table's names as the statements use them, quoted.
#[derive(Debug)]
pub(super) struct Names {
    pub table: String,
    pub stage: String,
    columns: Vec<String>,
    /// Indexes into `columns`.
    pub key: Vec<usize>,
    flag: Option<String>,
    synced_at: Option<String>,
}

impl Names {
    /// `target` is the table, quoted. `flag` and `synced_at` are the destination's own columns, unquoted and empty for none.
    pub fn new(target: String, table: &TableSchema, stage: &str, flag: &str, synced_at: &str) -> Self {
        let own = |name: &str| (!name.is_empty()).then(|| ident(name));
        Self {
            table: target,
            stage: format!("pg_temp.{}", ident(stage)),
            columns: table.copied().map(|c| ident(&c.destination)).collect(),
            key: table.copied_key(),
            flag: own(flag),
            synced_at: own(synced_at),
        }
    }

    /// Makes the stage. It has no constraints: keys of deleted rows come without their other columns.
    pub fn create_stage(&self) -> String {
        let columns = self.columns.iter().enumerate().map(|(i, c)| format!("t.{c} AS c{i}"));
        let keys = self.key.iter().enumerate().map(|(i, k)| format!("t.{} AS k{i}", self.columns[*k]));
        let all: Vec<_> = std::iter::once("0 AS op".to_string()).chain(columns).chain(keys).collect();
        format!("CREATE TEMP TABLE {} ON COMMIT DELETE ROWS AS SELECT {} FROM {} t WITH NO DATA", self.stage, all.join(", "), self.table)
    }

    pub fn copy(&self) -> String {
        format!("COPY {} FROM STDIN", self.stage)
    }

    /// One row more for each staged one, or the row with its key replaced.
    pub fn upsert(&self, op: u32) -> String {
        let staged: Vec<_> = (0..self.columns.len()).map(|i| format!("s.c{i}")).collect();
        let (distinct, order) = if op == BURY {
            // Two texts can be equal keys (1.0 and 1.00), but only one of them is live. Of those that are gone the last one counts.
            let keys: Vec<_> = self.key.iter().map(|k| format!("s.c{k}")).collect();
            (format!("DISTINCT ON ({}) ", keys.join(", ")), format!(" ORDER BY {}, s.ctid DESC", keys.join(", ")))
        } else {
            Default::default()
        };
        let rows =
            format!("SELECT {distinct}{}{} FROM {} s WHERE s.op = {op}{order}", staged.join(", "), self.own_values(op == BURY), self.stage);
        self.insert(&rows)
    }

    /// `INSERT … ON CONFLICT` of rows with all columns, the destination's own at the end.
    fn insert(&self, rows: &str) -> String {
        let own: Vec<_> = self.flag.iter().chain(&self.synced_at).collect();
        let all: Vec<_> = self.columns.iter().chain(own).cloned().collect();
        // A key whose text changed but not its value (1.0 to 1.00) is written too.
        let set: Vec<_> = all.iter().map(|c| format!("{c} = excluded.{c}")).collect();
        let keys: Vec<_> = self.key.iter().map(|k| self.columns[*k].clone()).collect();
        let conflict =
            if keys.is_empty() { String::new() } else { format!(" ON CONFLICT ({}) DO UPDATE SET {}", keys.join(", "), set.join(", ")) };
        format!("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE {rows}{conflict}", self.table, all.join(", "))
    }

    /// Deletes or flags the rows with the staged keys.
    pub fn delete(&self) -> String {
        let matching: Vec<_> = self.key.iter().map(|k| format!("t.{} = s.c{k}", self.columns[*k])).collect();
        self.remove(&format!("{} s", self.stage), &format!("s.op = {DELETE} AND {}", matching.join(" AND ")))
    }

    /// Deletes or flags one row for each staged one that is like it. Whole rows are compared as text: that finds NULLs, works for types without
    /// equality, and can be hashed.
    pub fn delete_alike(&self) -> String {
        let staged: Vec<_> = (0..self.columns.len()).map(|i| format!("s.c{i}")).collect();
        let present: Vec<_> = self.columns.iter().map(|c| format!("x.{c}")).collect();
        let live = self.flag.as_ref().map(|flag| format!(" WHERE x.{flag} IS NOT TRUE")).unwrap_or_default();
        let found = format!(
            "(SELECT x.ctid AS id, w.n, row_number() OVER (PARTITION BY w.r) AS nth FROM {table} x JOIN \
             (SELECT ROW({staged})::text AS r, count(*) AS n FROM {stage} s WHERE s.op = {DELETE} GROUP BY 1) w ON ROW({present})::text = w.r{live}) f",
            table = self.table,
            stage = self.stage,
            staged = staged.join(", "),
            present = present.join(", "),
        );
        format!(
            "SET LOCAL enable_hashjoin = on; SET LOCAL enable_seqscan = on; {}; SET LOCAL enable_hashjoin = off; SET LOCAL enable_seqscan = off",
            self.remove(&found, "t.ctid = f.id AND f.nth <= f.n")
        )
    }

    /// Updates the changed columns; or writes rows under their new key, with the other values of the old one, which is then removed.
    pub fn partial(&self, op: u32, partial: &Partial) -> Vec<String> {
        let columns = || self.columns.iter().enumerate().zip(&partial.unchanged);
        match partial.kind {
            PartialKind::Update { deleted } => {
                let changed = columns().filter(|(_, unchanged)| !**unchanged).map(|((i, c), _)| format!("{c} = s.c{i}"));
                let set: Vec<_> = changed.chain(self.own_assignments(deleted)).collect();
                let matching: Vec<_> = self.key.iter().map(|k| format!("t.{} = s.c{k}", self.columns[*k])).collect();
                vec![format!(
                    "UPDATE {} t SET {} FROM {} s WHERE s.op = {op} AND {}",
                    self.table,
                    set.join(", "),
                    self.stage,
                    matching.join(" AND ")
                )]
            }
            PartialKind::Rekey => {
                let values: Vec<_> =
                    columns().map(|((i, c), unchanged)| if *unchanged { format!("x.{c}") } else { format!("s.c{i}") }).collect();
                let of_old = |alias: &str| {
                    let parts = self.key.iter().enumerate().map(|(i, k)| format!("{alias}.{} = s.k{i}", self.columns[*k]));
                    parts.collect::<Vec<_>>().join(" AND ")
                };
                let rows = format!(
                    "SELECT {}{} FROM {} s JOIN {} x ON {} WHERE s.op = {op}",
                    values.join(", "),
                    self.own_values(false),
                    self.stage,
                    self.table,
                    of_old("x")
                );
                let same: Vec<_> = self.key.iter().enumerate().map(|(i, k)| format!("s.c{k} = s.k{i}")).collect();
                let other = format!("s.op = {op} AND {} AND NOT ({})", of_old("t"), same.join(" AND "));
                vec![self.insert(&rows), self.remove(&format!("{} s", self.stage), &other)]
            }
        }
    }

    /// All rows. Not TRUNCATE, which would keep readers out until the batch is committed and show older snapshots an empty table.
    pub fn empty(&self) -> String {
        match &self.flag {
            None => format!("DELETE FROM {}", self.table),
            Some(flag) => {
                let set: Vec<_> = self.own_assignments(true).collect();
                format!("UPDATE {} SET {} WHERE {flag} IS NOT TRUE", self.table, set.join(", "))
            }
        }
    }

    fn remove(&self, using: &str, condition: &str) -> String {
        match &self.flag {
            None => format!("DELETE FROM {} t USING {using} WHERE {condition}", self.table),
            Some(_) => {
                let set: Vec<_> = self.own_assignments(true).collect();
                format!("UPDATE {} t SET {} FROM {using} WHERE {condition}", self.table, set.join(", "))
            }
        }
    }

    fn own_values(&self, deleted: bool) -> String {
        let flag = self.flag.as_ref().map(|_| format!(", {deleted}")).unwrap_or_default();
        let synced_at = self.synced_at.as_ref().map(|_| ", now()").unwrap_or_default();
        format!("{flag}{synced_at}")
    }

    fn own_assignments(&self, deleted: bool) -> impl Iterator<Item = String> {
        let flag = self.flag.as_ref().map(|c| format!("{c} = {deleted}"));
        let synced_at = self.synced_at.as_ref().map(|c| format!("{c} = now()"));
        flag.into_iter().chain(synced_at)
    }

    /// How many columns are copied.
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    pub fn soft(&self) -> bool {
        self.flag.is_some()
    }
}
