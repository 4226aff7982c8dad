//! Sizes put in for open dimensions, to make the sizes of all values known.

use std::collections::BTreeMap;

use crate::{Dim, Graph, TensorType, Type, infer};

/// Sizes for what a model leaves open.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    /// By the name of a symbolic dimension, or `input.axis` for a dimension of an input that has no name.
    pub dims: BTreeMap<String, u64>,
    /// Whole shapes, by the name of an input.
    pub shapes: BTreeMap<String, Vec<u64>>,
}

impl Graph {
    /// A copy in which these sizes stand for open dimensions, with types inferred anew. Meant for questions about a
    /// graph; what is written stays as open as it was.
    pub fn with_sizes(&self, sizes: &Sizes) -> Graph {
        let mut graph = self.clone();
        for input in graph.inputs().to_vec() {
            let value = graph.value_mut(input);
            let Some(Type::Tensor(ty)) = &mut value.ty else { continue };
            if let Some(shape) = sizes.shapes.get(&value.name) {
                ty.shape = Some(shape.iter().map(|&size| Dim::Known(size)).collect());
            }
            for (axis, dim) in ty.shape.iter_mut().flatten().enumerate() {
                if let (Dim::Unknown, Some(&size)) =
                    (&*dim, sizes.dims.get(&format!("{}.{axis}", value.name)))
                {
                    *dim = Dim::Known(size);
                }
            }
        }
        graph.put_in(&sizes.dims);
        infer::infer_graph(&mut graph);
        graph
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

    fn put_in(&mut self, dims: &BTreeMap<String, u64>) {
        for id in self.values().collect::<Vec<_>>() {
            if let Some(Type::Tensor(ty)) = &mut self.value_mut(id).ty {
                ty.put_in(dims);
            }
        }
        for op in self.ops().collect::<Vec<_>>() {
            self.op_mut(op).bodies_mut().for_each(|body| body.put_in(dims));
        }
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
