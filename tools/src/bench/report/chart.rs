//! A plot, drawn at any size.

use crate::bench::BenchError;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::element::{Circle, PathElement, Polygon, Text};
use plotters::prelude::{Cartesian2d, DrawingArea, IntoDrawingArea as _, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, IntoFont as _, TextStyle};

use super::axis::Axis;
use super::svg::{Role, SERIES, themed};

/// A figure with its spread.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    /// Where it stands on the axis of what is varied.
    pub(super) at: f64,
    pub(super) value: f64,
    /// The ends of its spread.
    pub(super) spread: Option<[f64; 2]>,
    /// Whether it has a marker; where points are dense, a few are enough.
    pub(super) marked: bool,
    /// Whether it is too uncertain to mean much: it is drawn weakly.
    pub(super) weak: bool,
}

/// Figures that belong together.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) name: String,
    /// Points of one piece are joined by a line.
    pub(super) pieces: Vec<Vec<Point>>,
}

/// A value to compare with.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) value: f64,
    pub(super) name: String,
}

/// A plot.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    /// What is varied.
    pub(super) varied: Axis,
    /// What was found.
    pub(super) values: Axis,
    /// The first [`SERIES`] of them are drawn.
    pub(super) lines: Vec<Line>,
    pub(super) rules: Vec<Rule>,
    /// Whether what is varied goes down the page, each with its name above it, and values go
    /// to the right; otherwise values go up.
    pub(super) rows: bool,
}

/// How much room a plot has, in units of about one pixel.
#[derive(Debug, Clone, Copy)]
struct Room {
    class: &'static str,
    size: (i32, i32),
    font: f64,
}

const WIDE: Room = Room { class: "wide", size: (800, 400), font: 13.0 };
const NARROW: Room = Room { class: "narrow", size: (360, 360), font: 12.0 };
/// The height of a row.
const ROW: i32 = 48;
/// Half the size of a marker.
const MARKER: i32 = 4;

type Area<'b> = DrawingArea<SVGBackend<'b>, Shift>;
type Pixel = (i32, i32);

impl Chart {
    /// The plot for wide and for narrow pages; the style sheet shows one of them.
    pub(super) fn render(&self, name: &str) -> Result<String, BenchError> {
        Ok(self.draw(WIDE, name)? + &self.draw(NARROW, name)?)
    }

    /// The plot at its widest and its size, without a class that a style sheet may hide.
    pub(super) fn alone(&self) -> Result<(Pixel, String), BenchError> {
        let room = self.sized(WIDE)?;
        let drawing = draw(room.size, |root| Plot::new(self, root, room).draw())?;
        Ok((room.size, themed(&drawing, "plot", None)))
    }

    fn sized(&self, mut room: Room) -> Result<Room, BenchError> {
        if self.rows {
            room.size.1 = 60 + ROW * i32::try_from(self.varied.ticks.len())?;
        }
        Ok(room)
    }

    fn draw(&self, room: Room, name: &str) -> Result<String, BenchError> {
        let room = self.sized(room)?;
        let drawing = draw(room.size, |root| Plot::new(self, root, room).draw())?;
        Ok(themed(&drawing, &format!("plot {}", room.class), Some(name)))
    }
}

/// The sign of a series, for a legend.
pub(super) fn swatch(series: u8) -> Result<String, BenchError> {
    let drawing = draw((34, 14), |root| {
        path(root, &[(1, 7), (33, 7)], Role::Line(series), 2)?;
        marker(root, series, (17, 7), false)
    })?;
    Ok(themed(&drawing, "swatch", None))
}

/// The sign of a rule, for a legend.
pub(super) fn rule_swatch() -> Result<String, BenchError> {
    let drawing = draw((34, 14), |root| path(root, &[(1, 7), (33, 7)], Role::Rule, 2))?;
    Ok(themed(&drawing, "swatch", None))
}

fn draw(
    (width, height): Pixel,
    draw: impl FnOnce(&Area<'_>) -> Result<(), BenchError>,
) -> Result<String, BenchError> {
    let size = (u32::try_from(width)?, u32::try_from(height)?);
    let mut drawing = String::new();
    let root = SVGBackend::with_string(&mut drawing, size).into_drawing_area();
    draw(&root)?;
    root.present().map_err(|error| BenchError::drawing("a plot", error))?;
    drop(root);
    Ok(drawing)
}

struct Plot<'a, 'b> {
    chart: &'a Chart,
    root: &'a Area<'b>,
    room: Room,
    /// Places to pixels.
    plane: DrawingArea<SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
}

impl<'a, 'b> Plot<'a, 'b> {
    fn new(chart: &'a Chart, root: &'a Area<'b>, room: Room) -> Self {
        let labels = chart.values.ticks.iter().map(|(_, label)| label.chars().count());
        let widest = labels.max().unwrap_or(0) as f64 * room.font * 0.58;
        let (width, height) = room.size;
        let left = if chart.rows { 12 } else { widest as i32 + 14 };
        // Half of the last label stands beyond the end of the axis.
        let across = if chart.rows { &chart.values.ticks } else { &chart.varied.ticks };
        let last = across.last().map_or(0, |(_, label)| half_width(label, room));
        let (right, bottom) = (width - last.max(10) - 2, height - (room.font * 3.4) as i32);
        let top = if chart.rows { 4 } else { (room.font * 2.0) as i32 };
        let [from, to] = chart.varied.range;
        let [low, high] = chart.values.range;
        let plane = if chart.rows {
            Cartesian2d::new(low..high, from..to, (left..right, top..bottom))
        } else {
            // Pixels go down, values go up.
            Cartesian2d::new(from..to, low..high, (left..right, bottom..top))
        };
        let plane = root.apply_coord_spec(plane);
        Plot { chart, root, room, plane, left, right, top, bottom }
    }

    /// Where a value is drawn.
    fn pixel(&self, at: f64, value: f64) -> Pixel {
        let value = self.chart.values.place(value);
        self.plane.map_coordinate(&if self.chart.rows { (value, at) } else { (at, value) })
    }

    fn draw(&self) -> Result<(), BenchError> {
        self.grid()?;
        for rule in &self.chart.rules {
            let [from, to] = self.chart.varied.range.map(|at| self.pixel(at, rule.value));
            path(self.root, &[from, to], Role::Rule, 2)?;
        }
        for (series, line) in (0..SERIES).zip(&self.chart.lines) {
            self.line(series, line)?;
        }
        Ok(())
    }

    /// The grid with the labels of both axes, from the pixels of their ticks.
    fn grid(&self) -> Result<(), BenchError> {
        let (varied, values) = (&self.chart.varied, &self.chart.values);
        let value_pixel = |place: f64| {
            let from = varied.range[0];
            self.plane.map_coordinate(&if self.chart.rows { (place, from) } else { (from, place) })
        };
        let first = values.range[0];
        let varied_pixel = |at: f64| {
            self.plane.map_coordinate(&if self.chart.rows { (first, at) } else { (at, first) })
        };
        let (across, title) = if self.chart.rows {
            for (at, label) in &varied.ticks {
                let y = varied_pixel(*at).1;
                path(self.root, &[(self.left, y), (self.right, y)], Role::Grid, 1)?;
                let above = y - ROW / 2;
                self.text(label, (self.left, above), HPos::Left, VPos::Top)?;
            }
            let ticks = values.ticks.iter();
            let across: Vec<_> = ticks.map(|(at, label)| (value_pixel(*at).0, label)).collect();
            (across, &values.title)
        } else {
            for (at, label) in &values.ticks {
                let y = value_pixel(*at).1;
                path(self.root, &[(self.left, y), (self.right, y)], Role::Grid, 1)?;
                self.text(label, (self.left - 7, y), HPos::Right, VPos::Center)?;
            }
            self.text(&values.title, (2, 2), HPos::Left, VPos::Top)?;
            let ticks = varied.ticks.iter();
            let across: Vec<_> = ticks.map(|(at, label)| (varied_pixel(*at).0, label)).collect();
            (across, &varied.title)
        };
        // A label that would run into the one before it is left out.
        let mut free = i32::MIN;
        for (x, label) in across {
            let (from, role) = if self.chart.rows {
                (self.top, Role::Grid)
            } else {
                (self.bottom - 5, Role::Axis)
            };
            path(self.root, &[(x, from), (x, self.bottom)], role, 1)?;
            let half = half_width(label, self.room);
            if x - half >= free {
                free = x + half + 6;
                self.text(label, (x, self.bottom + 5), HPos::Center, VPos::Top)?;
            }
        }
        let (left, bottom) = (self.left, self.bottom);
        path(self.root, &[(left, bottom), (self.right, bottom)], Role::Axis, 1)?;
        let below = bottom + (self.room.font * 1.9) as i32;
        self.text(title, ((left + self.right) / 2, below), HPos::Center, VPos::Top)
    }

    fn line(&self, series: u8, line: &Line) -> Result<(), BenchError> {
        for piece in &line.pieces {
            let pixels: Vec<Pixel> = piece.iter().map(|p| self.pixel(p.at, p.value)).collect();
            if pixels.len() > 1 {
                path(self.root, &pixels, Role::Line(series), 2)?;
            }
            for (point, &pixel) in piece.iter().zip(&pixels) {
                if let Some(ends) = point.spread {
                    let ends = ends.map(|end| self.pixel(point.at, end));
                    self.spread(series, ends, point.weak)?;
                }
                if point.marked {
                    marker(self.root, series, pixel, point.weak)?;
                }
            }
        }
        Ok(())
    }

    /// A bar with its ends.
    fn spread(&self, series: u8, [low, high]: [Pixel; 2], weak: bool) -> Result<(), BenchError> {
        let role = if weak { Role::WeakBar(series) } else { Role::Bar(series) };
        let (x, y) = if self.chart.rows { (0, 3) } else { (3, 0) };
        let end = |(px, py): Pixel| [(px - x, py - y), (px + x, py + y)];
        [[low, high], end(low), end(high)]
            .into_iter()
            .try_for_each(|bar| path(self.root, &bar, role, 1))
    }

    fn text(&self, text: &str, at: Pixel, h: HPos, v: VPos) -> Result<(), BenchError> {
        // The backend divides the size by 1.24, the proportion of a box to its font.
        let font = ("sans-serif", self.room.font * 1.24).into_font();
        let color = Role::Text.color();
        let style = TextStyle::from(font).color(&color).pos(Pos::new(h, v));
        let drawn = self.root.draw(&Text::new(text, at, style));
        drawn.map_err(|error| BenchError::drawing("a label", error))
    }
}

/// Half of what a label takes, about.
fn half_width(label: &str, room: Room) -> i32 {
    // A per cent sign is as wide as two other characters.
    let characters = label.chars().count() + label.matches('%').count();
    (characters as f64 * room.font * 0.29) as i32
}

fn path(root: &Area<'_>, pixels: &[Pixel], role: Role, width: u32) -> Result<(), BenchError> {
    let element = PathElement::new(pixels.to_vec(), role.color().stroke_width(width));
    root.draw(&element).map_err(|error| BenchError::drawing("a line", error))
}

/// The marker of a series: each has its own shape.
fn marker(root: &Area<'_>, series: u8, (x, y): Pixel, weak: bool) -> Result<(), BenchError> {
    let role = if weak { Role::WeakMarker(series) } else { Role::Marker(series) };
    let style = role.color().filled();
    let m = MARKER;
    let corners: &[Pixel] = match series % SERIES {
        0 => {
            let drawn = root.draw(&Circle::new((x, y), m, style));
            return drawn.map_err(|error| BenchError::drawing("a marker", error));
        }
        1 => &[(-m, -m), (m, -m), (m, m), (-m, m)],
        2 => &[(0, -m - 1), (m + 1, m), (-m - 1, m)],
        3 => &[(0, -m - 2), (m + 2, 0), (0, m + 2), (-m - 2, 0)],
        4 => &[(0, m + 1), (m + 1, -m), (-m - 1, -m)],
        _ => &[(-m, -2), (m, -2), (m, 2), (-m, 2)],
    };
    let corners: Vec<Pixel> = corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
    let drawn = root.draw(&Polygon::new(corners, style));
    drawn.map_err(|error| BenchError::drawing("a marker", error))
}
