//! A transaction over the ledger and the tables of an epoch.
//!
//! Statements of an explicit transaction read what is committed when they begin, and an UPDATE, DELETE or MERGE locks its table until the end (Snowflake docs,
//! "Transactions", "Resource locking"). All that is written passes the fence, an UPDATE of one row of the mirror's ledger: so writers of one mirror come one after
//! the other from there on, and find what the one before them has left.

use std::time::{Duration, Instant};

use super::{
    Snowflake,
    answer::Answer,
    client::Session,
    error::{Refusal, meaning},
    ledger::{self, Entry, NEWEST},
};
use crate::destination::{Error, fact::Facts, gone};

/// The service aborts a transaction that is idle for five minutes while it blocks another (Snowflake docs, "Transactions"). What the session's next statement does
/// then is not documented; outside of a transaction it would stand for itself. So a process that was frozen for long sends none.
const IDLE: Duration = Duration::from_secs(240);

/// Rolled back unless it is committed.
pub(super) struct Transaction<'a> {
    at: &'a Snowflake,
    /// `None` once it is over.
    session: Option<Session>,
    /// When the last statement was answered.
    answered: Instant,
}

/// Whether the service may have given up a transaction whose last statement was answered then.
fn is_stale(answered: Instant, now: Instant) -> bool {
    now.saturating_duration_since(answered) >= IDLE
}

impl<'a> Transaction<'a> {
    /// Begins one in a session that nothing is open in.
    pub(super) async fn begin(at: &'a Snowflake) -> Result<Self, Error> {
        // One that has idled for too long says so now.
        for _ in 0..4 {
            let mut session = at.client()?.session().await.map_err(|e| meaning(&e, "opening a session"))?;
            match session.query("BEGIN").await {
                Ok(_) => return Ok(Self { at, session: Some(session), answered: Instant::now() }),
                Err(refusal) if refusal.ends_session() && !refusal.code.is_empty() => {}
                Err(refusal) => return Err(meaning(&refusal, "beginning a transaction")),
            }
        }
        Err(Error::Transient("beginning a transaction: no session lasts".into()))
    }

    /// The same in a session of the caller's, who gets it back by [`commit_and_keep`](Self::commit_and_keep).
    pub(super) async fn begin_in(at: &'a Snowflake, mut session: Session) -> Result<Self, Error> {
        session.query("BEGIN").await.map_err(|e| meaning(&e, "beginning a transaction"))?;
        Ok(Self { at, session: Some(session), answered: Instant::now() })
    }

    /// Begins one and passes the fence.
    pub(super) async fn fenced(at: &'a Snowflake) -> Result<Self, Error> {
        let mut transaction = Self::begin(at).await?;
        transaction.fence("TRUE").await?;
        Ok(transaction)
    }

    /// Executes a statement; the caller looks at the error.
    pub(super) async fn try_query(&mut self, sql: &str) -> Result<Answer, Refusal> {
        if is_stale(self.answered, Instant::now()) {
            // Closed rather than kept: nobody knows what it stands in.
            self.session = None;
        }
        let Some(session) = &mut self.session else {
            return Err(Refusal::unheard("the transaction is over, or was left alone for too long"));
        };
        let answer = session.query(sql).await;
        self.answered = Instant::now();
        answer
    }

    /// Executes a statement.
    pub(super) async fn query(&mut self, sql: &str, doing: &str) -> Result<Answer, Error> {
        self.try_query(sql).await.map_err(|e| meaning(&e, doing))
    }

    /// Stops if a newer epoch has begun, and keeps one from beginning, and all other writers of the mirror waiting, until this transaction ends. `also` is another
    /// condition, of whose failure the caller knows the reason: then this is [`Error::Displaced`].
    pub(super) async fn fence(&mut self, also: &str) -> Result<(), Error> {
        let (ledger, epoch) = (self.at.ledger(), self.at.brief.epoch);
        let sql = format!(
            "UPDATE {ledger} SET \"AT\" = SYSDATE() WHERE \"EPOCH\" = 0 AND \"KIND\" = '{NEWEST}' AND \"VERSION\" = {epoch} AND {also}"
        );
        let outcome = self.try_query(&sql).await;
        match outcome {
            Ok(answer) if answer.affected() > 0 => return Ok(()),
            Err(refusal) if !refusal.is_missing() => return Err(meaning(&refusal, "passing the fence")),
            _ => {}
        }
        self.roll_back().await;
        self.at.fence().await?;
        Err(if also == "TRUE" { Error::Transient("the fence was moved; it is looked at again".into()) } else { Error::Displaced })
    }

    /// What the ledger says of this epoch under a condition.
    pub(super) async fn facts_where(&mut self, condition: &str) -> Result<Facts, Error> {
        let sql = self.at.facts_sql(condition);
        Ok(ledger::read(&self.query(&sql, "reading the ledger").await?))
    }

    /// Records facts.
    pub(super) async fn record(&mut self, entries: &[Entry]) -> Result<(), Error> {
        for sql in self.at.record_sql(entries) {
            self.query(&sql, "writing the ledger").await?;
        }
        Ok(())
    }

    /// Makes it durable.
    pub(super) async fn commit(mut self) -> Result<(), Error> {
        let session = self.end().await?;
        self.at.client()?.keep(session);
        Ok(())
    }

    /// The same, and gives the session back.
    pub(super) async fn commit_and_keep(mut self) -> Result<Session, Error> {
        self.end().await
    }

    async fn end(&mut self) -> Result<Session, Error> {
        self.query("COMMIT", "committing").await?;
        self.session.take().ok_or_else(|| gone(&self.at.brief))
    }

    /// Leaves nothing of it.
    pub(super) async fn roll_back(&mut self) {
        if let Some(mut session) = self.session.take()
            && session.query("ROLLBACK").await.is_ok()
            && let Ok(client) = self.at.client()
        {
            client.keep(session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_was_left_alone_is_given_up_before_the_service_does_so() {
        let answered = Instant::now();
        let after = |seconds: u64| is_stale(answered, answered + Duration::from_secs(seconds));
        assert_eq!([after(0), after(239), after(240), after(300)], [false, false, true, true]);
        assert!(IDLE < Duration::from_secs(300));
    }
}
