//! A benchmark as one self-contained page: plots, their figures as tables, and the setup.
//!
//! The page needs no script and loads nothing. Every plot is there twice, wide and narrow,
//! and the style sheet shows the one that fits; colours follow the reader's preference for
//! light or dark. What is calculated stands apart from what was measured.

mod alone;
mod axis;
mod chart;
mod costs;
mod figures;
mod link;
mod page;
mod small;
mod svg;

pub use alone::plot;
pub use page::page;
