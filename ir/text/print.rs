//! Graph to text. Operators are written before the declarations that stand above them, so that canonical numbers
//! can be given in the order in which operators mention values.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use half::{bf16, f16};

use super::{KINDS, Style, begins_type, special_float};
use crate::{
    Attribute, AttributeValue, DType, Def, Dim, Graph, Model, Op, OpId, Opsets, Shape, Storage, Tensor,
    TensorType, Type, ValueId,
};

/// Lists longer than this are written one element a line.
const WIDTH: usize = 96;
/// Tensors and lists of numbers longer than this are cut short for display.
const SHORT: usize = 8;
/// What stands for something that the syntax cannot say; no reader accepts it.
const UNSAID: &str = "...";

pub(super) struct Printer<'g> {
    style: Style,
    indent: usize,
    scopes: Vec<Scope<'g>>,
    canonical: Option<Canonical>,
    /// Names, as they are written, of initializers whose data are left out.
    omit: HashSet<String>,
}

/// A graph that is being written, with the numbers given to its values.
struct Scope<'g> {
    graph: &'g Graph,
    numbered: HashMap<ValueId, (usize, String)>,
}

#[derive(Default)]
struct Canonical {
    results: usize,
    constants: usize,
    /// Names of initializers that were written without data.
    dataless: HashSet<String>,
}

impl<'g> Printer<'g> {
    pub(super) fn new(style: Style) -> Printer<'g> {
        Printer { style, indent: 0, scopes: Vec::new(), canonical: None, omit: HashSet::new() }
    }

    pub(super) fn canonical() -> Printer<'g> {
        Printer { canonical: Some(Canonical::default()), ..Printer::new(Style::Example) }
    }

    /// Leaves out the data of initializers that are written under these names.
    pub(super) fn without(self, omit: HashSet<String>) -> Printer<'g> {
        Printer { omit, ..self }
    }

    /// The initializers without data in what was written.
    pub(super) fn dataless(self) -> HashSet<String> {
        self.canonical.map(|c| c.dataless).unwrap_or_default()
    }

    pub(super) fn whole(&mut self, graph: &'g Graph) -> String {
        self.graph(graph) + "\n"
    }

    pub(super) fn single(&mut self, graph: &'g Graph, op: OpId) -> String {
        self.scopes.push(Scope { graph, numbered: HashMap::new() });
        let text = self.operator(graph.op(op));
        self.scopes.pop();
        text
    }

    pub(super) fn model(&mut self, model: &'g Model) -> String {
        let mut out =
            format!("<ir_version: {}, opset_import: {}>\n", model.ir_version, opset_list(&model.opsets));
        out += &self.whole(&model.graph);
        for function in &model.functions {
            let overload = match function.overload.as_str() {
                "" => String::new(),
                overload => format!(", overload: {}", quote(overload.as_bytes())),
            };
            let domain = quote(function.domain.as_bytes());
            let opsets = opset_list(function.graph.opsets());
            let _ = writeln!(out, "<domain: {domain}, opset_import: {opsets}{overload}>");
            let required = function.attributes.iter().map(|name| id(name));
            let defaults: Vec<String> = function.defaults.iter().map(|a| self.attribute(a)).collect();
            let attributes: Vec<String> = required.chain(defaults).collect();
            out += &id(&function.name);
            if !attributes.is_empty() {
                let _ = write!(out, " <{}>", attributes.join(", "));
            }
            out += &self.after_name(&function.graph);
            out.push('\n');
        }
        out
    }

    fn graph(&mut self, graph: &'g Graph) -> String {
        let name = match (&self.canonical, self.scopes.is_empty()) {
            (Some(_), false) => "body".to_string(),
            _ => id(graph.name()),
        };
        name + &self.after_name(graph)
    }

    /// ` (inputs) => (outputs) <declarations> {operators}`
    fn after_name(&mut self, graph: &'g Graph) -> String {
        self.scopes.push(Scope { graph, numbered: HashMap::new() });
        let inputs: Vec<String> = graph.inputs().iter().map(|&v| self.input(v)).collect();
        let order = graph.order().unwrap_or_else(|_| graph.ops().collect());
        self.indent += 1;
        let mut operators = String::new();
        for &op in &order {
            let op = graph.op(op);
            let _ = write!(operators, "{}{}", self.margin(), self.operator(op));
            if self.style == Style::Display {
                operators += &self.types_of(op);
            }
            operators.push('\n');
        }
        self.indent -= 1;
        let outputs: Vec<String> = graph.outputs().iter().map(|&v| self.typed(v)).collect();
        let declarations = self.declarations(graph, &order);
        self.scopes.pop();

        let mut out = format!(" {} => {}", self.list('(', &inputs, ')'), self.list('(', &outputs, ')'));
        let margin = self.margin();
        let short = self.style == Style::Example
            && out.len() + declarations.iter().map(|d| d.len() + 2).sum::<usize>() <= WIDTH;
        match declarations.as_slice() {
            [] if short => out.push(' '),
            some if short => {
                let _ = write!(out, " <{}> ", some.join(", "));
            }
            [] if self.scopes.is_empty() => out.push('\n'),
            [] => out.push(' '),
            some => {
                let _ = write!(out, "\n{margin}{}\n{margin}", self.list('<', some, '>'));
            }
        }
        let _ = write!(out, "{{\n{operators}{margin}}}");
        out
    }

    fn input(&mut self, value: ValueId) -> String {
        let graph = self.here();
        match &graph.value(value).def {
            Def::Input { default: Some(tensor) } => {
                let name = self.name(value);
                format!("{} {name} = {}", self.ty(&tensor.ty().into()), self.data(tensor))
            }
            _ => self.typed(value),
        }
    }

    fn declarations(&mut self, graph: &'g Graph, order: &[OpId]) -> Vec<String> {
        let constants: Vec<ValueId> = (graph.values())
            .filter(|&v| matches!(graph.value(v).def, Def::Initializer(_) | Def::SparseInitializer(_)))
            .collect();
        let mut lines = Vec::with_capacity(constants.len());
        for value in constants {
            let name = self.name(value);
            let (data, ty) = match &graph.value(value).def {
                Def::Initializer(tensor) => {
                    let ty = self.ty(&tensor.ty().into());
                    let absent = tensor.storage == Storage::Absent;
                    if absent && let Some(canonical) = &mut self.canonical {
                        canonical.dataless.insert(name.clone());
                    }
                    let omitted = self.omit.contains(&name);
                    (if absent || omitted { None } else { Some(self.data(tensor)) }, ty)
                }
                Def::SparseInitializer(sparse) => {
                    let dims = sparse.dims.iter().map(|&d| Dim::Known(d)).collect();
                    let ty = TensorType { dtype: sparse.values.dtype, shape: Some(dims) };
                    (Some(UNSAID.to_string()), self.ty(&Type::Sparse(ty)))
                }
                _ => continue,
            };
            let position = self.scopes.last().and_then(|s| s.numbered.get(&value)).map(|(number, _)| *number);
            lines.push((
                position,
                data.map_or(format!("{ty} {name}"), |data| format!("{ty} {name} = {data}")),
            ));
        }
        if self.canonical.is_some() {
            lines.sort_by_key(|(position, _)| *position);
        }
        let mut lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
        if matches!(self.style, Style::Exact | Style::Onnx) {
            for &op in order {
                for value in graph.op(op).results() {
                    if graph.value(value).ty.is_some() && !graph.is_output(value) {
                        lines.push(self.typed(value));
                    }
                }
            }
        }
        lines
    }

    fn operator(&mut self, op: &'g Op) -> String {
        let mut out = String::new();
        if !op.name.is_empty() && self.style != Style::Example {
            let _ = write!(out, "[{}] ", id(&op.name));
        }
        // Operands first: numbers follow the order in which values are needed.
        let inputs: Vec<String> = op.inputs.iter().map(|&v| self.optional(v)).collect();
        let mut attributes: Vec<&Attribute> = op.attributes.iter().collect();
        if self.canonical.is_some() {
            attributes.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let attributes: Vec<String> = attributes.into_iter().map(|a| self.attribute(a)).collect();
        let attributes = match attributes.as_slice() {
            [] => String::new(),
            some => format!("<{}>", some.join(", ")),
        };
        let outputs: Vec<String> = op.outputs.iter().map(|&v| self.optional(v)).collect();
        let _ = write!(out, "{} = ", outputs.join(", "));
        if !op.domain.is_empty() {
            op.domain.split('.').for_each(|part| out.extend([&id(part), "."]));
        }
        out += &id(&op.op_type);
        if !op.overload.is_empty() {
            let _ = write!(out, ":{}", id(&op.overload));
        }
        let inputs = format!("({})", inputs.join(", "));
        // A body is easier to read below the operands.
        if op.bodies().next().is_some() { out + &inputs + &attributes } else { out + &attributes + &inputs }
    }

    /// A comment with the types of the results.
    fn types_of(&self, op: &Op) -> String {
        let graph = self.here();
        let types: Vec<String> = (op.results())
            .map(|v| graph.value(v).ty.as_ref().map_or("?".to_string(), |ty| self.ty(ty)))
            .collect();
        if types.iter().all(|ty| ty == "?") { String::new() } else { format!("  # {}", types.join(", ")) }
    }

    fn attribute(&mut self, attribute: &'g Attribute) -> String {
        use AttributeValue::*;
        let (kind, value) = match &attribute.value {
            Float(v) => ("", self.float(*v)),
            Int(v) => ("", v.to_string()),
            String(v) => ("", quote(v)),
            Tensor(v) => ("", self.tensor(v)),
            Graph(v) => ("", self.graph(v)),
            Type(v) => (": type_proto", self.ty(v)),
            Floats(v) => (if v.is_empty() { ": floats" } else { "" }, self.items(v, |p, v| p.float(*v))),
            Ints(v) => (if v.is_empty() { ": ints" } else { "" }, self.items(v, |_, v| v.to_string())),
            Strings(v) => (if v.is_empty() { ": strings" } else { "" }, self.items(v, |_, v| quote(v))),
            Tensors(v) => (": tensors", bracket(v.iter().map(|v| self.tensor(v)))),
            Graphs(v) => (": graphs", bracket(v.iter().map(|v| self.graph(v)))),
            Types(v) => (": type_protos", bracket(v.iter().map(|v| self.ty(v)))),
            Reference { name, kind } => {
                let word = KINDS.iter().find(|(number, _)| number == kind).map_or(UNSAID, |(_, word)| word);
                return format!("{}: {word} = @{}", id(&attribute.name), id(name));
            }
            SparseTensor(_) | SparseTensors(_) | Opaque => ("", UNSAID.to_string()),
        };
        format!("{}{kind} = {value}", id(&attribute.name))
    }

    fn items<T>(&self, values: &[T], text: impl Fn(&Self, &T) -> String) -> String {
        if self.style == Style::Display && values.len() > SHORT {
            let some = values[..SHORT].iter().map(|v| text(self, v)).chain([UNSAID.to_string()]);
            return bracket(some);
        }
        bracket(values.iter().map(|v| text(self, v)))
    }

    fn tensor(&self, tensor: &Tensor) -> String {
        let ty = self.ty(&tensor.ty().into());
        match &tensor.storage {
            Storage::External(_) => format!("{ty} = {}", self.data(tensor)),
            _ => format!("{ty} {}", self.data(tensor)),
        }
    }

    /// The elements in braces, or where they are.
    fn data(&self, tensor: &Tensor) -> String {
        if let Storage::External(range) = &tensor.storage {
            let length = range.length.map(|n| format!(", \"length\": \"{n}\"")).unwrap_or_default();
            let location = quote(range.location.as_bytes());
            return format!("[\"location\": {location}, \"offset\": \"{}\"{length}]", range.offset);
        }
        let most = if self.style == Style::Display { SHORT } else { usize::MAX };
        let Some(mut elements) = self.elements(tensor, most) else { return UNSAID.to_string() };
        if tensor.elements().is_some_and(|n| n > most as u64) {
            elements.push(UNSAID.to_string());
        }
        format!("{{{}}}", elements.join(", "))
    }

    /// At most this many elements; `None` when they cannot be had.
    fn elements(&self, tensor: &Tensor, most: usize) -> Option<Vec<String>> {
        if let Storage::Strings(strings) = &tensor.storage {
            return Some(strings.iter().take(most).map(|s| quote(s)).collect());
        }
        let bytes = tensor.bytes().ok()?;
        use DType::*;
        Some(match tensor.dtype {
            F32 | Complex64 => each(&bytes, most, |b| self.float(f32::from_le_bytes(b))),
            F64 | Complex128 => each(&bytes, most, |b| double(f64::from_le_bytes(b), self.style)),
            F16 | BF16 => each(&bytes, most, |b| self.half(tensor.dtype, u16::from_le_bytes(b))),
            U64 => each(&bytes, most, |b| u64::from_le_bytes(b).to_string()),
            I64 => each(&bytes, most, |b| i64::from_le_bytes(b).to_string()),
            U32 => each(&bytes, most, |b| u32::from_le_bytes(b).to_string()),
            I32 => each(&bytes, most, |b| i32::from_le_bytes(b).to_string()),
            U16 => each(&bytes, most, |b| u16::from_le_bytes(b).to_string()),
            I16 => each(&bytes, most, |b| i16::from_le_bytes(b).to_string()),
            I8 => each(&bytes, most, |[b]| (b as i8).to_string()),
            U8 | Bool | F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0 => {
                each(&bytes, most, |[b]| b.to_string())
            }
            U4 | U2 | F4E2M1 => unpack(tensor, &bytes).take(most).map(|(code, _)| code.to_string()).collect(),
            I4 | I2 => unpack(tensor, &bytes).take(most).map(|(_, signed)| signed.to_string()).collect(),
            String | F6E2M3 | F6E3M2 => return None,
        })
    }

    fn float(&self, value: f32) -> String {
        match value.to_bits() {
            0x7fc0_0000 => "nan".to_string(),
            0xffc0_0000 => "-nan".to_string(),
            _ if value.is_nan() && self.style == Style::Onnx => "nan".to_string(),
            bits if value.is_nan() => format!("{bits:#x}"),
            _ => format!("{value:?}"),
        }
    }

    fn half(&self, dtype: DType, bits: u16) -> String {
        if self.style == Style::Onnx {
            return bits.to_string();
        }
        let read = |v: f64| {
            if dtype == DType::F16 { f16::from_f64(v).to_bits() } else { bf16::from_f64(v).to_bits() }
        };
        let value =
            if dtype == DType::F16 { f16::from_bits(bits).to_f64() } else { bf16::from_bits(bits).to_f64() };
        match value {
            v if v.is_nan() && bits == read(f64::NAN) => "nan".to_string(),
            v if v.is_nan() => format!("{bits:#x}"),
            v if v.is_infinite() => format!("{v:?}"),
            v => {
                // The fewest digits that read back as the same bits.
                let shorter = (0..17).filter_map(|digits| format!("{v:.digits$e}").parse::<f64>().ok());
                format!("{:?}", shorter.into_iter().find(|&v| read(v) == bits).unwrap_or(v))
            }
        }
    }

    fn typed(&mut self, value: ValueId) -> String {
        let name = self.name(value);
        let (depth, source) = self.source(value);
        let known = |graph: &'g Graph, id: ValueId| graph.value(id).ty.as_ref();
        match known(self.scopes[depth].graph, source).or(known(self.here(), value)) {
            Some(ty) => format!("{} {name}", self.ty(ty)),
            None => name,
        }
    }

    fn optional(&mut self, value: Option<ValueId>) -> String {
        value.map_or("\"\"".to_string(), |v| self.name(v))
    }

    /// Where a value of the innermost graph is defined: the enclosing graph knows best what a captured value is
    /// called and what type it has.
    fn source(&self, mut value: ValueId) -> (usize, ValueId) {
        let mut depth = self.scopes.len().saturating_sub(1);
        while depth > 0
            && value.index() < self.scopes[depth].graph.value_bound()
            && let Def::Captured { outer } = self.scopes[depth].graph.value(value).def
        {
            (depth, value) = (depth - 1, outer);
        }
        (depth, value)
    }

    /// The name of a value of the innermost graph.
    fn name(&mut self, value: ValueId) -> String {
        let (depth, value) = self.source(value);
        let scope = &mut self.scopes[depth];
        let graph = scope.graph;
        if value.index() >= graph.value_bound() {
            return UNSAID.to_string();
        }
        let of = graph.value(value);
        let Some(canonical) = &mut self.canonical else { return id(&of.name) };
        if depth == 0 && (graph.is_output(value) || matches!(of.def, Def::Input { .. })) {
            return id(&of.name);
        }
        // These can be no value's own name: an identifier has no '%', and other names stand in quotes.
        let (_, name) = scope.numbered.entry(value).or_insert_with(|| {
            let (prefix, counter) = match of.def {
                Def::Initializer(_) | Def::SparseInitializer(_) => ("%c", &mut canonical.constants),
                _ => ("%", &mut canonical.results),
            };
            *counter += 1;
            (*counter, format!("{prefix}{counter}"))
        });
        name.clone()
    }

    fn ty(&self, ty: &Type) -> String {
        match ty {
            Type::Tensor(t) => tensor_type(t),
            Type::Sparse(t) => format!("sparse_tensor({})", tensor_type(t)),
            Type::Sequence(t) => format!("seq({})", self.ty(t)),
            Type::Map { key, value } => format!("map({key}, {})", self.ty(value)),
            Type::Optional(t) => format!("optional({})", self.ty(t)),
            Type::Opaque { domain, name } if domain.is_empty() => format!("opaque({})", dotted(name)),
            Type::Opaque { domain, name } => format!("opaque({}, {})", dotted(domain), id(name)),
        }
    }

    fn here(&self) -> &'g Graph {
        match self.scopes.last() {
            Some(scope) => scope.graph,
            None => unreachable!("values are named within a graph"),
        }
    }

    fn margin(&self) -> String {
        "  ".repeat(self.indent)
    }

    /// On one line, or one item a line when that would be too long.
    fn list(&self, open: char, items: &[String], close: char) -> String {
        let length: usize = items.iter().map(|i| i.len() + 2).sum();
        if length <= WIDTH {
            return format!("{open}{}{close}", items.join(", "));
        }
        let margin = self.margin();
        let separator = format!(",\n{margin}  ");
        format!("{open}\n{margin}  {}\n{margin}{close}", items.join(&separator))
    }
}

fn opset_list(opsets: &Opsets) -> String {
    bracket(opsets.iter().map(|(domain, version)| format!("{}: {version}", quote(domain.as_bytes()))))
}

fn bracket(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn tensor_type(ty: &TensorType) -> String {
    let dim = |dim: &Dim| match dim {
        Dim::Symbol(symbol) if is_identifier(symbol) => symbol.to_string(),
        Dim::Symbol(symbol) => quote(symbol.as_bytes()),
        other => other.to_string(),
    };
    let dims = |shape: &Shape| shape.iter().map(dim).collect::<Vec<_>>().join(",");
    match &ty.shape {
        None => format!("{}[]", ty.dtype),
        Some(shape) if shape.is_empty() => ty.dtype.to_string(),
        Some(shape) => format!("{}[{}]", ty.dtype, dims(shape)),
    }
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A name, in quotes unless it is an identifier that cannot be taken for something else.
fn id(name: &str) -> String {
    if is_identifier(name) && !begins_type(name) && special_float(name).is_none() {
        name.to_string()
    } else {
        quote(name.as_bytes())
    }
}

fn dotted(name: &str) -> String {
    name.split('.').map(id).collect::<Vec<_>>().join(".")
}

fn quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    let escape = |out: &mut String, bytes: &[u8]| {
        bytes.iter().for_each(|byte| _ = write!(out, "\\x{byte:02x}"));
    };
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                // A terminal would obey it.
                c if c.is_control() => escape(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => out.push(c),
            }
        }
        escape(&mut out, chunk.invalid());
    }
    out + "\""
}

fn double(value: f64, style: Style) -> String {
    match value.to_bits() {
        0x7ff8_0000_0000_0000 => "nan".to_string(),
        0xfff8_0000_0000_0000 => "-nan".to_string(),
        _ if value.is_nan() && style == Style::Onnx => "nan".to_string(),
        bits if value.is_nan() => format!("{bits:#x}"),
        _ => format!("{value:?}"),
    }
}

/// Elements below 8 bits: as they are, and with their highest bit as the sign.
fn unpack<'a>(tensor: &Tensor, bytes: &'a [u8]) -> impl Iterator<Item = (u8, i8)> + 'a {
    let bits = tensor.dtype.bits().unwrap_or(8).clamp(1, 8);
    let count = tensor.elements().unwrap_or(0) as usize;
    let codes =
        bytes.iter().flat_map(move |&b| (0..8 / bits).map(move |i| (b >> (i * bits)) & low_bits(bits)));
    codes.take(count).map(move |code| (code, ((code << (8 - bits)) as i8) >> (8 - bits)))
}

fn low_bits(bits: u32) -> u8 {
    (0xffu16 >> (8 - bits)) as u8
}

/// At most this many elements of `N` bytes.
fn each<const N: usize>(bytes: &[u8], most: usize, f: impl Fn([u8; N]) -> String) -> Vec<String> {
    bytes.as_chunks::<N>().0.iter().take(most).map(|&c| f(c)).collect()
}
