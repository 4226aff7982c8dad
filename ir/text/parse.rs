//! Text to graph, in one pass over the characters. Bodies are built before the operator that holds them; what a
//! body reads and does not define is captured from the graph around it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::scan::{Literal, encode, error_at, narrow};
use super::{KINDS, TextError, begins_type, default_opsets, special_float};
use crate::{
    Attribute, AttributeValue, BuildError, Builder, DType, Dim, External, Function, Graph, LoadExternal,
    Model, Op, Opsets, Storage, Tensor, TensorType, Type, ValueId,
};
use bytes::Bytes;

pub(super) type Result<T> = std::result::Result<T, TextError>;

/// How deep graphs and types may be nested: beyond what models use, within what the stack holds.
const DEEPEST: usize = 64;

pub(super) struct Parser<'t, 'f> {
    pub(super) text: &'t str,
    pub(super) at: usize,
    depth: usize,
    scopes: Vec<Scope>,
    fill: Option<Fill<'f>>,
}

/// Elements for an initializer without data, by its name and type.
type Fill<'f> = &'f mut dyn FnMut(&str, &TensorType) -> Storage;

/// A graph under construction.
struct Scope {
    builder: Builder,
    opsets: Arc<Opsets>,
    start: usize,
    /// Where each value was mentioned first.
    mentions: HashMap<ValueId, usize>,
    /// Declarations without a value, which may turn out to be initializers.
    pending: Vec<(ValueId, usize)>,
}

/// One value of an attribute, or one element of a list.
enum Single {
    Int(i64),
    Float(f32),
    String(Bytes),
    Tensor(Tensor),
    Graph(Graph),
    Type(Type),
    Reference(String),
}

/// External data named by a text: there is no folder to find it in.
struct NoFolder;

impl LoadExternal for NoFolder {
    fn load(&self, range: &External) -> std::result::Result<Bytes, String> {
        Err(format!("'{}' is named by a text, which has no folder", range.location))
    }
}

impl<'t, 'f> Parser<'t, 'f> {
    pub(super) fn new(text: &'t str) -> Parser<'t, 'f> {
        Parser { text, at: 0, depth: 0, scopes: Vec::new(), fill: None }
    }

    pub(super) fn filled(self, fill: Fill<'f>) -> Parser<'t, 'f> {
        Parser { fill: Some(fill), ..self }
    }

    pub(super) fn only_graph(mut self, opsets: Arc<Opsets>) -> Result<Graph> {
        let graph = self.graph(opsets)?;
        match self.peek() {
            None => Ok(graph),
            Some(_) => self.fail("expected the end of the text after the graph"),
        }
    }

    pub(super) fn model(mut self) -> Result<Model> {
        let mut ir_version = 10;
        let mut opsets = None;
        if self.eat('<') {
            self.items('>', |p| {
                let at = p.here();
                let key = p.identifier()?;
                p.expect(':')?;
                match key {
                    "ir_version" => ir_version = p.int()?,
                    "opset_import" => opsets = Some(p.opsets()?),
                    "model_version" => drop(p.int()?),
                    "producer_name" | "producer_version" | "domain" | "doc_string" => drop(p.string()?),
                    "metadata_props" => drop(p.pairs()?),
                    other => return p.fail_at(at, format!("'{other}' is no field of a model")),
                }
                Ok(())
            })?;
        }
        let start = self.at;
        let explicit = opsets.is_some();
        let mut opsets = Arc::new(opsets.unwrap_or_else(default_opsets));
        loop {
            let graph = self.graph(opsets.clone())?;
            let mut domains = HashSet::new();
            collect_domains(&graph, &mut domains);
            domains.retain(|d| !opsets.contains_key(d));
            if explicit || domains.is_empty() {
                let functions = self.functions()?;
                return Ok(Model { ir_version, opsets, graph, functions, extra: Bytes::new() });
            }
            // A graph holds its operator sets from the start: read it again, now that they are known.
            Arc::make_mut(&mut opsets).extend(domains.into_iter().map(|d| (d, 1)));
            self.at = start;
        }
    }

    fn functions(&mut self) -> Result<Vec<Function>> {
        let mut functions = Vec::new();
        while self.peek().is_some() {
            functions.push(self.function()?);
        }
        Ok(functions)
    }

    fn function(&mut self) -> Result<Function> {
        let (mut domain, mut overload, mut opsets) = (String::new(), String::new(), Opsets::new());
        if self.eat('<') {
            self.items('>', |p| {
                let at = p.here();
                let key = p.identifier()?;
                p.expect(':')?;
                match key {
                    "domain" => domain = p.string()?,
                    "overload" => overload = p.string()?,
                    "opset_import" => opsets = p.opsets()?,
                    "doc_string" => drop(p.string()?),
                    other => return p.fail_at(at, format!("'{other}' is no field of a function")),
                }
                Ok(())
            })?;
        }
        let start = self.here();
        let name = self.name()?;
        let (mut attributes, mut defaults) = (Vec::new(), Vec::new());
        self.open(name.clone(), Arc::new(opsets), start)?;
        if self.eat('<') {
            self.items('>', |p| {
                let name = p.name()?;
                match p.peek() {
                    Some(':' | '=') => defaults.push(p.attribute_value(name)?),
                    _ => attributes.push(name),
                }
                Ok(())
            })?;
        }
        let graph = self.rest_of_graph()?;
        Ok(Function { domain, name, overload, attributes, defaults, graph, extra: Bytes::new() })
    }

    fn graph(&mut self, opsets: Arc<Opsets>) -> Result<Graph> {
        let start = self.here();
        let name = self.name()?;
        self.open(name, opsets, start)?;
        self.rest_of_graph()
    }

    fn open(&mut self, name: String, opsets: Arc<Opsets>, start: usize) -> Result<()> {
        self.deeper()?;
        let builder = Builder::new(name, opsets.clone());
        self.scopes.push(Scope { builder, opsets, start, mentions: HashMap::new(), pending: Vec::new() });
        Ok(())
    }

    /// Inputs, outputs, declarations and operators of the innermost open graph, which is closed.
    fn rest_of_graph(&mut self) -> Result<Graph> {
        let mut inputs = Vec::new();
        self.expect('(')?;
        self.items(')', |p| {
            let (id, ty, at) = p.declaration()?;
            let default = if p.eat('=') { Some(p.data_of(ty.as_ref(), at)?) } else { None };
            inputs.push((id, default, at));
            Ok(())
        })?;
        self.expect('=')?;
        self.expect('>')?;
        self.expect('(')?;
        let mut outputs = Vec::new();
        self.items(')', |p| {
            outputs.push(p.type_and_name()?);
            Ok(())
        })?;
        if self.eat('<') {
            self.items('>', |p| {
                let (id, ty, at) = p.declaration()?;
                if p.eat('=') {
                    let tensor = p.data_of(ty.as_ref(), at)?;
                    // An initializer of an input's name is the default of that input.
                    if let Some((_, default @ None, _)) = inputs.iter_mut().find(|(input, ..)| *input == id) {
                        *default = Some(tensor);
                        return Ok(());
                    }
                    let built = p.scope()?.builder.initializer(id, tensor);
                    return p.built(built, at);
                }
                if ty.is_none() {
                    return p.fail_at(at, "expected a type before this name");
                }
                p.scope()?.pending.push((id, at));
                Ok(())
            })?;
        }
        // After the constants, so that these are numbered as they are listed.
        for (ty, name, at) in outputs {
            let id = self.declare(&name, ty.as_ref(), at)?;
            self.scope()?.builder.output(id);
        }
        for (id, default, at) in inputs {
            let built = self.scope()?.builder.input(id, default);
            self.built(built, at)?;
        }
        self.expect('{')?;
        while !self.eat('}') {
            self.operator()?;
        }
        self.close()
    }

    fn close(&mut self) -> Result<Graph> {
        let Some(mut scope) = self.scopes.pop() else { return self.fail("no graph is open") };
        self.depth -= 1;
        for (id, at) in std::mem::take(&mut scope.pending) {
            let value = scope.builder.graph().value(id);
            let undefined = matches!(value.def, crate::Def::Dead);
            let around = self.scopes.iter().any(|s| s.builder.find(&value.name).is_some());
            if undefined && !around {
                let tensor = self.tensor(value.ty.as_ref(), at, |parser, ty, _| {
                    let filled = parser.fill.as_mut().map(|fill| fill(&value.name, ty));
                    Ok(filled.unwrap_or(Storage::Absent))
                })?;
                let built = scope.builder.initializer(id, tensor);
                self.built(built, at)?;
            }
        }
        let free: Vec<(ValueId, String)> = (scope.builder.undefined())
            .filter(|(id, _)| scope.builder.graph().readers(*id) > 0)
            .map(|(id, name)| (id, name.to_string()))
            .collect();
        for (id, name) in free {
            let declared = |scope: &Scope| scope.builder.type_of(scope.builder.find(&name)?).cloned();
            let ty = declared(&scope).or_else(|| self.scopes.iter().rev().find_map(declared));
            let Some(outer) = self.scopes.last_mut() else { break };
            let source = outer.builder.value(&name);
            outer.mentions.entry(source).or_insert(scope.mentions.get(&id).copied().unwrap_or(scope.start));
            let built = scope.builder.captured(id, source, ty);
            self.built(built, scope.start)?;
        }
        let Scope { builder, start, mentions, .. } = scope;
        let by_name: HashMap<String, usize> =
            mentions.iter().map(|(&id, &at)| (builder.graph().value(id).name.clone(), at)).collect();
        builder.finish().map_err(|error| {
            let at = match &error {
                BuildError::Undefined { value, .. } => by_name.get(value).copied(),
                _ => None,
            };
            error_at(self.text, at.unwrap_or(start), error.to_string())
        })
    }

    /// `type? name`, with the place of the name: mentions the value and declares its type.
    fn declaration(&mut self) -> Result<(ValueId, Option<Type>, usize)> {
        let (ty, name, at) = self.type_and_name()?;
        Ok((self.declare(&name, ty.as_ref(), at)?, ty, at))
    }

    fn type_and_name(&mut self) -> Result<(Option<Type>, String, usize)> {
        let ty = if begins_type(self.peek_word()) { Some(self.ty()?) } else { None };
        let at = self.here();
        Ok((ty, self.name()?, at))
    }

    fn declare(&mut self, name: &str, ty: Option<&Type>, at: usize) -> Result<ValueId> {
        let id = self.mention(name, at)?;
        let Some(ty) = ty else { return Ok(id) };
        let builder = &mut self.scope()?.builder;
        let merged = match builder.type_of(id) {
            Some(before) => before.merge(ty).ok_or_else(|| format!("'{name}' is {before} and {ty}")),
            None => Ok(ty.clone()),
        };
        match merged {
            Ok(merged) => builder.set_type(id, Some(merged)),
            Err(reason) => return self.fail_at(at, reason),
        }
        Ok(id)
    }

    fn operator(&mut self) -> Result<()> {
        let mut label = String::new();
        if self.eat('[') {
            label = self.optional_name()?.unwrap_or_default();
            self.expect(']')?;
        }
        let start = self.here();
        let outputs = self.values()?;
        self.expect('=')?;
        let mut domain = Vec::new();
        let mut op_type = self.name()?;
        while self.eat('.') {
            domain.push(std::mem::replace(&mut op_type, self.name()?));
        }
        let overload = if self.eat(':') { self.name()? } else { String::new() };
        let mut attributes = self.attributes()?;
        self.expect('(')?;
        let inputs = self.values()?;
        self.expect(')')?;
        if attributes.is_empty() {
            attributes = self.attributes()?;
        }
        let domain = domain.join(".");
        let op = Op { name: label, domain, overload, attributes, ..Op::new(&op_type, inputs, outputs) };
        let built = self.scope()?.builder.op(op);
        self.built(built.map(drop), start)
    }

    /// Names separated by commas; an empty one is a value that is left out.
    fn values(&mut self) -> Result<Vec<Option<ValueId>>> {
        let mut values = Vec::new();
        loop {
            let at = self.here();
            let name = self.optional_name()?;
            let more = self.eat(',');
            if name.is_none() && !more {
                return Ok(values);
            }
            values.push(match name {
                Some(name) if !name.is_empty() => Some(self.mention(&name, at)?),
                _ => None,
            });
            if !more {
                return Ok(values);
            }
        }
    }

    fn attributes(&mut self) -> Result<Vec<Attribute>> {
        let mut attributes = Vec::new();
        if self.eat('<') {
            self.items('>', |p| {
                let name = p.name()?;
                attributes.push(p.attribute_value(name)?);
                Ok(())
            })?;
        }
        Ok(attributes)
    }

    /// `(: kind)? = value`, after the name of an attribute.
    fn attribute_value(&mut self, name: String) -> Result<Attribute> {
        let mut kind = None;
        if self.eat(':') {
            let at = self.here();
            let word = self.identifier()?;
            match KINDS.iter().find(|(_, name)| *name == word) {
                Some(found) => kind = Some(*found),
                None => return self.fail_at(at, format!("'{word}' is no type of attributes")),
            }
        }
        self.expect('=')?;
        let at = self.here();
        let value = if self.eat('[') {
            let mut list = Vec::new();
            self.items(']', |p| {
                list.push(p.single()?);
                Ok(())
            })?;
            list_value(list, kind.map(|(_, word)| word))
        } else {
            let single = self.single()?;
            single_value(single, kind)
        };
        match value {
            Ok(value) => Ok(Attribute { name, value, extra: Bytes::new() }),
            Err(reason) => self.fail_at(at, reason),
        }
    }

    fn single(&mut self) -> Result<Single> {
        let word = self.peek_word();
        if begins_type(word) {
            let at = self.here();
            let ty = self.ty()?;
            let named = !self.peek_word().is_empty() || self.peek() == Some('"');
            if named {
                self.name()?;
            }
            let assigned = self.eat('=');
            if named || assigned || self.peek() == Some('{') {
                return Ok(Single::Tensor(self.data_of(Some(&ty), at)?));
            }
            return Ok(Single::Type(ty));
        }
        if !word.is_empty() && special_float(word).is_none() {
            return Ok(Single::Graph(self.body()?));
        }
        if self.eat('@') {
            return Ok(Single::Reference(self.name()?));
        }
        let at = self.here();
        match self.literal()? {
            Literal::String(_) if self.peek() == Some('(') => {
                self.at = at;
                Ok(Single::Graph(self.body()?))
            }
            Literal::String(bytes) => Ok(Single::String(bytes.into())),
            Literal::Int(digits) => match digits.parse() {
                Ok(value) => Ok(Single::Int(value)),
                Err(_) => self.fail_at(at, format!("{digits} does not fit 64 bits")),
            },
            Literal::Float(digits) => match digits.parse() {
                Ok(value) => Ok(Single::Float(value)),
                Err(_) => self.fail_at(at, format!("'{digits}' is no number")),
            },
            Literal::Special(value) => Ok(Single::Float(narrow(value))),
            Literal::Bits(bits) => match u32::try_from(bits) {
                Ok(bits) => Ok(Single::Float(f32::from_bits(bits))),
                Err(_) => self.fail_at(at, "more than 32 bits"),
            },
        }
    }

    fn body(&mut self) -> Result<Graph> {
        let opsets = self.scope()?.opsets.clone();
        self.graph(opsets)
    }

    fn ty(&mut self) -> Result<Type> {
        self.deeper()?;
        let at = self.here();
        let word = self.identifier()?;
        let ty = match word {
            "seq" | "optional" | "sparse_tensor" | "map" => {
                self.expect('(')?;
                let ty = match word {
                    "seq" => Type::Sequence(Box::new(self.ty()?)),
                    "optional" => Type::Optional(Box::new(self.ty()?)),
                    "map" => {
                        let key = self.dtype()?;
                        self.expect(',')?;
                        Type::Map { key, value: Box::new(self.ty()?) }
                    }
                    _ => {
                        let dtype = self.dtype()?;
                        Type::Sparse(TensorType { dtype, shape: self.shape()? })
                    }
                };
                self.expect(')')?;
                ty
            }
            "opaque" => {
                self.expect('(')?;
                let mut parts = Vec::new();
                while let Some(part) = self.optional_name()? {
                    parts.push(part);
                    if !self.eat('.') {
                        break;
                    }
                }
                let first = parts.join(".");
                let ty = if self.eat(',') {
                    Type::Opaque { domain: first, name: self.name()? }
                } else {
                    Type::Opaque { domain: String::new(), name: first }
                };
                self.expect(')')?;
                ty
            }
            _ => match DType::from_name(word) {
                Some(dtype) => Type::Tensor(TensorType { dtype, shape: self.shape()? }),
                None => return self.fail_at(at, format!("'{word}' is no type")),
            },
        };
        self.depth -= 1;
        Ok(ty)
    }

    fn dtype(&mut self) -> Result<DType> {
        let at = self.here();
        let word = self.identifier()?;
        match DType::from_name(word) {
            Some(dtype) => Ok(dtype),
            None => self.fail_at(at, format!("'{word}' is no element type")),
        }
    }

    fn shape(&mut self) -> Result<Option<Vec<Dim>>> {
        let mut dims = Vec::new();
        if !self.eat('[') {
            return Ok(Some(dims));
        }
        if self.eat(']') {
            return Ok(None);
        }
        self.items(']', |p| {
            let at = p.here();
            dims.push(if p.eat('?') {
                Dim::Unknown
            } else if let Some(symbol) = p.optional_name()? {
                if symbol.is_empty() { Dim::Unknown } else { Dim::Symbol(symbol.into()) }
            } else {
                match u64::try_from(p.int()?) {
                    Ok(size) => Dim::Known(size),
                    Err(_) => return p.fail_at(at, "a size is not negative"),
                }
            });
            Ok(())
        })?;
        Ok(Some(dims))
    }

    /// A tensor of this declared type, its elements being next.
    fn data_of(&mut self, ty: Option<&Type>, at: usize) -> Result<Tensor> {
        self.tensor(ty, at, |parser, ty, elements| match parser.peek() {
            Some('{') => parser.elements(ty.dtype, elements),
            Some('[') => parser.external(),
            _ => parser.fail("expected '{' and elements"),
        })
    }

    fn tensor(
        &mut self,
        ty: Option<&Type>,
        at: usize,
        storage: impl FnOnce(&mut Self, &TensorType, u64) -> Result<Storage>,
    ) -> Result<Tensor> {
        let Some(ty) = ty.and_then(Type::tensor) else {
            return self.fail_at(at, "only a dense tensor type can have data here");
        };
        let Some(dims) = ty.dims() else {
            return self.fail_at(at, format!("data of type {ty}: every size must be a number"));
        };
        let Some(elements) = ty.elements() else {
            return self.fail_at(at, format!("{ty} has too many elements"));
        };
        let storage = storage(self, ty, elements)?;
        Ok(Tensor { dtype: ty.dtype, dims, storage, extra: Bytes::new() })
    }

    fn elements(&mut self, dtype: DType, expected: u64) -> Result<Storage> {
        let start = self.here();
        self.expect('{')?;
        let pair = matches!(dtype, DType::Complex64 | DType::Complex128);
        let mut strings = Vec::new();
        let mut data = Vec::new();
        let mut found = 0u64;
        self.items('}', |p| {
            match dtype {
                DType::String => strings.push(Bytes::from(p.string_bytes()?)),
                _ => p.element(dtype, &mut data)?,
            }
            found += 1;
            Ok(())
        })?;
        if Some(found) != expected.checked_mul(if pair { 2 } else { 1 }) {
            let reason = format!("expected {expected} elements, found {found}");
            return self.fail_at(start, reason);
        }
        if dtype == DType::String {
            return Ok(Storage::Strings(strings));
        }
        // Below a byte: packed from the low bits up, one byte per element so far.
        if let Some(bits @ 1..8) = dtype.bits() {
            let packed = data.chunks((8 / bits) as usize).map(|group| {
                group.iter().rev().fold(0u8, |byte, code| (byte << bits) | (code & ((1 << bits) - 1)))
            });
            data = packed.collect();
        }
        Ok(Storage::Raw(data.into()))
    }

    /// One element, little-endian; a byte of its own for types below 8 bits.
    fn element(&mut self, dtype: DType, out: &mut Vec<u8>) -> Result<()> {
        let at = self.here();
        let literal = self.literal()?;
        match encode(dtype, &literal, out) {
            Some(()) => Ok(()),
            None => {
                let found = self.text[at..self.at].trim_end();
                self.fail_at(at, format!("{found} is no element of type {dtype}"))
            }
        }
    }

    fn external(&mut self) -> Result<Storage> {
        let start = self.here();
        let mut location = None;
        let (mut offset, mut length) = (0, None);
        for (key, value, at) in self.pairs()? {
            let number = || value.parse::<u64>().ok();
            match (key.as_str(), number()) {
                ("location", _) => location = Some(value),
                ("offset", Some(n)) => offset = n,
                ("length", Some(n)) => length = Some(n),
                _ => return self.fail_at(at, format!("'{key}' with value '{value}' is not understood here")),
            }
        }
        match location {
            Some(location) => {
                Ok(Storage::External(External { location, offset, length, source: Arc::new(NoFolder) }))
            }
            None => self.fail_at(start, "external data need a location"),
        }
    }

    /// `["key": "value", ...]`, with the place of each key.
    fn pairs(&mut self) -> Result<Vec<(String, String, usize)>> {
        let mut pairs = Vec::new();
        self.expect('[')?;
        self.items(']', |p| {
            let at = p.here();
            let key = p.string()?;
            p.expect(':')?;
            pairs.push((key, p.string()?, at));
            Ok(())
        })?;
        Ok(pairs)
    }

    fn opsets(&mut self) -> Result<Opsets> {
        let mut opsets = Opsets::new();
        self.expect('[')?;
        self.items(']', |p| {
            let domain = p.string()?;
            p.expect(':')?;
            let version = p.int()?;
            opsets.insert(if domain == "ai.onnx" { String::new() } else { domain }, version);
            Ok(())
        })?;
        Ok(opsets)
    }

    fn mention(&mut self, name: &str, at: usize) -> Result<ValueId> {
        let scope = self.scope()?;
        let id = scope.builder.value(name);
        scope.mentions.entry(id).or_insert(at);
        Ok(id)
    }

    fn scope(&mut self) -> Result<&mut Scope> {
        let at = self.at;
        let text = self.text;
        self.scopes.last_mut().ok_or_else(|| error_at(text, at, "no graph is open".to_string()))
    }

    fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > DEEPEST { self.fail("nested too deeply") } else { Ok(()) }
    }

    fn built<T>(&self, result: std::result::Result<T, BuildError>, at: usize) -> Result<T> {
        result.map_err(|error| error_at(self.text, at, error.to_string()))
    }
}

fn collect_domains(graph: &Graph, domains: &mut HashSet<String>) {
    for id in graph.ops() {
        let op = graph.op(id);
        if !op.is_standard() {
            domains.insert(op.domain.clone());
        }
        op.bodies().for_each(|body| collect_domains(body, domains));
    }
}

fn single_value(
    single: Single,
    kind: Option<(i32, &'static str)>,
) -> std::result::Result<AttributeValue, String> {
    let (value, found) = match (single, kind) {
        (Single::Reference(name), Some((kind, _))) => return Ok(AttributeValue::Reference { name, kind }),
        (Single::Reference(_), None) => {
            return Err("a reference needs a type: 'name: int = @other'".to_string());
        }
        (Single::Int(v), Some((_, "float"))) => return Ok(AttributeValue::Float(v as f32)),
        (Single::Int(v), _) => (AttributeValue::Int(v), "int"),
        (Single::Float(v), _) => (AttributeValue::Float(v), "float"),
        (Single::String(v), _) => (AttributeValue::String(v), "string"),
        (Single::Tensor(v), _) => (AttributeValue::Tensor(v), "tensor"),
        (Single::Graph(v), _) => (AttributeValue::Graph(Box::new(v)), "graph"),
        (Single::Type(v), _) => (AttributeValue::Type(v), "type_proto"),
    };
    match kind {
        Some((_, wanted)) if wanted != found => Err(format!("declared as {wanted}, found {found}")),
        _ => Ok(value),
    }
}

fn list_value(list: Vec<Single>, kind: Option<&str>) -> std::result::Result<AttributeValue, String> {
    let kind = match (kind, list.first()) {
        (Some(kind), _) => kind,
        (None, None) => return Err("an empty list needs a type: 'name: ints = []'".to_string()),
        (None, Some(Single::Int(_))) if list.iter().any(|s| matches!(s, Single::Float(_))) => "floats",
        (None, Some(Single::Int(_))) => "ints",
        (None, Some(Single::Float(_))) => "floats",
        (None, Some(Single::String(_))) => "strings",
        (None, Some(Single::Tensor(_))) => "tensors",
        (None, Some(Single::Graph(_))) => "graphs",
        (None, Some(Single::Type(_))) => "type_protos",
        (None, Some(Single::Reference(_))) => return Err("a reference stands alone".to_string()),
    };
    macro_rules! all {
        ($list:ident, $($single:pat => $value:expr),*) => {
            list.into_iter().map(|s| match s { $($single => Some($value),)* _ => None })
                .collect::<Option<Vec<_>>>().map(AttributeValue::$list)
        };
    }
    let value = match kind {
        "ints" => all!(Ints, Single::Int(v) => v),
        "floats" => all!(Floats, Single::Float(v) => v, Single::Int(v) => v as f32),
        "strings" => all!(Strings, Single::String(v) => v),
        "tensors" => all!(Tensors, Single::Tensor(v) => v),
        "graphs" => all!(Graphs, Single::Graph(v) => v),
        "type_protos" => all!(Types, Single::Type(v) => v),
        other => return Err(format!("{other} is not written as a list")),
    };
    value.ok_or_else(|| format!("the elements are not all of type {kind}"))
}
