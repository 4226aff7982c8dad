//! What is in a model, without changing it.

use std::collections::BTreeMap;

use dmopt_ir::Sizes;
use serde::{Deserialize, Serialize};

use crate::choose::ORDER;
use crate::facts::each_graph;
use crate::report::{MixingSite, OpenSizes};
use crate::rewrite::Inferred;
use crate::{Error, Facts, Options, Source, ir, memory};

/// The value of [`Inspection::schema`].
pub const SCHEMA: &str = "dmopt.inspect/1";

/// What is in a model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Inspection {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The file, or `<stdin>`.
    pub path: String,
    /// Size of the file in bytes, external data left out.
    pub file_bytes: u64,
    /// Version of the file format.
    pub ir_version: i64,
    /// Imported operator sets; the standard one is called `ai.onnx`.
    pub opsets: BTreeMap<String, i64>,
    /// Inputs that a run has to provide or may provide.
    pub inputs: Vec<Value>,
    /// Outputs.
    pub outputs: Vec<Value>,
    /// Operators, those of bodies included.
    pub nodes: u64,
    /// How many there are of each type, after `domain::` for another than the standard domain.
    pub operators: BTreeMap<String, u64>,
    /// Model-local functions.
    pub functions: Vec<String>,
    /// Elements of all constants.
    pub parameters: u64,
    /// Bytes of the same, wherever they are stored.
    pub initializer_bytes: u64,
    /// The linear combinations that `optimize` would find.
    pub mixing_sites: Vec<MixingSite>,
    /// Predicted peak of a session of ONNX Runtime without optimizations, in bytes; null when sizes are not known.
    pub peak_bytes: Option<u64>,
    /// What is in memory then: value and bytes, largest first.
    pub peak_values: Vec<(String, u64)>,
    /// What the kernel that runs then needs for itself, in bytes.
    pub peak_scratch_bytes: u64,
    /// Why the peak is not known.
    pub peak_reason: Option<String>,
}

/// An input or output.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Value {
    /// Name.
    pub name: String,
    /// Type in ONNX's textual syntax; null when it is not declared.
    #[serde(rename = "type")]
    pub ty: Option<String>,
}

/// Looks into a model. `sizes` stand for open dimensions where memory is concerned.
///
/// # Errors
/// See [`Error`].
pub fn inspect(source: &Source, sizes: &Sizes) -> Result<Inspection, Error> {
    let inferred = Inferred::of(source.model()?);
    let model = &inferred.model;
    let open = OpenSizes::of(&model.graph, sizes, memory::ort::Settings::default().kernels)
        .map_err(|reason| Error::Sizes { file: source.name.clone(), reason })?;
    // The sites are those that the passes find in a copy that goes nowhere, whatever its order.
    let skip = ORDER.map(String::from).to_vec();
    let (_, outcome) = inferred.rewritten(source, &Options { skip, ..Options::default() }, None)?;

    let graph = &model.graph;
    let value = |&id: &ir::ValueId| {
        let value = graph.value(id);
        Value { name: value.name.clone(), ty: value.ty.as_ref().map(|ty| ty.to_string()) }
    };
    let mut operators = BTreeMap::new();
    each_graph(graph, &mut |graph| {
        for op in graph.ops().map(|id| graph.op(id)) {
            *operators.entry(qualified(&op.domain, &op.op_type)).or_insert(0) += 1;
        }
    });
    let plan = open.plan(graph, None);
    let mut peak_values: Vec<(String, u64)> = match &plan {
        Ok(plan) => {
            let live = plan.first_run.live(plan.first_run.peak_step);
            live.map(|(buffer, _)| (graph.value(buffer.value).name.clone(), buffer.bytes)).collect()
        }
        Err(_) => Vec::new(),
    };
    let at_peak = |plan: &memory::ort::Plan| plan.first_run.steps.get(plan.first_run.peak_step).cloned();
    let scratch = plan.as_ref().ok().and_then(at_peak).map_or(0, |step| step.scratch_bytes);
    peak_values.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let Facts { nodes, parameters, initializer_bytes } = Facts::of(model);
    let domain = |name: &str| if name.is_empty() { "ai.onnx".to_string() } else { name.to_string() };
    Ok(Inspection {
        schema: SCHEMA.to_string(),
        path: source.name.clone(),
        file_bytes: source.bytes.len() as u64,
        ir_version: model.ir_version,
        opsets: model.opsets.iter().map(|(name, &version)| (domain(name), version)).collect(),
        inputs: graph.inputs().iter().map(value).collect(),
        outputs: graph.outputs().iter().map(value).collect(),
        nodes,
        operators,
        functions: model.functions.iter().map(|f| qualified(&f.domain, &f.name)).collect(),
        parameters,
        initializer_bytes,
        mixing_sites: outcome.sites.iter().map(MixingSite::from).collect(),
        peak_bytes: plan.as_ref().ok().map(|plan| plan.first_run.peak_bytes),
        peak_values,
        peak_scratch_bytes: scratch,
        peak_reason: plan.err(),
    })
}

fn qualified(domain: &str, op_type: &str) -> String {
    if domain.is_empty() || domain == "ai.onnx" {
        op_type.to_string()
    } else {
        format!("{domain}::{op_type}")
    }
}
