//! A figure, not a test: `cargo test --test source -- --ignored --nocapture memory`.

use crate::{fixture::Fixture, load::whole};

#[tokio::test]
#[ignore = "a figure"]
async fn memory_that_rows_of_100_mb_take() {
    let fixture = Fixture::new().await;
    let sql =
        "CREATE TABLE large (id int PRIMARY KEY, v text); INSERT INTO large SELECT g, repeat('x', 100000000) FROM generate_series(1, 6) g";
    fixture.at_source().await.batch_execute(sql).await.unwrap();
    whole(&fixture, &fixture.brief(1, &["public.large"])).await;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap());
    fixture.end().await;
}
