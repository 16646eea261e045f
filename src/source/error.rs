//! What goes wrong at the source, and what that means: the one place that says so.

use tokio_postgres::error::SqlState;

use crate::{
    postgres::{ConnectError, connect, wire::WireError},
    report::Failure,
};

/// What went wrong at the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that a person has to change; the failure says what.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A replication command failed, or its connection.
    #[error("{0}")]
    Wire(WireError),
    /// A session that reads rows failed.
    #[error("{doing}: {cause}")]
    Reading {
        /// What was being done, with the table, such as `reading public.orders`.
        doing: String,
        /// The server's answer, or what became of the connection.
        cause: WireError,
    },
    /// The source answered a statement with an error, or its connection ended.
    #[error("{doing}: {}", connect::words(.cause))]
    Query {
        /// What was being done, with the table or slot, such as `reading public.orders`.
        doing: String,
        /// The server's answer.
        #[source]
        cause: tokio_postgres::Error,
    },
    /// The snapshot is gone: no session holds it any more.
    #[error("the snapshot {name} at {lsn} is gone: no session of the source holds it any more")]
    SnapshotGone {
        /// Its exported name.
        name: String,
        /// Its consistent point.
        lsn: crate::postgres::Lsn,
    },
    /// A table was rewritten since the snapshot, so that its rows are no longer found by the plan's blocks: a new snapshot is needed.
    #[error("{0}: the table was rewritten or truncated since the snapshot; waiting for a new snapshot")]
    Rewritten(String),
    /// Anything else that may pass by itself.
    #[error("{0}")]
    Passing(String),
}

impl Error {
    /// For `map_err`: the error of a statement, with what was being done.
    pub fn query(doing: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Self {
        let doing = doing.into();
        move |cause| Self::Query { doing, cause }
    }

    /// A permanent failure.
    pub fn refused(reason: &str, message: impl Into<String>) -> Self {
        Self::Refused(failure(reason, message))
    }

    /// The error as people and conditions see it.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Refused(failure) => failure.clone(),
            Self::Connect(error) => connect_failure(error),
            Self::Query { cause, .. } => {
                let (reason, permanent) = cause.code().map_or(("SourceUnavailable", false), advise);
                Failure { reason: reason.into(), message: self.to_string(), permanent }
            }
            Self::Wire(error) | Self::Reading { cause: error, .. } => {
                let (reason, permanent) = match error {
                    WireError::Server { sqlstate, .. } => advise(&SqlState::from_code(sqlstate)),
                    _ => ("SourceUnavailable", false),
                };
                let cure = match reason {
                    "SourceSchemaChanged" => ". The table was changed at the source while it was loaded; apply a new MirrorResync",
                    _ => "",
                };
                Failure { reason: reason.into(), message: format!("{self}{cure}"), permanent }
            }
            Self::SnapshotGone { .. } => Failure { reason: "SnapshotLost".into(), message: self.to_string(), permanent: false },
            Self::Rewritten(_) => Failure { reason: "TableRewritten".into(), message: self.to_string(), permanent: false },
            Self::Passing(message) => Failure { reason: "SourceUnavailable".into(), message: message.clone(), permanent: false },
        }
    }

    /// Whether trying again is of no use.
    pub fn is_permanent(&self) -> bool {
        self.failure().permanent
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Secret(error) => Self::Connect(error),
            error => Self::Wire(error),
        }
    }
}

/// A permanent failure.
pub fn failure(reason: &str, message: impl Into<String>) -> Failure {
    Failure { reason: reason.into(), message: message.into(), permanent: true }
}

/// Reason of a SQLSTATE of the source, and whether trying again is of no use (PostgreSQL docs, appendix A).
fn advise(code: &SqlState) -> (&'static str, bool) {
    match code.code() {
        "42P01" | "42703" | "3F000" => ("SourceSchemaChanged", true),
        "42501" => ("SourcePermissionDenied", true),
        "53400" => ("SourceLimitReached", false),
        "55P03" => ("SourceLocked", false),
        // A row that cannot be read: damaged data, or text that does not fit the encoding.
        "XX001" | "XX002" => ("SourceDataCorrupted", true),
        // Conditions of the server that pass: connections, resources, operators, restarts, conflicts.
        code if ["08", "53", "57", "58", "40", "25", "55"].iter().any(|class| code.starts_with(class)) => ("SourceUnavailable", false),
        code if code.starts_with("28") => ("AuthenticationFailed", false),
        // Syntax, feature and data errors come again with the same statement.
        code if ["42", "0A", "22", "3D"].iter().any(|class| code.starts_with(class)) => ("SourceRefused", true),
        _ => ("SourceError", false),
    }
}

/// A failed connection. None is permanent: a Secret, a certificate or a network is put right from outside, and the next try finds it so.
pub fn connect_failure(error: &ConnectError) -> Failure {
    let reason = match error {
        ConnectError::SecretMissing { .. } => "SecretMissing",
        ConnectError::BadCertificate { .. } => "BadCertificate",
        ConnectError::Timeout { .. } => "Unreachable",
        ConnectError::Refused { source, .. } => match source.code().map(|code| code.code()) {
            Some("28P01" | "28000") => "AuthenticationFailed",
            Some("3D000") => "DatabaseMissing",
            Some(_) => "ConnectionRefused",
            // The driver has no kind for it that is public; its words are stable since 0.7.
            None if source.to_string().contains("TLS") => "TlsFailed",
            None => "Unreachable",
        },
    };
    Failure { reason: reason.into(), message: error.to_string(), permanent: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_sqlstate_has_its_advice() {
        let table = [
            ("42P01", ("SourceSchemaChanged", true)),
            ("42501", ("SourcePermissionDenied", true)),
            ("57P01", ("SourceUnavailable", false)),
            ("57014", ("SourceUnavailable", false)),
            ("53300", ("SourceUnavailable", false)),
            ("53400", ("SourceLimitReached", false)),
            ("55P03", ("SourceLocked", false)),
            ("22021", ("SourceRefused", true)),
            ("XX001", ("SourceDataCorrupted", true)),
            ("XX002", ("SourceDataCorrupted", true)),
            ("28P01", ("AuthenticationFailed", false)),
            ("ZZ999", ("SourceError", false)),
        ];
        for (code, advice) in table {
            assert_eq!(advise(&SqlState::from_code(code)), advice, "{code}");
        }
    }

    #[test]
    fn what_passes_is_told_and_what_people_have_to_cure_stays() {
        let server = |sqlstate: &str| WireError::Server { sqlstate: sqlstate.into(), message: "words".into(), hint: None };
        let (peer, secret) = ("p".to_string(), "s".to_string());
        let reading = |sqlstate| Error::Reading { doing: "reading public.orders".into(), cause: server(sqlstate) };
        let table = [
            (reading("XX001"), ("SourceDataCorrupted", true), "reading public.orders: words (SQLSTATE XX001)"),
            (reading("42703"), ("SourceSchemaChanged", true), "apply a new MirrorResync"),
            (Error::Rewritten("public.orders".into()), ("TableRewritten", false), "public.orders"),
            (Error::SnapshotGone { name: "n".into(), lsn: crate::postgres::Lsn(1) }, ("SnapshotLost", false), "no session"),
            (
                Error::Connect(ConnectError::BadCertificate { peer, secret, cause: "no PEM".into() }),
                ("BadCertificate", false),
                "Secret \"s\"",
            ),
        ];
        for (error, (reason, permanent), words) in table {
            let failure = error.failure();
            assert_eq!((failure.reason.as_str(), failure.permanent), (reason, permanent));
            assert!(failure.message.contains(words), "{}", failure.message);
        }
    }
}
