//! Operators and their attributes. Operators are data: unknown ones pass through untouched.

use bytes::Bytes;

use crate::{Graph, SparseTensor, Tensor, Type, ValueId};

/// One operator of a graph (ONNX: node).
#[derive(Clone, Debug)]
pub struct Op {
    /// Name in the file; may be empty, need not be unique.
    pub name: String,
    /// Operator set that defines it; empty for the standard one.
    pub domain: String,
    /// Operator type, such as `Conv`.
    pub op_type: String,
    /// Which overload of a model-local function; almost always empty.
    pub overload: String,
    /// Attributes in file order.
    pub attributes: Vec<Attribute>,
    /// Operands by position; `None` where an optional one is left out.
    pub inputs: Vec<Option<ValueId>>,
    /// Results by position; `None` where an optional one is left out.
    pub outputs: Vec<Option<ValueId>>,
    /// Values of the enclosing graph that the bodies read, each once.
    pub captures: Vec<ValueId>,
    /// Place in the file: lower first, ties by creation. See [`Graph::order`].
    pub rank: u64,
    /// What else the file said about this operator; opaque here.
    pub extra: Bytes,
    pub(crate) erased: bool,
    /// Number among all operators that were ever added to the graph; ids are given out again.
    pub(crate) born: u64,
}

impl Op {
    /// True for an operator of the standard operator set with this type.
    pub fn is(&self, op_type: &str) -> bool {
        self.op_type == op_type && self.is_standard()
    }

    /// True for an operator of the standard operator set (domain empty or `ai.onnx`).
    pub fn is_standard(&self) -> bool {
        self.domain.is_empty() || self.domain == "ai.onnx"
    }

    /// The attribute of this name.
    pub fn attribute(&self, name: &str) -> Option<&AttributeValue> {
        self.attributes.iter().find(|a| a.name == name).map(|a| &a.value)
    }

    /// An integer attribute, if it is there and is one.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attribute(name)? {
            AttributeValue::Int(v) => Some(*v),
            _ => None,
        }
    }

    /// A list of integers, if it is there and is one.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attribute(name)? {
            AttributeValue::Ints(v) => Some(v),
            _ => None,
        }
    }

    /// A float attribute, if it is there and is one.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attribute(name)? {
            AttributeValue::Float(v) => Some(*v),
            _ => None,
        }
    }

    /// A string attribute, if it is there, is one and is UTF-8.
    pub fn string(&self, name: &str) -> Option<&str> {
        match self.attribute(name)? {
            AttributeValue::String(v) => std::str::from_utf8(v).ok(),
            _ => None,
        }
    }

    /// The operand at this position, if it is there.
    pub fn input(&self, slot: usize) -> Option<ValueId> {
        self.inputs.get(slot).copied().flatten()
    }

    /// The result at this position, if it is there.
    pub fn output(&self, slot: usize) -> Option<ValueId> {
        self.outputs.get(slot).copied().flatten()
    }

    /// The operands that are there, in order.
    pub fn operands(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.inputs.iter().copied().flatten()
    }

    /// The results that are there, in order.
    pub fn results(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.outputs.iter().copied().flatten()
    }

    /// The graphs in the attributes: branches of If, bodies of Loop and Scan.
    pub fn bodies(&self) -> impl Iterator<Item = &Graph> {
        self.attributes.iter().flat_map(|a| match &a.value {
            AttributeValue::Graph(g) => std::slice::from_ref(&**g),
            AttributeValue::Graphs(gs) => gs.as_slice(),
            _ => &[],
        })
    }

    pub(crate) fn bodies_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        self.attributes.iter_mut().flat_map(|a| match &mut a.value {
            AttributeValue::Graph(g) => std::slice::from_mut(&mut **g),
            AttributeValue::Graphs(gs) => gs.as_mut_slice(),
            _ => &mut [],
        })
    }
}

/// A named attribute.
#[derive(Clone, Debug)]
pub struct Attribute {
    /// Name, such as `kernel_shape`.
    pub name: String,
    /// Value.
    pub value: AttributeValue,
    /// What else the file said about it; opaque here.
    pub extra: Bytes,
}

impl Attribute {
    /// An attribute made by a pass.
    pub fn new(name: impl Into<String>, value: impl Into<AttributeValue>) -> Attribute {
        Attribute { name: name.into(), value: value.into(), extra: Bytes::new() }
    }
}

/// The value of an attribute.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum AttributeValue {
    Float(f32),
    Int(i64),
    /// Bytes, mostly UTF-8.
    String(Bytes),
    Tensor(Tensor),
    SparseTensor(SparseTensor),
    Graph(Box<Graph>),
    Type(Type),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<Bytes>),
    Tensors(Vec<Tensor>),
    SparseTensors(Vec<SparseTensor>),
    Graphs(Vec<Graph>),
    Types(Vec<Type>),
    /// In a function body: the value of this attribute of the call. `kind` is the ONNX attribute type number.
    Reference {
        name: String,
        kind: i32,
    },
    /// Something that only the importer understands (kept in `extra`): written back as it was.
    Opaque,
}

impl From<i64> for AttributeValue {
    fn from(v: i64) -> Self {
        AttributeValue::Int(v)
    }
}
impl From<f32> for AttributeValue {
    fn from(v: f32) -> Self {
        AttributeValue::Float(v)
    }
}
impl From<&str> for AttributeValue {
    fn from(v: &str) -> Self {
        AttributeValue::String(Bytes::copy_from_slice(v.as_bytes()))
    }
}
impl From<Vec<i64>> for AttributeValue {
    fn from(v: Vec<i64>) -> Self {
        AttributeValue::Ints(v)
    }
}
impl From<Vec<f32>> for AttributeValue {
    fn from(v: Vec<f32>) -> Self {
        AttributeValue::Floats(v)
    }
}
impl From<Tensor> for AttributeValue {
    fn from(v: Tensor) -> Self {
        AttributeValue::Tensor(v)
    }
}
