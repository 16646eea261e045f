//! The change stream's batches.

use mirror_operator::{
    destination::{Applier, Cell, Counts, Error, RowChange},
    postgres::Lsn,
    table::{Identity, TableSchema},
};

use crate::{
    fixture::{Fixture, made, open, table, until_loaded, whole},
    on_bigquery::OnBigQuery,
};

fn people(place: &OnBigQuery) -> TableSchema {
    place.adapt(table(0, "people", &["id bigint!", "name text", "tags integer[]"]))
}

const COLUMNS: &[&str] = &["id", "name", "ARRAY_TO_STRING(ARRAY(SELECT CAST(t AS STRING) FROM UNNEST(tags) AS t), ',')"];

fn cell(text: &str) -> Cell {
    match text {
        "∅" => Cell::Null,
        "…" => Cell::Unchanged,
        text => Cell::Text(text.to_string().into()),
    }
}

fn row(cells: &[&str]) -> Vec<Cell> {
    cells.iter().map(|text| cell(text)).collect()
}

fn upsert(cells: &[&str]) -> RowChange {
    RowChange::Upsert { row: row(cells), deleted: false }
}

fn delete(id: &str) -> RowChange {
    RowChange::Delete { key: row(&[id, "∅", "∅"]) }
}

async fn write(applier: &mut Box<dyn Applier>, table: &TableSchema, changes: Vec<RowChange>) -> Result<(), Error> {
    let positions = vec![made(1); changes.len()];
    applier.write(table, changes, positions, Counts { inserts: 1, updates: 0, deletes: 0 }).await
}

/// An epoch whose tables are live, with two rows.
async fn live() -> (OnBigQuery, TableSchema) {
    let place = OnBigQuery::new().await;
    let people = people(&place);
    whole(&*open(&place.brief(1)).await, &[(people.clone(), &["1\tone\t{1}", "2\ttwo\t{1,2}"])]).await;
    (place, people)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_seen_whole_once_it_is_committed_and_what_is_unchanged_stays() {
    let (place, people) = live().await;
    let at = open(&place.brief(1)).await;
    let mut applier = at.applier().await.unwrap();
    let changes = vec![upsert(&["3", "three", "{3}"]), upsert(&["1", "…", "{9}"]), delete("2")];
    write(&mut applier, &people, changes).await.unwrap();
    write(&mut applier, &people, vec![upsert(&["3", "trois", "…"])]).await.unwrap();
    assert_eq!(place.read("people", COLUMNS).await, ["1|one|1|f", "2|two|1,2|f"]);
    applier.commit(Lsn(5000)).await.unwrap();
    assert_eq!(place.read("people", COLUMNS).await, ["1|one|9|f", "2|two|1,2|t", "3|trois|3|f"]);
    let state = at.state().await.unwrap().unwrap();
    assert_eq!(state.applied_lsn, Lsn(5000));
    // A row that comes back lives; one that was written and deleted in one batch is flagged; deleting what is not there does nothing.
    let gone = RowChange::Upsert { row: row(&["4", "four", "{}"]), deleted: true };
    write(&mut applier, &people, vec![upsert(&["2", "zwei", "{}"]), gone, delete("77")]).await.unwrap();
    applier.commit(Lsn(6000)).await.unwrap();
    assert_eq!(place.read("people", COLUMNS).await, ["1|one|9|f", "2|zwei||f", "3|trois|3|f", "4|four||t"]);
    assert_eq!(at.progress().await.unwrap().1[0].inserts, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_a_new_key_takes_along_what_it_leaves_unchanged() {
    let (place, people) = live().await;
    let at = open(&place.brief(1)).await;
    let mut applier = at.applier().await.unwrap();
    let rekey = |old: &str, new: &[&str]| RowChange::Rekey { old_key: row(&[old, "∅", "∅"]), row: row(new) };
    write(&mut applier, &people, vec![rekey("2", &["5", "…", "{5}"])]).await.unwrap();
    applier.commit(Lsn(5000)).await.unwrap();
    assert_eq!(place.read("people", COLUMNS).await, ["1|one|1|f", "2|two|1,2|t", "5|two|5|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_delete_where_that_is_wanted() {
    let place = OnBigQuery::new().await;
    let people = people(&place);
    let mut brief = place.brief(1);
    brief.soft_delete.enabled = false;
    let at = open(&brief).await;
    whole(&*at, &[(people.clone(), &["1\tone\t{}", "2\ttwo\t{}"])]).await;
    let mut applier = at.applier().await.unwrap();
    let gone = RowChange::Upsert { row: row(&["4", "four", "{}"]), deleted: true };
    write(&mut applier, &people, vec![delete("2"), gone]).await.unwrap();
    applier.commit(Lsn(5000)).await.unwrap();
    assert_eq!(place.rows("SELECT id FROM public.people").await, ["1"]);
    applier.truncate(&people, made(1)).await.unwrap();
    write(&mut applier, &people, vec![upsert(&["7", "seven", "{}"])]).await.unwrap();
    applier.commit(Lsn(6000)).await.unwrap();
    assert_eq!(place.rows("SELECT id FROM public.people").await, ["7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_flags_the_rows_that_were_there_before_it() {
    let (place, people) = live().await;
    let at = open(&place.brief(1)).await;
    let mut applier = at.applier().await.unwrap();
    write(&mut applier, &people, vec![upsert(&["3", "three", "{}"])]).await.unwrap();
    applier.truncate(&people, made(1)).await.unwrap();
    write(&mut applier, &people, vec![upsert(&["1", "again", "{}"])]).await.unwrap();
    applier.commit(Lsn(5000)).await.unwrap();
    assert_eq!(place.read("people", &["id", "name"]).await, ["1|again|f", "2|two|t", "3|three|t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_equal_rows_without_a_key_as_many_go_as_were_deleted() {
    for soft in [true, false] {
        let place = OnBigQuery::new().await;
        let keyless = TableSchema { identity: Identity::FullRow, ..people(&place) };
        let mut brief = place.brief(1);
        brief.soft_delete.enabled = soft;
        let at = open(&brief).await;
        whole(&*at, &[(keyless.clone(), &["1\ta\t{1}", "1\ta\t{1}", "1\ta\t{1}", "2\t\\N\t{}"])]).await;
        let mut applier = at.applier().await.unwrap();
        let remove = |cells: &[&str]| RowChange::Remove { row: row(cells) };
        let changes = vec![
            RowChange::Add { row: row(&["3", "c", "{}"]) },
            remove(&["1", "a", "{1}"]),
            remove(&["1", "a", "{1}"]),
            remove(&["2", "∅", "{}"]),
            remove(&["9", "z", "{}"]),
        ];
        write(&mut applier, &keyless, changes).await.unwrap();
        applier.commit(Lsn(5000)).await.unwrap();
        let living = if soft { "WHERE NOT _PEERDB_IS_DELETED" } else { "" };
        assert_eq!(place.rows(&format!("SELECT id, name FROM public.people {living} ORDER BY 1")).await, ["1|a", "3|c"], "soft: {soft}");
        assert_eq!(place.count("people").await, if soft { 5 } else { 2 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_column_is_filled_for_the_rows_that_are_there() {
    let (place, people) = live().await;
    let at = open(&place.brief(1)).await;
    let mut applier = at.applier().await.unwrap();
    let wide = place.adapt(table(0, "people", &["id bigint!", "name text", "tags integer[]", "born date"]));
    write(&mut applier, &people, vec![upsert(&["3", "three", "{}"])]).await.unwrap();
    applier.add_column(&wide, 3, Some("2000-01-01")).await.unwrap();
    write(&mut applier, &wide, vec![upsert(&["1", "…", "…", "∅"]), upsert(&["4", "four", "{}", "2024-02-29"])]).await.unwrap();
    applier.commit(Lsn(5000)).await.unwrap();
    let born = "SELECT id, name, CAST(born AS STRING) FROM public.people ORDER BY id";
    assert_eq!(place.rows(born).await, ["1|one|∅", "2|two|2000-01-01", "3|three|2000-01-01", "4|four|2024-02-29"]);
    assert_eq!(at.tables().await.unwrap()[0].schema, wide);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_asks_no_query_and_still_moves_on() {
    let (place, _) = live().await;
    let at = open(&place.brief(1)).await;
    let mut applier = at.applier().await.unwrap();
    at.progress().await.unwrap();
    let before = place.statements().await;
    assert!(before > 0);
    applier.commit(Lsn(5000)).await.unwrap();
    at.progress().await.unwrap();
    assert_eq!(place.statements().await, before);
    assert_eq!(at.state().await.unwrap().unwrap().applied_lsn, Lsn(5000));
    assert_eq!(open(&place.brief(1)).await.applier().await.unwrap().position(), Lsn(5000));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_how_far_an_epoch_is_asks_no_query_while_it_stands_still() {
    let place = OnBigQuery::new().await;
    let at = open(&place.brief(1)).await;
    until_loaded(&*at, &[(people(&place), &["1\tone\t{}"])]).await;
    let look = async || (at.state().await.unwrap(), at.tables().await.unwrap(), at.progress().await.unwrap());
    let first = look().await;
    let before = place.statements().await;
    assert_eq!((look().await, look().await), (first.clone(), first.clone()));
    assert_eq!(place.statements().await, before);
    // What others do is seen.
    let other = open(&place.brief(1)).await;
    other.seal().await.unwrap();
    let sealed = look().await;
    assert!(sealed.0.unwrap().loaded && sealed.1[0].sealed && sealed.2.1[0].sealed, "before: {first:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_applier_that_was_opened_last_wins_and_a_newer_epoch_ends_both() {
    let (place, people) = live().await;
    let (first, second) = (open(&place.brief(1)).await, open(&place.brief(1)).await);
    let mut one = first.applier().await.unwrap();
    let mut two = second.applier().await.unwrap();
    write(&mut one, &people, vec![upsert(&["8", "late", "{}"])]).await.unwrap_or_default();
    let displaced = one.commit(Lsn(5000)).await;
    // Its staged rows went with it, so that it may first hear that these are not there.
    assert!(matches!(displaced, Err(Error::Displaced)), "{displaced:?}");
    assert!(matches!(first.applier().await, Err(Error::Displaced)));
    write(&mut two, &people, vec![upsert(&["3", "three", "{}"])]).await.unwrap();
    two.commit(Lsn(5000)).await.unwrap();
    assert_eq!(place.read("people", &["id"]).await, ["1|f", "2|f", "3|f"]);
    write(&mut two, &people, vec![upsert(&["4", "four", "{}"])]).await.unwrap();
    open(&place.brief(2)).await.begin().await.unwrap();
    let over = two.commit(Lsn(6000)).await;
    assert!(matches!(over, Err(Error::Superseded(2))), "{over:?}");
    assert_eq!(place.read("people", &["id"]).await, ["1|f", "2|f", "3|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_reply_was_lost_is_applied_once() {
    let place = OnBigQuery::new().await;
    let keyless = TableSchema { identity: Identity::FullRow, ..people(&place) };
    whole(&*open(&place.brief(1)).await, &[(keyless.clone(), &[])]).await;
    let mut position = Lsn(0);
    for n in 1.. {
        let (brief, has_cut) = place.through_cut(place.brief(1), n).await;
        let at = open(&brief).await;
        let next = Lsn(10_000 * u64::from(n));
        let outcome = async {
            let mut applier = at.applier().await?;
            write(&mut applier, &keyless, vec![RowChange::Add { row: row(&[&n.to_string(), "x", "{}"]) }]).await?;
            applier.commit(next).await
        };
        let outcome: Result<(), Error> = outcome.await;
        let cut = has_cut();
        if let Err(error) = outcome {
            assert!(cut && matches!(error, Error::Transient(_)), "request {n}: {error:?}");
            // The pod looks where it stands, and does what is missing.
            let at = open(&place.brief(1)).await;
            let mut applier = at.applier().await.unwrap();
            position = applier.position();
            if position < next {
                write(&mut applier, &keyless, vec![RowChange::Add { row: row(&[&n.to_string(), "x", "{}"]) }]).await.unwrap();
                applier.commit(next).await.unwrap();
            }
        }
        let rows = place.rows("SELECT id FROM public.people ORDER BY 1").await;
        assert_eq!(rows, (1..=n).map(|n| n.to_string()).collect::<Vec<_>>(), "request {n}, position {position:?}");
        if !cut {
            assert!(n > 5);
            break;
        }
    }
}
