//! What a graph computes, as a digest: the same for two graphs that differ in names, numbering and order alone.
//!
//! With `H` for SHA-256 cut to 16 bytes:
//! ```text
//! input            H(name, type, default)      of a body or function: H(position)
//! constant         H(element type, sizes, elements)
//! captured value   the digest of the value outside; H(name) in a body that is looked at alone
//! operator         H(domain, type, overload, attributes by name, operands, which results there are)
//! its result k     H(operator, k)
//! graph            H(inputs, outputs with their names, the operators as a sorted list, each with its readers)
//! model            H(graph, functions by name, versions of the operator sets that are used)
//! ```
//! Interior names, names of operators, the order of the file, documentation, metadata and inferred types are not part
//! of it. Two operators that compute the same thing have one digest; which of the two a reader reads shows in their
//! numbers of readers alone.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::{Attribute, AttributeValue, Def, Graph, Model, Op, OpId, SparseTensor, Storage, Tensor, ValueId};

/// A digest of structure. It is printed in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Digest([u8; 16]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The digests of a graph and of what is in it.
pub struct Structure {
    values: Vec<Digest>,
    ops: Vec<Digest>,
    whole: Digest,
}

impl Structure {
    /// Of a graph by itself.
    pub fn of(graph: &Graph) -> Structure {
        Structure::within(graph, None, true)
    }

    /// Of a value.
    pub fn value(&self, id: ValueId) -> Digest {
        self.values.get(id.index()).copied().unwrap_or_default()
    }

    /// Of an operator.
    pub fn op(&self, id: OpId) -> Digest {
        self.ops.get(id.index()).copied().unwrap_or_default()
    }

    /// Of the graph.
    pub fn whole(&self) -> Digest {
        self.whole
    }

    /// `outer` has the digests of the graph around a body; names of inputs and outputs count where somebody outside
    /// sees them.
    fn within(graph: &Graph, outer: Option<&Structure>, named: bool) -> Structure {
        let mut found = Structure {
            values: vec![Digest::default(); graph.value_bound()],
            ops: vec![Digest::default(); graph.op_bound()],
            whole: Digest::default(),
        };
        for (at, &input) in graph.inputs().iter().enumerate() {
            let value = graph.value(input);
            let mut feed = Feed::new("input");
            match named {
                true => feed
                    .text(&value.name)
                    .text(&value.ty.as_ref().map(ToString::to_string).unwrap_or_default()),
                false => feed.number(at as u64),
            };
            if let Def::Input { default: Some(tensor) } = &value.def {
                feed.tensor(tensor);
            }
            found.values[input.index()] = feed.finish();
        }
        for id in graph.values() {
            let value = graph.value(id);
            let digest = match &value.def {
                Def::Initializer(tensor) => Feed::new("constant").tensor(tensor).finish(),
                Def::SparseInitializer(tensor) => Feed::new("sparse").sparse(tensor).finish(),
                Def::Captured { outer: id } => match outer {
                    Some(outer) => outer.value(*id),
                    None => Feed::new("captured").text(&value.name).finish(),
                },
                Def::Input { .. } | Def::Op { .. } | Def::Dead => continue,
            };
            found.values[id.index()] = digest;
        }
        for id in graph.order().unwrap_or_default() {
            let op = graph.op(id);
            let digest = found.operator(op);
            found.ops[id.index()] = digest;
            for (slot, result) in op.outputs.iter().enumerate() {
                if let Some(result) = result {
                    found.values[result.index()] =
                        Feed::new("result").digest(digest).number(slot as u64).finish();
                }
            }
        }
        found.whole = found.all_of(graph, named);
        found
    }

    fn operator(&self, op: &Op) -> Digest {
        let mut feed = Feed::new("operator");
        let domain = if op.is_standard() { "" } else { &op.domain };
        feed.text(domain).text(&op.op_type).text(&op.overload);
        self.attributes(&mut feed, &op.attributes);
        feed.number(op.inputs.len() as u64);
        for operand in &op.inputs {
            match operand {
                Some(value) => feed.digest(self.value(*value)),
                None => feed.text("left out"),
            };
        }
        op.outputs.iter().for_each(|result| _ = feed.number(u64::from(result.is_some())));
        feed.finish()
    }

    fn attributes(&self, feed: &mut Feed, attributes: &[Attribute]) {
        let mut sorted: Vec<&Attribute> = attributes.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        feed.number(sorted.len() as u64);
        for attribute in sorted {
            feed.text(&attribute.name);
            self.attribute(feed, attribute);
        }
    }

    fn attribute(&self, feed: &mut Feed, attribute: &Attribute) {
        use AttributeValue as A;
        match &attribute.value {
            A::Float(x) => _ = feed.text("float").number(u64::from(x.to_bits())),
            A::Int(n) => _ = feed.text("int").number(*n as u64),
            A::String(text) => _ = feed.text("string").bytes(text),
            A::Tensor(tensor) => _ = feed.text("tensor").tensor(tensor),
            A::SparseTensor(tensor) => _ = feed.text("sparse").sparse(tensor),
            A::Graph(body) => self.body(feed, body),
            A::Type(ty) => _ = feed.text("type").text(&ty.to_string()),
            A::Floats(list) => {
                list.iter().fold(feed.text("floats"), |feed, x| feed.number(u64::from(x.to_bits()))).end()
            }
            A::Ints(list) => list.iter().fold(feed.text("ints"), |feed, n| feed.number(*n as u64)).end(),
            A::Strings(list) => list.iter().fold(feed.text("strings"), |feed, text| feed.bytes(text)).end(),
            A::Tensors(list) => {
                list.iter().fold(feed.text("tensors"), |feed, tensor| feed.tensor(tensor)).end()
            }
            A::SparseTensors(list) => {
                list.iter().fold(feed.text("sparses"), |feed, tensor| feed.sparse(tensor)).end();
            }
            A::Graphs(bodies) => {
                feed.text("graphs");
                bodies.iter().for_each(|body| self.body(feed, body));
                feed.end();
            }
            A::Types(list) => {
                list.iter().fold(feed.text("types"), |feed, ty| feed.text(&ty.to_string())).end()
            }
            A::Reference { name, kind } => _ = feed.text("reference").text(name).number(*kind as u64),
            A::Opaque => _ = feed.text("opaque").bytes(&attribute.extra),
        }
    }

    fn body(&self, feed: &mut Feed, body: &Graph) {
        feed.text("graph").digest(Structure::within(body, Some(self), false).whole);
    }

    fn all_of(&self, graph: &Graph, named: bool) -> Digest {
        let mut feed = Feed::new("graph");
        feed.number(graph.inputs().len() as u64);
        graph.inputs().iter().for_each(|&input| _ = feed.digest(self.value(input)));
        feed.number(graph.outputs().len() as u64);
        for &output in graph.outputs() {
            feed.digest(self.value(output)).text(if named { &graph.value(output).name } else { "" });
        }
        let readers = |op: &Op| op.results().map(|v| graph.readers(v) as u64).collect::<Vec<_>>();
        let mut ops: Vec<(Digest, Vec<u64>)> =
            graph.ops().map(|id| (self.op(id), readers(graph.op(id)))).collect();
        ops.sort();
        for (digest, readers) in ops {
            readers.into_iter().fold(feed.digest(digest), Feed::number).end();
        }
        feed.finish()
    }
}

/// The digest of a model.
pub fn model_digest(model: &Model) -> Digest {
    let mut feed = Feed::new("model");
    feed.digest(Structure::of(&model.graph).whole);
    let functions: BTreeMap<_, _> =
        model.functions.iter().map(|f| ((&f.domain, &f.name, &f.overload), f)).collect();
    let mut domains = model.graph.domains();
    for ((domain, name, overload), function) in functions {
        let inside = Structure::within(&function.graph, None, false);
        feed.text(domain).text(name).text(overload).digest(inside.whole);
        inside.attributes(&mut feed, &function.defaults);
        function.attributes.iter().for_each(|name| _ = feed.text(name));
        domains.extend(function.graph.domains());
    }
    for domain in domains {
        feed.text(domain).number(model.graph.opset(domain) as u64);
    }
    feed.finish()
}

/// The digest of an attribute by itself; a body in it is looked at alone.
pub fn attribute_digest(attribute: &Attribute) -> Digest {
    let mut feed = Feed::new("attribute");
    match attribute.value {
        AttributeValue::Graph(ref body) => feed.digest(Structure::of(body).whole),
        AttributeValue::Graphs(ref bodies) => {
            bodies.iter().fold(&mut feed, |feed, body| feed.digest(Structure::of(body).whole))
        }
        _ => {
            let nothing = Structure { values: Vec::new(), ops: Vec::new(), whole: Digest::default() };
            nothing.attribute(&mut feed, attribute);
            &mut feed
        }
    };
    feed.finish()
}

/// What goes into a digest, each part after its length, so that no two sequences of parts are one sequence of bytes.
struct Feed(Sha256);

impl Feed {
    fn new(kind: &str) -> Feed {
        let mut feed = Feed(Sha256::new());
        feed.text(kind);
        feed
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Feed {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Feed {
        self.bytes(text.as_bytes())
    }

    fn number(&mut self, n: u64) -> &mut Feed {
        self.bytes(&n.to_le_bytes())
    }

    fn digest(&mut self, digest: Digest) -> &mut Feed {
        self.bytes(&digest.0)
    }

    /// The end of a list.
    fn end(&mut self) {
        self.text("end");
    }

    fn tensor(&mut self, tensor: &Tensor) -> &mut Feed {
        self.text(tensor.dtype.name()).number(tensor.dims.len() as u64);
        tensor.dims.iter().for_each(|&size| _ = self.number(size));
        match (tensor.bytes(), &tensor.storage) {
            (Ok(elements), _) => self.bytes(&elements),
            (Err(_), Storage::Strings(list)) => list.iter().fold(self, |feed, text| feed.bytes(text)),
            // Where the elements would be says as much as there is to know.
            (Err(_), storage) => self.text(&format!("{storage:?}")),
        }
    }

    fn sparse(&mut self, sparse: &SparseTensor) -> &mut Feed {
        sparse.dims.iter().for_each(|&size| _ = self.number(size));
        self.tensor(&sparse.values).tensor(&sparse.indices)
    }

    fn finish(&mut self) -> Digest {
        let whole = self.0.finalize_reset();
        let mut digest = Digest::default();
        digest.0.copy_from_slice(&whole[..16]);
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_model;

    fn digest(text: &str) -> Digest {
        model_digest(&parse_model(text).unwrap_or_else(|error| panic!("{text}\n{error}")))
    }

    const PLAIN: &str = "f (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
        a = Exp(x)
        b = Mul(a, w)
        c = Neg(x)
        y = Add(b, c)
    }";

    fn differs(text: &str) {
        assert_ne!(digest(text), digest(PLAIN), "{text}");
    }

    #[test]
    fn names_inside_and_the_order_of_the_file_do_not_count() {
        let renamed = "g (float[2] x) => (float[2] y) <float[2] v = {1, 2}> {
            [named] n = Neg(x)
            e = Exp(x)
            m = Mul(e, v)
            y = Add(m, n)
        }";
        assert_eq!(digest(renamed), digest(PLAIN));
    }

    #[test]
    fn names_types_operands_attributes_and_constants_count() {
        differs(&PLAIN.replace("(float[2] x)", "(float[3] x)"));
        differs(&PLAIN.replace(" y", " z"));
        differs(&PLAIN.replace("x)", "u)"));
        differs(&PLAIN.replace("{1, 2}", "{1, 3}"));
        differs(&PLAIN.replace("Add(b, c)", "Add(c, b)"));
        differs(&PLAIN.replace("Exp(x)", "Exp<k = 1>(x)"));
        differs(&format!("<ir_version: 10, opset_import: [\"\": 20]> {PLAIN}"));
        let exp = |attributes: &str| PLAIN.replace("Exp(x)", &format!("Exp<{attributes}>(x)"));
        assert_eq!(digest(&exp("k = 1, l = 2.0")), digest(&exp("l = 2.0, k = 1")));
        assert_ne!(digest(&exp("k = [1, 2], l = [3]")), digest(&exp("k = [1], l = [2, 3]")));
    }

    #[test]
    fn what_nobody_reads_and_who_reads_a_copy_count() {
        differs(&PLAIN.replace("c = Neg(x)", "c = Neg(x) unread = Neg(a)"));
        let copies = |last: &str| {
            format!(
                "f (float[2] x) => (float[2] y) {{ a = Exp(x) b = Exp(x) c = Neg(a) d = Neg({last}) y = Add(c, d) }}"
            )
        };
        assert_ne!(digest(&copies("a")), digest(&copies("b")));
    }

    #[test]
    fn bodies_are_looked_into_and_know_what_they_capture() {
        let body = |inner: &str, captured: &str| {
            digest(&format!(
                "f (bool c, float[1] x, float[1] z) => (float[1] y) {{
                   y = If (c) <then_branch = t () => (float[1] v) {{ v = {inner}({captured}) }},
                               else_branch = e () => (float[1] w) {{ w = Relu(x) }}>
                 }}"
            ))
        };
        assert_eq!(body("Neg", "x"), body("Neg", "x"));
        assert_ne!(body("Neg", "x"), body("Abs", "x"));
        assert_ne!(body("Neg", "x"), body("Neg", "z"));
    }
}
