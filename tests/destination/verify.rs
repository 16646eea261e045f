//! What shadows are compared by before the swap.

use bytes::Bytes;
use futures::StreamExt;
use mirror_operator::{
    api::{clickhouse::ClickHouseTable, resync::Verification},
    brief::Brief,
    destination::{Destination, Error},
    table::TableSchema,
    verify::{Measure, compare},
};

use crate::{
    fixture::{Fixture, boundary, for_every_kind, load, open, plan, table, until_loaded, whole},
    on_bigquery::OnBigQuery,
    on_clickhouse::OnClickHouse,
    on_postgres::OnPostgres,
    on_snowflake::OnSnowflake,
};

const ROWS: &[&str] = &["1\tone", "2\ttwo", "3\tthree"];

fn people(place: &impl Fixture) -> TableSchema {
    place.adapt(table(0, "people", &["id bigint!", "name text"]))
}

fn brief(place: &impl Fixture, epoch: u32) -> Brief {
    Brief { verification: Verification::RowCount, ..place.brief(epoch) }
}

fn rows(rows: u64) -> Measure {
    Measure { rows, sum: None }
}

/// An epoch with one loaded and sealed table, of which the source has said that it has three rows.
async fn sealed(at: &dyn Destination, people: &TableSchema, lines: &[&str]) {
    until_loaded(at, &[(people.clone(), lines)]).await;
    at.measured(people, 1, &rows(3)).await.unwrap();
    at.seal().await.unwrap();
}

async fn a_table_is_complete_only_once_the_source_has_said_what_it_has_and_swapped_only_once_verified<F: Fixture>() {
    let place = F::new().await;
    let (at, people) = (open(&brief(&place, 1)).await, people(&place));
    until_loaded(&*at, &[(people.clone(), ROWS)]).await;
    at.seal().await.unwrap();
    let ledger = at.tables().await.unwrap();
    assert!(!ledger[0].sealed && ledger[0].measured.is_none() && !at.state().await.unwrap().unwrap().loaded);
    for _ in 0..2 {
        at.measured(&people, 1, &rows(3)).await.unwrap();
    }
    assert_eq!(at.tables().await.unwrap()[0].measured, Some(rows(3)));
    at.seal().await.unwrap();
    assert!(at.state().await.unwrap().unwrap().loaded);
    at.carry().await.unwrap();
    assert!(matches!(at.swap().await, Err(Error::Transient(why)) if why.contains("must be verified first")));
    let found = at.measure(&people).await.unwrap();
    assert_eq!(compare(&people, &rows(3), &found), Ok(()));
    for _ in 0..2 {
        at.verified(&people, &found, Some("all but one column")).await.unwrap();
    }
    assert!(at.tables().await.unwrap()[0].verified);
    at.swap().await.unwrap();
    let (_, reports) = at.progress().await.unwrap();
    assert_eq!((reports[0].rows_verified, reports[0].note.as_deref()), (Some(3), Some("all but one column")));
}

async fn a_row_that_vanished_from_a_shadow_or_came_to_it_is_found<F: Fixture>() {
    let sql = |place: &F, what: &str| what.replace("people", &place.shadow("people"));
    for (by_hand, left) in [("DELETE FROM public.people WHERE id = 2", 2), ("INSERT INTO public.people (id, name) VALUES (9, 'nine')", 4)] {
        let place = F::new().await;
        let (at, people) = (open(&brief(&place, 1)).await, people(&place));
        sealed(&*at, &people, ROWS).await;
        place.run(&sql(&place, by_hand)).await;
        let found = at.measure(&people).await.unwrap();
        assert_eq!(found, rows(left), "{by_hand}");
        let failure = compare(&people, &rows(3), &found).unwrap_err();
        assert!(failure.reason == "VerificationFailed" && failure.permanent, "{failure:?}");
        at.abandon().await.unwrap();
    }
}

async fn rows_that_are_carried_do_not_count<F: Fixture>() {
    let place = F::new().await;
    let people = people(&place);
    whole(&*open(&place.brief(1)).await, &[(people.clone(), &["1\tone", "2\ttwo", "3\tthree", "4\tfour", "5\tfive"])]).await;
    place.flag(&[4], "2024-02-29 12:00:00").await;
    let at = open(&brief(&place, 2)).await;
    sealed(&*at, &people, ROWS).await;
    assert_eq!(at.measure(&people).await.unwrap(), rows(3));
    at.carry().await.unwrap();
    let found = at.measure(&people).await.unwrap();
    assert_eq!(found, rows(3));
    at.verified(&people, &found, None).await.unwrap();
    at.swap().await.unwrap();
    assert_eq!(place.read("people", &["id"]).await, ["1|f", "2|f", "3|f", "4|t", "5|t"]);
}

async fn a_lost_snapshot_empties_tables_of_which_the_source_was_not_asked<F: Fixture>() {
    let place = F::new().await;
    let (at, people) = (open(&brief(&place, 1)).await, people(&place));
    let others = place.adapt(table(1, "others", &["id bigint!", "name text"]));
    until_loaded(&*at, &[(people.clone(), ROWS), (others.clone(), ROWS)]).await;
    at.measured(&others, 1, &rows(3)).await.unwrap();
    at.renew_snapshot(boundary(2)).await.unwrap();
    let pending: Vec<u32> = at.pending(0).await.unwrap().iter().map(|c| c.table).collect();
    assert_eq!(pending, [0]);
    let late = at.measured(&people, 1, &rows(3)).await;
    assert!(matches!(late, Err(Error::StaleSnapshot { current: 2 })), "{late:?}");
    let pieces: Vec<Result<Bytes, String>> = vec![Ok(Bytes::from("7\tseven\n"))];
    at.load_chunk(&people, &plan(&[1]).chunks[0], 2, futures::stream::iter(pieces).boxed()).await.unwrap();
    at.measured(&people, 2, &rows(1)).await.unwrap();
    at.seal().await.unwrap();
    let measured: Vec<_> = at.tables().await.unwrap().into_iter().map(|t| t.measured).collect();
    assert_eq!(measured, [Some(rows(1)), Some(rows(3))]);
    assert_eq!((at.measure(&people).await.unwrap(), at.measure(&others).await.unwrap()), (rows(1), rows(3)));
}

/// Each of these replies is lost once, and the next try confirms what came of it.
async fn what_was_found_is_recorded_whatever_reply_is_lost<F: Fixture>() {
    let place = F::new().await;
    let (brief, people) = (brief(&place, 1), people(&place));
    let at = open(&brief).await;
    until_loaded(&*at, &[(people.clone(), ROWS)]).await;
    for verified in [false, true] {
        let record = async |at: &dyn Destination| match verified {
            false => at.measured(&people, 1, &rows(3)).await,
            true => at.verified(&people, &rows(3), Some("once")).await,
        };
        for n in (crate::support::first(F::STRIDE as usize) as u32..).step_by(F::STRIDE as usize) {
            let (cut, has_cut) = place.through_cut(brief.clone(), n).await;
            let outcome = record(&*open(&cut).await).await;
            let lost = has_cut();
            assert!(outcome.is_ok() || lost && matches!(outcome, Err(Error::Transient(_))), "request {n}: {outcome:?}");
            record(&*at).await.unwrap();
            if !lost {
                break;
            }
        }
        at.seal().await.unwrap();
    }
    at.carry().await.unwrap();
    at.swap().await.unwrap();
    let (_, reports) = at.progress().await.unwrap();
    assert_eq!((reports[0].rows_verified, reports[0].note.as_deref()), (Some(3), Some("once")));
}

for_every_kind! {
    a_table_is_complete_only_once_the_source_has_said_what_it_has_and_swapped_only_once_verified;
    a_row_that_vanished_from_a_shadow_or_came_to_it_is_found;
    rows_that_are_carried_do_not_count;
    a_lost_snapshot_empties_tables_of_which_the_source_was_not_asked;
    what_was_found_is_recorded_whatever_reply_is_lost;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_engine_of_clickhouse_tells_what_it_got() {
    for (engine, after_a_second_copy) in [("ReplacingMergeTree", 3), ("CoalescingMergeTree", 3), ("MergeTree", 4), ("Null", 3)] {
        let options: ClickHouseTable = serde_json::from_value(serde_json::json!({ "engine": engine })).unwrap();
        let place = OnClickHouse::new().await.with(options);
        let (at, people) = (open(&brief(&place, 1)).await, people(&place));
        sealed(&*at, &people, ROWS).await;
        assert_eq!(at.measure(&people).await.unwrap(), rows(3), "{engine}");
        // As a block that was written twice would be.
        place.run("INSERT INTO public.people_resync_e1g1 (id, name) VALUES (3, 'three')").await;
        assert_eq!(at.measure(&people).await.unwrap(), rows(after_a_second_copy), "{engine}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_was_changed_in_a_shadow_is_found_by_its_checksum() {
    let place = OnPostgres::new().await;
    let at = open(&Brief { verification: Verification::Checksum, ..place.brief(1) }).await;
    let people = people(&place);
    sealed(&*at, &people, &["1\tone", "2\t\\N", "3\t"]).await;
    let sum = async || at.measure(&people).await.unwrap();
    let whole = sum().await;
    assert!(whole.rows == 3 && whole.sum.is_some());
    let mut seen = vec![whole.clone()];
    for change in ["name = 'One' WHERE id = 1", "name = '' WHERE id = 2", "name = NULL WHERE id = 3", "id = 4 WHERE id = 3"] {
        place.run(&format!("UPDATE public.people_resync SET {change}")).await;
        let now = sum().await;
        assert!(!seen.contains(&now), "{change}");
        seen.push(now);
    }
    place.run("DELETE FROM public.people_resync; INSERT INTO public.people_resync VALUES (3, ''), (1, 'one'), (2, NULL)").await;
    assert_eq!(sum().await, whole, "the order is no matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_knew_nothing_of_verification_learns_of_it() {
    let place = OnPostgres::new().await;
    let (at, people) = (open(&place.brief(1)).await, people(&place));
    until_loaded(&*at, &[(people.clone(), &[])]).await;
    place.run("ALTER TABLE _mirror_operator.table DROP COLUMN source_rows, DROP COLUMN source_sum, DROP COLUMN verified_rows; UPDATE _mirror_operator.layout SET version = 3").await;
    let at = open(&brief(&place, 1)).await;
    load(&*at, &people, 0, &[]).await.unwrap();
    at.measured(&people, 1, &rows(0)).await.unwrap();
    at.seal().await.unwrap();
    assert!(at.tables().await.unwrap()[0].sealed);
}
