//! What fuzzing starts from: the examples of the passes, as text and as files, and small models of the ONNX backend
//! tests where they are at hand.

use std::fs;
use std::io;
use std::path::Path;

use dmopt_ir::text::parse_model;
use dmopt_onnx::{ExportOptions, encode, export};
use dmopt_passes::{PIPELINE, header};

/// Models of the backend tests above this many bytes are left out: mutations of long inputs find less per second.
const LARGEST: usize = 2048;

/// One input.
pub struct Seed {
    /// The target that it is for.
    pub target: &'static str,
    /// Name of its file.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// The seeds for every target; `models` is the folder that `scripts/backend_models.py` writes.
///
/// # Errors
/// That folder cannot be read.
pub fn all(models: Option<&Path>) -> io::Result<Vec<Seed>> {
    let mut seeds = Vec::new();
    // The number of passes stands for all of them.
    let every = PIPELINE.len() as u8;
    let mut add = |target, name: String, bytes| seeds.push(Seed { target, name, bytes });
    for (chosen, pass) in (0u8..).zip(PIPELINE) {
        let examples = header::examples(pass.source()).unwrap_or_default();
        let befores = examples.rewrites.iter().map(|rewrite| &rewrite.before.text);
        let texts = befores.chain(examples.refusals.iter().map(|refusal| &refusal.graph.text));
        for (number, text) in texts.enumerate() {
            let name = format!("{}-{number}", pass.name());
            add("text", name.clone(), text.clone().into_bytes());
            add("passes", format!("{name}-text"), with(0x80 | chosen, text.as_bytes()));
            let model = parse_model(text).ok();
            let Some(proto) = model.and_then(|model| export(&model, &ExportOptions::default()).ok()) else {
                continue;
            };
            let file = encode(&proto).concat();
            add("passes", format!("{name}-file"), with(chosen, &file));
            add("passes", format!("{name}-all"), with(every, &file));
            add("import", name, file);
        }
    }
    for chosen in 0..=every {
        add("passes", format!("random-{chosen}"), with(0xc0 | chosen, &[chosen.wrapping_mul(37); 512]));
    }
    for entry in models.map(fs::read_dir).transpose()?.into_iter().flatten() {
        let entry = entry?;
        let Ok(file) = fs::read(entry.path().join("model.onnx")) else { continue };
        if file.len() <= LARGEST {
            let name = entry.file_name().to_string_lossy().into_owned();
            add("passes", name.clone(), with(every, &file));
            add("import", name, file);
        }
    }
    Ok(seeds)
}

fn with(first: u8, rest: &[u8]) -> Vec<u8> {
    [&[first], rest].concat()
}
