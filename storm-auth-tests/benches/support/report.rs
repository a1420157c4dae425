//! What a benchmark prints: tables, with the bound beside each figure that has one.

#![allow(clippy::print_stdout, reason = "it is what a benchmark is for")]

use std::process::ExitCode;
use std::time::Duration;

/// The tables of one run.
#[derive(Default)]
pub(crate) struct Report {
    missed: usize,
}

/// One figure of a table, as it is printed.
pub(crate) struct Figure {
    text: String,
    missed: bool,
}

impl Figure {
    /// With its bound, as in `at most 1 ms`.
    pub(crate) fn bound(self, bound: &str, met: bool) -> Self {
        let verdict = if met { "met" } else { "MISSED" };
        Self { text: format!("{} ({bound}: {verdict})", self.text), missed: !met }
    }

    /// The same, where the bound is one of this figure's case.
    pub(crate) fn bound_if(self, applies: bool, bound: &str, met: bool) -> Self {
        if applies { self.bound(bound, met) } else { self }
    }
}

/// A figure as it is printed.
pub(crate) fn figure(text: impl ToString) -> Figure {
    Figure { text: text.to_string(), missed: false }
}

/// A span in the unit that fits it.
pub(crate) fn span(span: Duration) -> Figure {
    let nanos = span.as_nanos() as f64;
    figure(match nanos {
        ..1e3 => format!("{nanos:.0} ns"),
        ..1e6 => format!("{:.1} µs", nanos / 1e3),
        ..1e9 => format!("{:.2} ms", nanos / 1e6),
        _ => format!("{:.2} s", nanos / 1e9),
    })
}

impl Report {
    pub(crate) fn table(&mut self, title: &str, columns: &[&str], rows: Vec<Vec<Figure>>) {
        println!("\n{title}\n");
        self.missed += rows.iter().flatten().filter(|figure| figure.missed).count();
        let heads = columns.iter().map(ToString::to_string).collect();
        let lines: Vec<Vec<String>> = [heads]
            .into_iter()
            .chain(rows.into_iter().map(|row| row.into_iter().map(|figure| figure.text).collect()))
            .collect();
        let widths: Vec<_> = (0..columns.len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default())
            .collect();
        for line in &lines {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }

    /// What the program ends with: a failure when a bound was missed.
    pub(crate) fn end(self) -> ExitCode {
        println!();
        match self.missed {
            0 => ExitCode::SUCCESS,
            missed => {
                println!("{missed} of the bounds missed");
                ExitCode::FAILURE
            }
        }
    }
}

/// The value that so many of a thousand do not exceed.
pub(crate) fn per_mille<T: Copy>(sorted: &[T], share: usize) -> T {
    sorted[(sorted.len() * share).div_ceil(1_000).clamp(1, sorted.len()) - 1]
}
