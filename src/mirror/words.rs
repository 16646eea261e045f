//! What is wrong, in sentences.

use std::collections::BTreeMap;

use crate::report::Report;

/// Causes as sentences, with the one cure that they have in common.
pub(super) fn cured(causes: &[String]) -> String {
    format!("{} Apply a MirrorResync.", plain(causes))
}

/// Causes as sentences, without that cure.
pub(super) fn plain(causes: &[String]) -> String {
    let cause = |cause: &String| {
        let words = cause.split("pply a MirrorResync").next().unwrap_or_default();
        words.trim_end_matches(['A', 'a']).trim_end_matches([' ', '.', ',', ';']).to_string()
    };
    format!("{}.", causes.iter().map(cause).collect::<Vec<_>>().join(". "))
}

/// What differs at the source, each cause once, with the tables that it is told of.
pub(super) fn drift(report: &Report) -> Vec<String> {
    let mut tables: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for table in &report.tables {
        if let Some(drift) = &table.drift {
            tables.entry(drift).or_default().push(&table.source);
        }
    }
    let mut causes: Vec<_> = tables.into_iter().map(|(drift, tables)| (tables, drift)).collect();
    causes.sort_unstable();
    causes.into_iter().map(|(tables, drift)| format!("{}: {drift}", named(&tables))).collect()
}

/// Some tables by their names; of many the first.
pub(super) fn named(tables: &[&str]) -> String {
    match tables.len() {
        0..=5 => tables.join(", "),
        many => format!("{} and {} more", tables[..5].join(", "), many - 5),
    }
}
