//! In which form a graph adds up a linear combination, as its operators say.

use dmopt_ir::{Graph, Op, ValueId};

use crate::accumulate_in_place::is_fused;

/// How a linear combination is written; of several forms in one, the last of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Written {
    /// Products are added up one by one.
    MulAdd,
    /// By Horner's scheme: the accumulator is scaled.
    Horner,
    /// Depthwise 1x1 convolutions scale and, with their bias, add.
    DepthwiseConv,
    /// ONNX Runtime's fused convolution adds to the accumulator where it is.
    FusedConv,
}

/// Longer accumulations are judged by as many of their last operators.
const LONGEST: usize = 256;

impl Written {
    /// The word for it in reports.
    pub fn name(self) -> &'static str {
        match self {
            Written::MulAdd => "mul-add",
            Written::Horner => "horner",
            Written::DepthwiseConv => "depthwise-conv",
            Written::FusedConv => "fused-conv",
        }
    }

    /// The form in which a value is added up, if it is in one of these.
    pub(crate) fn of(graph: &Graph, value: ValueId) -> Option<Written> {
        let mut found = None;
        // With whether what is added up is scaled then.
        let mut todo = vec![(value, false)];
        let mut left = LONGEST;
        while let Some((at, scaled)) = todo.pop() {
            let Some(id) = graph.producer(at) else { continue };
            // What something else reads is a term.
            if (at != value && graph.readers(at) != 1) || left == 0 {
                continue;
            }
            left -= 1;
            let op = graph.op(id);
            let ty = graph.tensor_type(at);
            let whole = |v: &ValueId| matches!((graph.tensor_type(*v), ty), (Some(operand), Some(ty)) if operand.same_shape(ty));
            let accumulator = op.input(3).filter(|_| is_fused(op));
            match (accumulator, op.op_type.as_str()) {
                (Some(accumulator), _) => {
                    found = found.max(Some(Written::FusedConv));
                    todo.push((accumulator, false));
                }
                (None, "Add" | "Sub" | "Sum") if op.is_standard() => {
                    found = found.max(Some(if scaled { Written::Horner } else { Written::MulAdd }));
                    todo.extend(op.operands().filter(whole).map(|operand| (operand, false)));
                }
                (None, "Mul" | "Div") if op.is_standard() => {
                    todo.extend(op.operands().filter(whole).map(|operand| (operand, true)));
                }
                (None, "Conv") if is_scale(graph, op) => found = found.max(Some(Written::DepthwiseConv)),
                _ => {}
            }
        }
        found
    }
}

/// A depthwise convolution with a kernel of one number for each channel.
fn is_scale(graph: &Graph, op: &Op) -> bool {
    let kernel = op.input(1).and_then(|w| graph.tensor_type(w)?.dims());
    kernel.is_some_and(|kernel| match &kernel[..] {
        [channels, rest @ ..] => {
            op.int("group").is_some_and(|groups| groups as u64 == *channels) && rest.iter().all(|&n| n == 1)
        }
        [] => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::infer;
    use dmopt_ir::text::parse_model;

    fn written(body: &str) -> Option<&'static str> {
        let text = format!(
            "f (float[1,2,4,4] x, float[1,2,4,4] z, float[1,2,1,1] g) => (float[1,2,4,4] y)
             <float a = {{2}}, float b = {{3}}, float[2,1,1,1] s = {{2, 3}}, float[2] c = {{4, 5}}, float[2,2,1,1] w> {{ {body} }}"
        );
        let mut graph = parse_model(&text).unwrap().graph;
        infer::infer_graph(&mut graph);
        Written::of(&graph, graph.outputs()[0]).map(Written::name)
    }

    #[test]
    fn each_form_has_its_word() {
        let fused = "com.microsoft.FusedConv<group = 2>";
        for (body, expected) in [
            ("m = Mul(x, a)  n = Mul(z, b)  y = Add(m, n)", Some("mul-add")),
            ("m = Mul(x, a)  n = Add(m, z)  y = Mul(n, b)", Some("horner")),
            ("m = Mul(x, a)  n = Conv<group = 2>(z, s, c)  y = Add(m, n)", Some("depthwise-conv")),
            ("y = Conv<group = 2>(x, s, c)", Some("depthwise-conv")),
            (&format!("m = Conv(x, w, c)  y = {fused}(z, s, , m)"), Some("fused-conv")),
            ("h = Add(g, a)  m = Mul(x, h)  n = Mul(z, b)  y = Sub(m, n)", Some("mul-add")),
            ("m = Add(x, z)  n = Tanh(m)  y = Mul(n, a)", None),
            ("y = Conv(x, w, c)", None),
        ] {
            assert_eq!(written(body), expected, "{body}");
        }
    }
}
