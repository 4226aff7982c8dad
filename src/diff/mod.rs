//! What differs between two models: operators gone, new and changed, by mixing site or block.

mod groups;
mod matching;

use dmopt_ir::{Digest, Graph, Model, model_digest};
use serde::{Deserialize, Serialize};

use crate::report::File;
use crate::{Error, Facts, Source, ir};

pub(crate) use groups::{groups, members};
pub(crate) use matching::Matching;

/// The value of [`Diff::schema`].
pub const SCHEMA: &str = "dmopt.diff/1";

/// What differs between two models.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Diff {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The first model.
    pub before: File,
    /// The second model.
    pub after: File,
    /// Digests of what the two compute: equal for models that differ in interior names and in order alone.
    pub structure: Pair<String>,
    /// True when the digests are equal.
    pub same_structure: bool,
    /// How inputs, outputs and operator sets differ: a sentence each.
    pub interface: Vec<String>,
    /// How many operators of the main graph have a counterpart that reads the same and does the same.
    pub unchanged: usize,
    /// How many operators that both have stand elsewhere in the order.
    pub moved: usize,
    /// Operators gone, new and changed.
    pub groups: Vec<Group>,
    /// Constants that only the first model has, by name and bytes.
    pub constants_gone: Vec<Constant>,
    /// Constants that only the second model has.
    pub constants_new: Vec<Constant>,
}

/// One thing in two models.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pair<T> {
    /// In the first.
    pub before: T,
    /// In the second.
    pub after: T,
}

/// Changes that belong together.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Group {
    /// What it is: `mixing site NAME`, `block PREFIX`, or `around NAME`; in a body, after the operator that it belongs to.
    pub title: String,
    /// For a mixing site: how each model writes it, such as `stack-sum, 4 terms`; null where it is none.
    pub form: Option<Pair<Option<String>>>,
    /// Operators that only the first model has, as text.
    pub gone: Vec<String>,
    /// Operators that only the second model has, as text.
    pub new: Vec<String>,
    /// Operators that both have, with what differs.
    pub changed: Vec<Changed>,
}

/// An operator that both models have.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Changed {
    /// The operator in both, as text.
    #[serde(flatten)]
    pub text: Pair<String>,
    /// What differs: a phrase each.
    pub differences: Vec<String>,
}

/// A constant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Constant {
    /// Name.
    pub name: String,
    /// Size.
    pub bytes: u64,
}

/// Compares the structure of two models. Nothing is run.
///
/// # Errors
/// A file is no model.
pub fn diff(before: &Source, after: &Source) -> Result<Diff, Error> {
    let (a, b) = (typed(before)?, typed(after)?);
    let digests = [model_digest(&a), model_digest(&b)];
    let file = |source: &Source, model: &Model| {
        let Facts { nodes, parameters, initializer_bytes } = Facts::of(model);
        let (path, file_bytes) = (Some(source.name.clone()), source.bytes.len() as u64);
        File { path, file_bytes, nodes, parameters, initializer_bytes }
    };
    Ok(of(&a, &b, [file(before, &a), file(after, &b)], digests))
}

fn typed(source: &Source) -> Result<Model, Error> {
    let mut model = source.model()?;
    ir::infer::infer_graph(&mut model.graph);
    Ok(model)
}

fn of(a: &Model, b: &Model, [before, after]: [File; 2], digests: [Digest; 2]) -> Diff {
    let matching = Matching::of(&a.graph, &b.graph);
    let constants = |side| {
        let mut found: Vec<Constant> =
            matching.constants(side).into_iter().map(|(name, bytes)| Constant { name, bytes }).collect();
        found.sort_by(|x, y| (y.bytes, &x.name).cmp(&(x.bytes, &y.name)));
        found
    };
    Diff {
        schema: SCHEMA.to_string(),
        before,
        after,
        same_structure: digests[0] == digests[1],
        structure: Pair { before: digests[0].to_string(), after: digests[1].to_string() },
        interface: interface(a, b),
        unchanged: matching.pairs().len() - matching.changed.len(),
        moved: matching.moved(),
        groups: groups(&matching),
        constants_gone: constants(0),
        constants_new: constants(1),
    }
}

/// How two models differ seen from outside.
fn interface(a: &Model, b: &Model) -> Vec<String> {
    let mut found = Vec::new();
    let ports = |graph: &Graph, ids: &[ir::ValueId]| -> Vec<(String, String)> {
        let ty = |id| {
            graph.value(id).ty.as_ref().map_or_else(|| "of unknown type".to_string(), |ty| ty.to_string())
        };
        ids.iter().map(|&id| (graph.value(id).name.clone(), ty(id))).collect()
    };
    for (what, ours, theirs) in [
        ("input", ports(&a.graph, a.graph.inputs()), ports(&b.graph, b.graph.inputs())),
        ("output", ports(&a.graph, a.graph.outputs()), ports(&b.graph, b.graph.outputs())),
    ] {
        let named = |list: &[(String, String)], name: &str| list.iter().find(|port| port.0 == name).cloned();
        for (name, ty) in &ours {
            match named(&theirs, name) {
                None => found.push(format!("{what} {name} is gone")),
                Some((_, other)) if other != *ty => {
                    found.push(format!("{what} {name} is {other} instead of {ty}"))
                }
                Some(_) => {}
            }
        }
        let new = theirs.iter().filter(|(name, _)| named(&ours, name).is_none());
        found.extend(new.map(|(name, ty)| format!("{what} {name} is new: {ty}")));
        let common = |list: &[(String, String)], other: &[(String, String)]| -> Vec<String> {
            list.iter()
                .filter(|(name, _)| named(other, name).is_some())
                .map(|(name, _)| name.clone())
                .collect()
        };
        if common(&ours, &theirs) != common(&theirs, &ours) {
            found.push(format!("{what}s are in another order"));
        }
    }
    let domains: std::collections::BTreeSet<&String> = a.opsets.keys().chain(b.opsets.keys()).collect();
    for domain in domains {
        let (ours, theirs) = (a.opsets.get(domain), b.opsets.get(domain));
        let name = if domain.is_empty() { "ai.onnx" } else { domain };
        match (ours, theirs) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                found.push(format!("operator set {name} {theirs} instead of {ours}"));
            }
            (Some(_), None) => found.push(format!("operator set {name} is no longer imported")),
            (None, Some(version)) => found.push(format!("operator set {name} {version} is imported")),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use dmopt_ir::text::parse_model;

    use super::*;

    fn compare(a: &str, b: &str) -> Diff {
        let model = |text: &str| {
            let mut model = parse_model(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
            ir::infer::infer_graph(&mut model.graph);
            model
        };
        let (a, b) = (model(a), model(b));
        let file = || File { path: None, file_bytes: 0, nodes: 0, parameters: 0, initializer_bytes: 0 };
        let digests = [model_digest(&a), model_digest(&b)];
        of(&a, &b, [file(), file()], digests)
    }

    fn changes(diff: &Diff) -> Vec<String> {
        let mut lines = Vec::new();
        for group in &diff.groups {
            lines.push(group.title.clone());
            lines.extend(group.gone.iter().map(|text| format!("- {text}")));
            lines.extend(group.new.iter().map(|text| format!("+ {text}")));
            lines.extend(
                group.changed.iter().map(|c| format!("~ {}: {}", c.text.after, c.differences.join(", "))),
            );
        }
        lines
    }

    const PLAIN: &str = "f (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
        a = Exp(x)
        b = Mul(a, w)
        c = Neg(b)
        y = Relu(c)
    }";

    #[test]
    fn renamed_models_have_the_same_structure() {
        let renamed = "g (float[2] x) => (float[2] y) <float[2] v = {1, 2}> {
            [named] p = Exp(x)
            q = Mul(p, v)
            r = Neg(q)
            y = Relu(r)
        }";
        let diff = compare(PLAIN, renamed);
        assert!(diff.same_structure);
        assert_eq!((changes(&diff), diff.unchanged, diff.moved), (vec![], 4, 0));
    }

    #[test]
    fn what_is_new_gone_and_changed_is_told_in_one_place() {
        let other = PLAIN.replace("c = Neg(b)", "d = Abs(b) c = Neg(d)").replace("Exp(x)", "Log(x)");
        let diff = compare(PLAIN, &other);
        assert!(!diff.same_structure);
        assert_eq!(
            changes(&diff),
            [
                "around a",
                "~ a = Log(x): Log instead of Exp",
                "around c",
                "+ d = Abs(b)",
                "~ c = Neg(d): operand 0 is d instead of b",
            ]
        );
    }

    #[test]
    fn constants_and_interfaces_are_told() {
        let other = PLAIN.replace("{1, 2}", "{1, 3}").replace("f (float[2] x)", "f (float[2] x, float[3] z)");
        let diff = compare(PLAIN, &other);
        assert_eq!(diff.interface, ["input z is new: float[3]"]);
        assert_eq!(diff.constants_gone, [Constant { name: "w".into(), bytes: 8 }]);
        assert_eq!(diff.constants_new, [Constant { name: "w".into(), bytes: 8 }]);
        assert!(changes(&diff)[1].ends_with("operand 1 (w) has other elements"));
    }

    #[test]
    fn operators_in_another_order_are_counted() {
        let two = |lines: [&str; 3]| {
            format!("f (float[2] x) => (float[2] y) {{ {} y = Add(b, c) }}", lines.join(" "))
        };
        let (a, b) = (["a = Exp(x)", "b = Neg(a)", "c = Abs(x)"], ["c = Abs(x)", "a = Exp(x)", "b = Neg(a)"]);
        let diff = compare(&two(a), &two(b));
        assert!(diff.same_structure && diff.groups.is_empty());
        assert_eq!(diff.moved, 1);
    }

    #[test]
    fn mixing_sites_and_blocks_have_groups_of_their_own() {
        let stack = "f (float[1,2,4,4] x, float[1,2,4,4] y) => (float[1,2,4,4] z, float[1,2,4,4] r)
            <float[1] a = {0.5}, float[1] b = {-2.0}, int64[1] axes = {0}> {
            p = Mul(a, x)
            q = Mul(b, y)
            u = Unsqueeze(p, axes)
            v = Unsqueeze(q, axes)
            s = Concat<axis=0>(u, v)
            z = ReduceSum<keepdims=0>(s, axes)
            [\"/block.1/one\"] t = Exp(y)
            [\"/block.1/two\"] w = Neg(t)
            r = Abs(w)
        }";
        let chain = "f (float[1,2,4,4] x, float[1,2,4,4] y) => (float[1,2,4,4] z, float[1,2,4,4] r)
            <float[1] a = {0.5}, float[1] b = {-2.0}> {
            p = Mul(a, x)
            q = Mul(b, y)
            z = Add(p, q)
            r = Abs(y)
        }";
        let diff = compare(stack, chain);
        let titles: Vec<&str> = diff.groups.iter().map(|group| group.title.as_str()).collect();
        assert_eq!(titles, ["mixing site z", "block /block.1"]);
        let form = diff.groups[0].form.clone().unwrap();
        assert_eq!(form.before.as_deref(), Some("stack-sum, 2 terms"));
        assert_eq!((diff.groups[0].gone.len(), diff.groups[0].changed.len()), (3, 1));
        assert_eq!((diff.groups[1].gone.len(), diff.groups[1].changed.len()), (2, 1));
    }

    #[test]
    fn bodies_are_compared_too() {
        let body = |inner: &str| {
            format!(
                "f (bool c, float[1] x) => (float[1] y) {{
                   y = If (c) <then_branch = t () => (float[1] v) {{ v = {inner}(x) }},
                               else_branch = e () => (float[1] w) {{ w = Relu(x) }}>
                 }}"
            )
        };
        let diff = compare(&body("Neg"), &body("Abs"));
        assert!(!diff.same_structure);
        assert_eq!(diff.groups.len(), 2);
        assert_eq!(diff.groups[0].changed[0].differences, ["body then_branch differs"]);
        assert_eq!(diff.groups[1].title, "then_branch of y: around v");
        assert_eq!(diff.groups[1].changed[0].differences, ["Abs instead of Neg"]);
    }
}
