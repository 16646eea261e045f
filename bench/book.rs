//! The figures: one line each as they come, and all of them as JSON.

use std::{fmt, fs, path::Path, path::PathBuf};

use serde::{Deserialize, Serialize};

/// What a figure should be.
#[derive(Clone, Copy)]
pub enum Target {
    None,
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Clone, Serialize, Deserialize)]
struct Figure {
    name: String,
    value: f64,
    unit: String,
    target: String,
    ok: bool,
}

/// All figures of `target/bench.json`.
pub struct Book {
    path: PathBuf,
    figures: Vec<Figure>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::AtMost(bound) => write!(f, "<={bound}"),
            Self::AtLeast(bound) => write!(f, ">={bound}"),
        }
    }
}

impl Book {
    /// Opens the book; an unreadable one is begun anew.
    pub fn open(path: &Path) -> Self {
        let figures = fs::read_to_string(path).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        Self { path: path.into(), figures }
    }

    /// A figure that was put.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|f| f.name == name).map(|f| f.value)
    }

    /// Prints a figure and keeps it, in place of an older one.
    pub fn put(&mut self, name: &str, value: f64, unit: &str, target: Target) {
        let ok = match target {
            Target::None => true,
            Target::AtMost(bound) => value <= bound,
            Target::AtLeast(bound) => value >= bound,
        };
        // Three significant places are more than such a machine repeats.
        let digits = if value.abs() >= 100.0 {
            0
        } else if value.abs() >= 10.0 {
            1
        } else {
            2
        };
        println!("BENCH name={name} value={value:.digits$} unit={unit} target={target} {}", if ok { "ok" } else { "short" });
        let figure = Figure { name: name.into(), value, unit: unit.into(), target: target.to_string(), ok };
        match self.figures.iter_mut().find(|f| f.name == name) {
            Some(old) => *old = figure,
            None => self.figures.push(figure),
        }
        let text = serde_json::to_string_pretty(&self.figures).expect("figures are plain");
        fs::write(&self.path, text + "\n").expect("the figures' file can be written");
    }
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}
