//! Proof by execution: two files, the same inputs, the same outputs.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use dmopt_ir::Tensor;

use crate::compare::{Comparison, Tolerance, compare};
use crate::inputs::{Pins, Sizes, assignments, random_inputs};
use crate::{Backend, Interface, ModelFile, Named, Outputs, RuntimeError, Session};

/// Bytes that the values inside one model may take while they are compared.
const WATCH_BUDGET: u64 = 1 << 28;

/// What to run, and how far outputs may differ.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// The first seed; run `i` uses `seed + i`.
    pub seed: u64,
    /// Number of seeds at the first sizes that work; every further assignment of sizes runs with the first seed.
    pub seeds: usize,
    /// Number of assignments of sizes to the open dimensions that must run.
    pub sizes: usize,
    /// Whether values inside that have the same name are compared. True for a file and its rewrite, where equal names
    /// promise equal values; two unrelated files promise nothing.
    pub inside: bool,
    /// Sizes that the caller fixes.
    pub pins: Pins,
    /// Inputs to run with, one run each, instead of random ones.
    pub given: Vec<Vec<Named>>,
    /// Allowed difference, where sums are not long.
    pub tolerance: Tolerance,
    /// Terms of the longest sum in the model: what is allowed for those depends on the [execution
    /// provider](Tolerance::for_sums).
    pub terms: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 0,
            seeds: 3,
            sizes: 3,
            inside: true,
            pins: Pins::default(),
            given: Vec::new(),
            tolerance: Tolerance::EXACT,
            terms: 0,
        }
    }
}

impl Options {
    /// What outputs may differ by in this runtime.
    pub fn tolerance_in(&self, backend: &dyn Backend) -> Tolerance {
        self.tolerance.for_sums(self.terms, &backend.ep())
    }

    /// The inputs of the run with these sizes and this seed (see [`Run`]).
    ///
    /// # Errors
    /// See [`random_inputs`].
    pub fn inputs(
        &self,
        interface: &Interface,
        sizes: &Sizes,
        seed: u64,
    ) -> Result<Vec<Named>, RuntimeError> {
        match self.given.get(seed as usize) {
            Some(given) => Ok(given.clone()),
            None => random_inputs(interface, sizes, &self.pins, seed),
        }
    }
}

/// The verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Both files ran and every output agreed.
    Passed,
    /// The files have other inputs or outputs, the candidate does not run, or outputs differ.
    Failed,
    /// The reference does not run here, so nothing is known.
    Skipped,
}

/// What validation found.
#[derive(Clone, PartialEq, Debug)]
pub struct Validation {
    /// The verdict.
    pub status: Status,
    /// Name of the runtime.
    pub runtime: &'static str,
    /// Allowed difference.
    pub tolerance: Tolerance,
    /// Differences over all runs; `None` when no run was compared.
    pub comparison: Option<Comparison>,
    /// The same for values inside the graph; `None` when none was compared.
    pub inside: Option<Inside>,
    /// Why it failed or was skipped.
    pub reason: Option<String>,
    /// The runs that were compared.
    pub runs: Vec<Run>,
    /// Sizes that the reference does not run with, and why.
    pub refused: Vec<(Sizes, String)>,
}

/// How far values inside the graph are apart, in one run with the first sizes and seed that worked.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Inside {
    /// Number of values that have the same name in both files and were compared.
    pub values: usize,
    /// True when all of them had the same bits.
    pub bit_identical: bool,
    /// Largest relative difference; see [`Comparison::max_rel`].
    pub max_rel: f64,
}

/// One comparison: the same inputs through both files.
#[derive(Clone, PartialEq, Debug)]
pub struct Run {
    /// Seed of the inputs; of given inputs, their number, from 0.
    pub seed: u64,
    /// Sizes of the open dimensions; empty with given inputs.
    pub sizes: Sizes,
    /// Time of the reference.
    pub reference: Duration,
    /// Time of the candidate.
    pub candidate: Duration,
}

/// Validates with the embedded runtime; skipped when it was not built in.
///
/// # Errors
/// See [`validate_with`].
pub fn validate(
    reference: &ModelFile,
    candidate: &ModelFile,
    options: &Options,
) -> Result<Validation, RuntimeError> {
    #[cfg(feature = "tract")]
    return validate_with(&crate::tract::Tract, reference, candidate, options);
    #[cfg(not(feature = "tract"))]
    {
        let _ = (reference, candidate);
        Ok(Validation::new("none", options.tolerance).skipped("built without the embedded runtime"))
    }
}

/// Runs both files on the same inputs, random ones or those that the options give, and compares the outputs; then
/// once more, comparing every value inside that has the same name in both. A rewrite keeps a name only for the same
/// value, and in a network that damps what its early layers do, outputs alone say little about those. Stops at the
/// first run that fails. Interfaces are compared before anything runs.
///
/// # Errors
/// [`RuntimeError::Sizes`] when the pinned sizes contradict the reference. Whatever else goes wrong is a verdict.
pub fn validate_with(
    backend: &dyn Backend,
    reference: &ModelFile,
    candidate: &ModelFile,
    options: &Options,
) -> Result<Validation, RuntimeError> {
    let tolerance = options.tolerance_in(backend);
    let mut found = Validation::new(backend.name(), tolerance);
    let original = match backend.load_exact(reference) {
        Ok(session) => session,
        Err(e) => return Ok(found.skipped(e)),
    };
    let rewritten = backend.load_exact(candidate);
    if let Ok(session) = &rewritten
        && let Some(difference) = differ(original.interface(), session.interface())
    {
        return Ok(found.failed(difference));
    }
    let given = options.given.len();
    let all_sizes = match given {
        0 => assignments(original.interface(), &options.pins)?,
        _ => vec![Sizes::new()],
    };
    let mut pair = Pair { original, rewritten, options, tolerance };
    let mut sizes_run = 0;
    for sizes in all_sizes {
        if sizes_run == options.sizes.max(1) {
            break;
        }
        let (first, seeds) = match given {
            0 if sizes_run == 0 => (options.seed, options.seeds.max(1)),
            0 => (options.seed, 1),
            given => (0, given),
        };
        for seed in (0..seeds as u64).map(|i| first.wrapping_add(i)) {
            let result = match pair.compare_outputs(&sizes, seed) {
                Ok((run, result)) => {
                    found.runs.push(run);
                    result
                }
                Err(Stop::Refused(reason)) if given > 0 => return Ok(found.skipped(reason)),
                Err(Stop::Refused(reason)) => {
                    found.refused.push((sizes.clone(), reason));
                    break;
                }
                Err(Stop::Failed(reason)) => return Ok(found.failed(reason)),
            };
            let reason = (!result.passed()).then(|| result.describe("output elements"));
            match &mut found.comparison {
                Some(total) => total.merge(result),
                none => *none = Some(result),
            }
            if let Some(reason) = reason {
                let origin = pair.look_inside(&sizes, seed, &mut found.inside);
                let origin = origin.map(|inside| format!("; first inside the model: {inside}"));
                return Ok(found.failed(reason + &origin.unwrap_or_default()));
            }
        }
        if found.runs.last().is_some_and(|run| run.sizes == sizes) {
            sizes_run += 1;
        }
    }
    let Some(first) = found.runs.first() else {
        let reason = found.refused.first().map(|(_, reason)| reason.clone()).unwrap_or_default();
        return Ok(found.skipped(reason));
    };
    let (sizes, seed) = (first.sizes.clone(), first.seed);
    match pair.look_inside(&sizes, seed, &mut found.inside) {
        Some(difference) => Ok(found.failed(format!("a value inside the model differs: {difference}"))),
        None => Ok(found),
    }
}

/// Both models, loaded.
struct Pair<'a> {
    original: Box<dyn Session>,
    rewritten: Result<Box<dyn Session>, RuntimeError>,
    options: &'a Options,
    tolerance: Tolerance,
}

/// Why there is nothing to compare.
enum Stop {
    /// The reference does not run like this.
    Refused(String),
    /// The candidate does not do what the reference does.
    Failed(String),
}

impl Pair<'_> {
    /// The same inputs through both models, each on its own thread.
    fn run(&mut self, sizes: &Sizes, seed: u64) -> Result<(Outputs, Outputs), Stop> {
        let inputs = self.options.inputs(self.original.interface(), sizes, seed);
        let inputs = inputs.map_err(|e| Stop::Refused(e.to_string()))?;
        let rewritten = self.rewritten.as_deref_mut().ok();
        let (expected, actual) = std::thread::scope(|scope| {
            let other = rewritten.map(|session| scope.spawn(|| session.run(&inputs)));
            (self.original.run(&inputs), other.and_then(|thread| thread.join().ok()))
        });
        let expected = expected.map_err(|e| Stop::Refused(e.to_string()))?;
        if let Err(e) = &self.rewritten {
            return Err(Stop::Failed(format!("the candidate does not load: {e}")));
        }
        match actual {
            Some(Ok(actual)) => Ok((expected, actual)),
            Some(Err(e)) => Err(Stop::Failed(format!("the candidate does not run: {e}"))),
            None => Err(Stop::Failed("the run of the candidate panicked".to_string())),
        }
    }

    fn compare_outputs(&mut self, sizes: &Sizes, seed: u64) -> Result<(Run, Comparison), Stop> {
        let (expected, actual) = self.run(sizes, seed)?;
        let result = compare(&expected.tensors, &actual.tensors, self.tolerance)
            .map_err(|mismatch| Stop::Failed(mismatch.to_string()))?;
        Ok((Run { seed, sizes: sizes.clone(), reference: expected.wall, candidate: actual.wall }, result))
    }

    /// Compares the values inside that both models name, and tells the first that differs. Values that a runtime
    /// cannot show are passed over.
    fn look_inside(&mut self, sizes: &Sizes, seed: u64, total: &mut Option<Inside>) -> Option<String> {
        let rewritten = self.rewritten.as_deref_mut().ok()?;
        let theirs: HashSet<&String> = rewritten.values().iter().collect();
        let common: Vec<String> =
            self.original.values().iter().filter(|v| theirs.contains(v)).cloned().collect();
        if common.is_empty() || !self.options.inside {
            return None;
        }
        rewritten.watch(&common, WATCH_BUDGET);
        self.original.watch(&common, WATCH_BUDGET);
        let (expected, actual) = self.run(sizes, seed).ok()?;
        let actual: HashMap<&str, &Tensor> = actual.watched.iter().map(|(name, t)| (&**name, t)).collect();
        let inside = total.insert(Inside { values: 0, bit_identical: true, max_rel: 0.0 });
        for (name, a) in &expected.watched {
            let Some(b) = actual.get(&**name) else { continue };
            // Of a value that a runtime widens in one of the models alone, what comes of it is compared.
            if a.dtype != b.dtype {
                continue;
            }
            let pair = ([(name.clone(), a.clone())], [(name.clone(), (*b).clone())]);
            let result = match compare(&pair.0, &pair.1, self.tolerance.inside()) {
                Ok(result) => result,
                Err(mismatch) => return Some(mismatch.to_string()),
            };
            inside.values += 1;
            inside.bit_identical &= result.bit_identical;
            inside.max_rel = inside.max_rel.max(result.max_rel);
            if !result.passed() {
                return Some(result.describe("elements"));
            }
        }
        None
    }
}

impl Validation {
    /// A verdict that stands until something is found against it.
    fn new(runtime: &'static str, tolerance: Tolerance) -> Validation {
        Validation {
            status: Status::Passed,
            runtime,
            tolerance,
            comparison: None,
            inside: None,
            reason: None,
            runs: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// A verdict without a run.
    pub fn skip(runtime: &'static str, tolerance: Tolerance, reason: impl ToString) -> Validation {
        Validation::new(runtime, tolerance).skipped(reason)
    }

    fn skipped(self, reason: impl ToString) -> Validation {
        Validation { status: Status::Skipped, reason: Some(reason.to_string()), ..self }
    }

    fn failed(self, reason: impl ToString) -> Validation {
        Validation { status: Status::Failed, reason: Some(reason.to_string()), ..self }
    }

    /// True when every compared output had the same bits in both files.
    pub fn bit_identical(&self) -> bool {
        self.comparison.as_ref().is_some_and(|c| c.bit_identical)
    }
}

/// How two interfaces differ in names, order, element types or ranks: a sentence, or `None` when they do not.
pub fn differ(reference: &Interface, candidate: &Interface) -> Option<String> {
    let sides =
        [("input", &reference.inputs, &candidate.inputs), ("output", &reference.outputs, &candidate.outputs)];
    for (side, a, b) in sides {
        if a.len() != b.len() {
            return Some(format!("the candidate has {} {side}s instead of {}", b.len(), a.len()));
        }
        for (p, q) in a.iter().zip(b) {
            if p.name != q.name {
                return Some(format!("{side} {} is named {} in the candidate", p.name, q.name));
            }
            let ranks = p.ty.rank().zip(q.ty.rank());
            if p.ty.dtype != q.ty.dtype || ranks.is_some_and(|(m, n)| m != n) {
                return Some(format!("{side} {} is {} in the candidate, not {}", p.name, q.ty, p.ty));
            }
        }
    }
    None
}

#[cfg(test)]
#[cfg(feature = "tract")]
mod tests {
    use super::*;
    use crate::testing::*;
    use dmopt_ir::{DType, Safety};
    use std::path::Path;

    /// `y = sum_i s_i * x_i` over three streams of `x`, then a product with a matrix, repeated; `accumulate` says
    /// in which order the terms are added.
    fn mixing(scalars: [f64; 3], accumulate: [usize; 3]) -> ModelBuilder {
        let mut b = ModelBuilder::new().input("x", DType::F32, &["batch", "8"]).output(
            "y5",
            DType::F32,
            &["batch", "8"],
        );
        for (i, s) in scalars.iter().enumerate() {
            b = b.constant(&format!("s{i}"), &f32s(&[], &[*s]));
        }
        let mut rng = crate::inputs::Rng::new(42);
        let mut last = "x".to_string();
        for layer in 0..6 {
            for i in 0..3 {
                let w = crate::inputs::random_tensor(&mut rng, DType::F32, &[8, 8]).unwrap();
                b = b
                    .constant(&format!("w{layer}{i}"), &w)
                    .node("MatMul", &[&last, &format!("w{layer}{i}")], &[&format!("m{layer}{i}")])
                    .node("Mul", &[&format!("m{layer}{i}"), &format!("s{i}")], &[&format!("t{layer}{i}")]);
            }
            let term = |i: usize| format!("t{layer}{}", accumulate[i]);
            // Another partial sum needs another name: equal names promise equal values.
            let (partial, sum) = (format!("p{layer}{}", accumulate[0]), format!("y{layer}"));
            b = b.node("Add", &[&term(0), &term(1)], &[&partial]).node("Add", &[&partial, &term(2)], &[&sum]);
            last = sum;
        }
        b
    }

    fn options() -> Options {
        Options {
            tolerance: Tolerance::for_class(Safety::Reassociates, DType::F32, 12),
            ..Options::default()
        }
    }

    const SCALARS: [f64; 3] = [0.6, -0.4, 0.3];

    #[test]
    fn a_model_equals_itself_bit_by_bit_with_several_seeds_and_sizes() {
        let model = mixing(SCALARS, [0, 1, 2]).file();
        let v = validate(&model, &model, &Options::default()).unwrap();
        assert_eq!((v.status, v.reason.clone(), v.runtime), (Status::Passed, None, "tract"));
        assert!(v.bit_identical());
        let runs: Vec<(u64, u64)> = v.runs.iter().map(|r| (r.seed, r.sizes["batch"])).collect();
        assert_eq!(runs, [(0, 4), (1, 4), (2, 4), (0, 1), (0, 3)]);
    }

    #[test]
    fn a_reordered_sum_passes_within_tolerance_and_is_not_identical() {
        let v = validate(&mixing(SCALARS, [0, 1, 2]).file(), &mixing(SCALARS, [2, 1, 0]).file(), &options())
            .unwrap();
        assert_eq!(v.status, Status::Passed, "{v:?}");
        assert!(!v.bit_identical());
        assert!(v.comparison.unwrap().max_rel > 0.0);
    }

    #[test]
    fn a_reordered_sum_fails_where_bits_must_be_equal() {
        let (a, b) = (mixing(SCALARS, [0, 1, 2]).file(), mixing(SCALARS, [2, 1, 0]).file());
        assert_eq!(validate(&a, &b, &Options::default()).unwrap().status, Status::Failed);
    }

    #[test]
    fn one_scalar_off_by_a_percent_in_one_layer_fails() {
        let good = mixing(SCALARS, [0, 1, 2]);
        let bad = good.clone().constant("off", &f32s(&[], &[SCALARS[0] * 1.01])).edit(|_, g| {
            let node = g.node.iter_mut().find(|n| n.output[0] == "t30").unwrap();
            node.input[1] = "off".into();
        });
        let v = validate(&good.file(), &bad.file(), &options()).unwrap();
        assert_eq!(v.status, Status::Failed);
        let reason = v.reason.unwrap();
        assert!(reason.contains("output elements differ; the worst is y5["), "{reason}");
        assert!(reason.contains("; first inside the model: "), "{reason}");
        assert!(reason.contains("the worst is t30["), "{reason}");
        assert!(v.comparison.unwrap().max_rel > 1e-4);
    }

    fn export(name: &str) -> ModelFile {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/pytorch/");
        ModelFile::open(&Path::new(folder).join(name)).unwrap()
    }

    #[test]
    fn exports_with_a_symbolic_batch_run_with_several_batches() {
        let model = export("direct_mixing_conv_d18_n3_f13_symbatch_zeros_dynamo.onnx");
        let v = validate(&model, &model, &Options { seeds: 1, ..Options::default() }).unwrap();
        assert_eq!((v.status, v.reason.as_deref()), (Status::Passed, None));
        let batches: Vec<u64> = v.runs.iter().flat_map(|r| r.sizes.values().copied()).collect();
        assert_eq!(batches, [4, 1, 3]);
        assert!(v.inside.is_some_and(|inside| inside.values > 100 && inside.bit_identical));
    }

    #[test]
    fn exports_in_float16_run() {
        let model = export("direct_mixing_conv_d18_n2_f13_f16_ts.onnx");
        let v = validate(&model, &model, &Options { seeds: 1, ..Options::default() }).unwrap();
        assert_eq!((v.status, v.reason.as_deref()), (Status::Passed, None));
    }

    #[test]
    fn the_first_scalar_of_a_deep_export_off_by_a_percent_fails() {
        use prost::Message;
        let model = export("direct_mixing_conv_d18_n4_f1_ts.onnx");
        let mut proto = tract_onnx::pb::ModelProto::decode(&model.bytes[..]).unwrap();
        let constants = &mut proto.graph.as_mut().unwrap().initializer;
        let scalar = constants.iter_mut().find(|t| t.name == "stem.mixing.a.0").unwrap();
        let value = f32::from_le_bytes(scalar.raw_data[..].try_into().unwrap());
        scalar.raw_data = (value * 1.01).to_le_bytes().to_vec();
        let off = ModelFile { bytes: proto.encode_to_vec().into(), folder: None };
        let v = validate(&model, &off, &Options { seeds: 1, ..options() }).unwrap();
        assert_eq!(v.status, Status::Failed, "the logits alone differ by {:?}", v.comparison);
        assert!(v.reason.unwrap().starts_with("a value inside the model differs: "));
    }

    /// A network that damps everything before its last layer to a billionth.
    fn damped(scalar: f64) -> ModelFile {
        ModelBuilder::new()
            .input("x", DType::F32, &["4", "8"])
            .constant("s", &f32s(&[], &[scalar]))
            .constant("small", &f32s(&[], &[1e-9]))
            .constant("one", &f32s(&[], &[1.0]))
            .node("Mul", &["x", "s"], &["term"])
            .node("Add", &["x", "term"], &["sum"])
            .node("Mul", &["sum", "small"], &["damped"])
            .node("Add", &["damped", "one"], &["y"])
            .output("y", DType::F32, &["4", "8"])
            .file()
    }

    #[test]
    fn a_mistake_that_the_network_damps_shows_inside() {
        let v = validate(&damped(0.5), &damped(0.505), &options()).unwrap();
        assert_eq!(v.comparison.as_ref().map(|c| c.passed()), Some(true));
        assert_eq!(v.status, Status::Failed);
        let reason = v.reason.unwrap();
        assert!(reason.starts_with("a value inside the model differs: "), "{reason}");
        assert!(reason.contains("the worst is term["), "{reason}");
    }

    #[test]
    fn equal_models_are_equal_inside() {
        let v = validate(&damped(0.5), &damped(0.5), &Options::default()).unwrap();
        assert_eq!(v.inside, Some(Inside { values: 3, bit_identical: true, max_rel: 0.0 }));
    }

    #[test]
    fn a_reference_that_does_not_run_is_skipped_with_the_reason() {
        let model = |op: &str| {
            ModelBuilder::new().input("x", DType::F32, &["2"]).output("y", DType::F32, &["2"]).node(
                op,
                &["x"],
                &["y"],
            )
        };
        let v = validate(&model("Foo").file(), &model("Neg").file(), &Options::default()).unwrap();
        assert_eq!(
            (v.status, v.reason.unwrap().as_str()),
            (Status::Skipped, "operator Foo is not supported by tract")
        );
        let v = validate(&model("Neg").file(), &model("Foo").file(), &Options::default()).unwrap();
        assert_eq!(
            (v.status, v.reason.unwrap().as_str()),
            (Status::Failed, "the candidate does not load: operator Foo is not supported by tract")
        );
    }

    #[test]
    fn sizes_that_the_model_refuses_are_passed_over_and_recorded() {
        let model = ModelBuilder::new()
            .input("x", DType::F32, &["n", "m"])
            .constant("w", &f32s(&[24, 2], &[0.5; 48]))
            .node("MatMul", &["x", "w"], &["y"])
            .output("y", DType::F32, &["n", "2"])
            .file();
        let v = validate(&model, &model, &Options::default()).unwrap();
        assert_eq!(v.status, Status::Passed, "{v:?}");
        assert!(v.runs.iter().all(|r| r.sizes["m"] == 24));
        assert!(v.refused.iter().any(|(sizes, _)| sizes["m"] == 16));
    }

    #[test]
    fn when_no_size_runs_the_reason_is_the_first_one() {
        let model = ModelBuilder::new()
            .input("x", DType::F32, &["n"])
            .constant("w", &f32s(&[5], &[0.5; 5]))
            .node("Concat", &["x", "x"], &["c"])
            .edit(|_, g| g.node[0].attribute.push(int("axis", 0)))
            .node("Add", &["c", "w"], &["y"])
            .output("y", DType::F32, &["m"])
            .file();
        let v = validate(&model, &model, &Options::default()).unwrap();
        assert_eq!(v.status, Status::Skipped);
        assert!(v.reason.unwrap().starts_with("tract failed: "));
        assert_eq!(v.refused.len(), 4);
    }

    #[test]
    fn pinned_sizes_are_the_only_ones() {
        let model = mixing(SCALARS, [0, 1, 2]).file();
        let pins = Pins { dims: [("batch".to_string(), 5)].into(), ..Pins::default() };
        let v = validate(&model, &model, &Options { pins, ..Options::default() }).unwrap();
        assert_eq!(v.runs.iter().map(|r| r.sizes["batch"]).collect::<Vec<_>>(), [5, 5, 5]);
    }

    #[test]
    fn another_interface_fails() {
        let model = |name: &str, dtype| {
            ModelBuilder::new()
                .input(name, dtype, &["2"])
                .output("y", dtype, &["2"])
                .node("Neg", &[name], &["y"])
                .file()
        };
        let reason = |a: &ModelFile, b: &ModelFile| {
            let v = validate(a, b, &Options::default()).unwrap();
            assert_eq!(v.status, Status::Failed);
            v.reason.unwrap()
        };
        let reference = model("x", DType::F32);
        assert_eq!(reason(&reference, &model("z", DType::F32)), "input x is named z in the candidate");
        assert_eq!(
            reason(&reference, &model("x", DType::F64)),
            "input x is double[2] in the candidate, not float[2]"
        );
    }
}
