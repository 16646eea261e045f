//! The relation that bears a table's live name now, and whose it is.

use tokio_postgres::GenericClient;

use super::{
    error::{At, permanent},
    ledger,
};
use crate::{brief::Brief, destination::Error, table::TableName};

/// A relation with a live name.
pub(super) struct Live {
    pub(super) oid: u32,
    /// `pg_class.relkind`: `r` is an ordinary table.
    pub(super) kind: String,
    /// Made by an earlier epoch of this mirror.
    pub(super) ours: bool,
    /// The mirror that writes it, if one does.
    pub(super) mirror: Option<String>,
}

/// Finds it; `None` if nothing bears the name.
pub(super) async fn find(client: &impl GenericClient, brief: &Brief, table: &TableName) -> Result<Option<Live>, Error> {
    if !ledger::exists(client).await? {
        // Before the first mirror of this database nothing can be ours.
        let sql = "SELECT c.oid, c.relkind::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = $1 AND c.relname = $2";
        let row = client.query_opt(sql, &[&table.schema, &table.name]).await.at("looking for the live table")?;
        return Ok(row.map(|r| Live { oid: r.get(0), kind: r.get(1), ours: false, mirror: None }));
    }
    let sql = "SELECT c.oid, c.relkind::text, coalesce(o.ours, false), o.name
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               LEFT JOIN LATERAL (SELECT t.mirror = $1::text::uuid AS ours, CASE WHEN e.epoch = m.live_epoch THEN m.name END AS name FROM _mirror_operator.table t
                                  JOIN _mirror_operator.epoch e USING (mirror, epoch) JOIN _mirror_operator.mirror m USING (mirror)
                                  WHERE t.relation = c.oid AND e.swapped_at IS NOT NULL LIMIT 1) o ON true
               WHERE n.nspname = $2 AND c.relname = $3";
    let row = client.query_opt(sql, &[&brief.mirror_uid, &table.schema, &table.name]).await.at("looking for the live table")?;
    Ok(row.map(|r| Live { oid: r.get(0), kind: r.get(1), ours: r.get(2), mirror: r.get(3) }))
}

/// Why the relation cannot be replaced, if so: reason and message. An empty table of nobody's may be.
pub(super) async fn refusal(client: &impl GenericClient, live: &Live, table: &TableName) -> Result<Option<(&'static str, String)>, Error> {
    if live.ours {
        return Ok(None);
    }
    if let Some(mirror) = &live.mirror {
        return Ok(Some((
            "Conflict",
            format!("{table} at the destination is written by Mirror {mirror}: two mirrors cannot share a table"),
        )));
    }
    if live.kind != "r" {
        return Ok(Some(("TableNotOurs", format!("{table} at the destination is not an ordinary table: rename or drop it"))));
    }
    let sql = format!("SELECT EXISTS (SELECT FROM {})", crate::postgres::qualified(&table.schema, &table.name));
    // Without the right to read it nobody can say that it is empty.
    let filled = match client.query_one(&sql, &[]).await {
        Ok(row) => row.get(0),
        Err(error) if super::error::sqlstate(&error) == Some("42501") => true,
        Err(error) => return Err(super::error::meaning(&error, "looking for the live table")),
    };
    let message = format!("{table} exists at the destination, was not made by this mirror and is not empty: empty, rename or drop it");
    Ok(filled.then_some(("TableNotOurs", message)))
}

/// The refusal as an error.
pub(super) async fn refuse(client: &impl GenericClient, live: &Live, table: &TableName) -> Result<(), Error> {
    match refusal(client, live, table).await? {
        None => Ok(()),
        Some((reason, message)) => Err(permanent(reason, message)),
    }
}
