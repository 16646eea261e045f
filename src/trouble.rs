//! An error of either side, as the pods' loops see it.

use crate::{destination, report::Failure, source};

/// What stopped a step.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The source.
    #[error("source: {0}")]
    Source(#[from] source::Error),
    /// The destination.
    #[error("destination: {0}")]
    Destination(#[from] destination::Error),
    /// Something that passes by itself, such as a pipeline pod that is being replaced.
    #[error("{0}")]
    Waiting(String),
}

impl Trouble {
    /// The error as people and conditions see it.
    pub fn failure(&self) -> Failure {
        let passing = |reason: &str| Failure { reason: reason.into(), message: self.to_string(), permanent: false };
        match self {
            Self::Source(error) => error.failure(),
            Self::Destination(destination::Error::Permanent(failure)) => failure.clone(),
            Self::Destination(destination::Error::Displaced) => passing("Displaced"),
            Self::Destination(destination::Error::Superseded(_)) => Failure { permanent: true, ..passing("Superseded") },
            Self::Destination(destination::Error::StaleSnapshot { .. }) => passing("SnapshotLost"),
            Self::Destination(destination::Error::Source(_)) => passing("SourceUnavailable"),
            Self::Destination(destination::Error::Transient(_)) => passing("DestinationUnavailable"),
            Self::Waiting(_) => passing("Waiting"),
        }
    }

    /// The newer epoch, if one has begun.
    pub fn superseded(&self) -> Option<u32> {
        match self {
            Self::Destination(destination::Error::Superseded(newer)) => Some(*newer),
            _ => None,
        }
    }

    /// Whether the snapshot in use is of no further use.
    pub fn snapshot_lost(&self) -> bool {
        matches!(
            self,
            Self::Source(source::Error::SnapshotGone { .. } | source::Error::Rewritten(_))
                | Self::Destination(destination::Error::StaleSnapshot { .. })
        )
    }
}

/// Several failures as one: the first one's reason, all the messages.
pub fn together(failures: Vec<Failure>) -> Option<Failure> {
    let first = failures.first()?;
    Some(Failure {
        reason: first.reason.clone(),
        permanent: failures.iter().any(|f| f.permanent),
        message: failures.iter().map(|f| f.message.as_str()).collect::<Vec<_>>().join("\n"),
    })
}
