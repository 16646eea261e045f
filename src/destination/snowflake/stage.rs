//! Files on their way: into object storage, where the internal stage is. I/O.
//!
//! PUT says where the stage's files are and lends credentials for that place; what it would do with a file, this does with rows that come as they are read
//! (Snowflake docs, "PUT"; the official drivers, `file_transfer_agent`). The stage is encrypted by the service (`SNOWFLAKE_SSE`): clients are not.

use std::{
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use object_store::{
    ClientOptions, MultipartUpload, ObjectStore, PutPayload, RetryConfig, StaticCredentialProvider,
    aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder,
    client::{HttpClient, HttpConnector},
    gcp::{GcpCredential, GoogleCloudStorageBuilder},
    path::Path,
};
use serde::Deserialize;
use tokio::{task::JoinHandle, time::Instant};
use zstd::stream::write::Encoder;

use super::{
    Snowflake,
    client::{Peer, http},
    error::{meaning, permanent},
};
use crate::{api::peer::TlsMode, destination::Error};

/// A part of a file: one is filled while another is on its way. Object storage wants 5 MiB at least and 10,000 parts at most.
const PART: usize = 8 << 20;
/// A file that is larger once it is compressed is followed by another: Snowflake recommends 100 to 250 MB (Snowflake docs, "Preparing your data files"), and a
/// warehouse reads several at once.
const FILE: usize = 160 << 20;
/// How long a place is used. Its credentials last for hours.
const LENT: Duration = Duration::from_secs(1800);
/// zstd's fastest level but for the negative ones.
const LEVEL: i32 = 1;

/// Places that were lent, by their paths in the stage.
#[derive(Default)]
pub(super) struct Places {
    lent: Mutex<Vec<(String, Instant, Place)>>,
}

/// Where files of one path in the stage go.
#[derive(Clone)]
pub(super) struct Place {
    store: Arc<dyn ObjectStore>,
    prefix: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lent {
    stage_info: Info,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    location_type: String,
    location: String,
    #[serde(default)]
    region: Option<String>,
    #[serde(default)]
    storage_account: Option<String>,
    #[serde(default)]
    end_point: Option<String>,
    #[serde(default)]
    is_client_side_encrypted: bool,
    #[serde(default)]
    creds: Credentials,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", default)]
struct Credentials {
    aws_key_id: Option<String>,
    aws_secret_key: Option<String>,
    aws_token: Option<String>,
    azure_sas_token: Option<String>,
    gcs_access_token: Option<String>,
}

impl Snowflake {
    /// Makes the mirror's stage.
    pub(super) async fn create_stage(&self) -> Result<(), Error> {
        let sql = format!(
            "CREATE STAGE IF NOT EXISTS {} ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE') COMMENT = 'Rows on their way (mirror-operator)'",
            self.stage_name()
        );
        self.client()?.query(&sql, "creating the stage").await.map(drop)
    }

    /// Where files of a path in the stage go.
    pub(super) async fn place(&self, path: &str) -> Result<Place, Error> {
        let doing = "asking for a place in the stage";
        let lent = |places: &Places| {
            let mut lent = places.lent.lock().unwrap_or_else(PoisonError::into_inner);
            lent.retain(|(_, since, _)| since.elapsed() < LENT);
            lent.iter().find(|(of, ..)| of == path).map(|(_, _, place)| place.clone())
        };
        if let Some(place) = lent(&self.stage) {
            return Ok(place);
        }
        // No such file is looked for: it is the service that reads this.
        let sql = format!(
            "PUT 'file:///tmp/rows.csv.zst' '@{}/{path}' AUTO_COMPRESS = FALSE SOURCE_COMPRESSION = ZSTD OVERWRITE = TRUE",
            self.stage_name()
        );
        let client = self.client()?;
        let mut session = client.session().await.map_err(|e| meaning(&e, doing))?;
        let place = session.place(&sql).await;
        if !place.as_ref().is_err_and(|e| e.ends_session()) {
            client.keep(session);
        }
        let place = serde_json::from_value::<Lent>(place.map_err(|e| meaning(&e, doing))?);
        let place = Place::new(
            &self.to,
            place.map_err(|e| Error::Transient(format!("{doing}: an answer that is not understood: {e}")))?.stage_info,
        )?;
        let mut all = self.stage.lent.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((path.into(), Instant::now(), place.clone()));
        Ok(place)
    }

    /// Removes files of the stage whose paths begin so. What is left behind does no harm.
    pub(super) async fn clean(&self, path: &str) -> Result<(), Error> {
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

impl Place {
    fn new(to: &Peer, info: Info) -> Result<Self, Error> {
        let unusable = |e: object_store::Error| Error::Transient(format!("preparing an upload: {e}"));
        if info.is_client_side_encrypted {
            let message = "the mirror's stage is encrypted by clients: drop it, so that it is made anew with SNOWFLAKE_SSE";
            return Err(permanent("StageEncryption", message));
        }
        let (bucket, prefix) = info.location.split_once('/').unwrap_or((&info.location, ""));
        let connector = Connector(http(to)?);
        let retry = RetryConfig {
            retry_timeout: Duration::from_millis(to.patience_millis),
            max_retries: if to.patience_millis == 0 { 0 } else { 10 },
            ..RetryConfig::default()
        };
        let options = ClientOptions::new().with_allow_http(to.at.tls == TlsMode::Disable);
        let Credentials { aws_key_id, aws_secret_key, aws_token, azure_sas_token, gcs_access_token } = info.creds;
        let endpoint = info.end_point.filter(|e| !e.is_empty()).map(|e| if e.contains("://") { e } else { format!("https://{e}") });
        let store: Arc<dyn ObjectStore> = match info.location_type.as_str() {
            "S3" => {
                let mut builder = AmazonS3Builder::new()
                    .with_bucket_name(bucket)
                    .with_region(info.region.unwrap_or_default())
                    .with_access_key_id(aws_key_id.unwrap_or_default())
                    .with_secret_access_key(aws_secret_key.unwrap_or_default())
                    .with_token(aws_token.unwrap_or_default());
                // By the bucket's own host, as drivers do and `SYSTEM$ALLOWLIST` lists it.
                builder = match endpoint {
                    Some(endpoint) => builder.with_endpoint(endpoint),
                    None => builder.with_virtual_hosted_style_request(true),
                };
                Arc::new(builder.with_client_options(options).with_http_connector(connector).with_retry(retry).build().map_err(unusable)?)
            }
            "AZURE" => {
                let token = azure_sas_token.unwrap_or_default();
                let mut builder = MicrosoftAzureBuilder::new()
                    .with_account(info.storage_account.unwrap_or_default())
                    .with_container_name(bucket)
                    .with_config(object_store::azure::AzureConfigKey::SasKey, token.trim_start_matches('?'));
                if let Some(endpoint) = endpoint.filter(|e| !e.ends_with("//blob.core.windows.net")) {
                    builder = builder.with_endpoint(endpoint);
                }
                Arc::new(builder.with_client_options(options).with_http_connector(connector).with_retry(retry).build().map_err(unusable)?)
            }
            "GCS" => {
                let credential = GcpCredential { bearer: gcs_access_token.unwrap_or_default() };
                let builder = GoogleCloudStorageBuilder::new()
                    .with_bucket_name(bucket)
                    .with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
                Arc::new(builder.with_client_options(options).with_http_connector(connector).with_retry(retry).build().map_err(unusable)?)
            }
            other => {
                return Err(permanent(
                    "StageUnsupported",
                    format!("the account keeps its stages at {other:?}, which this version cannot write to"),
                ));
            }
        };
        Ok(Self { store, prefix: prefix.into() })
    }

    /// Begins a file.
    pub(super) fn file(&self, name: &str) -> Result<File, Error> {
        let path = Path::parse(format!("{}{name}", self.prefix)).map_err(|e| lost(e.into()))?;
        let packed = Encoder::new(Vec::with_capacity(PART + PART / 8), LEVEL).map_err(unpacked)?;
        Ok(File { store: self.store.clone(), path, packed, parts: None, sent: 0 })
    }
}

/// A file that is being written.
pub(super) struct File {
    store: Arc<dyn ObjectStore>,
    path: Path,
    packed: Encoder<'static, Vec<u8>>,
    parts: Option<Parts>,
    /// Bytes in parts before the one that is filled.
    sent: usize,
}

struct Parts {
    upload: Box<dyn MultipartUpload>,
    on_its_way: Option<JoinHandle<object_store::Result<()>>>,
}

impl File {
    /// Adds rows. They are on their way before the next part is full.
    pub(super) async fn write(&mut self, rows: &[u8]) -> Result<(), Error> {
        self.packed.write_all(rows).map_err(unpacked)?;
        if self.packed.get_ref().len() >= PART {
            let part = std::mem::replace(self.packed.get_mut(), Vec::with_capacity(PART + PART / 8));
            self.send(part.into()).await?;
        }
        Ok(())
    }

    /// Whether the next rows belong into another file.
    pub(super) fn is_full(&self) -> bool {
        self.sent + self.packed.get_ref().len() >= FILE
    }

    async fn send(&mut self, part: Bytes) -> Result<(), Error> {
        if self.parts.is_none() {
            let upload = self.store.put_multipart(&self.path).await.map_err(lost)?;
            self.parts = Some(Parts { upload, on_its_way: None });
        }
        self.sent += part.len();
        if let Some(parts) = &mut self.parts {
            parts.arrived().await?;
            parts.on_its_way = Some(tokio::spawn(parts.upload.put_part(PutPayload::from_bytes(part))));
        }
        Ok(())
    }

    /// Ends the file: from now on it is in the stage.
    pub(super) async fn finish(mut self) -> Result<(), Error> {
        let packed = std::mem::replace(&mut self.packed, Encoder::new(Vec::new(), LEVEL).map_err(unpacked)?);
        let rest = Bytes::from(packed.finish().map_err(unpacked)?);
        if self.parts.is_none() {
            return self.store.put(&self.path, PutPayload::from_bytes(rest)).await.map(drop).map_err(lost);
        }
        self.send(rest).await?;
        match &mut self.parts {
            Some(parts) => {
                parts.arrived().await?;
                parts.upload.complete().await.map(drop).map_err(lost)
            }
            None => Ok(()),
        }
    }

    /// Gives it up: parts that have arrived would be kept, and paid for.
    pub(super) async fn abort(mut self) {
        if let Some(parts) = &mut self.parts {
            let _ = parts.arrived().await;
            let _ = parts.upload.abort().await;
        }
    }
}

impl Parts {
    async fn arrived(&mut self) -> Result<(), Error> {
        match self.on_its_way.take() {
            Some(part) => part.await.map_err(|e| Error::Transient(format!("uploading rows: {e}")))?.map_err(lost),
            None => Ok(()),
        }
    }
}

/// Without the address, which the service has signed.
fn lost(error: object_store::Error) -> Error {
    let why = match &error {
        object_store::Error::NotFound { .. } => "the place is gone",
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            "the place's credentials are not taken any more"
        }
        _ => "object storage cannot be reached, or refuses; a network policy may have to let its hosts through (SELECT SYSTEM$ALLOWLIST())",
    };
    Error::Transient(format!("uploading rows to the stage: {why}"))
}

fn unpacked(error: std::io::Error) -> Error {
    Error::Transient(format!("compressing rows: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The reason for which nothing can be put where the account says; empty if it can.
    fn refused(info: Value) -> String {
        let at =
            json!({ "peer": "b", "host": "h", "port": 443, "database": "D", "user": "U", "tls": "VerifyFull", "connectTimeoutMillis": 1 });
        let to = json!({ "at": at, "account": "a", "schema": "S", "keyPair": true, "names": "Upper", "patienceMillis": 1 });
        match Place::new(&serde_json::from_value(to).unwrap(), serde_json::from_value(info).unwrap()) {
            Ok(_) => String::new(),
            Err(Error::Permanent(failure)) => failure.reason,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_stage_that_nothing_can_be_put_into_is_refused_by_name() {
        let creds = json!({ "AWS_KEY_ID": "k", "AWS_SECRET_KEY": "s" });
        let stage = |more: &str, value: Value| {
            let mut info = json!({ "locationType": "S3", "location": "bucket/path/", "region": "eu-central-1", "creds": creds });
            info[more] = value;
            info
        };
        assert_eq!(refused(stage("isClientSideEncrypted", json!(false))), "");
        assert_eq!(refused(stage("isClientSideEncrypted", json!(true))), "StageEncryption");
        assert_eq!(refused(stage("locationType", json!("LOCAL_FS"))), "StageUnsupported");
    }
}
