//! The mirror's slots, publications and sessions at the source. Names are derived, so only what is this mirror's own is ever found here.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::{Error, error::failure};
use crate::{
    api::mirror::Mode,
    brief::Brief,
    name,
    postgres::{Lsn, ident, literal, qualified},
    report::Failure,
    table::TableSchema,
};

/// How long a slot's holder may take to end once it was told to.
const END_OF_WALSENDER: Duration = Duration::from_secs(60);
/// How long a statement may wait for a table's lock: while it waits, others queue up behind it.
const LOCK_WAIT: &str = "SET lock_timeout = '3s'";

/// Drops the slots and publications of the epochs that `which` selects, and ends their sessions. What is gone already is fine.
pub async fn drop_epochs(client: &Client, brief: &Brief, which: impl Fn(u32) -> bool) -> Result<(), Error> {
    let ours = |name: &str| name::epoch_of_slot(&brief.mirror, &brief.mirror_uid, name).is_some_and(&which);
    end_sessions(client, brief, &which).await?;
    for slot in names(client, "SELECT slot_name::text FROM pg_replication_slots").await? {
        // Nor is the user's own slot.
        if ours(&slot) && brief.own_slot.as_ref() != Some(&slot) {
            drop_slot(client, &slot).await?;
        }
    }
    for publication in names(client, "SELECT pubname::text FROM pg_publication").await? {
        // The user's own publication is never dropped, whatever its name.
        if ours(&publication) && brief.publication.as_ref() != Some(&publication) {
            let doing = format!("dropping publication {publication}");
            client.batch_execute(&format!("DROP PUBLICATION IF EXISTS {}", ident(&publication))).await.map_err(Error::query(doing))?;
        }
    }
    Ok(())
}

/// Whether pods of some epochs have sessions.
pub async fn has_sessions(client: &Client, brief: &Brief, which: impl Fn(u32) -> bool) -> Result<bool, Error> {
    let query = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'mo %'";
    let rows = client.query(query, &[]).await.map_err(Error::query("listing the mirror's sessions"))?;
    Ok(rows.iter().any(|row| epoch_of_session(brief, row.get(0)).is_some_and(&which)))
}

/// Ends the sessions of the pods of some epochs, which they tell by their `application_name`.
async fn end_sessions(client: &Client, brief: &Brief, which: impl Fn(u32) -> bool) -> Result<(), Error> {
    let query = "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE 'mo %' AND pid <> pg_backend_pid()";
    for row in client.query(query, &[]).await.map_err(Error::query("listing the mirror's sessions"))? {
        let (pid, application): (i32, String) = (row.get(0), row.get(1));
        if epoch_of_session(brief, &application).is_some_and(&which) {
            // Without the right to end it, it ends with its pod; only a slot's holder has to be gone, and that is awaited apart.
            if let Err(error) = client.query("SELECT pg_terminate_backend($1)", &[&pid]).await {
                tracing::debug!(%pid, error = %crate::postgres::connect::words(&error), "session not ended");
            }
        }
    }
    Ok(())
}

/// The epoch of a session of this mirror; `None` if it is another's, or one that serves no epoch's data (see [`housekeeping`]).
fn epoch_of_session(brief: &Brief, application_name: &str) -> Option<u32> {
    let rest = application_name.strip_prefix(&format!("mo {} e", name::short_uid(&brief.mirror_uid)))?;
    rest.split(' ').next()?.parse().ok()
}

/// The `application_name` of sessions that tidy up: not an epoch's, so that two of them never end each other.
pub fn housekeeping(brief: &Brief) -> String {
    format!("mo {} housekeeping", name::short_uid(&brief.mirror_uid))
}

/// Drops a slot and, first, whoever streams from it.
pub async fn drop_slot(client: &Client, slot: &str) -> Result<(), Error> {
    let doing = || Error::query(format!("dropping replication slot {slot}"));
    let started = Instant::now();
    loop {
        client
            .query(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL",
                &[&slot],
            )
            .await
            .map_err(doing())?;
        let dropped =
            client.query("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", &[&slot]).await;
        match dropped {
            Ok(_) => return Ok(()),
            Err(error) => match error.code().map(|c| c.code()) {
                // Undefined object: somebody else was faster.
                Some("42704") => return Ok(()),
                // Object in use: its holder is still ending.
                Some("55006") if started.elapsed() < END_OF_WALSENDER => tokio::time::sleep(Duration::from_millis(50)).await,
                _ => return Err(doing()(error)),
            },
        }
    }
}

/// What the source says of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What the slot's consumer has confirmed; changes before it are gone.
    pub confirmed: Lsn,
    /// Why it can no longer be read, if so.
    pub lost: Option<String>,
}

/// Looks at a slot. A slot that was invalidated for whatever cause has `wal_status` lost; versions from 17 on name the cause.
pub async fn standing(client: &Client, slot: &str) -> Result<Standing, Error> {
    let query = "SELECT coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(wal_status = 'lost', false),
                        to_jsonb(s) ->> 'invalidation_reason', current_setting('max_slot_wal_keep_size')
                   FROM pg_replication_slots s WHERE slot_name = $1";
    let row = client.query_opt(query, &[&slot]).await.map_err(Error::query(format!("looking at replication slot {slot}")))?;
    let Some(row) = row else {
        return Ok(Standing { confirmed: Lsn(0), lost: Some(format!("slot {slot} does not exist at the source")) });
    };
    let confirmed = row.get::<_, &str>(0).parse().map_err(Error::Passing)?;
    let cause: Option<&str> = row.get(2);
    let lost = row.get::<_, bool>(1).then(|| match cause.unwrap_or("wal_removed") {
        "wal_removed" => {
            let limit: &str = row.get(3);
            format!("slot {slot} was invalidated: the source has removed WAL that it needs (max_slot_wal_keep_size is {limit})")
        }
        other => format!("slot {slot} was invalidated by the source ({other})"),
    });
    Ok(Standing { confirmed, lost })
}

/// What keeps a slot of the user's own from being streamed by this mirror, each with its cure.
pub async fn problems(client: &Client, brief: &Brief) -> Result<Vec<Failure>, Error> {
    let Some(slot) = &brief.own_slot else { return Ok(vec![]) };
    let creation = format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput')", literal(slot));
    let row = client.query_opt(OWN, &[slot]).await.map_err(Error::query(format!("looking at replication slot {slot}")))?;
    let Some(row) = row else {
        return Ok(vec![failure("SlotMissing", format!("the source has no replication slot {slot}, which source.slot names: {creation}"))]);
    };
    let anew = format!("SELECT pg_drop_replication_slot({}); {creation}", literal(slot));
    let mut problems = vec![];
    if let Some(why) = row.get::<_, Option<&str>>("unfit") {
        problems.push(failure(
            "SlotUnusable",
            format!(
                "replication slot {slot} {why}, and source.slot must be a lasting logical one of plugin pgoutput in this database: {anew}"
            ),
        ));
    } else if let Some(cause) = standing(client, slot).await?.lost {
        problems.push(failure("SlotLost", format!("{cause}. Make it anew: {anew}")));
    }
    // That of an earlier epoch ends with this one's beginning.
    let reader: Option<(i32, &str)> = row.get::<_, Option<i32>>("active_pid").zip(row.get("reader"));
    if let Some((pid, reader)) = reader.filter(|(_, reader)| epoch_of_session(brief, reader).is_none()) {
        problems.push(failure(
            "SlotInUse",
            format!("replication slot {slot} is streamed by somebody else (pid {pid}, application {reader:?}): a slot serves one only"),
        ));
    }
    Ok(problems)
}

/// A slot of two phases sends prepared transactions by messages that nobody asked for here.
const OWN: &str = "
SELECT CASE WHEN s.slot_type <> 'logical' THEN 'is physical'
            WHEN s.plugin <> 'pgoutput' THEN 'has the plugin ' || s.plugin
            WHEN s.database <> current_database() THEN 'is of database ' || s.database
            WHEN s.temporary THEN 'is temporary'
            WHEN s.two_phase THEN 'has two phases' END AS unfit,
       s.active_pid, coalesce(a.application_name, '') AS reader
  FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
 WHERE s.slot_name = $1";

/// Refuses a snapshot that a slot of the user's own would not go on from: changes between the two would be missing.
pub async fn refuse_gap(client: &Client, brief: &Brief, snapshot: Lsn) -> Result<(), Error> {
    let Some(slot) = &brief.own_slot else { return Ok(()) };
    let Standing { confirmed, lost } = standing(client, slot).await?;
    match lost {
        Some(cause) => Err(Error::refused("SlotLost", cause)),
        None if confirmed > snapshot => {
            let message =
                format!("replication slot {slot} has been moved on to {confirmed} by somebody else, beyond the snapshot at {snapshot}");
            Err(Error::refused("SlotInUse", message))
        }
        None => Ok(()),
    }
}

/// Refuses to go on with an epoch whose slot is lost before its tables are live: what has changed since its snapshot cannot be streamed.
pub async fn refuse_lost(client: &Client, brief: &Brief) -> Result<(), Error> {
    if brief.mode == Mode::SnapshotOnly {
        return Ok(());
    }
    match standing(client, &brief.slot()).await?.lost {
        None => Ok(()),
        Some(cause) => {
            let cure = "Nothing was swapped. Give the source more room for WAL (max_slot_wal_keep_size), then apply a new MirrorResync";
            Err(Error::refused("SlotLost", format!("{cause}, so changes since the snapshot are missing. {cure}")))
        }
    }
}

/// Makes this epoch's publication anew, of exactly these tables. Must be done before the slot: the stream sees the catalog as of the slot's start.
pub async fn create_publication(client: &Client, brief: &Brief, tables: &[TableSchema]) -> Result<(), Error> {
    if brief.publication.is_some() || brief.mode == Mode::SnapshotOnly {
        return Ok(());
    }
    let name = brief.publication();
    let list: Vec<String> = tables.iter().map(|t| qualified(&t.source.schema, &t.source.name)).collect();
    let sql = format!(
        "{LOCK_WAIT}; BEGIN; DROP PUBLICATION IF EXISTS {0}; CREATE PUBLICATION {0} FOR TABLE ONLY {1} \
         WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true); COMMIT; RESET lock_timeout",
        ident(&name),
        list.join(", ONLY ")
    );
    let made = client.batch_execute(&sql).await;
    if made.is_err() {
        // Leaves the failed transaction; its own error is the one to tell.
        let _ = client.batch_execute("ROLLBACK; RESET lock_timeout").await;
    }
    made.map_err(Error::query(format!("creating publication {name}")))
}

/// In words, whom the creation of a slot waits for: it needs every transaction that was running when it began to end. Empty if nobody is known. The words
/// stay the same for as long as it waits for the same: they go into conditions and Events.
pub async fn blockers(client: &Client, application_name: &str) -> Result<String, Error> {
    let rows = client.query(BLOCKERS, &[&application_name]).await.map_err(Error::query("looking for what slot creation waits for"))?;
    let words: Vec<String> = rows
        .iter()
        .map(|row| {
            let (pid, user, app, since): (i32, String, String, String) = (row.get(0), row.get(1), row.get(2), row.get(3));
            format!("pid {pid} (role {user}, application {app:?}, since {since})")
        })
        .collect();
    Ok(words.join(", "))
}

/// Sessions with a transaction that writes and began before the walsender's command; a transaction that only reads blocks nothing.
const BLOCKERS: &str = "
SELECT a.pid, coalesce(a.usename::text, ''), coalesce(a.application_name, ''), coalesce(date_trunc('second', a.xact_start)::text, '?')
  FROM pg_stat_activity w
  JOIN pg_stat_activity a ON a.pid = ANY (pg_blocking_pids(w.pid))
 WHERE w.application_name = $1
UNION
SELECT 0, p.owner::text, 'prepared transaction ' || p.gid, date_trunc('second', p.prepared)::text
  FROM pg_prepared_xacts p
 ORDER BY 4, 1, 3 LIMIT 5";

async fn names(client: &Client, query: &str) -> Result<Vec<String>, Error> {
    let rows = client.query(query, &[]).await.map_err(Error::query("listing slots and publications"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
