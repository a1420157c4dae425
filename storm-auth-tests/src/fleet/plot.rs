//! Plots.

use super::Run;
use super::plan::Plan;

/// One row of two plots for each plan.
pub fn svg(_rows: &[(&Plan, &Run)]) -> String {
    String::new()
}
