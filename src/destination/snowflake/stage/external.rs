//! A stage that the user has made, above object storage of one's own: files are written there with the Peer's credentials, and Snowflake reads them with those of
//! the stage's storage integration (Snowflake docs, "Overview of data loading", "External stages"). I/O.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::{
    ObjectStore, PutPayload,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::GoogleCloudStorageBuilder,
    path::Path,
};
use serde::{Deserialize, Serialize};

use super::{
    super::{
        Snowflake,
        client::{Client, Peer},
        error::{failure, meaning},
        quote::qualified,
    },
    Place, Reach,
    location::{Cloud, Location, aws_keys, beneath},
    refusal::{Refusal, refusal},
};
use crate::{
    api::peer::TlsMode,
    destination::Error,
    postgres::{
        Connection,
        connect::{SecretFile, read_secret},
    },
    report::Failure,
};

/// A stage that the Peer names. Names are as they are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalStage {
    /// Its database.
    pub database: String,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Where files go, beneath the stage's own URL or there.
    pub url: String,
    /// The bucket's region, at S3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Base URL of the storage's API, if it is not the cloud's public one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// File with the credentials; without it the pod's own identity is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretFile>,
}

impl ExternalStage {
    /// Its whole name, quoted.
    fn quoted(&self) -> String {
        qualified(&self.database, &self.schema, &self.name)
    }

    /// What to look at when storage does not take files.
    fn cure(&self) -> String {
        let who = match &self.credentials {
            Some(file) => format!("the credentials in Secret {:?}, key {:?}", file.secret, file.key),
            None => "the cloud's identity of the namespace's ServiceAccount default".into(),
        };
        format!("look at {}, which {who} must be allowed to write, list and delete, and at network policies", self.url)
    }
}

/// Where files of a path in the stage go, and Snowflake finds them.
pub(super) async fn place(at: &Snowflake, stage: &ExternalStage, path: &str) -> Result<Place, Error> {
    match look(at.client()?, stage).await? {
        Ok(folder) => of_mirror(at, stage, &folder, path),
        Err(problem) => Err(Error::Permanent(problem)),
    }
}

/// Where all files of the mirror are, whatever has become of the stage.
pub(super) fn folder(at: &Snowflake, stage: &ExternalStage) -> Result<Place, Error> {
    of_mirror(at, stage, "", "")
}

fn of_mirror(at: &Snowflake, stage: &ExternalStage, folder: &str, path: &str) -> Result<Place, Error> {
    let path = format!("{}/{path}", at.own_name().name);
    // Secrets rotate and appear: what is wrong with one is always worth another try.
    Place::new(&at.to, reach(&at.to, stage)?, stage, folder, &path).map_err(|problem| Error::Transient(problem.message))
}

/// The folder of the Peer's URL in the stage, as the stage is now; or what is wrong with it.
async fn look(client: &Client, stage: &ExternalStage) -> Result<Result<String, Failure>, Error> {
    let name = stage.quoted();
    let answer = match client.try_query(&format!("DESC STAGE {name}")).await {
        Ok(answer) => answer,
        Err(refusal) if refusal.is_missing() => {
            let message = format!(
                "the destination has no stage {name}, which the Peer names, or its role may not use it. Make it (docs/snowflake.md, \"A stage of your own\"), \
                 and run there: GRANT USAGE ON STAGE {name} TO ROLE …, with USAGE on its database and schema"
            );
            return Ok(Err(failure("StageMissing", message)));
        }
        Err(refusal) => return Err(meaning(&refusal, "looking at the stage")),
    };
    // `["s3://bucket/path/"]`, a JSON array, and nothing of an internal one (Snowflake docs, "DESCRIBE STAGE").
    let urls = answer.rows().find(|row| row.named("property") == Some("URL")).and_then(|row| row.named("property_value"));
    let urls: Vec<String> = urls.and_then(|urls| serde_json::from_str(urls).ok()).unwrap_or_default();
    let Some(of_stage) = urls.first().filter(|url| !url.is_empty()) else {
        let message = format!("{name} is an internal stage: name one that was made with a URL, or leave `stage` out of the Peer");
        return Ok(Err(failure("StageMismatch", message)));
    };
    Ok(beneath(of_stage, &stage.url).map(str::to_string).ok_or_else(|| {
        let message = format!(
            "stage {name} is for {of_stage:?}, which does not cover the Peer's url {:?}: correct the url, or run at the destination: ALTER STAGE {name} SET URL = '{}'",
            stage.url, stage.url
        );
        failure("StageMismatch", message)
    }))
}

/// What keeps files from going through the stage: tried with an object that is written, seen by Snowflake, and deleted.
pub(in super::super) async fn check(client: &Client, to: &Peer, stage: &ExternalStage) -> Result<Option<Failure>, Error> {
    let folder = match look(client, stage).await? {
        Ok(folder) => folder,
        Err(problem) => return Ok(Some(problem)),
    };
    let place = match Place::new(to, reach(to, stage)?, stage, &folder, "") {
        Ok(place) => place,
        Err(problem) => return Ok(Some(problem)),
    };
    let name = format!("_mirror_operator_probe_{:016x}", super::super::random());
    let object = Path::from(format!("{}{name}", place.prefix));
    if let Err(error) = place.store.put(&object, PutPayload::from_static(b"probe\n")).await {
        return Ok(Some(refused(stage, &error, "write to")));
    }
    let seen = client.try_query(&format!("LIST @{}{name}", place.from)).await;
    let listed = place.store.list(Some(&Path::from(place.prefix.as_str()))).next().await.transpose();
    let deleted = place.store.delete(&object).await;
    let unreadable = match seen {
        Ok(answer) if answer.rows().next().is_some() => None,
        Ok(_) => Some("it does not see a file that was written there".to_string()),
        Err(refusal) if refusal.code.is_empty() => return Err(meaning(&refusal, "looking into the stage")),
        Err(refusal) => Some(meaning(&refusal, "looking into it").to_string()),
    };
    Ok(if let Err(error) = listed {
        Some(refused(stage, &error, "list"))
    } else if let Err(error) = deleted {
        Some(refused(stage, &error, "delete files of"))
    } else {
        unreadable.map(|why| {
            let message = format!(
                "Snowflake cannot read {} through stage {}: {why}. Let the role of the stage's storage integration list and read it (DESC INTEGRATION names it)",
                stage.url,
                stage.quoted()
            );
            failure("StageUnreadable", message)
        })
    })
}

/// Why storage did not do something. Not permanent: what is missing there may be given at any time.
fn refused(stage: &ExternalStage, error: &object_store::Error, what: &str) -> Failure {
    let why = match refusal(error) {
        Refusal::Missing => "there is no such bucket or container",
        Refusal::Denied => "the credentials are not taken, or do not allow it",
        Refusal::Elsewhere => "it is not in the region that the Peer names",
        Refusal::Other => "it cannot be reached, or refuses",
    };
    Failure { reason: "StageUnwritable".into(), message: format!("cannot {what} {}: {why}; {}", stage.url, stage.cure()), permanent: false }
}

impl Place {
    /// `path` beneath the Peer's URL, which is `folder` in the stage.
    fn new(to: &Peer, reach: Reach, stage: &ExternalStage, folder: &str, path: &str) -> Result<Self, Failure> {
        let location = Location::parse(&stage.url).ok_or_else(|| {
            let message = format!(
                "{:?} is not s3://bucket/path, gcs://bucket/path or azure://account.host/container/path: correct the Peer's stage.url",
                stage.url
            );
            failure("StageUnsupported", message)
        })?;
        let slash = |folder: &str| if folder.is_empty() { String::new() } else { format!("{folder}/") };
        Ok(Self {
            prefix: format!("{}{path}", slash(&location.folder)),
            from: format!("{}/{}{path}", stage.quoted(), slash(folder)),
            cure: stage.cure().into(),
            store: store(to, reach, stage, location)?,
        })
    }

    /// Files of the place whose paths begin so.
    async fn listed(&self, path: &str) -> object_store::Result<Vec<Path>> {
        let begin = format!("{}{path}", self.prefix);
        // Storage lists whole folders only.
        let folder = begin.rsplit_once('/').map(|(folder, _)| Path::from(folder));
        let all = self.store.list(folder.as_ref()).map_ok(|found| found.location);
        all.try_filter(|found| futures::future::ready(found.as_ref().starts_with(&begin))).try_collect().await
    }

    /// Removes them.
    pub(super) async fn remove(&self, path: &str) -> Result<(), Error> {
        let unremoved = |e: &object_store::Error| {
            let why = match refusal(e) {
                Refusal::Denied => "it is not allowed",
                _ => "object storage cannot be reached, or refuses",
            };
            Error::Transient(format!("removing files from the stage: {why}; {}", self.cure))
        };
        let found = match self.listed(path).await {
            // The bucket is gone, and they with it.
            Err(error) if refusal(&error) == Refusal::Missing => return Ok(()),
            found => found.map_err(|e| unremoved(&e))?,
        };
        futures::stream::iter(found)
            .map(|file| async move {
                match self.store.delete(&file).await {
                    Err(error) if refusal(&error) != Refusal::Missing => Err(unremoved(&error)),
                    _ => Ok(()),
                }
            })
            .buffer_unordered(8)
            .try_collect()
            .await
    }
}

/// How the storage is spoken with: as the Peer's endpoint says. The Peer's CA and certificate are for Snowflake.
fn reach(to: &Peer, stage: &ExternalStage) -> Result<Reach, Error> {
    let plain = stage.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let tls = if plain { TlsMode::Disable } else { TlsMode::VerifyFull };
    let at = Connection { tls, ca: None, client_certificate: None, ..to.at.clone() };
    Reach::new(&Peer { at, ..to.clone() }, plain)
}

/// With the Secret's credentials or, without one, the identity that the cloud gives the pod: AWS's by web identity, Pod Identity or the node's metadata,
/// Azure's by a federated token or the metadata, Google's by the metadata server.
fn store(
    to: &Peer,
    Reach { options, connector, retry }: Reach,
    stage: &ExternalStage,
    Location { cloud, bucket, .. }: Location,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let problem = |reason: &str, message: String| Failure { reason: reason.into(), message, permanent: false };
    let secret = stage.credentials.as_ref().map(|file| read_secret(&to.at, file)).transpose();
    let secret = secret.map_err(|e| problem("SecretMissing", e.to_string()))?;
    let unusable = |_: object_store::Error| match &stage.credentials {
        // Without its words, which may quote what was read.
        Some(file) => problem(
            "CredentialsInvalid",
            format!(
                "Secret {:?}, key {:?} has no credentials for {} (docs/snowflake.md, \"A stage of your own\")",
                file.secret, file.key, stage.url
            ),
        ),
        None => problem("StageUnwritable", format!("the pod has no identity for {}; {}", stage.url, stage.cure())),
    };
    Ok(match cloud {
        Cloud::S3 => {
            let builder = s3(stage, secret.as_deref()).ok_or_else(|| unusable(object_store::Error::NotImplemented))?;
            let by_path = bucket.contains('.') || stage.endpoint.is_some();
            let builder = builder.with_bucket_name(bucket).with_virtual_hosted_style_request(!by_path);
            Arc::new(builder.with_client_options(options).with_http_connector(connector).with_retry(retry).build().map_err(unusable)?)
        }
        Cloud::Azure { account, host } => {
            let builder = azure(secret.as_deref()).with_account(account).with_container_name(bucket);
            let builder = builder.with_endpoint(stage.endpoint.clone().unwrap_or_else(|| format!("https://{host}")));
            Arc::new(builder.with_client_options(options).with_http_connector(connector).with_retry(retry).build().map_err(unusable)?)
        }
        Cloud::Google => {
            let mut builder = GoogleCloudStorageBuilder::new().with_bucket_name(bucket);
            if let Some(key) = secret {
                builder = builder.with_service_account_key(key);
            }
            Arc::new(builder.with_client_options(options).with_http_connector(connector).with_retry(retry).build().map_err(unusable)?)
        }
    })
}

/// `None` if the Secret has no keys.
fn s3(stage: &ExternalStage, secret: Option<&str>) -> Option<AmazonS3Builder> {
    let mut builder = AmazonS3Builder::new().with_region(stage.region.clone().unwrap_or_default());
    if let Some(endpoint) = &stage.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let Some(secret) = secret else {
        // Web identity is found by the builder itself; of Pod Identity it is told.
        for (variable, key) in [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", AmazonS3ConfigKey::ContainerCredentialsFullUri),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", AmazonS3ConfigKey::ContainerAuthorizationTokenFile),
        ] {
            if let Ok(value) = std::env::var(variable) {
                builder = builder.with_config(key, value);
            }
        }
        return Some(builder);
    };
    let keys = aws_keys(secret)?;
    let builder = builder.with_access_key_id(keys.id).with_secret_access_key(keys.secret);
    Some(match keys.token {
        Some(token) => builder.with_token(token),
        None => builder,
    })
}

/// The Secret has a shared access signature, or the account's key.
fn azure(secret: Option<&str>) -> MicrosoftAzureBuilder {
    let builder = MicrosoftAzureBuilder::new();
    match secret {
        Some(signature) if signature.contains("sig=") => builder.with_config(AzureConfigKey::SasKey, signature.trim_start_matches('?')),
        Some(key) => builder.with_access_key(key),
        // What the webhook of Azure Workload Identity gives a pod.
        None => [
            ("AZURE_CLIENT_ID", AzureConfigKey::ClientId),
            ("AZURE_TENANT_ID", AzureConfigKey::AuthorityId),
            ("AZURE_AUTHORITY_HOST", AzureConfigKey::AuthorityHost),
            ("AZURE_FEDERATED_TOKEN_FILE", AzureConfigKey::FederatedTokenFile),
        ]
        .into_iter()
        .filter_map(|(variable, key)| Some((key, std::env::var(variable).ok()?)))
        .fold(builder, |builder, (key, value)| builder.with_config(key, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azure_takes_a_signature_or_the_accounts_key() {
        let of = |secret: &str| {
            let builder = azure(Some(secret));
            [AzureConfigKey::SasKey, AzureConfigKey::AccessKey].map(|key| builder.get_config_value(&key))
        };
        assert_eq!(of("?sv=2024&sig=a%3D"), [Some("sv=2024&sig=a%3D".into()), None]);
        assert_eq!(of("a2V5"), [None, Some("a2V5".into())]);
    }

    #[test]
    fn s3_takes_a_credentials_file_and_goes_where_the_peer_says() {
        let stage = ExternalStage {
            database: "D".into(),
            schema: "S".into(),
            name: "ROWS".into(),
            url: "s3://b/p".into(),
            region: Some("eu-central-1".into()),
            endpoint: Some("https://private".into()),
            credentials: None,
        };
        let all = [
            AmazonS3ConfigKey::AccessKeyId,
            AmazonS3ConfigKey::SecretAccessKey,
            AmazonS3ConfigKey::Token,
            AmazonS3ConfigKey::Region,
            AmazonS3ConfigKey::Endpoint,
        ];
        let of = |secret: &str| s3(&stage, Some(secret)).map(|builder| all.map(|key| builder.get_config_value(&key).unwrap_or_default()));
        let file = "aws_access_key_id = A\naws_secret_access_key = B\naws_session_token = C";
        assert_eq!(of(file), Some(["A", "B", "C", "eu-central-1", "https://private"].map(String::from)));
        assert_eq!(of("A:B"), None);
    }
}
