//! One binary: the operator and everything that it starts. A Job can never run another version than its operator.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use mirror_operator::{controller, generate};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
#[command(version, about = "Kubernetes operator that resyncs change-data-capture mirrors of PostgreSQL")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controllers.
    Operator {
        /// The one namespace to watch; all if absent.
        #[arg(long, env = "WATCH_NAMESPACE")]
        watch_namespace: Option<String>,
        /// The operator's own namespace, for its lease.
        #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
        namespace: String,
        /// Who this process is.
        #[arg(long, env = "POD_NAME", default_value = "mirror-operator")]
        identity: String,
        /// The image of the workloads: the operator's own.
        #[arg(long, env = "MIRROR_IMAGE")]
        image: String,
        /// Port of /healthz, /readyz and /metrics.
        #[arg(long, default_value_t = 8081)]
        port: u16,
    },
    /// Write the CRDs, the chart's copy and the reference, or check that they are up to date.
    Crds {
        /// Only check; fails and names the stale files.
        #[arg(long)]
        check: bool,
        /// The project's root.
        #[arg(long, default_value = ".")]
        root: PathBuf,
    },
}

fn main() -> ExitCode {
    start_logging();
    // The process-wide choice; fails only if it was made before, which is the same choice.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Cli::parse().command {
        Command::Operator { watch_namespace, namespace, identity, image, port } => {
            let watch_namespace = watch_namespace.filter(|n| !n.is_empty());
            operator(controller::Settings { watch_namespace, namespace, identity, image, port })
        }
        Command::Crds { check, root } => crds(check, &root),
    }
}

fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MIRROR_LOG").unwrap_or_else(|_| "info,kube=warn".into());
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Cancelled at SIGTERM or SIGINT.
fn shutdown() -> CancellationToken {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let ended = token.clone();
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else { return };
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        ended.cancel();
    });
    token
}

fn block_on<T>(task: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(task))
}

fn operator(settings: controller::Settings) -> ExitCode {
    match block_on(async { controller::run(settings, shutdown()).await }) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            tracing::error!(%error, "the operator ends");
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!(%error, "no runtime");
            ExitCode::FAILURE
        }
    }
}

fn crds(check: bool, root: &std::path::Path) -> ExitCode {
    let outcome = if check { generate::stale(root) } else { generate::write(root).map(|()| vec![]) };
    match outcome {
        Ok(stale) if stale.is_empty() => ExitCode::SUCCESS,
        Ok(stale) => {
            eprintln!("stale, run `mirror-operator crds`: {}", stale.join(", "));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
