//! From the graph back to messages. What a pass did not touch comes out as it came in, byte for byte.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use dmopt_ir::{
    Attribute, AttributeValue, Def, Function, Graph, Model, Names, Op, OpId, Opsets, Type, ValueId,
};

use crate::error::ExportError;
use crate::extra::{AttributeExtra, Declaration, GraphExtra, unpack};
use crate::import::{render_opsets, standard};
use crate::schema::{
    AttributeProto, AttributeType, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, ValueInfoProto,
};
use crate::{tensors, types};

type Result<T> = std::result::Result<T, ExportError>;

/// What to write.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExportOptions {
    /// Which types of values in between.
    pub value_info: ValueInfo,
}

/// Which values in between get their type written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ValueInfo {
    /// Those that had it in the input and are still there.
    #[default]
    Keep,
    /// Those, and every result of an operator whose type is known.
    All,
}

/// The message for a model.
///
/// Nodes come in the order of the graph; initializers that were inputs too still are; a constant that a pass put into
/// a function becomes a `Constant` node, functions having no initializers. In a body, a name that would hide one that
/// the body captures is replaced.
///
/// # Errors
/// The graph has a cycle, or an `extra` does not come from [`import`](crate::import()).
pub fn export(model: &Model, options: &ExportOptions) -> Result<ModelProto> {
    let exporter = Exporter { model, options, fresh: RefCell::default() };
    let mut proto: ModelProto = unpack(&model.extra)?;
    proto.ir_version = Some(model.ir_version);
    proto.graph = Some(exporter.graph(&model.graph, None)?);
    proto.opset_import = opset_import(proto.opset_import, &model.opsets);
    proto.functions = model.functions.iter().map(|f| exporter.function(f)).collect::<Result<_>>()?;
    Ok(proto)
}

/// The original list, with versions as they are now and new domains at the end.
fn opset_import(original: Vec<OperatorSetIdProto>, opsets: &Opsets) -> Vec<OperatorSetIdProto> {
    let mut imports = original;
    let mut missing = opsets.clone();
    for import in &mut imports {
        let domain = standard(import.domain.as_deref().unwrap_or_default());
        missing.remove(domain);
        import.version = opsets.get(domain).copied().or(import.version);
    }
    imports.extend(render_opsets(&missing));
    imports
}

/// A graph while it is written, and how its values are called.
struct Scope<'a> {
    graph: &'a Graph,
    outer: Option<&'a Scope<'a>>,
    renamed: HashMap<ValueId, String>,
}

impl<'a> Scope<'a> {
    /// A captured value goes by its name outside, which a pass may have changed since.
    fn name(&'a self, id: ValueId) -> &'a str {
        if let Some(name) = self.renamed.get(&id) {
            return name;
        }
        let value = self.graph.value(id);
        match (&value.def, self.outer) {
            (Def::Captured { outer }, Some(scope)) => scope.name(*outer),
            _ => &value.name,
        }
    }
}

struct Exporter<'a> {
    model: &'a Model,
    options: &'a ExportOptions,
    /// Every name of the model, collected when the first new one is needed.
    fresh: RefCell<Option<Names>>,
}

impl Exporter<'_> {
    fn graph(&self, graph: &Graph, outer: Option<&Scope<'_>>) -> Result<GraphProto> {
        let scope = self.enter(graph, outer);
        let extra: GraphExtra = unpack(graph.extra())?;
        let mut proto = extra.rest.unwrap_or_default();
        if !graph.name().is_empty() {
            proto.name = Some(graph.name().to_string());
        }
        let mut sparse = Vec::new();
        for id in graph.values() {
            match &graph.value(id).def {
                Def::Initializer(tensor) | Def::Input { default: Some(tensor) } => {
                    proto.initializer.push(tensors::render(tensor, Some(scope.name(id)))?);
                }
                Def::SparseInitializer(tensor) => {
                    sparse.push(tensors::render_sparse(tensor, Some(scope.name(id)))?);
                }
                _ => {}
            }
        }
        proto.sparse_initializer.splice(0..0, sparse);
        proto.input = declared(&scope, graph.inputs(), extra.inputs);
        proto.output = declared(&scope, graph.outputs(), extra.outputs);
        proto.value_info = self.value_info(&scope, extra.strays)?;
        proto.node = self.nodes(&scope)?;
        Ok(proto)
    }

    fn function(&self, function: &Function) -> Result<FunctionProto> {
        let graph = &function.graph;
        let scope = self.enter(graph, None);
        let mut proto: FunctionProto = unpack(&function.extra)?;
        fill(&mut proto.domain, &function.domain);
        fill(&mut proto.name, &function.name);
        fill(&mut proto.overload, &function.overload);
        let names = |ids: &[ValueId]| ids.iter().map(|&id| scope.name(id).to_string()).collect();
        proto.input = names(graph.inputs());
        proto.output = names(graph.outputs());
        proto.attribute.clone_from(&function.attributes);
        proto.attribute_proto =
            function.defaults.iter().map(|a| self.attribute(a, &scope)).collect::<Result<_>>()?;
        proto.opset_import = opset_import(proto.opset_import, graph.opsets());
        proto.value_info = self.value_info(&scope, unpack::<GraphExtra>(graph.extra())?.strays)?;
        for id in graph.values() {
            if let Def::Initializer(tensor) = &graph.value(id).def {
                proto.node.push(constant(scope.name(id), tensors::render(tensor, None)?));
            }
        }
        proto.node.extend(self.nodes(&scope)?);
        Ok(proto)
    }

    /// Opens a graph. In a body, values of its own that are called like one that it captures get another name:
    /// passes name values freely, and outside a name may have changed since the body was read.
    fn enter<'a>(&self, graph: &'a Graph, outer: Option<&'a Scope<'a>>) -> Scope<'a> {
        let mut scope = Scope { graph, outer, renamed: HashMap::new() };
        let is_captured = |id: ValueId| matches!(graph.value(id).def, Def::Captured { .. });
        let captured: HashSet<&str> = match outer {
            Some(outer) => graph
                .values()
                .filter(|&id| graph.readers(id) > 0)
                .filter_map(|id| match graph.value(id).def {
                    Def::Captured { outer: source } => Some(outer.name(source)),
                    _ => None,
                })
                .collect(),
            None => HashSet::new(),
        };
        if captured.is_empty() {
            return scope;
        }
        for id in graph.values().filter(|&id| !is_captured(id)) {
            let name = graph.value(id).name.as_str();
            if captured.contains(name) {
                scope.renamed.insert(id, self.fresh_name(name));
            }
        }
        scope
    }

    fn fresh_name(&self, hint: &str) -> String {
        self.fresh.borrow_mut().get_or_insert_with(|| Names::of(self.model)).fresh(hint)
    }

    fn value_info(&self, scope: &Scope<'_>, strays: Vec<Declaration>) -> Result<Vec<ValueInfoProto>> {
        let graph = scope.graph;
        let mut entries = Vec::new();
        for stray in strays {
            let name = stray.info.as_ref().and_then(|info| info.name.clone());
            let position = stray.position.unwrap_or(u64::MAX);
            let mut info = types::redeclare("", None, Some(stray));
            info.name = name;
            entries.push((position, info));
        }
        for id in graph.values() {
            let value = graph.value(id);
            let kept = (!value.extra.is_empty()).then(|| unpack::<Declaration>(&value.extra)).transpose()?;
            let wanted = self.options.value_info == ValueInfo::All
                && value.ty.is_some()
                && matches!(value.def, Def::Op { .. })
                && !graph.is_output(id);
            if kept.is_some() || wanted {
                let position = kept.as_ref().and_then(|kept| kept.position).unwrap_or(u64::MAX);
                entries.push((position, types::redeclare(scope.name(id), value.ty.as_ref(), kept)));
            }
        }
        entries.sort_by_key(|(position, _)| *position);
        Ok(entries.into_iter().map(|(_, info)| info).collect())
    }

    fn nodes(&self, scope: &Scope<'_>) -> Result<Vec<NodeProto>> {
        let order = scope.graph.order().map_err(|op| ExportError::Cycle(scope.graph.describe(op)))?;
        order.into_iter().map(|id| self.node(id, scope)).collect()
    }

    fn node(&self, id: OpId, scope: &Scope<'_>) -> Result<NodeProto> {
        let op: &Op = scope.graph.op(id);
        let name = |id: &Option<ValueId>| id.map(|id| scope.name(id).to_string()).unwrap_or_default();
        let mut proto: NodeProto = unpack(&op.extra)?;
        fill(&mut proto.name, &op.name);
        fill(&mut proto.op_type, &op.op_type);
        fill(&mut proto.domain, &op.domain);
        fill(&mut proto.overload, &op.overload);
        proto.input = op.inputs.iter().map(name).collect();
        proto.output = op.outputs.iter().map(name).collect();
        proto.attribute = op.attributes.iter().map(|a| self.attribute(a, scope)).collect::<Result<_>>()?;
        Ok(proto)
    }

    fn attribute(&self, attribute: &Attribute, scope: &Scope<'_>) -> Result<AttributeProto> {
        use AttributeValue as Value;
        let extra: AttributeExtra = unpack(&attribute.extra)?;
        let mut proto = extra.rest.unwrap_or_default();
        proto.name = Some(attribute.name.clone());
        let says_value = extra.valueless.is_none();
        let kind = match &attribute.value {
            Value::Opaque => return Ok(proto),
            Value::Reference { name, kind } => {
                proto.ref_attr_name = Some(name.clone());
                *kind
            }
            Value::Float(v) => {
                proto.f = Some(*v).filter(|v| says_value || v.to_bits() != 0);
                AttributeType::Float.into()
            }
            Value::Int(v) => {
                proto.i = Some(*v).filter(|v| says_value || *v != 0);
                AttributeType::Int.into()
            }
            Value::String(v) => {
                proto.s = Some(v.clone()).filter(|v| says_value || !v.is_empty());
                AttributeType::String.into()
            }
            Value::Tensor(v) => {
                proto.t = Some(Box::new(tensors::render(v, None)?));
                AttributeType::Tensor.into()
            }
            Value::SparseTensor(v) => {
                proto.sparse_tensor = Some(Box::new(tensors::render_sparse(v, None)?));
                AttributeType::SparseTensor.into()
            }
            Value::Graph(v) => {
                proto.g = Some(Box::new(self.graph(v, Some(scope))?));
                AttributeType::Graph.into()
            }
            Value::Type(v) => {
                proto.tp = Some(Box::new(types::render(v)));
                AttributeType::TypeProto.into()
            }
            Value::Floats(v) => {
                proto.floats.clone_from(v);
                AttributeType::Floats.into()
            }
            Value::Ints(v) => {
                proto.ints.clone_from(v);
                AttributeType::Ints.into()
            }
            Value::Strings(v) => {
                proto.strings.clone_from(v);
                AttributeType::Strings.into()
            }
            Value::Tensors(v) => {
                proto.tensors =
                    v.iter().map(|t| tensors::render(t, None)).collect::<std::result::Result<_, _>>()?;
                AttributeType::Tensors.into()
            }
            Value::SparseTensors(v) => {
                proto.sparse_tensors = v
                    .iter()
                    .map(|t| tensors::render_sparse(t, None))
                    .collect::<std::result::Result<_, _>>()?;
                AttributeType::SparseTensors.into()
            }
            Value::Graphs(v) => {
                proto.graphs = v.iter().map(|g| self.graph(g, Some(scope))).collect::<Result<_>>()?;
                AttributeType::Graphs.into()
            }
            Value::Types(v) => {
                proto.type_protos = v.iter().map(types::render).collect();
                AttributeType::TypeProtos.into()
            }
        };
        if extra.untyped.is_none() {
            proto.r#type = Some(kind);
        }
        Ok(proto)
    }
}

/// Sets a string, unless it is empty: then what was there says whether the original spelled that out.
fn fill(field: &mut Option<String>, text: &str) {
    if !text.is_empty() {
        *field = Some(text.to_string());
    }
}

/// Inputs or outputs, each with what was kept of its declaration.
fn declared(scope: &Scope<'_>, ids: &[ValueId], mut kept: Vec<Declaration>) -> Vec<ValueInfoProto> {
    let declare = |(position, &id): (usize, &ValueId)| {
        let name = scope.name(id);
        let ty: Option<&Type> = scope.graph.value(id).ty.as_ref();
        let is_it = |d: &Declaration| d.info.as_ref().and_then(|info| info.name.as_deref()) == Some(name);
        let place =
            if kept.get(position).is_some_and(is_it) { Some(position) } else { kept.iter().position(is_it) };
        types::redeclare(name, ty, place.and_then(|place| kept.get_mut(place)).map(std::mem::take))
    };
    ids.iter().enumerate().map(declare).collect()
}

/// A `Constant` node.
fn constant(name: &str, tensor: TensorProto) -> NodeProto {
    let value = AttributeProto {
        name: Some("value".to_string()),
        r#type: Some(AttributeType::Tensor.into()),
        t: Some(Box::new(tensor)),
        ..Default::default()
    };
    NodeProto {
        op_type: Some("Constant".to_string()),
        output: vec![name.to_string()],
        attribute: vec![value],
        ..Default::default()
    }
}
