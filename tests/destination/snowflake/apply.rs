//! The change stream into Snowflake.

use mirror_operator::{
    destination::{Applier, Cell, Counts, Error, RowChange},
    postgres::Lsn,
    table::{Column, TableSchema},
};

use super::{lines, people, streaming};
use crate::{
    fixture::{Fixture, boundary, column, made, open},
    on_snowflake::OnSnowflake,
};

fn text(value: &str) -> Cell {
    Cell::Text(value.to_string().into())
}

/// A row: `∅` is NULL, `=` what is unchanged.
fn row(cells: &[&str]) -> Vec<Cell> {
    let cell = |value: &&str| match *value {
        "∅" => Cell::Null,
        "=" => Cell::Unchanged,
        value => text(value),
    };
    cells.iter().map(cell).collect()
}

fn upsert(cells: &[&str]) -> RowChange {
    RowChange::Upsert { row: row(cells), deleted: false }
}

fn delete(cells: &[&str]) -> RowChange {
    RowChange::Delete { key: row(cells) }
}

async fn write(applier: &mut dyn Applier, table: &TableSchema, changes: Vec<RowChange>) {
    let positions = vec![made(1500); changes.len()];
    applier.write(table, changes, positions, Counts { inserts: 1, ..Counts::default() }).await.unwrap();
}

async fn read(place: &OnSnowflake) -> Vec<String> {
    place.read("people", &["id", "name", "note"]).await
}

const ROWS: &[&str] = &["1\tone\tlong", "2\ttwo\tlonger", "3\tthree\t\\N"];

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_seen_when_it_is_committed_and_whole() {
    let (place, people, mut applier) = streaming(people, ROWS, true).await;
    let changes = vec![
        upsert(&["1", "ONE", "="]),
        upsert(&["4", "it's \"four\", \\ and\nmore", ""]),
        delete(&["2", "=", "="]),
        RowChange::Upsert { row: row(&["5", "came", "and went"]), deleted: true },
        delete(&["6", "=", "="]),
    ];
    write(&mut *applier, &people, changes).await;
    let before = ["1|one|long|f", "2|two|longer|f", "3|three|∅|f"];
    assert_eq!(read(&place).await, before);
    applier.commit(Lsn(2000)).await.unwrap();
    let after = ["1|ONE|long|f", "2|two|longer|t", "3|three|∅|f", "4|it's \"four\", \\ and\nmore||f", "5|came|and went|t"];
    assert_eq!(read(&place).await, after);
    let at = open(&place.brief(1)).await;
    assert_eq!(at.state().await.unwrap().unwrap().applied_lsn, Lsn(2000));
    assert_eq!(at.progress().await.unwrap().1[0].inserts, 1);
    // A deleted row that comes back is alive.
    write(&mut *applier, &people, vec![upsert(&["2", "back", "∅"])]).await;
    applier.commit(Lsn(3000)).await.unwrap();
    assert_eq!(read(&place).await[1], "2|back|∅|f");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_committed_is_done_again_by_the_next_applier() {
    let (place, people, mut applier) = streaming(people, ROWS, true).await;
    write(&mut *applier, &people, vec![upsert(&["9", "lost", "∅"])]).await;
    drop(applier);
    let mut applier = open(&place.brief(1)).await.applier().await.unwrap();
    assert_eq!(applier.position(), boundary(1).lsn);
    write(&mut *applier, &people, vec![upsert(&["9", "kept", "∅"])]).await;
    applier.commit(Lsn(2000)).await.unwrap();
    assert_eq!(read(&place).await[3], "9|kept|∅|f");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_takes_what_is_unchanged_along() {
    let (place, people, mut applier) = streaming(people, ROWS, true).await;
    let rekey = |old: &[&str], new: &[&str]| RowChange::Rekey { old_key: row(old), row: row(new) };
    write(&mut *applier, &people, vec![rekey(&["1", "=", "="], &["10", "ten", "="]), rekey(&["2", "=", "="], &["2", "=", "new"])]).await;
    applier.commit(Lsn(2000)).await.unwrap();
    assert_eq!(read(&place).await, ["1|one|long|t", "2|two|new|f", "3|three|∅|f", "10|ten|long|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_soft_deletes_rows_go() {
    let (place, people, mut applier) = streaming(people, ROWS, false).await;
    let rekey = RowChange::Rekey { old_key: row(&["3", "=", "="]), row: row(&["30", "=", "x"]) };
    write(&mut *applier, &people, vec![delete(&["1", "=", "="]), rekey]).await;
    applier.commit(Lsn(2000)).await.unwrap();
    assert_eq!(place.rows("SELECT id, name FROM public.people ORDER BY id").await, ["2|two", "30|three"]);
    applier.truncate(&people, made(2500)).await.unwrap();
    assert_eq!(place.count("people").await, 2);
    write(&mut *applier, &people, vec![upsert(&["7", "after", "∅"])]).await;
    applier.commit(Lsn(3000)).await.unwrap();
    assert_eq!(place.rows("SELECT id, name FROM public.people ORDER BY id").await, ["7|after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_flags_what_was_there_and_nothing_after_it() {
    let (place, people, mut applier) = streaming(people, ROWS, true).await;
    write(&mut *applier, &people, vec![upsert(&["4", "before", "∅"])]).await;
    applier.truncate(&people, made(1600)).await.unwrap();
    write(&mut *applier, &people, vec![upsert(&["1", "after", "∅"])]).await;
    applier.commit(Lsn(2000)).await.unwrap();
    assert_eq!(read(&place).await, ["1|after|∅|f", "2|two|longer|t", "3|three|∅|t", "4|before|∅|t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_rows_without_a_key_are_counted() {
    for soft in [true, false] {
        let (place, lines, mut applier) = streaming(lines, &["1\ta", "1\ta", "1\ta", "2\t\\N", "2\t\\N"], soft).await;
        let (one, null) = (row(&["1", "a"]), row(&["2", "∅"]));
        let changes = vec![
            RowChange::Add { row: row(&["3", "c"]) },
            RowChange::Remove { row: one.clone() },
            RowChange::Remove { row: null },
            RowChange::Remove { row: one },
            RowChange::Add { row: row(&["4", "d"]) },
            RowChange::Remove { row: row(&["4", "d"]) },
        ];
        write(&mut *applier, &lines, changes).await;
        applier.commit(Lsn(2000)).await.unwrap();
        let live = if soft { "NOT _PEERDB_IS_DELETED" } else { "TRUE" };
        let rows = place.rows(&format!("SELECT id, name, COUNT(*) FROM public.lines WHERE {live} GROUP BY id, name ORDER BY id")).await;
        assert_eq!(rows, ["1|a|1", "2|∅|1", "3|c|1"]);
        assert_eq!(place.count("lines").await, if soft { 7 } else { 3 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_column_fills_the_rows_that_are_there() {
    let (place, mut people, mut applier) = streaming(people, ROWS, true).await;
    write(&mut *applier, &people, vec![upsert(&["4", "four", "∅"])]).await;
    for (name, type_, source, fill) in [
        ("N", "NUMBER(10,2)", "numeric(10,2)", Some("1.5")),
        ("D", "DATE", "date", Some("2024-02-29")),
        ("J", "VARIANT", "jsonb", Some("{\"a\": [1]}")),
        ("E", "VARCHAR", "text", None),
    ] {
        people.columns.push(Column { destination: name.into(), destination_type: type_.into(), ..column(name, source, false) });
        for _ in 0..2 {
            applier.add_column(&people, people.columns.len() - 1, fill).await.unwrap();
        }
    }
    write(&mut *applier, &people, vec![upsert(&["5", "five", "∅", "2.5", "2025-01-01", "[2]", "e"])]).await;
    applier.commit(Lsn(2000)).await.unwrap();
    let rows = place.rows("SELECT id, N, TO_VARCHAR(D), TO_JSON(J), E FROM public.people WHERE id IN (1, 4, 5) ORDER BY id").await;
    assert_eq!(rows, ["1|1.50|2024-02-29|{\"a\":[1]}|∅", "4|1.50|2024-02-29|{\"a\":[1]}|∅", "5|2.50|2025-01-01|[2]|e"]);
    let known = open(&place.brief(1)).await.tables().await.unwrap();
    assert_eq!(known[0].schema.columns.len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_may_become_nullable() {
    let (place, people, mut applier) = streaming(people, ROWS, true).await;
    for column in [0, 1] {
        assert_eq!(applier.allow_null(&people, column).await.unwrap(), people);
    }
    place.run("INSERT INTO public.people (name) VALUES ('without')").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_moves_on_without_a_write_to_the_ledger() {
    let (place, _, mut applier) = streaming(people, ROWS, true).await;
    let written = async || place.rows(&format!("SELECT MAX(\"AT\") FROM {}", place.ledger())).await;
    let before = written().await;
    applier.commit(Lsn(0x5000)).await.unwrap();
    assert_eq!(applier.position(), Lsn(0x5000));
    assert_eq!(written().await, before);
    let again = open(&place.brief(1)).await;
    assert_eq!(again.state().await.unwrap().unwrap().applied_lsn, Lsn(0x5000));
    assert_eq!(again.applier().await.unwrap().position(), Lsn(0x5000));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opened_last_applies_and_a_newer_epoch_ends_all() {
    let (place, people, mut first) = streaming(people, ROWS, true).await;
    let mut second = open(&place.brief(1)).await.applier().await.unwrap();
    write(&mut *first, &people, vec![upsert(&["1", "first", "="])]).await;
    assert!(matches!(first.commit(Lsn(2000)).await, Err(Error::Displaced)));
    write(&mut *second, &people, vec![upsert(&["1", "second", "="])]).await;
    second.commit(Lsn(2000)).await.unwrap();
    assert_eq!(read(&place).await[0], "1|second|long|f");
    write(&mut *second, &people, vec![upsert(&["1", "late", "="])]).await;
    open(&place.brief(2)).await.begin().await.unwrap();
    assert!(matches!(second.commit(Lsn(3000)).await, Err(Error::Superseded(2))));
    assert_eq!(read(&place).await[0], "1|second|long|f");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_differ_as_texts_only_are_one() {
    let (place, people, mut applier) = streaming(
        |place| place.adapt(crate::fixture::table(0, "people", &["id numeric!", "name text", "note text"])),
        &["1\tone\t\\N"],
        true,
    )
    .await;
    let rekey = RowChange::Rekey { old_key: row(&["1", "=", "="]), row: row(&["1.00", "same", "="]) };
    write(&mut *applier, &people, vec![rekey]).await;
    write(&mut *applier, &people, vec![delete(&["2.0", "=", "="]), upsert(&["2.00", "two", "∅"])]).await;
    applier.commit(Lsn(2000)).await.unwrap();
    assert_eq!(read(&place).await, ["1|same|∅|f", "2|two|∅|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_value_is_told_when_it_is_written() {
    let (_, mut people, mut applier) = streaming(people, ROWS, true).await;
    people.columns[1].destination_type = "NUMBER(38,0)".into();
    let outcome = applier.write(&people, vec![upsert(&["1", "secret", "∅"])], vec![made(1)], Counts::default()).await;
    let Err(Error::Permanent(failure)) = outcome else { panic!("{outcome:?}") };
    assert!(failure.reason == "ValueRefused" && failure.message.contains("\"NAME\"") && !failure.message.contains("secret"), "{failure:?}");
}
