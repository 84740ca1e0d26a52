//! A plot, drawn at any size.

use plotters::chart::ChartContext;
use plotters::coord::types::RangedCoordf64;
use plotters::coord::Shift;
use plotters::element::{Circle, DynElement, IntoDynElement, PathElement, Polygon, Text};
use plotters::prelude::{
    Cartesian2d, ChartBuilder, DrawingArea, DrawingBackend, IntoDrawingArea, IntoLinspace,
    SVGBackend,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, ShapeStyle, TextStyle};

use super::axis::Axis;
use super::svg::{Role, SERIES, themed};
use crate::cli::Failure;

/// A figure with its spread, already placed on the axes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// The ends of the spread along the axis of values.
    pub(super) spread: Option<[f64; 2]>,
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
    pub(super) label: String,
}

/// A plot.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    pub(super) x: Axis,
    pub(super) y: Axis,
    /// At most [`SERIES`] of them are drawn.
    pub(super) lines: Vec<Line>,
    /// Values along y to compare with.
    pub(super) rules: Vec<Rule>,
    /// Places along x where something else begins.
    pub(super) dividers: Vec<f64>,
    /// Values lie along x, one row below the other with its name above it.
    pub(super) rows: bool,
}

/// How much room a plot has, in units of about one pixel.
#[derive(Debug, Clone, Copy)]
struct Room {
    class: &'static str,
    size: (u32, u32),
    font: f64,
    marker: i32,
}

const WIDE: Room = Room { class: "wide", size: (800, 400), font: 13.0, marker: 4 };
const NARROW: Room = Room { class: "narrow", size: (360, 380), font: 12.0, marker: 4 };

type Plane<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Area<'b> = DrawingArea<SVGBackend<'b>, Shift>;

impl Chart {
    /// The plot for wide and for narrow pages; the style sheet shows one of them.
    pub(super) fn render(&self, name: &str) -> Result<String, Failure> {
        Ok(self.draw(WIDE, name)? + &self.draw(NARROW, name)?)
    }

    fn draw(&self, room: Room, name: &str) -> Result<String, Failure> {
        let (width, mut height) = room.size;
        if self.rows {
            height = 90 + 46 * self.y.ticks.len() as u32;
        }
        let mut drawing = String::new();
        let root = SVGBackend::with_string(&mut drawing, (width, height)).into_drawing_area();
        self.draw_on(&root, room).map_err(|error| format!("a plot: {error}"))?;
        root.present().map_err(|error| format!("a plot: {error}"))?;
        drop(root);
        Ok(themed(&drawing, &format!("plot {}", room.class), Some(name)))
    }

    fn draw_on(&self, root: &Area<'_>, room: Room) -> Result<(), Failure> {
        let text = font(room.font, Role::Text);
        let [x_from, x_to] = self.x.range;
        let [y_from, y_to] = self.y.range;
        // About 0.6 of the font's size for each character of the longest label.
        let longest = |axis: &Axis| {
            axis.ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0) as f64
        };
        let left = if self.rows { 8.0 } else { longest(&self.y) * room.font * 0.6 + 10.0 };
        let title = if self.rows { 6.0 } else { room.font * 2.2 };
        let mut plane = ChartBuilder::on(root)
            .margin_top(title as u32)
            .margin_right(14)
            .margin_left(2)
            .x_label_area_size((room.font * 3.6) as u32)
            .y_label_area_size(left as u32)
            .build_cartesian_2d(x_from..x_to, y_from..y_to)?;
        self.grid(&mut plane, &text, room)?;
        if !self.rows {
            let at = (4, (room.font * 0.3) as i32);
            root.draw(&Text::new(self.y.title.clone(), at, text.clone()))?;
        }
        self.references(&plane, room)?;
        for (n, line) in (0..SERIES).zip(&self.lines) {
            self.series(&plane, n, line, room)?;
        }
        Ok(())
    }

    fn grid(
        &self,
        plane: &mut Plane<'_, '_>,
        text: &TextStyle<'_>,
        room: Room,
    ) -> Result<(), Failure> {
        let [grid, axis] = [Role::Grid, Role::Axis].map(|role| role.color().stroke_width(1));
        let area = plane.plotting_area();
        let (xs, ys) = (self.x.range, self.y.range);
        let line = |from, to, style| area.draw(&PathElement::new(vec![from, to], style));
        // Labels that would run into each other are left out.
        let pixels = area.dim_in_pixel().0 as f64 / (xs[1] - xs[0]);
        let mut free = f64::NEG_INFINITY;
        let pos = Pos::new(HPos::Center, VPos::Top);
        let below = i32::try_from(area.dim_in_pixel().1)? + 6;
        let origin = area.get_pixel_range();
        let root = area.strip_coord_spec();
        for (at, label) in &self.x.ticks {
            line((*at, ys[0]), (*at, ys[1]), grid)?;
            let half = label.chars().count() as f64 * room.font * 0.29;
            let centre = (at - xs[0]) * pixels;
            if centre - half < free {
                continue;
            }
            free = centre + half + 4.0;
            let _ = (&origin, below);
            root.draw(&Text::new(label.clone(), (centre as i32, below), text.pos(pos)))?;
        }
        let _ = axis;
        Ok(())
    }
}
