//! What is done to a shadow once its rows are there: they are counted, and it gets what people gave to the live table.

use super::{
    Snowflake,
    error::{meaning, permanent},
    ledger::shadow_of,
    live::{self, attributes},
    mark::Mark,
    quote::{ident, literal},
};
use crate::{
    destination::{
        Error,
        fact::{Done, Fact, Planned, Sealed, Table},
    },
    table::{TableName, TableSchema},
    verify::Measure,
};

/// See [`Destination::seal`](crate::destination::Destination::seal).
pub(super) async fn seal(at: &Snowflake) -> Result<(), Error> {
    at.fence().await?;
    let mut tables = at.facts(&[Table::KIND]).await?.all::<Table>()?;
    if !tables.is_empty() {
        // Several workers begin at different places.
        let start = super::random() as usize % tables.len();
        tables.rotate_left(start);
    }
    for (number, _, _) in tables {
        let facts = at.facts(&[Table::KIND, Planned::KIND, Done::KIND, Measure::KIND, Sealed::KIND]).await?;
        let table = facts.table(&at.brief, number)?;
        if facts.is_sealed(number, table.generation)? || facts.incomplete(&at.brief)?.contains(&number) {
            continue;
        }
        let shadow = TableName { schema: table.schema.destination.schema.clone(), name: shadow_of(at, &table) };
        if live::find(at, &shadow).await?.is_none() {
            at.fence().await?;
            return Err(Error::Transient(format!("{shadow} is gone; it is looked at again")));
        }
        count(at, &table.schema, &shadow, facts.rows_loaded(number, table.generation)?).await?;
        let notes = dress(at, &table, &shadow).await?;
        let note = (!notes.is_empty()).then(|| notes.join("; "));
        at.record(&[at.entry(number, table.generation.into(), &Sealed { note })?]).await?;
    }
    Ok(())
}

/// Compares the shadow's rows with those that were read.
async fn count(at: &Snowflake, table: &TableSchema, shadow: &TableName, expected: u64) -> Result<(), Error> {
    let found = at.client()?.query(&format!("SELECT COUNT(*) FROM {}", at.quoted(shadow)), "counting rows").await?.number();
    if found != expected {
        let message = format!(
            "{}: {expected} rows were read and {found} are in {shadow}. Nothing was swapped. Start a new resync",
            table.destination
        );
        return Err(permanent("LoadMiscounted", message));
    }
    Ok(())
}

/// Something that people gave to the live table, and how the shadow gets it.
struct Gift {
    /// For people.
    what: String,
    statement: String,
}

/// Gives the shadow what the live table has beside its columns. Returns what could not be kept.
async fn dress(at: &Snowflake, table: &Table, shadow: &TableName) -> Result<Vec<String>, Error> {
    let name = &table.schema.destination;
    let Some(live) = live::find(at, name).await?.filter(|live| live.mark.as_ref().is_none_or(|m| m.mirror == at.brief.mirror_uid)) else {
        return Ok(vec![]);
    };
    if let Some(policies) = policies(at, name).await? {
        return Err(permanent("PolicyUnkept", policies));
    }
    let mut notes = Vec::new();
    for gift in gifts(at, name, shadow).await? {
        match at.client()?.query(&gift.statement, &gift.what).await {
            Ok(_) => {}
            Err(Error::Permanent(failure)) => notes.push(format!("{} was not kept: {}", gift.what, failure.message)),
            Err(error) => return Err(error),
        }
    }
    let mark =
        Mark { mirror: at.brief.mirror_uid.clone(), epoch: at.brief.epoch, table: table.schema.number, generation: Some(table.generation) };
    live::comment(at, shadow, &mark.comment(&live.words)).await?;
    Ok(notes)
}

async fn gifts(at: &Snowflake, live: &TableName, shadow: &TableName) -> Result<Vec<Gift>, Error> {
    let to = at.quoted(shadow);
    let there = attributes(at, shadow).await?;
    let mut gifts = Vec::new();
    for column in attributes(at, live).await?.iter().filter(|c| !c.comment.is_empty() && there.iter().any(|t| t.name == c.name)) {
        let statement = format!("COMMENT ON COLUMN {to}.{} IS {}", ident(&column.name), literal(&column.comment));
        gifts.push(Gift { what: format!("comment of column {:?}", column.name), statement });
    }
    // SWAP WITH swaps the grants too, so that they stay with the rows that they were given for (Snowflake docs, "ALTER TABLE").
    let answer = at.client()?.query(&format!("SHOW GRANTS ON TABLE {}", at.quoted(live)), "reading grants").await?;
    for row in answer.rows() {
        let named = |name: &str| row.named(name).unwrap_or_default();
        let (right, kind, who) = (named("privilege"), named("granted_to").replace('_', " "), named("grantee_name"));
        if right == "OWNERSHIP" || !matches!(kind.as_str(), "ROLE" | "SHARE" | "DATABASE ROLE") {
            continue;
        }
        let who = if kind == "DATABASE ROLE" { format!("{}.{}", ident(&at.to.at.database), ident(who)) } else { ident(who) };
        let option = if named("grant_option") == "true" { " WITH GRANT OPTION" } else { "" };
        gifts.push(Gift {
            what: format!("{right} for {kind} {who}"),
            statement: format!("GRANT {right} ON TABLE {to} TO {kind} {who}{option}"),
        });
    }
    Ok(gifts)
}

/// What protects the live table and would not protect the new one, in words with the cure; `None` if nothing does.
pub(super) async fn policies(at: &Snowflake, table: &TableName) -> Result<Option<String>, Error> {
    let whole = at.quoted(table);
    let sql = format!(
        "SELECT POLICY_KIND, POLICY_NAME, REF_COLUMN_NAME FROM TABLE({}.INFORMATION_SCHEMA.POLICY_REFERENCES(REF_ENTITY_NAME => {}, REF_ENTITY_DOMAIN => 'TABLE'))",
        ident(&at.to.at.database),
        literal(&whole)
    );
    let answer = match at.client()?.try_query(&sql).await {
        Ok(answer) => answer,
        // Editions without policies.
        Err(refusal) if refusal.is_unsupported() => return Ok(None),
        Err(refusal) => return Err(meaning(&refusal, "looking for policies")),
    };
    let found: Vec<String> = answer
        .rows()
        .map(|row| {
            let column = row.get(2).map(|column| format!(" on column {column:?}")).unwrap_or_default();
            format!("{} {:?}{column}", row.text(0).replace('_', " ").to_lowercase(), row.text(1))
        })
        .collect();
    Ok((!found.is_empty()).then(|| {
        format!(
            "{table} at the destination has the {}, which the table that replaces it would not have. Protect what reads it instead (a secure view), or put the policy on a \
             tag of its schema, and take it off the table: ALTER TABLE {whole} … UNSET MASKING POLICY, DROP ROW ACCESS POLICY",
            found.join(", ")
        )
    }))
}
