//! What passes ask about memory: for which kernels, and at which sizes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use dmopt_ir::{Def, Graph, OpId, Sizes};
use dmopt_memory::ort::{Order, Planner, Settings, Timeline, execution_order};
use dmopt_memory::{Kernels, Unknown};

/// What a result is for: the operators that it may use, and the kernels that run them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Target {
    /// Standard operators alone, which every runtime has.
    #[default]
    Portable,
    /// ONNX Runtime on the processor, with operators of its own.
    OrtCpu,
    /// ONNX Runtime on CUDA.
    OrtCuda,
}

impl Target {
    /// Every target, the most portable first.
    pub const ALL: [Target; 3] = [Target::Portable, Target::OrtCpu, Target::OrtCuda];

    /// The kernels that plans are made for.
    pub fn kernels(self) -> Kernels {
        match self {
            Target::Portable | Target::OrtCpu => Kernels::OrtCpu { version: (1, 32) },
            Target::OrtCuda => Kernels::OrtCuda { version: (1, 32) },
        }
    }

    /// The operator set that a result may use beside the standard one.
    pub fn domain(self) -> Option<&'static str> {
        (self == Target::OrtCpu).then_some("com.microsoft")
    }

    /// Name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Target::Portable => "portable",
            Target::OrtCpu => "ort-cpu",
            Target::OrtCuda => "ort-cuda",
        }
    }
}

/// The memory that a model is optimized for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Planning {
    /// What runs the result.
    pub target: Target,
    /// The oldest ONNX Runtime that has to run it, as major and minor version; without, any that does is new enough.
    pub onnxruntime: Option<(u32, u32)>,
    /// Sizes of open dimensions, as far as the caller knows them.
    pub sizes: Sizes,
    /// How ONNX Runtime is made to follow the order of the file.
    pub anchors: Anchors,
    /// In how many slices what lies between two layers is computed (see `split-hidden`), everywhere; as the predicted
    /// peak asks for where nobody says.
    pub split_hidden: Option<u64>,
    /// In how many slices of its samples a batch is computed (see `split-batch`), 0 for one of each sample; in as many as
    /// take no longer where nobody says.
    pub split_batch: Option<u64>,
}

/// How ONNX Runtime, which does not follow the file, is made to run operators in the order that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Anchors {
    /// By [order anchors](dmopt_memory::steer) where it would not by itself: the file stands in the good order for
    /// every executor.
    #[default]
    Auto,
    /// By the numbering of the file alone: fewer orders can be had, and executors that follow the file get another.
    Never,
}

/// What an open dimension is taken to be where nobody says: `(the first of an input, any other)`. An order is valid
/// whatever the sizes; these only decide which is thought best, and one that is worse at the second pair is not taken.
const ASSUMED: [(u64, u64); 2] = [(4, 224), (1, 64)];

/// A graph, and copies of it with a size for everything, one for each assumption about what is open.
pub(crate) struct Sized<'g> {
    graph: &'g Graph,
    sized: Vec<Cow<'g, Graph>>,
    kernels: Kernels,
}

impl Planning {
    /// A size that nobody gave, and that is more than the number of samples, the outermost dimension of inputs: what a
    /// network needs is mostly in proportion to that, so the best for some is the best for any, but what needs most may
    /// change with others.
    pub(crate) fn open_size(&self, graph: &Graph) -> Option<String> {
        self.open(graph).into_iter().find(|(_, place)| place.within).map(|(name, _)| name)
    }

    /// The graph with sizes for everything.
    pub(crate) fn sized<'g>(&self, graph: &'g Graph) -> Sized<'g> {
        let open = self.open(graph);
        let with_sizes = |(first, other): (u64, u64)| {
            let mut sizes = self.sizes.clone();
            for (name, place) in &open {
                sizes.dims.entry(name.clone()).or_insert(if place.first { first } else { other });
            }
            Cow::Owned(graph.with_sizes(&sizes))
        };
        let sized = match open.is_empty() {
            true => vec![graph.sized(&self.sizes)],
            false => ASSUMED.into_iter().map(with_sizes).collect(),
        };
        Sized { graph, sized, kernels: self.target.kernels() }
    }

    /// Dimensions of the inputs, and of what a body takes from outside, that nobody gave a size, by name.
    fn open(&self, graph: &Graph) -> BTreeMap<String, Place> {
        let mut open: BTreeMap<String, Place> = BTreeMap::new();
        for value in graph.values().filter(|&v| graph.producer(v).is_none()) {
            let is_input = matches!(graph.value(value).def, Def::Input { .. });
            if is_input && self.sizes.shapes.contains_key(&graph.value(value).name) {
                continue;
            }
            for (axis, name) in graph.open_dims_of(value) {
                if !self.sizes.dims.contains_key(&name) {
                    let place = open.entry(name).or_default();
                    place.first |= axis == 0;
                    place.within |= axis > 0;
                }
            }
        }
        open
    }
}

/// Where an open dimension stands.
#[derive(Clone, Copy, Default)]
struct Place {
    /// First in a shape.
    first: bool,
    /// Elsewhere.
    within: bool,
}

impl Sized<'_> {
    /// The graph at the sizes that matter most.
    pub(crate) fn graph(&self) -> &Graph {
        &self.sized[0]
    }

    /// True if a size was assumed.
    pub(crate) fn are_assumed(&self) -> bool {
        self.sized.len() > 1
    }

    /// Whose kernels.
    pub(crate) fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The same for other kernels.
    pub(crate) fn on(self, kernels: Kernels) -> Self {
        Sized { kernels, ..self }
    }

    /// What plans it at each of the sizes.
    ///
    /// # Errors
    /// A body has a cycle.
    pub(crate) fn plans(&self) -> Result<Plans<'_>, Unknown> {
        let settings = Settings { kernels: self.kernels, ..Settings::default() };
        let planner = |sized| Planner::new(self.graph, sized, &settings);
        let planners = self.sized.iter().map(|sized| planner(sized)).collect::<Result<_, _>>()?;
        Ok(Plans { graph: self.graph, planners })
    }

    /// Bytes that one run needs at each of the sizes, in a session that orders operators by itself.
    ///
    /// # Errors
    /// A size is not known.
    pub(crate) fn peaks(&self) -> Result<Vec<u64>, Unknown> {
        let order = execution_order(self.graph, Order::ReverseDepthFirst)?;
        Ok(self.plans()?.timelines_in(&order)?.iter().map(|timeline| timeline.peak_bytes).collect())
    }
}

/// Plans of a graph at each of some sizes, in any order.
pub(crate) struct Plans<'g> {
    graph: &'g Graph,
    planners: Vec<Planner<'g>>,
}

impl Plans<'_> {
    /// The graph.
    pub(crate) fn graph(&self) -> &Graph {
        self.graph
    }

    /// What is in memory at each of the sizes, step by step, if operators are executed in this order.
    ///
    /// # Errors
    /// A size is not known.
    pub(crate) fn timelines_in(&self, order: &[OpId]) -> Result<Vec<Timeline>, Unknown> {
        self.planners.iter().map(|planner| planner.first_run(self.runs(order))).collect()
    }

    /// The first of [these](Plans::timelines_in), at the sizes that matter most.
    ///
    /// # Errors
    /// A size is not known.
    pub(crate) fn timeline_in(&self, order: &[OpId]) -> Result<Timeline, Unknown> {
        self.planners[0].first_run(self.runs(order))
    }

    /// Bytes that one run needs at the sizes that matter most, if operators are executed in this order.
    ///
    /// # Errors
    /// A size is not known.
    pub(crate) fn peak_in(&self, order: &[OpId]) -> Result<u64, Unknown> {
        self.timeline_in(order).map(|timeline| timeline.peak_bytes)
    }

    /// The operators that run.
    fn runs(&self, order: &[OpId]) -> Vec<OpId> {
        order.iter().copied().filter(|&id| !self.graph.op(id).is("Constant")).collect()
    }
}
