//! What is carried from the old tables.

use mirror_operator::{
    destination::{Cell, Counts, Destination, Error, RowChange},
    postgres::Lsn,
    report::TableReport,
    table::{Identity, TableSchema},
};

use crate::{
    fixture::{Fixture, for_every_kind, from_loaded, open, table, until_loaded, whole},
    on_clickhouse::OnClickHouse,
    on_postgres::OnPostgres,
};

fn people(columns: &[&str]) -> TableSchema {
    table(0, "people", columns)
}

const COLUMNS: &[&str] = &["id bigint!", "name text"];
const ROWS: &str = "SELECT id, name, \"_PEERDB_IS_DELETED\" FROM public.people ORDER BY 1";

/// A first epoch with rows 1 to 4, of which 2 and 3 were deleted a day later, at a known time.
async fn history<F: Fixture>() -> F {
    let place = F::new().await;
    whole(&*open(&place.brief(1)).await, &[(place.adapt(people(COLUMNS)), &["1\tone", "2\ttwo", "3\tthree", "4\tfour"])]).await;
    place.flag(&[2, 3], "2024-02-29 12:00:00.123456").await;
    place
}

async fn only_report(at: &dyn Destination) -> TableReport {
    at.progress().await.unwrap().1.remove(0)
}

async fn deleted_rows_keep_their_time_missing_ones_are_flagged_now_and_reinserted_ones_stay_alive<F: Fixture>() {
    let place = history::<F>().await;
    let at = open(&place.brief(2)).await;
    // 3 was inserted again; 4 is gone and its delete was never seen.
    whole(&*at, &[(place.adapt(people(COLUMNS)), &["1\tone", "3\tthree again"])]).await;
    let rows = async || place.read("people", &["id", "name"]).await;
    assert_eq!(rows().await, ["1|one|f", "2|two|t", "3|three again|f", "4|four|t"]);
    let times = place.times(2).await;
    assert!(times[0].starts_with("2|2024-02-29 12:00:00.123456") && times[1] == "4|begun", "{times:?}");
    let report = only_report(&*at).await;
    assert_eq!((report.rows_loaded, report.carried_deleted, report.carried_missing, report.note), (2, 1, 1, None));
    // And once more: what was carried is carried on.
    whole(&*open(&place.brief(3)).await, &[(place.adapt(people(COLUMNS)), &["1\tone"])]).await;
    assert_eq!(rows().await, ["1|one|f", "2|two|t", "3|three again|t", "4|four|t"]);
}

async fn each_kind_of_row_can_be_left_behind<F: Fixture>() {
    for (soft_deleted, missing, expected) in
        [(true, false, &["1|one|f", "2|two|t", "3|three|t"][..]), (false, true, &["1|one|f", "4|four|t"]), (false, false, &["1|one|f"])]
    {
        let place = history::<F>().await;
        let mut brief = place.brief(2);
        (brief.carry.soft_deleted, brief.carry.missing) = (soft_deleted, missing);
        whole(&*open(&brief).await, &[(place.adapt(people(COLUMNS)), &["1\tone"])]).await;
        assert_eq!(place.read("people", &["id", "name"]).await, expected);
    }
}

async fn a_value_that_does_not_fit_its_new_type_is_found_before_anything_is_dropped<F: Fixture>() {
    let place = history::<F>().await;
    let at = open(&place.brief(2)).await;
    until_loaded(&*at, &[(place.adapt(people(&["id bigint!", "name uuid"])), &["1\t\\N"])]).await;
    let Err(Error::Permanent(failure)) = from_loaded(&*at).await else { panic!() };
    assert_eq!(failure.reason, "CarryCast");
    assert!(failure.message.contains("\"name\" from ") && !failure.message.contains("two"), "{}", failure.message);
    assert_eq!(place.read("people", &["id"]).await.len(), 4);
}

for_every_kind! {
    deleted_rows_keep_their_time_missing_ones_are_flagged_now_and_reinserted_ones_stay_alive;
    each_kind_of_row_can_be_left_behind;
    a_value_that_does_not_fit_its_new_type_is_found_before_anything_is_dropped;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_matched_by_name_and_cast_to_their_new_types() {
    let place = history::<OnPostgres>().await;
    let at = open(&place.brief(2)).await;
    // The key is a text now, `name` is gone, and `born` is new and NOT NULL, for which carried rows have no value.
    whole(&*at, &[(people(&["id text!", "born date!"]), &["1\t2000-01-01"])]).await;
    assert_eq!(
        place.rows("SELECT id, born, \"_PEERDB_IS_DELETED\" FROM public.people ORDER BY 1").await,
        ["1|2000-01-01|f", "2|∅|t", "3|∅|t", "4|∅|t"]
    );
    let note = only_report(&*at).await.note.unwrap();
    assert!(note.contains("\"born\""), "{note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_not_null_column_stays_so_when_nothing_is_carried() {
    let place = history::<OnPostgres>().await;
    let at = open(&place.brief(2)).await;
    let all = ["1\t2000-01-01", "2\t2000-01-01", "3\t2000-01-01", "4\t2000-01-01"];
    whole(&*at, &[(people(&["id bigint!", "born date!"]), &all)]).await;
    let not_null = "SELECT attnotnull FROM pg_attribute WHERE attrelid = 'public.people'::regclass AND attname = 'born'";
    assert_eq!((place.rows(not_null).await, only_report(&*at).await.note), (vec!["t".to_string()], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_can_be_carried_a_note_says_why() {
    let keyless = TableSchema { identity: Identity::FullRow, ..people(COLUMNS) };
    let other_key = people(&["number bigint!", "name text"]);
    for (schema, words) in [(keyless, "no key"), (other_key, "key column \"number\"")] {
        let place = history::<OnPostgres>().await;
        let at = open(&place.brief(2)).await;
        whole(&*at, &[(schema, &["1\tone"])]).await;
        let report = only_report(&*at).await;
        assert!(report.note.as_ref().is_some_and(|n| n.contains(words)), "{report:?}");
        assert_eq!((report.carried_deleted, report.carried_missing), (0, 0));
        assert_eq!(place.rows("SELECT count(*) FROM public.people").await, ["1"]);
    }
    let place = history::<OnPostgres>().await;
    let mut brief = place.brief(2);
    brief.soft_delete.enabled = false;
    let at = open(&brief).await;
    whole(&*at, &[(people(COLUMNS), &["1\tone"])]).await;
    assert!(only_report(&*at).await.note.unwrap().contains("soft deletes are off"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_row_that_clashes_with_a_new_one_in_a_unique_index_is_left_out_and_counted() {
    let place = history::<OnPostgres>().await;
    place.run("CREATE UNIQUE INDEX people_name ON public.people (name)").await;
    let at = open(&place.brief(2)).await;
    // Row 5 has the name that row 2 had.
    whole(&*at, &[(people(COLUMNS), &["1\tone", "5\ttwo"])]).await;
    assert_eq!(place.rows(ROWS).await, ["1|one|f", "3|three|t", "4|four|t", "5|two|f"]);
    let report = only_report(&*at).await;
    assert_eq!((report.carried_deleted, report.carried_missing), (1, 1));
    assert!(report.note.unwrap().starts_with("1 rows were not carried"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_value_in_the_new_key_are_left_out_and_counted() {
    let place = OnPostgres::new().await;
    let rows = &["1\tone\t\\N", "2\ttwo\tb", "3\tthree\t\\N", "4\tfour\td"];
    whole(&*open(&place.brief(1)).await, &[(people(&["id bigint!", "name text", "code text"]), rows)]).await;
    let at = open(&place.brief(2)).await;
    // The key is the code now; 4 is gone at the source.
    whole(&*at, &[(people(&["code text!", "id bigint!", "name text"]), &["a\t1\tone", "b\t2\ttwo", "c\t3\tthree"])]).await;
    let expected = ["a|1|f", "b|2|f", "c|3|f", "d|4|t"];
    assert_eq!(place.rows("SELECT code, id, \"_PEERDB_IS_DELETED\" FROM public.people ORDER BY 1").await, expected);
    let report = only_report(&*at).await;
    assert_eq!((report.carried_deleted, report.carried_missing), (0, 1));
    assert!(report.note.as_ref().is_some_and(|n| n.contains("2 rows were not carried") && n.contains("\"code\"")), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_rows_that_share_a_new_key_are_carried_once() {
    let place = OnPostgres::new().await;
    let rows = &["1\tone\ta", "2\ttwo\tb", "3\tthree\tb", "4\tfour\tb"];
    whole(&*open(&place.brief(1)).await, &[(people(&["id bigint!", "name text", "code text!"]), rows)]).await;
    place.flag(&[4], "2024-02-29 12:00:00").await;
    let mut brief = place.brief(2);
    brief.carry.soft_deleted = false;
    let at = open(&brief).await;
    whole(&*at, &[(people(&["code text!", "id bigint!", "name text"]), &["a\t1\tone"])]).await;
    assert_eq!(place.rows("SELECT code, \"_PEERDB_IS_DELETED\" FROM public.people ORDER BY 1").await, ["a|f", "b|t"]);
    let report = only_report(&*at).await;
    assert_eq!((report.carried_deleted, report.carried_missing), (0, 1));
    // Of the three rows with the key b the flagged one is not wanted, and one of the others has no place.
    assert!(report.note.as_ref().is_some_and(|n| n.starts_with("1 rows were not carried")), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_its_own_bear_the_names_that_the_mirror_gives_them() {
    let place = OnPostgres::new().await;
    let named = |epoch| {
        let mut brief = place.brief(epoch);
        (brief.soft_delete.column, brief.synced_at_column) = ("is \"gone\"".into(), "Seen At".into());
        brief
    };
    let rows = async || place.rows("SELECT id, name, \"is \"\"gone\"\"\", \"Seen At\" IS NOT NULL FROM public.people ORDER BY 1").await;
    let at = open(&named(1)).await;
    assert_eq!(at.preflight(&[people(COLUMNS)]).await.unwrap(), vec![]);
    whole(&*at, &[(people(COLUMNS), &["1\tone", "2\ttwo", "3\tthree"])]).await;
    let text = |text: &'static str| Cell::Text(text.into());
    let changes = vec![
        RowChange::Delete { key: vec![text("2"), Cell::Null] },
        RowChange::Upsert { row: vec![text("4"), text("four")], deleted: false },
    ];
    let mut to = at.applier().await.unwrap();
    to.write(&people(COLUMNS), changes, vec![Default::default(); 2], Counts::default()).await.unwrap();
    to.commit(Lsn(2001)).await.unwrap();
    assert_eq!(rows().await, ["1|one|f|t", "2|two|t|t", "3|three|f|t", "4|four|f|t"]);
    // 3 is gone and its delete was never seen.
    whole(&*open(&named(2)).await, &[(people(COLUMNS), &["1\tone", "4\tfour"])]).await;
    assert_eq!(rows().await, ["1|one|f|t", "2|two|t|t", "3|three|t|t", "4|four|f|t"]);
}
