//! What an error of the change stream means: the one place that says so. No I/O.

use std::time::Duration;

use super::Ended;
use crate::{
    destination,
    postgres::{Lsn, wire::WireError},
    report::Failure,
    source::pgoutput::DecodeError,
};

/// What goes wrong in the change stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// At the destination.
    #[error("destination: {0}")]
    Destination(#[from] destination::Error),
    /// On the replication connection.
    #[error("source: {0}")]
    Wire(#[from] WireError),
    /// In an ordinary session at the source.
    #[error("source: {0}")]
    Source(String),
    /// The slot has moved on beyond the checkpoint: the destination was put back to an earlier state.
    #[error(
        "the destination went back in time (checkpoint {checkpoint}, slot {slot} confirmed {confirmed}): the changes between are missing"
    )]
    WentBack {
        /// The slot.
        slot: String,
        /// What the ledger says.
        checkpoint: Lsn,
        /// What the slot was told to be durable.
        confirmed: Lsn,
    },
    /// The stream is not what it should be.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The stream contradicts itself or what was read before.
    #[error("the change stream makes no sense at {at}: {what}")]
    Nonsense {
        /// Where.
        at: Lsn,
        /// What.
        what: String,
    },
    /// One table cannot be kept up any more; the others can.
    #[error("{why}")]
    Park {
        /// Its number.
        table: u32,
        /// Cause, place and cure.
        why: String,
    },
}

/// What is done about an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What comes next.
    pub next: Next,
    /// What people are told; nothing of what passes by itself within a second.
    pub failure: Option<Failure>,
    /// Why the slot is lost, if it is.
    pub slot_lost: Option<String>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again, soon at first.
    Retry,
    /// Try again after this time: trying earlier is of no use.
    Wait(Duration),
    /// Begin again without this table; why.
    Park(u32, String),
    /// Stop.
    End(Ended),
}

/// A lost slot does not come back, but the process stays alive: it is the operator that begins a new epoch.
const LONG: Duration = Duration::from_secs(30);
/// Another session reads from the slot. It was asked to end.
const MOMENT: Duration = Duration::from_millis(200);

/// What an error means.
pub fn advise(error: StreamError) -> Advice {
    let message = error.to_string();
    match error {
        StreamError::Destination(destination::Error::Superseded(epoch)) => quiet(Next::End(Ended::Superseded(epoch))),
        StreamError::Destination(destination::Error::Displaced) => quiet(Next::End(Ended::Displaced)),
        StreamError::Destination(destination::Error::Permanent(failure)) => told(Next::Wait(LONG), failure),
        StreamError::Destination(_) => retry("DestinationUnavailable", message),
        StreamError::Park { table, why } => told(Next::Park(table, why), failure("TableParked", message, false)),
        StreamError::Decode(_) | StreamError::Nonsense { .. } => {
            told(Next::Wait(LONG), failure("StreamUnreadable", format!("{message}. If this stays, apply a MirrorResync"), true))
        }
        StreamError::Source(_) => retry("SourceUnavailable", message),
        StreamError::WentBack { .. } => Advice {
            next: Next::Wait(LONG),
            failure: Some(failure("SlotLost", format!("{message}; apply a MirrorResync"), true)),
            slot_lost: Some(message),
        },
        StreamError::Wire(wire) => of_wire(wire, message),
    }
}

fn of_wire(wire: WireError, message: String) -> Advice {
    let lost = |cause: String, message: String| Advice {
        next: Next::Wait(LONG),
        failure: Some(failure("SlotLost", format!("{message}. Changes are missing; apply a MirrorResync"), true)),
        slot_lost: Some(cause),
    };
    match wire {
        WireError::SlotLost { cause, .. } => lost(cause, message),
        WireError::SlotActive { .. } => told(Next::Wait(MOMENT), failure("SlotInUse", message, false)),
        WireError::Server { sqlstate, message: words, .. } => match (sqlstate.as_str(), sqlstate.get(..2).unwrap_or_default()) {
            // undefined_file: the WAL that it was reading is gone
            ("58P01", _) => lost(words, message),
            // undefined_object: the publication, for the slot was there when the stream began
            ("42704", _) => {
                let cure = "The stream cannot go on without it, nor with one that was made later; apply a MirrorResync";
                told(Next::Wait(LONG), failure("PublicationMissing", format!("{message}. {cure}"), true))
            }
            // object_not_in_prerequisite_state, where the slot itself stands: a setting of the server
            (_, "28" | "3D") | ("42501" | "55000", _) => told(Next::Wait(Duration::from_secs(5)), failure("SourceRefuses", message, false)),
            _ => retry("SourceUnavailable", message),
        },
        WireError::Secret(_) | WireError::Io { .. } | WireError::Protocol(_) => retry("SourceUnavailable", message),
    }
}

fn retry(reason: &str, message: String) -> Advice {
    told(Next::Retry, failure(reason, message, false))
}

fn told(next: Next, failure: Failure) -> Advice {
    Advice { next, failure: Some(failure), slot_lost: None }
}

fn quiet(next: Next) -> Advice {
    Advice { next, failure: None, slot_lost: None }
}

fn failure(reason: &str, message: String, permanent: bool) -> Failure {
    Failure { reason: reason.into(), message, permanent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_next_step() {
        let server =
            |sqlstate: &str| StreamError::Wire(WireError::Server { sqlstate: sqlstate.into(), message: "words".into(), hint: None });
        let slot = || ("s".to_string(), "gone".to_string());
        let nonsense = StreamError::Nonsense { at: Lsn(7), what: "a row of an unknown table".into() };
        let cases = [
            (StreamError::Destination(destination::Error::Superseded(7)), Next::End(Ended::Superseded(7)), None, ""),
            (StreamError::Destination(destination::Error::Displaced), Next::End(Ended::Displaced), None, ""),
            (StreamError::Destination(destination::Error::Transient("x".into())), Next::Retry, None, "DestinationUnavailable"),
            (StreamError::Park { table: 3, why: "w".into() }, Next::Park(3, "w".into()), None, "TableParked"),
            (nonsense, Next::Wait(LONG), None, "StreamUnreadable"),
            (StreamError::Wire(WireError::SlotLost { slot: slot().0, cause: slot().1 }), Next::Wait(LONG), Some("gone"), "SlotLost"),
            (StreamError::Wire(WireError::SlotActive { slot: slot().0, cause: slot().1 }), Next::Wait(MOMENT), None, "SlotInUse"),
            (server("57P01"), Next::Retry, None, "SourceUnavailable"),
            (server("53300"), Next::Retry, None, "SourceUnavailable"),
            (server("55000"), Next::Wait(Duration::from_secs(5)), None, "SourceRefuses"),
            (server("42501"), Next::Wait(Duration::from_secs(5)), None, "SourceRefuses"),
            (server("28000"), Next::Wait(Duration::from_secs(5)), None, "SourceRefuses"),
            (server("58P01"), Next::Wait(LONG), Some("words"), "SlotLost"),
            (server("42704"), Next::Wait(LONG), None, "PublicationMissing"),
        ];
        for (error, next, lost, reason) in cases {
            let text = error.to_string();
            let advice = advise(error);
            assert_eq!((advice.next, advice.slot_lost.as_deref()), (next, lost), "{text}");
            assert_eq!(advice.failure.map(|f| f.reason).unwrap_or_default(), reason, "{text}");
        }
    }
}
