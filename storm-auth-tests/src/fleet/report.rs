//! Figures for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::course::Figures;
use super::plan::Plan;

/// The figures of a plan as one JSON object.
pub fn object(plan: &Plan, figures: &Figures) -> Value {
    json!({
        "policy": plan.policy.name(),
        "store": if plan.shares() { "shared" } else { "none" },
        "processes": plan.processes,
        "ttl_s": plan.lifetime.as_secs(),
        "hours": figures.measured as f64 / 3_600_000.0,
        "seeds": figures.seeds,
        "without_token_percent": figures.without_token_percent(),
        "longest_without_s": figures.longest_without as f64 / 1_000.0,
        "rejects_per_hour": figures.rejects_per_hour(),
        "token_requests": figures.token_requests,
        "rejects": figures.rejects,
        "issued": figures.issued,
        "expired_handed_out": figures.expired_handed_out,
        "last_served_after_s": figures.last_served_after_s(),
        "longest_start_s": figures.longest_start as f64 / 1_000.0,
    })
}

/// The figures of several plans, which differ in their policy, as a table.
pub fn table(rows: &[(&Plan, &Figures)]) -> String {
    let mut text = format!(
        "{:<11} {:>9} {:>8} {:>12} {:>10} {:>8} {:>12} {:>12}\n",
        "policy", "without", "longest", "rejects", "requests", "expired", "last served", "longest"
    );
    text.push_str(&format!(
        "{:<11} {:>9} {:>8} {:>12} {:>10} {:>8} {:>12} {:>12}\n",
        "", "a token", "so", "an hour", "an hour", "given", "after", "start"
    ));
    for (plan, figures) in rows {
        let hours = figures.measured as f64 / 3_600_000.0;
        let last = figures.last_served_after_s().map_or("never".to_owned(), |after| format!("{after:.0} s"));
        let _ = writeln!(
            text,
            "{:<11} {:>7.3} % {:>6.0} s {:>12.1} {:>10.1} {:>8} {:>12} {:>10.0} s",
            plan.policy.name(),
            figures.without_token_percent(),
            figures.longest_without as f64 / 1_000.0,
            figures.rejects_per_hour(),
            figures.token_requests as f64 / hours.max(f64::MIN_POSITIVE),
            figures.expired_handed_out,
            last,
            figures.longest_start as f64 / 1_000.0,
        );
    }
    let (shared, alone): (Vec<&Plan>, Vec<&Plan>) = rows.iter().map(|(plan, _)| *plan).partition(|plan| plan.shares());
    if alone.iter().any(|plan| plan.store.is_some()) {
        let names = |plans: &[&Plan]| plans.iter().map(|plan| plan.policy.name()).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "the store is that of {}: {} have none", names(&shared), names(&alone));
    }
    text
}
