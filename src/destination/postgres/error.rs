//! What PostgreSQL's errors mean here. The one place that says so.

use tokio_postgres::error::DbError;

pub(super) use crate::destination::{failure, permanent};
use crate::{
    destination::Error,
    postgres::{
        ConnectError,
        connect::{copied_column, words},
    },
};

/// Says what was being done when the database refused.
pub(super) trait At<T> {
    /// `doing` names the step and the table, such as `loading public.orders, chunk 3`.
    fn at(self, doing: &str) -> Result<T, Error>;
}

impl<T> At<T> for Result<T, tokio_postgres::Error> {
    fn at(self, doing: &str) -> Result<T, Error> {
        self.map_err(|error| meaning(&error, doing))
    }
}

impl From<ConnectError> for Error {
    /// Passwords rotate, servers fail over and Secrets appear: a connection that fails is always worth another try.
    fn from(error: ConnectError) -> Self {
        Self::Transient(error.to_string())
    }
}

/// The SQLSTATE, if the server spoke at all.
pub(super) fn sqlstate(error: &tokio_postgres::Error) -> Option<&str> {
    error.code().map(|code| code.code())
}

/// Whether the server gave up waiting for a lock, at our own wish or to end a deadlock.
pub(super) fn lock_not_granted(error: &tokio_postgres::Error) -> bool {
    matches!(sqlstate(error), Some("55P03" | "57014" | "40P01"))
}

/// Whether the server refused to drop something because of what hangs on it.
pub(super) fn depended_on(error: &tokio_postgres::Error) -> bool {
    sqlstate(error) == Some("2BP01")
}

/// Sorts an error into retry or stop. An error without SQLSTATE is a broken connection: what it did is unknown, and every caller looks again.
pub(super) fn meaning(error: &tokio_postgres::Error, doing: &str) -> Error {
    let Some(db) = error.as_db_error() else {
        return Error::Transient(format!("{doing}: {}", words(error)));
    };
    let state = db.code().code();
    let said = words(error);
    match (state, &state[..2]) {
        ("42501", _) => permanent(
            "PermissionDenied",
            format!("{doing}: {said}. Grant this right to the role that the destination's Peer names, then start a new resync"),
        ),
        (_, "22") => permanent(
            "ValueRefused",
            format!("{doing}: the destination refuses a value{} (SQLSTATE {state}). Give the column a type that holds it", column_of(db)),
        ),
        (_, "23") => {
            permanent("RowRefused", format!("{doing}: {said}. Remove the constraint at the destination or repair the rows at the source"))
        }
        ("2BP01", _) => permanent("DependentObject", format!("{doing}: {said}. Drop what depends on it, then try again")),
        (_, "0A" | "3D" | "3F" | "42" | "54") => permanent("Refused", format!("{doing}: {said}")),
        ("53100", _) => Error::Transient(format!("{doing}: {said}. The destination's disk is full: make room, it is tried again")),
        _ => Error::Transient(format!("{doing}: {said}")),
    }
}

/// The column that a statement or a COPY was at.
fn column_of(db: &DbError) -> String {
    let name = db.column().or_else(|| db.where_().and_then(copied_column));
    name.map(|name| format!(" in column {name:?}")).unwrap_or_default()
}
