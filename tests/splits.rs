//! What passes offer, on random blocks: layers computed in parts and sums that are nested have the same outputs in the
//! embedded runtime, and layers exactly as many multiplications as before.

use arbtest::arbitrary::{Result, Unstructured};
use arbtest::arbtest;
use bytes::Bytes;
use dmopt_ir::text::{parse_model_filled, print_model};
use dmopt_ir::{Graph, Model, Names, OpId, Rewriter, Safety, Storage, TensorType, infer, verify_model};
use dmopt_passes::{Options, Pass, Planning, find};
use dmopt_runtime::inputs::{Rng, random_tensor};
use dmopt_runtime::{ModelFile, Status, Tolerance, validate};

/// Milliseconds for each property.
const BUDGET: u64 = 2_000;

/// A block under construction: text, the initializers that it needs, and the value at its end.
#[derive(Default)]
struct Block {
    weights: Vec<String>,
    lines: Vec<String>,
    last: String,
}

impl Block {
    fn weight(&mut self, dims: &[u64]) -> String {
        self.initializer("w", dims)
    }

    /// Positive numbers.
    fn positive(&mut self, dims: &[u64]) -> String {
        self.initializer("var", dims)
    }

    /// Sizes or axes.
    fn sizes(&mut self, dims: &[i64]) -> String {
        let name = format!("s{}", self.weights.len());
        let text: Vec<String> = dims.iter().map(i64::to_string).collect();
        self.weights.push(format!("int64[{}] {name} = {{{}}}", dims.len(), text.join(", ")));
        name
    }

    fn initializer(&mut self, what: &str, dims: &[u64]) -> String {
        let name = format!("{what}{}", self.weights.len());
        let dims: Vec<String> = dims.iter().map(u64::to_string).collect();
        self.weights.push(format!("float[{}] {name}", dims.join(",")));
        name
    }

    fn line(&mut self, call: String) -> String {
        let name = format!("v{}", self.lines.len());
        self.lines.push(format!("{name} = {call}"));
        self.last.clone_from(&name);
        name
    }

    /// A layer of a random kind from `x`; all keep height and width.
    fn layer(&mut self, u: &mut Unstructured<'_>, x: &str, before: u64, after: u64) -> Result<String> {
        let (kernel, attributes) = match u.arbitrary()? {
            true => (1, ""),
            false => (3, "<pads = [1, 1, 1, 1]>"),
        };
        let (op, dims) = match u.ratio(1, 4)? {
            true => ("ConvTranspose", [before, after, kernel, kernel]),
            false => ("Conv", [after, before, kernel, kernel]),
        };
        let weight = self.weight(&dims);
        let bias = if u.arbitrary()? { format!(", {}", self.weight(&[after])) } else { String::new() };
        Ok(self.line(format!("{op}{attributes}({x}, {weight}{bias})")))
    }

    /// An operator that treats each channel by itself.
    fn channelwise(&mut self, u: &mut Unstructured<'_>, channels: u64) -> Result<()> {
        let x = self.last.clone();
        let call = match u.int_in_range(0..=8)? {
            0 => format!("Relu({x})"),
            1 => format!("Sigmoid({x})"),
            2 => {
                let s = self.line(format!("Sigmoid({x})"));
                format!("Mul({x}, {s})")
            }
            3 => format!("Mul({}, {x})", self.weight(&[channels, 1, 1])),
            4 => format!("Add({x}, {})", self.weight(&[1, channels, 1, 1])),
            5 => {
                let [gamma, beta, mean] = [(); 3].map(|()| self.weight(&[channels]));
                format!("BatchNormalization({x}, {gamma}, {beta}, {mean}, {})", self.positive(&[channels]))
            }
            6 => {
                let groups = *u.choose(&divisors(channels))?;
                if groups == 1 {
                    format!("Tanh({x})")
                } else {
                    let weight = self.weight(&[channels, channels / groups, 3, 3]);
                    format!("Conv<group = {groups}, pads = [1, 1, 1, 1]>({x}, {weight})")
                }
            }
            7 => format!("MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>({x})"),
            _ => format!("AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>({x})"),
        };
        self.line(call);
        Ok(())
    }

    fn chain(&mut self, u: &mut Unstructured<'_>, channels: u64) -> Result<()> {
        (0..u.int_in_range(0..=3)?).try_for_each(|_| self.channelwise(u, channels))
    }

    /// The graph from `x` with `inputs` channels to `y` with `outputs`, the last line named `y`.
    fn model(mut self, inputs: u64, outputs: &[(String, u64)]) -> String {
        let ports: Vec<String> = outputs.iter().map(|(y, c)| format!("float[2,{c},5,6] {y}")).collect();
        let weights = std::mem::take(&mut self.weights).join(", ");
        format!(
            "f (float[2,{inputs},5,6] x) => ({}) <{weights}> {{ {} }}",
            ports.join(", "),
            self.lines.join("\n")
        )
    }
}

fn divisors(n: u64) -> Vec<u64> {
    (1..=n).filter(|d| n.is_multiple_of(*d)).collect()
}

/// Two layers with hidden channels between, with or without a residual.
fn hidden(u: &mut Unstructured<'_>) -> Result<String> {
    let (inputs, channels) = (u.int_in_range(1..=4)?, u.int_in_range(2..=16)?);
    let residual = u.arbitrary()?;
    let outputs = if residual { inputs } else { u.int_in_range(1..=4)? };
    let mut block = Block::default();
    block.layer(u, "x", inputs, channels)?;
    block.chain(u, channels)?;
    let x = block.last.clone();
    let mut y = block.layer(u, &x, channels, outputs)?;
    if residual {
        y = block.line(format!("Add({y}, x)"));
    }
    Ok(block.model(inputs, &[(y, outputs)]))
}

/// Parts that are concatenated, and one or two layers that read them.
fn concat(u: &mut Unstructured<'_>) -> Result<String> {
    let inputs = u.int_in_range(1..=4)?;
    let (mut block, mut parts, mut channels) = (Block::default(), Vec::new(), 0);
    for _ in 0..u.int_in_range(2..=5)? {
        let own = u.int_in_range(1..=4)?;
        parts.push(block.layer(u, "x", inputs, own)?);
        channels += own;
    }
    let all = block.line(format!("Concat<axis = 1>({})", parts.join(", ")));
    let mut outputs = Vec::new();
    for _ in 0..u.int_in_range(1..=2)? {
        block.last.clone_from(&all);
        block.chain(u, channels)?;
        let x = block.last.clone();
        let own = u.int_in_range(1..=4)?;
        outputs.push((block.layer(u, &x, channels, own)?, own));
    }
    Ok(block.model(inputs, &outputs))
}

/// A combination of values that are all read once more, with coefficients for all channels or for each.
fn combination(u: &mut Unstructured<'_>) -> Result<String> {
    let channels = u.int_in_range(1..=3)?;
    let (mut block, mut sum, mut kept) = (Block::default(), String::new(), Vec::new());
    for i in 0..u.int_in_range(2..=5)? {
        let x = block.line(format!("{}(x)", u.choose(&["Tanh", "Sigmoid", "Relu", "Neg"])?));
        kept.push(x.clone());
        let dims: &[u64] = if u.arbitrary()? { &[1] } else { &[channels, 1, 1] };
        let product = match u.ratio(1, 4)? {
            true => x,
            false => {
                let coefficient = if u.arbitrary()? { block.positive(dims) } else { block.weight(dims) };
                block.line(format!("Mul({x}, {coefficient})"))
            }
        };
        let step = if u.ratio(1, 4)? { "Sub" } else { "Add" };
        sum = if i == 0 { product } else { block.line(format!("{step}({sum}, {product})")) };
    }
    let all = block.line(format!("Sum({})", kept.join(", ")));
    Ok(block.model(channels, &[(sum, channels), (all, channels)]))
}

/// Two products of matrices, stacked or not, with operators between that treat each row by itself.
fn attention(u: &mut Unstructured<'_>) -> Result<String> {
    let stack: Vec<u64> =
        (0..u.int_in_range(0..=2)?).map(|_| u.int_in_range(1..=4)).collect::<Result<_>>()?;
    let [rows, keys] = [u.int_in_range(1..=300)?, u.int_in_range(1..=9)?];
    let of = |matrix: [u64; 2]| [&stack[..], &matrix].concat();
    let text = |dims: &[u64]| dims.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    // One factor may serve the whole stack.
    let second = if u.arbitrary()? { of([keys, 3]) } else { vec![keys, 3] };
    let mut block = Block::default();
    block.line("MatMul(q, k)".to_string());
    for _ in 0..u.int_in_range(0..=5)? {
        let x = block.last.clone();
        let scores = of([rows, keys]);
        let from = u.choose_index(scores.len())?;
        let other: Vec<u64> = scores[from..]
            .iter()
            .map(|&size| Ok(if u.ratio(1, 3)? { 1 } else { size }))
            .collect::<Result<_>>()?;
        let call = match u.int_in_range(0..=4)? {
            0 => format!("Softmax<axis = -1>({x})"),
            1 => format!("Mul({x}, {})", block.weight(&other)),
            2 => format!("Add({}, {x})", block.weight(&other)),
            3 => {
                let s = block.line(format!("Tanh({x})"));
                format!("Mul({x}, {s})")
            }
            _ => format!("Relu({x})"),
        };
        block.line(call);
    }
    let y = block.line(format!("MatMul({}, v)", block.last));
    Ok(format!(
        "f (float[{}] q, float[{}] k, float[{}] v) => (float[{}] {y}) <{}> {{ {} }}",
        text(&of([rows, 2])),
        text(&of([2, keys])),
        text(&second),
        text(&of([rows, 3])),
        block.weights.join(", "),
        block.lines.join("\n")
    ))
}

/// A network that treats every sample by itself, with weights and with what is there for every sample; and in how many slices
/// its batch can be computed, 0 where that is open.
fn network(u: &mut Unstructured<'_>) -> Result<(String, u64)> {
    let (is_open, slices, each) = (u.ratio(1, 3)?, u.int_in_range(2..=4)?, u.int_in_range(1..=2)?);
    let (samples, rest) = (slices * each, if is_open { -1 } else { (slices * each) as i64 });
    let batch = if is_open { "n".to_string() } else { samples.to_string() };
    let mut block = Block { last: "x".to_string(), ..Block::default() };
    let mut outputs = Vec::new();
    // The sizes of what is at the end of the block.
    let mut dims = [3, 4, 4];
    for _ in 0..u.int_in_range(1..=8)? {
        let x = block.last.clone();
        let [channels, height, width] = dims;
        let call = match u.int_in_range(0..=13)? {
            0 => {
                dims[0] = u.int_in_range(1..=4)?;
                let weight = block.weight(&[dims[0], channels, 1, 1]);
                format!("Conv({x}, {weight})")
            }
            1 => {
                dims[0] = u.int_in_range(1..=4)?;
                let weight = block.weight(&[channels, dims[0], 1, 1]);
                format!("ConvTranspose({x}, {weight})")
            }
            2 => format!("Softmax<axis = {}>({x})", u.int_in_range(1..=3)?),
            3 => {
                let first = *u.choose(&[1, if is_open { 1 } else { samples }])?;
                format!("Add({x}, {})", block.weight(&[first, channels, 1, width]))
            }
            4 => {
                dims[0] = 2 * channels;
                format!("Concat<axis = 1>({x}, {x})")
            }
            5 => {
                dims = [channels, width, height];
                format!("Transpose<perm = [0, 1, 3, 2]>({x})")
            }
            6 => {
                dims = [height, channels, width];
                let sizes = block.sizes(&[rest, height as i64, channels as i64, width as i64]);
                format!("Reshape({x}, {sizes})")
            }
            7 => format!("MatMul({x}, {})", block.weight(&[width, width])),
            8 => {
                let t = block.line(format!("Transpose<perm = [0, 1, 3, 2]>({x})"));
                dims[2] = height;
                format!("MatMul({x}, {t})")
            }
            9 => {
                let axes = block.sizes(&[1, 2]);
                let mean = block.line(format!("ReduceMean({x}, {axes})"));
                format!("Sub({x}, {mean})")
            }
            10 => {
                let flat = block.line(format!("Flatten<axis = {}>({x})", u.int_in_range(1..=3)?));
                let sizes = block.sizes(&[rest, channels as i64, height as i64, width as i64]);
                format!("Reshape({flat}, {sizes})")
            }
            11 => {
                outputs.push((x.clone(), dims));
                format!("GlobalAveragePool({x})")
            }
            // Samples are mixed: all that follows is whole.
            12 if u.ratio(1, 4)? => {
                let axes = block.sizes(&[0]);
                let mean = block.line(format!("ReduceMean({x}, {axes})"));
                format!("Sub({x}, {mean})")
            }
            _ => format!("Tanh({x})"),
        };
        if call.starts_with("GlobalAveragePool") {
            dims = [channels, 1, 1];
        }
        block.line(call);
    }
    outputs.push((block.last.clone(), dims));
    outputs.retain(|(name, _)| name != "x");
    let outputs: Vec<String> =
        (outputs.iter()).map(|(name, [c, h, w])| format!("float[{batch},{c},{h},{w}] {name}")).collect();
    let text = format!(
        "f (float[{batch},3,4,4] x) => ({}) <{}> {{ {} }}",
        outputs.join(", "),
        block.weights.join(", "),
        block.lines.join("\n")
    );
    Ok((text, if is_open { 0 } else { slices }))
}

fn model(text: &str) -> Model {
    let mut model = parse_model_filled(text, &mut seeded).unwrap_or_else(|error| panic!("{text}\n{error}"));
    infer::infer_graph(&mut model.graph);
    model
}

fn seeded(name: &str, ty: &TensorType) -> Storage {
    let seed = name.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let dims = ty.dims().unwrap();
    let tensor = random_tensor(&mut Rng::new(seed), ty.dtype, &dims).unwrap();
    if !name.starts_with("var") {
        return tensor.storage;
    }
    let positive: Vec<f64> = tensor.to_f64().unwrap().iter().map(|x| x.abs() + 0.5).collect();
    dmopt_ir::Tensor::from_f64(ty.dtype, dims, &positive).unwrap().storage
}

/// Multiplications of all layers and products.
fn products(graph: &Graph) -> u64 {
    let of = |id: OpId| {
        let op = graph.op(id);
        let elements = |value: Option<_>| graph.tensor_type(value?)?.elements();
        if op.is("MatMul") {
            return Some(elements(op.output(0))? * graph.tensor_type(op.input(0)?)?.dims()?.last()?);
        }
        let rows = *graph.tensor_type(op.input(1)?)?.dims()?.first()?;
        let per_element = elements(op.input(1))? / rows;
        match op.op_type.as_str() {
            "Conv" => Some(elements(op.output(0))? * per_element),
            "ConvTranspose" => Some(elements(op.input(0))? * per_element),
            _ => None,
        }
    };
    graph.ops().filter_map(of).sum()
}

fn file(model: &Model) -> ModelFile {
    let proto = dmopt_onnx::export(model, &Default::default()).unwrap();
    let bytes: Vec<u8> = dmopt_onnx::encode(&proto).iter().flat_map(|part| part.to_vec()).collect();
    ModelFile { bytes: Bytes::from(bytes), folder: None }
}

/// The graph is sound, multiplies as often, and computes the same.
fn same(before: &Model, after: &Model) {
    let text = || format!("from\n{}\nto\n{}", print_model(before), print_model(after));
    assert_eq!(products(&after.graph), products(&before.graph), "{}", text());
    computes_the_same(before, after);
}

/// The graph is sound, and computes the same.
fn computes_the_same(before: &Model, after: &Model) {
    let text = || format!("from\n{}\nto\n{}", print_model(before), print_model(after));
    let violations = verify_model(after);
    assert!(violations.is_empty(), "{violations:?}\n{}", text());
    let tolerance = Tolerance::for_class(Safety::Reassociates, dmopt_ir::DType::F32, before.graph.op_count());
    let options = dmopt_runtime::Options { tolerance, ..Default::default() };
    let verdict = validate(&file(before), &file(after), &options).unwrap();
    assert_eq!(verdict.status, Status::Passed, "{:?}\n{}", verdict.reason, text());
}

/// Runs a pass, and again, which must find nothing more to do. True if it edited.
fn run_twice(pass: &str, planning: Planning, model: &mut Model) -> bool {
    let options = Options { only: vec![pass.into()], verify: true, planning, ..Options::default() };
    let before = print_model(model);
    let outcome = dmopt_passes::run(model, &options).unwrap_or_else(|error| panic!("{before}\n{error}"));
    let once = print_model(model);
    dmopt_passes::run(model, &options).unwrap();
    assert_eq!(print_model(model), once, "a second run found more to do");
    outcome.safety.is_some()
}

#[test]
fn slices_of_hidden_channels_add_up() {
    arbtest(|u| {
        let (before, count) = (model(&hidden(u)?), u.int_in_range(2..=6)?);
        let mut after = before.clone();
        let planning = Planning { split_hidden: Some(count), ..Planning::default() };
        run_twice("split-hidden", planning, &mut after);
        same(&before, &after);
        Ok(())
    })
    .budget_ms(BUDGET);
}

/// Takes the first offer of a pass at a level, if it is not refused.
fn take(pass: &dyn Pass, model: &mut Model, level: usize) -> bool {
    let planning = Planning::default();
    let Some(offer) = pass.offers(&model.graph, &planning).into_iter().next() else { return false };
    let Ok(patch) = pass.take(&model.graph, &planning, &offer, level % offer.levels) else { return false };
    let (mut names, mut fuel) = (Names::of(model), None);
    let mut rewriter = Rewriter::new(&mut model.graph, &mut names, pass.safety(), &mut fuel);
    rewriter.apply(patch).unwrap();
    rewriter.finish().unwrap();
    infer::infer_graph(&mut model.graph);
    true
}

/// The first offer of a pass keeps the value of random blocks.
fn keeps(pass: &str, block: fn(&mut Unstructured<'_>) -> Result<String>) {
    let (pass, mut taken) = (find(pass).unwrap(), 0);
    arbtest(|u| {
        let (before, level) = (model(&block(u)?), u.int_in_range(0..=2)?);
        let mut after = before.clone();
        if take(pass, &mut after, level) {
            taken += 1;
            same(&before, &after);
        }
        Ok(())
    })
    .budget_ms(BUDGET);
    assert!(taken > 0);
}

#[test]
fn slices_of_a_batch_make_up_the_whole() {
    let mut split = 0;
    arbtest(|u| {
        let (text, count) = network(u)?;
        let before = model(&text);
        let mut after = before.clone();
        let planning = Planning { split_batch: Some(count), ..Planning::default() };
        split += u32::from(run_twice("split-batch", planning, &mut after));
        computes_the_same(&before, &after);
        Ok(())
    })
    .budget_ms(BUDGET);
    assert!(split > 0);
}

#[test]
fn parts_of_a_concat_add_up() {
    keeps("split-concat", concat);
}

#[test]
fn slices_of_rows_are_those_of_the_whole() {
    keeps("split-rows", attention);
}

#[test]
fn nested_sums_keep_their_value() {
    keeps("nest-scaled-sum", combination);
}
