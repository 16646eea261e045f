//! What a stage's URL and a Secret with AWS's keys say. Pure.

/// Where files go in object storage.
#[derive(Debug, PartialEq)]
pub(super) struct Location {
    pub(super) cloud: Cloud,
    /// The bucket or container.
    pub(super) bucket: String,
    /// Without slashes at its ends; empty for the bucket itself.
    pub(super) folder: String,
}

/// Whose object storage it is.
#[derive(Debug, PartialEq)]
pub(super) enum Cloud {
    S3,
    Google,
    Azure { account: String, host: String },
}

impl Location {
    /// Reads a URL as `CREATE STAGE` takes it (Snowflake docs, "CREATE STAGE", "External stage parameters").
    pub(super) fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (host, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (cloud, bucket, folder) = match scheme {
            "s3" | "s3gov" | "s3china" => (Cloud::S3, host, rest),
            "gcs" => (Cloud::Google, host, rest),
            "azure" => {
                let (account, _) = host.split_once('.')?;
                let (bucket, folder) = rest.split_once('/').unwrap_or((rest, ""));
                (Cloud::Azure { account: account.into(), host: host.into() }, bucket, folder)
            }
            _ => return None,
        };
        (!bucket.is_empty()).then(|| Self { cloud, bucket: bucket.into(), folder: folder.trim_matches('/').into() })
    }
}

/// The folder that `url` is in the stage of another URL, without slashes at its ends; `None` if the stage does not cover it.
pub(super) fn beneath<'a>(of_stage: &str, url: &'a str) -> Option<&'a str> {
    let rest = url.trim_end_matches('/').strip_prefix(of_stage.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_matches('/'))
}

/// A user's keys at AWS.
pub(super) struct AwsKeys {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
}

/// Reads the profile `default` of a credentials file (AWS docs, "Configuration and credential file settings").
pub(super) fn aws_keys(file: &str) -> Option<AwsKeys> {
    let mut ours = true;
    let (mut id, mut secret, mut token) = (None, None, None);
    for line in file.lines().map(str::trim) {
        if let Some(profile) = line.strip_prefix('[') {
            ours = profile.trim_end_matches(']').trim() == "default";
        } else if let Some((key, value)) = line.split_once('=').filter(|_| ours) {
            let place = match key.trim() {
                "aws_access_key_id" => &mut id,
                "aws_secret_access_key" => &mut secret,
                "aws_session_token" => &mut token,
                _ => continue,
            };
            *place = Some(value.trim().to_string()).filter(|value| !value.is_empty());
        }
    }
    Some(AwsKeys { id: id?, secret: secret?, token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_cloud_bucket_and_folder() {
        let of = |url: &str| Location::parse(url).map(|l| (l.cloud, l.bucket, l.folder));
        let is = |cloud, bucket: &str, folder: &str| Some((cloud, bucket.to_string(), folder.to_string()));
        assert_eq!(of("s3://b/a/c/"), is(Cloud::S3, "b", "a/c"));
        assert_eq!(of("s3gov://b"), is(Cloud::S3, "b", ""));
        assert_eq!(of("gcs://b/"), is(Cloud::Google, "b", ""));
        let azure = Cloud::Azure { account: "acc".into(), host: "acc.blob.core.windows.net".into() };
        assert_eq!(of("azure://acc.blob.core.windows.net/c/a"), is(azure, "c", "a"));
        for url in ["b/a", "s3:///a", "file://b/a", "azure://acc/c", "azure://acc.blob.core.windows.net/"] {
            assert_eq!(of(url), None, "{url}");
        }
    }

    #[test]
    fn a_stage_covers_its_own_url_and_the_folders_beneath() {
        for (stage, url, folder) in [
            ("s3://b/a/", "s3://b/a", Some("")),
            ("s3://b/a", "s3://b/a/c/d/", Some("c/d")),
            ("s3://b", "s3://b/a", Some("a")),
            ("s3://b/a", "s3://b/ab", None),
            ("s3://b/a/", "s3://b", None),
            ("s3://b/", "gcs://b/a", None),
        ] {
            assert_eq!(beneath(stage, url), folder, "{stage} {url}");
        }
    }

    #[test]
    fn keys_are_those_of_the_default_profile() {
        let keys =
            aws_keys("# k\n[other]\naws_access_key_id = X\n[default]\naws_access_key_id=A\naws_secret_access_key = s/e=\nregion = r\n")
                .unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.as_str(), keys.token), ("A", "s/e=", None));
        assert!(aws_keys("aws_access_key_id = A\naws_secret_access_key = S\naws_session_token = T").unwrap().token.is_some());
        assert!(aws_keys("[default]\naws_access_key_id = A").is_none());
    }
}
