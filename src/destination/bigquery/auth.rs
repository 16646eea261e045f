//! Who the pod is at Google: the key of a service account, or its own identity as the metadata server gives it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};

use super::error::Refusal;

const SCOPE: &str = "https://www.googleapis.com/auth/bigquery";
/// Where a pod asks for the token of its own identity (Google Cloud docs, "About Workload Identity Federation for GKE", "metadata server").
pub(super) const METADATA: &str = "http://metadata.google.internal";
/// A token is renewed so long before it ends.
const MARGIN: Duration = Duration::from_secs(120);

/// Gives tokens, each as long as it holds.
pub(super) struct Auth {
    http: reqwest::Client,
    identity: Identity,
    token: Mutex<Option<(String, Instant)>>,
}

/// Whose tokens.
pub(super) enum Identity {
    /// Nobody's: none is sent.
    Nobody,
    /// That of the pod, by the base URL of the metadata server.
    Pod(String),
    /// That of a service account.
    Account(Box<Account>),
}

/// What is needed of a service account's key file.
#[derive(Deserialize)]
pub(super) struct Account {
    client_email: String,
    private_key: String,
    private_key_id: String,
    token_uri: String,
}

#[derive(Deserialize)]
struct Token {
    access_token: String,
    expires_in: u64,
}

impl Account {
    /// Reads the key file. The error tells nothing of its content.
    pub(super) fn parse(json: &str) -> Result<Self, String> {
        serde_json::from_str(json).map_err(|_| "it is not the key file (JSON) of a service account".into())
    }

    /// A signed assertion, as OAuth takes it for a token (Google Identity docs, "Using OAuth 2.0 for Server to Server Applications").
    fn assertion(&self, now: u64) -> Result<String, String> {
        let bad = || "the private key in the Secret cannot be used".to_string();
        let key = match PrivateKeyDer::from_pem_slice(self.private_key.as_bytes()).map_err(|_| bad())? {
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            _ => return Err(bad()),
        };
        let key = key.map_err(|_| bad())?;
        let header = serde_json::json!({ "alg": "RS256", "typ": "JWT", "kid": self.private_key_id });
        let claims = serde_json::json!({
            "iss": self.client_email, "scope": SCOPE, "aud": self.token_uri, "iat": now, "exp": now + 3600,
        });
        let mut jwt = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut signature = vec![0; key.public().modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), jwt.as_bytes(), &mut signature).map_err(|_| bad())?;
        jwt.push('.');
        jwt.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(jwt)
    }
}

impl Auth {
    pub(super) fn new(http: reqwest::Client, identity: Identity) -> Self {
        Self { http, identity, token: Mutex::new(None) }
    }

    /// A token that holds for a while; `None` if none is to be sent.
    pub(super) async fn token(&self) -> Result<Option<String>, Refusal> {
        if matches!(self.identity, Identity::Nobody) {
            return Ok(None);
        }
        let mut known = self.token.lock().await;
        if let Some((token, until)) = known.as_ref()
            && Instant::now() < *until
        {
            return Ok(Some(token.clone()));
        }
        let Token { access_token, expires_in } = self.ask().await?;
        let until = Instant::now() + Duration::from_secs(expires_in).saturating_sub(MARGIN);
        *known = Some((access_token.clone(), until));
        Ok(Some(access_token))
    }

    async fn ask(&self) -> Result<Token, Refusal> {
        let refused = |words: String| Refusal { status: 401, reason: "authError".into(), words };
        let request = match &self.identity {
            Identity::Nobody => return Err(refused("nobody's token was asked for".into())),
            Identity::Pod(server) => {
                let url = format!("{server}/computeMetadata/v1/instance/service-accounts/default/token");
                self.http.get(url).header("Metadata-Flavor", "Google")
            }
            Identity::Account(account) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
                let assertion = account.assertion(now).map_err(refused)?;
                let grant = "urn:ietf:params:oauth:grant-type:jwt-bearer";
                self.http.post(&account.token_uri).form(&[("grant_type", grant), ("assertion", &assertion)])
            }
        };
        let answer = request.send().await.map_err(|e| Refusal::unheard(format!("asking for a token: {}", e.without_url())))?;
        let status = answer.status();
        let body: serde_json::Value =
            answer.json().await.map_err(|e| Refusal::unheard(format!("asking for a token: {}", e.without_url())))?;
        if !status.is_success() {
            let why = ["error_description", "error"].iter().find_map(|field| body.get(field)?.as_str()).unwrap_or("no reason was given");
            return Err(refused(format!("Google gives no token (HTTP {}): {why}", status.as_u16())));
        }
        serde_json::from_value(body).map_err(|_| refused("the token's answer is not of the form that is expected".into()))
    }
}
