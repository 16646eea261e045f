//! The sequences that mirrored columns draw from: `serial`, identity, or `OWNED BY`. I/O.

use tokio_postgres::{Client, Row};

use super::{Error, error::failure};
use crate::{
    brief::Brief,
    postgres::{ident, qualified},
    report::Failure,
    table::{TableName, TableSchema},
};

/// A sequence of the source, and the column that owns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Number of the table.
    pub table: u32,
    /// The column's name at the destination.
    pub column: String,
    /// The column's type at the destination.
    pub column_type: String,
    /// Its name at the source.
    pub source: TableName,
    /// Its name at the destination: the source's, in the schema of the destination's table.
    pub destination: TableName,
    /// Whether the column draws from it by default.
    pub draws: bool,
    /// How it counts.
    pub shape: Shape,
    /// Where it is; `None` if it may not be read.
    pub place: Option<Place>,
    /// Whether the role may read it.
    pub readable: bool,
}

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// `last_value`.
    pub value: i64,
    /// Whether that was drawn; otherwise it is the next to be drawn (PostgreSQL docs, "setval").
    pub called: bool,
}

/// How a sequence counts (PostgreSQL docs, "pg_sequence").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `smallint`, `integer` or `bigint`.
    pub type_: String,
    /// The first number.
    pub start: i64,
    /// From one number to the next, negative if it counts down.
    pub increment: i64,
    /// The least number.
    pub min: i64,
    /// The largest number.
    pub max: i64,
    /// Whether it begins anew at its end.
    pub cycle: bool,
}

/// The sequences of the mirrored columns of `tables`, as they are now: positions are not a snapshot's (PostgreSQL docs, "Sequence Manipulation Functions").
/// Of several that one column owns, the one that it draws from, else the eldest.
pub async fn read(client: &Client, tables: &[TableSchema]) -> Result<Vec<Sequence>, Error> {
    let oids: Vec<u32> = tables.iter().map(|t| t.source_oid).collect();
    let rows = client.query(SEQUENCES, &[&oids]).await.map_err(Error::query("reading the sequences of the tables"))?;
    let mut sequences: Vec<Sequence> = rows.iter().filter_map(|row| of_column(row, tables)).collect();
    place(client, &mut sequences).await?;
    Ok(sequences)
}

/// Reads where they are from themselves: only they tell apart a number that was drawn and one that is to be drawn next.
async fn place(client: &Client, sequences: &mut [Sequence]) -> Result<(), Error> {
    let readable: Vec<String> = sequences
        .iter()
        .enumerate()
        .filter(|(_, s)| s.readable)
        .map(|(i, s)| format!("SELECT {i}::int8, last_value, is_called FROM {}", qualified(&s.source.schema, &s.source.name)))
        .collect();
    if readable.is_empty() {
        return Ok(());
    }
    let rows = client.query(&readable.join(" UNION ALL "), &[]).await.map_err(Error::query("reading the sequences"))?;
    for row in rows {
        let sequence = usize::try_from(row.get::<_, i64>(0)).ok().and_then(|i| sequences.get_mut(i));
        sequence.into_iter().for_each(|s| s.place = Some(Place { value: row.get(1), called: row.get(2) }));
    }
    Ok(())
}

/// What would keep them from being mirrored: rights.
pub fn problems(brief: &Brief, sequences: &[Sequence]) -> Vec<Failure> {
    let role = ident(&brief.source.user);
    let unreadable = |sequence: &&Sequence| !sequence.readable;
    let message = |sequence: &Sequence| {
        let name = qualified(&sequence.source.schema, &sequence.source.name);
        format!("role {role} may not read sequence {name}: GRANT SELECT ON SEQUENCE {name} TO {role}, or set sequences to Ignore")
    };
    sequences.iter().filter(unreadable).map(|sequence| failure("SourcePermissionDenied", message(sequence))).collect()
}

/// One of a column that is mirrored.
fn of_column(row: &Row, tables: &[TableSchema]) -> Option<Sequence> {
    let (oid, column): (u32, &str) = (row.get("table"), row.get("column"));
    let table = tables.iter().find(|t| t.source_oid == oid)?;
    let column = table.columns.iter().find(|c| c.source == column)?;
    let source = TableName { schema: row.get("schema"), name: row.get("name") };
    Some(Sequence {
        table: table.number,
        column: column.destination.clone(),
        column_type: column.destination_type.clone(),
        destination: TableName { schema: table.destination.schema.clone(), name: source.name.clone() },
        source,
        draws: row.get("draws"),
        shape: Shape {
            type_: row.get("type"),
            start: row.get("seqstart"),
            increment: row.get("seqincrement"),
            min: row.get("seqmin"),
            max: row.get("seqmax"),
            cycle: row.get("seqcycle"),
        },
        place: None,
        readable: row.get("readable"),
    })
}

const SEQUENCES: &str = r#"
SELECT DISTINCT ON (d.refobjid, d.refobjsubid)
       d.refobjid AS table, a.attname::text AS column, n.nspname::text AS schema, s.relname::text AS name, format_type(q.seqtypid, NULL) AS type,
       q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcycle, r.readable,
       d.deptype = 'i' OR EXISTS (SELECT FROM pg_depend u JOIN pg_attrdef f ON f.oid = u.objid
          WHERE u.classid = 'pg_attrdef'::regclass AND u.refclassid = 'pg_class'::regclass AND u.refobjid = s.oid
            AND f.adrelid = d.refobjid AND f.adnum = d.refobjsubid) AS draws
  FROM pg_depend d
  JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
  JOIN pg_sequence q ON q.seqrelid = s.oid
  JOIN pg_namespace n ON n.oid = s.relnamespace
  JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
 CROSS JOIN LATERAL (SELECT has_sequence_privilege(s.oid, 'SELECT') AS readable) r
 WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY ($1::oid[])
   AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
 ORDER BY d.refobjid, d.refobjsubid, draws DESC, s.oid"#;
