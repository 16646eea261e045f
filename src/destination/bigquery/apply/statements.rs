//! The rows of a batch and the statements that bring them into a table. No I/O.
//!
//! The rows are staged in a table of their own: `c0, c1, …` are the copied columns, `b0, b1, …` the key that a row had before, `u` says which columns are unchanged,
//! `d` whether the row is deleted, `r` whether it has changed its key.

use serde_json::{Value, json};

use super::super::{
    BigQuery,
    encode::{Own as Constant, Refused, RowEncoder, Rules},
    error::permanent,
    own::Own,
    quote::ident,
    types::Type,
};
use crate::{
    destination::{Cell, Error, RowChange},
    table::{Column, TableSchema},
};

/// The column that says which batch a row belongs to.
pub(super) const BATCH: &str = "batch";

/// A table's names as the statements use them.
pub(super) struct Names {
    schema: TableSchema,
    /// The table, quoted.
    table: String,
    /// The copied columns, quoted.
    columns: Vec<String>,
    /// Places of the key's columns.
    key: Vec<usize>,
    own: Own,
    /// What is added to a condition where the table wants to hear of its partitions.
    every: String,
    rules: Rules,
    rows: RowEncoder,
}

impl Names {
    pub(super) fn new(at: &BigQuery, table: &TableSchema, own: Own, every: String) -> Result<Self, Error> {
        let rules = Rules::from(&at.options(table));
        let key = table.copied_key();
        let rows = encoder(table, &key, rules, &[]).map_err(|why| unsupported(table, &why))?;
        Ok(Self {
            schema: table.clone(),
            table: at.quoted(&table.destination),
            columns: table.copied().map(|c| ident(&c.destination)).collect(),
            key,
            own,
            every,
            rules,
            rows,
        })
    }

    pub(super) fn is_of(&self, table: &TableSchema) -> bool {
        self.schema == *table
    }

    /// How rows are staged, with the batch's number in each.
    pub(super) fn encoder(&self, batch: Constant) -> Result<RowEncoder, Error> {
        encoder(&self.schema, &self.key, self.rules, &[(BATCH, batch)]).map_err(|why| unsupported(&self.schema, &why))
    }

    /// Tells stages of other columns apart.
    pub(super) fn stage_definition(&self) -> String {
        self.stage_fields().to_string()
    }

    /// The fields of the table in which rows are staged.
    pub(super) fn stage_fields(&self) -> Value {
        let field = |(name, type_): (String, Type)| {
            let (mode, type_) = match type_ {
                Type::Array(element) => ("REPEATED", *element),
                other => ("NULLABLE", other),
            };
            json!({ "name": name, "type": api_type(&type_), "mode": mode })
        };
        let mut fields: Vec<Value> = stage_columns(&self.schema, &self.key)
            .into_iter()
            .filter_map(|(name, column)| Some(field((name, Type::parse(&column.destination_type)?))))
            .collect();
        fields.push(field((BATCH.into(), Type::Int64)));
        fields.into()
    }

    /// The rows that stage a batch.
    pub(super) fn rows(&self, changes: &[RowChange]) -> Result<Vec<Vec<u8>>, Refused> {
        let mut rows = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                RowChange::Upsert { row, deleted } => rows.push(self.row(row, None, *deleted)?),
                RowChange::Add { row } => rows.push(self.row(row, None, false)?),
                RowChange::Remove { row } => rows.push(self.row(row, None, true)?),
                RowChange::Delete { key } => rows.push(self.gone(key)?),
                RowChange::Rekey { old_key, row } => {
                    rows.push(self.row(row, Some(old_key), false)?);
                    rows.push(self.gone(old_key)?);
                }
            }
        }
        Ok(rows)
    }

    /// The row with this key is gone: nothing else is known of it, be it that there is nothing else.
    fn gone(&self, key: &[Cell]) -> Result<Vec<u8>, Refused> {
        let cell = |place| if self.key.contains(&place) { key.get(place).cloned().unwrap_or(Cell::Null) } else { Cell::Unchanged };
        let row: Vec<Cell> = (0..self.columns.len()).map(cell).collect();
        self.row_of(&row, None, true, true)
    }

    fn row(&self, row: &[Cell], base: Option<&[Cell]>, deleted: bool) -> Result<Vec<u8>, Refused> {
        self.row_of(row, base, deleted, false)
    }

    fn row_of(&self, row: &[Cell], base: Option<&[Cell]>, deleted: bool, is_delete: bool) -> Result<Vec<u8>, Refused> {
        let mut out = Vec::with_capacity(64);
        for (place, cell) in row.iter().enumerate() {
            self.rows.cell(place, cell, &mut out)?;
        }
        let mut place = self.columns.len();
        for key in &self.key {
            if let Some(base) = base {
                let cell = base.get(*key).unwrap_or(&Cell::Null);
                self.rows.cell(place, cell, &mut out).map_err(|refused| Refused { column: *key, ..refused })?;
            }
            place += 1;
        }
        let text = |text: String| Cell::Text(text.into());
        if row.contains(&Cell::Unchanged) || is_delete {
            let unchanged = row.iter().map(|cell| if *cell == Cell::Unchanged { 'u' } else { '.' });
            self.rows.cell(place, &text(unchanged.chain(is_delete.then_some('d')).collect()), &mut out)?;
        }
        for (offset, flag) in [(1, deleted), (2, base.is_some())] {
            self.rows.cell(place + offset, &text(if flag { "t" } else { "f" }.into()), &mut out)?;
        }
        Ok(out)
    }

    /// A value that cannot be written, told without it.
    pub(super) fn refused(&self, refused: &Refused, doing: &str) -> Error {
        let column = self.schema.copied().nth(refused.column).map_or("", |c| c.destination.as_str());
        permanent("ValueRefused", format!("{doing}: a value of column {column:?} cannot be written: {}", refused.why))
    }

    /// Between which values of the key's first column all changes are, if that is a number: blocks of the table outside are not read.
    pub(super) fn range(&self, changes: &[RowChange]) -> Option<String> {
        let place = *self.key.first()?;
        let column = self.schema.copied().nth(place)?;
        if Type::parse(&column.destination_type) != Some(Type::Int64) {
            return None;
        }
        let mut range: Option<(i64, i64)> = None;
        let mut widen = |row: &[Cell]| {
            let Some(Cell::Text(text)) = row.get(place) else { return None };
            let number: i64 = std::str::from_utf8(text).ok()?.parse().ok()?;
            range = Some(range.map_or((number, number), |(low, high)| (low.min(number), high.max(number))));
            Some(())
        };
        for change in changes {
            match change {
                RowChange::Upsert { row, .. } | RowChange::Add { row } | RowChange::Remove { row } => widen(row)?,
                RowChange::Delete { key } => widen(key)?,
                RowChange::Rekey { old_key, row } => widen(old_key).and_then(|()| widen(row))?,
            }
        }
        range.map(|(low, high)| format!(" AND t.{} BETWEEN {low} AND {high}", ident(&column.destination)))
    }

    fn each(&self, one: impl Fn(usize, &str) -> String) -> Vec<String> {
        self.columns.iter().enumerate().map(|(place, name)| one(place, name)).collect()
    }

    /// The statements that apply what was staged.
    pub(super) fn statements(&self, staged: &str, range: Option<&str>) -> Vec<String> {
        if self.key.is_empty() { self.keyless(staged) } else { vec![self.merge(staged, range.unwrap_or_default())] }
    }

    /// The own columns, quoted, with the flag's value.
    fn own(&self, flag: &str) -> Vec<(String, String)> {
        let flag = self.own.flag.iter().map(|name| (ident(name), flag.to_string()));
        flag.chain(self.own.synced_at.iter().map(|name| (ident(name), "CURRENT_TIMESTAMP()".into()))).collect()
    }

    fn merge(&self, staged: &str, range: &str) -> String {
        let on = |left: &str, right: char| {
            self.key
                .iter()
                .enumerate()
                .filter_map(|(place, k)| {
                    let other = if right == 'c' { *k } else { place };
                    Some(format!("{left}.{} = s.{right}{other}", self.columns.get(*k)?))
                })
                .collect::<Vec<_>>()
                .join(" AND ")
        };
        let unchanged = |place: usize| format!("SUBSTR(s.u, {}, 1) = 'u'", place + 1);
        // Rows that have changed their key take what they leave unchanged from the row that had the old one.
        let values = self.each(|place, name| {
            format!("IF(s.r AND x.{0} IS NOT NULL AND {1}, x.{name}, s.c{place}) AS c{place}", self.first_key(), unchanged(place))
        });
        let source = format!(
            "SELECT {}, IF(s.r AND x.{} IS NOT NULL, NULL, s.u) AS u, s.d FROM {staged} AS s LEFT JOIN {} AS x ON s.r AND {}{}",
            values.join(", "),
            self.first_key(),
            self.table,
            on("x", 'b'),
            self.every.replace("(t.", "(x.").replace(" t.", " x.")
        );
        let set = |own: Vec<(String, String)>| own.into_iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>();
        let mut all = self.each(|place, name| format!("{name} = IF({}, t.{name}, s.c{place})", unchanged(place)));
        all.extend(set(self.own("s.d")));
        let deleted = match &self.own.flag {
            // The row stays as it was.
            Some(_) => format!("WHEN MATCHED AND s.d AND s.u IS NOT NULL THEN UPDATE SET {} ", set(self.own("TRUE")).join(", ")),
            None => "WHEN MATCHED AND s.d THEN DELETE ".into(),
        };
        let inserted = if self.own.flag.is_some() { "s.u IS NULL" } else { "s.u IS NULL AND NOT s.d" };
        let own = self.own("s.d");
        let names = self.columns.iter().cloned().chain(own.iter().map(|(name, _)| name.clone())).collect::<Vec<_>>();
        let values =
            self.each(|place, _| format!("s.c{place}")).into_iter().chain(own.into_iter().map(|(_, value)| value)).collect::<Vec<_>>();
        format!(
            "MERGE {} AS t USING ({source}) AS s ON {}{range}{} {deleted}WHEN MATCHED THEN UPDATE SET {} WHEN NOT MATCHED AND {inserted} THEN INSERT ({}) VALUES ({})",
            self.table,
            on("t", 'c'),
            self.every,
            all.join(", "),
            names.join(", "),
            values.join(", ")
        )
    }

    fn first_key(&self) -> &str {
        self.key.first().and_then(|k| self.columns.get(*k)).map_or("", String::as_str)
    }

    /// Rows without a key: of equal ones, as many are taken away as were deleted. All equal ones are, and what is left of them comes back.
    fn keyless(&self, staged: &str) -> Vec<String> {
        let own = self.own("FALSE");
        let names: Vec<&str> = self.columns.iter().map(String::as_str).chain(own.iter().map(|(name, _)| name.as_str())).collect();
        let added: Vec<String> =
            self.each(|place, _| format!("s.c{place}")).into_iter().chain(own.iter().map(|(_, value)| value.clone())).collect();
        let print_of = |row: &str| {
            let fields =
                self.each(|place, name| if row == "s" { format!("s.c{place} AS c{place}") } else { format!("t.{name} AS c{place}") });
            format!("TO_JSON_STRING(STRUCT({}))", fields.join(", "))
        };
        let living = self.own.flag.as_ref().map_or("TRUE".into(), |name| format!("NOT COALESCE(t.{}, FALSE)", ident(name)));
        let removed = format!("SELECT {} AS print, COUNT(*) AS n FROM {staged} AS s WHERE s.d GROUP BY print", print_of("s"));
        let gone = "rank <= n";
        let mut kept = self.columns.clone();
        if self.own.flag.is_some() {
            kept.push(gone.into());
        }
        kept.extend(self.own.synced_at.iter().map(|name| format!("IF({gone}, CURRENT_TIMESTAMP(), {})", ident(name))));
        // With soft deletes what is gone comes back too, flagged.
        let back = if self.own.flag.is_some() { "TRUE".to_string() } else { format!("NOT ({gone})") };
        let every = &self.every;
        vec![
            format!("INSERT INTO {} ({}) SELECT {} FROM {staged} AS s WHERE NOT s.d", self.table, names.join(", "), added.join(", ")),
            format!(
                "CREATE OR REPLACE TEMP TABLE equal AS SELECT t.*, r.print, r.n, ROW_NUMBER() OVER (PARTITION BY r.print) AS rank FROM {} AS t JOIN ({removed}) AS r ON {} = r.print WHERE {living}{every}",
                self.table,
                print_of("t")
            ),
            format!("DELETE FROM {} AS t WHERE {living}{every} AND {} IN (SELECT print FROM equal)", self.table, print_of("t")),
            format!("INSERT INTO {} ({}) SELECT {} FROM equal WHERE {back}", self.table, names.join(", "), kept.join(", ")),
        ]
    }

    /// Flags or deletes every row.
    pub(super) fn empty(&self) -> String {
        match &self.own.flag {
            Some(flag) => {
                let set: Vec<String> = self.own("TRUE").into_iter().map(|(name, value)| format!("{name} = {value}")).collect();
                format!("UPDATE {} AS t SET {} WHERE NOT COALESCE(t.{}, FALSE){}", self.table, set.join(", "), ident(flag), self.every)
            }
            None => format!("DELETE FROM {} AS t WHERE TRUE{}", self.table, self.every),
        }
    }
}

fn unsupported(table: &TableSchema, why: &str) -> Error {
    permanent("TypeUnsupported", format!("applying changes to {}: {why}", table.destination))
}

/// The columns of a stage but for the batch, by their names there.
fn stage_columns(table: &TableSchema, key: &[usize]) -> Vec<(String, Column)> {
    let copied: Vec<&Column> = table.copied().collect();
    let flag = |type_: &str| Column {
        source: String::new(),
        destination: String::new(),
        source_type: "text".into(),
        base_type: None,
        source_type_oid: 25,
        destination_type: type_.into(),
        not_null: false,
        generated: None,
        binary: false,
        as_text: true,
    };
    let mut columns: Vec<(String, Column)> = copied.iter().enumerate().map(|(place, c)| (format!("c{place}"), (*c).clone())).collect();
    columns.extend(key.iter().enumerate().filter_map(|(place, k)| Some((format!("b{place}"), (*copied.get(*k)?).clone()))));
    columns.extend([("u", "STRING"), ("d", "BOOL"), ("r", "BOOL")].map(|(name, type_)| (name.to_string(), flag(type_))));
    columns
}

fn encoder(table: &TableSchema, key: &[usize], rules: Rules, own: &[(&str, Constant)]) -> Result<RowEncoder, String> {
    let columns = stage_columns(table, key);
    let named: Vec<(&str, &Column)> = columns.iter().map(|(name, column)| (name.as_str(), column)).collect();
    RowEncoder::named(&named, key.to_vec(), rules, own)
}

/// A type as the REST API names it.
fn api_type(type_: &Type) -> &'static str {
    match type_ {
        Type::Bool => "BOOLEAN",
        Type::Int64 => "INTEGER",
        Type::Float64 => "FLOAT",
        Type::Numeric(..) => "NUMERIC",
        Type::BigNumeric(..) => "BIGNUMERIC",
        Type::String => "STRING",
        Type::Bytes => "BYTES",
        Type::Date => "DATE",
        Type::Datetime => "DATETIME",
        Type::Time => "TIME",
        Type::Timestamp => "TIMESTAMP",
        Type::Json => "JSON",
        Type::Array(element) => api_type(element),
    }
}
