//! Sizes put in for open dimensions, to make the sizes of all values known.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::{Def, Dim, Graph, TensorType, Type, ValueId, infer};

/// Sizes for what a model leaves open.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    /// By the name of a symbolic dimension, or `value.axis` for a dimension without a name, of an input or of a value
    /// whose size depends on data.
    pub dims: BTreeMap<String, u64>,
    /// Whole shapes, by the name of an input.
    pub shapes: BTreeMap<String, Vec<u64>>,
}

impl Graph {
    /// A copy in which these sizes stand for open dimensions, with types inferred anew. Meant for questions about a
    /// graph; what is written stays as open as it was.
    pub fn with_sizes(&self, sizes: &Sizes) -> Graph {
        let mut graph = self.clone();
        for id in graph.values().collect::<Vec<_>>() {
            let is_input = matches!(graph.value(id).def, Def::Input { .. });
            let value = graph.value_mut(id);
            let Some(Type::Tensor(ty)) = &mut value.ty else { continue };
            if let Some(shape) = sizes.shapes.get(&value.name).filter(|_| is_input) {
                ty.shape = Some(shape.iter().map(|&size| Dim::Known(size)).collect());
            }
            for (axis, dim) in ty.shape.iter_mut().flatten().enumerate() {
                if *dim == Dim::Unknown
                    && let Some(&size) = sizes.dims.get(&format!("{}.{axis}", value.name))
                {
                    *dim = Dim::Known(size);
                }
            }
        }
        graph.put_in(&sizes.dims);
        infer::infer_graph(&mut graph);
        graph
    }

    /// The graph with these sizes: itself where none are given, else [a copy](Graph::with_sizes). Types must have been
    /// inferred.
    pub fn sized(&self, sizes: &Sizes) -> Cow<'_, Graph> {
        match *sizes == Sizes::default() {
            true => Cow::Borrowed(self),
            false => Cow::Owned(self.with_sizes(sizes)),
        }
    }

    /// A copy in which the nameless open dimensions of inputs have names, those that [`Sizes`] knows them by, with types
    /// inferred anew: what follows from them becomes an expression.
    pub fn with_named_dims(&self) -> Graph {
        let mut graph = self.clone();
        for input in graph.inputs().to_vec() {
            let value = graph.value_mut(input);
            let Some(Type::Tensor(ty)) = &mut value.ty else { continue };
            for (axis, dim) in ty.shape.iter_mut().flatten().enumerate() {
                if *dim == Dim::Unknown {
                    *dim = Dim::Symbol(format!("{}.{axis}", value.name).into());
                }
            }
        }
        infer::infer_graph(&mut graph);
        graph
    }

    /// Names by which [`Sizes`] knows what the inputs leave open, and what only values inside do: names of dimensions,
    /// and `value.axis` for those without one.
    pub fn open_dims(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut of_inputs, mut inside) = (BTreeSet::new(), BTreeSet::new());
        for id in self.values() {
            let names = self.open_dims_of(id).map(|(_, name)| name);
            match self.value(id).def {
                Def::Input { .. } => of_inputs.extend(names),
                _ => inside.extend(names),
            }
        }
        inside.retain(|name| !of_inputs.contains(name));
        (of_inputs, inside)
    }

    /// The open dimensions of a value: axis, and the name by which [`Sizes`] knows them.
    pub fn open_dims_of(&self, id: ValueId) -> impl Iterator<Item = (usize, String)> {
        let shape = self.tensor_type(id).and_then(|ty| ty.shape.as_ref());
        shape.into_iter().flatten().enumerate().filter_map(move |(axis, dim)| match dim {
            Dim::Symbol(name) if !name.starts_with('{') => Some((axis, name.to_string())),
            Dim::Unknown => Some((axis, format!("{}.{axis}", self.value(id).name))),
            _ => None,
        })
    }

    fn put_in(&mut self, dims: &BTreeMap<String, u64>) {
        for id in self.values().collect::<Vec<_>>() {
            if let Some(Type::Tensor(ty)) = &mut self.value_mut(id).ty {
                ty.put_in(dims);
            }
        }
        self.each_body_mut(|body| body.put_in(dims));
    }
}

impl TensorType {
    fn put_in(&mut self, dims: &BTreeMap<String, u64>) {
        for dim in self.shape.iter_mut().flatten() {
            if let Dim::Symbol(name) = dim
                && let Some(&size) = dims.get(&**name)
            {
                *dim = Dim::Known(size);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DType, Op, Opsets};
    use std::sync::Arc;

    #[test]
    fn named_nameless_and_whole_shapes_become_known_in_the_copy_alone() {
        let mut b = Builder::new("g", Arc::new(Opsets::new()));
        let dims = vec![Dim::Symbol("N".into()), Dim::Unknown, Dim::Known(3)];
        for (name, shape) in [("x", Some(dims)), ("y", None)] {
            let id = b.value(name);
            b.input(id, None).unwrap();
            b.set_type(id, Some(TensorType { dtype: DType::F32, shape }.into()));
        }
        let graph = b.finish().unwrap();
        let sizes = Sizes {
            dims: [("N".to_string(), 5), ("x.1".to_string(), 7)].into(),
            shapes: [("y".to_string(), vec![2])].into(),
        };
        let types =
            |g: &Graph| g.inputs().iter().map(|&v| g.tensor_type(v).unwrap().to_string()).collect::<Vec<_>>();
        assert_eq!(types(&graph.with_sizes(&sizes)), ["float[5,7,3]", "float[2]"]);
        assert_eq!(types(&graph), ["float[N,?,3]", "float[]"]);
    }

    #[test]
    fn what_depends_on_data_gets_a_size_and_so_does_what_follows() {
        let text = "g (float[4,n] x) => (float[] y) { m = NonZero(x) t = Transpose(m) y = Cast<to = 1>(t) }";
        let mut graph = crate::text::parse_graph(text, crate::text::default_opsets()).unwrap();
        infer::infer_graph(&mut graph);
        let (of_inputs, inside) = graph.open_dims();
        assert_eq!(Vec::from_iter(of_inputs), ["n"]);
        assert_eq!(Vec::from_iter(inside), ["m.1", "t.0", "y.0"]);
        let sizes = Sizes { dims: [("m.1".to_string(), 7)].into(), ..Sizes::default() };
        let sized = graph.with_sizes(&sizes);
        assert_eq!(sized.tensor_type(sized.outputs()[0]).unwrap().to_string(), "float[7,2]");
    }

    #[test]
    fn nameless_dimensions_get_the_names_that_sizes_know_them_by() {
        let mut b = Builder::new("g", Arc::new(Opsets::from([(String::new(), 21)])));
        let (x, y) = (b.value("x"), b.value("y"));
        b.input(x, None).unwrap();
        b.set_type(
            x,
            Some(TensorType { dtype: DType::F32, shape: Some(vec![Dim::Unknown, Dim::Known(2)]) }.into()),
        );
        b.op(Op::new("Exp", vec![Some(x)], vec![Some(y)])).unwrap();
        b.output(y);
        let named = b.finish().unwrap().with_named_dims();
        assert_eq!(named.tensor_type(y).unwrap().to_string(), "float[x.0,2]");
    }
}
