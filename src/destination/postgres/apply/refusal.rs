//! What PostgreSQL's errors mean for the change stream.

use crate::{
    destination::{Error, permanent},
    postgres::connect::{copied_column, words},
    table::TableSchema,
};

/// Sorts an error into: the destination will refuse again, or try again. `doing` names the step and the table.
///
/// Texts of values never go into messages: PostgreSQL quotes the value in the message of class 22, so only the SQLSTATE and the column are told.
pub(super) fn meaning(error: &tokio_postgres::Error, doing: &str) -> Error {
    let Some(db) = error.as_db_error() else { return Error::Transient(format!("{doing}: {}", words(error))) };
    let state = db.code().code();
    sorted(state, &column_of(db), &words(error), doing)
}

/// The same for a batch's write of `table`. The stage's columns are named after the table's.
pub(super) fn of_write(error: &tokio_postgres::Error, table: &TableSchema) -> Error {
    let doing = format!("applying changes to {}", table.destination);
    let Some(db) = error.as_db_error() else { return Error::Transient(format!("{doing}: {}", words(error))) };
    let staged = table.copied().enumerate().find(|(place, _)| column_of(db) == format!(" in column \"c{place}\""));
    let column = staged.map_or_else(|| column_of(db), |(_, column)| format!(" in column {:?}", column.destination));
    sorted(db.code().code(), &column, &words(error), &doing)
}

fn sorted(state: &str, column: &str, words: &str, doing: &str) -> Error {
    match (state, state.get(..2).unwrap_or_default()) {
        // Rights can be granted, and then it goes on where it stood.
        ("42501", _) => Error::Transient(format!("{doing}: {words}. Grant this right to the role that the destination's Peer names")),
        (_, "22") => permanent("ValueRefused", format!("{doing}: the destination refuses a value{column} (SQLSTATE {state})")),
        (_, "23") => permanent("RowRefused", format!("{doing}: {words}")),
        (_, "0A" | "21" | "3D" | "3F" | "42" | "44" | "54") => permanent("Refused", format!("{doing}: {words}")),
        _ => Error::Transient(format!("{doing}: {words}")),
    }
}

/// The column that a statement or a COPY was at.
fn column_of(db: &tokio_postgres::error::DbError) -> String {
    let name = db.column().or_else(|| db.where_().and_then(copied_column));
    name.map(|name| format!(" in column {name:?}")).unwrap_or_default()
}
