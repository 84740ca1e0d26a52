//! The plot of throughput as a drawing of its own, for documents that take no page.

use maud::{PreEscaped, html};

use super::chart::{rule_swatch, swatch};
use super::figures;
use super::page::{STYLE, command};
use super::svg::SERIES;
use crate::bench::BenchError;
use crate::bench::results::Results;

/// Width of the drawing, in units of about one pixel.
const WIDTH: i32 = 800;
/// Where the legend begins, and the height of one line of it.
const LEGEND: (i32, i32) = (42, 22);
/// Width of a sign with the gaps around it, and of a character at most.
const SIGN: i32 = 58;
const CHARACTER: i32 = 8;

/// Makes an SVG drawing of throughput over segment size. It follows the reader's preference
/// for light or dark, needs nothing else, and names the device and the command.
///
/// # Errors
///
/// Fails when there are no transfers to be drawn.
pub fn plot(results: &Results) -> Result<String, BenchError> {
    let figure = figures::measured(results).into_iter().find(|figure| figure.id == "throughput");
    let (title, chart) =
        figure.and_then(|f| Some((f.title, f.chart?))).ok_or(BenchError::NothingToPlot)?;
    let (size, drawing) = chart.alone()?;

    let mut signs = Vec::new();
    for (series, line) in (0..SERIES).zip(&chart.lines) {
        signs.push((swatch(series)?, &line.name));
    }
    for rule in &chart.rules {
        signs.push((rule_swatch()?, &rule.name));
    }
    let (mut x, mut y) = (8, LEGEND.0);
    let mut legend = Vec::new();
    for (sign, name) in signs {
        let width = SIGN + CHARACTER * i32::try_from(name.chars().count())?;
        if x > 8 && x + width > WIDTH {
            (x, y) = (8, y + LEGEND.1);
        }
        legend.push((x, y, sign, name));
        x += width;
    }
    let top = y + LEGEND.1 + 4;
    let height = top + size.1 + 26;
    let device = &results.setup.device;
    let title = format!("{title}: {} at {}", device.driver, device.location);
    let markup = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (WIDTH) " " (height) }
            width=(WIDTH) height=(height) role="img" aria-label=(title)
        {
            style {
                (PreEscaped(STYLE))
                "text { font: 13px system-ui, -apple-system, \"Segoe UI\", sans-serif; }"
                ".title { font-size: 16px; font-weight: 600; fill: var(--text); }"
                ".sign { fill: var(--text); } .sheet { fill: var(--page); }"
            }
            rect class="sheet" width=(WIDTH) height=(height) {}
            text class="title" x="8" y="24" { (title) }
            @for (x, y, sign, name) in &legend {
                g transform={ "translate(" (x) " " (y) ")" } { (PreEscaped(content(sign))) }
                text class="sign" x=(x + 40) y=(y + 12) { (name) }
            }
            g transform={ "translate(0 " (top) ")" } { (PreEscaped(content(&drawing))) }
            text class="f-text" x="8" y=(height - 8) { "vfio-dma " (command(&results.setup)) }
        }
    };
    Ok(markup.into_string() + "\n")
}

/// What is inside of a drawing's element.
fn content(drawing: &str) -> &str {
    let inner = drawing.split_once('>').map_or(drawing, |(_, inner)| inner).trim_end();
    inner.strip_suffix("</svg>").unwrap_or(inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fixture;
    use crate::bench::units::bytes;

    #[test]
    fn the_drawing_stands_alone_and_names_what_it_shows() {
        let results = fixture::results();
        let text = plot(&results).unwrap();
        let drawing = roxmltree::Document::parse(&text).unwrap();
        let texts: Vec<&str> = drawing.descendants().filter_map(|node| node.text()).collect();
        let line = format!("{} transfer", bytes(results.cells[0].transfer));
        for part in [&line, &results.setup.device.location, &"contig.".into()] {
            assert!(texts.iter().any(|text| text.contains(part)), "{part}: {texts:?}");
        }
        assert_eq!(text.matches("http").count(), 1, "nothing but the name space");
        assert!(drawing.root_element().attribute("viewBox").is_some());
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let mut results = fixture::results();
        results.cells.clear();
        results.memcpy.clear();
        assert!(plot(&results).unwrap_err().to_string().contains("no transfer"));
    }
}
