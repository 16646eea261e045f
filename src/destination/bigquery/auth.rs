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

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use axum::{Json, Router, http::HeaderMap, routing};
    use base64::engine::general_purpose::STANDARD;
    use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    use super::*;

    /// A key of a service account, and its public half as DER.
    fn account(token_uri: &str) -> (Account, Vec<u8>) {
        let key =
            Command::new("openssl").args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]).output().unwrap();
        let private = String::from_utf8(key.stdout).unwrap();
        // Tests run side by side.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let file = std::env::temp_dir().join(format!("mirror-test-key-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::SeqCst)));
        std::fs::write(&file, &private).unwrap();
        let public = Command::new("openssl").args(["rsa", "-RSAPublicKey_out", "-in"]).arg(&file).output().unwrap();
        std::fs::remove_file(&file).unwrap();
        let public: String = String::from_utf8(public.stdout).unwrap().lines().filter(|line| !line.starts_with("--")).collect();
        let json = serde_json::json!({
            "type": "service_account", "client_email": "mirror@p.iam.gserviceaccount.com", "private_key": private, "private_key_id": "k1",
            "token_uri": token_uri,
        });
        (Account::parse(&json.to_string()).unwrap(), STANDARD.decode(public).unwrap())
    }

    async fn serve(app: Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        format!("http://{address}")
    }

    fn http() -> reqwest::Client {
        reqwest::Client::builder().no_proxy().build().unwrap()
    }

    #[tokio::test]
    async fn a_service_account_shows_a_signed_assertion_and_asks_once() {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = asked.clone();
        let answer = async move |form: String| {
            counter.fetch_add(1, Ordering::SeqCst);
            let assertion = form.strip_prefix("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=").unwrap();
            Json(serde_json::json!({ "access_token": assertion, "expires_in": 3600, "token_type": "Bearer" }))
        };
        let url = format!("{}/token", serve(Router::new().route("/token", routing::post(answer))).await);
        let (account, public) = account(&url);
        let auth = Auth::new(http(), Identity::Account(Box::new(account)));
        let jwt = auth.token().await.unwrap().unwrap();
        let (signed, signature) = jwt.rsplit_once('.').unwrap();
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public);
        key.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
        let claims = signed.split_once('.').unwrap().1;
        let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        assert_eq!((claims["aud"].as_str(), claims["scope"].as_str()), (Some(url.as_str()), Some(SCOPE)));
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3600);
        assert_eq!(auth.token().await.unwrap(), Some(jwt));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_pod_asks_the_metadata_server_again_when_its_token_ends() {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = asked.clone();
        let answer = async move |headers: HeaderMap| {
            assert_eq!(headers["metadata-flavor"], "Google");
            let n = counter.fetch_add(1, Ordering::SeqCst);
            // Shorter than the margin: of no use for a second time.
            Json(serde_json::json!({ "access_token": format!("token {n}"), "expires_in": 60, "token_type": "Bearer" }))
        };
        let path = "/computeMetadata/v1/instance/service-accounts/default/token";
        let auth = Auth::new(http(), Identity::Pod(serve(Router::new().route(path, routing::get(answer))).await));
        assert_eq!(auth.token().await.unwrap().as_deref(), Some("token 0"));
        assert_eq!(auth.token().await.unwrap().as_deref(), Some("token 1"));
    }

    #[tokio::test]
    async fn what_google_refuses_is_told_and_no_key_is() {
        let (mut account, _) = account("http://127.0.0.1:1/token");
        account.private_key = "secret".into();
        let auth = Auth::new(http(), Identity::Account(Box::new(account)));
        let refusal = auth.token().await.unwrap_err();
        assert!(refusal.is("authError") && !refusal.words.contains("secret"), "{refusal:?}");
        assert_eq!(Auth::new(http(), Identity::Nobody).token().await.unwrap(), None);
        assert!(Account::parse("{\"private_key\": 1}").is_err());
    }
}
