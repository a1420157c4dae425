//! The figures, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cached::{Cached, threads};
use crate::callers;
use crate::cold::{self, Cold};
use crate::contender::OURS;
use crate::outage::{self, Outage, TROUBLES};
use crate::refresh::{self, Refresh};

/// What a run has measured. What it was not asked for is empty.
#[derive(Default)]
pub struct Results {
    pub cached: Vec<Cached>,
    pub instructions: Vec<(&'static str, f64)>,
    pub refresh: Vec<Refresh>,
    pub outage: Vec<Outage>,
    pub cold: Vec<Cold>,
}

impl Results {
    /// How many times as long as ours each cached call takes, by numbers of threads.
    pub fn ratios(&self, cached: &Cached) -> Vec<f64> {
        let ours = self.cached.iter().find(|cached| cached.name == OURS).unwrap_or(cached);
        cached.nanos.iter().zip(&ours.nanos).map(|(nanos, ours)| nanos / ours).collect()
    }

    fn instructions(&self, name: &str) -> Option<f64> {
        self.instructions.iter().find(|(other, _)| *other == name).map(|(_, instructions)| *instructions)
    }

    /// The cached call.
    pub fn cached_table(&self) -> String {
        let mut head = Vec::new();
        for threads in threads() {
            head.extend([format!("ns, {threads} thr."), format!("x {OURS}")]);
        }
        head.extend(["allocations".to_owned(), "instructions".to_owned()]);
        let row = |cached: &Cached| {
            let mut cells = vec![cached.name.to_owned()];
            for (nanos, ratio) in cached.nanos.iter().zip(self.ratios(cached)) {
                cells.extend([format!("{nanos:.1}"), format!("{ratio:.2}")]);
            }
            cells.push(format!("{:.1}", cached.allocations));
            cells.push(self.instructions(cached.name).map_or("-".to_owned(), |number| format!("{number:.0}")));
            cells
        };
        aligned("cached call, as a ready header: medians", head, self.cached.iter().map(row))
    }

    /// Calls across refreshes.
    pub fn refresh_table(&self) -> String {
        let title = format!(
            "calls across refreshes, {} callers, an endpoint that answers after {}",
            callers::CALLERS,
            span(refresh::ANSWER)
        );
        let head = ["p50", "p99", "p99.9", "longest", "errors", "requests"].map(str::to_owned);
        let row = |refresh: &Refresh| {
            let calls = &refresh.calls;
            let quantiles = [0.5, 0.99, 0.999].map(|share| span(calls.quantile(share)));
            let mut cells = vec![refresh.name.to_owned()];
            cells.extend(quantiles);
            cells.extend([span(calls.longest), calls.errors.to_string(), refresh.requests.to_string()]);
            cells
        };
        aligned(&title, head.to_vec(), self.refresh.iter().map(row))
    }

    /// Calls in an outage.
    pub fn outage_table(&self) -> String {
        let title = format!(
            "{} of an outage with a valid token whose refresh is due, {} callers",
            span(outage::LASTS),
            callers::CALLERS
        );
        let mut head = Vec::new();
        for (trouble, _) in TROUBLES {
            head.extend(["errors", "of calls", "longest", "attempts"].map(|column| format!("{trouble}: {column}")));
        }
        // The outages of one contender follow one another.
        let row = |outages: &[Outage]| {
            let mut cells = vec![outages[0].name.to_owned()];
            for Outage { calls, attempts, .. } in outages {
                let counts = [calls.errors, calls.made].map(|count| count.to_string());
                cells.extend(counts);
                cells.extend([span(calls.longest), attempts.to_string()]);
            }
            cells
        };
        aligned(&title, head, self.outage.chunks(TROUBLES.len()).map(row))
    }

    /// The cold start.
    pub fn cold_table(&self) -> String {
        let (callers, answer) = (cold::CALLERS, span(cold::ANSWER));
        let title = format!("{callers} callers without a token, an endpoint that answers 500 after {answer}");
        let head = ["failed", "requests", "all done after"].map(str::to_owned);
        let row = |cold: &Cold| {
            vec![cold.name.to_owned(), cold.failed.to_string(), cold.requests.to_string(), span(cold.took)]
        };
        aligned(&title, head.to_vec(), self.cold.iter().map(row))
    }

    /// All of it as JSON. Times are in nanoseconds.
    pub fn object(&self) -> Value {
        let cached = self.cached.iter().map(|cached| {
            json!({
                "name": cached.name,
                "ns": cached.nanos,
                "ratio": self.ratios(cached),
                "allocations": cached.allocations,
                "instructions": self.instructions(cached.name),
            })
        });
        let refresh = self.refresh.iter().map(|Refresh { name, calls, requests }| {
            json!({
                "name": name,
                "calls": calls.made,
                "errors": calls.errors,
                "p50_ns": nanos(calls.quantile(0.5)),
                "p99_ns": nanos(calls.quantile(0.99)),
                "p999_ns": nanos(calls.quantile(0.999)),
                "longest_ns": nanos(calls.longest),
                "requests": requests,
            })
        });
        let outage = self.outage.iter().map(|Outage { name, trouble, calls, attempts }| {
            json!({
                "name": name,
                "outage": trouble,
                "calls": calls.made,
                "errors": calls.errors,
                "longest_ns": nanos(calls.longest),
                "attempts": attempts,
            })
        });
        let cold = self.cold.iter().map(|Cold { name, requests, failed, took }| {
            json!({ "name": name, "failed": failed, "requests": requests, "took_ns": nanos(*took) })
        });
        json!({
            "ratios_to": OURS,
            "threads": threads(),
            "cached": cached.collect::<Vec<_>>(),
            "refresh": refresh.collect::<Vec<_>>(),
            "outage": outage.collect::<Vec<_>>(),
            "cold_start": cold.collect::<Vec<_>>(),
        })
    }
}

/// A title, a head over all columns but the first, and rows: the first column on the left, the others on the right.
fn aligned(title: &str, mut head: Vec<String>, rows: impl Iterator<Item = Vec<String>>) -> String {
    head.insert(0, String::new());
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
    let mut text = format!("{title}\n");
    for row in &rows {
        let _ = write!(text, "{:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    }
    text
}

fn span(span: Duration) -> String {
    match span.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds if seconds >= 1e-3 => format!("{:.1} ms", seconds * 1e3),
        seconds if seconds >= 1e-6 => format!("{:.1} us", seconds * 1e6),
        seconds => format!("{:.0} ns", seconds * 1e9),
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
