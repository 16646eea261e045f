//! What only mirrors to Snowflake have.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::peer::SecretKeyRef;

/// How names reach Snowflake, where they are always quoted. Those of the Peer and of the Mirror follow one rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Names {
    /// A name without capital letters is written in capitals, so that queries find it without quotes: `orders` is `ORDERS`. A name with capital letters stays as
    /// it is: `OrderLines` is `"OrderLines"`.
    #[default]
    Upper,
    /// Names stay as they are: `orders` is `"orders"`, which queries find in quotes only.
    AsSource,
}

impl Names {
    /// A name as Snowflake stores it.
    pub fn stored(self, name: &str) -> String {
        match self {
            Self::Upper if !name.chars().any(char::is_uppercase) => name.to_uppercase(),
            _ => name.to_string(),
        }
    }
}

/// What becomes of dates and times that Snowflake's types do not hold: before the year 1, after 9999, the infinite ones, and the time 24:00.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BeyondRange {
    /// The nearest one that the type holds.
    #[default]
    Clamp,
    /// The load stops and says where; in the change stream the table is parked.
    Error,
}

/// How a table is kept at Snowflake. Changes take effect with the next resync.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SnowflakeTable {
    /// Expressions of the clustering key, such as `"CREATED_AT"` or `to_date("CREATED_AT")`. If empty, a resync keeps the key that the live table has.
    #[schemars(length(max = 10))]
    pub cluster_by: Vec<String>,
    /// Whether the table is TRANSIENT: without Fail-safe, which makes it cheaper to keep.
    pub transient: bool,
    /// What becomes of dates and times that Snowflake's types do not hold.
    pub out_of_range: BeyondRange,
    /// Takes over a table that is there already, such as one that PeerDB has filled: its soft-deleted rows are carried over, and it is kept as long as
    /// the tables of earlier epochs are. Without this a table that is not empty and not this mirror's own is refused.
    pub adopt: bool,
}

/// An external stage: object storage of one's own that rows go through, and that Snowflake reads by a storage integration. Several mirrors may share one.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.url.contains('..') && !self.url.matches('^[a-z0-9]+://[^/]+/.*--')").message("the path of url has neither two dots nor two hyphens in a row, which mean something else in paths and in SQL"),
    validation = Rule::new("self.url.startsWith('s3') == has(self.region)").message("region is given with a url of S3, and only there"),
    validation = Rule::new("!has(self.endpoint) || !self.url.startsWith('gcs')").message("endpoint is not used with a url of Google Cloud Storage"),
    validation = Rule::new("!self.url.startsWith('azure') || self.url.matches('^azure://[a-z0-9]+[.][^/]+/[^/]+')").message("url at Azure is azure://<account>.<host>/<container>/<path>")
)]
pub struct SnowflakeStage {
    /// Name of the stage, which must be there, made with a URL. The Peer's role needs USAGE on it.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// Name of its schema; the Peer's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub schema: Option<String>,
    /// Name of its database; the Peer's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub database: Option<String>,
    /// Where files are written, as the stage calls it: `s3://bucket/path`, `gcs://bucket/path` or `azure://account.blob.core.windows.net/container/path`. It is the
    /// stage's own URL, or beneath it.
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = "^(s3|s3gov|s3china|gcs|azure)://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._=-]+)*/?$")
    )]
    pub url: String,
    /// Region of the bucket at S3, such as `eu-central-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9-]+$"))]
    pub region: Option<String>,
    /// Base URL of the storage's API, if it is not the cloud's public one: private endpoints, `https://s3.cn-north-1.amazonaws.com.cn` in China, tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 300), regex(pattern = "^https?://[^/]+$"))]
    pub endpoint: Option<String>,
    /// The Secret and key that hold what may write, list and delete there: of S3 a credentials file of AWS (`aws_access_key_id = …`, `aws_secret_access_key = …`),
    /// of Google the key file (JSON) of a service account, of Azure a shared access signature or the account's key. Without it the pods' own identity is used,
    /// as the cloud gives it to the ServiceAccount `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretKeyRef>,
}

#[cfg(test)]
mod tests {
    use super::Names::{AsSource, Upper};

    #[test]
    fn names_without_capitals_are_found_without_quotes() {
        for (name, upper) in [("orders", "ORDERS"), ("Orders", "Orders"), ("ORDERS", "ORDERS"), ("größe 1", "GRÖSSE 1"), ("_x$", "_X$")]
        {
            assert_eq!((Upper.stored(name), AsSource.stored(name)), (upper.to_string(), name.to_string()));
        }
    }
}
