//! Connections to the destination, and the fence that keeps earlier epochs out.

use tokio_postgres::{Client, Transaction};

use super::{
    Postgres,
    error::{At, lock_not_granted},
    ledger,
};
use crate::{
    brief::Brief,
    destination::{Error, gone},
    postgres,
};

/// Lets the server notice within about a minute that the other side is gone, so that the locks of a lost pod do not outlive it for hours.
const NOTICE_LOST_CLIENTS: &str = "SET tcp_keepalives_idle = 20; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3; SET client_connection_check_interval = 2000";

/// A connection on loan. It goes back only by [`keep`](Self::keep): after an error or a cancelled future nobody knows what it is at.
pub(super) struct Session<'a> {
    client: Client,
    home: &'a Postgres,
}

impl Session<'_> {
    /// Begins a transaction.
    pub(super) async fn begin(&mut self, doing: &str) -> Result<Transaction<'_>, Error> {
        self.client.transaction().await.at(doing)
    }

    /// The bare connection.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Gives the connection back for the next call.
    pub(super) fn keep(self) {
        if !self.client.is_closed() {
            self.home.idle().push(self.client);
        }
    }
}

impl Postgres {
    /// A connection for one call; calls that run at the same time have one each.
    pub(super) async fn session(&self) -> Result<Session<'_>, Error> {
        loop {
            let Some(client) = self.idle().pop() else { break };
            if !client.is_closed() {
                return Ok(Session { client, home: self });
            }
        }
        let mut client = postgres::connect(&self.to, &self.brief.application_name("destination")).await?;
        client.batch_execute(NOTICE_LOST_CLIENTS).await.at("preparing a session")?;
        ledger::upgrade(&mut client, &self.brief).await?;
        Ok(Session { client, home: self })
    }
}

/// Commits. An error here leaves the outcome unknown.
pub(super) async fn commit(tx: Transaction<'_>, doing: &str) -> Result<(), Error> {
    tx.commit().await.at(doing)
}

/// Passes the fence together with others: no newer epoch can begin, nor can this one's snapshot be replaced or its tables be swapped, until the
/// transaction ends.
///
/// The fence is an advisory lock and not a row lock: the server grants advisory locks in the order of their arrival, whereas a `FOR SHARE`
/// passes by a waiting `FOR UPDATE`, which many loaders would thus keep waiting for ever.
pub(super) async fn fence(tx: &Transaction<'_>, brief: &Brief) -> Result<(), Error> {
    pass(tx, brief, "pg_advisory_xact_lock_shared").await.at("passing the fence")?;
    check(tx, brief).await
}

/// Passes the fence alone.
pub(super) async fn fence_alone(tx: &Transaction<'_>, brief: &Brief) -> Result<(), Error> {
    pass(tx, brief, "pg_advisory_xact_lock").await.at("passing the fence")?;
    check(tx, brief).await
}

/// The same where there is no hurry: false, and the transaction of no further use, if others are behind the fence. Whoever waits for it makes those wait
/// who come after him, and a loader that builds an index is behind it for long: the epoch whose tables are live commits its changes there too.
pub(super) async fn fence_alone_soon(tx: &Transaction<'_>, brief: &Brief) -> Result<bool, Error> {
    let doing = "passing the fence";
    tx.batch_execute("SET LOCAL lock_timeout = '100ms'").await.at(doing)?;
    match pass(tx, brief, "pg_advisory_xact_lock").await {
        Err(error) if lock_not_granted(&error) => return Ok(false),
        other => other.at(doing)?,
    }
    tx.batch_execute("SET LOCAL lock_timeout = 0").await.at(doing)?;
    check(tx, brief).await.map(|()| true)
}

/// Takes the fence's lock. A statement of its own: one that both waits and reads would read what was true before it waited.
pub(super) async fn pass(tx: &Transaction<'_>, brief: &Brief, function: &str) -> Result<(), tokio_postgres::Error> {
    let key = postgres::literal(&format!("mirror-operator fence {}", brief.mirror_uid));
    tx.batch_execute(&format!("SELECT {function}(hashtextextended({key}, 0))")).await
}

/// Whether the epoch is still the newest one.
pub(super) async fn check(tx: &Transaction<'_>, brief: &Brief) -> Result<(), Error> {
    let row = tx
        .query_opt("SELECT epoch FROM _mirror_operator.mirror WHERE mirror = $1::text::uuid", &[&brief.mirror_uid])
        .await
        .at("reading the ledger")?;
    match row.map(|r| r.get::<_, i32>(0) as u32) {
        None => Err(gone(brief)),
        Some(newest) if newest > brief.epoch => Err(Error::Superseded(newest)),
        Some(_) => Ok(()),
    }
}

/// Waits until no other caller works on this table for the same purpose; false if `wait` is false and one does.
pub(super) async fn claim(tx: &Transaction<'_>, brief: &Brief, purpose: &str, number: i32, wait: bool) -> Result<bool, Error> {
    let key = postgres::literal(&format!("mirror-operator {purpose} {} {} {number}", brief.mirror_uid, brief.epoch));
    if wait {
        tx.batch_execute(&format!("SELECT pg_advisory_xact_lock(hashtextextended({key}, 0))")).await.at("waiting for another worker")?;
        return Ok(true);
    }
    let row = tx.query_one(&format!("SELECT pg_try_advisory_xact_lock(hashtextextended({key}, 0))"), &[]).await.at("claiming a table")?;
    Ok(row.get(0))
}
