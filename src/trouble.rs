//! An error of either side, as the pods' loops see it.

use crate::{destination, report::Failure, source};

/// What stopped a step.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The source.
    #[error("source: {0}")]
    Source(#[from] source::Error),
    /// The destination.
    #[error("destination: {0}")]
    Destination(#[from] destination::Error),
    /// Something that passes by itself, such as a pipeline pod that is being replaced.
    #[error("{0}")]
    Waiting(String),
}

impl Trouble {
    /// The error as people and conditions see it.
    pub fn failure(&self) -> Failure {
        let passing = |reason: &str| Failure { reason: reason.into(), message: self.to_string(), permanent: false };
        match self {
            Self::Source(error) => error.failure(),
            Self::Destination(destination::Error::Permanent(failure)) => failure.clone(),
            Self::Destination(destination::Error::Displaced) => passing("Displaced"),
            Self::Destination(destination::Error::Superseded(_)) => Failure { permanent: true, ..passing("Superseded") },
            Self::Destination(destination::Error::StaleSnapshot { .. }) => passing("SnapshotLost"),
            Self::Destination(destination::Error::Source(_)) => passing("SourceUnavailable"),
            Self::Destination(destination::Error::Transient(_)) => passing("DestinationUnavailable"),
            Self::Waiting(_) => passing("Waiting"),
        }
    }

    /// The newer epoch, if one has begun.
    pub fn superseded(&self) -> Option<u32> {
        match self {
            Self::Destination(destination::Error::Superseded(newer)) => Some(*newer),
            _ => None,
        }
    }

    /// Whether the snapshot in use is of no further use.
    pub fn snapshot_lost(&self) -> bool {
        matches!(
            self,
            Self::Source(source::Error::SnapshotGone { .. } | source::Error::Rewritten(_))
                | Self::Destination(destination::Error::StaleSnapshot { .. })
        )
    }
}

/// Several failures as one: the first one's reason, all the messages.
pub fn together(failures: Vec<Failure>) -> Option<Failure> {
    let first = failures.first()?;
    Some(Failure {
        reason: first.reason.clone(),
        permanent: failures.iter().any(|f| f.permanent),
        message: failures.iter().map(|f| f.message.as_str()).collect::<Vec<_>>().join("\n"),
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    /// What comes before a reason where it is written down as a literal.
    const MARKS: [&str; 6] = ["failure(", "refused(", "permanent(", "cannot(", "passing(", "reason: "];

    fn word(text: &str) -> Option<String> {
        let word = text.trim_start().strip_prefix('"')?.split('"').next()?;
        let camel = word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(|c| c.is_ascii_alphabetic());
        camel.then(|| word.to_string())
    }

    fn reasons(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("tests") {
                reasons(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                let code = source.split("#[cfg(test)]").next().unwrap_or_default();
                found.extend(MARKS.iter().flat_map(|mark| code.split(mark).skip(1).filter_map(word)));
                // Tables of SQLSTATEs: a reason, and whether it is permanent.
                let told =
                    |text: &&str| [", true)", ", false)"].iter().any(|end| text.splitn(3, '"').nth(2).is_some_and(|t| t.starts_with(end)));
                found.extend(code.split('(').filter(told).filter_map(word));
            }
        }
    }

    #[test]
    fn every_reason_of_a_failure_stands_in_the_documentation() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = BTreeSet::new();
        reasons(&root.join("src"), &mut found);
        for known in ["TableMissing", "Displaced", "SourceLocked", "Terminated"] {
            assert!(found.contains(known), "{known} is not found: {found:?}");
        }
        let documented = std::fs::read_to_string(root.join("docs/failure-modes.md")).unwrap();
        let missing: Vec<_> = found.iter().filter(|reason| !documented.contains(&format!("`{reason}`"))).collect();
        assert!(missing.is_empty(), "docs/failure-modes.md does not know {missing:?}");
    }

    /// All that is written in these folders, tests apart.
    fn written(directory: &Path, all: &mut String) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                written(&path, all);
            } else if path.extension().is_some_and(|e| e == "rs" || e == "yaml") {
                all.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn every_reason_that_the_documentation_names_is_in_the_program() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut program = String::new();
        written(&root.join("src"), &mut program);
        written(&root.join("crds"), &mut program);
        let documented = std::fs::read_to_string(root.join("docs/failure-modes.md")).unwrap();
        let known: BTreeSet<&str> = program.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let camel = |word: &&str| word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().any(|c| c.is_ascii_lowercase());
        let words: Vec<&str> =
            documented.split('`').skip(1).step_by(2).filter(camel).filter(|w| w.chars().all(|c| c.is_ascii_alphabetic())).collect();
        assert!(words.len() > 100, "the page has code in it: {}", words.len());
        let unknown: BTreeSet<_> = words.into_iter().filter(|word| !known.contains(word)).collect();
        assert!(unknown.is_empty(), "docs/failure-modes.md names what is nowhere in the program: {unknown:?}");
    }

    /// What needs a system that fails, or a server of another version.
    const UNTESTED: [&str; 6] = ["HttpClient", "Internal", "Listen", "NoRuntime", "Serve", "VersionUnsupported"];

    /// The tests below a directory, with this list left out.
    fn tests_of(directory: &Path, all: &mut String) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                tests_of(&path, all);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("src/trouble.rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                let below = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
                let apart = below.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")));
                all.push_str(if apart { &source } else { source.split_once("#[cfg(test)]").map_or("", |(_, tests)| tests) });
            }
        }
    }

    #[test]
    fn every_reason_of_a_failure_is_named_by_a_test_but_for_those_that_none_can_bring_about() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (mut found, mut tests) = (BTreeSet::new(), String::new());
        reasons(&root.join("src"), &mut found);
        for directory in ["src", "tests"] {
            tests_of(&root.join(directory), &mut tests);
        }
        let named: BTreeSet<&str> = tests.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let missing: Vec<&String> = found.iter().filter(|reason| !named.contains(reason.as_str())).collect();
        assert_eq!(missing, UNTESTED.iter().collect::<Vec<_>>());
    }
}
