//! Charts, written as SVG.

mod svg;

use std::path::Path;

use anyhow::{Context, Result};

/// Width and height of a line chart.
const SIZE: (f32, f32) = (1000.0, 600.0);
/// Margins for the axis on the left, the title on top, the names on the right, the axis at the bottom.
const MARGINS: (f32, f32, f32, f32) = (80.0, 64.0, 260.0, 60.0);
/// Colours that people with colour blindness can tell apart (Okabe and Ito).
const COLOURS: [[u8; 3]; 7] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [166, 118, 0],
    [40, 150, 210],
    [0, 0, 0],
];
const LIGHT: [u8; 3] = [236, 236, 236];
const GREY: [u8; 3] = [200, 200, 200];
const BLACK: [u8; 3] = [0, 0, 0];
const WHITE: [u8; 3] = [255, 255, 255];
/// Width of a letter.
const LETTER: f32 = 7.0;

/// A shape, in pixels from the upper left.
enum Shape {
    Line {
        points: Vec<(f32, f32)>,
        colour: [u8; 3],
        width: f32,
    },
    Dot {
        at: (f32, f32),
        radius: f32,
        colour: [u8; 3],
    },
    Box {
        at: (f32, f32),
        size: (f32, f32),
        colour: [u8; 3],
    },
    Text(Text),
}

struct Text {
    at: (f32, f32),
    text: String,
    anchor: Anchor,
    colour: [u8; 3],
    is_bold: bool,
}

/// The part of a text that is at its position.
#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

/// Shapes on a white background.
pub struct Drawing {
    size: (f32, f32),
    shapes: Vec<Shape>,
}

/// A series of points in a chart, with labels beside some of them.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// True if the points are measurements, drawn as dots without lines.
    pub is_loose: bool,
    /// The label of each point; empty for none.
    pub labels: Vec<String>,
}

/// A chart with two logarithmic axes.
pub struct LogChart {
    pub title: String,
    pub x: String,
    pub y: String,
    /// The labels of the first axis's values, ascending, if they differ from the values.
    pub names: Vec<String>,
    pub series: Vec<Series>,
}

/// Names with two ratios each: with half and with twice a number.
pub struct Ranges {
    pub title: String,
    pub rows: Vec<(String, [f64; 2])>,
}

impl LogChart {
    /// Draws the chart.
    pub fn draw(&self) -> Drawing {
        let mut drawing = Drawing::of(SIZE);
        let all = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::around(all().map(|point| point.0), MARGINS.0, SIZE.0 - MARGINS.2);
        let y = Axis::around(all().map(|point| point.1), SIZE.1 - MARGINS.3, MARGINS.1);
        drawing.bold((MARGINS.0, 28.0), &self.title);
        drawing.text(
            ((x.start + x.end) / 2.0, SIZE.1 - 14.0),
            &self.x,
            Anchor::Middle,
        );
        drawing.text((MARGINS.0, MARGINS.1 - 10.0), &self.y, Anchor::Start);
        for value in y.minor_ticks() {
            let at = y.at(value);
            drawing.line(vec![(x.start, at), (x.end, at)], LIGHT, 1.0);
        }
        let values: Vec<_> = all().map(|point| point.0).collect();
        for (index, value) in x.ticks_at(&values).into_iter().enumerate() {
            let at = x.at(value);
            let name = self.names.get(index).cloned();
            let name = name.unwrap_or_else(|| number(value));
            drawing.line(vec![(at, y.start), (at, y.end)], LIGHT, 1.0);
            drawing.text((at, y.start + 20.0), &name, Anchor::Middle);
        }
        for value in y.ticks() {
            let at = y.at(value);
            drawing.line(vec![(x.start, at), (x.end, at)], GREY, 1.0);
            drawing.text((x.start - 8.0, at + 4.0), &number(value), Anchor::End);
        }
        for (index, series) in self.series.iter().enumerate() {
            let name_at = (
                SIZE.0 - MARGINS.2 + 24.0,
                MARGINS.1 + 24.0 * index as f32 + 10.0,
            );
            let at = |point: &(f64, f64)| (x.at(point.0), y.at(point.1));
            let points: Vec<_> = series.points.iter().map(at).collect();
            drawing.series(index, series, &points);
            drawing.series(
                index,
                series,
                &[(name_at.0 - 10.0, name_at.1), (name_at.0 + 10.0, name_at.1)],
            );
            let name_at = (name_at.0 + 20.0, name_at.1 + 4.0);
            drawing.text(name_at, &series.name, Anchor::Start);
        }
        // Drawn over everything else.
        for (index, series) in self.series.iter().enumerate() {
            let points: Vec<_> = series
                .points
                .iter()
                .map(|p| (x.at(p.0), y.at(p.1)))
                .collect();
            for (number, label) in series.labels.iter().enumerate() {
                let Some(at) = points.get(number).filter(|_| !label.is_empty()) else {
                    continue;
                };
                // The label is to the right, on the side of the line where the line does not go.
                let next = points
                    .get(number + 1)
                    .or(points.get(number.wrapping_sub(1)));
                let falls = next.is_none_or(|next| (next.1 > at.1) == (next.0 > at.0));
                let down = if falls { -8.0 } else { 20.0 };
                drawing.label(
                    (at.0 + 9.0, at.1 + down),
                    label,
                    COLOURS[index % COLOURS.len()],
                );
            }
        }
        drawing
    }
}

impl Ranges {
    /// Draws the rows: from 1 to the first ratio in one colour, from 1 to the second in another.
    pub fn draw(&self) -> Drawing {
        const ROW: f32 = 22.0;
        const NAMES: f32 = 400.0;
        const TOP: f32 = 74.0;
        let bottom = TOP + ROW * self.rows.len() as f32;
        let mut drawing = Drawing::of((SIZE.0, bottom + 44.0));
        let values = || self.rows.iter().flat_map(|(_, range)| range).copied();
        let x = Axis::around(values().chain([0.5, 2.0]), NAMES + 20.0, SIZE.0 - 50.0);
        drawing.bold((20.0, 28.0), &self.title);
        for (at, text, colour) in [
            (20.0, "number halved", COLOURS[0]),
            (170.0, "number doubled", COLOURS[1]),
        ] {
            drawing.shapes.push(Shape::Box {
                at: (at, 43.0),
                size: (12.0, 12.0),
                colour,
            });
            drawing.text((at + 18.0, 54.0), text, Anchor::Start);
        }
        for value in [0.5, 0.7, 1.0, 1.4, 2.0] {
            let at = x.at(value);
            let colour = if value == 1.0 { BLACK } else { GREY };
            drawing.line(vec![(at, TOP), (at, bottom)], colour, 1.0);
            drawing.text((at, bottom + 20.0), &value.to_string(), Anchor::Middle);
        }
        for (index, (name, ratios)) in self.rows.iter().enumerate() {
            let top = TOP + ROW * index as f32;
            for (ratio, colour) in ratios.iter().zip(COLOURS) {
                let (from, to) = (x.at(ratio.min(1.0)), x.at(ratio.max(1.0)));
                drawing.shapes.push(Shape::Box {
                    at: (from, top + ROW * 0.2),
                    size: ((to - from).max(1.0), ROW * 0.6),
                    colour,
                });
                let (at, anchor) = if *ratio < 1.0 {
                    (from - 5.0, Anchor::End)
                } else {
                    (to + 5.0, Anchor::Start)
                };
                if (ratio - 1.0).abs() > 0.005 {
                    drawing.text((at, top + ROW / 2.0 + 4.0), &format!("{ratio:.2}"), anchor);
                }
            }
            drawing.text((NAMES - 20.0, top + ROW / 2.0 + 4.0), name, Anchor::End);
        }
        drawing
    }
}

/// A logarithmic axis between two pixels.
struct Axis {
    low: f64,
    high: f64,
    start: f32,
    end: f32,
}

impl Axis {
    /// Creates an axis that contains all values.
    fn around(values: impl Iterator<Item = f64> + Clone, start: f32, end: f32) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min).max(1e-9);
        let high = values.fold(low, f64::max);
        Self {
            low: low / 1.2,
            high: high * 1.2,
            start,
            end,
        }
    }

    fn at(&self, value: f64) -> f32 {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        self.start + share as f32 * (self.end - self.start)
    }

    /// Returns the values that there is room for.
    fn ticks_at(&self, values: &[f64]) -> Vec<f64> {
        const ROOM: f32 = 34.0;
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let mut ticks: Vec<f64> = Vec::new();
        for value in values {
            let last = ticks
                .last()
                .map_or(f32::NEG_INFINITY, |last| self.at(*last));
            if self.at(value) - last >= ROOM {
                ticks.push(value);
            }
        }
        ticks
    }

    fn minor_ticks(&self) -> Vec<f64> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let ticks =
            decades.flat_map(|decade| (1..10).map(move |n| f64::from(n) * 10f64.powi(decade)));
        ticks
            .filter(|tick| (self.low..=self.high).contains(tick))
            .collect()
    }

    fn ticks(&self) -> Vec<f64> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let ticks = decades.flat_map(|decade| [1.0, 3.0].map(|step| step * 10f64.powi(decade)));
        ticks
            .filter(|tick| (self.low..=self.high).contains(tick))
            .collect()
    }
}

fn number(value: f64) -> String {
    let digits = (-value.log10().floor()).max(0.0) as usize;
    format!("{value:.digits$}")
}

impl Drawing {
    const fn of(size: (f32, f32)) -> Self {
        Self {
            size,
            shapes: Vec::new(),
        }
    }

    fn text(&mut self, at: (f32, f32), text: &str, anchor: Anchor) {
        self.shapes.push(Shape::Text(Text {
            at,
            text: text.to_owned(),
            anchor,
            colour: BLACK,
            is_bold: false,
        }));
    }

    fn bold(&mut self, at: (f32, f32), text: &str) {
        self.shapes.push(Shape::Text(Text {
            at,
            text: text.to_owned(),
            anchor: Anchor::Start,
            colour: BLACK,
            is_bold: true,
        }));
    }

    /// Draws a word on white, in the colour of its series.
    fn label(&mut self, (x, y): (f32, f32), text: &str, colour: [u8; 3]) {
        self.shapes.push(Shape::Box {
            at: (x - 2.0, y - 11.0),
            size: (text.chars().count() as f32 * LETTER + 4.0, 14.0),
            colour: WHITE,
        });
        self.shapes.push(Shape::Text(Text {
            at: (x, y),
            text: text.to_owned(),
            anchor: Anchor::Start,
            colour,
            is_bold: false,
        }));
    }

    fn line(&mut self, points: Vec<(f32, f32)>, colour: [u8; 3], width: f32) {
        self.shapes.push(Shape::Line {
            points,
            colour,
            width,
        });
    }

    /// Draws points, with lines between them unless the series is loose. Every other series has rings, so that two
    /// nearly equal series are both visible.
    fn series(&mut self, index: usize, series: &Series, points: &[(f32, f32)]) {
        let colour = COLOURS[index % COLOURS.len()];
        let is_ring = index % 2 == 1;
        if !series.is_loose {
            self.line(points.to_vec(), colour, if is_ring { 1.5 } else { 2.5 });
        }
        for at in points.iter().copied() {
            let radius = if series.is_loose { 2.5 } else { 4.0 };
            if is_ring {
                self.shapes.push(Shape::Dot {
                    at,
                    radius: 5.5,
                    colour,
                });
                self.shapes.push(Shape::Dot {
                    at,
                    radius: 4.0,
                    colour: WHITE,
                });
            } else {
                self.shapes.push(Shape::Dot { at, radius, colour });
            }
        }
    }

    /// Writes the drawing as `name.svg`.
    pub fn write(&self, folder: &Path, name: &str) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        let file = folder.join(format!("{name}.svg"));
        std::fs::write(&file, svg::write(self))
            .with_context(|| format!("can't write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_is_drawn_as_svg() {
        let chart = LogChart {
            title: "t < u".into(),
            x: "x".into(),
            y: "y".into(),
            names: Vec::new(),
            series: vec![Series {
                name: "s".into(),
                points: vec![(1.0, 0.01), (100.0, 5000.0)],
                is_loose: false,
                labels: vec!["a".into(), String::new()],
            }],
        };
        let svg = svg::write(&chart.draw());
        assert!(svg.starts_with("<svg") && svg.contains("t &lt; u") && svg.contains("<polyline"));
    }

    #[test]
    fn ticks_are_ones_and_threes() {
        let axis = Axis::around([0.05, 40.0].into_iter(), 0.0, 100.0);
        let ticks: Vec<_> = axis.ticks().into_iter().map(number).collect();
        assert_eq!(ticks, ["0.1", "0.3", "1", "3", "10", "30"]);
        assert_eq!(
            [0.01, 0.3, 1.0, 3000.0].map(number),
            ["0.01", "0.3", "1", "3000"]
        );
    }
}
