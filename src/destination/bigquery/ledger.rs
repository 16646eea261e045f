//! The ledger: what is true of each epoch, one table a mirror in the Peer's dataset.
//!
//! A fact is a row that is only ever replaced by one with a higher version, so it does not matter in which order late writers come, nor how often. Rows are
//! inserted and never changed: inserts do not get in each other's way, nor in that of transactions (BigQuery docs, "Multi-statement transactions"). A table for
//! each mirror keeps what BigQuery allows a table in statements from being shared by all.

use prost::Message;
use serde_json::json;

use super::{
    BigQuery, encode,
    error::{Refusal, meaning, permanent},
    job::Statement,
    mark,
    quote::literal,
    types::Type,
};
use crate::{
    destination::{
        Chunk, Error,
        fact::{self, Begun, Fact, Facts, GivenUp, Row, Swapped, Table},
        given_up, gone,
    },
    report::SwapReport,
    table::TableName,
};

/// What the names of ledgers begin with.
pub(super) const LEDGER: &str = "_mirror_operator_";
/// The kind of fact that closes the fence behind earlier epochs: its version is the epoch.
const EPOCH: &str = "epoch";
/// The most that one INSERT may bring: a request may have 10 MB (BigQuery docs, "Quotas and limits", "Query jobs").
const MOST: usize = 9_000_000;

/// A row to be written.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    epoch: u32,
    kind: &'static str,
    number: u32,
    version: u64,
    value: String,
}

/// The row of a fact in the Storage Write API.
#[derive(Clone, PartialEq, prost::Message)]
struct Appended {
    #[prost(int64, optional, tag = "1")]
    epoch: Option<i64>,
    #[prost(string, optional, tag = "2")]
    kind: Option<String>,
    #[prost(int64, optional, tag = "3")]
    number: Option<i64>,
    #[prost(int64, optional, tag = "4")]
    version: Option<i64>,
    #[prost(string, optional, tag = "5")]
    value: Option<String>,
    #[prost(int64, optional, tag = "6")]
    at: Option<i64>,
}

impl BigQuery {
    /// The ledger's name.
    pub(super) fn ledger(&self) -> TableName {
        TableName { schema: self.to.at.database.clone(), name: format!("{LEDGER}{}", self.brief.mirror_uid.replace('-', "_")) }
    }

    /// Creates the ledger, if it is not there.
    async fn create_ledger(&self) -> Result<(), Error> {
        let column = |(name, type_): (&str, &str)| json!({ "name": name, "type": type_, "mode": "REQUIRED" });
        let columns = [
            ("epoch", "INTEGER"),
            ("kind", "STRING"),
            ("number", "INTEGER"),
            ("version", "INTEGER"),
            ("value", "STRING"),
            ("at", "TIMESTAMP"),
        ];
        let resource = json!({
            "schema": { "fields": columns.map(column) },
            "description": format!("What is true of the mirror {}/{} (mirror-operator)", self.brief.namespace, self.brief.mirror),
        });
        self.client()?.create_table(&self.ledger(), resource).await.map_err(|e| meaning(&e, "creating the ledger"))
    }

    /// What the ledger says of this epoch; of these kinds only, unless there are none.
    pub(super) async fn facts(&self, kinds: &[&str]) -> Result<Facts, Error> {
        let kinds: Vec<String> = kinds.iter().map(|kind| literal(kind)).collect();
        self.facts_where(&if kinds.is_empty() { "TRUE".into() } else { format!("kind IN ({})", kinds.join(", ")) }).await
    }

    /// What the ledger says of this epoch under a condition, and which epoch is the newest.
    pub(super) async fn facts_where(&self, condition: &str) -> Result<Facts, Error> {
        let sql = format!(
            "SELECT kind, CAST(number AS STRING), CAST(version AS STRING), value, FORMAT_TIMESTAMP('%FT%H:%M:%E6SZ', at) FROM {} \
             WHERE kind = {epoch_kind} OR epoch = {} AND ({condition}) \
             QUALIFY ROW_NUMBER() OVER (PARTITION BY kind, number ORDER BY version DESC, at) = 1",
            self.quoted(&self.ledger()),
            self.brief.epoch,
            epoch_kind = literal(EPOCH),
        );
        let rows = match self.jobs().await?.rows(sql).await {
            Err(refusal) if is_missing(&refusal) => return Ok(Facts::default()),
            rows => rows.map_err(|e| meaning(&e, "reading the ledger"))?,
        };
        let mut facts = Facts::default();
        for row in rows {
            let [Some(kind), Some(number), Some(version), Some(value), Some(at)] = <[_; 5]>::try_from(row).unwrap_or_default() else {
                return Err(permanent("LedgerUnreadable", "the destination's ledger has rows of another form: start a new resync"));
            };
            let (number, version) = (number.parse().unwrap_or(0), version.parse().unwrap_or(0));
            if kind == EPOCH {
                facts.newest = u32::try_from(version).ok();
            } else {
                facts.add(&kind, number, Row { version, value, at });
            }
        }
        Ok(facts)
    }

    /// A fact of this epoch to be recorded.
    pub(super) fn entry<F: Fact>(&self, number: u32, version: u64, fact: &F) -> Result<Entry, Error> {
        let value = fact::written(fact)?;
        Ok(Entry { epoch: self.brief.epoch, kind: F::KIND, number, version, value })
    }

    /// The statement that records facts.
    pub(super) fn insertion(&self, entries: &[Entry]) -> Result<Statement, Error> {
        let fact = |e: &Entry| json!({ "e": e.epoch.to_string(), "k": e.kind, "n": e.number.to_string(), "v": e.version.to_string(), "x": e.value });
        let facts = serde_json::Value::from(entries.iter().map(fact).collect::<Vec<_>>()).to_string();
        if facts.len() > MOST {
            let message = format!("the plan has {} chunks, more than the ledger takes at once: raise snapshot.chunkSize", entries.len());
            return Err(permanent("PlanTooLarge", message));
        }
        let number = |path: &str| format!("CAST(JSON_VALUE(f, '$.{path}') AS INT64)");
        let sql = format!(
            "INSERT INTO {} (epoch, kind, number, version, value, at) \
             SELECT {}, JSON_VALUE(f, '$.k'), {}, {}, JSON_VALUE(f, '$.x'), CURRENT_TIMESTAMP() FROM UNNEST(JSON_QUERY_ARRAY(@facts)) AS f",
            self.quoted(&self.ledger()),
            number("e"),
            number("n"),
            number("v"),
        );
        Ok(Statement { sql, parameters: vec![("facts", facts)] })
    }

    /// Records facts, all or none.
    pub(super) async fn record(&self, entries: &[Entry]) -> Result<(), Error> {
        let insertion = self.insertion(entries)?;
        self.jobs().await?.run(insertion).await.map_err(|e| self.of_ledger(&e, "writing the ledger"))
    }

    /// Records a fact unless one was recorded for the same step: whoever comes second reads what the first has written.
    pub(super) async fn record_once(&self, step: &str, entry: Entry) -> Result<(), Error> {
        let insertion = self.insertion(&[entry])?;
        self.jobs().await?.run_once(&self.once(step).await?, insertion).await.map_err(|e| self.of_ledger(&e, "writing the ledger"))
    }

    /// Records a fact without a job: what is told often and may be told twice. Costs no query and counts for no quota of statements.
    pub(super) async fn append(&self, entry: &Entry) -> Result<(), Error> {
        let integers = ["epoch", "number", "version"];
        let name_type = |name: &'static str| (name, if integers.contains(&name) { Type::Int64 } else { Type::String });
        let mut fields = ["epoch", "kind", "number", "version", "value"].map(name_type).to_vec();
        fields.push(("at", Type::Timestamp));
        let row = Appended {
            epoch: Some(entry.epoch.into()),
            kind: Some(entry.kind.into()),
            number: Some(entry.number.into()),
            version: i64::try_from(entry.version).ok(),
            value: Some(entry.value.clone()),
            at: Some(jiff::Timestamp::now().as_microsecond()),
        };
        let (writer, batch) = (self.writer().await?, futures::stream::iter([vec![row.encode_to_vec()]]));
        let stream = writer.default_stream(&self.ledger());
        let appended = writer.append(&stream, encode::descriptor(fields.iter().map(|(name, type_)| (*name, type_))), batch).await;
        match appended {
            // A ledger that is new may not be known to this API yet; one that is gone is told by the fence.
            Err(refusal) if is_missing(&refusal) => {
                self.fence().await?;
                Err(Error::Transient(format!("writing the ledger: {}", refusal.words)))
            }
            appended => appended.map(drop).map_err(|e| meaning(&e, "writing the ledger")),
        }
    }

    /// What a refusal to change the ledger means: one that is gone went with its mirror.
    fn of_ledger(&self, refusal: &Refusal, doing: &str) -> Error {
        if is_missing(refusal) { gone(&self.brief) } else { meaning(refusal, doing) }
    }

    /// Whether another epoch of the mirror has begun, and not only its number been used to close the fence.
    pub(super) async fn has_begun(&self, epoch: u32) -> Result<bool, Error> {
        let sql =
            format!("SELECT 1 FROM {} WHERE epoch = {epoch} AND kind = {} LIMIT 1", self.quoted(&self.ledger()), literal(Begun::KIND));
        let rows = self.jobs().await?.rows(sql).await.map_err(|e| meaning(&e, "reading the ledger"))?;
        Ok(!rows.is_empty())
    }

    /// Stops whoever is of an earlier epoch.
    pub(super) async fn fence(&self) -> Result<(), Error> {
        self.facts_where("FALSE").await?.fence(self)
    }

    /// A condition on the ledger that holds while no newer epoch has begun.
    pub(super) fn is_newest(&self) -> String {
        let ledger = self.quoted(&self.ledger());
        format!("(SELECT MAX(version) FROM {ledger} WHERE kind = {}) = {}", literal(EPOCH), self.brief.epoch)
    }
}

impl Facts {
    /// Stops whoever is of an earlier epoch.
    pub(super) fn fence(&self, at: &BigQuery) -> Result<(), Error> {
        match self.newest {
            None => Err(gone(&at.brief)),
            Some(newest) if newest > at.brief.epoch => Err(Error::Superseded(newest)),
            Some(_) => Ok(()),
        }
    }
}

/// Whether there is no ledger.
pub(super) fn is_missing(refusal: &Refusal) -> bool {
    refusal.is("notFound") && !refusal.words.contains("Dataset")
}

/// See [`Destination::begin`](crate::destination::Destination::begin).
///
/// A job that has passed the fence in an earlier epoch may still run: once the new epoch is in the ledger, those are cancelled and waited for.
pub(super) async fn begin(at: &BigQuery) -> Result<(), Error> {
    let facts = at.facts(&[Begun::KIND]).await?;
    match facts.newest {
        None => at.create_ledger().await?,
        Some(newest) if newest > at.brief.epoch => return Err(Error::Superseded(newest)),
        Some(_) => {}
    }
    if facts.get::<Begun>(0)?.is_none() {
        let begun = at.entry(0, 0, &Begun { resync: at.brief.resync_uid.clone(), slot: at.brief.slot() })?;
        let mut insertion = at.insertion(&[closing(at.brief.epoch), begun])?;
        // Read by the very statement that closes the fence: whoever gives the epoch up ends those that began before.
        let (ledger, epoch) = (at.quoted(&at.ledger()), at.brief.epoch);
        insertion.sql += &format!(" WHERE NOT EXISTS (SELECT 1 FROM {ledger} WHERE epoch = {epoch} AND kind = {})", literal(GivenUp::KIND));
        at.jobs().await?.run(insertion).await.map_err(|e| at.of_ledger(&e, "writing the ledger"))?;
        let facts = at.facts(&[Begun::KIND]).await?;
        match facts.newest {
            Some(newest) if newest > at.brief.epoch => return Err(Error::Superseded(newest)),
            _ if facts.get::<Begun>(0)?.is_none() => return Err(given_up(&at.brief)),
            _ => {}
        }
    }
    end_jobs_before(at, at.brief.epoch).await
}

/// The fact that closes the fence behind all epochs before this one.
fn closing(epoch: u32) -> Entry {
    Entry { epoch, kind: EPOCH, number: 0, version: epoch.into(), value: String::new() }
}

/// Closes the fence behind all epochs before this one.
pub(super) async fn raise(at: &BigQuery, epoch: u32) -> Result<(), Error> {
    at.record(&[closing(epoch)]).await
}

/// Cancels the jobs of this epoch, told by their ids, and returns when none is left.
pub(super) async fn end_jobs(at: &BigQuery) -> Result<(), Error> {
    let ours = |id: &str| mark::epoch_of_job(&at.brief.mirror_uid, id) == Some(at.brief.epoch);
    at.jobs().await?.end(ours).await.map_err(|e| meaning(&e, "ending jobs of this epoch"))
}

/// Cancels the jobs of epochs before this one, told by their ids, and returns when none is left.
pub(super) async fn end_jobs_before(at: &BigQuery, epoch: u32) -> Result<(), Error> {
    let older = |id: &str| mark::epoch_of_job(&at.brief.mirror_uid, id).is_some_and(|of| of < epoch);
    at.jobs().await?.end(older).await.map_err(|e| meaning(&e, "ending jobs of earlier epochs"))
}

/// See [`Destination::pending`](crate::destination::Destination::pending).
pub(super) async fn pending(at: &BigQuery, partition: u32) -> Result<Vec<Chunk>, Error> {
    at.facts(fact::PENDING).await?.pending_of(partition)
}

/// What the swap of this epoch did; `None` before it.
pub(super) async fn swap_report(at: &BigQuery) -> Result<Option<SwapReport>, Error> {
    at.facts(&[Swapped::KIND]).await?.swap_report()
}

/// The shadow's name, as the ledger's table fact gives it.
pub(super) fn shadow_of(at: &BigQuery, table: &Table) -> TableName {
    mark::shadow(&table.schema.destination, at.brief.epoch, table.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_the_ledger_cannot_take_at_once_is_refused_with_the_field_to_raise() {
        let at = super::super::tests::unconnected(&json!({}));
        let facts = |count| -> Vec<Entry> { (0..count).map(|_| Entry { value: "x".repeat(999), ..closing(1) }).collect() };
        assert!(at.insertion(&facts(8_000)).is_ok());
        let Err(Error::Permanent(failure)) = at.insertion(&facts(9_001)) else { panic!("too much was taken") };
        assert_eq!(failure.reason, "PlanTooLarge");
        assert!(failure.message.contains("9001 chunks") && failure.message.contains("raise snapshot.chunkSize"), "{}", failure.message);
    }
}
