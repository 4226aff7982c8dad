//! From messages to the graph.
//!
//! What the graph has no word for goes into the `extra` of the noun that it is about (see [`crate::extra`]), so that
//! the exporter can give the message back. Nodes may come in any order. A name that a body does not define is a
//! captured value of the graph around it; a name that it does define hides one of the same name outside.

use std::collections::{HashMap, HashSet};
use std::mem::take;
use std::sync::Arc;

use bytes::Bytes;
use dmopt_ir::{
    Attribute, AttributeValue, Builder, Def, Function, Graph, LoadExternal, Model, Op, Opsets, Tensor,
    ValueId,
};

use crate::error::{Fault, ImportError, function_place, node_place};
use crate::extra::{AttributeExtra, Declaration, GraphExtra, pack, some};
use crate::schema::{
    AttributeProto, AttributeType, FunctionProto, GraphProto, IR_VERSION, ModelProto, NodeProto,
    OPSET_VERSION, OperatorSetIdProto, SparseTensorProto, TensorProto, ValueInfoProto,
};
use crate::{tensors, types, walk};

type Result<T> = std::result::Result<T, ImportError>;

/// The model that a message describes. `external` reads external data when someone asks for the elements; nothing
/// does here.
///
/// # Errors
/// The model contradicts itself, or is of a version that this tool does not know; the error says where.
pub fn import(mut proto: ModelProto, external: Arc<dyn LoadExternal>) -> Result<Model> {
    let ir_version = proto.ir_version.take().filter(|&v| v != 0).ok_or(Fault::NoIrVersion)?;
    match ir_version {
        1..=IR_VERSION => {}
        ..1 => return Err(Fault::BadIrVersion(ir_version).into()),
        _ => return Err(Fault::IrVersion(ir_version).into()),
    }
    let graph = proto.graph.take().ok_or(Fault::NoGraph)?;
    let opsets = opsets(&mut proto.opset_import)?;
    let functions =
        take(&mut proto.functions).into_iter().map(|f| function(f, &external)).collect::<Result<_>>()?;
    let trained = walk::training_names(&proto);
    let graph = Importer { external, opsets: opsets.clone(), trained }.graph(graph, None)?;
    Ok(Model { ir_version, opsets, graph, functions, extra: pack(&proto) })
}

fn function(mut proto: FunctionProto, external: &Arc<dyn LoadExternal>) -> Result<Function> {
    // An empty name that is spelled out stays behind, for the exporter to spell out again.
    let domain = filled(&mut proto.domain);
    let name = filled(&mut proto.name);
    let overload = filled(&mut proto.overload);
    let place = function_place(&domain, &name);
    let within = |error: ImportError| error.within(&place);

    let opsets = opsets(&mut proto.opset_import).map_err(within)?;
    let importer = Importer { external: external.clone(), opsets, trained: Vec::new() };
    let mut no_bodies = Builder::default();
    let defaults = take(&mut proto.attribute_proto)
        .into_iter()
        .map(|attribute| importer.attribute(attribute, &mut no_bodies))
        .collect::<Result<_>>()
        .map_err(within)?;
    let named = |names: Vec<String>| {
        names.into_iter().map(|name| ValueInfoProto { name: Some(name), ..Default::default() }).collect()
    };
    let graph = GraphProto {
        input: named(take(&mut proto.input)),
        output: named(take(&mut proto.output)),
        node: take(&mut proto.node),
        value_info: take(&mut proto.value_info),
        ..Default::default()
    };
    let graph = importer.graph(graph, None).map_err(within)?;
    let attributes = take(&mut proto.attribute);
    Ok(Function { domain, name, overload, attributes, defaults, graph, extra: pack(&proto) })
}

/// The imported versions by domain. The list itself stays behind where the exporter would write another one.
fn opsets(imports: &mut Vec<OperatorSetIdProto>) -> Result<Arc<Opsets>> {
    let mut opsets = Opsets::new();
    for import in imports.iter() {
        let domain = standard(import.domain.as_deref().unwrap_or_default());
        let version = import.version.unwrap_or(0);
        if version < 1 {
            let domain = if domain.is_empty() { "ai.onnx" } else { domain }.to_string();
            return Err(Fault::OpsetVersion { domain, version }.into());
        }
        if domain.is_empty() && version > OPSET_VERSION {
            return Err(Fault::Opset(version).into());
        }
        if opsets.insert(domain.to_string(), version).is_some_and(|other| other != version) {
            return Err(Fault::OpsetTwice(domain.to_string()).into());
        }
    }
    if *imports == render_opsets(&opsets) {
        imports.clear();
    }
    Ok(Arc::new(opsets))
}

/// The list of imports that says the same.
pub(crate) fn render_opsets(opsets: &Opsets) -> Vec<OperatorSetIdProto> {
    let import = |(domain, version): (&String, &i64)| OperatorSetIdProto {
        domain: Some(domain.clone()),
        version: Some(*version),
        ..Default::default()
    };
    opsets.iter().map(import).collect()
}

/// The one spelling of a domain: the default one has two.
pub(crate) fn standard(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// Takes a string, unless it is empty.
fn filled(field: &mut Option<String>) -> String {
    field.take_if(|text| !text.is_empty()).unwrap_or_default()
}

struct Importer {
    external: Arc<dyn LoadExternal>,
    opsets: Arc<Opsets>,
    /// Names that training refers to, of values of the main graph and others.
    trained: Vec<String>,
}

impl Importer {
    /// A graph; a body has one around it, in which the values that it captures are mentioned.
    fn graph(&self, mut proto: GraphProto, outer: Option<&mut Builder>) -> Result<Graph> {
        let mut builder = Builder::new(filled(&mut proto.name), self.opsets.clone());
        let (inputs, outputs) = (take(&mut proto.input), take(&mut proto.output));
        let (value_info, nodes) = (take(&mut proto.value_info), take(&mut proto.node));

        // Initializers are mentioned first: values then come in the order in which initializers are written.
        let mut defaults = self.initializers(&mut proto, &inputs, &mut builder)?;
        for info in &inputs {
            let id = mention(info, &mut builder).ok_or(Fault::NoName("an input"))?;
            builder.input(id, defaults.remove(&id))?;
        }
        for info in &outputs {
            let id = mention(info, &mut builder).ok_or(Fault::NoName("an output"))?;
            builder.output(id);
        }
        let valued: Vec<_> = value_info.iter().map(|info| mention(info, &mut builder)).collect();
        for (position, node) in nodes.into_iter().enumerate() {
            self.node(node, position, &mut builder)?;
        }
        let mut extra = GraphExtra { rest: some(proto), ..Default::default() };
        match outer {
            Some(outer) => capture(&mut builder, outer)?,
            None => {
                let defined: Vec<ValueId> =
                    self.trained.iter().filter_map(|name| defined(&builder, name)).collect();
                defined.into_iter().for_each(|id| builder.pin(id));
            }
        }
        extra.inputs = declarations(inputs, &builder);
        extra.outputs = declarations(outputs, &builder);
        extra.strays = keep_value_info(value_info, valued, &mut builder);
        builder.set_extra(pack(&extra));
        Ok(builder.finish()?)
    }

    /// Defines the initializers, and returns those that are defaults of inputs.
    fn initializers(
        &self,
        proto: &mut GraphProto,
        inputs: &[ValueInfoProto],
        builder: &mut Builder,
    ) -> Result<HashMap<ValueId, Tensor>> {
        let inputs: HashSet<&str> = inputs.iter().filter_map(|input| input.name.as_deref()).collect();
        let mut defaults = HashMap::new();
        for mut tensor in take(&mut proto.initializer) {
            let name = name_of(&mut tensor, "an initializer")?;
            let tensor = tensors::parse(tensor, &self.external).map_err(at_initializer(&name))?;
            let id = builder.value(&name);
            if !inputs.contains(name.as_str()) {
                builder.initializer(id, tensor)?;
            } else if defaults.insert(id, tensor).is_some() {
                return Err(dmopt_ir::BuildError::DefinedTwice(name).into());
            }
        }
        let is_input = |sparse: &SparseTensorProto| {
            let name = sparse.values.as_ref().and_then(|values| values.name.as_deref());
            name.is_some_and(|name| inputs.contains(name))
        };
        // A sparse default of an input has no place in the graph: the input matters there, its default does not.
        let (kept, defining): (Vec<_>, Vec<_>) =
            take(&mut proto.sparse_initializer).into_iter().partition(is_input);
        for mut sparse in defining {
            let name = sparse.values.as_mut().map(|values| name_of(values, "a sparse initializer"));
            let name = name.transpose()?.unwrap_or_default();
            let tensor = tensors::parse_sparse(sparse, &self.external).map_err(at_initializer(&name))?;
            let id = builder.value(&name);
            builder.sparse_initializer(id, tensor)?;
        }
        proto.sparse_initializer = kept;
        Ok(defaults)
    }

    fn node(&self, mut proto: NodeProto, position: usize, builder: &mut Builder) -> Result<()> {
        let op_type = filled(&mut proto.op_type);
        let mut value = |name: String| if name.is_empty() { None } else { Some(builder.value(&name)) };
        let inputs = take(&mut proto.input).into_iter().map(&mut value).collect();
        let outputs = take(&mut proto.output).into_iter().map(&mut value).collect();
        let mut op = Op::new(&op_type, inputs, outputs);
        op.name = filled(&mut proto.name);
        op.domain = filled(&mut proto.domain);
        op.overload = filled(&mut proto.overload);

        let name = op.name.clone();
        let within = |error: ImportError| error.within(node_place(&op_type, &name, position));
        if !self.opsets.contains_key(standard(&op.domain)) {
            let domain = if op.is_standard() { "ai.onnx" } else { &op.domain }.to_string();
            return Err(within(Fault::NoOpset(domain).into()));
        }
        op.attributes = take(&mut proto.attribute)
            .into_iter()
            .map(|attribute| self.attribute(attribute, builder))
            .collect::<Result<_>>()
            .map_err(within)?;
        op.extra = pack(&proto);
        builder.op(op).map_err(|error| within(error.into()))?;
        Ok(())
    }

    /// An attribute of a node in the graph that `builder` builds.
    fn attribute(&self, mut proto: AttributeProto, builder: &mut Builder) -> Result<Attribute> {
        let name = filled(&mut proto.name);
        if name.is_empty() {
            return Err(Fault::NoName("an attribute").into());
        }
        self.attribute_value(proto, builder)
            .map(|(value, extra)| Attribute { name: name.clone(), value, extra })
            .map_err(|error| error.within(format!("attribute '{name}'")))
    }

    fn attribute_value(
        &self,
        mut proto: AttributeProto,
        builder: &mut Builder,
    ) -> Result<(AttributeValue, Bytes)> {
        let mut extra = AttributeExtra::default();
        let reference = filled(&mut proto.ref_attr_name);
        let declared = proto.r#type.take();
        let kind = match declared {
            Some(kind) if kind != 0 => kind,
            _ if !reference.is_empty() => 0,
            _ => only_kind(&proto)?,
        };
        if declared != Some(kind) {
            (extra.untyped, proto.r#type) = (Some(1), declared);
        }
        if !reference.is_empty() {
            extra.rest = some(proto);
            return Ok((AttributeValue::Reference { name: reference, kind }, pack(&extra)));
        }
        let value = match AttributeType::try_from(kind) {
            Ok(kind) => self.value_of_kind(kind, &mut proto, &mut extra, builder)?,
            Err(_) => None,
        };
        let value = match value {
            Some(value) => value,
            // Written back as it is; what bodies read must be known, though, or passes would take it away.
            None if proto.g.is_some() || !proto.graphs.is_empty() => return Err(Fault::Kind(kind).into()),
            None => {
                (extra.untyped, proto.r#type) = (None, declared);
                AttributeValue::Opaque
            }
        };
        extra.rest = some(proto);
        Ok((value, pack(&extra)))
    }

    /// Takes the value out of the field for its kind; none if it is not there or not fit for the graph.
    fn value_of_kind(
        &self,
        kind: AttributeType,
        proto: &mut AttributeProto,
        extra: &mut AttributeExtra,
        builder: &mut Builder,
    ) -> Result<Option<AttributeValue>> {
        let mut absent = |present: bool| {
            if !present {
                extra.valueless = Some(1);
            }
        };
        let tensor = |tensor| tensors::parse(tensor, &self.external);
        let sparse = |tensor| tensors::parse_sparse(tensor, &self.external);
        Ok(Some(match kind {
            AttributeType::Undefined => return Ok(None),
            AttributeType::Float => {
                absent(proto.f.is_some());
                AttributeValue::Float(proto.f.take().unwrap_or_default())
            }
            AttributeType::Int => {
                absent(proto.i.is_some());
                AttributeValue::Int(proto.i.take().unwrap_or_default())
            }
            AttributeType::String => {
                absent(proto.s.is_some());
                AttributeValue::String(proto.s.take().unwrap_or_default())
            }
            AttributeType::Tensor => match proto.t.take() {
                Some(t) => AttributeValue::Tensor(tensor(*t)?),
                None => return Ok(None),
            },
            AttributeType::SparseTensor => match proto.sparse_tensor.take() {
                Some(t) => AttributeValue::SparseTensor(sparse(*t)?),
                None => return Ok(None),
            },
            AttributeType::Graph => match proto.g.take() {
                Some(g) => AttributeValue::Graph(Box::new(self.graph(*g, Some(builder))?)),
                None => return Ok(None),
            },
            AttributeType::TypeProto => match proto.tp.as_deref().and_then(exact_type) {
                Some(ty) => {
                    proto.tp = None;
                    AttributeValue::Type(ty)
                }
                None => return Ok(None),
            },
            AttributeType::Floats => AttributeValue::Floats(take(&mut proto.floats)),
            AttributeType::Ints => AttributeValue::Ints(take(&mut proto.ints)),
            AttributeType::Strings => AttributeValue::Strings(take(&mut proto.strings)),
            AttributeType::Tensors => AttributeValue::Tensors(
                take(&mut proto.tensors).into_iter().map(tensor).collect::<std::result::Result<_, _>>()?,
            ),
            AttributeType::SparseTensors => AttributeValue::SparseTensors(
                take(&mut proto.sparse_tensors)
                    .into_iter()
                    .map(sparse)
                    .collect::<std::result::Result<_, _>>()?,
            ),
            AttributeType::Graphs => AttributeValue::Graphs(
                take(&mut proto.graphs)
                    .into_iter()
                    .map(|g| self.graph(g, Some(builder)))
                    .collect::<Result<_>>()?,
            ),
            AttributeType::TypeProtos => match proto.type_protos.iter().map(exact_type).collect() {
                Some(types) => {
                    proto.type_protos.clear();
                    AttributeValue::Types(types)
                }
                None => return Ok(None),
            },
        }))
    }
}

/// The kind of an attribute that does not say it: that of its only value; undefined (0) without any.
fn only_kind(proto: &AttributeProto) -> Result<i32> {
    use AttributeType::*;
    let present = [
        (Float, proto.f.is_some()),
        (Int, proto.i.is_some()),
        (String, proto.s.is_some()),
        (Tensor, proto.t.is_some()),
        (Graph, proto.g.is_some()),
        (SparseTensor, proto.sparse_tensor.is_some()),
        (TypeProto, proto.tp.is_some()),
        (Floats, !proto.floats.is_empty()),
        (Ints, !proto.ints.is_empty()),
        (Strings, !proto.strings.is_empty()),
        (Tensors, !proto.tensors.is_empty()),
        (Graphs, !proto.graphs.is_empty()),
        (SparseTensors, !proto.sparse_tensors.is_empty()),
        (TypeProtos, !proto.type_protos.is_empty()),
    ];
    let mut kinds = present.into_iter().filter(|(_, present)| *present).map(|(kind, _)| kind);
    match (kinds.next(), kinds.next()) {
        (kind, None) => Ok(kind.unwrap_or(Undefined).into()),
        _ => Err(Fault::Ambiguous.into()),
    }
}

/// A type that the exporter writes back just so.
fn exact_type(proto: &crate::schema::TypeProto) -> Option<dmopt_ir::Type> {
    types::parse(proto).filter(|ty| types::render(ty) == *proto)
}

fn name_of(tensor: &mut TensorProto, what: &'static str) -> Result<String> {
    match filled(&mut tensor.name) {
        name if name.is_empty() => Err(Fault::NoName(what).into()),
        name => Ok(name),
    }
}

fn at_initializer(name: &str) -> impl Fn(crate::error::TensorFault) -> ImportError + '_ {
    move |fault| ImportError::from(fault).within(format!("initializer '{name}'"))
}

/// The value that an entry of inputs, outputs or value_info is about; the first type that is declared for it counts.
fn mention(info: &ValueInfoProto, builder: &mut Builder) -> Option<ValueId> {
    let id = builder.value(info.name.as_deref().filter(|name| !name.is_empty())?);
    if builder.type_of(id).is_none() {
        builder.set_type(id, info.r#type.as_ref().and_then(types::parse));
    }
    Some(id)
}

fn defined(builder: &Builder, name: &str) -> Option<ValueId> {
    builder.find(name).filter(|&id| !matches!(builder.graph().value(id).def, Def::Dead))
}

/// What to keep of inputs or outputs: all, if there is anything to say about one.
fn declarations(infos: Vec<ValueInfoProto>, builder: &Builder) -> Vec<Declaration> {
    let declare = |info: ValueInfoProto| {
        let id = info.name.as_deref().and_then(|name| builder.find(name));
        types::declaration(info, id.and_then(|id| builder.type_of(id)))
    };
    let declarations: Vec<Declaration> = infos.into_iter().map(declare).collect();
    if declarations.iter().all(types::is_plain) { Vec::new() } else { declarations }
}

/// Keeps entries of value_info with their values; returns those that have none, or repeat one.
fn keep_value_info(
    infos: Vec<ValueInfoProto>,
    ids: Vec<Option<ValueId>>,
    builder: &mut Builder,
) -> Vec<Declaration> {
    let mut strays = Vec::new();
    for (position, (info, id)) in infos.into_iter().zip(ids).enumerate() {
        // Only here do values get an extra: one that has it was declared before.
        let fresh = |value: &dmopt_ir::Value| !matches!(value.def, Def::Dead) && value.extra.is_empty();
        let id = id.filter(|&id| fresh(builder.graph().value(id)));
        let ty = id.and_then(|id| builder.type_of(id));
        let declaration = Declaration { position: Some(position as u64), ..types::declaration(info, ty) };
        let Some(id) = id else {
            strays.push(declaration);
            continue;
        };
        let info = declaration.info.and_then(|info| some(ValueInfoProto { name: None, ..info }));
        builder.set_value_extra(id, pack(&Declaration { info, ..declaration }));
    }
    strays
}

/// Binds the names that a body reads and does not define to values of the graph around it.
fn capture(builder: &mut Builder, outer: &mut Builder) -> Result<()> {
    let read =
        |(id, name): (ValueId, &str)| (builder.graph().readers(id) > 0).then(|| (id, name.to_string()));
    for (id, name) in builder.undefined().filter_map(read).collect::<Vec<_>>() {
        let source = outer.value(&name);
        let ty = builder.type_of(id).or(outer.type_of(source)).cloned();
        builder.captured(id, source, ty)?;
    }
    Ok(())
}
