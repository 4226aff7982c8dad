//! Random models that are valid and yet say everything that a file can say: each noun begins as a random message, and
//! is then corrected where the importer must understand it.

use std::path::Path;
use std::sync::Arc;

use arbtest::arbitrary::{Result, Unstructured};
use bytes::Bytes;
use prost::Message;

use crate::external::Reference;
use crate::schema::*;
use crate::wire::random::Random;
use crate::{ExportOptions, Fixed, Folder, Packed, ValueInfo, encode, export, import};

const IMPORTED: [Option<&str>; 4] = [None, Some(""), Some("ai.onnx"), Some("some.domain")];

struct Corrector<'a, 'u> {
    u: &'a mut Unstructured<'u>,
    names: usize,
}

impl Corrector<'_, '_> {
    fn fresh(&mut self) -> String {
        self.names += 1;
        format!("v{}", self.names)
    }

    fn pick(&mut self, names: &[String]) -> Result<String> {
        if names.is_empty() { Ok(String::new()) } else { Ok(self.u.choose(names)?.clone()) }
    }

    fn model(&mut self, model: &mut ModelProto) -> Result<()> {
        model.ir_version = Some(self.u.int_in_range(1..=IR_VERSION)?);
        model.opset_import = self.opsets()?;
        self.graph(model.graph.get_or_insert_default(), &[])?;
        for function in &mut model.functions {
            function.opset_import = self.opsets()?;
            function.name = Some(self.fresh());
            function.input.iter_mut().for_each(|name| *name = self.fresh());
            let mut visible = function.input.clone();
            self.nodes(&mut function.node, &mut visible)?;
            function.output.clear();
            if !visible.is_empty() {
                function.output.push(self.pick(&visible)?);
            }
            self.mentions(&mut function.value_info, &visible)?;
            for attribute in &mut function.attribute_proto {
                self.attribute(attribute, &[])?;
            }
        }
        Ok(())
    }

    fn opsets(&mut self) -> Result<Vec<OperatorSetIdProto>> {
        let mut opsets = Vec::new();
        for domain in [self.u.choose(&IMPORTED[..3])?, &IMPORTED[3]] {
            let mut import = OperatorSetIdProto::random(self.u, 1)?;
            import.domain = domain.map(str::to_string);
            import.version = Some(self.u.int_in_range(1..=OPSET_VERSION)?);
            opsets.insert(self.u.int_in_range(0..=opsets.len())?, import);
        }
        Ok(opsets)
    }

    fn graph(&mut self, graph: &mut GraphProto, outside: &[String]) -> Result<()> {
        let mut local = Vec::new();
        for info in &mut graph.input {
            // A body may hide a name of the graph around it.
            let name = if self.u.ratio(1, 8)? { self.pick(outside)? } else { String::new() };
            let name = if name.is_empty() || local.contains(&name) { self.fresh() } else { name };
            info.name = Some(name.clone());
            local.push(name);
        }
        let mut inputs = local.clone();
        for tensor in &mut graph.initializer {
            let name = match inputs.pop() {
                Some(input) if self.u.arbitrary()? => input,
                _ => self.fresh(),
            };
            tensor.name = Some(name.clone());
            self.tensor(tensor)?;
            local.push(name);
        }
        for sparse in &mut graph.sparse_initializer {
            self.sparse(sparse)?;
            let name = self.fresh();
            sparse.values.get_or_insert_default().name = Some(name.clone());
            local.push(name);
        }
        let mut visible = [outside, &local].concat();
        visible.dedup();
        self.nodes(&mut graph.node, &mut visible)?;
        self.mentions(&mut graph.output, &visible)?;
        graph.output.retain(|info| info.name.as_ref().is_some_and(|name| visible.contains(name)));
        self.mentions(&mut graph.value_info, &visible)
    }

    fn mentions(&mut self, infos: &mut [ValueInfoProto], visible: &[String]) -> Result<()> {
        for info in infos {
            if !visible.is_empty() && self.u.ratio(4, 5)? {
                info.name = Some(self.pick(visible)?);
            }
            if self.u.arbitrary()? {
                let elem_type = Some(self.u.int_in_range(0..=29)?);
                let shape = Option::random(self.u, 4)?;
                let tensor_type = Some(TensorType { elem_type, shape, ..Default::default() });
                info.r#type = Some(TypeProto { tensor_type, ..Default::default() });
            }
        }
        Ok(())
    }

    fn nodes(&mut self, nodes: &mut [NodeProto], visible: &mut Vec<String>) -> Result<()> {
        for node in nodes {
            node.domain = self.u.choose(&IMPORTED)?.map(str::to_string);
            for input in &mut node.input {
                *input = if self.u.ratio(1, 4)? { String::new() } else { self.pick(visible)? };
            }
            for attribute in &mut node.attribute {
                self.attribute(attribute, visible)?;
            }
            for output in &mut node.output {
                *output = if self.u.ratio(1, 5)? { String::new() } else { self.fresh() };
                if !output.is_empty() {
                    visible.push(output.clone());
                }
            }
        }
        Ok(())
    }

    fn attribute(&mut self, attribute: &mut AttributeProto, visible: &[String]) -> Result<()> {
        attribute.name = Some(self.fresh());
        let kind = self.u.int_in_range(1..=15)?;
        attribute.r#type = Some(kind);
        if !matches!(kind, 5 | 10) {
            attribute.g = None;
            attribute.graphs.clear();
        }
        if kind == 5 {
            attribute.g.get_or_insert_default();
            attribute.graphs.clear();
        }
        for graph in attribute.g.as_deref_mut().into_iter().chain(&mut attribute.graphs) {
            self.graph(graph, visible)?;
        }
        if kind == 10 {
            attribute.g = None;
        }
        for tensor in attribute.t.as_deref_mut().into_iter().chain(&mut attribute.tensors) {
            self.tensor(tensor)?;
        }
        for sparse in attribute.sparse_tensor.as_deref_mut().into_iter().chain(&mut attribute.sparse_tensors)
        {
            self.sparse(sparse)?;
        }
        if attribute.ref_attr_name.is_none() && self.u.ratio(1, 4)? {
            // Says its kind by its value alone.
            *attribute = AttributeProto {
                name: attribute.name.take(),
                doc_string: attribute.doc_string.take(),
                i: Some(7),
                r#type: self.u.choose(&[None, Some(0)]).copied()?,
                ..Default::default()
            };
        }
        Ok(())
    }

    fn sparse(&mut self, sparse: &mut SparseTensorProto) -> Result<()> {
        for part in [&mut sparse.values, &mut sparse.indices] {
            self.tensor(part.get_or_insert_default())?;
        }
        sparse.dims.iter_mut().for_each(|d| *d = d.saturating_abs());
        Ok(())
    }

    fn tensor(&mut self, tensor: &mut TensorProto) -> Result<()> {
        tensor.dims =
            (0..self.u.int_in_range(0..=3)?).map(|_| self.u.int_in_range(0..=3)).collect::<Result<_>>()?;
        let count = tensor.dims.iter().product::<i64>() as usize;
        let kind = self.u.int_in_range(1..=28)?;
        tensor.data_type = Some(kind);
        let bits = dmopt_ir::DType::from_code(kind).and_then(|dtype| dtype.bits());
        let bytes = (count * bits.unwrap_or(0) as usize).div_ceil(8);
        if tensor.segment.is_some() {
            tensor.data_location = None;
            return Ok(());
        }
        tensor.raw_data = None;
        tensor.data_location = *self.u.choose(&[None, Some(0)])?;
        if kind == 8 {
            tensor.string_data = vec![Bytes::from_static(b"text"); count];
        } else if self.u.ratio(1, 3)? {
            tensor.raw_data = Some(vec![1; bytes].into());
        } else if self.u.ratio(1, 3)? {
            let (location, length) = ("weights".to_string(), Some(bytes as u64));
            let mut entries = Reference { location, offset: 8, length }.entries();
            if self.u.arbitrary()? {
                entries.reverse();
                entries.push(StringStringEntryProto::random(self.u, 1)?);
            }
            (tensor.data_location, tensor.external_data) = (Some(1), entries);
        } else {
            match kind {
                1 | 14 => tensor.float_data = Fixed(vec![2; bytes].into()),
                11 | 15 => tensor.double_data = Fixed(vec![2; bytes].into()),
                7 => tensor.int64_data = Packed(vec![-3; count]),
                12 | 13 => tensor.uint64_data = Packed(vec![3; count]),
                21..=23 | 25 | 26 => tensor.int32_data = Packed(vec![-3; bytes]),
                _ => tensor.int32_data = Packed(vec![-3; count]),
            }
        }
        Ok(())
    }
}

fn model(u: &mut Unstructured<'_>) -> Result<ModelProto> {
    let mut model = ModelProto::random(u, 0)?;
    // Half of the randomness is for the corrections.
    let seed = u.len() / 2;
    let mut rest = Unstructured::new(u.bytes(seed)?);
    model.graph = Some(GraphProto::random(u, 1)?);
    Corrector { u: &mut rest, names: 0 }.model(&mut model)?;
    Ok(model)
}

#[test]
fn any_model_comes_back_through_the_graph_byte_for_byte() {
    arbtest::arbtest(|u| {
        let original = model(u)?;
        let bytes = original.encode_to_vec();
        let graph = import(original.clone(), Arc::new(Folder::new(Path::new(".")))).expect("a valid model");
        let again = export(&graph, &ExportOptions::default()).expect("an exportable model");
        assert_eq!(format!("{again:#?}"), format!("{original:#?}"));
        assert_eq!(encode(&again).concat(), bytes);
        Ok(())
    })
    .size_min(1 << 10)
    .size_max(1 << 14)
    .budget_ms(3_000);
}

#[test]
fn any_message_is_imported_or_refused() {
    arbtest::arbtest(|u| {
        let mut original = ModelProto::random(u, 0)?;
        original.ir_version = Some(8);
        if let Ok(graph) = import(original, Arc::new(Folder::new(Path::new(".")))) {
            let options = ExportOptions { value_info: ValueInfo::All };
            export(&graph, &options).expect("what was imported can be exported");
        }
        Ok(())
    })
    .size_min(1 << 10)
    .size_max(1 << 14)
    .budget_ms(500);
}
