//! Inference over whole graphs.

use std::collections::BTreeMap;

use super::{BindError, infer_graph, unproven_outputs};
use crate::{Graph, Type, ValueId, text, verify};

fn graph(source: &str) -> Graph {
    text::parse_graph(source, text::default_opsets()).unwrap_or_else(|error| panic!("{source}\n{error}"))
}

fn find(graph: &Graph, name: &str) -> ValueId {
    graph.values().find(|&v| graph.value(v).name == name).unwrap_or_else(|| panic!("no value {name}"))
}

fn type_of(graph: &Graph, name: &str) -> String {
    match &graph.value(find(graph, name)).ty {
        Some(Type::Tensor(t)) if t.shape.is_none() => format!("{}[...]", t.dtype),
        Some(ty) => ty.to_string(),
        None => "-".to_string(),
    }
}

/// The graph after inference, which must leave nothing to complain about.
fn inferred(source: &str) -> Graph {
    let mut graph = graph(source);
    let notes = infer_graph(&mut graph);
    assert_eq!(notes, [], "{source}");
    assert_eq!(verify(&graph), [], "{source}");
    graph
}

fn check(source: &str, expected: &[(&str, &str)]) {
    let graph = inferred(source);
    for (name, ty) in expected {
        assert_eq!(type_of(&graph, name), *ty, "{name} in {source}");
    }
}

#[test]
fn a_view_keeps_a_symbolic_batch() {
    check(
        "f (float[N,512,H,7] x) => (y) <int64 zero = {0}, int64[1] at = {0}, int64[1] rest = {-1}> {
           s = Shape(x)
           n = Gather<axis = 0>(s, zero)
           v = Unsqueeze(n, at)
           t = Concat<axis = 0>(v, rest)
           y = Reshape(x, t)
         }",
        &[("s", "int64[4]"), ("n", "int64"), ("t", "int64[2]"), ("y", "float[N,{3584*H}]")],
    );
}

#[test]
fn heads_are_split_and_joined() {
    check(
        "f (float[N,S,768] x) => (y)
         <int64 one = {1}, int64[1] at = {0}, int64[1] h = {12}, int64[1] d = {64}, int64[1] whole = {768}> {
           n = Shape<start = 0, end = 1>(x)
           s = Shape<start = 1, end = 2>(x)
           t = Concat<axis = 0>(n, s, h, d)
           r = Reshape(x, t)
           heads = Transpose<perm = [0, 2, 1, 3]>(r)
           back = Transpose<perm = [0, 2, 1, 3]>(heads)
           u = Concat<axis = 0>(n, s, whole)
           y = Reshape(back, u)
         }",
        &[("r", "float[N,S,12,64]"), ("heads", "float[N,12,S,64]"), ("y", "float[N,S,768]")],
    );
}

#[test]
fn sizes_computed_from_shapes_are_followed() {
    check(
        "f (float[N,C,H,W] x) => (y, z)
         <int64[2] two = {2, 2}, int64[1] k = {2}, int64[1] minus = {-1}, int64[1] one = {1}, int64[1] zero = {0}> {
           n = Shape<end = 2>(x)
           hw = Shape<start = 2>(x)
           double = Mul(hw, two)
           sizes = Concat<axis = 0>(n, double)
           y = Resize<mode = \"nearest\">(x, , , sizes)
           odd = Add(hw, two)
           half = Div(odd, k)
           area = ReduceProd<keepdims = 1>(half, zero)
           flat = Concat<axis = 0>(n, area)
           e = ConstantOfShape(flat)
           none = Equal(flat, minus)
           wide = Where(none, one, flat)
           z = Expand(e, wide)
         }",
        &[
            ("y", "float[N,C,{2*H},{2*W}]"),
            ("e", "float[N,C,{floor(H/2) + floor(H/2)*floor(W/2) + floor(W/2) + 1}]"),
            ("z", "float[N,C,{floor(H/2) + floor(H/2)*floor(W/2) + floor(W/2) + 1}]"),
        ],
    );
}

#[test]
fn a_rolled_tensor_keeps_its_size() {
    check(
        "f (float[N,H,96] x) => (y)
         <int64[1] zero = {0}, int64[1] three = {3}, int64[1] end = {9223372036854775807}, int64[1] axis = {1}> {
           a = Slice(x, three, end, axis)
           b = Slice(x, zero, three, axis)
           y = Concat<axis = 1>(a, b)
         }",
        &[("a", "float[N,{max(0, H - 3)},96]"), ("y", "float[N,H,96]")],
    );
}

#[test]
fn padding_lists_go_through_matrices() {
    // What an exporter makes of F.pad(x, (1, 2)).
    check(
        "f (float[N,C,L] x) => (y)
         <int64[2] given = {1, 2}, int64[1] four = {4}, int64[2] pairs = {-1, 2}, int64[1] flat = {-1},
          int64[1] first = {-1}, int64[1] last = {-9223372036854775807}, int64[1] along = {0}, int64[1] step = {-1}> {
           zeros = ConstantOfShape<value = int64[1] {0}>(four)
           list = Concat<axis = 0>(given, zeros)
           matrix = Reshape(list, pairs)
           reversed = Slice(matrix, first, last, along, step)
           turned = Transpose<perm = [1, 0]>(reversed)
           pads = Reshape(turned, flat)
           y = Pad(x, pads)
         }",
        &[("matrix", "int64[3,2]"), ("pads", "int64[6]"), ("y", "float[N,C,{L + 3}]")],
    );
}

#[test]
fn a_branch_that_is_chosen_gives_the_type() {
    let body = "<then_branch = t () => (a) { a = Relu(x) }, else_branch = e () => (b) { b = Flatten(x) }>";
    check(
        &format!(
            "f (bool c, float[N,3,4] x) => (y) <bool no = {{0}}> {{ y = If(c){body} z = If(no){body} }}"
        ),
        &[("y", "float[...]"), ("z", "float[N,12]")],
    );
}

#[test]
fn what_branches_agree_on_is_known() {
    check(
        "f (bool c, float[N,3,4] x, float[M,3,4] z) => (y) {
           y = If(c)<then_branch = t () => (a) { a = Relu(x) }, else_branch = e () => (b) { b = Relu(z) }>
         }",
        &[("y", "float[?,3,4]")],
    );
}

#[test]
fn a_carried_value_that_grows_loses_its_size() {
    check(
        "f (int64 m, float[1,4] x, float[2,N] w) => (kept, grown, list) <bool go = {1}> {
           kept, grown, list = Loop(m, go, w, x)<body = b (int64 i, bool c, v, u) => (d, v2, u2, e) {
             d = Identity(c)
             v2 = Relu(v)
             u2 = Concat<axis = 0>(u, u)
             e = Relu(w)
           }>
         }",
        &[("kept", "float[2,N]"), ("grown", "float[?,4]"), ("list", "float[?,2,N]")],
    );
}

#[test]
fn a_carried_value_of_changing_rank_loses_its_shape() {
    check(
        "f (int64 m, float[4] x) => (y) <bool go = {1}, int64[1] at = {0}> {
           y = Loop(m, go, x)<body = b (int64 i, bool c, v) => (d, v2) { d = Identity(c) v2 = Unsqueeze(v, at) }>
         }",
        &[("y", "float[...]")],
    );
}

#[test]
fn a_scan_sees_one_element_and_stacks_them() {
    check(
        "f (float[B,8] h, float[S,B,8] x) => (last, all) {
           last, all = Scan(h, x)<body = b (s, e) => (t, o) { t = Add(s, e) o = Relu(t) }, num_scan_inputs = 1>
         }",
        &[("last", "float[B,8]"), ("all", "float[S,B,8]")],
    );
}

#[test]
fn sizes_that_a_body_names_stay_inside() {
    check(
        "f (int64 m, float[?] x) => (y, l) <bool go = {1}> {
           y, l = Loop(m, go, x)<body = b (int64 i, bool c, float[K] v) => (d, w, e) {
             d = Identity(c) w = Relu(v) e = Concat<axis = 0>(v, v) }>
         }",
        &[("y", "float[?]"), ("l", "float[?,?]")],
    );
}

#[test]
fn declared_types_fill_gaps() {
    let mut g = graph("f (float[N,3] x) => (z) <float[N,7] y> { y = my.domain.Foo(x) z = Relu(y) }");
    assert_eq!(infer_graph(&mut g), []);
    assert_eq!(type_of(&g, "z"), "float[N,7]");
}

#[test]
fn an_output_is_unproven_where_the_file_says_more_than_follows() {
    let g = graph(
        "f (float[N,3] x, int64[2] s) => (float[N,3] same, float[7,3] more, float[2,2] unknown) {
           same = Relu(x) more = Neg(x) unknown = Reshape(x, s) }",
    );
    let mut unproven: Vec<String> = unproven_outputs(&g).into_iter().collect();
    unproven.sort();
    assert_eq!(unproven, ["more", "unknown"]);
}

#[test]
fn a_contradiction_is_noted_and_nothing_is_built_on_it() {
    let mut g = graph(
        "f (float[2,3] x) => (float[2,9] z, float[4] w) <float[2,5] y> {
           y = Relu(x) z = Neg(y) w = ReduceSum<keepdims = 0>(x) }",
    );
    let notes: Vec<String> = infer_graph(&mut g).iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "'y' is declared as float[2,5], but its operator gives float[2,3]",
            "'w' is declared as float[4], but its operator gives float"
        ]
    );
    // Inside, what both say; at the boundary, what the file says.
    assert_eq!(type_of(&g, "y"), "float[2,?]");
    assert_eq!(type_of(&g, "z"), "float[2,9]");
    assert_eq!(type_of(&g, "w"), "float[4]");
}

#[test]
fn a_stale_number_inside_gives_way_to_a_symbol() {
    let mut g = graph("f (float[N,3] x) => (float[1,3] z) <float[1,3] y> { y = Relu(x) z = Neg(y) }");
    assert_eq!(infer_graph(&mut g), []);
    assert_eq!(type_of(&g, "y"), "float[N,3]");
    assert_eq!(type_of(&g, "z"), "float[1,3]");
}

#[test]
fn inferring_twice_changes_nothing() {
    let source = "f (float[N,3,H,W] x, int64 m) => (y, l) <float[8,3,3,3] w, bool go = {1}> {
           c = Conv<strides = [2, 2]>(x, w)
           y = AveragePool<kernel_shape = [3, 3]>(c)
           l = Loop(m, go, c)<body = b (int64 i, bool k, v) => (d, u) { d = Identity(k) u = Concat<axis = 2>(v, v) }>
         }";
    let mut g = inferred(source);
    let once = text::print_graph(&g);
    assert_eq!(infer_graph(&mut g), []);
    assert_eq!(text::print_graph(&g), once);
}

#[test]
fn symbols_are_bound_everywhere() {
    let mut g = inferred(
        "f (bool c, float[N,3,H,H] x) => (y) <float[8,3,3,3] w> {
           v = Conv<strides = [2, 2]>(x, w)
           y = If(c)<then_branch = t () => (a) { a = Relu(v) }, else_branch = e () => (b) { b = Neg(v) }>
         }",
    );
    assert_eq!(g.dim_symbols().into_iter().collect::<Vec<_>>(), ["H", "N"]);
    let bound = g.bind_dims(&BTreeMap::from([("H".to_string(), 33)]));
    assert_eq!(bound, Ok(()));
    assert_eq!(type_of(&g, "x"), "float[N,3,33,33]");
    assert_eq!(type_of(&g, "v"), "float[N,8,16,16]");
    let body = g.ops().find_map(|op| g.op(op).bodies().next()).map(|b| type_of(b, "a"));
    assert_eq!(body.as_deref(), Some("float[N,8,16,16]"));
    let error = g.bind_dims(&BTreeMap::from([("B".to_string(), 1)]));
    let expected = BindError::UnknownSymbol { name: "B".to_string(), known: "N".to_string() };
    assert_eq!(error, Err(expected));
}

#[test]
fn an_input_takes_a_shape_that_fits() {
    let mut g = graph("f (float[N,3,?] x, float[N] z) => (y) { y = Relu(x) }");
    assert_eq!(g.set_input_shape("x", &[4, 3, 7]), Ok(()));
    assert_eq!((type_of(&g, "x"), type_of(&g, "z")), ("float[4,3,7]".to_string(), "float[4]".to_string()));
    let text = |r: Result<(), BindError>| r.map_err(|e| e.to_string());
    let wrong: &[(&str, &[u64], &str)] = &[
        ("x", &[4, 1, 7], "dimension 1 of input 'x' is 3, not 1"),
        ("x", &[4, 3], "input 'x' has 3 dimensions, not 2"),
        ("w", &[4], "no input is named 'w'; there are: x, z"),
    ];
    for (name, dims, error) in wrong {
        assert_eq!(text(g.set_input_shape(name, dims)), Err(error.to_string()));
    }
    let mut square = graph("f (float[N,N] x) => (y) { y = Relu(x) }");
    let error = text(square.set_input_shape("x", &[2, 3]));
    assert_eq!(error, Err("dimension 1 of input 'x' is 2, not 3".to_string()));
    assert_eq!(type_of(&square, "x"), "float[N,N]");
}

#[test]
fn loops_within_loops_take_no_exponential_time() {
    let mut inner = "b = Concat<axis = 0>(a, a)".to_string();
    for level in 0..12 {
        inner = format!(
            "b = Loop(m, go, a)<body = l{level} (int64 i, bool c, a) => (d, b) {{ d = Identity(c) {inner} }}>"
        );
    }
    check(
        &format!("f (int64 m, float[1,4] a) => (b) <bool go = {{1}}> {{ {inner} }}"),
        &[("b", "float[...]")],
    );
}
