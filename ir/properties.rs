//! Properties of random graphs: text survives a round trip, and edits keep every invariant.

use arbtest::arbitrary::{Result, Unstructured};
use arbtest::arbtest;

use crate::text::{canonical, default_opsets, parse_graph, print_graph};
use crate::{
    Boundary, DType, Graph, Names, NewOp, OpId, Operand, Patch, Position, Refusal, Rewriter, Safety, Tensor,
    ValueId, verify,
};

/// Writes a random graph; every value is a `float[2]`.
struct Writer<'u, 'a> {
    u: &'u mut Unstructured<'a>,
    names: usize,
}

impl Writer<'_, '_> {
    fn fresh(&mut self) -> Result<String> {
        self.names += 1;
        Ok(if self.u.ratio(1, 8)? {
            format!("\"odd/name.{}\"", self.names)
        } else {
            format!("v{}", self.names)
        })
    }

    fn pick<'n>(&mut self, names: &'n [String]) -> Result<&'n str> {
        Ok(self.u.choose(names)?)
    }

    fn graph(&mut self, name: &str, around: &[String], depth: usize) -> Result<String> {
        let mut known = around.to_vec();
        let (mut inputs, mut declared, mut ops) = (Vec::new(), Vec::new(), String::new());
        if around.is_empty() {
            for _ in 0..self.u.int_in_range(1..=3)? {
                let input = self.fresh()?;
                let default = if self.u.ratio(1, 6)? { " = {1.0, nan}" } else { "" };
                inputs.push(format!("float[2] {input}{default}"));
                known.push(input);
            }
        }
        for _ in 0..self.u.int_in_range(0..=3)? {
            let constant = self.fresh()?;
            let value = f32::from_bits(self.u.arbitrary()?);
            let data =
                if self.u.arbitrary()? { format!(" = {{{:?}, 0.5}}", value.abs()) } else { String::new() };
            declared.push(format!("float[2] {constant}{data}"));
            known.push(constant);
        }
        for _ in 0..self.u.int_in_range(1..=10)? {
            let (a, b) = (self.pick(&known)?.to_string(), self.pick(&known)?.to_string());
            let results = vec![self.fresh()?, self.fresh()?];
            let (first, second) = (&results[0], &results[1]);
            let label = if self.u.ratio(1, 4)? { format!("[{first}] ") } else { String::new() };
            let (op, count) = match self.u.int_in_range(0..=7)? {
                0 => (format!("{first} = Relu({a})"), 1),
                1 => (format!("{first} = Add({a}, {b})"), 1),
                2 => (format!("{first} = Sum({a}, {b}, {a})"), 1),
                3 => (format!("{first} = Clip({a}, , {b})"), 1),
                4 => (format!("{first}, {second} = Pair<axis = 0, scale = [1.0, -inf]>({a})"), 2),
                5 => (format!("\"\", {first} = my.domain.Drop<t = int4[3] {{1, -8, 7}}>({a}, {b})"), 1),
                6 if depth > 0 => {
                    let bodies = [self.graph("t", &known, depth - 1)?, self.graph("e", &known, depth - 1)?];
                    (
                        format!(
                            "{first} = If({a})<then_branch = {}, else_branch = {}>",
                            bodies[0], bodies[1]
                        ),
                        1,
                    )
                }
                _ => (format!("{first} = Mul({b}, {a})"), 1),
            };
            ops += &format!("{label}{op}\n");
            for result in results.into_iter().take(count) {
                if self.u.ratio(1, 3)? {
                    declared.push(format!("float[2] {result}"));
                }
                known.push(result);
            }
        }
        // A body puts out what it computes, or what it captures.
        let mut outputs = Vec::new();
        for _ in 0..if depth == TOP { self.u.int_in_range(1..=3)? } else { 1 } {
            outputs.push(self.pick(&known)?.to_string());
        }
        let declared = declared.join(", ");
        Ok(format!("{name} ({}) => ({}) <{declared}> {{\n{ops}}}", inputs.join(", "), outputs.join(", ")))
    }
}

/// How deep bodies are nested.
const TOP: usize = 2;

fn random(u: &mut Unstructured<'_>) -> Result<(String, Graph)> {
    let text = Writer { u, names: 0 }.graph("f", &[], TOP)?;
    let mut opsets = default_opsets();
    opsets.insert("my.domain".to_string(), 1);
    let graph = parse_graph(&text, opsets).unwrap_or_else(|error| panic!("{text}\n{error}"));
    Ok((text, graph))
}

fn reread(graph: &Graph) -> Graph {
    let text = print_graph(graph);
    parse_graph(&text, graph.opsets().clone()).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

fn random_patch(u: &mut Unstructured<'_>, graph: &Graph) -> Result<Patch> {
    let values: Vec<ValueId> = graph.values().collect();
    let ops: Vec<OpId> = graph.ops().collect();
    let mut patch = Patch::new(Safety::Exact);
    let mut made: Vec<Operand> = Vec::new();
    for _ in 0..u.int_in_range(1..=3)? {
        let operand = |u: &mut Unstructured<'_>| -> Result<Operand> {
            Ok(if !made.is_empty() && u.arbitrary()? {
                *u.choose(&made)?
            } else {
                (*u.choose(&values)?).into()
            })
        };
        match u.int_in_range(0..=11)? {
            0..=2 => {
                let old = *u.choose(&values)?;
                patch.replace_uses(old, operand(u)?);
            }
            3..=6 => {
                let mut op = NewOp::new("Sub", [operand(u)?, operand(u)?]);
                if !ops.is_empty() && u.ratio(1, 3)? {
                    let like = *u.choose(&ops)?;
                    op = NewOp::like(graph, like, vec![Some(operand(u)?), None, Some(operand(u)?)]);
                }
                if !ops.is_empty() && u.arbitrary()? {
                    let at = Position::At(*u.choose(&ops)?);
                    op = op.at(*u.choose(&[at, Position::Last])?);
                }
                let new = patch.add_op(op);
                made.push(new);
                if u.ratio(3, 4)? {
                    patch.replace_uses(*u.choose(&values)?, new);
                }
            }
            7 => {
                let tensor = Tensor::raw(DType::F32, vec![2], vec![0; 8]);
                made.push(patch.constant("zero", tensor));
            }
            8 if !ops.is_empty() => patch.erase(*u.choose(&ops)?),
            9 if !ops.is_empty() => patch.hoist(*u.choose(&ops)?),
            10 => patch.reorder(random_order(u, graph)?),
            _ => patch.drop_initializer(*u.choose(&values)?),
        }
    }
    Ok(patch)
}

/// Operands first mostly, any order sometimes.
fn random_order(u: &mut Unstructured<'_>, graph: &Graph) -> Result<Vec<OpId>> {
    let mut waiting: Vec<OpId> = graph.ops().collect();
    let mut order = Vec::new();
    while !waiting.is_empty() {
        let ready = |id: &OpId| graph.predecessors(*id).all(|p| order.contains(&p));
        let ready: Vec<usize> = (0..waiting.len()).filter(|&at| ready(&waiting[at])).collect();
        let at = if u.ratio(1, 50)? { u.choose_index(waiting.len())? } else { *u.choose(&ready)? };
        order.push(waiting.remove(at));
    }
    Ok(order)
}

/// Applies random patches to a graph and its bodies; a refused one changes nothing.
fn edit(u: &mut Unstructured<'_>, rewriter: &mut Rewriter<'_>) -> Result<()> {
    for _ in 0..u.int_in_range(1..=6)? {
        let patch = random_patch(u, rewriter.graph())?;
        let before = print_graph(rewriter.graph());
        let description = format!("{before}\n{patch:?}");
        match rewriter.apply(patch) {
            Ok(()) => {}
            Err(refusal @ (Refusal::OutOfFuel | Refusal::Unsafe(_))) => panic!("{refusal}"),
            Err(_) => assert_eq!(print_graph(rewriter.graph()), before),
        }
        // Captured values can be judged only together with the graph around.
        let wrong: Vec<_> =
            verify(rewriter.graph()).into_iter().filter(|v| !v.reason.ends_with("around this one")).collect();
        assert_eq!(wrong, [], "{description}");
        let ops: Vec<OpId> = rewriter.graph().ops().collect();
        if !ops.is_empty() && u.ratio(1, 3)? {
            let mut result = Ok(());
            rewriter.in_bodies(*u.choose(&ops)?, &mut |body| {
                if result.is_ok() {
                    result = edit(u, body);
                }
            });
            result?;
        }
    }
    Ok(())
}

/// Lets every captured value learn the type that is known around it, as it will when it is read back.
fn visit_bodies(rewriter: &mut Rewriter<'_>) {
    for op in rewriter.graph().ops().collect::<Vec<_>>() {
        rewriter.in_bodies(op, &mut visit_bodies);
    }
}

#[test]
fn a_random_graph_survives_a_round_trip_through_text() {
    arbtest(|u| {
        let (text, graph) = random(u)?;
        assert_eq!(verify(&graph), [], "{text}");
        let again = reread(&graph);
        assert_eq!(print_graph(&again), print_graph(&graph));
        assert_eq!(canonical(&again), canonical(&graph));
        Ok(())
    })
    .budget_ms(1_000);
}

#[test]
fn random_patches_keep_every_invariant() {
    arbtest(|u| {
        let (text, mut graph) = random(u)?;
        let boundary = Boundary::of(&graph);
        let mut names = Names::default();
        names.add_graph(&graph);
        let mut fuel = None;
        let mut rewriter = Rewriter::new(&mut graph, &mut names, Safety::Approximates, &mut fuel);
        edit(u, &mut rewriter)?;
        visit_bodies(&mut rewriter);
        let finished = rewriter.finish();
        assert!(finished.is_ok(), "{text}");
        assert_eq!(verify(&graph), [], "{text}");
        assert_eq!(boundary.check(&graph), [], "{text}");
        assert_eq!(print_graph(&reread(&graph)), print_graph(&graph));
        Ok(())
    })
    .budget_ms(2_000);
}

#[test]
fn damaged_text_is_an_error_and_never_a_panic() {
    arbtest(|u| {
        let (text, _) = random(u)?;
        let mut chars: Vec<char> = text.chars().collect();
        for _ in 0..u.int_in_range(1..=4)? {
            let at = u.choose_index(chars.len())?;
            match u.int_in_range(0..=3)? {
                0 => drop(chars.remove(at)),
                1 => chars.truncate(at.max(1)),
                2 => {
                    chars[at] =
                        *u.choose(&['<', '>', '"', '\\', ',', '=', '(', ')', '{', '}', '0', '-', '#', 'é'])?
                }
                _ => chars.insert(at, u.arbitrary()?),
            }
        }
        let damaged: String = chars.into_iter().collect();
        if let Ok(graph) = parse_graph(&damaged, default_opsets()) {
            print_graph(&graph);
            verify(&graph);
        }
        Ok(())
    })
    .budget_ms(1_000);
}
