//! One direct-mixing network, or one layer, of any size as an ONNX file.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use dmopt_fixtures::{Exporter, FORMS, KINDS, Layer, Network};

/// What to build. The defaults are the network that the documentation measures.
#[derive(Args)]
pub struct Choices {
    /// The file to write
    output: PathBuf,
    /// Which network
    #[arg(long, default_value = "direct_mixing_conv", value_parser = names(KINDS.iter().map(|k| k.name())))]
    kind: String,
    /// How the mixing is written
    #[arg(long, default_value = "f13", value_parser = names(FORMS.iter().map(|f| f.name())))]
    form: String,
    /// Whose habits the file shows
    #[arg(long, default_value = "dynamo", value_parser = names(Exporter::ALL.iter().map(|e| e.name())))]
    exporter: String,
    /// Number of streams
    #[arg(long, default_value_t = 2)]
    streams: usize,
    /// 18, 34 or 50 layers
    #[arg(long, default_value_t = 18)]
    depth: u32,
    /// Channels of the first stage
    #[arg(long, default_value_t = 64)]
    width: u64,
    /// Samples per batch; 0 for the symbol `batch`
    #[arg(long, default_value_t = 4)]
    batch: u64,
    /// Height of the inputs
    #[arg(long, default_value_t = 208)]
    height: u64,
    /// Width of the inputs
    #[arg(long, default_value_t = 272)]
    breadth: u64,
}

fn names(all: impl Iterator<Item = &'static str>) -> PossibleValuesParser {
    all.collect::<Vec<_>>().into()
}

/// Writes the network.
pub fn write(choices: &Choices) -> anyhow::Result<()> {
    let kind = KINDS.iter().find(|k| k.name() == choices.kind).context("no such network")?;
    let form = FORMS.iter().find(|f| f.name() == choices.form).context("no such form")?;
    let exporter = Exporter::ALL.iter().find(|e| e.name() == choices.exporter).context("no such exporter")?;
    if !kind.takes(*form) {
        bail!("{} has no form {}", kind.name(), form.name());
    }
    if choices.streams == 0 || ![18, 34, 50].contains(&choices.depth) {
        bail!("a network has one stream or more, and 18, 34 or 50 layers");
    }
    let network = Network {
        kind: *kind,
        form: *form,
        exporter: *exporter,
        streams: choices.streams,
        depth: choices.depth,
        width: choices.width,
        batch: (choices.batch > 0).then_some(choices.batch),
        size: (choices.height, choices.breadth),
        classes: 19,
        ..Network::default()
    };
    std::fs::write(&choices.output, network.bytes())
        .with_context(|| format!("cannot write {}", choices.output.display()))?;
    println!("{}: {}", choices.output.display(), network.name());
    Ok(())
}

/// What layer to build. The defaults are the example of the documentation.
#[derive(Args)]
pub struct LayerChoices {
    /// The file to write
    output: PathBuf,
    /// Number of streams
    #[arg(long, default_value_t = 2)]
    streams: usize,
    /// Channels of each stream
    #[arg(long, default_value_t = 128)]
    channels: u64,
    /// Samples per batch
    #[arg(long, default_value_t = 32)]
    batch: u64,
    /// Height of the streams
    #[arg(long, default_value_t = 52)]
    height: u64,
    /// Width of the streams
    #[arg(long, default_value_t = 68)]
    breadth: u64,
}

/// Writes the layer.
pub fn write_layer(choices: &LayerChoices) -> anyhow::Result<()> {
    let LayerChoices { output, streams, channels, batch, height, breadth } = choices;
    if *streams == 0 {
        bail!("a layer has one stream or more");
    }
    let layer = Layer { streams: *streams, channels: *channels, batch: *batch, size: (*height, *breadth) };
    std::fs::write(output, layer.bytes()).with_context(|| format!("cannot write {}", output.display()))?;
    println!("{}: {layer:?}", output.display());
    Ok(())
}
