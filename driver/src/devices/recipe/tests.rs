use proptest::prelude::*;

use super::*;

const EDU: &str = include_str!("../../../examples/edu.recipe.toml");
const SMALL: &str = r#"
    bar = 2
    [limits]
    address-bits = 32
    max-length = 4096
    [[setup]]
    register = "0x10"
    value = 1
    [[step]]
    name = "go"
    [[step.write]]
    register = "0x20:8"
    value = "source"
    [[step.write]]
    register = "0x28:4"
    value = "target >> 32"
    [[step.write]]
    register = "0x2c"
    bar = 0
    value = "length / 4 - 1"
    [step.wait]
    register = "0x30"
    equals = 1
    [[step.check]]
    register = "0x34"
    equals = "0x0"
    [[step.after]]
    register = "0x30"
    value = 0
"#;

#[test]
fn a_recipe_says_which_way_data_flows() {
    let recipe = Recipe::parse(SMALL).unwrap();
    assert!(recipe.has_source() && recipe.has_target());
    assert_eq!(recipe.limits().address_mask, u64::from(u32::MAX));
    assert_eq!(recipe.limits().max_segment, 4096);
    assert_eq!(recipe.vectors(), None);
    let write_only = SMALL.replace("\"source\"", "7");
    assert!(!Recipe::parse(&write_only).unwrap().has_source());
}

#[test]
fn what_makes_no_sense_is_told() {
    for (from, to, part) in [
        ("\"source\"", "\"colour\"", "step \"go\": \"colour\": it begins with a number"),
        ("0x20:8", "0x24:8", "0x24:8 is not at a multiple"),
        ("0x20:8", "NAME", "BAR2 has no register \"NAME\""),
        ("0x20:8", "-", "names no register"),
        ("bar = 2", "bar = 6", "no BAR 6"),
        ("bar = 2", "registers = \"x\"", "names no other file"),
        ("address-bits = 32", "address-bits = 65", "address-bits is 12 to 64"),
        ("max-length = 4096", "max-length = 0", "moves nothing"),
        ("max-length = 4096", "alignment = 3", "not a power of two"),
        ("equals = 1", "", "either `irq`, or `register` and `equals`"),
        ("equals = 1", "equals = \"x\"", "is no number"),
        ("name = \"go\"", "timeout-ms = 0", "timeout-ms is 1 to"),
        ("[[setup]]", "[[set-up]]", "unknown field"),
        ("value = 1", "value = \"length\"", "setup: it knows no transfer"),
    ] {
        let text = SMALL.replacen(from, to, 1);
        let error = Recipe::parse(&text).unwrap_err().to_string();
        assert!(error.contains(part), "{to}: {error}");
    }
    for (text, part) in [("", "there are none"), ("x", "malformed"), ("step = 1", "malformed")] {
        let error = Recipe::parse(text).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let none = SMALL.replace("\"source\"", "1").replace("\"target >> 32\"", "2");
    assert!(Recipe::parse(&none).unwrap_err().to_string().contains("`source` or `target`"));
    assert!(Recipe::read("/nowhere/recipe.toml").unwrap_err().to_string().contains("/nowhere"));
}

#[test]
fn the_recipe_of_edu_is_read_with_its_register_file() {
    let recipe = Recipe::read(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/edu.recipe.toml"));
    let recipe = recipe.unwrap();
    assert_eq!(recipe.vectors(), Some((IrqKind::Msi, 1)));
    assert_eq!((recipe.steps.len(), recipe.limits().address_mask), (2, (1 << 28) - 1));
    assert!(Recipe::parse(EDU).is_err(), "without the file its names mean nothing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn no_text_makes_the_parser_panic(
        changes in proptest::collection::vec((0_usize..SMALL.len(), "[0-9a-z\\[\\]=\":<>&\\n-]{0,4}"), 0..8),
    ) {
        let mut text = SMALL.to_owned();
        for (at, part) in changes {
            let at = at.min(text.len());
            let end = (at + part.len()).min(text.len());
            text.replace_range(at..end, &part);
        }
        if let Ok(recipe) = Recipe::parse(&text) {
            let values = expression::Values { source: u64::MAX, target: u64::MAX, length: u64::MAX };
            for value in recipe.values() {
                let _ = value.value(&values);
            }
        }
    }

    #[test]
    fn no_expression_panics(text in "[0-9a-z+*/&|<> -]{0,24}", source: u64, length: u64) {
        if let Ok(expression) = text.parse::<Expression>() {
            let again: Expression = expression.to_string().parse().unwrap();
            prop_assert_eq!(&again, &expression);
            let _ = expression.value(&expression::Values { source, target: !source, length });
        }
    }
}
