//! What a model takes while it runs, as runtimes measure it. All in bytes.

use serde::{Deserialize, Serialize};

/// Memory of one model in bytes, without its inputs, which belong to the caller.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// What the session keeps between runs, apart from peaks: on CUDA the weights, on the CPU the copies of them
    /// that kernels prefer. Weights that ONNX Runtime uses on the CPU as they came with the model never go through
    /// an allocator, so they are not in here; their size is that of the initializers in the file.
    pub kept_bytes: u64,
    /// Peak of the first run.
    pub first: Peak,
    /// Peak of the runs after it. Larger than the first where memory patterns are on.
    pub steady: Peak,
    /// The arena of a session with the same settings, where it has one.
    pub arena: Option<Arena>,
    /// On CUDA, everything that the process holds on the device after the runs, as the driver says, where it does:
    /// the CUDA context and what its libraries keep included.
    pub process_bytes: Option<u64>,
}

/// Statistics of an arena after the same number of runs, in bytes, weights included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Arena {
    /// Most in use at a time, each block rounded up as the arena does.
    pub max_in_use: u64,
    /// What the arena took from the system or the device, and keeps.
    pub held: u64,
}

impl Memory {
    /// The most that any run needs: the larger of the first run and the later ones.
    pub fn peak(&self) -> Peak {
        if self.first.bytes > self.steady.bytes { self.first } else { self.steady }
    }
}

/// Largest memory at one moment of a run, in bytes, and what it consisted of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Peak {
    /// All of it; the sum of the parts.
    pub bytes: u64,
    /// Values between operators. Where `scratch` is not known, it is in here too.
    pub activations: u64,
    /// Temporaries of the kernel that ran; `None` where the runtime does not tell when kernels begin and end.
    pub scratch: Option<u64>,
    /// Graph outputs that were already there.
    pub outputs: u64,
}
