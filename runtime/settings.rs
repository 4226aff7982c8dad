//! How sessions of ONNX Runtime are made: execution provider, and [`Settings`], of which two sets have a
//! [name](SessionKind).
//!
//! The low-memory configuration, [`SessionKind::Tuned`], and why:
//! - **Memory pattern off.** With it, from the second run on one block holds all values of a run, packed by size
//!   classes, and was measured up to one whole activation above what they need. Without it each run needs what the
//!   first one did.
//! - **Arena off** (CPU), or growing by what is asked for (CUDA). The default one doubles in steps and never gives
//!   back: 2.7 times the need was measured.
//! - **Optimization level BASIC.** ONNX Runtime orders nodes by a search from the outputs that visits the highest
//!   node number first, and files are written for that order. The levels above replace nodes by fused ones with
//!   new numbers, which changes the order and has doubled peaks; BASIC folds constants, convolutions with
//!   batch normalizations and the like, which leaves it alone.

use std::fmt;
use std::str::FromStr;

/// What a session is configured for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SessionKind {
    /// What everybody gets who sets nothing.
    #[default]
    Default,
    /// The low-memory configuration: memory pattern off, arena off or frugal, optimization level BASIC.
    Tuned,
}

impl SessionKind {
    /// As options and reports write it.
    pub fn name(self) -> &'static str {
        match self {
            SessionKind::Default => "default",
            SessionKind::Tuned => "tuned",
        }
    }
}

/// The settings that decide how much memory a session takes. What users choose between is a [`SessionKind`]; any
/// other combination is for experiments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// From the second run on, one block holds all values of a run.
    pub memory_pattern: bool,
    /// Memory comes from an arena that grows in steps and keeps what it has. Without: from the system as it is needed
    /// (CPU), or from an arena that grows by what is asked for (CUDA).
    pub arena: bool,
    /// What ONNX Runtime may rewrite while it loads a model.
    pub level: Level,
}

/// ONNX Runtime's optimization levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// No rewrites: the nodes that run are those of the file.
    Disabled,
    /// Rewrites that hold for every execution provider: constants and convolutions are folded, for example.
    Basic,
    /// All there are.
    All,
}

impl From<SessionKind> for Settings {
    fn from(kind: SessionKind) -> Settings {
        match kind {
            SessionKind::Default => Settings { memory_pattern: true, arena: true, level: Level::All },
            SessionKind::Tuned => Settings { memory_pattern: false, arena: false, level: Level::Basic },
        }
    }
}

/// Execution provider.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ep {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Number of the GPU.
        device: i32,
    },
}

impl Ep {
    /// As options and reports write it.
    pub fn name(self) -> &'static str {
        match self {
            Ep::Cpu => "cpu",
            Ep::Cuda { .. } => "cuda",
        }
    }
}

impl fmt::Display for Ep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ep::Cuda { device } if *device != 0 => write!(f, "cuda:{device}"),
            _ => f.write_str(self.name()),
        }
    }
}

impl FromStr for Ep {
    type Err = String;

    /// `cpu`, `cuda`, or `cuda:N` for another device than the first.
    fn from_str(text: &str) -> Result<Ep, String> {
        let device = match text {
            "cpu" => return Ok(Ep::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).filter(|&n: &i32| n >= 0),
        };
        device.map(|device| Ep::Cuda { device }).ok_or_else(|| "expected cpu, cuda or cuda:N".to_string())
    }
}

/// What ONNX Runtime calls the provider for NVIDIA GPUs.
pub(crate) const CUDA: &str = "CUDAExecutionProvider";

/// Options of the CUDA execution provider. With `exact`, tensor cores do not round factors to ten bits (TF32), which they
/// do by default, and which would hide what differs.
pub(crate) fn cuda_options(settings: Settings, device: i32, exact: bool) -> Vec<(&'static str, String)> {
    let mut options = vec![("device_id", device.to_string())];
    if !settings.arena {
        options.push(("arena_extend_strategy", "kSameAsRequested".to_string()));
        options.push(("cudnn_conv_use_max_workspace", "0".to_string()));
    }
    if exact {
        options.push(("use_tf32", "0".to_string()));
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_gets_the_device_and_when_tuned_a_frugal_arena() {
        assert_eq!(cuda_options(SessionKind::Default.into(), 1, false), [("device_id", "1".to_string())]);
        let tuned = cuda_options(SessionKind::Tuned.into(), 0, false);
        assert!(tuned.contains(&("arena_extend_strategy", "kSameAsRequested".to_string())), "{tuned:?}");
    }

    #[test]
    fn sessions_that_are_compared_do_not_round_factors() {
        let exact = cuda_options(SessionKind::Default.into(), 0, true);
        assert_eq!(exact, [("device_id", "0".to_string()), ("use_tf32", "0".to_string())]);
    }

    #[test]
    fn execution_providers_are_written_as_they_are_read() {
        for ep in [Ep::Cpu, Ep::Cuda { device: 0 }, Ep::Cuda { device: 3 }] {
            assert_eq!(ep.to_string().parse(), Ok(ep));
        }
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cpu:0"] {
            assert!(wrong.parse::<Ep>().is_err(), "{wrong}");
        }
    }
}
