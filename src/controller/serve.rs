//! `/healthz`, `/readyz` and `/metrics` of the operator.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::listen;

/// Serves until `shutdown`.
pub async fn run(port: u16, context: Arc<Context>, shutdown: CancellationToken) -> std::io::Result<()> {
    let app = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(context);
    let listener = listen::everywhere(port).await.inspect_err(|error| tracing::error!(port, %error, "cannot listen"))?;
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

/// A process that waits for the lease is ready too: it does what it is there for.
async fn ready(State(context): State<Arc<Context>>) -> impl IntoResponse {
    if context.is_leading() { (StatusCode::OK, "leading") } else { (StatusCode::OK, "waiting for the lease") }
}

async fn metrics(State(context): State<Arc<Context>>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &context.registry()) {
        Ok(()) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
