//! What a Job's pod leaves for the operator, in the size that arrives. No I/O.

use serde::Serialize;

use crate::report::{Failure, JobReport, PeerReport};

/// What the kubelet keeps of a termination message, in bytes; the rest is cut off, and JSON with it (Kubernetes docs, "Customizing the termination message").
const LIMIT: usize = 4096;

/// A result that may be too long to arrive whole.
pub trait Result: Serialize {
    /// The parts that can be cut.
    fn failures(&mut self) -> Vec<&mut Failure>;
}

impl Result for JobReport {
    fn failures(&mut self) -> Vec<&mut Failure> {
        self.failure.iter_mut().collect()
    }
}

impl Result for PeerReport {
    fn failures(&mut self) -> Vec<&mut Failure> {
        self.problems.iter_mut().collect()
    }
}

/// The result as JSON. While it is too long, its longest message loses its end.
pub fn message(mut result: impl Result) -> String {
    loop {
        let text = serde_json::to_string(&result).unwrap_or_default();
        let longest = result.failures().into_iter().max_by_key(|f| f.message.len());
        match (text.len().checked_sub(LIMIT + 1), longest) {
            // A message that is cut to nothing does not become shorter.
            (Some(over), Some(longest)) if longest.message.len() > MARK.len() => cut(&mut longest.message, over + 1),
            _ => return text,
        }
    }
}

/// Stands for what is missing.
const MARK: &str = "…";

/// Takes so many bytes off, or half of the text if that is less: others may be as long.
fn cut(text: &mut String, over: usize) {
    let mut end = text.len().saturating_sub(over + MARK.len()).max(text.len() / 2).min(text.len() - MARK.len() - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push_str(MARK);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(message: String) -> Failure {
        Failure { reason: "Many".into(), message, permanent: true }
    }

    #[test]
    fn a_long_result_arrives_whole_at_its_beginning() {
        for unit in ["a", "ü", "\"", "\n", "😀"] {
            let text = message(JobReport { failure: Some(failure(unit.repeat(5000))), ..JobReport::default() });
            assert!(text.len() <= LIMIT && text.len() > LIMIT / 2, "{unit:?}: {}", text.len());
            let back: JobReport = serde_json::from_str(&text).unwrap();
            assert!(back.failure.unwrap().message.starts_with(unit));
        }
        let many =
            PeerReport { problems: (0..12).map(|n| failure(format!("{n} {}", "x".repeat(100 * n)))).collect(), ..PeerReport::default() };
        let text = message(many);
        let back: PeerReport = serde_json::from_str(&text).unwrap();
        assert_eq!((text.len() <= LIMIT, back.problems.len()), (true, 12));
        assert!(back.problems.iter().enumerate().all(|(n, f)| f.message.starts_with(&format!("{n} "))));
    }

    #[test]
    fn a_short_result_is_left_as_it_is() {
        let report = JobReport { failure: Some(failure("x".into())), ..JobReport::default() };
        assert_eq!(message(report.clone()), serde_json::to_string(&report).unwrap());
    }

    #[test]
    fn what_cannot_be_cut_does_not_go_on_for_ever() {
        let many = PeerReport { problems: (0..500).map(|_| failure("x".into())).collect(), ..PeerReport::default() };
        assert!(message(many).len() > LIMIT);
    }
}
