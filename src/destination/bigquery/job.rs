//! Jobs: statements and copies. I/O.
//!
//! A job's id is chosen here, and the service runs one job of an id and no other: a request whose reply was lost is sent again and finds its job. Steps that
//! must not be done twice have ids that follow from what they do (BigQuery docs, "Generate a job ID").

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    apply::Owner,
    client::{Backoff, Client, escaped},
    error::Refusal,
};

/// How long one request waits for the end of a job.
const WAIT_MILLIS: u64 = 60_000;
/// How long a step is tried again while its jobs fail for reasons that pass.
const PATIENCE: Duration = Duration::from_secs(300);
/// Jobs of one step that may have failed before.
const ATTEMPTS: u32 = 1000;

/// Sends jobs of one epoch.
pub(super) struct Jobs<'a> {
    pub(super) client: &'a Client,
    pub(super) location: &'a str,
    /// What the ids of these jobs begin with.
    pub(super) prefix: &'a str,
    /// Who is told of what was written.
    pub(super) owner: &'a Owner,
}

/// A statement with texts as its parameters.
#[derive(Clone, Debug, Default)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) parameters: Vec<(&'static str, String)>,
}

impl From<String> for Statement {
    fn from(sql: String) -> Self {
        Self { sql, parameters: vec![] }
    }
}

impl Statement {
    fn configuration(&self) -> Value {
        let parameter = |(name, value): &(&str, String)| json!({ "name": name, "parameterType": { "type": "STRING" }, "parameterValue": { "value": value } });
        let mut query = json!({ "query": self.sql, "useLegacySql": false, "useQueryCache": false });
        if !self.parameters.is_empty() {
            query["parameterMode"] = "NAMED".into();
            query["queryParameters"] = self.parameters.iter().map(parameter).collect();
        }
        query
    }
}

/// The rows of a query: each value as the service writes it.
pub(super) type Rows = Vec<Vec<Option<String>>>;

impl Jobs<'_> {
    /// The rows of a query, which changes nothing.
    pub(super) async fn rows(&self, statement: impl Into<Statement>) -> Result<Rows, Refusal> {
        let mut request = statement.into().configuration();
        request["location"] = self.location.into();
        request["timeoutMs"] = WAIT_MILLIS.into();
        let mut answer = self.client.ask(Method::POST, "/queries", Some(&request)).await?;
        let id = answer["jobReference"]["jobId"].as_str().unwrap_or_default().to_string();
        let mut rows = Rows::new();
        loop {
            let mut page = String::new();
            if answer["jobComplete"] == json!(true) {
                rows.extend(answer["rows"].as_array().into_iter().flatten().map(row));
                match answer["pageToken"].as_str() {
                    Some(token) => page = format!("&pageToken={}", escaped(token)),
                    None => return Ok(rows),
                }
            }
            let path = format!("/queries/{}?location={}&timeoutMs={WAIT_MILLIS}{page}", escaped(&id), escaped(self.location));
            answer = self.client.ask(Method::GET, &path, None).await?;
        }
    }

    /// Runs a statement that may be run twice.
    pub(super) async fn run(&self, statement: impl Into<Statement>) -> Result<(), Refusal> {
        let configuration = json!({ "query": statement.into().configuration() });
        self.step(&format!("x{:016x}", super::random()), &configuration).await.map(drop)
    }

    /// Runs a statement once, whoever asks for it and however often: `step` is what it does.
    pub(super) async fn run_once(&self, step: &str, statement: impl Into<Statement>) -> Result<(), Refusal> {
        self.step(step, &json!({ "query": statement.into().configuration() })).await.map(drop)
    }

    /// Does what a configuration of a job says once. Returns the job that did it.
    ///
    /// A job that has failed has changed nothing, and its id is used up: the next attempt has the next one, so that all callers walk along the same row of ids.
    pub(super) async fn step(&self, step: &str, configuration: &Value) -> Result<Value, Refusal> {
        let mut pause = Backoff::new(PATIENCE);
        for attempt in 0..ATTEMPTS {
            let id = format!("{}{step}_a{attempt}", self.prefix);
            let reference = json!({ "projectId": self.client.project, "jobId": id, "location": self.location });
            let job = json!({ "jobReference": reference, "configuration": configuration });
            let ours = match self.client.ask(Method::POST, "/jobs", Some(&job)).await {
                Ok(_) => true,
                Err(refusal) if refusal.is("duplicate") => false,
                Err(refusal) => {
                    self.owner.writes_more();
                    return Err(refusal);
                }
            };
            let ended = self.await_end(&id).await;
            self.owner.writes_more();
            match ended {
                Err(refusal) if refusal.status == 200 && (!ours || refusal.passes() && pause.wait().await) => {}
                outcome => return outcome,
            }
        }
        Err(Refusal { status: 200, reason: "timeout".into(), words: format!("{ATTEMPTS} jobs have failed") })
    }

    /// The job once it has ended; its error, with the status 200, if it has failed.
    async fn await_end(&self, id: &str) -> Result<Value, Refusal> {
        let path = format!("/jobs/{}?location={}", escaped(id), escaped(self.location));
        let mut pause = Duration::from_millis(50);
        loop {
            let job = self.client.ask(Method::GET, &path, None).await?;
            if job["status"]["state"] == json!("DONE") {
                return match &job["status"]["errorResult"] {
                    Value::Null => Ok(job),
                    error => Err(Refusal::read(200, error)),
                };
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Cancels the jobs that have not ended and whose ids are wanted, and returns when there is none of them.
    pub(super) async fn end(&self, wanted: impl Fn(&str) -> bool) -> Result<(), Refusal> {
        for _ in 0..60 {
            let mut left = Vec::new();
            for state in ["pending", "running"] {
                let listed =
                    self.client.ask(Method::GET, &format!("/jobs?stateFilter={state}&maxResults=1000&projection=minimal"), None).await?;
                let ids = listed["jobs"].as_array().into_iter().flatten().filter_map(|job| job["jobReference"]["jobId"].as_str());
                left.extend(ids.filter(|id| wanted(id)).map(str::to_string));
            }
            if left.is_empty() {
                return Ok(());
            }
            for id in &left {
                let path = format!("/jobs/{}/cancel?location={}", escaped(id), escaped(self.location));
                match self.client.ask(Method::POST, &path, None).await {
                    Err(refusal) if !refusal.is("notFound") => return Err(refusal),
                    _ => {}
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Err(Refusal { status: 200, reason: "resourceInUse".into(), words: "jobs of earlier epochs do not end".into() })
    }

    /// What is wrong with a statement, without running it.
    pub(super) async fn dry_run(&self, sql: String) -> Result<(), Refusal> {
        let mut request = Statement::from(sql).configuration();
        request["location"] = self.location.into();
        request["dryRun"] = true.into();
        self.client.ask(Method::POST, "/queries", Some(&request)).await.map(drop)
    }
}

fn row(row: &Value) -> Vec<Option<String>> {
    row["f"].as_array().into_iter().flatten().map(|cell| cell["v"].as_str().map(str::to_string)).collect()
}
