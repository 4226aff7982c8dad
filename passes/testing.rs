//! How tests of passes are written: text in, text out.

use dmopt_ir::text::{canonical, parse_model, print_graph};
use dmopt_ir::{Model, Names, Rewriter, Safety, infer, verify_model};

use crate::{Miss, Options, Outcome, Pass, Planning, Target, run};

/// Runs one pass over a model in text form until it has nothing more to do.
pub(crate) fn optimize(pass: &str, text: &str, options: Options<'_>) -> (Model, Outcome) {
    let mut model = parse_model(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    let violations = verify_model(&model);
    assert!(violations.is_empty(), "the test is wrong: {violations:?}");
    let options = Options { only: vec![pass.to_string()], verify: true, ..options };
    let outcome = run(&mut model, &options).unwrap_or_else(|error| panic!("{error}"));
    (model, outcome)
}

/// Takes the first offer of a pass, at this level.
pub(crate) fn take(pass: &dyn Pass, text: &str, level: usize) -> Result<Model, Miss> {
    let mut model = parse_model(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    infer::infer_graph(&mut model.graph);
    let planning = Planning::default();
    let offer = pass.offers(&model.graph, &planning).into_iter().next().ok_or(Miss::NoMatch)?;
    let patch = pass.take(&model.graph, &planning, &offer, level)?;
    let (mut names, mut fuel) = (Names::of(&model), None);
    let mut rewriter = Rewriter::new(&mut model.graph, &mut names, Safety::Approximates, &mut fuel);
    rewriter.apply(patch).unwrap_or_else(|refusal| panic!("{text}\n{refusal}"));
    rewriter.finish().unwrap_or_else(|_| panic!("{text}\na cycle"));
    infer::infer_graph(&mut model.graph);
    let violations = verify_model(&model);
    assert!(violations.is_empty(), "{}\n{violations:?}", print_graph(&model.graph));
    Ok(model)
}

/// Taking the first offer of a pass at this level turns `before` into `after`, up to renaming.
pub(crate) fn takes(pass: &dyn Pass, before: &str, level: usize, after: &str) {
    let model = take(pass, before, level).unwrap_or_else(|miss| panic!("{before}\n{miss:?}"));
    let expected = parse_model(after).unwrap_or_else(|error| panic!("{after}\n{error}"));
    assert_eq!(canonical(&model.graph), canonical(&expected.graph), "{}", print_graph(&model.graph));
}

/// Why the first offer of a pass is refused.
pub(crate) fn refuses(pass: &dyn Pass, text: &str) -> String {
    match take(pass, text, 0) {
        Err(Miss::Refused(reason)) => reason,
        other => panic!("{text}\n{other:?}"),
    }
}

/// The pass turns `before` into `after`, up to renaming, and finds nothing to do in the result.
pub(crate) fn check(pass: &str, before: &str, after: &str) -> Outcome {
    check_for(Target::Portable, pass, before, after)
}

/// The same for a target.
pub(crate) fn check_for(target: Target, pass: &str, before: &str, after: &str) -> Outcome {
    let planning = Planning { target, ..Planning::default() };
    let (mut model, outcome) =
        optimize(pass, before, Options { planning: planning.clone(), ..Options::default() });
    let expected = parse_model(after).unwrap_or_else(|error| panic!("{after}\n{error}"));
    assert_eq!(canonical(&model.graph), canonical(&expected.graph), "{}", print_graph(&model.graph));
    let again =
        run(&mut model, &Options { only: vec![pass.to_string()], planning, ..Options::default() }).unwrap();
    assert_eq!(again.safety, None, "the pass is not done: {}", print_graph(&model.graph));
    outcome
}

/// The pass changes nothing. Gives what it refused, as `node: reason`.
pub(crate) fn left_alone(pass: &str, text: &str) -> Vec<String> {
    left_alone_for(Target::Portable, pass, text)
}

/// The same for a target.
pub(crate) fn left_alone_for(target: Target, pass: &str, text: &str) -> Vec<String> {
    let outcome = check_for(target, pass, text, text);
    assert_eq!(outcome.safety, None);
    refusals(&outcome)
}

/// What was refused, as `node: reason`.
pub(crate) fn refusals(outcome: &Outcome) -> Vec<String> {
    let refused = outcome.passes.iter().flat_map(|p| &p.refused);
    refused.map(|r| format!("{}: {}", r.node, r.reason)).collect()
}
