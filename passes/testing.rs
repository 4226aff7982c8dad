//! How tests of passes are written: text in, text out.

use dmopt_ir::text::{canonical, parse_model, print_graph};
use dmopt_ir::{Model, verify_model};

use crate::{Options, Outcome, Planning, Target, run};

/// Runs one pass over a model in text form until it has nothing more to do.
pub(crate) fn optimize(pass: &str, text: &str, options: Options<'_>) -> (Model, Outcome) {
    let mut model = parse_model(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    let violations = verify_model(&model);
    assert!(violations.is_empty(), "the test is wrong: {violations:?}");
    let options = Options { only: vec![pass.to_string()], verify: true, ..options };
    let outcome = run(&mut model, &options).unwrap_or_else(|error| panic!("{error}"));
    (model, outcome)
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
