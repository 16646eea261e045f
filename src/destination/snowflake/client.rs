//! Sessions and statements. I/O.
//!
//! The crate snowflake-api brings the endpoints of Snowflake's drivers, their media types and request ids. Sessions are kept here: its own write every name in
//! capitals, hold one statement at a time, and know neither of session parameters nor of expired tokens.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use snowflake_api::connection::{Connection as Transport, ConnectionError, QueryType};

use super::{
    answer::Answer,
    door::Door,
    error::{Refusal, TOKEN_EXPIRED, meaning},
    quote::{ident, qualified},
    stage::ExternalStage,
};
use crate::{
    api::{peer::TlsMode, snowflake::Names},
    destination::Error,
    postgres::{
        Connection,
        connect::{read_secret, tls_config},
    },
};

/// How long requests without an answer are sent again.
pub const PATIENCE_MILLIS: u64 = 60_000;

const AGENT: &str = concat!("mirror-operator/", env!("CARGO_PKG_VERSION"));

/// How to reach a Snowflake account from a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Host, user and database; its `password` is the file with the password or, with `key_pair`, the private key.
    pub at: Connection,
    /// The account's identifier.
    pub account: String,
    /// The schema that holds the ledger and the stage.
    pub schema: String,
    /// The warehouse; the user's default one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warehouse: Option<String>,
    /// The role; the user's default one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Whether the user logs in with a key pair.
    pub key_pair: bool,
    /// How names were written. Those here are as they are stored.
    pub names: Names,
    /// The stage that files go through; the mirror's own, an internal one, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Box<ExternalStage>>,
    /// Milliseconds for which requests without an answer are sent again.
    pub patience_millis: u64,
}

impl Peer {
    /// A table's whole name, quoted.
    pub(super) fn table(&self, schema: &str, name: &str) -> String {
        qualified(&self.at.database, schema, name)
    }
}

/// The host of an account (Snowflake docs, "Account identifiers": underscores are hyphens there).
pub fn host(account: &str) -> String {
    format!("{}.snowflakecomputing.com", account.to_lowercase().replace('_', "-"))
}

/// Sends statements to one account.
pub(super) struct Client {
    shared: Arc<Shared>,
    /// Sessions that nothing is open in.
    idle: Mutex<Vec<Session>>,
}

struct Shared {
    transport: Transport,
    to: Peer,
    /// The tag of every statement in the account's query history.
    tag: String,
}

/// A session: it has one transaction at most, and temporary tables of its own. Ended when it is dropped.
pub(super) struct Session {
    shared: Arc<Shared>,
    token: String,
    /// With which another token is got.
    master: String,
    statements: u64,
}

#[derive(Deserialize)]
struct Reply {
    code: Option<String>,
    message: Option<String>,
    #[serde(default)]
    success: bool,
    #[serde(default)]
    data: Value,
}

/// What speaks HTTP with the service and with object storage.
pub(super) fn http(to: &Peer) -> Result<reqwest::Client, Error> {
    let limit = Duration::from_millis(to.at.connect_timeout_millis);
    let builder =
        reqwest::Client::builder().user_agent(AGENT).connect_timeout(limit).tcp_nodelay(true).tcp_keepalive(Duration::from_secs(20));
    let builder = match to.at.tls {
        TlsMode::Disable => builder.no_proxy().tls_built_in_root_certs(false),
        _ => builder.use_preconfigured_tls(tls_config(&to.at)?),
    };
    builder.build().map_err(|e| Error::Transient(format!("preparing connections to Snowflake: {e}")))
}

impl Client {
    /// Connects to nothing yet.
    pub(super) fn new(to: &Peer, tag: String) -> Result<Self, Error> {
        let unusable = |e: String| Error::Transient(format!("preparing connections to Snowflake: {e}"));
        let http = http(to)?;
        let scheme = if to.at.tls == TlsMode::Disable { "http" } else { "https" };
        let host = if to.at.host.contains(':') { format!("[{}]", to.at.host) } else { to.at.host.clone() };
        let url = Url::parse(&format!("{scheme}://{host}:{}/", to.at.port)).map_err(|e| unusable(e.to_string()))?;
        let door = Door {
            to: url,
            made_for: format!("{}.snowflakecomputing.com", to.account),
            patience: Duration::from_millis(to.patience_millis),
        };
        let transport = Transport::new_with_middware(reqwest_middleware::ClientBuilder::new(http).with(door).build());
        Ok(Self { shared: Arc::new(Shared { transport, to: to.clone(), tag }), idle: Mutex::default() })
    }

    /// A session that nothing is open in.
    pub(super) async fn session(&self) -> Result<Session, Refusal> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(session) => Ok(session),
            None => Session::open(self.shared.clone()).await,
        }
    }

    /// Gives a session back.
    pub(super) fn keep(&self, session: Session) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
    }

    /// A statement in a transaction of its own, for callers who look at the error themselves.
    pub(super) async fn try_query(&self, sql: &str) -> Result<Answer, Refusal> {
        loop {
            let mut session = self.session().await?;
            let fresh = session.statements < Session::FIRST_STATEMENTS;
            let answer = session.query(sql).await;
            match answer {
                // It has idled for too long: the statement was not looked at.
                Err(refusal) if refusal.ends_session() && !refusal.code.is_empty() && !fresh => continue,
                Err(refusal) if refusal.ends_session() => return Err(refusal),
                answer => {
                    self.keep(session);
                    return answer;
                }
            }
        }
    }

    /// A statement in a transaction of its own.
    pub(super) async fn query(&self, sql: &str, doing: &str) -> Result<Answer, Error> {
        self.try_query(sql).await.map_err(|e| meaning(&e, doing))
    }
}

impl Session {
    /// Those that a session begins with.
    const FIRST_STATEMENTS: u64 = 2;

    async fn open(shared: Arc<Shared>) -> Result<Self, Refusal> {
        let body = shared.login()?;
        let reply = shared.ask(QueryType::LoginRequest, None, body).await?;
        let text = |name: &str| reply.data[name].as_str().map(str::to_string);
        let (Some(token), Some(master)) = (text("token"), text("masterToken")) else {
            return Err(reply.refusal());
        };
        let mut session = Self { shared: shared.clone(), token, master, statements: 0 };
        // By statements rather than at the login, which opens a session without them if they do not exist or may not be used.
        for (kind, name) in [("ROLE", &shared.to.role), ("WAREHOUSE", &shared.to.warehouse)] {
            if let Some(name) = name {
                session.query(&format!("USE {kind} {}", ident(name))).await.map_err(|refusal| shared.unusable(kind, name, refusal))?;
            }
        }
        session.statements = Self::FIRST_STATEMENTS - 1;
        Ok(session)
    }

    /// Executes a statement.
    pub(super) async fn query(&mut self, sql: &str) -> Result<Answer, Refusal> {
        let data = self.place(sql).await?;
        Answer::read(data, &self.shared.transport).await
    }

    /// Executes a statement and returns all that the service says; of PUT, where to put.
    pub(super) async fn place(&mut self, sql: &str) -> Result<Value, Refusal> {
        let mut renewed = false;
        loop {
            self.statements += 1;
            let body = json!({ "sqlText": sql, "asyncExec": false, "sequenceId": self.statements, "isInternal": false });
            let reply = self.shared.ask(QueryType::JsonQuery, Some(&self.token), body).await?;
            match reply.code.as_deref() {
                _ if reply.success => return Ok(reply.data),
                Some(TOKEN_EXPIRED) if !renewed => self.renew().await?,
                _ => return Err(reply.refusal()),
            }
            renewed = true;
        }
    }

    /// Gets another token. The session goes on, with its transaction and its temporary tables.
    async fn renew(&mut self) -> Result<(), Refusal> {
        let body = json!({ "oldSessionToken": self.token, "requestType": "RENEW" });
        let reply = self.shared.ask(QueryType::TokenRequest, Some(&self.master), body).await?;
        let text = |name: &str| reply.data[name].as_str().map(str::to_string);
        let (Some(token), Some(master)) = (text("sessionToken"), text("masterToken")) else { return Err(reply.refusal()) };
        (self.token, self.master) = (token, master);
        Ok(())
    }
}

impl Drop for Session {
    /// A transaction that is open would keep others waiting for minutes (Snowflake docs, "Transactions": one that is abandoned ends after 5 minutes if it
    /// blocks another one).
    fn drop(&mut self) {
        let (shared, token) = (self.shared.clone(), std::mem::take(&mut self.token));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = shared.request::<Value>(QueryType::CloseSession, &[("delete", "true")], Some(&token), Value::Null).await;
            });
        }
    }
}

impl Shared {
    async fn request<T: serde::de::DeserializeOwned>(
        &self,
        kind: QueryType,
        parameters: &[(&str, &str)],
        token: Option<&str>,
        body: Value,
    ) -> Result<T, ConnectionError> {
        let token = token.map(|token| format!("Snowflake Token=\"{token}\""));
        self.transport.request(kind, &self.to.account, parameters, token.as_deref(), body).await
    }

    async fn ask(&self, kind: QueryType, token: Option<&str>, body: Value) -> Result<Reply, Refusal> {
        let Connection { peer, host, port, .. } = &self.to.at;
        let lost = |error| Refusal::unheard(format!("Peer {peer}: {host}:{port}: {}", words(error)));
        self.request(kind, &[], token, body).await.map_err(lost)
    }

    fn login(&self) -> Result<Value, Refusal> {
        let to = &self.to;
        let secret =
            to.at.password.as_ref().map(|file| read_secret(&to.at, file)).transpose().map_err(|e| Refusal::unheard(e.to_string()))?;
        let secret = secret.unwrap_or_default();
        let mut data = json!({
            // As the crate says it: what a client is decides which answers it gets.
            "CLIENT_APP_ID": "Go",
            "CLIENT_APP_VERSION": "1.6.22",
            "SVN_REVISION": "",
            "ACCOUNT_NAME": account_name(&to.account),
            "LOGIN_NAME": to.at.user,
            "CLIENT_ENVIRONMENT": { "APPLICATION": "mirror-operator", "OS": std::env::consts::OS, "OS_VERSION": "", "OCSP_MODE": "FAIL_OPEN" },
            "SESSION_PARAMETERS": self.parameters(),
        });
        if to.key_pair {
            let who = format!("{}.{}", account_name(&to.account), to.at.user.to_uppercase());
            let token = snowflake_jwt::generate_jwt_token(&secret, &who).map_err(|_| Refusal {
                code: "390144".into(),
                words: format!("Peer {}: the private key cannot be read: it must be RSA in PKCS #8, PEM, and not encrypted", to.at.peer),
            })?;
            data["AUTHENTICATOR"] = "SNOWFLAKE_JWT".into();
            data["TOKEN"] = token.into();
        } else {
            data["PASSWORD"] = secret.into();
        }
        Ok(json!({ "data": data }))
    }

    /// What account, user and warehouse might have set otherwise (Snowflake docs, "Parameters").
    fn parameters(&self) -> Value {
        json!({
            // Those of the user do not count where the Peer names others.
            "CLIENT_VALIDATE_DEFAULT_PARAMETERS": false,
            "GO_QUERY_RESULT_FORMAT": "JSON",
            "AUTOCOMMIT": true,
            "QUERY_TAG": self.tag,
            "TIMEZONE": "UTC",
            "QUOTED_IDENTIFIERS_IGNORE_CASE": false,
            "ERROR_ON_NONDETERMINISTIC_MERGE": true,
            "BINARY_INPUT_FORMAT": "HEX",
            "BINARY_OUTPUT_FORMAT": "HEX",
            "DATE_INPUT_FORMAT": "AUTO",
            "TIME_INPUT_FORMAT": "AUTO",
            "TIMESTAMP_INPUT_FORMAT": "AUTO",
            "TIMESTAMP_NTZ_OUTPUT_FORMAT": "YYYY-MM-DD HH24:MI:SS.FF6",
            "STATEMENT_TIMEOUT_IN_SECONDS": 172_800,
            // Who waits for a lock waits for a commit: see `Drop for Session`.
            "LOCK_TIMEOUT": 600,
        })
    }

    /// Says which of the Peer's names cannot be used.
    fn unusable(&self, kind: &str, name: &str, refusal: Refusal) -> Refusal {
        if !refusal.is_missing() && refusal.code != "003001" {
            return refusal;
        }
        let (peer, user) = (&self.to.at.peer, &self.to.at.user);
        let mut words = format!("Peer {peer}: {} {name:?} does not exist, or may not be used", kind.to_lowercase());
        let grantee = match &self.to.role {
            Some(role) if kind == "WAREHOUSE" => format!("GRANT USAGE ON WAREHOUSE {} TO ROLE {}", ident(name), ident(role)),
            _ if kind == "WAREHOUSE" => format!("GRANT USAGE ON WAREHOUSE {} to the user's role", ident(name)),
            _ => format!("GRANT ROLE {} TO USER {}", ident(name), ident(user)),
        };
        let _ = write!(words, ". Run at the destination: {grantee}");
        Refusal { code: refusal.code, words }
    }
}

impl Reply {
    fn refusal(self) -> Refusal {
        let code = self.code.or_else(|| self.data["errorCode"].as_str().map(str::to_string)).unwrap_or_else(|| "000000".into());
        Refusal { code, words: self.message.unwrap_or_else(|| "the service gave no reason".into()) }
    }
}

/// The account's name without region and cloud (Snowflake docs, "Key-pair authentication").
fn account_name(account: &str) -> String {
    account.split('.').next().unwrap_or(account).to_uppercase()
}

/// The error with its last cause, which says what happened. Without the URL.
fn words(error: ConnectionError) -> String {
    let error: Box<dyn std::error::Error> = match error {
        ConnectionError::RequestError(error) | ConnectionError::RequestMiddlewareError(reqwest_middleware::Error::Reqwest(error)) => {
            Box::new(error.without_url())
        }
        other => Box::new(other),
    };
    let last = std::iter::successors(error.source(), |e| e.source()).last();
    last.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_named_as_hosts_and_tokens_want_it() {
        assert_eq!(host("My_Org-Account1"), "my-org-account1.snowflakecomputing.com");
        assert_eq!(host("xy12345.eu-central-1"), "xy12345.eu-central-1.snowflakecomputing.com");
        assert_eq!(account_name("xy12345.eu-central-1.aws"), "XY12345");
        assert_eq!(account_name("myorg-account1"), "MYORG-ACCOUNT1");
    }
}
