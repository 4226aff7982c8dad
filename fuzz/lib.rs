//! Properties of any input at all, one for each fuzz target. Each takes bytes and panics where a property does not
//! hold; bytes that are refused with an error are fine.
//!
//! - [`import`]: what is imported is sound, can be exported, and reads back as the same model;
//! - [`text`]: what is parsed prints as a text that parses as the same graph;
//! - [`passes`]: no pass breaks a graph or its interface, and what all of them leave can be written and read back.
//!
//! `cargo xtask fuzz TARGET` runs a target; `regressions/` holds inputs that once broke a property, and the test below
//! replays them.

#![forbid(unsafe_code)]

pub mod seeds;

use std::sync::Arc;

use arbtest::arbitrary::Unstructured;
use bytes::Bytes;
use dmopt_fixtures::random;
use dmopt_ir::text::{Style, parse_model, print_model, print_model_as};
use dmopt_ir::{Boundary, External, Invariant, LoadExternal, Model, infer, verify_model};
use dmopt_onnx::{ExportOptions, decode, encode, export as to_proto};
use dmopt_passes::{Options, PIPELINE};

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[("import", import), ("text", text), ("passes", passes)];

/// Bytes of a model file.
pub fn import(data: &[u8]) {
    let Some(mut model) = read(data) else { return };
    assert_sound(&model);
    let first = write(&model);
    let again = read(&first).expect("what was written is read");
    assert_eq!(print_model(&again), print_model(&model), "reads back as another model");
    assert_eq!(write(&again), first, "is written in another way the second time");
    infer::infer_graph(&mut model.graph);
    assert_sound(&model);
    let _ = read(&write(&model)).expect("inferred types can be read");
}

/// Text of a graph.
pub fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(model) = parse_model(text) else { return };
    assert_sound(&model);
    let printed = print_model(&model);
    let again = parse_model(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}"));
    assert_eq!(print_model(&again), printed);
    for style in [Style::Onnx, Style::Example, Style::Display] {
        let _ = print_model_as(&model, style);
    }
    // A model that a text describes can be written, unless it has initializers without data.
    let _ = to_proto(&model, &ExportOptions::default());
}

/// A first byte that chooses passes and form, and then a model: a file, a text, or choices of the random generator.
pub fn passes(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let model = match choice >> 6 {
        0 | 1 => read(rest),
        2 => std::str::from_utf8(rest).ok().and_then(|text| parse_model(text).ok()),
        _ => {
            random::graph(&mut Unstructured::new(rest)).ok().and_then(|proto| read(&encode(&proto).concat()))
        }
    };
    let Some(mut model) = model else { return };
    // Above these sizes, an input shows nothing that a smaller one would not.
    if model.graph.op_count() > 200 {
        return;
    }
    // A text may leave out the elements of an initializer, a file may not.
    let writable = written(&model).is_some_and(|bytes| read(&bytes).is_some());
    let boundary = Boundary::of(&model.graph);
    let only = match PIPELINE.get(usize::from(choice & 0x3f) % (PIPELINE.len() + 1)) {
        Some(pass) => vec![pass.name().to_string()],
        None => Vec::new(),
    };
    let options = Options { only, verify: true, ..Options::default() };
    dmopt_passes::run(&mut model, &options).unwrap_or_else(|error| panic!("{error}"));
    assert_sound(&model);
    assert_eq!(boundary.check(&model.graph), []);
    if writable {
        let bytes = written(&model).expect("what passes leave can be exported");
        let again = read(&bytes).expect("what passes leave can be read back");
        assert_eq!(again.graph.op_count(), model.graph.op_count());
    }
}

/// The model in bytes, if they are one.
fn read(data: &[u8]) -> Option<Model> {
    let proto = decode("input", Bytes::copy_from_slice(data)).ok()?;
    dmopt_onnx::import(proto, Arc::new(NoFiles)).ok()
}

fn written(model: &Model) -> Option<Vec<u8>> {
    Some(encode(&to_proto(model, &ExportOptions::default()).ok()?).concat())
}

fn write(model: &Model) -> Vec<u8> {
    written(model).expect("what was imported can be exported")
}

/// What a file says about types and operator sets may contradict itself; the rest is ours to uphold.
fn assert_sound(model: &Model) {
    let mut violations = verify_model(model);
    violations.retain(|violation| !matches!(violation.invariant, Invariant::Typed | Invariant::Imported));
    assert_eq!(violations, []);
}

/// No external data.
struct NoFiles;

impl LoadExternal for NoFiles {
    fn load(&self, range: &External) -> Result<Bytes, String> {
        Err(format!("{}: not here", range.location))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_once_broke_a_property_does_so_no_more() {
        for (name, target) in TARGETS {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(name);
            for entry in std::fs::read_dir(folder).expect("a folder for each target") {
                let path = entry.expect("a file").path();
                println!("{}", path.display());
                target(&std::fs::read(path).expect("it can be read"));
            }
        }
    }

    /// Cut off at every byte, and with every bit flipped.
    #[test]
    fn damage_is_refused_or_harmless() {
        let seeds = seeds::all(None).expect("no file is needed");
        let small = seeds.iter().filter(|seed| seed.target == "import" && seed.bytes.len() < 400);
        for seed in small.step_by(7).take(4) {
            let whole = &seed.bytes;
            let every = PIPELINE.len() as u8;
            for end in 0..whole.len() {
                import(&whole[..end]);
            }
            for bit in 0..whole.len() * 8 {
                let mut damaged = whole.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                import(&damaged);
                if bit % 5 == 0 {
                    damaged.insert(0, every);
                    passes(&damaged);
                }
            }
        }
    }

    #[test]
    fn seeds_hold_the_properties_and_reach_every_target() {
        let seeds = seeds::all(None).expect("no file is needed");
        for (name, target) in TARGETS {
            let mine: Vec<_> = seeds.iter().filter(|seed| seed.target == *name).collect();
            assert!(mine.len() > 10, "{name}");
            mine.iter().for_each(|seed| target(&seed.bytes));
        }
    }
}
