//! What a shadow is compared by, and what came of it.

use super::{
    Postgres,
    error::At,
    ledger::{self, remark},
    session::{commit, fence},
};
use crate::{
    destination::{Error, gone},
    postgres::{ident, qualified},
    table::TableSchema,
    verify::{self, Measure, Side},
};

/// See [`Destination::measured`](crate::destination::Destination::measured).
pub(super) async fn measured(at: &Postgres, table: &TableSchema, generation: u32, at_source: &Measure) -> Result<(), Error> {
    let doing = "recording what the source has";
    let (epoch, number) = (at.brief.epoch as i32, table.number as i32);
    let mut session = at.session().await?;
    let tx = session.begin(doing).await?;
    // Behind the fence no snapshot is renewed until this is written.
    fence(&tx, &at.brief).await?;
    let sql = "UPDATE _mirror_operator.table SET source_rows = $5, source_sum = $6
               WHERE mirror = $1::text::uuid AND epoch = $2 AND number = $3 AND generation = $4";
    let (generation, rows) = (generation as i32, at_source.rows as i64);
    let written = tx.execute(sql, &[&at.brief.mirror_uid, &epoch, &number, &generation, &rows, &at_source.sum]).await.at(doing)?;
    if written == 0 {
        let sql = "SELECT generation FROM _mirror_operator.table WHERE mirror = $1::text::uuid AND epoch = $2 AND number = $3";
        let row = tx.query_opt(sql, &[&at.brief.mirror_uid, &epoch, &number]).await.at(doing)?.ok_or_else(|| gone(&at.brief))?;
        return Err(Error::StaleSnapshot { current: row.get::<_, i32>(0) as u32 });
    }
    commit(tx, doing).await?;
    session.keep();
    Ok(())
}

/// See [`Destination::measure`](crate::destination::Destination::measure).
pub(super) async fn measure(at: &Postgres, table: &TableSchema) -> Result<Measure, Error> {
    let session = at.session().await?;
    let entries = ledger::entries(session.client(), &at.brief).await?;
    let entry = entries.iter().find(|e| e.number == table.number as i32).ok_or_else(|| gone(&at.brief))?;
    let shadow = qualified(&entry.live.schema, &entry.shadow);
    let deletes = &at.brief.soft_delete;
    let not_carried = if deletes.enabled { format!(" WHERE NOT {}", ident(&deletes.column)) } else { String::new() };
    let selection = verify::selection(&entry.schema, Side::Destination, at.brief.verification);
    let row = session.client().query_one(&format!("SELECT {selection} FROM {shadow}{not_carried}"), &[]).await;
    let row = row.at(&format!("counting rows of {}", entry.live))?;
    session.keep();
    Ok(Measure { rows: row.get::<_, i64>(0) as u64, sum: row.get(1) })
}

/// See [`Destination::verified`](crate::destination::Destination::verified).
pub(super) async fn verified(at: &Postgres, table: &TableSchema, found: &Measure, note: Option<&str>) -> Result<(), Error> {
    let doing = "recording what was verified";
    let (epoch, number) = (at.brief.epoch as i32, table.number as i32);
    let mut session = at.session().await?;
    let tx = session.begin(doing).await?;
    fence(&tx, &at.brief).await?;
    let sql = "UPDATE _mirror_operator.table SET verified_rows = $4
               WHERE mirror = $1::text::uuid AND epoch = $2 AND number = $3 AND verified_rows IS NULL";
    let first = tx.execute(sql, &[&at.brief.mirror_uid, &epoch, &number, &(found.rows as i64)]).await.at(doing)? > 0;
    if let (true, Some(note)) = (first, note) {
        remark(&tx, &at.brief, number, &[note.to_string()]).await?;
    }
    commit(tx, doing).await?;
    session.keep();
    Ok(())
}
