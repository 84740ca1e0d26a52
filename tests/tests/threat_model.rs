//! Every test that the threat model and the page of evidence name exists.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::collections::BTreeSet;
use std::path::Path;

/// The functions that are defined below a directory.
fn functions(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.extend(text.lines().filter_map(|line| {
                let (_, name) = line.split_once("fn ")?;
                let end = name.find(|c: char| !c.is_alphanumeric() && c != '_')?;
                Some(name[..end].to_owned())
            }));
        }
    }
}

#[test]
fn the_tests_that_it_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut known = BTreeSet::new();
    for dir in ["driver", "hw-model", "tests", "tools"] {
        functions(&root.join(dir), &mut known);
    }
    let page = |name| std::fs::read_to_string(root.join("docs").join(name)).unwrap();
    let page = page("threat-model.md") + &page("evidence.md");
    // In the last column of the tables whose head says so.
    let mut named = BTreeSet::new();
    let mut in_table = false;
    for line in page.lines() {
        in_table = line.ends_with("| shown by |") || in_table && line.starts_with('|');
        let Some((_, cell)) = line.trim_end_matches('|').rsplit_once('|').filter(|_| in_table)
        else {
            continue;
        };
        named.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    assert!(named.len() > 70, "{} tests are named", named.len());
    let missing: Vec<_> = named.difference(&known).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
