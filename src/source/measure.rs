//! What the source has of a table in the snapshot that it is loaded from. I/O.

use super::{
    Error,
    copy::{Reader, reading, refuse_changed},
};
use crate::{
    api::resync::Verification,
    brief::Brief,
    postgres::Lsn,
    table::TableSchema,
    verify::{self, Measure, Side},
};

/// A session that reads chunks has one process read; here nothing depends on the order.
const AS_SERVER_LIKES: &str = "SET LOCAL max_parallel_workers_per_gather TO DEFAULT";

impl Reader {
    /// Whether nobody else measures this table. Told by an advisory lock, which ends with the session.
    pub async fn claim_table(&mut self, brief: &Brief, table: u32) -> Result<bool, Error> {
        self.claim_as(&brief.application_name("measure"), table).await
    }

    /// Measures a table as the snapshot `name` sees it: the table, and not what the plan says of its blocks.
    pub async fn measure(&mut self, name: &str, lsn: Lsn, table: &TableSchema, verification: Verification) -> Result<Measure, Error> {
        self.begin(name, lsn).await?;
        let what = format!("counting the rows of {}", table.source);
        let failed = |cause| reading(what.clone(), cause);
        let named = self.query(&format!("{AS_SERVER_LIKES}; {}", relation(table.source_oid))).await.map_err(failed)?;
        let Some([Some(name), Some(scope)]) = named.first().map(Vec::as_slice) else {
            let message = format!("{}: the table is gone since the plan was made; resync the mirror", table.source);
            return Err(Error::refused("SourceSchemaChanged", message));
        };
        let selection = verify::selection(table, Side::Source, verification);
        let answer = self.query(&format!("SELECT {selection} FROM {scope}{name}")).await.map_err(failed)?;
        let Some([Some(rows), sum]) = answer.first().map(Vec::as_slice) else {
            return Err(Error::Passing(format!("{what}: the answer has another form")));
        };
        let rows = rows.parse().map_err(|_| Error::Passing(format!("{what}: the answer is no number")))?;
        refuse_changed(&mut self.session, table.source_oid, name, &what).await?;
        self.query("COMMIT").await.map_err(failed)?;
        Ok(Measure { rows, sum: sum.clone() })
    }
}

/// What is read, by its name of now: a partitioned table with its partitions, another one without what may have come to inherit from it.
fn relation(oid: u32) -> String {
    format!(
        "SELECT oid::regclass::text, CASE relkind WHEN 'p' THEN '' ELSE 'ONLY ' END FROM pg_class WHERE oid = {oid} AND pg_relation_size(oid) IS NOT NULL"
    )
}
