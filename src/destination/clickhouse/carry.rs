//! Carrying rows that the source no longer has from the live table into the shadow.
//!
//! Keys are looked at in portions, by a hash of the key, so that only one portion of the shadow's keys is in memory. A carried row has version 0, like those
//! of the load. Whatever was carried is in the shadow, so that a repeated call carries the rest and counts all.

use serde::Deserialize;

use super::{
    ClickHouse,
    error::permanent,
    ledger::shadow_of,
    live::{self, Attribute, attributes},
    own::{self, Own, VERSION},
    quote::{ident, literal, qualified},
    types::Type,
};
use crate::{
    api::clickhouse::Engine,
    destination::{
        Error, carry_cast,
        fact::{Begun, Carried, Fact, Sealed, Table},
        gone,
    },
    table::TableName,
};

/// Rows of the shadow in one portion.
const PORTION: u64 = 5_000_000;

/// See [`Destination::carry`](crate::destination::Destination::carry).
pub(super) async fn carry(at: &ClickHouse) -> Result<(), Error> {
    if super::ledger::swap_report(at).await?.is_some() {
        return Ok(());
    }
    at.fence().await?;
    let facts = at.facts(&[Begun::KIND, Table::KIND, Sealed::KIND, Carried::KIND]).await?;
    let begun = facts.at::<Begun>(0).ok_or_else(|| gone(&at.brief))?;
    let tables = facts.all::<Table>()?;
    for (number, _, table) in &tables {
        if !facts.is_sealed(*number, table.generation)? {
            return Err(Error::Transient(format!("{} is not sealed yet, so nothing can be carried into it", table.schema.destination)));
        }
    }
    for (number, _, table) in &tables {
        if facts.get::<Carried>(*number)?.is_none() {
            let carried = carry_table(at, table, begun).await?;
            at.fence().await?;
            at.record(&[at.entry(*number, 0, &carried)?]).await?;
        }
    }
    Ok(())
}

async fn carry_table(at: &ClickHouse, table: &Table, begun: &str) -> Result<Carried, Error> {
    let plan = match plan(at, table, begun).await? {
        Ok(plan) => plan,
        Err(note) => return Ok(Carried { deleted: 0, missing: 0, note }),
    };
    let doing = format!("carrying rows of {}", table.schema.destination);
    let rows: Count = at.client()?.row(&format!("SELECT count() AS n FROM {}", plan.shadow), &doing).await?;
    let portions = rows.n / PORTION + 1;
    let mut carried = Carried { deleted: 0, missing: 0, note: None };
    for portion in 0..portions {
        if let Err(error) = at.client()?.run_over_rows(&plan.insert(portion, portions), &doing).await {
            return Err(match error {
                Error::Permanent(failure) if failure.reason == "ValueRefused" => uncastable(at, table, &plan).await?,
                other => other,
            });
        }
        let counts: Counts = at.client()?.row(&plan.counts(portion, portions), &doing).await?;
        carried.deleted += counts.deleted;
        carried.missing += counts.missing;
    }
    if carried.deleted + carried.missing > 0 && !plan.wanting.is_empty() {
        let names: Vec<String> = plan.wanting.iter().map(|name| format!("{name:?}")).collect();
        carried.note = Some(format!(
            "carried rows have no value for column {}, which is not nullable: they have the type's default",
            names.join(", ")
        ));
    }
    Ok(carried)
}

#[derive(Deserialize)]
struct Count {
    n: u64,
}

#[derive(Deserialize)]
struct Counts {
    deleted: i64,
    missing: i64,
}

/// How the rows of one table are carried.
struct Plan {
    live: String,
    shadow: String,
    columns: Vec<Common>,
    /// All columns of the live table that are read, quoted. An asterisk would leave out those that are computed.
    read: Vec<String>,
    /// Columns of the shadow that are not nullable and that the live table lacks.
    wanting: Vec<String>,
    /// The key's old values in their new types, and the key's columns of the shadow.
    old_key: String,
    new_key: String,
    /// The old flag as a condition.
    flag: String,
    /// Which rows are wanted.
    wanted: String,
    /// What brings the last version of a row to the front.
    newest_first: String,
    /// The time of a row that is carried.
    time: String,
    own: Own,
}

/// A column that both tables have.
struct Common {
    name: String,
    /// The old value in the new type.
    value: String,
    /// Old and new type, if they differ.
    cast: Option<(String, String)>,
}

/// The plan, or why nothing is carried (no remark if that is no surprise).
async fn plan(at: &ClickHouse, table: &Table, begun: &str) -> Result<Result<Plan, Option<String>>, Error> {
    let nothing = |why: &str| Ok(Err(Some(format!("nothing was carried: {why}"))));
    let (schema, name, carry) = (&table.schema, &table.schema.destination, &at.brief.carry);
    let live = live::find(at, name).await?.filter(|live| live.is_ours(at, schema));
    if live.is_none() || !carry.soft_deleted && !carry.missing {
        return Ok(Err(None));
    }
    if !at.brief.soft_delete.enabled {
        return nothing("soft deletes are off");
    }
    if schema.key().is_empty() {
        return nothing("the table has no key");
    }
    if at.options(schema).engine == Engine::Null {
        return nothing("a table of the engine Null has no rows");
    }
    let shadow = TableName { schema: name.schema.clone(), name: shadow_of(at, table) };
    let (old, new) = (attributes(at, name).await?, attributes(at, &shadow).await?);
    let own = Own::of(&at.brief);
    if find(&old, &own.flag).is_none() {
        return nothing(&format!("the old table has no column {:?} that flags deleted rows", own.flag));
    }
    let key = own::key(schema);
    if let Some(column) = key.iter().find(|column| find(&old, column).is_none()) {
        return nothing(&format!("the old table lacks key column {column:?}"));
    }
    let (columns, wanting) = shared(&old, &new, &own);
    let begun = format!("toDateTime64({}, 6, 'UTC')", literal(begun));
    let flag = format!("o.{} != 0", ident(&own.flag));
    let synced = own.synced_at.as_deref().and_then(|name| find(&old, name));
    let mut read: Vec<String> = columns.iter().map(|c| ident(&c.name)).chain([ident(&own.flag)]).collect();
    read.extend(synced.map(|synced| ident(&synced.name)));
    let time = match synced {
        Some(synced) => format!("if({flag}, o.{}, {begun})", ident(&synced.name)),
        None => begun,
    };
    let value = |column: &&str| columns.iter().find(|c| c.name == **column).map_or(String::new(), |c| c.value.clone());
    let version = find(&old, VERSION).map(|_| own.newest_first()).unwrap_or_else(|| format!("{} DESC", ident(&own.flag)));
    Ok(Ok(Plan {
        live: qualified(&name.schema, &name.name),
        shadow: qualified(&shadow.schema, &shadow.name),
        read,
        wanting,
        old_key: key.iter().map(value).collect::<Vec<_>>().join(", "),
        new_key: own::list(&key),
        wanted: match (carry.soft_deleted, carry.missing) {
            (true, false) => flag.clone(),
            (false, true) => format!("NOT ({flag})"),
            _ => "true".into(),
        },
        flag,
        newest_first: version,
        time,
        columns,
        own,
    }))
}

/// The columns that both tables have, and the shadow's that are not nullable and that the live table lacks.
fn shared(old: &[Attribute], new: &[Attribute], own: &Own) -> (Vec<Common>, Vec<String>) {
    let (mut columns, mut wanting) = (Vec::new(), Vec::new());
    for column in
        new.iter().filter(|c| !matches!(c.default_kind.as_str(), "MATERIALIZED" | "ALIAS") && !own.names().any(|own| own == c.name))
    {
        match find(old, &column.name) {
            Some(before) => columns.push(common(before, column)),
            None if Type::parse(&column.type_).is_some_and(|t| !t.is_nullable()) => wanting.push(column.name.clone()),
            None => {}
        }
    }
    (columns, wanting)
}

/// A column whose values can be read.
fn find<'a>(columns: &'a [Attribute], name: &str) -> Option<&'a Attribute> {
    columns.iter().find(|a| a.name == name && a.default_kind != "ALIAS")
}

fn common(before: &Attribute, column: &Attribute) -> Common {
    let old = format!("o.{}", ident(&before.name));
    let differ = before.type_ != column.type_;
    let value = if differ { cast(&old, &before.type_, &column.type_) } else { old };
    Common { name: column.name.clone(), value, cast: differ.then(|| (before.type_.clone(), column.type_.clone())) }
}

/// The old value in the new type. A cast to a Nullable type would make NULL of what does not fit, without a word: so the cast is to the type inside.
fn cast(old: &str, was: &str, is: &str) -> String {
    let nullable = |type_: &str| Type::parse(type_).is_some_and(|t| t.is_nullable());
    let inside = is.strip_prefix("Nullable(").and_then(|rest| rest.strip_suffix(')'));
    match (nullable(was), inside) {
        (true, Some(inside)) => format!("if({old} IS NULL, NULL, accurateCast(assumeNotNull({old}), {}))", literal(inside)),
        (false, Some(inside)) => format!("accurateCast({old}, {})", literal(inside)),
        (true, None) if !nullable(is) => format!("accurateCast(ifNull({old}, defaultValueOfTypeName({0})), {0})", literal(is)),
        _ => format!("accurateCast({old}, {})", literal(is)),
    }
}

impl Plan {
    /// The keys of one portion, by their values in the new types.
    fn portion(key: &str, portion: u64, portions: u64) -> String {
        if portions == 1 { "true".into() } else { format!("cityHash64({key}) % {portions} = {portion}") }
    }

    /// The last version of each row of the live table under a condition on its key.
    fn newest(&self, condition: &str) -> String {
        let order: Vec<String> = self.newest_first.split(", ").map(|part| format!("o.{part}")).collect();
        let (read, live, key) = (self.read.join(", "), &self.live, &self.old_key);
        format!("SELECT {read} FROM {live} AS o WHERE {condition} ORDER BY {} LIMIT 1 BY {key}", order.join(", "))
    }

    fn insert(&self, portion: u64, portions: u64) -> String {
        let absent = format!(
            "{} AND ({}) NOT IN (SELECT {} FROM {} WHERE {})",
            Self::portion(&self.old_key, portion, portions),
            self.old_key,
            self.new_key,
            self.shadow,
            Self::portion(&self.new_key, portion, portions)
        );
        let mut names: Vec<String> = self.columns.iter().map(|c| ident(&c.name)).collect();
        let mut values: Vec<String> = self.columns.iter().map(|c| c.value.clone()).collect();
        names.push(ident(&self.own.flag));
        values.push("1".into());
        if let Some(synced_at) = &self.own.synced_at {
            names.push(ident(synced_at));
            values.push(self.time.clone());
        }
        format!(
            "INSERT INTO {} ({}) SELECT {} FROM ({}) AS o WHERE {} SETTINGS insert_deduplicate = 0",
            self.shadow,
            names.join(", "),
            values.join(", "),
            self.newest(&absent),
            self.wanted
        )
    }

    /// What of the live table is in the shadow because it was carried: rows of the source are not flagged there.
    fn counts(&self, portion: u64, portions: u64) -> String {
        let carried = format!(
            "{} AND ({}) IN (SELECT {} FROM {} WHERE {} != 0 AND {})",
            Self::portion(&self.old_key, portion, portions),
            self.old_key,
            self.new_key,
            self.shadow,
            ident(&self.own.flag),
            Self::portion(&self.new_key, portion, portions)
        );
        format!(
            "SELECT toInt64(countIf({0})) AS deleted, toInt64(countIf(NOT ({0}))) AS missing FROM ({1}) AS o",
            self.flag,
            self.newest(&carried)
        )
    }
}

/// Names the column whose values do not fit its new type.
async fn uncastable(at: &ClickHouse, table: &Table, plan: &Plan) -> Result<Error, Error> {
    let mut culprits = Vec::new();
    for column in &plan.columns {
        let Some((old, new)) = &column.cast else { continue };
        let sql = format!("SELECT count() AS n FROM {} AS o WHERE NOT ignore({})", plan.live, column.value);
        match at.client()?.row::<Count>(&sql, "looking for the column").await {
            Err(Error::Permanent(_)) => culprits.push(format!("{:?} from {old} to {new}", column.name)),
            Err(other) => return Err(other),
            Ok(_) => {}
        }
    }
    Ok(permanent("CarryCast", carry_cast(&table.schema.destination, &culprits)))
}
