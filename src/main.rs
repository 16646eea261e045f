//! One binary: the operator and everything that it starts. A Job can never run another version than its operator.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use mirror_operator::{
    api, brief, check, controller, finish, generate, pipeline,
    report::{EXIT_PERMANENT, Failure, JobReport, SwapReport},
    snapshot, termination,
};
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
    /// The pipeline pod of an epoch.
    Pipeline(Brief),
    /// The pod of one index of a snapshot Job.
    Snapshot {
        #[command(flatten)]
        brief: Brief,
        /// The partition; Kubernetes sets it for Indexed Jobs.
        #[arg(long, env = "JOB_COMPLETION_INDEX")]
        partition: u32,
    },
    /// The Job of a dry run.
    Plan(Brief),
    /// The swap Job.
    Swap(Brief),
    /// The Job that removes what an unfinished resync has made.
    Cleanup(Brief),
    /// The Job that removes all traces of a Mirror.
    Forget {
        #[command(flatten)]
        brief: Brief,
        /// Also drop the live tables.
        #[arg(long)]
        drop_tables: bool,
    },
    /// The check Job of a Peer.
    Check {
        /// The connection, as JSON.
        #[arg(long, env = "MIRROR_PEER")]
        peer: String,
        /// What the peer is used for: source, destination.
        #[arg(long, value_delimiter = ',')]
        roles: Vec<Role>,
        /// Where the result goes.
        #[arg(long, default_value = "/dev/termination-log")]
        result: PathBuf,
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

/// What every data pod is told.
#[derive(Args)]
struct Brief {
    /// The brief.
    #[arg(long, default_value = brief::PATH)]
    brief: PathBuf,
    /// Where the result goes.
    #[arg(long, default_value = "/dev/termination-log")]
    result: PathBuf,
}

/// What a peer is used for.
#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Source,
    Destination,
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
        Command::Pipeline(told) => data_pod(&told, 2, async |brief| pipeline::run(brief).await.map(|()| JobReport::default())),
        Command::Snapshot { brief, partition } => {
            data_pod(&brief, 1, async |brief| snapshot::run(&brief, partition).await.map(|()| JobReport::default()))
        }
        Command::Plan(told) => data_pod(&told, 1, async |brief| {
            pipeline::prepare::rehearse(&brief).await.map(|plan| JobReport { plan: Some(plan), ..JobReport::default() })
        }),
        Command::Swap(told) => data_pod(&told, 1, async |brief| finish::swap(&brief).await.map(|swap| swapped(Some(swap)))),
        Command::Cleanup(told) => data_pod(&told, 1, async |brief| finish::cleanup(&brief).await.map(swapped)),
        Command::Forget { brief, drop_tables } => {
            data_pod(&brief, 1, async |brief| finish::forget(&brief, drop_tables).await.map(|()| JobReport::default()))
        }
        Command::Check { peer, roles, result } => check_peer(&peer, &roles, &result),
        Command::Crds { check, root } => crds(check, &root),
    }
}

fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MIRROR_LOG").unwrap_or_else(|_| "info,kube=warn".into());
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Cancelled at SIGTERM or SIGINT. A pod's first process has to ask for them: without a handler the kernel passes them over.
fn shutdown() -> CancellationToken {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let ended = token.clone();
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::spawn(async move {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
                ended.cancel();
            });
        }
        (Err(error), _) | (_, Err(error)) => tracing::warn!(%error, "signals are not heard"),
    }
    token
}

/// Does the work, but no longer than until the pod is told to end. Whatever is in hand then is begun again by the next pod.
async fn until_told<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let told = shutdown();
    tokio::select! {
        done = work => done,
        () = told.cancelled() => {
            Err(Failure { reason: "Terminated".into(), message: "The pod was told to end.".into(), permanent: false })
        }
    }
}

fn operator(settings: controller::Settings) -> ExitCode {
    match runtime(2).map(|r| r.block_on(async { controller::run(settings, shutdown()).await })) {
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

/// One thread: a worker moves bytes from one socket to another, and threads that wake each other for every piece of them took twice its processor time.
/// The pipeline has two, for it reads ahead while it applies.
fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    }
    .worker_threads(threads)
    .enable_all()
    .build()
}

fn swapped(swapped: Option<SwapReport>) -> JobReport {
    JobReport { swapped, ..JobReport::default() }
}

/// Runs a data pod: reads the brief, does the work, leaves a [`JobReport`] and an exit code that says whether trying again is of use.
fn data_pod(told: &Brief, threads: usize, work: impl AsyncFnOnce(brief::Brief) -> Result<JobReport, Failure>) -> ExitCode {
    let outcome = read_brief(&told.brief).and_then(|brief| {
        let runtime = runtime(threads);
        let runtime = runtime.map_err(|e| Failure { reason: "NoRuntime".into(), message: e.to_string(), permanent: false })?;
        runtime.block_on(until_told(work(brief)))
    });
    let report = outcome.unwrap_or_else(|failure| JobReport { failure: Some(failure), ..JobReport::default() });
    let failure = report.failure.clone();
    if let Some(failure) = &failure {
        tracing::error!(reason = failure.reason, permanent = failure.permanent, "{}", failure.message);
    }
    leave(&told.result, report);
    match failure {
        None => ExitCode::SUCCESS,
        Some(Failure { permanent: true, .. }) => ExitCode::from(EXIT_PERMANENT),
        Some(_) => ExitCode::FAILURE,
    }
}

fn read_brief(path: &Path) -> Result<brief::Brief, Failure> {
    let unreadable =
        |cause: String| Failure { reason: "BadBrief".into(), message: format!("{}: {cause}", path.display()), permanent: true };
    let text = std::fs::read_to_string(path).map_err(|e| unreadable(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))
}

/// Leaves the result for the operator.
fn leave(path: &Path, result: impl termination::Result) {
    if let Err(error) = std::fs::write(path, termination::message(result)) {
        tracing::warn!(%error, "the result could not be left");
    }
}

fn check_peer(peer: &str, roles: &[Role], result: &Path) -> ExitCode {
    let connection = match serde_json::from_str(peer) {
        Ok(connection) => connection,
        Err(error) => {
            tracing::error!(%error, "the connection cannot be read");
            return ExitCode::from(EXIT_PERMANENT);
        }
    };
    let roles: Vec<api::peer::Role> = roles
        .iter()
        .map(|role| match role {
            Role::Source => api::peer::Role::Source,
            Role::Destination => api::peer::Role::Destination,
        })
        .collect();
    match runtime(1).map(|r| r.block_on(until_told(async { Ok(check::run(&connection, &roles).await) }))) {
        Ok(Ok(report)) => {
            tracing::info!(problems = report.problems.len(), version = report.server_version, "checked");
            leave(result, report);
            ExitCode::SUCCESS
        }
        Ok(Err(failure)) => {
            tracing::error!(reason = failure.reason, "{}", failure.message);
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!(%error, "no runtime");
            ExitCode::FAILURE
        }
    }
}

fn crds(check: bool, root: &Path) -> ExitCode {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_ends_when_the_pod_is_told_to() {
        let told = async {
            // The shell's own: not every Debian has the program.
            let sent = std::process::Command::new("sh").args(["-c", &format!("kill -TERM {}", std::process::id())]).status().unwrap();
            assert!(sent.success());
            std::future::pending::<Result<(), Failure>>().await
        };
        let failure = until_told(told).await.unwrap_err();
        assert_eq!((failure.reason.as_str(), failure.permanent), ("Terminated", false));
    }

    #[test]
    fn a_brief_that_cannot_be_read_stops_the_pod_for_good_and_is_named() {
        let path = std::env::temp_dir().join(format!("brief-{}.json", std::process::id()));
        let told = |cause: &str| {
            let failure = read_brief(&path).unwrap_err();
            assert_eq!((failure.reason.as_str(), failure.permanent), ("BadBrief", true));
            assert!(failure.message.starts_with(path.to_str().unwrap()) && failure.message.contains(cause), "{}", failure.message);
        };
        told("No such file");
        std::fs::write(&path, "{\"mirror\": 7}").unwrap();
        told("invalid type");
        std::fs::remove_file(path).unwrap();
    }
}
