//! Rows of the table.

use dmopt_fixtures::nas::{Aggregation, Cells, Genotype, RandWire};
use dmopt_fixtures::{Exporter, Network};
use dmopt_memory::heuristics::Heuristic;
use dmopt_memory::search::Certificate;
use dmopt_memory::{Kernels, Limits, Scheduling, search};
use dmopt_onnx::schema::ModelProto;

/// What stands around the table.
pub const BEGIN: &str = "<!-- table -->";
/// See [`BEGIN`].
pub const END: &str = "<!-- end of table -->";

/// The first two lines.
pub const HEAD: &str = "\
| network | operators | ONNX Runtime's default order | file order | best classic heuristic | found | lower bound | optimal | states |
|---|---:|---:|---:|---|---:|---:|---|---:|
";

/// A network's name and how to build it.
pub type Entry = (String, Box<dyn Fn() -> ModelProto>);

/// Every network of the table.
pub fn networks() -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    for streams in [2, 3, 4, 6, 8] {
        all.push(direct_mixing(streams, 1, (224, 224)));
    }
    for streams in [2, 4] {
        all.push(direct_mixing(streams, 4, (208, 272)));
    }
    for make in [Cells::image_net, Cells::cifar] {
        for network in Genotype::ALL.map(make) {
            all.push((network.name(), Box::new(move || network.build())));
        }
    }
    for aggregation in [Aggregation::Sum, Aggregation::Weighted] {
        for seed in 0..4 {
            let network = RandWire { seed, aggregation, ..RandWire::default() };
            all.push((network.name(), Box::new(move || network.build())));
        }
    }
    all
}

/// Depth 18, 64 channels, every site written as a loop.
pub fn direct_mixing(streams: usize, batch: u64, size: (u64, u64)) -> Entry {
    let network = Network {
        streams,
        batch: Some(batch),
        size,
        width: 64,
        exporter: Exporter::Dynamo,
        ..Network::default()
    };
    let name = format!("direct mixing, {streams} streams, {batch} x {} x {}", size.0, size.1);
    (name, Box::new(move || network.build()))
}

/// A line of the table.
///
/// # Panics
/// The model is none whose sizes are known: a mistake in the code that built it.
pub fn row(name: &str, model: &ModelProto) -> String {
    let bytes = dmopt_onnx::encode(model).concat();
    let model = dmopt_onnx::parse(name, bytes.into(), dmopt_onnx::Folder::new("")).expect("a valid model");
    let mut graph = model.graph;
    dmopt_ir::infer::infer_graph(&mut graph);
    let scheduling = Scheduling::new(&graph, Kernels::OrtCpu { version: (1, 32) }).expect("known sizes");
    let problem = scheduling.problem();
    let peak = |heuristic: Heuristic| problem.peak(&heuristic.order(problem));
    let (default, file) = (Heuristic::ReverseDepthFirst, Heuristic::File);
    let classic = Heuristic::ALL.into_iter().filter(|&h| h != default && h != file);
    let (best, which) = classic.map(|h| (peak(h), h)).min_by_key(|&(peak, _)| peak).unwrap_or((0, file));
    let found = search(problem, &Limits::default());
    let optimal = match found.certificate() {
        Certificate::Optimal => "yes".to_string(),
        Certificate::Within(ratio) => format!("within {:.1} %", (ratio - 1.0) * 100.0),
    };
    let mib = |bytes: u64| format!("{:.2}", bytes as f64 / (1u64 << 20) as f64);
    format!(
        "| {name} | {} | {} | {} | {} ({which:?}) | {} | {} | {optimal} | {} |",
        problem.len(),
        mib(peak(default)),
        mib(peak(file)),
        mib(best),
        mib(found.peak_bytes),
        mib(found.lower_bound_bytes),
        found.states
    )
}
