//! Carrying rows that the source no longer has from the live table into the shadow.
//!
//! One INSERT a table, which takes what the shadow lacks: done again, it finds nothing. What was carried is then counted in the shadow, so that a repeated call
//! counts all.

use super::{
    BigQuery,
    error::{meaning, permanent},
    ledger::shadow_of,
    live::{self, Attribute, Live},
    own::{self, Own},
    quote::{ident, list, literal},
    types::Type,
};
use crate::destination::{
    Error, carry_cast,
    fact::{Begun, Carried, Fact, Facts, Sealed, Swapped, Table},
    gone,
};

/// See [`Destination::carry`](crate::destination::Destination::carry).
pub(super) async fn carry(at: &BigQuery) -> Result<(), Error> {
    let facts = at.facts(&[Begun::KIND, Table::KIND, Sealed::KIND, Carried::KIND, Swapped::KIND]).await?;
    if facts.get::<Swapped>(0)?.is_some() {
        return Ok(());
    }
    facts.fence(at)?;
    let begun = facts.at::<Begun>(0).ok_or_else(|| gone(&at.brief))?;
    let tables = facts.all::<Table>()?;
    ready(&facts, &tables)?;
    for (number, _, table) in &tables {
        if facts.get::<Carried>(*number)?.is_none() {
            let carried = carry_table(at, table, begun).await?;
            at.fence().await?;
            at.record(&[at.entry(*number, 0, &carried)?]).await?;
        }
    }
    Ok(())
}

fn ready(facts: &Facts, tables: &[(u32, u64, Table)]) -> Result<(), Error> {
    for (number, _, table) in tables {
        if !facts.is_sealed(*number, table.generation)? {
            return Err(Error::Transient(format!("{} is not sealed yet, so nothing can be carried into it", table.schema.destination)));
        }
    }
    Ok(())
}

async fn carry_table(at: &BigQuery, table: &Table, begun: &str) -> Result<Carried, Error> {
    let plan = match plan(at, table, begun).await? {
        Ok(plan) => plan,
        Err(note) => return Ok(Carried { deleted: 0, missing: 0, note }),
    };
    let doing = format!("carrying rows of {}", table.schema.destination);
    misfits(at, table, &plan, &doing).await?;
    let jobs = at.jobs().await?;
    jobs.run(plan.insert()).await.map_err(|e| meaning(&e, &doing))?;
    let rows = jobs.rows(plan.counts()).await.map_err(|e| meaning(&e, &doing))?;
    let number = |place: usize| rows.first().and_then(|row| row.get(place)?.as_ref()?.parse().ok()).unwrap_or(0);
    Ok(Carried { deleted: number(0), missing: number(1), note: None })
}

/// How the rows of one table are carried.
struct Plan {
    live: String,
    shadow: String,
    columns: Vec<Common>,
    /// The key's columns of the shadow.
    key: Vec<String>,
    /// Which rows are wanted.
    wanted: String,
    /// The old flag as a condition.
    flag: String,
    /// The time of a row that is carried.
    time: String,
    own: Own,
}

/// A column that both tables have.
struct Common {
    name: String,
    old: String,
    /// The old value in the new type.
    value: String,
    /// Old and new type, and the cast that gives NULL where a value does not fit, if they differ.
    cast: Option<(String, String, Option<String>)>,
}

/// The plan, or why nothing is carried (no remark if that is no surprise).
async fn plan(at: &BigQuery, table: &Table, begun: &str) -> Result<Result<Plan, Option<String>>, Error> {
    let nothing = |why: &str| Ok(Err(Some(format!("nothing was carried: {why}"))));
    let (schema, carry) = (&table.schema, &at.brief.carry);
    let live = live::find(at, &schema.destination).await?.filter(|live| live.is_ours(at, schema));
    let Some(live) = live.filter(|_| carry.soft_deleted || carry.missing) else { return Ok(Err(None)) };
    let own = Own::of(&at.brief);
    let Some(flag_name) = own.flag.clone() else { return nothing("soft deletes are off") };
    if schema.key().is_empty() {
        return nothing("the table has no key");
    }
    let shadow = shadow_of(at, table);
    let Some(new) = live::find(at, &shadow).await? else { return Err(gone(&at.brief)) };
    let (old, new) = (live.attributes(), new.attributes());
    if find(&old, &flag_name).is_none() {
        return nothing(&format!("the old table has no column {flag_name:?} that flags deleted rows"));
    }
    let key: Vec<String> = own::key(schema).into_iter().map(str::to_string).collect();
    if let Some(column) = key.iter().find(|column| find(&old, column).is_none()) {
        return nothing(&format!("the old table lacks key column {column:?}"));
    }
    let columns: Vec<Common> = new
        .iter()
        .filter(|column| !own.names().any(|own| own.eq_ignore_ascii_case(&column.name)))
        .filter_map(|column| Some(common(find(&old, &column.name)?, column)))
        .collect();
    let flag = format!("COALESCE(o.{}, FALSE)", ident(&flag_name));
    let begun = format!("TIMESTAMP {}", literal(begun));
    let time = match own.synced_at.as_deref().and_then(|name| find(&old, name)) {
        Some(synced) => format!("IF({flag}, o.{}, {begun})", ident(&synced.name)),
        None => begun,
    };
    let wanted = match (carry.soft_deleted, carry.missing) {
        (true, false) => flag.clone(),
        (false, true) => format!("NOT {flag}"),
        _ => "TRUE".into(),
    };
    let wanted = format!("{wanted}{}", every_partition(&live, "o"));
    Ok(Ok(Plan { live: at.quoted(&schema.destination), shadow: at.quoted(&shadow), columns, key, wanted, flag, time, own }))
}

/// A condition that is true of every row and names the partitions, where a table wants each query to.
pub(super) fn every_partition(table: &Live, alias: &str) -> String {
    if table.resource["requirePartitionFilter"] != true {
        return String::new();
    }
    let field = ["timePartitioning", "rangePartitioning"].iter().find_map(|kind| table.resource[kind]["field"].as_str());
    field.map_or(String::new(), |field| format!(" AND ({alias}.{0} IS NULL OR {alias}.{0} IS NOT NULL)", ident(field)))
}

fn find<'a>(columns: &'a [Attribute], name: &str) -> Option<&'a Attribute> {
    columns.iter().find(|a| a.name.eq_ignore_ascii_case(name))
}

fn common(before: &Attribute, column: &Attribute) -> Common {
    let old = format!("o.{}", ident(&before.name));
    if before.type_ == column.type_ {
        return Common { name: column.name.clone(), value: old.clone(), old, cast: None };
    }
    let (value, safe) = match cast(&old, &before.type_, &column.type_) {
        Some((value, safe)) => (value, Some(safe)),
        None => ("NULL".into(), None),
    };
    Common { name: column.name.clone(), value, old, cast: Some((before.type_.clone(), column.type_.clone(), safe)) }
}

/// The old value in the new type, and the same with NULL for what does not fit (BigQuery docs, "Conversion rules"); `None` where there is no such cast.
fn cast(old: &str, was: &str, is: &str) -> Option<(String, String)> {
    let (was, is) = (Type::parse(was)?, Type::parse(is)?);
    let number = |t: &Type| matches!(t, Type::Int64 | Type::Float64 | Type::Numeric(..) | Type::BigNumeric(..));
    let moment = |t: &Type| matches!(t, Type::Date | Type::Datetime | Type::Timestamp);
    if was == is {
        return Some((old.into(), old.into()));
    }
    match (&was, &is) {
        (Type::Json, Type::String) => Some((format!("TO_JSON_STRING({old})"), format!("TO_JSON_STRING({old})"))),
        (Type::String, Type::Json) => Some((format!("PARSE_JSON({old})"), format!("SAFE.PARSE_JSON({old})"))),
        (Type::Array(_), _) | (_, Type::Array(_)) | (Type::Json, _) | (_, Type::Json) => None,
        (Type::String, _) | (_, Type::String) => Some(casts(old, &is)),
        (a, b) if number(a) && number(b) || moment(a) && moment(b) => Some(casts(old, &is)),
        (Type::Bool, Type::Int64) | (Type::Int64, Type::Bool) | (Type::Datetime | Type::Timestamp, Type::Time) => Some(casts(old, &is)),
        _ => None,
    }
}

fn casts(old: &str, is: &Type) -> (String, String) {
    let name = match is {
        Type::Bool => "BOOL",
        Type::Int64 => "INT64",
        Type::Float64 => "FLOAT64",
        Type::Numeric(..) => "NUMERIC",
        Type::BigNumeric(..) => "BIGNUMERIC",
        Type::String | Type::Json | Type::Array(_) => "STRING",
        Type::Bytes => "BYTES",
        Type::Date => "DATE",
        Type::Datetime => "DATETIME",
        Type::Time => "TIME",
        Type::Timestamp => "TIMESTAMP",
    };
    (format!("CAST({old} AS {name})"), format!("SAFE_CAST({old} AS {name})"))
}

impl Plan {
    fn value(&self, name: &str) -> &str {
        self.columns.iter().find(|c| c.name.eq_ignore_ascii_case(name)).map_or("NULL", |c| &c.value)
    }

    /// The old rows' key in its new types, column by column.
    fn same_key(&self) -> String {
        self.key.iter().map(|k| format!("n.{} = {}", ident(k), self.value(k))).collect::<Vec<_>>().join(" AND ")
    }

    /// Of old rows that share a new key, one: a living one first.
    fn one_of_each(&self) -> String {
        let key: Vec<&str> = self.key.iter().map(|k| self.value(k)).collect();
        format!("QUALIFY ROW_NUMBER() OVER (PARTITION BY {} ORDER BY {}) = 1", key.join(", "), self.flag)
    }

    fn insert(&self) -> String {
        let own = self.own.flag.iter().map(|name| (name, "TRUE")).chain(self.own.synced_at.iter().map(|name| (name, self.time.as_str())));
        let (names, values): (Vec<&String>, Vec<&str>) = self.columns.iter().map(|c| (&c.name, c.value.as_str())).chain(own).unzip();
        let absent = self.key.first().map_or(String::new(), |k| format!("n.{} IS NULL", ident(k)));
        let known: Vec<String> = self.key.iter().map(|k| format!("{} IS NOT NULL", self.value(k))).collect();
        format!(
            "INSERT INTO {} ({}) SELECT {} FROM {} AS o LEFT JOIN {} AS n ON {} WHERE {absent} AND {} AND {} {}",
            self.shadow,
            list(names),
            values.join(", "),
            self.live,
            self.shadow,
            self.same_key(),
            known.join(" AND "),
            self.wanted,
            self.one_of_each()
        )
    }

    /// What of the live table is in the shadow because it was carried: rows of the source are not flagged there.
    fn counts(&self) -> String {
        let flag = self.own.flag.as_deref().unwrap_or_default();
        format!(
            "SELECT CAST(COUNTIF(flagged) AS STRING), CAST(COUNTIF(NOT flagged) AS STRING) FROM \
             (SELECT {} AS flagged FROM {} AS o JOIN {} AS n ON {} WHERE n.{} AND {} {})",
            self.flag,
            self.live,
            self.shadow,
            self.same_key(),
            ident(flag),
            self.wanted,
            self.one_of_each()
        )
    }
}

/// Names the columns whose values do not fit their new types, before anything is carried.
async fn misfits(at: &BigQuery, table: &Table, plan: &Plan, doing: &str) -> Result<(), Error> {
    let changed: Vec<_> = plan.columns.iter().filter_map(|c| Some((c, c.cast.as_ref()?))).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let misfit = |column: &Common, safe: Option<&String>| {
        let fits = safe.map_or(String::new(), |safe| format!(" AND {safe} IS NULL"));
        let there = if column.cast.as_ref().is_some_and(|(was, ..)| was.starts_with("ARRAY")) {
            format!("ARRAY_LENGTH({}) > 0", column.old)
        } else {
            format!("{} IS NOT NULL", column.old)
        };
        format!("CAST(COUNTIF({there}{fits}) AS STRING)")
    };
    let counted: Vec<String> = changed.iter().map(|(column, (_, _, safe))| misfit(column, safe.as_ref())).collect();
    let sql = format!("SELECT {} FROM {} AS o WHERE {}", counted.join(", "), plan.live, plan.wanted);
    let rows = at.jobs().await?.rows(sql).await.map_err(|e| meaning(&e, doing))?;
    let counts = rows.into_iter().next().unwrap_or_default();
    let culprits: Vec<String> = changed
        .iter()
        .zip(counts)
        .filter(|(_, count)| count.as_deref() != Some("0"))
        .map(|((column, (was, is, _)), _)| format!("{:?} from {was} to {is}", column.name))
        .collect();
    if culprits.is_empty() { Ok(()) } else { Err(permanent("CarryCast", carry_cast(&table.schema.destination, &culprits))) }
}
