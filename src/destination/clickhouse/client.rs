//! Requests over HTTP. I/O.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use bytes::Bytes;
use reqwest::multipart::{Form, Part};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    ddl::Ddl,
    error::{Refusal, UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE, meaning},
};
use crate::{
    api::peer::TlsMode,
    destination::Error,
    postgres::{
        Connection,
        connect::{read_secret, tls_config},
    },
};

/// How to reach a ClickHouse server from a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Server, user and database: the one that holds the ledger, and the tables that name no other.
    pub at: Connection,
    /// Settings of every query.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// The cluster whose servers all have the tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

impl Peer {
    /// How statements are written there.
    pub(super) fn ddl(&self) -> Ddl<'_> {
        Ddl(self.cluster.as_deref())
    }
}

/// Sends queries to one server.
pub(super) struct Client {
    http: reqwest::Client,
    to: Peer,
    url: String,
    /// What every query's id begins with.
    name: String,
}

/// Rows that go along with a query, which reads them as the table `rows`.
pub(super) struct Rows {
    /// Columns and their types.
    pub(super) structure: String,
    /// RowBinary.
    pub(super) data: Bytes,
}

impl Client {
    /// Connects to nothing yet.
    pub(super) fn new(to: &Peer, name: String) -> Result<Self, Error> {
        let limit = Duration::from_millis(to.at.connect_timeout_millis);
        let mut builder = reqwest::Client::builder().no_proxy().connect_timeout(limit).tcp_nodelay(true);
        // Servers close connections that say nothing for longer (keep_alive_timeout, 10 s at first).
        builder = builder.pool_idle_timeout(Duration::from_secs(5));
        // The server says nothing while it works; a server that is gone is found out by the system's probes.
        builder = builder.tcp_keepalive(Duration::from_secs(20));
        let scheme = match to.at.tls {
            TlsMode::Disable | TlsMode::Prefer => {
                // Which would be read for nothing.
                builder = builder.tls_built_in_root_certs(false);
                "http"
            }
            TlsMode::Require | TlsMode::VerifyCA | TlsMode::VerifyFull => {
                builder = builder.use_preconfigured_tls(tls_config(&to.at)?);
                "https"
            }
        };
        let host = if to.at.host.contains(':') { format!("[{}]", to.at.host) } else { to.at.host.clone() };
        let url = format!("{scheme}://{host}:{}/", to.at.port);
        let http = builder.build().map_err(|e| Error::Transient(format!("preparing connections to ClickHouse: {e}")))?;
        Ok(Self { http, to: to.clone(), url, name })
    }

    /// A statement without rows in either direction.
    pub(super) async fn run(&self, sql: &str, doing: &str) -> Result<(), Error> {
        self.try_run(sql, &[]).await.map_err(|e| meaning(&e, doing))
    }

    /// The same of a statement that works on rows, which the server's words may quote.
    pub(super) async fn run_over_rows(&self, sql: &str, doing: &str) -> Result<(), Error> {
        self.try_run(sql, &[]).await.map_err(|e| meaning(&e.of_rows(), doing))
    }

    /// An INSERT with its rows: written whole or not at all if they belong to one partition.
    pub(super) async fn run_as_one_block(&self, sql: &str, doing: &str) -> Result<(), Error> {
        let settings = [ONE_BLOCK, &[("input_format_parallel_parsing", "0")]].concat();
        self.try_run(sql, &settings).await.map_err(|e| meaning(&e, doing))
    }

    /// The same, for callers who look at the error themselves.
    pub(super) async fn try_run(&self, sql: &str, settings: &[(&str, &str)]) -> Result<(), Refusal> {
        let mut patience = 100;
        loop {
            match self.send(self.request(None, settings)?.body(sql.to_string())).await {
                // In a cluster the ledger's writers are let in one by one, and the others turned away.
                Err(refusal) if refusal.code == UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE && patience > 0 => patience -= 1,
                answer => return answer.map(drop),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The rows of a query, by its columns' names.
    pub(super) async fn rows<T: DeserializeOwned>(&self, sql: &str, doing: &str) -> Result<Vec<T>, Error> {
        let format = [("default_format", "JSONEachRow")];
        let request = self.request(None, &format).map_err(|e| meaning(&e, doing))?.body(sql.to_string());
        let answer = self.send(request).await.map_err(|e| meaning(&e, doing))?;
        parse(&answer, doing)
    }

    /// The one row of a query.
    pub(super) async fn row<T: DeserializeOwned>(&self, sql: &str, doing: &str) -> Result<T, Error> {
        let row = self.rows(sql, doing).await?.pop();
        row.ok_or_else(|| Error::Transient(format!("{doing}: the server answered nothing")))
    }

    /// Whether the user has a right on databases or tables.
    pub(super) async fn is_granted(&self, right: &str, on: &str) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Granted {
            result: u8,
        }
        Ok(self.row::<Granted>(&format!("CHECK GRANT {right} ON {on}"), "looking at rights").await?.result == 1)
    }

    /// Inserts a block of the format Native, packed as an LZ4 frame, whole. `into` is what follows INSERT INTO.
    pub(super) async fn insert(&self, into: &str, token: &str, packed: Vec<u8>) -> Result<(), Refusal> {
        let sql = format!("INSERT INTO {into} FORMAT Native");
        let load = [
            ("insert_deduplication_token", token),
            // JSON travels as its text.
            ("input_format_native_allow_types_conversion", "1"),
            // Of a load's rows no two are versions of one: to look for them takes a seventh of the server's time for the block.
            ("optimize_on_insert", "0"),
            ("insert_quorum_parallel", "1"),
        ];
        let settings = [ONE_BLOCK, &load].concat();
        let request = self.request(Some(&sql), &settings)?.header("Content-Encoding", "lz4").body(packed);
        self.send(request).await.map(drop).map_err(Refusal::of_rows)
    }

    /// Runs a statement that reads `rows`.
    pub(super) async fn with_rows(&self, sql: &str, rows: Rows, settings: &[(&str, &str)]) -> Result<(), Refusal> {
        self.exchange(sql, rows, settings).await.map(drop)
    }

    /// The rows of a query that reads `rows`.
    pub(super) async fn rows_with<T: DeserializeOwned>(&self, sql: &str, rows: Rows, doing: &str) -> Result<Vec<T>, Error> {
        let answer = self.exchange(sql, rows, &[("default_format", "JSONEachRow")]).await.map_err(|e| meaning(&e, doing))?;
        parse(&answer, doing)
    }

    async fn exchange(&self, sql: &str, rows: Rows, settings: &[(&str, &str)]) -> Result<Vec<u8>, Refusal> {
        let about =
            [("rows_structure", rows.structure.as_str()), ("rows_format", "RowBinary"), ("input_format_binary_read_json_as_string", "1")];
        let length = rows.data.len() as u64;
        let form = Form::new().part("rows", Part::stream_with_length(rows.data, length).file_name("rows"));
        self.send(self.request(Some(sql), &[&about, settings].concat())?.multipart(form)).await.map_err(Refusal::of_rows)
    }

    fn request(&self, sql: Option<&str>, settings: &[(&str, &str)]) -> Result<reqwest::RequestBuilder, Refusal> {
        let mut id = format!("{}-", self.name);
        for _ in 0..2 {
            let _ = write!(id, "{:016x}", super::random());
        }
        let mut request = self.http.post(&self.url).header("X-ClickHouse-User", &self.to.at.user);
        if let Some(file) = &self.to.at.password {
            request = request.header("X-ClickHouse-Key", read_secret(&self.to.at, file).map_err(|e| Refusal::unsent(e.to_string()))?);
        }
        let always = [
            ("query_id", id.as_str()),
            ("wait_end_of_query", "1"),
            ("output_format_json_quote_64bit_integers", "0"),
            ("async_insert", "0"),
            // A block of the load may fall into many partitions.
            ("max_partitions_per_insert_block", "0"),
        ];
        let of_cluster: Vec<_> =
            self.to.ddl().settings().iter().filter(|(name, _)| !settings.iter().any(|(other, _)| other == name)).collect();
        Ok(request
            .query(&always)
            .query(&of_cluster)
            .query(&self.to.settings)
            .query(settings)
            .query(&sql.map(|sql| ("query", sql)).as_slice()))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, Refusal> {
        let Connection { peer, host, port, .. } = &self.to.at;
        let lost = |error: reqwest::Error| Refusal::unsent(format!("Peer {peer}: {host}:{port}: {}", words(&error.without_url())));
        let answer = request.send().await.map_err(lost)?;
        let status = answer.status();
        let code = answer.headers().get("X-ClickHouse-Exception-Code").and_then(|c| c.to_str().ok()).and_then(|c| c.parse().ok());
        let body = answer.bytes().await.map_err(lost)?;
        match code {
            None if status.is_success() => Ok(body.into()),
            code => Err(Refusal { code: code.unwrap_or(0), words: String::from_utf8_lossy(&body).into_owned() }),
        }
    }
}

fn parse<T: DeserializeOwned>(answer: &[u8], doing: &str) -> Result<Vec<T>, Error> {
    let lines = answer.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_slice(line).map_err(|e| Error::Transient(format!("{doing}: an answer that is not understood: {e}"))))
        .collect()
}

/// The error with its causes, the last of which says what happened.
fn words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source()).last();
    causes.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Makes the whole body one block, so that it is written whole or not at all wherever it falls into one partition.
const ONE_BLOCK: &[(&str, &str)] = &[
    ("max_insert_block_size", "1000000000"),
    ("min_insert_block_size_rows", "1000000000"),
    ("min_insert_block_size_bytes", "4000000000"),
    ("insert_deduplicate", "1"),
];
