//! The mirror's own stage, which is internal: PUT says where its files are and lends credentials for that place (Snowflake docs, "PUT"; the official drivers,
//! `file_transfer_agent`). The stage is encrypted by the service (`SNOWFLAKE_SSE`): clients are not. I/O.

use std::sync::Arc;

use object_store::{
    ObjectStore, StaticCredentialProvider,
    aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder,
    gcp::{GcpCredential, GoogleCloudStorageBuilder},
};
use serde::Deserialize;

use super::{
    super::{
        Snowflake,
        client::Peer,
        error::{meaning, permanent},
    },
    Place, Reach,
};
use crate::{api::peer::TlsMode, destination::Error};

const CURE: &str = "a network policy may have to let its hosts through (SELECT SYSTEM$ALLOWLIST())";

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

/// Where files of a path in the internal stage go.
pub(super) async fn place(at: &Snowflake, path: &str) -> Result<Place, Error> {
    let doing = "asking for a place in the stage";
    // No such file is looked for: it is the service that reads this.
    let sql = format!(
        "PUT 'file:///tmp/rows.csv.zst' '@{}/{path}' AUTO_COMPRESS = FALSE SOURCE_COMPRESSION = ZSTD OVERWRITE = TRUE",
        at.stage_name()
    );
    let client = at.client()?;
    let mut session = client.session().await.map_err(|e| meaning(&e, doing))?;
    let place = session.place(&sql).await;
    if !place.as_ref().is_err_and(|e| e.ends_session()) {
        client.keep(session);
    }
    let lent = serde_json::from_value::<Lent>(place.map_err(|e| meaning(&e, doing))?)
        .map_err(|e| Error::Transient(format!("{doing}: an answer that is not understood: {e}")))?;
    let (store, prefix) = store(&at.to, lent.stage_info)?;
    Ok(Place { store, prefix, from: format!("{}/{path}", at.stage_name()), cure: CURE.into() })
}

fn store(to: &Peer, info: Info) -> Result<(Arc<dyn ObjectStore>, String), Error> {
    let unusable = |e: object_store::Error| Error::Transient(format!("preparing an upload: {e}"));
    if info.is_client_side_encrypted {
        let message = "the mirror's stage is encrypted by clients: drop it, so that it is made anew with SNOWFLAKE_SSE";
        return Err(permanent("StageEncryption", message));
    }
    let (bucket, prefix) = info.location.split_once('/').unwrap_or((&info.location, ""));
    let Reach { options, connector, retry } = Reach::new(to, to.at.tls == TlsMode::Disable)?;
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
    Ok((store, prefix.into()))
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
        match store(&serde_json::from_value(to).unwrap(), serde_json::from_value(info).unwrap()) {
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
