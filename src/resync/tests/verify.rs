//! What a resync tells of its verification.

use super::*;
use crate::report::TableReport;

fn table(rows_verified: Option<i64>) -> TableReport {
    TableReport { source: "public.t".into(), rows_verified, ..TableReport::default() }
}

/// The condition `Verified` of a resync in its swap, whose tables are reported so.
fn told(verification: &str, tables: &[Option<i64>]) -> Option<String> {
    let mut world = World::new(json!({ "verification": verification }));
    while world.phase() != Phase::Swap {
        world.step();
    }
    world.report(Stage::Loaded).tables = tables.iter().map(|rows| table(*rows)).collect();
    let status = world.plan().status;
    assert_eq!(status.tables.iter().map(|t| t.rows_verified).collect::<Vec<_>>(), tables);
    let condition = condition::get(&status.conditions, "Verified")?;
    assert_eq!(condition.status, "True");
    Some(condition.message.clone())
}

#[test]
fn a_resync_is_verified_once_each_of_its_tables_is() {
    assert_eq!(told("RowCount", &[]), None);
    assert_eq!(told("RowCount", &[Some(7), None]), None);
    assert_eq!(told("None", &[None, None]), None);
    assert_eq!(
        told("RowCount", &[Some(7), Some(0)]).unwrap(),
        "The rows of 2 tables are as many as the source has in the snapshot, 7 in all."
    );
    assert!(told("Checksum", &[Some(7)]).unwrap().ends_with("7 in all, and so are their checksums."));
}

#[test]
fn a_difference_fails_the_resync_before_its_swap_and_what_it_made_is_removed() {
    let mut world = World::new(json!({ "verification": "RowCount" }));
    while world.phase() != Phase::Swap {
        world.step();
    }
    let failure = Failure { reason: "VerificationFailed".into(), message: "public.t has 7 rows and 6.".into(), permanent: true };
    let report = JobReport { failure: Some(failure), ..JobReport::default() };
    world.seen.swap_job =
        Some(JobFacts { failed: Some("PodFailurePolicy".into()), refused: true, report: Some(report), ..JobFacts::default() });
    assert_eq!(world.run(), Phase::Failed);
    assert_eq!(world.verdict().1, "VerificationFailed");
    assert!(world.swapped.is_none() && world.done.contains(&"EnsureCleanupJob".to_string()), "{:?}", world.done);
}
