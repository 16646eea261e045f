//! Requests to the REST API. I/O.
//!
//! The crate gcp-bigquery-client has the types and the client of the Storage Write API, which are used in `write`. Its models of REST drop what they do not
//! know, such as a table's newer options, and its client neither waits nor tells reasons apart; so requests are plain JSON here.

use std::{sync::Arc, time::Duration};

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    auth::{Account, Auth, Identity, METADATA},
    error::{Refusal, permanent},
};
use crate::{
    destination::Error,
    postgres::{
        Connection,
        connect::{read_secret, tls_config},
    },
    table::TableName,
};

/// How to reach a dataset from a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// As far as it is like other databases: the host, the dataset as database, and as password the key file of a service account.
    pub at: Connection,
    /// The project that has the dataset and pays for jobs.
    pub project: String,
    /// Where the dataset is; asked of it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Base URL of the REST API.
    pub endpoint: String,
    /// Base URL of the Storage Write API.
    pub storage_endpoint: String,
}

/// How long a request is tried again while the service asks for patience.
const PATIENCE: Duration = Duration::from_secs(120);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// BigQuery's docs, "Troubleshoot quota errors": exponential backoff up to 32 seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(32);

/// Sends requests to one project.
pub(super) struct Client {
    http: reqwest::Client,
    auth: Arc<Auth>,
    base: String,
    pub(super) project: String,
}

impl Client {
    /// Connects to nothing yet.
    pub(super) fn new(to: &Peer) -> Result<Self, Error> {
        let limit = Duration::from_millis(to.at.connect_timeout_millis);
        let builder = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(limit)
            .tcp_nodelay(true)
            // Longer than any request here waits for its answer.
            .timeout(Duration::from_secs(90))
            .tcp_keepalive(Duration::from_secs(20))
            .use_preconfigured_tls(tls_config(&to.at)?);
        let http = builder.build().map_err(|e| Error::Transient(format!("preparing connections to BigQuery: {e}")))?;
        let auth = Arc::new(Auth::new(http.clone(), identity(to)?));
        Ok(Self { http, auth, base: format!("{}/bigquery/v2/projects/{}", to.endpoint, to.project), project: to.project.clone() })
    }

    /// Who gives the tokens.
    pub(super) fn auth(&self) -> Arc<Auth> {
        self.auth.clone()
    }

    /// One request; the path is that below the project. While the service asks for patience, it is said again.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Refusal> {
        let mut pause = Backoff::new(PATIENCE);
        loop {
            match self.ask_once(method.clone(), path, body).await {
                Err(refusal) if refusal.passes() && pause.wait().await => {}
                answer => return answer,
            }
        }
    }

    async fn ask_once(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Refusal> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base));
        if let Some(token) = self.auth.token().await? {
            request = request.bearer_auth(token);
        }
        request = match body {
            Some(body) => request.json(body),
            None if method == Method::POST => request.header("content-length", "0"),
            None => request,
        };
        let lost = |e: reqwest::Error| Refusal::unheard(format!("BigQuery is not heard: {}", e.without_url()));
        let answer = request.send().await.map_err(lost)?;
        let status = answer.status();
        let text = answer.bytes().await.map_err(lost)?;
        let body = if text.is_empty() { Value::Null } else { serde_json::from_slice(&text).unwrap_or(Value::Null) };
        if status.is_success() {
            return Ok(body);
        }
        let mut refusal = Refusal::read(status.as_u16(), &body);
        if refusal.words.is_empty() {
            refusal.words = format!("HTTP {}", status.as_u16());
        }
        Err(refusal)
    }

    /// A table's resource; `None` if there is none.
    pub(super) async fn table(&self, table: &TableName) -> Result<Option<Value>, Refusal> {
        found(self.ask(Method::GET, &table_path(table), None).await)
    }

    /// A dataset's resource; `None` if there is none.
    pub(super) async fn dataset(&self, dataset: &str) -> Result<Option<Value>, Refusal> {
        found(self.ask(Method::GET, &format!("/datasets/{}", escaped(dataset)), None).await)
    }

    /// All tables of a dataset; empty if there is none.
    pub(super) async fn tables(&self, dataset: &str) -> Result<Vec<Value>, Refusal> {
        let (mut all, mut page) = (Vec::new(), String::new());
        loop {
            let path = format!("/datasets/{}/tables?maxResults=1000{page}", escaped(dataset));
            let Some(answer) = found(self.ask(Method::GET, &path, None).await)? else { return Ok(all) };
            all.extend(answer["tables"].as_array().into_iter().flatten().cloned());
            match answer["nextPageToken"].as_str() {
                Some(token) => page = format!("&pageToken={}", escaped(token)),
                None => return Ok(all),
            }
        }
    }

    /// Creates a table from its resource; one that is there stays as it is.
    pub(super) async fn create_table(&self, table: &TableName, mut resource: Value) -> Result<(), Refusal> {
        resource["tableReference"] = self.reference(table);
        let path = format!("/datasets/{}/tables", escaped(&table.schema));
        match self.ask(Method::POST, &path, Some(&resource)).await {
            Err(refusal) if refusal.is("duplicate") => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Changes what a patch names of a table's resource.
    pub(super) async fn patch_table(&self, table: &TableName, patch: &Value) -> Result<(), Refusal> {
        self.ask(Method::PATCH, &table_path(table), Some(patch)).await.map(drop)
    }

    /// Drops a table, if it is there.
    pub(super) async fn drop_table(&self, table: &TableName) -> Result<(), Refusal> {
        found(self.ask(Method::DELETE, &table_path(table), None).await).map(drop)
    }

    /// How a job names a table.
    pub(super) fn reference(&self, table: &TableName) -> Value {
        serde_json::json!({ "projectId": self.project, "datasetId": table.schema, "tableId": table.name })
    }
}

fn identity(to: &Peer) -> Result<Identity, Error> {
    if to.endpoint.starts_with("http://") {
        return Ok(Identity::Nobody);
    }
    let Some(file) = &to.at.password else { return Ok(Identity::Pod(METADATA.into())) };
    let account = Account::parse(&read_secret(&to.at, file)?);
    let account = account.map_err(|why| {
        let message = format!("Peer {}: key {:?} of Secret {:?}: {why}", to.at.peer, file.key, file.secret);
        permanent("CredentialsInvalid", message)
    })?;
    Ok(Identity::Account(Box::new(account)))
}

/// The path of a table, and what is below it.
pub(super) fn table_path(table: &TableName) -> String {
    format!("/datasets/{}/tables/{}", escaped(&table.schema), escaped(&table.name))
}

/// Percent-encodes all but unreserved characters (RFC 3986).
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

fn found(answer: Result<Value, Refusal>) -> Result<Option<Value>, Refusal> {
    match answer {
        Err(refusal) if refusal.is("notFound") => Ok(None),
        answer => answer.map(Some),
    }
}

/// Pauses that grow, up to some patience.
pub(super) struct Backoff {
    pause: Duration,
    left: Duration,
}

impl Backoff {
    pub(super) fn new(patience: Duration) -> Self {
        Self { pause: FIRST_PAUSE, left: patience }
    }

    /// Waits; false once there is no patience left. A quarter of each pause is by chance, so that those who were turned away together do not come back together.
    pub(super) async fn wait(&mut self) -> bool {
        if self.left.is_zero() {
            return false;
        }
        let chance = self.pause.mul_f64(0.25 * (super::random() % 1000) as f64 / 1000.0);
        let pause = (self.pause + chance).min(self.left);
        tokio::time::sleep(pause).await;
        self.left = self.left.saturating_sub(pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::connect::SecretFile;

    #[test]
    fn a_key_that_is_not_one_of_a_service_account_is_named_and_not_shown() {
        let mut to = super::super::tests::unconnected(&serde_json::json!({})).to.clone();
        let path = std::env::temp_dir().join(format!("mirror-test-credentials-{}", std::process::id()));
        std::fs::write(&path, "{\"type\": \"hush\"}").unwrap();
        to.at.password = Some(SecretFile { path: path.clone(), secret: "bq".into(), key: "key.json".into() });
        let refused = identity(&to);
        std::fs::remove_file(path).unwrap();
        let Err(Error::Permanent(failure)) = refused else { panic!("it was taken for a key") };
        let words = "Peer b: key \"key.json\" of Secret \"bq\": it is not the key file (JSON) of a service account";
        assert_eq!((failure.reason.as_str(), failure.message.as_str()), ("CredentialsInvalid", words));
    }
}
