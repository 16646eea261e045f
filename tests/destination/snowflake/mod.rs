//! What only Snowflake does: the change stream, what is kept over a swap, case, and how the service answers.

mod apply;
mod external;
mod faults;
mod idle;
mod keeps;
mod service;
mod swapping;
mod types;

use mirror_operator::{
    api::snowflake::SnowflakeTable,
    destination::Applier,
    table::{Identity, TableSchema},
};

use crate::{
    fixture::{Fixture, open, table, whole},
    on_snowflake::OnSnowflake,
};

/// Runs something to its end, from where nothing can be awaited.
fn at_once(what: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || runtime.block_on(what)).join().unwrap();
}

/// `people`, keyed by its first column.
fn people(place: &OnSnowflake) -> TableSchema {
    place.adapt(table(0, "people", &["id bigint!", "name text", "note text"]))
}

/// `lines`, without a key.
fn lines(place: &OnSnowflake) -> TableSchema {
    let mut lines = place.adapt(table(0, "lines", &["id bigint", "name text"]));
    lines.identity = Identity::FullRow;
    lines
}

/// A place whose one table was loaded and swapped, and its applier.
async fn streaming(
    schema: impl Fn(&OnSnowflake) -> TableSchema,
    rows: &[&str],
    soft: bool,
) -> (OnSnowflake, TableSchema, Box<dyn Applier>) {
    let place = OnSnowflake::new().await.with(SnowflakeTable::default());
    let mut brief = place.brief(1);
    brief.soft_delete.enabled = soft;
    let at = open(&brief).await;
    let schema = schema(&place);
    whole(&*at, &[(schema.clone(), rows)]).await;
    let applier = at.applier().await.unwrap();
    (place, schema, applier)
}
