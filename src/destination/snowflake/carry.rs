//! Carrying rows that the source no longer has from the live table into the shadow.
//!
//! Rows and what the ledger says of them in one transaction: carried once.

use super::{
    Snowflake,
    error::{Refusal, meaning, permanent},
    ledger::{of_kinds, shadow_of},
    live::{self, Attribute, attributes},
    own::{self, Own},
    quote::{ident, literal},
    transaction::Transaction,
    types::Type,
};
use crate::{
    destination::{
        Error, carry_cast,
        fact::{Begun, Carried, Fact, Sealed, Table},
        gone,
    },
    table::TableName,
};

/// See [`Destination::carry`](crate::destination::Destination::carry).
pub(super) async fn carry(at: &Snowflake) -> Result<(), Error> {
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
            carry_table(at, *number, table, begun).await?;
        }
    }
    Ok(())
}

async fn carry_table(at: &Snowflake, number: u32, table: &Table, begun: &str) -> Result<(), Error> {
    let plan = match plan(at, table, begun).await? {
        Ok(plan) => plan,
        Err(note) => return at.record(&[at.entry(number, 0, &Carried { deleted: 0, missing: 0, note })?]).await,
    };
    let doing = format!("carrying rows of {}", table.schema.destination);
    let mut transaction = Transaction::fenced(at).await?;
    if transaction.facts_where(&of_kinds(&[Carried::KIND])).await?.get::<Carried>(number)?.is_some() {
        transaction.roll_back().await;
        return Ok(());
    }
    let mut carried = Carried { deleted: 0, missing: 0, note: None };
    for (wanted, deleted, count) in
        [(at.brief.carry.soft_deleted, true, &mut carried.deleted), (at.brief.carry.missing, false, &mut carried.missing)]
    {
        if !wanted {
            continue;
        }
        match transaction.try_query(&plan.insert(deleted)).await {
            Ok(answer) => *count = answer.affected() as i64,
            Err(refusal) => {
                transaction.roll_back().await;
                return Err(why(at, table, &plan, refusal, &doing).await?);
            }
        }
    }
    if let Some(count) = plan.keyless() {
        let left_out = transaction.query(&count, &doing).await?.number();
        carried.note = (left_out > 0).then(|| format!("{left_out} rows were not carried: they have no value in a column of the new key"));
    }
    transaction.record(&[at.entry(number, 0, &carried)?]).await?;
    transaction.commit().await
}

/// How the rows of one table are carried.
struct Plan {
    live: String,
    shadow: String,
    columns: Vec<Common>,
    /// The key's old values in their new types, and its columns of the shadow; and which of the old ones may be NULL.
    key: Vec<(String, String)>,
    nullable: Vec<String>,
    /// The old flag as a condition.
    flag: String,
    /// The time of a deleted row, and of a missing one.
    times: (String, String),
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
async fn plan(at: &Snowflake, table: &Table, begun: &str) -> Result<Result<Plan, Option<String>>, Error> {
    let nothing = |why: &str| Ok(Err(Some(format!("nothing was carried: {why}"))));
    let (schema, name, carry) = (&table.schema, &table.schema.destination, &at.brief.carry);
    let live = live::find(at, name).await?.filter(|live| live.is_ours(at, schema));
    if live.is_none() || !carry.soft_deleted && !carry.missing {
        return Ok(Err(None));
    }
    let own = Own::of(&at.brief);
    let Some(flag) = own.flag.clone() else { return nothing("soft deletes are off") };
    if schema.key().is_empty() {
        return nothing("the table has no key");
    }
    let shadow = TableName { schema: name.schema.clone(), name: shadow_of(at, table) };
    let (old, new) = (attributes(at, name).await?, attributes(at, &shadow).await?);
    if find(&old, &flag).is_none() {
        return nothing(&format!("the old table has no column {flag:?} that flags deleted rows"));
    }
    let key = own::key(schema);
    if let Some(column) = key.iter().find(|column| find(&old, column).is_none()) {
        return nothing(&format!("the old table lacks key column {column:?}"));
    }
    let ours = |column: &&Attribute| !own.names().any(|own| own == column.name);
    let columns: Vec<Common> = new.iter().filter(ours).filter_map(|column| Some(common(find(&old, &column.name)?, column))).collect();
    let value = |column: &str| columns.iter().find(|c| c.name == column).map_or(String::new(), |c| c.value.clone());
    let begun = format!("TO_TIMESTAMP_NTZ({})", literal(begun));
    let kept = own.synced_at.as_deref().and_then(|name| find(&old, name)).map(|c| format!("COALESCE(o.{}, {begun})", ident(&c.name)));
    Ok(Ok(Plan {
        live: at.quoted(name),
        shadow: at.quoted(&shadow),
        key: key.iter().map(|column| (value(column), ident(column))).collect(),
        nullable: key.iter().filter(|c| find(&old, c).is_some_and(|c| !c.not_null)).map(|c| value(c)).collect(),
        flag: format!("COALESCE(o.{}, FALSE)", ident(&flag)),
        times: (kept.unwrap_or_else(|| begun.clone()), begun),
        columns,
        own,
    }))
}

fn find<'a>(columns: &'a [Attribute], name: &str) -> Option<&'a Attribute> {
    columns.iter().find(|a| a.name == name)
}

fn common(before: &Attribute, column: &Attribute) -> Common {
    let old = format!("o.{}", ident(&before.name));
    let differ = before.type_ != column.type_;
    let value = if differ { cast(&old, &before.type_, &column.type_) } else { old };
    Common { name: column.name.clone(), value, cast: differ.then(|| (before.type_.clone(), column.type_.clone())) }
}

/// The old value in the new type; what does not fit is an error (Snowflake docs, "CAST").
fn cast(old: &str, was: &str, is: &str) -> String {
    let semi = |text: &str| ["VARIANT", "OBJECT", "ARRAY"].iter().any(|name| text.starts_with(name));
    match Type::parse(is) {
        Some(to) if semi(is) && !semi(was) => to.of_text(&format!("CAST({old} AS VARCHAR)")),
        _ if semi(was) && is.starts_with("VARCHAR") => format!("TO_JSON({old})"),
        _ => format!("CAST({old} AS {is})"),
    }
}

impl Plan {
    fn key(&self) -> String {
        self.key.iter().map(|(old, _)| old.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn whole(&self) -> String {
        let present: Vec<String> = self.nullable.iter().map(|value| format!(" AND {value} IS NOT NULL")).collect();
        present.concat()
    }

    /// Rows of the old table that are flagged, or are not, and that the shadow does not have. Of rows that share a new key one is carried.
    fn insert(&self, deleted: bool) -> String {
        let same: Vec<String> = self.key.iter().map(|(old, new)| format!("n.{new} = {old}")).collect();
        let (mut names, mut values): (Vec<String>, Vec<String>) = self.columns.iter().map(|c| (ident(&c.name), c.value.clone())).unzip();
        let time = if deleted { &self.times.0 } else { &self.times.1 };
        for (name, value) in self.own.values("TRUE", time) {
            names.push(name);
            values.push(value);
        }
        format!(
            "INSERT INTO {} ({}) SELECT {} FROM {} AS o WHERE {}{}{} AND NOT EXISTS (SELECT 1 FROM {} AS n WHERE {}) \
             QUALIFY ROW_NUMBER() OVER (PARTITION BY {} ORDER BY {time} DESC) = 1",
            self.shadow,
            names.join(", "),
            values.join(", "),
            self.live,
            if deleted { "" } else { "NOT " },
            self.flag,
            self.whole(),
            self.shadow,
            same.join(" AND "),
            self.key(),
        )
    }

    /// Counts the rows without a value in the new key; `None` if there cannot be any.
    fn keyless(&self) -> Option<String> {
        let null: Vec<String> = self.nullable.iter().map(|value| format!("{value} IS NULL")).collect();
        (!null.is_empty()).then(|| format!("SELECT COUNT(*) FROM {} AS o WHERE {}", self.live, null.join(" OR ")))
    }
}

/// What a refusal means; one of a value names the columns that it may be in.
async fn why(at: &Snowflake, table: &Table, plan: &Plan, refusal: Refusal, doing: &str) -> Result<Error, Error> {
    let error = meaning(&refusal, doing);
    if !matches!(&error, Error::Permanent(failure) if failure.reason == "ValueRefused") {
        return Ok(error);
    }
    let mut culprits = Vec::new();
    for column in &plan.columns {
        let Some((old, new)) = &column.cast else { continue };
        let sql = format!("SELECT COUNT({}) FROM {} AS o", column.value, plan.live);
        match at.client()?.query(&sql, "looking for the column").await {
            Err(Error::Permanent(_)) => culprits.push(format!("{:?} from {old} to {new}", column.name)),
            Err(other) => return Err(other),
            Ok(_) => {}
        }
    }
    Ok(permanent("CarryCast", carry_cast(&table.schema.destination, &culprits)))
}
