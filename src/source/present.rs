//! Whether the source still has a streaming mirror's tables, and still publishes them. The stream itself does not say so: a table that was dropped,
//! made again or taken out of the publication is only silent.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::{
    Error,
    publication::{self, Gap, Publication},
};
use crate::{
    brief::Brief,
    table::{TableName, TableSchema},
};

/// A table of the source as its catalog has it now.
#[derive(Clone, Debug, PartialEq)]
struct Present {
    oid: u32,
    name: TableName,
    partitioned: bool,
    columns: Vec<String>,
}

/// What keeps changes of the tables from the stream, or brings those of other tables, by the tables' numbers and in words that stay the same for as long as
/// the cause does.
pub async fn drift(client: &Client, brief: &Brief, tables: &[TableSchema]) -> Result<BTreeMap<u32, BTreeSet<String>>, Error> {
    let oids: Vec<u32> = tables.iter().map(|t| t.source_oid).collect();
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables.iter().map(|t| (t.source.schema.as_str(), t.source.name.as_str())).unzip();
    let rows = client.query(PRESENT, &[&oids, &schemas, &names]).await.map_err(Error::query("looking for the mirror's tables"))?;
    let present: Vec<Present> = rows
        .iter()
        .map(|row| Present {
            oid: row.get(0),
            name: TableName { schema: row.get(1), name: row.get(2) },
            partitioned: row.get(3),
            columns: row.get(4),
        })
        .collect();
    let name = brief.publication();
    let publication = publication::read(client, &name).await?.ok_or(name);
    Ok(differences(tables, &present, &publication, brief.publication.is_none()))
}

const PRESENT: &str = "
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p',
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p')
   AND (c.oid = ANY ($1::oid[]) OR (n.nspname::text, c.relname::text) IN (SELECT * FROM unnest($2::text[], $3::text[])))";

/// The comparison itself. The publication, or its name if there is none; `own` is the mirror's own.
fn differences(
    tables: &[TableSchema],
    present: &[Present],
    publication: &Result<Publication, String>,
    own: bool,
) -> BTreeMap<u32, BTreeSet<String>> {
    // The mirror's own publication is made anew by the resync that is asked for anyway.
    let words = |gap: Gap| if own { gap.what } else { format!("{}: {}", gap.what, gap.cure) };
    let mut found = BTreeMap::new();
    for table in tables {
        let mut words_of = BTreeSet::new();
        let now = present.iter().find(|p| p.oid == table.source_oid);
        let now = now.or_else(|| present.iter().find(|p| p.name == table.source));
        let Some(now) = now else {
            found.insert(table.number, BTreeSet::from(["the table was dropped at the source".to_string()]));
            continue;
        };
        if now.oid != table.source_oid {
            words_of.insert(made_again(now.oid, table.source_oid));
        } else if now.name != table.source {
            words_of.insert(format!("the table was renamed at the source: it is {} now, and still what is mirrored", now.name));
        }
        match publication {
            Err(name) => {
                let cure = if own { "" } else { ": make it again" };
                words_of.insert(format!("publication {name} was dropped at the source{cure}"));
            }
            Ok(publication) => {
                let columns = table.copied().map(|c| &c.source).filter(|c| now.columns.contains(c));
                let gaps = [publication.gap(), publication.gap_of(&now.name, now.oid, now.partitioned, columns)];
                words_of.extend(gaps.into_iter().flatten().map(words));
            }
        }
        if !words_of.is_empty() {
            found.insert(table.number, words_of);
        }
    }
    found
}

/// Says that the name is another table's by now.
pub fn made_again(now: u32, before: u32) -> String {
    format!("the table was made again at the source (oid {now} was {before})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        source::publication::Published,
        table::{Column, Identity},
    };

    fn name(name: &str) -> TableName {
        TableName { schema: "public".into(), name: name.into() }
    }

    fn tables() -> Vec<TableSchema> {
        let column = Column {
            source: "id".into(),
            destination: "id".into(),
            source_type: "integer".into(),
            base_type: None,
            source_type_oid: 23,
            destination_type: "integer".into(),
            not_null: true,
            generated: None,
            binary: true,
            as_text: false,
        };
        let columns = vec![column.clone(), Column { source: "v".into(), ..column }];
        vec![TableSchema {
            number: 7,
            source: name("a"),
            source_oid: 5,
            destination: name("a"),
            columns,
            identity: Identity::Key(vec![0]),
            partition_key: None,
        }]
    }

    fn present(oid: u32, table: &str) -> Present {
        Present { oid, name: name(table), partitioned: false, columns: vec!["id".into(), "v".into()] }
    }

    fn publication(oid: u32) -> Publication {
        let tables = vec![Published { oid, filtered: false, columns: vec!["id".into(), "v".into()] }];
        Publication { name: "p".into(), whole: true, via_root: true, tables }
    }

    fn found(present: &[Present], publication: Option<Publication>) -> String {
        let mut all = differences(&tables(), present, &publication.ok_or("p".into()), false);
        all.remove(&7).map(|words| words.into_iter().collect::<Vec<_>>().join("; ")).unwrap_or_default()
    }

    #[test]
    fn each_way_in_which_a_table_falls_silent_is_told_with_its_cure() {
        let add = "publication p does not cover public.a: ALTER PUBLICATION \"p\" ADD TABLE \"public\".\"a\"";
        let (a, other) = (present(5, "a"), Publication { tables: vec![], ..publication(5) });
        let narrow = Publication { tables: vec![Published { oid: 5, filtered: false, columns: vec!["id".into()] }], ..publication(5) };
        let cases = [
            (vec![a.clone()], Some(publication(5)), ""),
            (vec![], Some(publication(5)), "the table was dropped at the source"),
            (vec![present(6, "a")], Some(publication(6)), "the table was made again at the source (oid 6 was 5)"),
            (vec![present(5, "b"), present(6, "a")], Some(publication(5)), "the table was renamed at the source: it is public.b now"),
            (vec![a.clone()], Some(other), add),
            (
                vec![a.clone()],
                Some(Publication { whole: false, ..publication(5) }),
                "publication p leaves out some kinds of changes: ALTER",
            ),
            (vec![a.clone()], Some(narrow.clone()), "publication p publishes only some rows or columns of public.a: ALTER"),
            (vec![Present { columns: vec!["id".into()], ..a.clone() }], Some(narrow), ""),
            (vec![a], None, "publication p was dropped at the source: make it again"),
        ];
        for (present, publication, words) in cases {
            let all = found(&present, publication);
            assert!(if words.is_empty() { all.is_empty() } else { all.starts_with(words) }, "{all:?} for {words:?}");
        }
    }
}
