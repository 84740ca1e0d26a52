//! The page around the figures.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{rule_swatch, swatch};
use super::figures::{Figure, measured};
use super::link::calculated;
use super::svg::SERIES;
use crate::bench::BenchError;
use crate::bench::results::{Results, Setup};
use crate::bench::table::conditions;
use crate::bench::units::{bytes, nanoseconds};
use crate::bench::verdict::verdict;

/// Colours for light and dark, and the looks of every element.
pub(super) const STYLE: &str = include_str!("style.css");

/// Tables of at most so many rows are unfolded.
const UNFOLDED: usize = 14;

/// Makes the page: HTML that is well-formed XML as well, with nothing to load.
///
/// # Errors
///
/// Fails when a plot cannot be drawn.
pub fn page(results: &Results) -> Result<String, BenchError> {
    let Setup { device, .. } = &results.setup;
    let title = format!("{} {}: contiguous against scatter/gather", device.driver, device.location);
    let measured = measured(results);
    let calculated = calculated(results);
    let rendered = |figures: &[Figure]| -> Result<Vec<Markup>, BenchError> {
        figures.iter().map(figure).collect()
    };
    let (shown, predicted) = (rendered(&measured)?, rendered(&calculated)?);
    Ok(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                // Closed, so that the page is well-formed XML.
                (PreEscaped("<meta charset=\"utf-8\"/>"))
                (PreEscaped(
                    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>"
                ))
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    @if let Some(answer) = verdict(results) {
                        p { strong { (answer) } }
                    }
                    p.lead { code { "vfio-dma " (command(&results.setup)) } }
                    (notes(results))
                    (setup(results))
                    nav aria-label="Figures" {
                        ul {
                            @for figure in measured.iter().chain(&calculated) {
                                li {
                                    a href={ "#" (figure.id) } { (figure.title) }
                                    @if figure.calculated { span.muted { " (calculated)" } }
                                }
                            }
                        }
                    }
                }
                main {
                    section {
                        h2 { "Measured" }
                        @if shown.is_empty() {
                            p { "Nothing was measured." }
                        } @else {
                            p.muted {
                                "In the tables, ! marks figures whose middle half of the rounds \
                                 spans more than a quarter of the median, and ~ ratios whose \
                                 middle half has 1 in it or is so wide: they decide nothing."
                            }
                        }
                        @for figure in &shown { (figure) }
                    }
                    @if !predicted.is_empty() {
                        section {
                            h2 { "Calculated, not measured" }
                            p.muted {
                                "What a PCI Express link would make of it, by counting packets. \
                                 An estimate, not a bound: measured reads exceed it by up to 4%, \
                                 and it leaves out latency and stalls."
                            }
                            @for figure in &predicted { (figure) }
                        }
                    }
                }
                footer.muted {
                    p { "vfio-dma " (results.setup.version) ", results schema " (results.schema) }
                }
            }
        }
    }
    .into_string())
}

/// The arguments as a shell takes them.
pub(super) fn command(setup: &Setup) -> String {
    let arguments = setup.command.iter().map(String::as_str);
    // An argument with a zero byte never came from a command line.
    shlex::try_join(arguments).unwrap_or_else(|_| setup.command.join(" "))
}

fn notes(results: &Results) -> Markup {
    html! {
        @if let Some(why) = &results.ended_early {
            section.notes {
                h2 { "Ended early" }
                p { (why) ". What was measured before is shown." }
            }
        }
        @if !results.notes.is_empty() {
            section.notes {
                h2 { "Notes" }
                ul { @for text in &results.notes { li { (note(text)) } } }
            }
        }
    }
}

/// A note; of one that lists much, what it says of the list, which unfolds.
fn note(text: &str) -> Markup {
    const LONG: usize = 300;
    match text.split_once(": ") {
        Some((what, list)) if list.chars().count() > LONG => html! {
            details {
                summary { (what) " (a long list)" }
                (list)
            }
        },
        _ => html! { (text) },
    }
}

fn setup(results: &Results) -> Markup {
    let setup = &results.setup;
    let (machine, device) = (&setup.machine, &setup.device);
    let version = device.version.as_deref().map(|v| format!(" {v}")).unwrap_or_default();
    let processor = machine.processor.as_deref().unwrap_or("unnamed processor");
    let peak = setup.peak_memory.map(|peak| format!(", peak memory {}", bytes(peak)));
    let channels = if device.channels == 1 { "channel" } else { "channels" };
    let rows = [
        (
            "Device",
            format!(
                "{}{version} at {} ({}), {} {channels}",
                device.driver, device.location, device.ids, device.channels
            ),
        ),
        ("IOMMU", device.iommu.clone()),
        ("Completion", device.completion.clone()),
        (
            "Machine",
            format!(
                "{processor}, {} processors, {} of memory",
                machine.processors,
                bytes(machine.memory)
            ),
        ),
        ("Kernel", format!("Linux {} {}", machine.kernel, machine.architecture)),
        ("Hypervisor", machine.hypervisor.clone().unwrap_or_else(|| "none".to_owned())),
        (
            "Huge pages",
            machine
                .transparent_huge_pages
                .as_ref()
                .map_or("unknown".to_owned(), |state| format!("transparent: {state}")),
        ),
        (
            "Settings",
            format!("profile {}, {} rounds, seed {}", setup.profile, setup.rounds, setup.seed),
        ),
        (
            "Taken",
            format!(
                "{}, in {}{}",
                setup.taken,
                nanoseconds(setup.elapsed as f64),
                peak.unwrap_or_default()
            ),
        ),
    ];
    let noise = &results.noise;
    let uncertain = format!(
        "of {} variants {} within the noise of contiguous (~), {} uncertain in size (!)",
        noise.of,
        noise.undecided.len(),
        noise.wide.len()
    );
    let more = [
        setup.conditions.as_ref().map(|during| ("Load", conditions(during))),
        (noise.of > 0).then_some(("Noise", uncertain)),
    ];
    let rows = rows.into_iter().chain(more.into_iter().flatten());
    html! {
        dl { @for (name, value) in rows { dt { (name) } dd { (value) } } }
    }
}

fn figure(figure: &Figure) -> Result<Markup, BenchError> {
    let drawing = match &figure.chart {
        Some(chart) => Some((legend(chart)?, chart.render(figure.title)?)),
        None => None,
    };
    let unfolded = figure.rows.len() <= UNFOLDED;
    Ok(html! {
        figure id=(figure.id) class=[figure.calculated.then_some("calculated")] {
            figcaption {
                @if figure.calculated { span.badge { "CALCULATED" } }
                h3 { (figure.title) }
                p { (figure.caption) }
            }
            @if let Some((legend, plots)) = drawing {
                (legend)
                (PreEscaped(plots))
            }
            details open=[unfolded.then_some("open")] {
                summary { "The figures as a table (" (figure.rows.len()) " rows)" }
                div.scroll tabindex="0" role="region" aria-label={ (figure.title) ", table" } {
                    (table(figure))
                }
            }
        }
    })
}

fn legend(chart: &super::chart::Chart) -> Result<Markup, BenchError> {
    let mut signs = Vec::new();
    for (series, line) in (0..SERIES).zip(&chart.lines) {
        signs.push((swatch(series)?, line.name.as_str()));
    }
    for rule in &chart.rules {
        signs.push((rule_swatch()?, rule.name.as_str()));
    }
    Ok(html! {
        ul.legend {
            @for (sign, name) in &signs { li { (PreEscaped(sign)) span { (name) } } }
        }
    })
}

fn table(figure: &Figure) -> Markup {
    html! {
        table {
            thead { tr { @for head in &figure.head { th scope="col" { (head) } } } }
            tbody {
                @for row in &figure.rows {
                    tr {
                        @for (cell, span) in spanned(row, figure.head.len()) {
                            @let words = cell.chars().count() > LONG;
                            td class=[words.then_some("words")] colspan=[(span > 1).then_some(span)] {
                                (cell)
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Longer cells are sentences: they may take several lines.
const LONG: usize = 24;

/// The cells of a row; the last one of a row that is short takes what is left of its columns.
fn spanned(row: &[String], columns: usize) -> impl Iterator<Item = (&String, usize)> {
    let left = columns.saturating_sub(row.len()) + 1;
    row.iter().enumerate().map(move |(n, cell)| (cell, if n + 1 == row.len() { left } else { 1 }))
}

#[cfg(test)]
mod tests {
    use roxmltree::{Document, Node, ParsingOptions};

    use super::*;
    use crate::bench::fixture;
    use crate::bench::results::{Series, Spread};

    fn parsed(page: &str) -> Document<'_> {
        let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
        Document::parse_with_options(page, options).unwrap()
    }

    fn elements<'a>(node: Node<'a, 'a>, name: &'static str) -> Vec<Node<'a, 'a>> {
        node.descendants().filter(|node| node.tag_name().name() == name).collect()
    }

    fn text(node: Node<'_, '_>) -> String {
        node.descendants().filter_map(|node| node.text().filter(|_| node.is_text())).collect()
    }

    #[test]
    fn the_page_stands_alone() {
        let page = page(&fixture::results()).unwrap();
        let namespace = "xmlns=\"http://www.w3.org/2000/svg\"";
        let rest = page.replace(namespace, "");
        for remote in ["http:", "https:", "//", "@import", "url(", "<script", "<link", "src="] {
            assert!(!rest.contains(remote), "{remote}");
        }
        let page = parsed(&page);
        for link in elements(page.root(), "a") {
            let target = link.attribute("href").unwrap().strip_prefix('#').unwrap();
            assert!(page.descendants().any(|node| node.attribute("id") == Some(target)));
        }
    }

    #[test]
    fn every_figure_has_two_plots_and_its_table() {
        let results = fixture::results();
        let page = page(&results).unwrap();
        let page = parsed(&page);
        let rows: Vec<(&str, usize)> = elements(page.root(), "figure")
            .into_iter()
            .map(|figure| {
                let plots: Vec<_> = elements(figure, "svg")
                    .into_iter()
                    .filter(|svg| svg.attribute("role") == Some("img"))
                    .map(|svg| svg.attribute("class").unwrap())
                    .collect();
                assert_eq!(plots, ["plot wide", "plot narrow"]);
                let rows = elements(elements(figure, "tbody")[0], "tr").len();
                (figure.attribute("id").unwrap(), rows)
            })
            .collect();
        let count = |series| results.cells.iter().filter(|c| c.series == series).count();
        let segments = count(Series::Segments);
        let scattered = results.cells.iter().filter(|c| c.of_contiguous.is_some()).count();
        assert_eq!(
            rows,
            [
                ("throughput", segments + results.memcpy.len()),
                ("ratio", scattered),
                ("batch", count(Series::Batch)),
                ("channels", count(Series::Channels)),
                ("latency", count(Series::Latency)),
                ("slots", count(Series::Slots)),
                ("mapping", results.allocations.len()),
                ("link-share", segments),
                ("link-view", results.link.unwrap().rows.len()),
            ]
        );
    }

    #[test]
    fn what_is_calculated_is_marked() {
        let page = page(&fixture::results()).unwrap();
        let page = parsed(&page);
        for figure in elements(page.root(), "figure") {
            let calculated = figure.attribute("id").unwrap().starts_with("link");
            assert_eq!(figure.attribute("class") == Some("calculated"), calculated);
            assert_eq!(text(figure).contains("CALCULATED"), calculated);
        }
    }

    #[test]
    fn no_colour_is_fixed() {
        // All that the backend draws has a role, whose colour the style sheet gives.
        let page = page(&fixture::results()).unwrap();
        let body = page.split_once("</style>").unwrap().1;
        for fixed in ["fill=\"#", "stroke=\"#"] {
            assert!(!body.contains(fixed), "{fixed}");
        }
        let style = STYLE;
        let page = parsed(&page);
        let drawn = page.descendants().filter(|node| {
            ["line", "polyline", "polygon", "circle", "text"].contains(&node.tag_name().name())
        });
        for node in drawn {
            let class = node.attribute("class").unwrap().split(' ').next().unwrap();
            assert!(style.contains(&format!(".{class} {{")), "{class} has no style");
        }
    }

    #[test]
    fn a_long_list_folds_and_is_whole() {
        let list = vec!["4K in 64 segments"; 40].join(", ");
        let results = Results { notes: vec![format!("left out: {list}")], ..fixture::results() };
        let page = page(&results).unwrap();
        let page = parsed(&page);
        let notes = elements(page.root(), "section")[0];
        assert_eq!(text(elements(notes, "summary")[0]), "left out (a long list)");
        assert!(text(notes).contains(&list));
    }

    #[test]
    fn tables_fit_a_page_of_1280_pixels() {
        // The widest page less its margins; a character and a column's margin in the style's
        // font, rounded up.
        const ROOM: usize = 1216;
        const CHARACTER: usize = 7;
        const MARGIN: usize = 12;
        let results = fixture::results();
        for figure in measured(&results).iter().chain(&calculated(&results)) {
            let widest = |column: usize| {
                let cells = figure.rows.iter().filter_map(|row| {
                    let alone = column + 1 < row.len() || row.len() == figure.head.len();
                    row.get(column).filter(|_| alone).map(|cell| cell.chars().count().min(LONG))
                });
                cells.chain([figure.head[column].chars().count()]).max().unwrap_or(0)
            };
            let width: usize =
                (0..figure.head.len()).map(|column| widest(column) * CHARACTER + MARGIN).sum();
            assert!(width <= ROOM, "{}: {width} pixels", figure.id);
        }
    }

    #[test]
    fn what_failed_has_its_row_in_the_plot_and_its_reason_in_the_table() {
        let results = fixture::results();
        let failed = results.allocations.iter().filter(|row| row.failed.is_some()).count();
        assert!(failed > 0);
        let page = page(&results).unwrap();
        let page = parsed(&page);
        let figures = elements(page.root(), "figure");
        let mapping = figures.iter().find(|f| f.attribute("id") == Some("mapping")).unwrap();
        let labels = elements(*mapping, "text").into_iter().map(text);
        // In the wide plot and in the narrow one.
        assert_eq!(labels.filter(|label| label.contains(": failed")).count(), 2 * failed);
        let reasons: Vec<_> = elements(*mapping, "td")
            .into_iter()
            .filter(|cell| text(*cell).starts_with("failed: "))
            .map(|cell| cell.attribute("colspan").unwrap())
            .collect();
        assert_eq!(reasons, vec!["8"; failed]);
    }

    #[test]
    fn uncertain_points_are_pale() {
        let weak = |results: &Results| {
            let page = page(results).unwrap();
            let page = parsed(&page);
            let figures = elements(page.root(), "figure");
            let ratio = figures.iter().find(|f| f.attribute("id") == Some("ratio")).unwrap();
            let classes = ratio.descendants().filter_map(|node| node.attribute("class"));
            classes.filter(|class| class.ends_with(" weak") && !class.contains("bar")).count()
        };
        let mut results = fixture::results();
        for cell in &mut results.cells {
            cell.of_contiguous = cell.of_contiguous.map(|_| fixture::spread(0.5, 0.01));
        }
        assert_eq!(weak(&results), 0);
        let cell = results.cells.iter_mut().find(|cell| cell.of_contiguous.is_some()).unwrap();
        cell.of_contiguous = Some(Spread { p25: 0.3, p75: 0.7, ..fixture::spread(0.5, 0.01) });
        assert_eq!(weak(&results), 2, "in the wide plot and in the narrow one");
    }

    #[test]
    fn hostile_names_stay_text() {
        let hostile = "</style><script>alert('1')</script>&\"<b a=\"";
        let mut results = fixture::results();
        results.setup.device.location = hostile.into();
        results.setup.machine.processor = Some(hostile.into());
        results.setup.command.push(hostile.into());
        results.notes.push(hostile.into());
        results.ended_early = Some(hostile.into());
        results.allocations[0].strategy = hostile.into();
        results.allocations[1].failed = Some(hostile.into());
        results.link.as_mut().unwrap().link = hostile.into();
        let page = page(&results).unwrap();
        let page = parsed(&page);
        assert!(
            elements(page.root(), "script").is_empty() && elements(page.root(), "b").is_empty()
        );
        let text = text(page.root());
        // Title, heading and device; processor; note; end; strategy; failure; three of links.
        assert!(text.matches(hostile).count() >= 10, "{}", text.matches(hostile).count());
    }

    #[test]
    fn little_and_odd_results_have_a_page() {
        let whole = fixture::results();
        let empty = Results {
            memcpy: Vec::new(),
            cells: Vec::new(),
            allocations: Vec::new(),
            link: None,
            notes: Vec::new(),
            ended_early: Some("at once".into()),
            ..whole.clone()
        };
        let page_of = |results: &Results| page(results).unwrap();
        let text_of = |page: &str| text(parsed(page).root());
        assert!(text_of(&page_of(&empty)).contains("Nothing was measured."));
        for keep in 0..whole.cells.len() {
            let mut odd = Results { cells: vec![whole.cells[keep].clone()], ..empty.clone() };
            let zero = Spread { median: 0.0, p25: 0.0, p75: 0.0, min: 0.0, max: 0.0, rounds: 1 };
            parsed(&page_of(&odd));
            odd.cells[0].bytes_per_second = zero;
            odd.cells[0].operations_per_second = zero;
            odd.cells[0].of_contiguous = odd.cells[0].of_contiguous.map(|_| zero);
            odd.cells[0].transfer = u64::MAX;
            parsed(&page_of(&odd));
        }
    }
}
