//! Sequences, so that the tables can be written to after a cut-over.
//!
//! They outlive the tables' epochs and belong to no column, which would take them along when an old table is dropped: a comment says whose they are.

use std::collections::BTreeSet;

use tokio_postgres::Transaction;

use super::{
    Postgres,
    error::{At, failure, permanent},
    ledger,
    session::{commit, fence},
};
use crate::{
    brief::Brief,
    destination::Error,
    postgres::{ident, literal, qualified},
    report::Failure,
    source::sequence::{Place, Sequence, Shape},
    table::TableName,
};

/// Types of columns that take a number.
const NUMBERS: [&str; 9] = ["smallint", "int2", "integer", "int", "int4", "bigint", "int8", "numeric", "decimal"];

/// See [`Destination::sequence_problems`](crate::destination::Destination::sequence_problems).
pub(super) async fn problems(at: &Postgres, sequences: &[Sequence]) -> Result<Vec<Failure>, Error> {
    let session = at.session().await?;
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for Sequence { destination, source, .. } in sequences {
        if !seen.insert(destination) {
            let message = format!(
                "two sequences of the source, one of them {source}, would be {destination} at the destination: put their tables into \
                 different schemas, or set sequences to Ignore"
            );
            found.push(failure("NameConflict", message));
        }
    }
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        sequences.iter().map(|s| (s.destination.schema.as_str(), s.destination.name.as_str())).unzip();
    let sql = "SELECT n.nspname::text, c.relname::text FROM unnest($1::text[], $2::text[]) AS w (schema, name)
               JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
               JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
               WHERE NOT (c.relkind = 'S' AND coalesce(obj_description(c.oid, 'pg_class'), '') = $3)";
    for row in session.client().query(sql, &[&schemas, &names, &mark(&at.brief)]).await.at("looking for sequences")? {
        found.push(failure("NameConflict", taken(&TableName { schema: row.get(0), name: row.get(1) })));
    }
    session.keep();
    Ok(found)
}

/// See [`Destination::follow_sequences`](crate::destination::Destination::follow_sequences).
pub(super) async fn follow(at: &Postgres, sequences: &[Sequence]) -> Result<(), Error> {
    let doing = "bringing the sequences up to date";
    let mut session = at.session().await?;
    let tx = session.begin(doing).await?;
    fence(&tx, &at.brief).await?;
    for sequence in sequences {
        shape(&tx, &at.brief, sequence).await?;
        advance(&tx, sequence).await?;
    }
    if ledger::swap_report(&tx, &at.brief).await?.is_none() {
        draw(&tx, &at.brief, sequences).await?;
    }
    commit(tx, doing).await?;
    session.keep();
    Ok(())
}

/// Drops those of this mirror that no column draws from.
pub(super) async fn drop_unused(tx: &Transaction<'_>, brief: &Brief) -> Result<(), Error> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE c.relkind = 'S' AND obj_description(c.oid, 'pg_class') = $1
                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = c.oid)";
    let rows = tx.query(sql, &[&mark(brief)]).await.at("looking for sequences")?;
    let drops: String = rows.iter().map(|r| format!("DROP SEQUENCE {};", qualified(r.get(0), r.get(1)))).collect();
    tx.batch_execute(&drops).await.at("dropping sequences")
}

fn mark(brief: &Brief) -> String {
    format!("Follows the source's, by mirror {}/{} ({})", brief.namespace, brief.mirror, brief.mirror_uid)
}

fn taken(name: &TableName) -> String {
    format!("{name} exists at the destination and is not a sequence of this mirror: rename or drop it, or set sequences to Ignore")
}

/// Makes it, or makes it count as the source's does. One that has to count in another way begins where the source's is: its own place may be out of bounds.
async fn shape(tx: &Transaction<'_>, brief: &Brief, sequence: &Sequence) -> Result<(), Error> {
    let Sequence { destination, shape, .. } = sequence;
    let name = qualified(&destination.schema, &destination.name);
    let sql = "SELECT coalesce(obj_description(c.oid, 'pg_class'), ''), format_type(q.seqtypid, NULL), q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcycle
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               LEFT JOIN pg_catalog.pg_sequence q ON q.seqrelid = c.oid WHERE n.nspname = $1 AND c.relname = $2";
    let doing = format!("making sequence {name}");
    let Some(row) = tx.query_opt(sql, &[&destination.schema, &destination.name]).await.at(&doing)? else {
        let made = format!("CREATE SEQUENCE {name} {}; COMMENT ON SEQUENCE {name} IS {}", counting(shape), literal(&mark(brief)));
        return tx.batch_execute(&made).await.at(&doing);
    };
    if row.get::<_, &str>(0) != mark(brief) {
        return Err(permanent("NameConflict", taken(destination)));
    }
    let (type_, start, increment, min, max, cycle) = (row.get(1), row.get(2), row.get(3), row.get(4), row.get(5), row.get(6));
    if *shape != (Shape { type_, start, increment, min, max, cycle }) {
        let place = sequence.place.map_or(shape.start, |p| p.value);
        tx.batch_execute(&format!("ALTER SEQUENCE {name} {} RESTART WITH {place}", counting(shape))).await.at(&doing)?;
    }
    Ok(())
}

/// Whether a column of this type, as the Mirror or the source writes it, takes a number.
fn is_number(column_type: &str) -> bool {
    let name = column_type.split('(').next().unwrap_or_default().trim().to_lowercase();
    NUMBERS.contains(&name.as_str())
}

fn counting(shape: &Shape) -> String {
    let Shape { type_, start, increment, min, max, cycle } = shape;
    let cycle = if *cycle { "CYCLE" } else { "NO CYCLE" };
    format!("AS {type_} INCREMENT BY {increment} MINVALUE {min} MAXVALUE {max} START WITH {start} {cycle}")
}

/// Brings it to the source's place, never back: numbers that were drawn here stay drawn.
async fn advance(tx: &Transaction<'_>, sequence: &Sequence) -> Result<(), Error> {
    let Some(Place { value, called }) = sequence.place else { return Ok(()) };
    let name = qualified(&sequence.destination.schema, &sequence.destination.name);
    let increment = sequence.shape.increment;
    let behind = if increment > 0 { '<' } else { '>' };
    let next = i128::from(value) + if called { i128::from(increment) } else { 0 };
    let sql = format!(
        "SELECT setval({}::regclass, {value}, {called}) FROM {name}
         WHERE last_value::numeric + CASE WHEN is_called THEN {increment} ELSE 0 END {behind} {next}",
        literal(&name)
    );
    tx.batch_execute(&sql).await.at(&format!("advancing sequence {name}"))
}

/// Lets the columns of the shadows draw from them, as the source's do.
async fn draw(tx: &Transaction<'_>, brief: &Brief, sequences: &[Sequence]) -> Result<(), Error> {
    let entries = ledger::entries(tx, brief).await?;
    for sequence in sequences.iter().filter(|s| s.draws && is_number(&s.column_type)) {
        let Some(entry) = entries.iter().find(|e| e.schema.number == sequence.table) else { continue };
        let shadow = qualified(&entry.live.schema, &entry.shadow);
        let name = literal(&qualified(&sequence.destination.schema, &sequence.destination.name));
        let sql = format!("ALTER TABLE {shadow} ALTER COLUMN {} SET DEFAULT nextval({name}::regclass)", ident(&sequence.column));
        tx.batch_execute(&sql).await.at(&format!("letting {shadow} draw from sequence {}", sequence.destination))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_columns_type_is_a_number_however_it_is_written() {
        for name in ["bigint", "int8", "INT", "numeric(10,0)", "Decimal (5)", "smallint"] {
            assert!(is_number(name), "{name}");
        }
        for name in ["interval", "text", "integer[]", "bigint_like", ""] {
            assert!(!is_number(name), "{name}");
        }
    }
}
