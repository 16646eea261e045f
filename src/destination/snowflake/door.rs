//! How requests reach the service: the middleware below the crate snowflake-api, which knows one host name, reads every answer as the end, and gives up
//! at the first error. I/O.

use std::time::Duration;

use axum::http::{self, Extensions};
use reqwest::{Method, Request, Response, StatusCode, Url, header};
use reqwest_middleware::{Error, Middleware, Next, Result};
use tokio::time::{Instant, sleep};

/// Leads requests to the host of the Peer, polls for the ends of long statements, and asks again where no answer came.
pub(super) struct Door {
    /// `https://host:port`.
    pub(super) to: Url,
    /// The host that the crate makes of the account's name.
    pub(super) made_for: String,
    /// How long it is asked again where there is no answer.
    pub(super) patience: Duration,
}

#[async_trait::async_trait]
impl Middleware for Door {
    async fn handle(&self, mut request: Request, extensions: &mut Extensions, next: Next<'_>) -> Result<Response> {
        if request.url().host_str().is_some_and(|host| host.eq_ignore_ascii_case(&self.made_for)) {
            lead(request.url_mut(), &self.to)?;
        } else {
            // A part of a large result, in object storage.
            return self.insist(request, extensions, next).await;
        }
        let headers = request.headers().clone();
        let mut answer = self.insist(request, extensions, next.clone()).await?;
        loop {
            let status = answer.status();
            let body = answer.bytes().await?;
            let Some(url) = waiting(&body) else { return whole(status, body) };
            let url = self.to.join(&url).map_err(|e| Error::Middleware(e.into()))?;
            let mut poll = Request::new(Method::GET, url);
            for name in [header::AUTHORIZATION, header::ACCEPT] {
                if let Some(value) = headers.get(&name) {
                    poll.headers_mut().insert(name, value.clone());
                }
            }
            answer = self.insist(poll, extensions, next.clone()).await?;
        }
    }
}

impl Door {
    /// Sends a request until it is answered. It bears the same request id each time, by which the service knows that it has seen it, and says the
    /// how manyth it is, as the official drivers do (`retryCount`; `request_guid` is another each time).
    async fn insist(&self, request: Request, extensions: &mut Extensions, next: Next<'_>) -> Result<Response> {
        let (deadline, mut pause) = (Instant::now() + self.patience, Duration::from_millis(200));
        let mut count = 0;
        loop {
            let Some(mut again) = request.try_clone() else { return next.run(request, extensions).await };
            if count > 0 {
                retried(again.url_mut(), count);
            }
            let outcome = next.clone().run(again, extensions).await;
            let unanswered = match &outcome {
                Ok(answer) => transient(answer.status()),
                Err(error) => !error.is_middleware(),
            };
            if !unanswered || Instant::now() + pause >= deadline {
                return outcome;
            }
            count += 1;
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(16));
        }
    }
}

/// Gives a URL the Peer's scheme, host and port.
fn lead(url: &mut Url, to: &Url) -> Result<()> {
    let wrong = || Error::Middleware(std::io::Error::other("the Peer's host cannot be part of a URL").into());
    url.set_scheme(to.scheme()).map_err(|()| wrong())?;
    url.set_host(to.host_str()).map_err(|_| wrong())?;
    url.set_port(to.port()).map_err(|()| wrong())?;
    // Of one path the crate makes two slashes.
    let path = format!("/{}", url.path().trim_start_matches('/'));
    url.set_path(&path);
    Ok(())
}

/// Of all that the service says of its own state, what passes (official drivers, "isRetryableHTTPCode").
fn transient(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::BAD_REQUEST | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

fn retried(url: &mut Url, count: u32) {
    let guid = format!("{:016x}{:016x}", super::random(), super::random());
    let pairs: Vec<(String, String)> = url
        .query_pairs()
        .map(
            |(name, value)| {
                if name == "request_guid" { (name.into_owned(), guid.clone()) } else { (name.into_owned(), value.into_owned()) }
            },
        )
        .collect();
    if pairs.iter().any(|(name, _)| name == "request_guid") {
        url.query_pairs_mut().clear().extend_pairs(pairs).append_pair("retryCount", &count.to_string());
    }
}

/// Where to ask for the end of a statement that runs longer than the service keeps a request open, 45 s: codes 333333 and 333334.
fn waiting(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        code: Option<&'a str>,
        data: Option<Data>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Data {
        get_result_url: Option<String>,
    }
    // Ends are large; what they say first is not.
    if body.len() > 16_384 {
        return None;
    }
    let answer: Answer<'_> = serde_json::from_slice(body).ok()?;
    matches!(answer.code, Some("333333" | "333334")).then_some(answer.data?.get_result_url?)
}

fn whole(status: StatusCode, body: bytes::Bytes) -> Result<Response> {
    let answer = http::Response::builder().status(status).body(body).map_err(|e| Error::Middleware(e.into()))?;
    Ok(answer.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_keeps_its_id_when_it_is_sent_again() {
        let mut url = Url::parse("https://a/q?requestId=1&request_guid=2").unwrap();
        retried(&mut url, 3);
        let query = url.query().unwrap();
        assert!(query.contains("requestId=1&") && query.ends_with("&retryCount=3") && !query.contains("request_guid=2&"), "{query}");
    }

    #[test]
    fn a_long_statement_is_told_by_its_code() {
        let waits = |body: &str| waiting(body.as_bytes());
        assert_eq!(waits(r#"{"code":"333334","data":{"getResultUrl":"/queries/1/result"}}"#).as_deref(), Some("/queries/1/result"));
        assert_eq!(waits(r#"{"code":null,"data":{"getResultUrl":"/queries/1/result"}}"#), None);
        assert_eq!(waits(r#"{"code":"390112","data":null}"#), None);
    }
}
