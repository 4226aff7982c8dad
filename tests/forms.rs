//! Every form of the mixing: each site is found and rewritten, nothing of the form stays, and (with the feature
//! `tract`) the outputs are those of the model as it was.

use std::fmt::Write;
use std::ops::RangeInclusive;

use bytes::Bytes;
use dmopt_fixtures::{Biases, Exporter, FORMS, Form, KINDS, Kind, Network, SPREADS, Scalars, Source, Spread};
use dmopt_ir::{Model, verify_model};
use dmopt_onnx::schema::DataType;
use dmopt_onnx::{ExportOptions, Folder};
use dmopt_passes::{Options, Outcome, Planning, Site, Target};

/// The network that the tests change.
fn small() -> Network {
    Network { width: 2, widest: Some(4), size: (32, 32), ..Network::default() }
}

fn import(file: &str, bytes: Bytes) -> Model {
    dmopt_onnx::parse(file, bytes, Folder::new(".")).unwrap_or_else(|error| panic!("{error}"))
}

fn export(model: &Model) -> Bytes {
    let proto =
        dmopt_onnx::export(model, &ExportOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    dmopt_onnx::encode(&proto).concat().into()
}

fn run(model: &mut Model, options: &Options<'_>) -> Outcome {
    dmopt_passes::run(model, options).unwrap_or_else(|error| panic!("{error}"))
}

fn rewrites(outcome: &Outcome) -> u64 {
    outcome.passes.iter().map(|pass| pass.rewrites).sum()
}

fn count(model: &Model, op_type: &str) -> usize {
    model.graph.ops().filter(|&op| model.graph.op(op).is(op_type)).count()
}

/// Operators that only a form puts there, and how many of them stay in any case.
fn leftovers(network: &Network, model: &Model) -> Vec<String> {
    let sites = network.sites();
    let gates = match network.source {
        Source::Computed if network.spread == Spread::Sample => true,
        _ => network.form == Form::F11Sample,
    };
    let attends = network.form == Form::F11Attention;
    let unsqueezes = if network.exporter == Exporter::TorchScript { 2 } else { 1 };
    let allowed = |op_type: &str| match op_type {
        "Unsqueeze" if gates => unsqueezes * sites * network.streams,
        "Concat" if attends => sites,
        // One stream is scaled, not mixed, and a product by a `[1]` vector is as good as any.
        "MatMul" if network.streams == 1 => sites,
        // Kernels that are no scaled identities.
        "Concat" if network.kind.has_kernels() && network.form == Form::F6 => sites,
        _ => 0,
    };
    let of_forms =
        ["Concat", "Unsqueeze", "ReduceSum", "Einsum", "MatMul", "Flatten", "Sum", "Mean", "Where"];
    let found = |op_type: &&str| {
        let flatten = usize::from(*op_type == "Flatten" && network.exporter == Exporter::TorchScript);
        let (count, allowed) = (count(model, op_type), allowed(op_type) + flatten);
        (count > allowed).then(|| format!("{count} {op_type} stay, {allowed} expected"))
    };
    of_forms.iter().filter_map(found).collect()
}

/// True when every `a` is 1, so that folding leaves no product.
fn is_one(scalars: Scalars) -> bool {
    matches!(scalars, Scalars::Ones | Scalars::Initial)
}

/// How many mixing sites a network has as far as its file shows.
fn expected_sites(network: &Network) -> RangeInclusive<usize> {
    let all = network.sites();
    // The first site adds nothing up where there is one stream or one joint kernel for all of them, and looks like a
    // residual connection where it adds two values that have no scale of their own.
    let joint = network.kind.has_kernels() && network.form == Form::F6;
    let unscaled = network.form == Form::F12Narrow || network.form == Form::F12 && is_one(network.scalars);
    if network.streams == 1 || joint || (unscaled && network.streams == 2) {
        all - 1..=all
    } else {
        all..=all
    }
}

/// What is wrong with the optimized form of a network; empty when all is well.
fn faults(network: &Network) -> String {
    let mut faults = String::new();
    let mut fault = |what: String| _ = writeln!(faults, "  {what}");
    let name = network.name();
    let mut model = import(&name, network.bytes().into());
    let interface = |model: &Model| {
        let graph = &model.graph;
        let named = |ids: &[_]| ids.iter().map(|&v| graph.value(v).name.clone()).collect::<Vec<_>>();
        (named(graph.inputs()), named(graph.outputs()))
    };
    let ports = interface(&model);
    let outcome = run(&mut model, &Options::default());

    let (sites, expected) = (outcome.sites.len(), expected_sites(network));
    if !expected.contains(&sites) {
        fault(format!("{sites} sites found, {expected:?} expected"));
    }
    // A chain may stand as it should already.
    let fine = |site: &&Site| site.rewritten || (site.form == "chain" && site.reason.is_none());
    let left: Vec<_> = outcome.sites.iter().filter(|site| !fine(site)).collect();
    if let Some(site) = left.first() {
        let (output, form, reason) = (&site.output, site.form, site.reason.as_deref().unwrap_or("no reason"));
        fault(format!("{} sites not rewritten, such as {output} ({form}): {reason}", left.len()));
    }
    leftovers(network, &model).into_iter().for_each(&mut fault);
    if interface(&model) != ports {
        fault("inputs or outputs have other names".to_string());
    }
    if let Some(violation) = verify_model(&model).first() {
        fault(format!("not sound: {violation}"));
    }

    let after = export(&model);
    let mut again = import(&name, after);
    let second = run(&mut again, &Options::default());
    if rewrites(&second) > 0 {
        let busy = second.passes.iter().filter(|pass| pass.rewrites > 0);
        let busy: Vec<_> = busy.map(|pass| format!("{} {}", pass.rewrites, pass.name)).collect();
        fault(format!("a second run rewrites: {}", busy.join(", ")));
    }
    faults
}

fn check(networks: impl IntoIterator<Item = Network>) {
    let mut failures = String::new();
    let mut failed = 0;
    for network in networks {
        let faults = faults(&network);
        if !faults.is_empty() {
            failed += 1;
            failures += &format!("{}\n{faults}", network.name());
        }
    }
    assert!(failures.is_empty(), "{failed} networks:\n{failures}");
}

fn forms(change: impl Fn(usize, Form) -> Network) -> Vec<Network> {
    FORMS.iter().enumerate().map(|(i, &form)| change(i, form)).collect()
}

fn exporter(i: usize) -> Exporter {
    Exporter::ALL[i % 2]
}

#[test]
fn two_streams_as_torchscript_exports_them() {
    check(forms(|_, form| Network { form, ..small() }));
}

#[test]
fn two_streams_as_dynamo_exports_them() {
    check(forms(|_, form| Network { form, exporter: Exporter::Dynamo, ..small() }));
}

#[test]
fn four_streams_as_torchscript_exports_them() {
    check(forms(|_, form| Network { form, streams: 4, ..small() }));
}

#[test]
fn four_streams_as_dynamo_exports_them() {
    check(forms(|_, form| Network { form, streams: 4, exporter: Exporter::Dynamo, ..small() }));
}

#[test]
fn three_streams_a_zero_scalar_and_a_symbolic_batch_in_half_precision() {
    check(forms(|i, form| Network {
        form,
        streams: 3,
        scalars: Scalars::Zeros,
        batch: None,
        dtype: DataType::Float16,
        exporter: exporter(i),
        ..small()
    }));
}

#[test]
fn negative_scalars_a_symbolic_batch_and_operands_the_other_way_round() {
    check(forms(|i, form| Network {
        form,
        streams: 3,
        scalars: Scalars::Negative,
        batch: None,
        flip: true,
        exporter: exporter(i + 1),
        ..small()
    }));
}

#[test]
fn scalars_of_one_or_within_one_and_biases_on_every_stream() {
    let scalars = [Scalars::Ones, Scalars::Initial, Scalars::Convex];
    check(forms(|i, form| Network {
        form,
        scalars: scalars[i % 3],
        biases: Biases::Both,
        exporter: exporter(i),
        ..small()
    }));
}

#[test]
fn one_stream_without_biases() {
    check(forms(|i, form| Network {
        form,
        streams: 1,
        biases: Biases::None,
        exporter: exporter(i + 1),
        ..small()
    }));
}

#[test]
fn sixteen_streams() {
    let networks = forms(|i, form| Network { form, streams: 16, exporter: exporter(i), ..small() });
    check(networks.into_iter().step_by(5));
}

#[test]
fn other_precisions() {
    let dtypes = [DataType::Double, DataType::Bfloat16, DataType::Float16];
    let networks =
        forms(|i, form| Network { form, dtype: dtypes[i % 3], exporter: exporter(i / 3), ..small() });
    let exists = |network: &Network| network.dtype != DataType::Bfloat16 || !network.form.uses_einsum();
    check(networks.into_iter().filter(exists));
}

/// What stands around the mixing differs; every network meets half of the forms that it has.
#[test]
fn every_network() {
    for (at, &kind) in KINDS.iter().enumerate().filter(|(_, kind)| **kind != Kind::DirectMixingConv) {
        let networks = forms(|i, form| Network { kind, form, exporter: exporter(i / 2), ..small() });
        let networks = networks.into_iter().skip(at % 2).step_by(2);
        check(networks.filter(|network| network.kind.takes(network.form)));
    }
}

/// The weights of samples are computed from the raw streams, which need not exist for that.
#[test]
fn streams_that_are_weighed_by_what_is_computed_of_them_take_their_normalization_in() {
    let network = Network { form: Form::F11Sample, size: (48, 48), batch: Some(2), ..small() };
    let mut model = import("gated.onnx", network.bytes().into());
    let normalized = count(&model, "BatchNormalization");
    let planning = Planning { target: Target::OrtCpu, ..Planning::default() };
    run(&mut model, &Options { planning, ..Options::default() });
    let operators = model.graph.ops().map(|op| model.graph.op(op));
    let biased = operators.filter(|op| op.op_type == "FusedConv" && op.input(2).is_some()).count();
    let left = count(&model, "BatchNormalization");
    // Those of images so small that a step in place is slower keep theirs.
    assert!(biased > 0 && left < normalized, "{biased} steps with a bias, {left} of {normalized} are left");
}

#[test]
fn deeper_networks() {
    for (depth, form) in [(34, Form::F3), (50, Form::F1)] {
        check(KINDS.iter().map(|&kind| Network { kind, depth, form, ..small() }));
    }
}

#[test]
fn coefficients_of_every_shape() {
    let sources = [Source::Constant, Source::Computed];
    let forms: Vec<Form> = FORMS.iter().copied().filter(|form| form.takes_coefficients()).collect();
    for (at, &spread) in SPREADS.iter().enumerate() {
        let network = |(i, &form): (usize, &Form)| {
            let source = sources[(i / 2 + at) % 2];
            Network { form, spread, source, exporter: exporter(i / 4), ..small() }
        };
        check(forms.iter().enumerate().skip(at % 2).step_by(2).map(network));
    }
}

#[test]
fn old_and_new_operator_sets() {
    for opset in [12, 13, 17, 18, 23] {
        check([Form::F3, Form::F10].map(|form| Network { form, opset: Some(opset), ..small() }));
    }
}

#[cfg(feature = "tract")]
mod outputs {
    //! What the models compute, in the embedded runtime.

    use dmopt_ir::{DType, Safety};
    use dmopt_runtime::compare::compare;
    use dmopt_runtime::inputs::{Rng, random_tensor};
    use dmopt_runtime::tract::Tract;
    use dmopt_runtime::{Backend, ModelFile, Named, Status, Tolerance, validate};

    use super::*;

    fn file(bytes: Bytes) -> ModelFile {
        ModelFile { bytes, folder: None }
    }

    /// What the passes may do to the outputs of a network.
    fn tolerance(network: &Network, class: Safety) -> Tolerance {
        let dtype = DType::from_code(network.dtype.into());
        dtype.map_or(Tolerance::EXACT, |dtype| Tolerance::for_class(class, dtype, network.sites()))
    }

    /// The embedded runtime does not know the ellipsis of Einsum.
    fn can_run(network: &Network) -> bool {
        network.form != Form::F7Ellipsis
    }

    fn compare_before_and_after(networks: impl IntoIterator<Item = Network>) {
        compare_for(Target::Portable, networks);
    }

    fn compare_for(target: Target, networks: impl IntoIterator<Item = Network>) {
        for network in networks.into_iter().filter(can_run) {
            let name = network.name();
            let before = Bytes::from(network.bytes());
            let mut model = import(&name, before.clone());
            let planning = Planning { target, ..Planning::default() };
            let outcome = run(&mut model, &Options { planning, ..Options::default() });
            let tolerance = tolerance(&network, outcome.safety.unwrap_or(Safety::Exact));
            let options = dmopt_runtime::Options { seeds: 1, sizes: 2, tolerance, ..Default::default() };
            let validation = validate(&file(before), &file(export(&model)), &options);
            let validation = validation.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(validation.status, Status::Passed, "{name}: {:?}", validation.reason);
        }
    }

    #[test]
    fn every_form_keeps_its_outputs() {
        compare_before_and_after(forms(|i, form| Network { form, exporter: exporter(i), ..small() }));
    }

    /// Images large enough for steps in place with weights that are computed.
    #[test]
    fn computed_weights_keep_outputs_in_place() {
        let forms = [Form::F11Channel, Form::F11Sample, Form::F11Attention, Form::F11Pixel];
        let network = |form| Network { form, size: (48, 48), batch: Some(2), ..small() };
        compare_for(Target::OrtCpu, forms.map(network));
    }

    #[test]
    fn zero_scalars_symbolic_batches_and_half_precision_keep_their_outputs() {
        let networks = forms(|i, form| Network {
            form,
            streams: 3,
            scalars: Scalars::Zeros,
            batch: None,
            dtype: DataType::Float16,
            exporter: exporter(i),
            ..small()
        });
        compare_before_and_after(networks.into_iter().step_by(4));
    }

    #[test]
    fn every_network_keeps_its_outputs() {
        compare_before_and_after(KINDS.iter().map(|&kind| Network { kind, form: Form::F3, ..small() }));
    }

    fn outputs(network: &Network, bytes: Bytes) -> Vec<Named> {
        let mut random = Rng::new(0);
        let inputs = network.inputs(2).into_iter().map(|(name, sizes)| {
            let tensor = random_tensor(&mut random, DType::F32, &sizes);
            (name, tensor.unwrap_or_else(|dtype| panic!("no numbers of type {dtype}")))
        });
        let inputs: Vec<Named> = inputs.collect();
        let run = Tract.load(&file(bytes)).and_then(|mut session| session.run(&inputs));
        run.unwrap_or_else(|error| panic!("{}: {error}", network.name())).tensors
    }

    /// The forms agree with each other before any pass (the one that cannot be run then, after them): what rewritten
    /// files are compared with is right.
    #[test]
    fn every_form_computes_the_same() {
        let reference = Network { form: Form::F1, ..small() };
        let expected = outputs(&reference, reference.bytes().into());
        // Coefficients of their own, or rounded products.
        let other = |form: Form| form.is_gated() || matches!(form, Form::F11Channel | Form::F12Narrow);
        for &form in FORMS.iter().filter(|form| !other(**form)) {
            let network = Network { form, ..small() };
            let mut bytes = Bytes::from(network.bytes());
            if !can_run(&network) {
                let mut model = import(form.name(), bytes);
                run(&mut model, &Options::default());
                bytes = export(&model);
            }
            let found = outputs(&network, bytes);
            let comparison = compare(&expected, &found, tolerance(&reference, Safety::Approximates));
            let comparison = comparison.unwrap_or_else(|mismatch| panic!("{}: {mismatch}", form.name()));
            assert!(comparison.passed(), "{}: {comparison:?}", form.name());
        }
    }
}
