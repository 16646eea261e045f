//! How long the steps after the load take, and how long a reader is blocked, at five million rows on PostgreSQL. Run with `--ignored --nocapture`.

use std::time::{Duration, Instant};

use mirror_operator::table::{Identity, TableSchema};

use crate::{
    fixture::{Fixture, boundary, load, open, plan, table},
    on_postgres::OnPostgres,
};

const ROWS: u64 = 5_000_000;
const GONE: u64 = 50_000;

/// The table of the figures in bench/: an identity key, numbers, dates and strings of 32 characters.
fn firenibble() -> TableSchema {
    let columns =
        ["bigint!", "bigint", "bigint", "integer", "double_precision", "double_precision", "double_precision", "double_precision"]
            .into_iter()
            .chain(["varchar", "varchar", "date", "date", "date", "varchar", "varchar", "varchar"]);
    let columns: Vec<String> = columns.enumerate().map(|(i, type_)| format!("f{i} {type_}")).collect();
    let mut schema = table(0, "firenibble", &columns.iter().map(String::as_str).collect::<Vec<_>>());
    for column in &mut schema.columns {
        column.destination_type = column.destination_type.replace('_', " ");
    }
    assert_eq!(schema.identity, Identity::Key(vec![0]));
    schema
}

fn fill(from: u64) -> String {
    let columns: Vec<String> = (0..16).map(|i| format!("f{i}")).collect();
    format!(
        "INSERT INTO public.firenibble_resync ({}) SELECT g, g, g, g, g, g, g, g, md5(g::text), md5(g::text), '2024-01-01', '2024-01-01', '2024-01-01',
         md5(g::text), md5(g::text), md5(g::text) FROM generate_series({from}, {ROWS}) g",
        columns.join(", ")
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn five_million_rows_are_sealed_carried_and_swapped() {
    let place = OnPostgres::new().await;
    for epoch in 1..3 {
        let at = open(&place.brief(epoch)).await;
        at.begin().await.unwrap();
        at.create_shadows(boundary(1), &[firenibble()], &plan(&[1])).await.unwrap();
        place.run(&fill(if epoch == 1 { 1 } else { GONE + 1 })).await;
        load(&*at, &firenibble(), 0, &[]).await.unwrap();
        let mut steps = Vec::new();
        let mut lap = Instant::now();
        at.seal().await.unwrap();
        steps.push(("seal", std::mem::replace(&mut lap, Instant::now()).elapsed()));
        at.carry().await.unwrap();
        steps.push(("carry", std::mem::replace(&mut lap, Instant::now()).elapsed()));
        let reader = (epoch > 1).then(|| tokio::spawn(longest_read(place.clone())));
        tokio::time::sleep(Duration::from_millis(500)).await;
        lap = Instant::now();
        let report = at.swap().await.unwrap();
        steps.push(("swap", lap.elapsed()));
        tokio::time::sleep(Duration::from_millis(500)).await;
        println!("epoch {epoch}: {steps:?}, {report:?}, tables {:?}", at.progress().await.unwrap().1);
        if let Some(reader) = reader {
            println!("longest read: {:?}", reader.await.unwrap());
        }
        lap = Instant::now();
        at.drop_retired().await.unwrap();
        println!("drop: {:?}", lap.elapsed());
    }
    assert_eq!(
        place.rows("SELECT count(*), count(*) FILTER (WHERE \"_PEERDB_IS_DELETED\") FROM public.firenibble").await,
        ["5000000|50000"]
    );
}

/// The longest of a reader's queries, one a millisecond for three seconds.
async fn longest_read(place: OnPostgres) -> Duration {
    let client = place.client().await;
    let statement = client.prepare("SELECT EXISTS (SELECT FROM public.firenibble WHERE f0 = 4000000)").await.unwrap();
    let (end, mut longest) = (Instant::now() + Duration::from_secs(3), Duration::ZERO);
    while Instant::now() < end {
        let before = Instant::now();
        assert!(client.query_one(&statement, &[]).await.unwrap().get::<_, bool>(0));
        longest = longest.max(before.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    longest
}
