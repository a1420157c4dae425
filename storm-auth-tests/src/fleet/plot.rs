//! Plots.

use std::error::Error;

use plotters::prelude::*;

use super::Run;
use super::course::COLUMN;
use super::plan::Plan;

/// Points are averages over so many minutes.
const MINUTES: usize = 10;

/// Room for the half of the last label that stands right of the axis, in pixels.
const RIGHT: u32 = 24;

const SENT: RGBColor = RGBColor(213, 94, 0);
const PASSED: RGBColor = RGBColor(0, 114, 178);
const LIMIT: RGBColor = RGBColor(120, 120, 120);

/// One row for each plan: on the left its token requests a minute, and what of them the limiter let pass, against the three that
/// it refills; on the right the share of the processes that have a valid token. All rows have the same scales.
///
/// # Errors
/// What the plotting library says; not known to happen, since it draws into memory.
pub fn svg(rows: &[(&Plan, &Run)]) -> Result<String, Box<dyn Error + Send + Sync>> {
    let rate = |columns: &[u32]| points(columns, |count| f64::from(*count));
    let percent = |run: &Run| points(&run.course.share, |share| share * 100.0);
    let most = rows.iter().flat_map(|(_, run)| rate(&run.course.requests)).fold(6.0, f64::max) * 1.05;
    let least = rows.iter().flat_map(|(_, run)| percent(run)).fold(99.0, f64::min).floor();
    let mut text = String::new();
    {
        let height = 260 * rows.len().max(1) as u32;
        let root = SVGBackend::with_string(&mut text, (1_100, height)).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, (plan, run)) in root.split_evenly((rows.len().max(1), 1)).iter().zip(rows) {
            let (left, right) = area.split_horizontally(550);
            let hours = |column: usize| (column * MINUTES) as f64 * COLUMN as f64 / 3_600_000.0;
            let end = hours(run.course.share.len() / MINUTES).max(0.1);
            let (sent, passed) = (rate(&run.course.requests), rate(&run.course.passed));
            let title = |what: &str| {
                let (name, processes, seconds) = (plan.policy.name(), plan.processes, plan.lifetime.as_secs());
                format!("{name}, {processes} processes, {seconds} s: {what}")
            };

            let mut chart = ChartBuilder::on(&left)
                .caption(title("requests a minute"), ("sans-serif", 15))
                .margin(8)
                .margin_right(RIGHT)
                .x_label_area_size(28)
                .y_label_area_size(40)
                .build_cartesian_2d(0.0..end, 0.0..most)?;
            chart.configure_mesh().x_desc("hours").x_labels(9).y_labels(6).light_line_style(TRANSPARENT).draw()?;
            let line = |points: &[f64]| points.iter().enumerate().map(|(at, y)| (hours(at), *y)).collect::<Vec<_>>();
            chart
                .draw_series(LineSeries::new([(0.0, 3.0), (end, 3.0)], LIMIT))?
                .label("the limiter's pace")
                .legend(key(LIMIT));
            chart.draw_series(LineSeries::new(line(&sent), SENT))?.label("sent").legend(key(SENT));
            chart.draw_series(LineSeries::new(line(&passed), PASSED))?.label("let pass").legend(key(PASSED));
            chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(LIMIT).draw()?;

            let share = percent(run);
            let mut chart = ChartBuilder::on(&right)
                .caption(title("% with a token"), ("sans-serif", 15))
                .margin(8)
                .margin_right(RIGHT)
                .x_label_area_size(28)
                .y_label_area_size(40)
                .build_cartesian_2d(0.0..end, least..100.1)?;
            chart.configure_mesh().x_desc("hours").x_labels(9).y_labels(6).light_line_style(TRANSPARENT).draw()?;
            chart.draw_series(LineSeries::new(line(&share), PASSED))?;
        }
        root.present()?;
    }
    Ok(text)
}

fn points<T>(columns: &[T], value: impl Fn(&T) -> f64) -> Vec<f64> {
    columns.chunks(MINUTES).map(|some| some.iter().map(&value).sum::<f64>() / some.len() as f64).collect()
}

fn key(color: RGBColor) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color)
}
