//! What stands around a graph: operator sets, model-local functions, names.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::hash::HashSet;
use crate::{Attribute, Graph};

/// Imported operator sets: domain to version. The standard domain is the empty string.
pub type Opsets = BTreeMap<String, i64>;

/// A model: a graph and what it is written against.
#[derive(Clone, Debug)]
pub struct Model {
    /// Version of the file format.
    pub ir_version: i64,
    /// Imported operator sets.
    pub opsets: Arc<Opsets>,
    /// The main graph.
    pub graph: Graph,
    /// Model-local functions, in file order.
    pub functions: Vec<Function>,
    /// What else the file said; opaque here.
    pub extra: Bytes,
}

impl Model {
    /// Imports an operator set into the main graph and its bodies, unless a version of it is there. True if it was not.
    pub fn import(&mut self, domain: &str, version: i64) -> bool {
        let is_new = !self.opsets.contains_key(domain);
        if is_new {
            Arc::make_mut(&mut self.opsets).insert(domain.to_string(), version);
            self.graph.set_opsets(&self.opsets);
        }
        is_new
    }

    /// Takes the import of an operator set away again, if the main graph and its bodies have no operator of it.
    pub fn drop_import(&mut self, domain: &str) {
        if !self.graph.domains().contains(domain) {
            Arc::make_mut(&mut self.opsets).remove(domain);
            self.graph.set_opsets(&self.opsets);
        }
    }
}

/// A model-local function: a graph that operators of its domain and name stand for.
#[derive(Clone, Debug)]
pub struct Function {
    /// Domain of the operator it defines.
    pub domain: String,
    /// Type of the operator it defines.
    pub name: String,
    /// Which overload it is; almost always empty.
    pub overload: String,
    /// Attributes without a default.
    pub attributes: Vec<String>,
    /// Attributes with a default.
    pub defaults: Vec<Attribute>,
    /// Body; its inputs and outputs are the function's.
    pub graph: Graph,
    /// What else the file said; opaque here.
    pub extra: Bytes,
}

/// Every name of a value in a model, bodies included: a new name must differ from all of them, because a body
/// sees the names of the graphs around it.
#[derive(Clone, Default, Debug)]
pub struct Names {
    taken: HashSet<String>,
    counter: u64,
}

impl Names {
    /// The names of a model.
    pub fn of(model: &Model) -> Names {
        let mut names = Names::default();
        names.add_graph(&model.graph);
        model.functions.iter().for_each(|f| names.add_graph(&f.graph));
        names
    }

    /// Takes every name of a graph and its bodies.
    pub fn add_graph(&mut self, graph: &Graph) {
        for id in graph.values() {
            self.taken.insert(graph.value(id).name.clone());
        }
        for op in graph.ops() {
            graph.op(op).bodies().for_each(|body| self.add_graph(body));
        }
    }

    /// A name that no value has: `hint`, or `hint` with a number.
    pub fn fresh(&mut self, hint: &str) -> String {
        let mut name = hint.to_string();
        while name.is_empty() || !self.taken.insert(name.clone()) {
            self.counter += 1;
            name = format!("{hint}_{}", self.counter);
        }
        name
    }
}
