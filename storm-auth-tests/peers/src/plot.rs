//! The plot: how many times as long as ours a cached call takes.

use plotters::prelude::*;

use crate::cached::threads;
use crate::contender::{Error, OURS};
use crate::report::Results;

const OURS_COLOR: RGBColor = RGBColor(0, 114, 178);
const PEER_COLOR: RGBColor = RGBColor(213, 94, 0);
const REFERENCE_COLOR: RGBColor = RGBColor(150, 150, 150);

/// Width of a panel, height of a bar, and room for the names and for what stands above and below the bars, in pixels.
const PANEL: u32 = 420;
const BAR: u32 = 26;
const NAMES: u32 = 170;
const AROUND: u32 = 80;

/// A panel for each number of threads, and a bar for each contender. Bars begin at zero, and all panels have one scale.
pub fn svg(results: &Results) -> Result<String, Error> {
    let rows: Vec<_> = results.cached.iter().rev().collect();
    let ratios: Vec<Vec<f64>> = rows.iter().map(|cached| results.ratios(cached)).collect();
    // Room for the figure behind the longest bar.
    let most = ratios.iter().flatten().copied().fold(1.0, f64::max) * 1.1;
    let mut text = String::new();
    {
        let size = (NAMES + PANEL * threads().len() as u32, AROUND + BAR * rows.len() as u32);
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE)?;
        let mut rest = root.clone();
        for (panel, threads) in threads().into_iter().enumerate() {
            let names = if panel == 0 { NAMES } else { 0 };
            let (area, further) = rest.split_horizontally(PANEL + names);
            rest = further;
            let plural = if threads == 1 { "" } else { "s" };
            let mut chart = ChartBuilder::on(&area)
                .caption(format!("cached call, {threads} thread{plural}: times {OURS}"), ("sans-serif", 15))
                .margin(8)
                .x_label_area_size(28)
                .y_label_area_size(names)
                .build_cartesian_2d(0.0..most, (0..rows.len().saturating_sub(1)).into_segmented())?;
            chart
                .configure_mesh()
                .disable_y_mesh()
                .light_line_style(TRANSPARENT)
                .x_labels(6)
                .x_label_formatter(&|ratio| format!("{ratio:.0}"))
                .y_labels(rows.len())
                .y_label_formatter(&|at| match at {
                    SegmentValue::CenterOf(at) => rows.get(*at).map_or("", |row| row.name).to_owned(),
                    _ => String::new(),
                })
                .draw()?;
            chart.draw_series(rows.iter().zip(&ratios).enumerate().map(|(at, (row, ratios))| {
                let corners = [(0.0, SegmentValue::Exact(at)), (ratios[panel], SegmentValue::Exact(at + 1))];
                let mut bar = Rectangle::new(corners, color(row.name).filled());
                bar.set_margin(4, 4, 0, 0);
                bar
            }))?;
            chart.draw_series(ratios.iter().enumerate().map(|(at, ratios)| {
                let place = (ratios[panel], SegmentValue::CenterOf(at));
                EmptyElement::at(place) + Text::new(format!("{:.2}", ratios[panel]), (5, -6), ("sans-serif", 12))
            }))?;
        }
        root.present()?;
    }
    Ok(text)
}

fn color(name: &str) -> RGBColor {
    match name {
        _ if name.starts_with("storm-auth") => OURS_COLOR,
        _ if name.starts_with("ref:") => REFERENCE_COLOR,
        _ => PEER_COLOR,
    }
}
