//! Verification: whether a shadow has what the source has in the snapshot that it was loaded from. Pure.

use serde::{Deserialize, Serialize};

use crate::{
    api::resync::Verification,
    brief::{Brief, DestinationPeer},
    postgres::ident,
    report::Failure,
    table::{Column, TableSchema},
};

/// What one side has of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// Rows.
    pub rows: u64,
    /// The checksum over all rows, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<String>,
}

/// A side of a mirror, which has its own names of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the rows come from.
    Source,
    /// A PostgreSQL database that they are written to.
    Destination,
}

/// Types whose texts are not the same on all servers: by locale, by version, or because a value is written anew when it travels.
const UNLIKE: [&str; 4] = ["money", "xml", "jsonpath", "\"char\""];

/// Texts in UTF-8 whatever a database's encoding is. One without any passes bytes on as they are.
const ENCODING: &str = "CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END";

/// Whether the brief wants tables verified.
pub fn is_wanted(brief: &Brief) -> bool {
    brief.verification != Verification::None
}

/// What keeps this destination from being verified as the brief wants.
pub fn problem(brief: &Brief) -> Option<Failure> {
    let computes = matches!(brief.destination, DestinationPeer::Postgres(_));
    (brief.verification == Verification::Checksum && !computes).then(|| Failure {
        reason: "VerificationUnsupported".into(),
        message:
            "verification: Checksum serves PostgreSQL destinations only, as no other computes the same. Apply a MirrorResync with RowCount"
                .into(),
        permanent: true,
    })
}

/// What a SELECT of a PostgreSQL database returns to measure a table: its rows, and the checksum or NULL.
///
/// The checksum is a sum over all rows, so it does not depend on their order, and a row that is there twice is not one that is not there. Of each row the text of
/// its columns is hashed: sessions of either side have the same settings (`SESSION_OPTIONS`), so that equal values have equal texts on all versions.
pub fn selection(table: &TableSchema, side: Side, verification: Verification) -> String {
    if verification != Verification::Checksum {
        return "count(*), NULL::text".into();
    }
    let values: Vec<String> = table.copied().filter(|c| is_compared(c)).map(|c| value(c, side)).collect();
    let row = format!("sha256(convert_to(ROW({})::text, {ENCODING}))", values.join(", "));
    format!("count(*), coalesce(sum(('x' || encode(substring({row}, 1, 8), 'hex'))::bit(64)::bigint), 0)::text")
}

/// What a row's text has of a column. Of a long string of bytes its hash, as the text of a row has its limit.
fn value(column: &Column, side: Side) -> String {
    let name = match side {
        Side::Source => ident(&column.source),
        Side::Destination => ident(&column.destination),
    };
    if column.value_type() == "bytea" && column.destination_type == "bytea" { format!("sha256({name})") } else { name }
}

/// Whether equal values of a column have equal texts at both sides: it has the same type there, or is its own text.
fn is_compared(column: &Column) -> bool {
    let (source, destination) = (column.value_type(), column.destination_type.as_str());
    let is_text = destination == "text" || destination == "text[]" && source.ends_with("[]");
    (source == destination || is_text) && !UNLIKE.contains(&source.trim_end_matches("[]"))
}

/// What the verification does not look at, for people.
pub fn remark(table: &TableSchema, verification: Verification) -> Option<String> {
    let left_out: Vec<String> = table.copied().filter(|c| !is_compared(c)).map(|c| format!("{:?}", c.destination)).collect();
    (verification == Verification::Checksum && !left_out.is_empty()).then(|| {
        format!(
            "the checksum leaves out column {}: its type is another at the destination, or its text differs between servers",
            left_out.join(", ")
        )
    })
}

/// Compares what both sides have. The error names the table and the numbers, never a value.
pub fn compare(table: &TableSchema, at_source: &Measure, found: &Measure) -> Result<(), Failure> {
    if at_source == found {
        return Ok(());
    }
    let (source, destination) = (&table.source, &table.destination);
    let difference = if at_source.rows == found.rows {
        format!(
            "the source's {source} and the new {destination} have {} rows each, but not the same values: their checksums differ",
            found.rows
        )
    } else {
        format!(
            "the source's {source} has {} rows in the snapshot that it was loaded from, the new {destination} has {}",
            at_source.rows, found.rows
        )
    };
    let message = format!(
        "{difference}. Nothing was swapped. Look for what else writes to the table while it is called _resync, such as a trigger or a script, then apply a new MirrorResync"
    );
    Err(Failure { reason: "VerificationFailed".into(), message, permanent: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Identity, TableName};

    fn table(columns: &[(&str, &str)]) -> TableSchema {
        let column = |(source, destination): &(&str, &str)| Column {
            source: format!("{source} s"),
            destination: format!("{source} d"),
            source_type: (*source).into(),
            base_type: None,
            source_type_oid: 1,
            destination_type: (*destination).into(),
            not_null: false,
            generated: None,
            binary: true,
            as_text: false,
        };
        let name = |name: &str| TableName { schema: "public".into(), name: name.into() };
        let columns = columns.iter().map(column).collect();
        TableSchema {
            number: 0,
            source: name("a"),
            source_oid: 1,
            destination: name("b"),
            columns,
            identity: Identity::FullRow,
            partition_key: None,
        }
    }

    #[test]
    fn a_difference_is_told_with_both_numbers() {
        let measure = |rows, sum: &str| Measure { rows, sum: Some(sum.into()) };
        let verdict = |a: Measure, b: Measure| compare(&table(&[]), &a, &b).map_err(|f| (f.reason, f.message));
        assert_eq!(verdict(measure(7, "1"), measure(7, "1")), Ok(()));
        for (a, b, words) in [
            (measure(7, "1"), measure(6, "2"), "public.a has 7 rows in the snapshot that it was loaded from, the new public.b has 6."),
            (measure(7, "1"), measure(7, "2"), "7 rows each, but not the same values"),
            (measure(7, "1"), Measure { rows: 7, sum: None }, "checksums differ"),
        ] {
            let (reason, message) = verdict(a, b).unwrap_err();
            assert!(reason == "VerificationFailed" && message.contains(words), "{message}");
        }
    }

    #[test]
    fn only_columns_that_have_the_same_text_on_both_sides_are_summed() {
        let mixed = table(&[
            ("bigint", "bigint"),
            ("public.mood", "text"),
            ("public.mood[]", "text[]"),
            ("bytea", "bytea"),
            ("integer", "bigint"),
            ("xml", "xml"),
            ("money[]", "money[]"),
        ]);
        let summed = selection(&mixed, Side::Source, Verification::Checksum);
        assert!(summed.contains(r#"ROW("bigint s", "public.mood s", "public.mood[] s", sha256("bytea s"))::text"#), "{summed}");
        assert!(selection(&mixed, Side::Destination, Verification::Checksum).contains(r#"ROW("bigint d", "#));
        assert_eq!(selection(&mixed, Side::Source, Verification::RowCount), "count(*), NULL::text");
        let note = remark(&mixed, Verification::Checksum).unwrap();
        assert!(note.contains(r#""integer d", "xml d", "money[] d""#), "{note}");
        assert_eq!((remark(&mixed, Verification::RowCount), remark(&table(&[("date", "date")]), Verification::Checksum)), (None, None));
    }
}
