//! Colours that a style sheet gives: the drawing backend writes a colour for each role, and
//! the roles become classes.

use std::fmt::Write as _;

use plotters::style::RGBColor;

/// What is drawn; the style sheet knows it as a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Labels of axes.
    Text,
    /// The axes.
    Axis,
    /// Lines of the grid.
    Grid,
    /// A value to compare with.
    Rule,
    /// The line of a series.
    Line(u8),
    /// The spread of a series.
    Bar(u8),
    /// The markers of a series.
    Marker(u8),
    /// The spread of an uncertain figure of a series.
    WeakBar(u8),
    /// The marker of an uncertain figure of a series.
    WeakMarker(u8),
}

/// Series that can be told apart: each has a colour, a dash and a marker.
pub(super) const SERIES: u8 = 6;

impl Role {
    fn all() -> impl Iterator<Item = Role> {
        let single = [Role::Text, Role::Axis, Role::Grid, Role::Rule];
        let series = (0..SERIES).flat_map(|n| {
            [Role::Line(n), Role::Bar(n), Role::Marker(n), Role::WeakBar(n), Role::WeakMarker(n)]
        });
        single.into_iter().chain(series)
    }

    /// The colour that stands for it until [`themed`] is through.
    pub(super) fn color(self) -> RGBColor {
        match self {
            Role::Text => RGBColor(1, 0, 0),
            Role::Axis => RGBColor(1, 0, 1),
            Role::Grid => RGBColor(1, 0, 2),
            Role::Rule => RGBColor(1, 0, 3),
            Role::Line(n) => RGBColor(1, 1, n),
            Role::Bar(n) => RGBColor(1, 2, n),
            Role::Marker(n) => RGBColor(1, 3, n),
            Role::WeakBar(n) => RGBColor(1, 4, n),
            Role::WeakMarker(n) => RGBColor(1, 5, n),
        }
    }

    /// Its class, with `s` for strokes and `f` for areas.
    fn class(self, kind: char) -> String {
        match self {
            Role::Text => format!("{kind}-text"),
            Role::Axis => format!("{kind}-axis"),
            Role::Grid => format!("{kind}-grid"),
            Role::Rule => format!("{kind}-rule"),
            Role::Line(n) => format!("{kind}-c{n} dash{n}"),
            Role::Bar(n) => format!("{kind}-c{n} bar"),
            Role::Marker(n) => format!("{kind}-c{n}"),
            Role::WeakBar(n) => format!("{kind}-c{n} bar weak"),
            Role::WeakMarker(n) => format!("{kind}-c{n} weak"),
        }
    }
}

/// Puts classes in place of colours, and a class and a name in place of the size.
///
/// A name makes the drawing an image to those who listen; without one it is decoration.
pub(super) fn themed(drawing: &str, class: &str, name: Option<&str>) -> String {
    let mut text = drawing.replace(" opacity=\"1\"", "").replace(" stroke=\"none\"", "");
    for role in Role::all() {
        let RGBColor(r, g, b) = role.color();
        for (kind, attribute) in [('s', "stroke"), ('f', "fill")] {
            let color = format!("{attribute}=\"#{r:02X}{g:02X}{b:02X}\"");
            text = text.replace(&color, &format!("class=\"{}\"", role.class(kind)));
        }
    }
    let mut attributes = format!("class=\"{class}\"");
    match name {
        Some(name) => {
            let name = maud::html! { (name) }.into_string();
            let _ = write!(attributes, " role=\"img\" aria-label=\"{name}\"");
        }
        None => attributes.push_str(" aria-hidden=\"true\""),
    }
    match text.find("viewBox") {
        Some(begin) => format!("<svg {attributes} {}", &text[begin..]),
        None => text,
    }
}
