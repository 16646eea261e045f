//! Peer: one connection to a database that mirrors read from or write to.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    condition,
    quantity::{Span, span},
};

/// One connection to a database: where it is, who connects, and what mirrors use it for.
///
/// A short Job checks every Peer when its spec changes; the condition `Ready` then says what is missing and the statement that cures it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "mirror-operator.io",
    version = "v1alpha1",
    kind = "Peer",
    plural = "peers",
    shortname = "peer",
    category = "cdc",
    namespaced,
    status = "PeerStatus",
    derive = "PartialEq",
    doc = "One connection to a database that mirrors read from or write to.",
    validation = Rule::new("size(self.metadata.name) <= 45").message("the name of a Peer may have 45 characters at most: its check Job is named after it"),
    printcolumn(name = "Type", type_ = "string", json_path = ".status.type"),
    printcolumn(name = "Host", type_ = "string", json_path = ".spec['postgres','clickhouse','snowflake']['host','account']"),
    printcolumn(name = "Database", type_ = "string", json_path = ".spec['postgres','clickhouse','snowflake'].database"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.serverVersion"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.postgres), has(self.clickhouse), has(self.bigquery), has(self.snowflake)].exists_one(given, given)").message("exactly one kind of database must be given: postgres, clickhouse, bigquery or snowflake"),
    validation = Rule::new("has(self.postgres) || !('Source' in self.roles)").message("only a PostgreSQL database can have the role Source")
)]
pub struct PeerSpec {
    /// What mirrors use this peer for; the check covers the needs of these roles.
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub roles: Vec<Role>,
    /// A PostgreSQL database, version 14 or newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresPeer>,
    /// A ClickHouse server, version 24.12 or newer. Destination only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clickhouse: Option<ClickHousePeer>,
    /// A dataset of BigQuery. Destination only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bigquery: Option<BigQueryPeer>,
    /// A Snowflake account. Destination only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snowflake: Option<SnowflakePeer>,
}

/// What a mirror uses a peer for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Role {
    /// Tables are read and streamed from it.
    Source,
    /// Tables are written to it.
    Destination,
}

/// How to reach a PostgreSQL database.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresPeer {
    /// Host name or address.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// TCP port.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Name of the database.
    #[schemars(length(min = 1, max = 63))]
    pub database: String,
    /// Name of the role that connects.
    #[schemars(length(min = 1, max = 63))]
    pub user: String,
    /// The Secret and key that hold the role's password. Without it no password is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyRef>,
    /// Encryption of the connection.
    #[serde(default)]
    pub tls: Tls,
    /// How long to wait for a connection.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Span,
}

/// How to reach a ClickHouse server, over HTTP.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClickHousePeer {
    /// Host name or address.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// TCP port of the HTTP interface; with TLS usually 8443.
    #[serde(default = "default_clickhouse_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Name of the database that holds the ledger and, unless the Mirror says otherwise, the tables. Its engine should be Atomic.
    #[schemars(length(min = 1, max = 63))]
    pub database: String,
    /// Name of the user.
    #[schemars(length(min = 1, max = 63))]
    pub user: String,
    /// The Secret and key that hold the user's password. Without it no password is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyRef>,
    /// Encryption of the connection. A port of ClickHouse speaks either TLS or plain HTTP: Prefer is plain HTTP.
    #[serde(default)]
    pub tls: Tls,
    /// How long to wait for a connection.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Span,
    /// The cluster, of one shard, whose servers all have the tables: they are made `ON CLUSTER` with Replicated engines. Without it the tables are on this server alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub cluster: Option<String>,
    /// Settings of every query, such as `max_memory_usage`.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub settings: std::collections::BTreeMap<String, String>,
}

/// How to reach a dataset of BigQuery.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BigQueryPeer {
    /// Id of the project that has the dataset and pays for jobs.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9.:-]+$"))]
    pub project: String,
    /// Name of the dataset that holds the ledger and, unless the Mirror says otherwise, the tables. It must be there.
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^[A-Za-z0-9_]+$"))]
    pub dataset: String,
    /// Where the dataset is, such as `EU` or `europe-west3`; asked of the dataset if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub location: Option<String>,
    /// The Secret and key that hold the key file (JSON) of a service account. Without it the pods' own identity is used, as the metadata server gives it:
    /// that of Workload Identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretKeyRef>,
    /// Base URL of the REST API, for private endpoints and tests. With `http` nobody's credentials are sent.
    #[serde(default = "default_bigquery_endpoint")]
    #[schemars(length(min = 1, max = 300), regex(pattern = "^https?://[^/]+$"))]
    pub endpoint: String,
    /// Base URL of the Storage Write API, in the same way.
    #[serde(default = "default_bigquery_storage_endpoint")]
    #[schemars(length(min = 1, max = 300), regex(pattern = "^https?://[^/]+$"))]
    pub storage_endpoint: String,
    /// How long to wait for a connection.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Span,
}

/// How to reach a Snowflake account.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.privateKeySecretRef) != has(self.passwordSecretRef)").message("exactly one of privateKeySecretRef and passwordSecretRef must be given"),
    validation = Rule::new("!has(self.stage) || !has(self.stage.endpoint) || !self.stage.endpoint.startsWith('http://') || (has(self.tls) && has(self.tls.mode) && self.tls.mode == 'Disable')").message("a stage.endpoint without TLS is only used with tls.mode Disable")
)]
pub struct SnowflakePeer {
    /// The account's identifier, such as `myorg-account123` or `xy12345.eu-central-1`.
    #[schemars(length(min = 1, max = 200), regex(pattern = "^[A-Za-z0-9_.-]+$"))]
    pub account: String,
    /// Host name, if it is not `<account>.snowflakecomputing.com`: a private link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,
    /// TCP port.
    #[serde(default = "default_snowflake_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Name of the database.
    #[schemars(length(min = 1, max = 255))]
    pub database: String,
    /// Name of the schema that holds the ledger, the mirrors' own stages and, unless the Mirror says otherwise, the tables.
    #[schemars(length(min = 1, max = 255))]
    pub schema: String,
    /// Name of the warehouse that loads and merges. The user's default one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub warehouse: Option<String>,
    /// Name of the role. The user's default one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub role: Option<String>,
    /// Name of the user.
    #[schemars(length(min = 1, max = 255))]
    pub user: String,
    /// The Secret and key that hold the user's private key: RSA, PKCS #8, PEM, not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key_secret_ref: Option<SecretKeyRef>,
    /// The Secret and key that hold the user's password. Snowflake lets service users log in with a key only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyRef>,
    /// The external stage that rows go through. Without it each mirror has an internal one of its own, which needs nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<super::snowflake::SnowflakeStage>,
    /// How names are written.
    #[serde(default)]
    pub names: super::snowflake::Names,
    /// Encryption of the connection. Anything but Disable is TLS; VerifyFull is what Snowflake itself serves.
    #[serde(default = "verified")]
    pub tls: Tls,
    /// How long to wait for a connection.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Span,
}

/// A key of a Secret in the same namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A Secret of type `kubernetes.io/tls` in the same namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsSecretRef {
    /// Name of the Secret; its keys `tls.crt` and `tls.key` are used.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Encryption of a connection, with the meanings of PostgreSQL's `sslmode` (PostgreSQL docs, libpq, "SSL Mode Descriptions").
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.caSecretRef) || (has(self.mode) && self.mode in ['VerifyCA', 'VerifyFull'])").message("caSecretRef is only used with mode VerifyCA or VerifyFull"))]
pub struct Tls {
    /// Disable: never encrypt. Prefer: encrypt if the server offers it. Require: encrypt, whoever answers. VerifyCA: the server's certificate must be
    /// signed by the CA. VerifyFull: it must also bear the host's name.
    #[serde(default)]
    pub mode: TlsMode,
    /// The Secret and key that hold the CA's certificate (PEM). Without it the public CAs are trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// The client's certificate and key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<TlsSecretRef>,
}

/// When a connection is encrypted and what is verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsMode {
    /// Never encrypt.
    Disable,
    /// Encrypt if the server offers it.
    #[default]
    Prefer,
    /// Encrypt, whoever answers.
    Require,
    /// The server's certificate must be signed by the CA.
    VerifyCA,
    /// The server's certificate must also bear the host's name.
    VerifyFull,
}

/// What the last check of a Peer found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The kind of database: PostgreSQL, ClickHouse, BigQuery or Snowflake.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// The server's version as it states it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// The cluster's system identifier, which tells two names of one server apart from two servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    /// Of Snowflake, the warehouse that runs what is asked: the Peer's, or the user's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warehouse: Option<String>,
    /// When the last check ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
    /// `Ready`: the last check found everything that the roles need.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "condition::schema")]
    pub conditions: Vec<Condition>,
}

fn default_port() -> u16 {
    5432
}

fn default_snowflake_port() -> u16 {
    443
}

fn verified() -> Tls {
    Tls { mode: TlsMode::VerifyFull, ..Tls::default() }
}

fn default_clickhouse_port() -> u16 {
    8123
}

fn default_bigquery_endpoint() -> String {
    "https://bigquery.googleapis.com".into()
}

fn default_bigquery_storage_endpoint() -> String {
    "https://bigquerystorage.googleapis.com".into()
}

fn default_connect_timeout() -> Span {
    span("10s")
}
