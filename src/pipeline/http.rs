//! The pod's read-only HTTP server.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::board::Board;
use crate::report::Report;

/// Serves `/status`, `/snapshot` and `/healthz` until `shutdown`.
pub async fn serve(listener: TcpListener, board: Board, shutdown: CancellationToken) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/status", get(status))
        .route("/snapshot", get(snapshot))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(board);
    axum::serve(listener, routes).with_graceful_shutdown(async move { shutdown.cancelled().await }).await
}

async fn status(State(board): State<Board>) -> Json<Report> {
    Json(board.report())
}

async fn snapshot(State(board): State<Board>) -> Response {
    match board.snapshot() {
        Some(snapshot) => Json(snapshot).into_response(),
        None => {
            let report = board.report();
            let why = format!("no snapshot is held in stage {:?}. {}\n", report.stage, report.waiting);
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}
