//! Results as one table of comma-separated values: a row for each thing measured.
//!
//! `docs/bench.md` has the columns. The first one, `kind`, says what a row is; a column that
//! does not apply to it is empty. Every row carries the device and the begin of the
//! measurement, so that files can be put one behind the other.

use ::csv::WriterBuilder;

use super::error::BenchError;
use super::link::OPERATIONS;
use super::results::{Method, Results, Series, Spread};

/// The columns before the figures.
const KEYS: [&str; 14] = [
    "kind",
    "taken",
    "device",
    "series",
    "transfer_bytes",
    "segment_bytes",
    "batch",
    "channels",
    "method",
    "strategy",
    "page_bytes",
    "operation",
    "link",
    "text",
];

/// Figures with a spread; each takes the columns of [`PARTS`], then the unit.
const SPREADS: [(&str, &str); 7] = [
    ("rate", "bytes_per_s"),
    ("operations", "per_s"),
    ("of_memcpy", "ratio"),
    ("of_contiguous", "ratio"),
    ("allocate", "ns"),
    ("map", "ns"),
    ("release", "ns"),
];

const PARTS: [&str; 5] = ["median", "p25", "p75", "min", "max"];

/// Figures that are one number.
const SINGLES: [&str; 22] = [
    "rounds",
    "transfers",
    "descriptors_per_transfer",
    "doorbells_per_transfer",
    "map_calls",
    "cycles_per_transfer",
    "segments",
    "latency_samples",
    "latency_p50_ns",
    "latency_p99_ns",
    "latency_p999_ns",
    "latency_max_ns",
    "calculated_tlps_per_transfer",
    "calculated_upstream_bytes_per_transfer",
    "calculated_downstream_bytes_per_transfer",
    "calculated_link_share_ratio",
    "calculated_gbps",
    "calculated_tlp_gbps",
    "calculated_contiguous_gbps",
    "calculated_segmented_gbps",
    "calculated_ratio",
    "calculated_less_than_5_percent_from_bytes",
];

/// Every column, in its order.
#[must_use]
pub fn columns() -> Vec<String> {
    let spreads = SPREADS
        .iter()
        .flat_map(|(name, unit)| PARTS.iter().map(move |part| format!("{name}_{part}_{unit}")));
    let keys = KEYS.iter().map(|&name| name.to_owned());
    keys.chain(spreads).chain(SINGLES.iter().map(|&name| name.to_owned())).collect()
}

/// Makes one table of all results, with a header; see `docs/bench.md` for its columns.
///
/// Quantiles of latencies are left to the JSON; notes have rows of their own.
///
/// # Errors
///
/// Fails when a column is filled that the table does not have.
pub fn to_csv(results: &Results) -> Result<String, BenchError> {
    let mut table = Table { columns: columns(), rows: Vec::new() };
    for memcpy in &results.memcpy {
        let mut row = table.row(results, "memcpy")?;
        row.put("transfer_bytes", memcpy.transfer)?;
        row.spread("rate", Some(&memcpy.bytes_per_second))?;
    }
    for cell in &results.cells {
        let mut row = table.row(results, "transfer")?;
        row.put("series", series(cell.series))?;
        row.put("transfer_bytes", cell.transfer)?;
        row.maybe("segment_bytes", cell.segment)?;
        row.put("batch", cell.batch)?;
        row.put("channels", cell.channels)?;
        row.put("method", method(cell.method))?;
        row.spread("rate", Some(&cell.bytes_per_second))?;
        row.spread("operations", Some(&cell.operations_per_second))?;
        row.spread("of_memcpy", cell.of_memcpy.as_ref())?;
        row.spread("of_contiguous", cell.of_contiguous.as_ref())?;
        row.put("transfers", cell.transfers)?;
        row.put("descriptors_per_transfer", cell.descriptors)?;
        row.put("doorbells_per_transfer", cell.doorbells)?;
        row.put("map_calls", cell.map_calls)?;
        row.maybe("cycles_per_transfer", cell.cycles)?;
        if let Some(latency) = &cell.latency {
            row.put("latency_samples", latency.samples)?;
            row.put("latency_p50_ns", latency.p50)?;
            row.put("latency_p99_ns", latency.p99)?;
            row.put("latency_p999_ns", latency.p999)?;
            row.put("latency_max_ns", latency.max)?;
        }
        if let Some(link) = &cell.link {
            row.put("calculated_tlps_per_transfer", link.tlps)?;
            row.put("calculated_upstream_bytes_per_transfer", link.upstream)?;
            row.put("calculated_downstream_bytes_per_transfer", link.downstream)?;
            row.put("calculated_link_share_ratio", link.share)?;
            row.put("calculated_gbps", link.gbps)?;
            row.maybe("calculated_ratio", link.ratio)?;
        }
    }
    for allocation in &results.allocations {
        let mut row = table.row(results, "allocation")?;
        row.put("transfer_bytes", allocation.len)?;
        row.put("strategy", &allocation.strategy)?;
        row.maybe("page_bytes", allocation.page_size)?;
        row.maybe("text", allocation.failed.as_ref())?;
        row.spread("allocate", allocation.allocate.as_ref())?;
        row.spread("map", allocation.map.as_ref())?;
        row.spread("release", allocation.release.as_ref())?;
        row.put("segments", allocation.segments)?;
        row.put("map_calls", allocation.map_calls)?;
    }
    if let Some(view) = &results.link {
        for link_row in &view.rows {
            for (n, (_, operation)) in OPERATIONS.into_iter().enumerate() {
                let mut row = table.row(results, "link")?;
                row.put("transfer_bytes", view.transfer)?;
                row.put("segment_bytes", link_row.segment)?;
                row.put("operation", operation)?;
                row.put("link", &view.link)?;
                row.put("calculated_tlp_gbps", view.tlp_gbps)?;
                row.put("calculated_contiguous_gbps", link_row.contiguous_gbps[n])?;
                row.put("calculated_segmented_gbps", link_row.segmented_gbps[n])?;
                row.put("calculated_ratio", link_row.ratio[n])?;
                let cheap = view.less_than_5_percent[n];
                row.maybe("calculated_less_than_5_percent_from_bytes", cheap)?;
            }
        }
    }
    let ended = results.ended_early.iter().map(|why| ("ended-early", why));
    for (kind, text) in ended.chain(results.notes.iter().map(|note| ("note", note))) {
        table.row(results, kind)?.put("text", text)?;
    }
    table.write()
}

fn series(series: Series) -> &'static str {
    match series {
        Series::Segments => "segments",
        Series::Batch => "batch",
        Series::Channels => "channels",
        Series::Latency => "latency",
        Series::Slots => "slots",
        Series::Methods => "methods",
    }
}

fn method(method: Method) -> &'static str {
    match method {
        Method::Auto => "auto",
        Method::Prp => "prp",
        Method::Sgl => "sgl",
        Method::Verify => "verify",
        Method::OneBlock => "one-block",
    }
}

struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn row(&mut self, results: &Results, kind: &str) -> Result<Row<'_>, BenchError> {
        self.rows.push(vec![String::new(); self.columns.len()]);
        let fields = self.rows.last_mut().expect("a row was pushed");
        let mut row = Row { columns: &self.columns, fields };
        row.put("kind", kind)?;
        row.put("taken", &results.setup.taken)?;
        row.put("device", &results.setup.device.location)?;
        Ok(row)
    }

    fn write(&self) -> Result<String, BenchError> {
        let mut writer = WriterBuilder::new().from_writer(Vec::new());
        writer.write_record(&self.columns)?;
        for row in &self.rows {
            writer.write_record(row)?;
        }
        let bytes = writer.into_inner().map_err(::csv::IntoInnerError::into_error)?;
        Ok(String::from_utf8(bytes)?)
    }
}

struct Row<'a> {
    columns: &'a [String],
    fields: &'a mut [String],
}

impl Row<'_> {
    fn put(&mut self, column: &str, value: impl ToString) -> Result<(), BenchError> {
        let mut named = self.columns.iter().zip(self.fields.iter_mut());
        let (_, field) = named
            .find(|(name, _)| *name == column)
            .ok_or_else(|| BenchError::NoColumn { column: column.to_owned() })?;
        *field = value.to_string();
        Ok(())
    }

    fn maybe(&mut self, column: &str, value: Option<impl ToString>) -> Result<(), BenchError> {
        value.map_or(Ok(()), |value| self.put(column, value))
    }

    fn spread(&mut self, name: &str, spread: Option<&Spread>) -> Result<(), BenchError> {
        let Some(spread) = spread else { return Ok(()) };
        let (_, unit) = SPREADS
            .iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(|| BenchError::NoFigure { figure: name.to_owned() })?;
        let Spread { median, p25, p75, min, max, rounds } = *spread;
        for (part, value) in PARTS.into_iter().zip([median, p25, p75, min, max]) {
            self.put(&format!("{name}_{part}_{unit}"), value)?;
        }
        self.put("rounds", rounds)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::fixture;
    use super::*;

    fn rows(results: &Results) -> Vec<BTreeMap<String, String>> {
        let text = to_csv(results).unwrap();
        let mut reader = ::csv::Reader::from_reader(text.as_bytes());
        reader.deserialize().map(Result::unwrap).collect()
    }

    #[test]
    fn every_figure_has_its_row() {
        let mut results = fixture::results();
        // Simulated hardware alone has them.
        results.cells[0].cycles = Some(99.0);
        let rows = rows(&results);
        let count = |kind: &str| rows.iter().filter(|row| row["kind"] == kind).count();
        assert_eq!(count("memcpy"), results.memcpy.len());
        assert_eq!(count("transfer"), results.cells.len());
        assert_eq!(count("allocation"), results.allocations.len());
        assert_eq!(count("link"), 3 * results.link.as_ref().unwrap().rows.len());
        assert_eq!(count("note"), results.notes.len());
        let cells = rows.iter().filter(|row| row["kind"] == "transfer");
        for (row, cell) in cells.zip(&results.cells) {
            let number = |column: &str| row[column].parse::<f64>().unwrap();
            assert_eq!(number("rate_median_bytes_per_s"), cell.bytes_per_second.median);
            assert_eq!(number("operations_p75_per_s"), cell.operations_per_second.p75);
            assert_eq!(row["segment_bytes"].is_empty(), cell.segment.is_none());
        }
        // A column that nothing ever fills is of no use.
        let names: BTreeSet<String> = columns().into_iter().collect();
        assert_eq!(names.len(), columns().len(), "names are distinct");
        for name in names {
            assert!(rows.iter().any(|row| !row[&name].is_empty()), "{name} is always empty");
        }
    }

    #[test]
    fn the_documentation_has_every_column() {
        let text = include_str!("../../../docs/bench.md");
        let (_, text) = text.split_once("\n## CSV").unwrap();
        let parts = PARTS.join(",");
        let spreads = SPREADS.map(|(name, unit)| format!("`{name}_{{{parts}}}_{unit}`"));
        let names = KEYS.iter().chain(&SINGLES).map(|name| format!("`{name}`"));
        for name in names.chain(spreads) {
            assert!(text.contains(&name), "docs/bench.md lacks {name}");
        }
    }

    #[test]
    fn texts_with_commas_quotes_and_lines_come_back() {
        let text = "a, \"b\"\r\nc; =1+1";
        let results = Results { notes: vec![text.to_owned()], ..fixture::results() };
        let rows = rows(&results);
        assert_eq!(rows.last().unwrap()["text"], text);
    }

    #[test]
    fn a_run_that_ended_early_says_so() {
        let results = Results { ended_early: Some("the device left".into()), ..fixture::results() };
        let rows = rows(&results);
        let early: Vec<_> = rows.iter().filter(|row| row["kind"] == "ended-early").collect();
        assert_eq!(early.len(), 1);
        assert_eq!(early[0]["text"], "the device left");
    }
}
