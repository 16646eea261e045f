//! Changes in the order of their commits, and those that are applied again after an error, in other batches than before.

use mirror_operator::{
    api::clickhouse::ClickHouseTable,
    destination::{Applier, Counts, Destination, Position, RowChange},
    postgres::Lsn,
    table::TableSchema,
};

use super::{live, row, streaming, t, upsert};
use crate::{
    fixture::{Fixture, column, made},
    on_clickhouse::OnClickHouse,
};

/// Writes changes as one batch, which no checkpoint follows.
async fn write(to: &mut dyn Applier, table: &TableSchema, changes: &[(u64, RowChange)]) {
    let (positions, changes) = changes.iter().map(|(position, change)| (made(*position), change.clone())).unzip();
    to.write(table, changes, positions, Counts::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_written_before_the_one_in_its_way_was_deleted_is_the_one_that_stays() {
    let place = OnClickHouse::new().await;
    let at = streaming(&place).await;
    let mut to = at.applier().await.unwrap();
    // Its tuple's record is at 2000; then it waited for the other transaction's delete.
    let (deleted, inserted) = (made(2100), Position { commit: Lsn(2200), change: Lsn(2000) });
    to.write(&t(&place), vec![RowChange::Delete { key: row("1") }], vec![deleted], Counts::default()).await.unwrap();
    to.write(&t(&place), vec![upsert("1|again|b")], vec![inserted], Counts::default()).await.unwrap();
    to.commit(Lsn(2201)).await.unwrap();
    assert_eq!(live(&place).await, ["1|again|b", "2|two|a"]);
}

/// A mirror whose tables are sorted by a column that may change.
async fn sorted_by_kind() -> (OnClickHouse, Box<dyn Destination>) {
    let place = OnClickHouse::new().await.with(ClickHouseTable { order_by: vec!["kind".into()], ..ClickHouseTable::default() });
    let at = streaming(&place).await;
    (place, at)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sorting_key_that_changed_twice_leaves_one_row_however_the_changes_are_batched_again() {
    let (place, at) = sorted_by_kind().await;
    let schema = t(&place);
    let (first, second) = ((2000, upsert("1|one|b")), (2001, upsert("1|one|c")));
    let mut to = at.applier().await.unwrap();
    // Folded to one at first.
    write(&mut *to, &schema, std::slice::from_ref(&second)).await;
    let mut to = at.applier().await.unwrap();
    write(&mut *to, &schema, &[first]).await;
    write(&mut *to, &schema, &[second]).await;
    to.commit(Lsn(2001)).await.unwrap();
    assert_eq!(live(&place).await, ["1|one|c", "2|two|a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_moved_and_was_deleted_stays_deleted_when_its_moves_are_applied_again() {
    let (place, at) = sorted_by_kind().await;
    let schema = t(&place);
    let changes = [(2000, upsert("1|one|b")), (2001, upsert("1|…|c")), (2002, RowChange::Delete { key: row("1") })];
    let mut to = at.applier().await.unwrap();
    write(&mut *to, &schema, &changes[2..]).await;
    for turn in 0..2 {
        let mut to = at.applier().await.unwrap();
        for change in &changes {
            write(&mut *to, &schema, std::slice::from_ref(change)).await;
        }
        assert_eq!(live(&place).await, ["2|two|a"], "turn {turn}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_moved_to_another_key_keeps_its_values_although_its_old_key_was_taken_since() {
    let place = OnClickHouse::new().await;
    let at = streaming(&place).await;
    let schema = t(&place);
    let moved = (2000, RowChange::Rekey { old_key: row("1"), row: row("10|…|b") });
    let taken = (2001, upsert("1|another|c"));
    for _ in 0..2 {
        let mut to = at.applier().await.unwrap();
        write(&mut *to, &schema, std::slice::from_ref(&moved)).await;
        write(&mut *to, &schema, std::slice::from_ref(&taken)).await;
        assert_eq!(live(&place).await, ["1|another|c", "2|two|a", "10|one|b"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_from_before_a_column_was_added_are_applied_again_with_its_default() {
    let place = OnClickHouse::new().await;
    let at = streaming(&place).await;
    let before = t(&place);
    let mut after = before.clone();
    let mut added = column("price", "text", false);
    added.destination_type = "Nullable(Int32)".into();
    after.columns.push(added);
    for _ in 0..2 {
        let mut to = at.applier().await.unwrap();
        let known = at.tables().await.unwrap().remove(0).schema;
        assert_eq!(known, before, "what is not committed is not known");
        write(&mut *to, &known, &[(2000, upsert("3|three|b")), (2001, upsert("1|…|c"))]).await;
        to.add_column(&after, 3, Some("7")).await.unwrap();
        write(&mut *to, &after, &[(2002, upsert("2|…|d|8")), (2003, upsert("4|four|d|∅"))]).await;
        let rows = place.rows("SELECT id, name, kind, price FROM public.t FINAL ORDER BY 1").await;
        assert_eq!(rows, ["1|one|c|7", "2|two|d|8", "3|three|b|7", "4|four|d|∅"]);
    }
    let mut to = at.applier().await.unwrap();
    to.add_column(&after, 3, Some("7")).await.unwrap();
    to.commit(Lsn(2003)).await.unwrap();
    assert_eq!(at.tables().await.unwrap()[0].schema, after);
}
