//! Dependencies between modules point one way: read from the sources, as `use` and paths have
//! them, without what is compiled for tests only.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::punctuated::Punctuated;
use syn::visit::Visit;
use syn::{Attribute, File, Item, ItemUse, Macro, Meta, Token, UseTree};

/// For each child of a module the children that it uses, and a file in which it does.
type Edges = BTreeMap<String, BTreeMap<String, PathBuf>>;

/// A module with a file of its own, or the crate.
struct Module {
    path: Vec<String>,
    file: PathBuf,
    source: File,
}

/// The modules of the crate whose root is this file, without those for tests.
fn modules(root: &Path) -> Vec<Module> {
    let mut found = Vec::new();
    let mut waiting = vec![(Vec::new(), root.to_owned())];
    while let Some((path, file)) = waiting.pop() {
        let text = std::fs::read_to_string(&file);
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let source = syn::parse_file(&text).unwrap();
        let is_dir = path.is_empty() || file.ends_with("mod.rs");
        let dir = if is_dir { file.parent().unwrap().to_owned() } else { file.with_extension("") };
        for item in &source.items {
            let Item::Mod(child) = item else { continue };
            if child.content.is_some() || is_for_tests(&child.attrs) {
                continue;
            }
            let name = child.ident.to_string();
            let beside = dir.join(format!("{name}.rs"));
            let file = if beside.exists() { beside } else { dir.join(&name).join("mod.rs") };
            waiting.push(([path.as_slice(), &[name]].concat(), file));
        }
        found.push(Module { path, file, source });
    }
    found
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    let of_tests = |condition: Meta| match condition {
        Meta::Path(flag) => flag.is_ident("test"),
        Meta::List(list) if list.path.is_ident("all") => {
            let all = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
            all.is_ok_and(|all| all.iter().any(|one| one.path().is_ident("test")))
        }
        _ => false,
    };
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<Meta>().is_ok_and(of_tests)
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The paths that a module names, from the crate's root on.
struct Paths<'a> {
    /// The module that is being read, inline ones counted in.
    at: Vec<String>,
    found: &'a mut BTreeSet<Vec<String>>,
}

impl Paths<'_> {
    fn note(&mut self, segments: &[String]) {
        let mut path = self.at.clone();
        let mut rest = segments;
        match segments.first().map(String::as_str) {
            Some("crate") => (path, rest) = (Vec::new(), &segments[1..]),
            Some("self") => rest = &segments[1..],
            Some("super") => {
                while rest.first().is_some_and(|segment| segment == "super") {
                    path.pop();
                    rest = &rest[1..];
                }
            }
            // A child, a name in scope or another crate: never a neighbour.
            _ => return,
        }
        path.extend_from_slice(rest);
        self.found.insert(path);
    }

    fn tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&with(&path.ident), &path.tree),
            UseTree::Name(name) => self.note(&with(&name.ident)),
            UseTree::Rename(rename) => self.note(&with(&rename.ident)),
            UseTree::Glob(_) => self.note(before),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(before, tree)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if is_for_tests(attributes(item)) {
            return;
        }
        match item {
            Item::Mod(module) if module.content.is_some() => {
                self.at.push(module.ident.to_string());
                syn::visit::visit_item_mod(self, module);
                self.at.pop();
            }
            item => syn::visit::visit_item(self, item),
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.note(&segments);
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast Macro) {
        // What a macro makes of its tokens is not known; paths stand there as they are.
        let text = called.tokens.to_string().replace(" :: ", "::");
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        for word in text.split(|c| !is_path(c)) {
            let segments: Vec<String> = word.split("::").map(str::to_owned).collect();
            if segments.len() > 1 {
                self.note(&segments);
            }
        }
    }
}

/// What a module takes from its children with `use`: names, and the child each is from.
fn reexported(module: &Module) -> BTreeMap<String, String> {
    fn names(tree: &UseTree, found: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => names(&path.tree, found),
            UseTree::Name(name) => found.push(name.ident.to_string()),
            UseTree::Rename(rename) => found.push(rename.rename.to_string()),
            UseTree::Glob(_) => {}
            UseTree::Group(group) => group.items.iter().for_each(|tree| names(tree, found)),
        }
    }
    let mut all = BTreeMap::new();
    for item in &module.source.items {
        let Item::Use(item) = item else { continue };
        let UseTree::Path(path) = &item.tree else { continue };
        let mut found = Vec::new();
        names(&path.tree, &mut found);
        let child = path.ident.to_string();
        all.extend(found.into_iter().map(|name| (name, child.clone())));
    }
    all
}

/// How the children of a module use each other. The module itself, which ties them together,
/// is not among them.
fn edges(modules: &[Module], of: &[&str]) -> Edges {
    let depth = of.len();
    let is_below = |path: &[String]| path.len() > depth && path.iter().zip(of).all(|(a, b)| a == b);
    let parent = modules.iter().find(|module| module.path == of).expect("it is a module");
    let names = reexported(parent);
    let mut edges = Edges::new();
    for module in modules.iter().filter(|module| is_below(&module.path)) {
        edges.entry(module.path[depth].clone()).or_default();
    }
    let children: BTreeSet<String> = edges.keys().cloned().collect();
    for module in modules.iter().filter(|module| is_below(&module.path)) {
        let mut found = BTreeSet::new();
        Paths { at: module.path.clone(), found: &mut found }.visit_file(&module.source);
        let own = &module.path[depth];
        for path in found.iter().filter(|path| is_below(path)) {
            let name = &path[depth];
            let used = if children.contains(name) { Some(name) } else { names.get(name) };
            if let Some(used) = used.filter(|used| *used != own && children.contains(*used)) {
                let of_own = edges.get_mut(own).unwrap();
                of_own.entry(used.clone()).or_insert_with(|| module.file.clone());
            }
        }
    }
    edges
}

/// A way from a child back to itself, with the files on it.
fn cycle(edges: &Edges) -> Option<String> {
    fn walk<'a>(edges: &'a Edges, way: &mut Vec<&'a str>, done: &mut BTreeSet<&'a str>) -> bool {
        let Some(&last) = way.last() else { return false };
        for next in edges[last].keys().map(String::as_str) {
            if let Some(begin) = way.iter().position(|&node| node == next) {
                way.drain(..begin);
                return true;
            }
            way.push(next);
            if !done.contains(next) && walk(edges, way, done) {
                return true;
            }
            way.pop();
        }
        done.insert(last);
        false
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|begin| {
        let mut way = vec![begin.as_str()];
        walk(edges, &mut way, &mut done).then(|| {
            let steps = way.iter().zip(way.iter().cycle().skip(1));
            let step = |(from, to): (&&str, &&str)| {
                format!("{from} uses {to} in {}", edges[*from][*to].display())
            };
            steps.map(step).collect::<Vec<_>>().join("\n")
        })
    })
}

fn of_crate(name: &str) -> Vec<Module> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    modules(&workspace.join(name).join("src/lib.rs"))
}

/// Each module uses only those before it.
fn check_order(edges: &Edges, order: &[&str]) {
    let modules: BTreeSet<&str> = edges.keys().map(String::as_str).collect();
    assert_eq!(modules, order.iter().copied().collect(), "the order names every module");
    for (from, used) in edges {
        for (to, file) in used {
            let place = |name: &str| order.iter().position(|&module| module == name);
            assert!(place(to) < place(from), "{from} uses {to}, in {}", file.display());
        }
    }
}

#[test]
fn the_layers_of_the_driver_use_those_below_them() {
    let modules = of_crate("driver");
    let order = [
        "sync",
        "deadline",
        "registers",
        "pci",
        "host",
        "backend",
        "events",
        "mmio",
        "irq",
        "dma",
        "device",
        "queue",
        "session",
        "devices",
    ];
    check_order(&edges(&modules, &[]), &order);
}

#[test]
fn files_of_a_layer_do_not_use_each_other_in_circles() {
    let modules = of_crate("driver");
    for layer in ["pci", "host", "backend", "mmio", "dma", "device", "queue", "devices"] {
        assert_eq!(cycle(&edges(&modules, &[layer])), None, "in {layer}");
    }
}

#[test]
fn the_model_and_the_tools_have_no_circles() {
    for name in ["hw-model", "tools"] {
        assert_eq!(cycle(&edges(&of_crate(name), &[])), None, "in {name}");
    }
    // Words about the command belong to the command.
    assert!(!edges(&of_crate("tools"), &[])["bench"].contains_key("cli"));
}

#[test]
fn a_circle_is_found_and_tests_do_not_count() {
    let module = |path: &str, text: &str| Module {
        path: path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect(),
        file: path.replace("::", "/").into(),
        source: syn::parse_file(text).unwrap(),
    };
    let crate_of = |a: &str| {
        let root = module("", "mod a; mod b; mod c; pub use c::Thing;");
        let b = module("b", "fn f() { println!(\"{}\", crate::c::NUMBER); }");
        let c = module("c::inner", "type Of = super::super::a::A;");
        edges(&[root, module("a", a), b, c], &[])
    };
    let found = cycle(&crate_of("use crate::{b, std::x};")).unwrap();
    assert!(found.contains("a uses b in a") && found.contains("c uses a in c/inner"), "{found}");
    let found = cycle(&crate_of("fn f(_: crate::Thing) {}")).unwrap();
    assert!(found.contains("a uses c"), "{found}");
    for fine in [
        "#[cfg(test)] mod tests { use crate::b; }",
        "#[cfg(all(test, shuttle))] use crate::b;",
        "#[cfg(test)] use crate::b;",
        "",
    ] {
        assert_eq!(cycle(&crate_of(fine)), None);
    }
}
