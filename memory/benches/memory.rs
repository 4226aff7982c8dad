//! How long planning and searching take: `cargo bench -p dmopt-memory`. Prints the median and the range of several runs;
//! nothing passes or fails.

use std::time::{Duration, Instant};

use dmopt_fixtures::nas::{Cells, Genotype};
use dmopt_fixtures::{Exporter, Network};
use dmopt_ir::Graph;
use dmopt_ir::text::{default_opsets, parse_graph};
use dmopt_memory::heuristics::Heuristic;
use dmopt_memory::ort::{self, Settings};
use dmopt_memory::problem::{Buffer, Operator};
use dmopt_memory::{Kernels, Limits, Problem, Scheduling, bound, search};
use dmopt_onnx::schema::ModelProto;

const KERNELS: Kernels = Kernels::OrtCpu { version: (1, 32) };

fn main() {
    println!("{:<66} {:>10}   {:>10} to {:<10}", "", "median", "least", "most");
    for streams in [2, 4, 8] {
        // Few channels: times depend on the graph alone.
        let network = Network {
            streams,
            batch: Some(1),
            size: (224, 224),
            width: 4,
            exporter: Exporter::Dynamo,
            ..Network::default()
        };
        graph(&format!("direct mixing, {streams} streams"), network.build());
    }
    for genotype in Genotype::ALL {
        for network in [Cells::image_net(genotype), Cells::cifar(genotype)] {
            graph(&network.name(), network.build());
        }
    }
    big();
}

fn big() {
    let lines: String =
        (1..20_000usize).map(|v| format!("v{v} = Add(v{}, v{})\n", v - 1, v.saturating_sub(7))).collect();
    let text = format!("g (float[64] v0) => (float[64] v19999) {{ {lines} }}");
    let mut graph = parse_graph(&text, default_opsets()).expect("a graph");
    dmopt_ir::infer::infer_graph(&mut graph);
    time("20000 operators: plan of ONNX Runtime", 5, || {
        ort::plan(&graph, &Settings::default()).map(|plan| plan.first_run.peak_bytes)
    });
    for wide in [1, 100, 20_000] {
        let problem = lanes(20_000, wide);
        let name = format!("20000 operators, {wide} side by side");
        let order: Vec<usize> = (0..problem.len()).collect();
        time(&format!("{name}: peak of an order"), 5, || problem.peak(&order));
        time(&format!("{name}: search"), 1, || search(&problem, &Limits::default()).peak_bytes);
    }
}

fn graph(name: &str, model: ModelProto) {
    let bytes = dmopt_onnx::encode(&model).concat();
    let model = dmopt_onnx::parse(name, bytes.into(), dmopt_onnx::Folder::new("")).expect("a valid model");
    let mut graph: Graph = model.graph;
    dmopt_ir::infer::infer_graph(&mut graph);
    let scheduling = Scheduling::new(&graph, KERNELS).expect("known sizes");
    let problem = scheduling.problem();
    let file = Heuristic::File.order(problem);
    let name = format!("{name} ({} operators)", problem.len());
    time(&format!("{name}: problem of a graph"), 5, || {
        Scheduling::new(&graph, KERNELS).map(|s| s.ops().len())
    });
    time(&format!("{name}: plan of ONNX Runtime"), 5, || {
        ort::plan(&graph, &Settings::default()).map(|plan| plan.first_run.peak_bytes)
    });
    time(&format!("{name}: cut bound"), 5, || bound::cut(problem, &file, u64::MAX));
    time(&format!("{name}: search"), 5, || search(problem, &Limits::default()).peak_bytes);
}

/// Rows of operators that each read the one before, side by side, and one that reads all last ones. Sizes rise and fall.
fn lanes(operators: usize, wide: usize) -> Problem {
    let mut ops: Vec<Operator> = Vec::new();
    for v in 0..operators {
        let reads = if v >= wide { vec![v - wide] } else { Vec::new() };
        ops.push(Operator { creates: vec![v], reads, ..Operator::default() });
    }
    ops.push(Operator {
        creates: vec![operators],
        reads: (operators - wide..operators).collect(),
        ..Operator::default()
    });
    let bytes = |v: usize| 1 + (v as u64 * 7919) % 1000;
    let buffers = (0..=operators).map(|v| Buffer::new(bytes(v), v == operators)).collect();
    Problem::new(ops, buffers).expect("an order")
}

fn time<T>(what: &str, runs: usize, mut run: impl FnMut() -> T) {
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(run());
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("{what:<66} {:>10.2?}   {:>10.2?} to {:<10.2?}", times[runs / 2], times[0], times[runs - 1]);
}
