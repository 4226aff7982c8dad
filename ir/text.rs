//! Graphs as text: a subset of ONNX's own textual syntax (`docs/Syntax.md` of the standard), for tests, examples
//! and `--print`.
//!
//! ```text
//! <ir_version: 10, opset_import: ["": 21]>
//! f (float[1,3,8,8] x, float[N,3] z) => (float[1,4,6,6] y)
//! <float[4,3,3,3] w, float s = {0.5}, int64[2] axes = {0, 1}>
//! {
//!   c = Conv<strides = [1, 1]>(x, w)      # a comment
//!   [named] y = Clip(c, , s)              # the second operand is left out
//! }
//! ```
//!
//! **Read and written**: graphs, models with functions, operators with names, domains and overloads, every
//! element type, symbolic and unknown sizes (`N`, `?`), scalars (`float`) and unknown ranks (`float[]`),
//! sequences, maps, optionals, opaque types, external data, and the attributes int, float, string, tensor,
//! graph, type, lists of these, and references. What a name cannot say as an identifier stands in quotes.
//!
//! **Declarations between `<` and `>`** have a value (an initializer) or none. Without one, the name is an
//! operator's result and this is its type; or nothing computes it, and it is an initializer without data.
//!
//! **Beyond the standard's grammar**: an element of float16 or bfloat16 is its bit pattern when written as an
//! integer, as in the standard, and the number itself when written with a point, exponent, `inf` or `nan`;
//! `0x` before the digits gives the bits of any floating-point element; `\x` and two digits stand for a byte
//! that is not UTF-8 or controls a terminal; complex elements are pairs of numbers; domains, operator types, attribute names and names
//! of bodies may be quoted. [`Style::Onnx`] writes numbers without these.
//!
//! **Not covered**: sparse tensors, elements of 6-bit floats, attributes that only the importer understands (all
//! written as `...`, which does not read back), what files say in documentation strings and metadata, and a body
//! with a value of its own under the name of one that it captures.

mod parse;
mod print;
mod scan;

use std::collections::HashSet;
use std::sync::Arc;

use crate::{Graph, Model, OpId, Opsets, Storage, TensorType};

/// Why a text is not a graph.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{line}:{column}: {reason}")]
pub struct TextError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What was expected, or what does not fit.
    pub reason: String,
}

/// How much to write, and for whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Everything, so that reading it gives the same graph.
    Exact,
    /// As [`Exact`](Style::Exact), in numbers that other readers of the standard's syntax accept.
    Onnx,
    /// As people write examples: no types of interior values and no names of operators.
    Example,
    /// For reading: long tensors are cut short, types stand in comments beside the operators.
    Display,
}

/// Operator sets of a text that names none: version 21 of the standard one.
pub fn default_opsets() -> Opsets {
    Opsets::from([(String::new(), 21)])
}

/// Reads one graph that is written against these operator sets.
///
/// # Errors
/// Where the text departs from the syntax, defines a value twice or not at all, or has a cycle.
pub fn parse_graph(text: &str, opsets: impl Into<Arc<Opsets>>) -> Result<Graph, TextError> {
    parse::Parser::new(text).only_graph(opsets.into())
}

/// Reads a model. Without a header it is of IR version 10, and imports [`default_opsets`] and version 1 of every
/// other domain that its operators name.
///
/// # Errors
/// As [`parse_graph`].
pub fn parse_model(text: &str) -> Result<Model, TextError> {
    parse::Parser::new(text).model()
}

/// [`parse_model`], with the elements of each initializer that has none taken from `fill`, which is given its name
/// and type.
///
/// # Errors
/// As [`parse_graph`].
pub fn parse_model_filled(
    text: &str,
    fill: &mut dyn FnMut(&str, &TensorType) -> Storage,
) -> Result<Model, TextError> {
    parse::Parser::new(text).filled(fill).model()
}

/// A graph as exact text.
pub fn print_graph(graph: &Graph) -> String {
    print_graph_as(graph, Style::Exact)
}

/// A graph as text.
pub fn print_graph_as(graph: &Graph, style: Style) -> String {
    print::Printer::new(style).whole(graph)
}

/// A graph in [`Style::Example`], leaving out the data of the initializers of these names.
pub fn print_example(graph: &Graph, without_data: HashSet<String>) -> String {
    print::Printer::new(Style::Example).without(without_data).whole(graph)
}

/// A model as exact text.
pub fn print_model(model: &Model) -> String {
    print_model_as(model, Style::Exact)
}

/// A model as text.
pub fn print_model_as(model: &Model, style: Style) -> String {
    print::Printer::new(style).model(model)
}

/// One operator as text, for messages: long tensors are cut short.
pub fn print_op(graph: &Graph, op: OpId) -> String {
    print::Printer::new(Style::Display).single(graph, op)
}

/// A graph as text for comparison up to renaming: inputs and outputs keep their names, other results are numbered
/// by order of appearance and initializers by first use; attributes are sorted; names of operators and types of
/// interior values are left out.
pub fn canonical(graph: &Graph) -> String {
    print::Printer::canonical().whole(graph)
}

/// [`canonical`], leaving out the data of each initializer that has none at the same place in `expected`: an
/// example may say what a constant is, or only that there is one.
pub fn canonical_like(graph: &Graph, expected: &Graph) -> String {
    let mut printer = print::Printer::canonical();
    printer.whole(expected);
    print::Printer::canonical().without(printer.dataless()).whole(graph)
}

/// Names of the attribute types that a reference can have, with the standard's numbers.
const KINDS: [(i32, &str); 14] = [
    (1, "float"),
    (2, "int"),
    (3, "string"),
    (4, "tensor"),
    (5, "graph"),
    (6, "floats"),
    (7, "ints"),
    (8, "strings"),
    (9, "tensors"),
    (10, "graphs"),
    (11, "sparse_tensor"),
    (12, "sparse_tensors"),
    (13, "type_proto"),
    (14, "type_protos"),
];

/// True for a word that begins a type.
fn begins_type(word: &str) -> bool {
    crate::DType::from_name(word).is_some()
        || matches!(word, "seq" | "map" | "optional" | "sparse_tensor" | "opaque")
}

/// The value of `inf`, `infinity` and `nan` in any case, as positive f64.
fn special_float(word: &str) -> Option<f64> {
    match word.to_ascii_lowercase().as_str() {
        "inf" | "infinity" => Some(f64::INFINITY),
        "nan" => Some(f64::NAN),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AttributeValue, DType, Dim, Type, verify, verify_model};

    fn graph(text: &str) -> Graph {
        parse_graph(text, default_opsets()).unwrap_or_else(|error| panic!("{text}\n{error}"))
    }

    fn refused(text: &str) -> String {
        match parse_graph(text, default_opsets()) {
            Ok(graph) => panic!("read as {}", print_graph(&graph)),
            Err(error) => error.to_string(),
        }
    }

    /// Reading and writing again gives this text.
    fn stable(text: &str) {
        assert_eq!(print_graph(&graph(text)), text);
    }

    #[test]
    fn a_graph_is_printed_as_it_is_written() {
        stable(
            r#"f (float[1,3,8,8] x, float[N,?] z, float[] u, int64 n = {3}) => (float[1,4,6,6] y, "odd name")
<float[4,3,3,3] w, float s = {0.5}, int64[2] axes = {0, -1}, float[1,4,8,8] c>
{
  [first] c = Conv<strides = [1, 1], auto_pad = "VALID">(x, w)
  y, "odd name" = my.domain.Foo:v2<alpha = 1.0, empty: ints = [], t = int64[2] {1, 2}>(c, "", s, axes)
}
"#,
        );
    }

    #[test]
    fn a_body_captures_what_it_does_not_define() {
        let text = r#"f (bool c, float[2] x) => (float[2] y)
<float[2] two = {2.0, 2.0}>
{
  y = If(c)<then_branch = t () => (a) {
    a = Mul(x, two)
  }, else_branch = e () => (b)
  <float[2] one = {1.0, 1.0}>
  {
    b = If(c)<then_branch = t () => (d) {
      d = Add(x, one)
    }, else_branch = e () => (g) {
      g = Identity(two)
    }>
  }>
}
"#;
        let g = graph(text);
        assert_eq!(print_graph(&g), text);
        assert_eq!(verify(&g), []);
        let outer = g.ops().next().map(|op| g.op(op).captures.clone()).unwrap_or_default();
        let names: Vec<&str> = outer.iter().map(|&v| g.value(v).name.as_str()).collect();
        assert_eq!(names, ["x", "two", "c"]);
    }

    #[test]
    fn declarations_without_a_value_are_types_or_constants_without_data() {
        let g =
            graph("f (float[2] x) => (y) <float[2] w, float[2] a, float[2] y> { a = Add(x, w) y = Relu(a) }");
        let find = |name: &str| g.values().find(|&v| g.value(v).name == name);
        let w = find("w").and_then(|w| g.constant(w).map(|t| t.storage.clone()));
        assert_eq!(w, Some(Storage::Absent));
        assert_eq!(find("a").and_then(|a| g.tensor_type(a)?.dims()), Some(vec![2]));
        assert!(find("a").is_some_and(|a| g.producer(a).is_some()));
    }

    #[test]
    fn an_initializer_of_an_inputs_name_is_its_default() {
        let listed = graph("f (float x) => (y) <float x = {1}> { y = Foo(x) }");
        assert_eq!(print_graph(&listed), print_graph(&graph("f (float x = {1}) => (y) { y = Foo(x) }")));
    }

    #[test]
    fn types_of_every_kind_are_read_and_printed() {
        stable(
            r#"f (float x, float16[] a, bfloat16[N,2,?] b, seq(float[2]) c, optional(seq(int64)) d, map(int64, string[3]) e, sparse_tensor(float[2,N]) g, opaque(a.b, c) h, string["odd dim"] i) => (y) {
  y = Foo<tp: type_proto = seq(float[2]), tps: type_protos = [float, int8[]]>(x)
}
"#
            .replace("f (float x, ", "f (
  float x,
  ")
            .replace("a, bf", "a,
  bf")
            .replace(" b, seq", " b,
  seq")
            .replace(" c, opt", " c,
  opt")
            .replace(" d, map", " d,
  map")
            .replace(" e, sp", " e,
  sp")
            .replace(" g, op", " g,
  op")
            .replace(" h, st", " h,
  st")
            .replace("i) => (y) {", "i
) => (y)
{")
            .as_str(),
        );
    }

    #[test]
    fn elements_of_every_type_are_read_and_printed() {
        for declaration in [
            "float[6] w = {0.5, -0.0, inf, -inf, nan, -nan}",
            "float[4] w = {1e-45, 3.4028235e38, 0.1, 16777216.0}",
            "float w = {0x7fc00001}",
            "double[3] w = {1e300, 5e-324, 0.1}",
            "double w = {0x7ff8000000000001}",
            "float16[5] w = {0.1, 65500.0, inf, nan, 6e-8}",
            "float16 w = {0x7e01}",
            "bfloat16[3] w = {0.1, 3.39e38, -2.0}",
            "int64[2] w = {-9223372036854775808, 9223372036854775807}",
            "uint64 w = {18446744073709551615}",
            "int32 w = {-2147483648}",
            "uint32 w = {4294967295}",
            "int16 w = {-32768}",
            "uint16 w = {65535}",
            "int8 w = {-128}",
            "uint8 w = {255}",
            "bool[3] w = {1, 0, 1}",
            "int4[3] w = {-8, 7, -1}",
            "uint4[3] w = {15, 0, 9}",
            "int2[5] w = {-2, 1, 0, -1, 1}",
            "uint2[5] w = {3, 2, 1, 0, 3}",
            "float4e2m1[3] w = {15, 1, 2}",
            "float8e4m3fn w = {255}",
            "float8e5m2 w = {124}",
            "float8e8m0 w = {127}",
            "complex64[2] w = {1.0, -1.0, 0.5, inf}",
            r#"string[3] w = {"a", "quote \" and \\", "\xff\xfe"}"#,
            r#"string[2] w = {"\x1b[2J\x07", "\xc2\x9b\x0a"}"#,
            "float[0] w = {}",
            r#"float[2] w = ["location": "w.bin", "offset": "8", "length": "8"]"#,
        ] {
            stable(&format!("f (x) => (y)\n<{declaration}>\n{{\n  y = Foo(x, w)\n}}\n"));
        }
    }

    #[test]
    fn an_integer_in_a_half_float_is_its_bits() {
        let g = graph("f (x) => (y) <float16[2] w = {15360, 1.0}> { y = Foo(x, w) }");
        let values: Vec<_> = g.values().filter_map(|v| g.constant(v)?.to_f64().ok()).collect();
        assert_eq!(values, [[1.0, 1.0]]);
    }

    #[test]
    fn packed_elements_begin_at_the_low_bits() {
        let g = graph("f (x) => (y) <int4[3] w = {1, -1, 2}> { y = Foo(x, w) }");
        let bytes: Vec<Vec<u8>> =
            g.values().filter_map(|v| Some(g.constant(v)?.bytes().ok()?.to_vec())).collect();
        assert_eq!(bytes, [[0xf1, 0x02]]);
    }

    #[test]
    fn attributes_of_every_kind_are_read() {
        let g = graph(
            r#"f (x) => (y) { y = Foo<i = -3, f = 1e-3, g: float = 2, h = -inf, s = "a b", is = [1, 2], fs = [1, 2.5],
                ss = ["a"], t = float[2] {1, 2}, named = float w {3}, tp = float[2], ts = [float {1}, float {2}],
                r: int = @other, e: strings = []>(x) }"#,
        );
        let op = g.ops().next().map(|id| g.op(id).clone()).unwrap_or_else(|| panic!("one operator"));
        assert_eq!(op.int("i"), Some(-3));
        assert_eq!(op.float("f"), Some(1e-3));
        assert_eq!(op.float("g"), Some(2.0));
        assert_eq!(op.float("h"), Some(f32::NEG_INFINITY));
        assert_eq!(op.string("s"), Some("a b"));
        assert_eq!(op.ints("is"), Some(&[1, 2][..]));
        assert!(matches!(op.attribute("fs"), Some(AttributeValue::Floats(v)) if v == &[1.0, 2.5]));
        assert!(matches!(op.attribute("t"), Some(AttributeValue::Tensor(t)) if t.dims == [2]));
        assert!(matches!(op.attribute("named"), Some(AttributeValue::Tensor(t)) if t.dtype == DType::F32));
        assert!(matches!(op.attribute("tp"), Some(AttributeValue::Type(Type::Tensor(_)))));
        assert!(matches!(op.attribute("ts"), Some(AttributeValue::Tensors(v)) if v.len() == 2));
        let reference = op.attribute("r");
        assert!(matches!(reference, Some(AttributeValue::Reference { name, kind: 2 }) if name == "other"));
        assert!(matches!(op.attribute("e"), Some(AttributeValue::Strings(v)) if v.is_empty()));
    }

    #[test]
    fn operands_may_be_left_out_in_each_way_the_standard_allows() {
        for (text, count) in
            [("()", 0), ("(x)", 1), ("(x,)", 1), ("(, x)", 2), ("(x, , x)", 3), (r#"("", x)"#, 2)]
        {
            let g = graph(&format!("f (x) => (y) {{ y = Foo{text} }}"));
            let found: Vec<usize> = g.ops().map(|op| g.op(op).inputs.len()).collect();
            assert_eq!(found, [count], "{text}");
        }
    }

    #[test]
    fn a_model_has_a_header_and_functions() {
        let text = r#"<ir_version: 10, opset_import: ["": 21, "my.domain": 1]>
f (float[2] x) => (float[2] y)
{
  y = my.domain.Twice<by = 2.0>(x)
}
<domain: "my.domain", opset_import: ["": 21]>
Twice <by, plus = 1.0> (x) => (y)
<float[2] c>
{
  c = Constant<value_float: float = @by>()
  y = Mul(x, c)
}
"#;
        let model = parse_model(text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(print_model(&model), text);
        assert_eq!(verify_model(&model), []);
    }

    #[test]
    fn a_model_without_a_header_imports_what_it_names() {
        let model =
            parse_model("f (x) => (y) { y = com.microsoft.Gelu(x) }").unwrap_or_else(|e| panic!("{e}"));
        let expected = Opsets::from([("".to_string(), 21), ("com.microsoft".to_string(), 1)]);
        assert_eq!((*model.opsets).clone(), expected);
        assert_eq!(*model.graph.opsets(), model.opsets);
    }

    #[test]
    fn errors_name_the_place_and_the_reason() {
        for (text, expected) in [
            ("f (x) => (y) { y = Foo(x }", "1:26: expected ')', found '}'"),
            ("f (x) => (y) {\n  y = Foo(x)\n  y = Foo(x)\n}", "3:3: value 'y' is defined twice"),
            (
                "f (x) => (y) {\n  y = Foo(q)\n}",
                "2:11: value 'q' is read by Foo of 'y' but nothing defines it",
            ),
            (
                "f (x) => (y) { a = Foo(b) b = Foo(a) y = Foo(a) }",
                "1:1: Foo of 'a' depends on its own result: the graph has a cycle",
            ),
            ("f (x) => (y) <float[2] w = {1}> { y = Foo(w) }", "1:28: expected 2 elements, found 1"),
            ("f (x) => (y) <int8 w = {128}> { y = Foo(w) }", "1:25: 128 is no element of type int8"),
            (
                "f (x) => (y) <float[N] w> { y = Foo(w) }",
                "1:24: data of type float[N]: every size must be a number",
            ),
            ("f (float[2] x) => (float[3] x) { }", "1:29: 'x' is float[2] and float[3]"),
            ("f (x) => (y) { y = Foo<a = []>(x) }", "1:28: an empty list needs a type: 'name: ints = []'"),
            ("f (x) => (y) { y = Foo<a = \"b>(x) }", "1:28: this string does not end"),
            ("f (x) => (y) { y = Foo(x) } f", "1:29: expected the end of the text after the graph"),
            ("", "1:1: expected a name, found the end of the text"),
        ] {
            assert_eq!(refused(text), expected, "{text}");
        }
    }

    #[test]
    fn nesting_without_end_is_refused() {
        let deep = format!("f ({}float x) => (y) {{}}", "seq(".repeat(100_000));
        assert!(refused(&deep).ends_with("nested too deeply"));
        let deep = "f () => (y) { y = If()<b = ".repeat(100_000);
        assert!(refused(&deep).ends_with("nested too deeply"));
    }

    #[test]
    fn the_standards_style_writes_half_floats_as_bits() {
        let g = graph("f (x) => (y) <bfloat16 w = {1.0}> { y = Foo(x, w) }");
        assert!(print_graph_as(&g, Style::Onnx).contains("bfloat16 w = {16256}"));
    }

    #[test]
    fn display_cuts_tensors_short_and_shows_types_in_comments() {
        let g = graph(
            "f (float[9] x) => (float[9] y) <float[9] w = {1,2,3,4,5,6,7,8,9}, float[9] a> { a = Mul(x, w) y = Neg(a) }",
        );
        let expected = "f (float[9] x) => (float[9] y)
<float[9] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, ...}>
{
  a = Mul(x, w)  # float[9]
  y = Neg(a)  # float[9]
}
";
        assert_eq!(print_graph_as(&g, Style::Display), expected);
    }

    #[test]
    fn canonical_text_is_the_same_up_to_renaming() {
        let a = graph(
            "f (x) => (y) <float s = {2}, float t = {3}> { [n] a = Mul(x, t) b = Mul(a, s) y = Neg(b) }",
        );
        let b =
            graph("f (x) => (y) <float k = {3}, float l = {2}> { p = Mul(x, k) q = Mul(p, l) y = Neg(q) }");
        let other =
            graph("f (x) => (y) <float k = {2}, float l = {3}> { p = Mul(x, k) q = Mul(p, l) y = Neg(q) }");
        assert_eq!(canonical(&a), canonical(&b));
        assert_ne!(canonical(&a), canonical(&other));
        let expected = "f (x) => (y) <float %c1 = {3.0}, float %c2 = {2.0}> {
  %1 = Mul(x, %c1)
  %2 = Mul(%1, %c2)
  y = Neg(%2)
}
";
        assert_eq!(canonical(&a), expected);
    }

    #[test]
    fn an_expected_constant_without_data_stands_for_any() {
        let expected = graph("f (x) => (y) <float s, float t = {3}> { a = Mul(x, s) y = Mul(a, t) }");
        let same = graph("f (x) => (y) <float u = {3}, float v = {7}> { a = Mul(x, v) y = Mul(a, u) }");
        let other = graph("f (x) => (y) <float u = {4}, float v = {7}> { a = Mul(x, v) y = Mul(a, u) }");
        assert_eq!(canonical_like(&same, &expected), canonical(&expected));
        assert_ne!(canonical_like(&other, &expected), canonical(&expected));
    }

    #[test]
    fn initializers_without_data_can_be_filled() {
        let text = "f (x) => (y) { y = If(x)<then_branch = t () => (z) <int8[2] w, int8 v = {3}> { z = Foo(w, v) }> }";
        let model = parse_model_filled(text, &mut |name, ty| {
            assert_eq!((name, ty.to_string().as_str()), ("w", "int8[2]"));
            Storage::Raw(vec![1, 2].into())
        });
        let text = print_model(&model.unwrap());
        assert!(text.contains("<int8[2] w = {1, 2}, int8 v = {3}>"), "{text}");
    }

    #[test]
    fn an_example_may_leave_out_data() {
        let g = graph("f (x) => (y) <int8 w = {1}, int8 v = {3}> { y = Foo(w, v) }");
        let text = print_example(&g, HashSet::from(["w".to_string()]));
        assert!(text.contains("<int8 w, int8 v = {3}>"), "{text}");
    }

    #[test]
    fn symbols_and_unknown_sizes_survive() {
        let g = graph("f (float[N,?,3] x) => (x) { }");
        let shape = g.tensor_type(g.inputs()[0]).and_then(|t| t.shape.clone());
        assert_eq!(shape, Some(vec![Dim::Symbol("N".into()), Dim::Unknown, Dim::Known(3)]));
    }
}
