//! A table of a PostgreSQL server that is mirrored to a ClickHouse server, by the load and by the change stream.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use mirror_operator::{
    api::clickhouse::ClickHouseTable,
    brief::Brief,
    destination::{Cell, Chunk, Counts, Destination, Error, RowChange},
    postgres::{self, Lsn},
    source::{catalog, copy},
    table::TableSchema,
};

use crate::{
    fixture::{Fixture, boundary, from_loaded, made, open, plan},
    on_clickhouse::OnClickHouse,
    on_postgres::OnPostgres,
};

/// A table of the source and where it goes.
pub struct Pair {
    pub source: OnPostgres,
    pub place: OnClickHouse,
    pub brief: Brief,
    pub schema: TableSchema,
}

/// Makes the source's table `t` with these columns after `id`, and reads its schema as a pipeline does.
pub async fn pair(options: ClickHouseTable, columns: &str, before: &str) -> Pair {
    asked(serde_json::json!({ "clickhouse": options }), columns, before).await
}

/// The same for a Mirror that asks for more than ClickHouse's options: `table` is what its list says.
pub async fn asked(mut table: serde_json::Value, columns: &str, before: &str) -> Pair {
    let (source, place) = (OnPostgres::new().await, OnClickHouse::new().await);
    source.run(&format!("{before}; CREATE TABLE public.t (id int PRIMARY KEY, {columns})")).await;
    (table["source"], table["destination"]) = ("public.t".into(), format!("{}.t", place.to.database).into());
    let mut brief = place.brief(1);
    brief.source = source.to.clone();
    brief.tables = vec![serde_json::from_value(table).unwrap()];
    let client = source.client().await;
    let found = catalog::read(&client, &brief).await.unwrap();
    assert_eq!(found.problems, vec![]);
    Pair { source, place, brief, schema: found.tables[0].clone() }
}

impl Pair {
    /// Loads the source's rows as the snapshot workers do.
    pub async fn load(&self) -> Result<Box<dyn Destination>, Error> {
        let at = open(&self.brief).await;
        assert_eq!(at.preflight(std::slice::from_ref(&self.schema)).await?, vec![]);
        at.begin().await?;
        at.create_shadows(boundary(1), std::slice::from_ref(&self.schema), &plan(&[1])).await?;
        assert!(self.schema.binary());
        let client = self.source.client().await;
        let chunk: Chunk = plan(&[1]).chunks.remove(0);
        let sql = copy::statement(&self.schema, "public.t", &chunk);
        let pieces: Vec<Bytes> = client.copy_out(&sql).await.unwrap().try_collect().await.unwrap();
        at.load_chunk(&self.schema, &chunk, 1, futures::stream::iter(pieces.into_iter().map(Ok)).boxed()).await?;
        from_loaded(&*at).await?;
        Ok(at)
    }

    /// What both sides print, column by column: the source's values as text, and ClickHouse's.
    pub async fn printed(&self, ours: &str, theirs: &str) -> (Vec<String>, Vec<String>) {
        let source = self.source.rows(&format!("SELECT {ours} FROM public.t ORDER BY id")).await;
        let there = self.place.rows(&format!("SELECT {theirs} FROM public.t FINAL ORDER BY id")).await;
        (source, there)
    }

    /// Sends every row once more through the change stream, as texts.
    pub async fn stream(&self, at: &dyn Destination) {
        let columns: Vec<String> = self.schema.copied().map(|c| postgres::ident(&c.source)).collect();
        let client = self.source.client().await;
        let mut changes = Vec::new();
        for message in client.simple_query(&format!("SELECT {} FROM public.t", columns.join(", "))).await.unwrap() {
            let tokio_postgres::SimpleQueryMessage::Row(row) = message else { continue };
            let cell = |i| row.get(i).map_or(Cell::Null, |text: &str| Cell::Text(Bytes::copy_from_slice(text.as_bytes())));
            changes.push(RowChange::Upsert { row: (0..row.len()).map(cell).collect(), deleted: false });
        }
        let mut to = at.applier().await.unwrap();
        let positions = vec![made(5000); changes.len()];
        to.write(&self.schema, changes, positions, Counts::default()).await.unwrap();
        to.commit(Lsn(5000)).await.unwrap();
    }
}
