//! The stage that files go through: the mirror's own, which is internal, or one that the Peer names. I/O.
//!
//! What `PUT` would do with a file, this does with rows that come as they are read. All that differs between the two kinds is where a file is
//! written and who removes it.

mod external;
mod file;
mod lent;
mod location;
mod refusal;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use object_store::{
    ClientOptions, ObjectStore, RetryConfig,
    client::{HttpClient, HttpConnector},
    path::Path,
};
use tokio::time::Instant;

pub use external::ExternalStage;
pub(super) use external::check;
pub(super) use file::File;

use super::{
    Snowflake,
    client::{Peer, http},
    error::{meaning, permanent},
};
use crate::destination::Error;

/// How long a place is used. Credentials that are lent last for hours; those of a Secret are read again.
const LENT: Duration = Duration::from_secs(1800);

/// Places that are known, by their paths in the stage.
#[derive(Default)]
pub(super) struct Places {
    known: Mutex<Vec<(String, Instant, Place)>>,
}

impl Places {
    fn known(&self, path: &str) -> Option<Place> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, since, _)| since.elapsed() < LENT);
        known.iter().find(|(of, ..)| of == path).map(|(_, _, place)| place.clone())
    }

    /// The next file asks for the place anew, and for its credentials: those that are known may have been taken away.
    pub(super) fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn keep(&self, path: &str, place: &Place) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.iter().all(|(of, ..)| of != path) {
            known.push((path.into(), Instant::now(), place.clone()));
        }
    }
}

/// Where files of one path in the stage go.
#[derive(Clone)]
pub(super) struct Place {
    store: Arc<dyn ObjectStore>,
    /// What their names begin with there.
    prefix: String,
    /// What they begin with in a statement, after the `@`.
    from: String,
    /// What to look at when they do not get there.
    cure: Arc<str>,
}

impl Snowflake {
    /// Makes the mirror's stage. One that the Peer names is there.
    pub(super) async fn create_stage(&self) -> Result<(), Error> {
        if self.to.stage.is_some() {
            return Ok(());
        }
        let sql = format!(
            "CREATE STAGE IF NOT EXISTS {} ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE') COMMENT = 'Rows on their way (mirror-operator)'",
            self.stage_name()
        );
        self.client()?.query(&sql, "creating the stage").await.map(drop)
    }

    /// Where files of a path in the stage go.
    pub(super) async fn place(&self, path: &str) -> Result<Place, Error> {
        if let Some(place) = self.stage.known(path) {
            return Ok(place);
        }
        let place = match &self.to.stage {
            Some(stage) => external::place(self, stage, path).await?,
            None => lent::place(self, path).await?,
        };
        self.stage.keep(path, &place);
        Ok(place)
    }

    /// Removes files of the stage whose paths begin so. What is left behind does no harm.
    pub(super) async fn clean(&self, path: &str) -> Result<(), Error> {
        if let Some(stage) = &self.to.stage {
            let all = match self.stage.known("") {
                Some(all) => all,
                None => external::folder(self, stage)?,
            };
            self.stage.keep("", &all);
            return all.remove(path).await;
        }
        match self.client()?.try_query(&format!("REMOVE @{}/{path}", self.stage_name())).await {
            Err(refusal) if !refusal.is_missing() => Err(meaning(&refusal, "removing files from the stage")),
            _ => Ok(()),
        }
    }
}

/// Gives object storage the client that the service has.
#[derive(Debug)]
struct Connector(reqwest::Client);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

/// How object storage is spoken with.
struct Reach {
    options: ClientOptions,
    connector: Connector,
    retry: RetryConfig,
}

impl Reach {
    /// As the service is, `plain` being HTTP without TLS.
    fn new(to: &Peer, plain: bool) -> Result<Self, Error> {
        let retry = RetryConfig {
            retry_timeout: Duration::from_millis(to.patience_millis),
            max_retries: if to.patience_millis == 0 { 0 } else { 10 },
            ..RetryConfig::default()
        };
        Ok(Self { options: ClientOptions::new().with_allow_http(plain), connector: Connector(http(to)?), retry })
    }
}

impl Place {
    /// Begins a file.
    pub(super) fn file(&self, name: &str) -> Result<File, Error> {
        let path = Path::parse(format!("{}{name}", self.prefix));
        let path = path.map_err(|e| permanent("Internal", format!("a file of the stage cannot be called {name:?}: {e}")))?;
        File::new(self.store.clone(), path, self.cure.clone())
    }

    /// What statements call the folder of the files, after the `@`.
    pub(super) fn from(&self) -> &str {
        &self.from
    }
}
