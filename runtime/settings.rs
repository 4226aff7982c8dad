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

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Ep {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Number of the GPU.
        device: i32,
        /// Options of the provider, by name, before those of the [`Settings`].
        options: Vec<(String, String)>,
    },
}

impl Ep {
    /// This GPU, with the options that the settings ask for.
    pub fn cuda(device: i32) -> Ep {
        Ep::Cuda { device, options: Vec::new() }
    }

    /// As options and reports write it.
    pub fn name(&self) -> &'static str {
        match self {
            Ep::Cpu => "cpu",
            Ep::Cuda { .. } => "cuda",
        }
    }
}

impl fmt::Display for Ep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let Ep::Cuda { device, options } = self else { return Ok(()) };
        if *device != 0 {
            write!(f, ":{device}")?;
        }
        options.iter().try_for_each(|(key, value)| write!(f, ",{key}={value}"))
    }
}

impl FromStr for Ep {
    type Err = String;

    /// `cpu`, `cuda`, or `cuda:N` for another device than the first; for CUDA with options of the provider behind it, as in
    /// `cuda,prefer_nhwc=1`.
    fn from_str(text: &str) -> Result<Ep, String> {
        let mut parts = text.split(',');
        let device = match parts.next() {
            _ if text == "cpu" => return Ok(Ep::Cpu),
            Some("cuda") => Some(0),
            Some(name) => name.strip_prefix("cuda:").and_then(|n| n.parse().ok()).filter(|&n: &i32| n >= 0),
            None => None,
        };
        let option = |part: &str| match part.split_once('=') {
            Some(("device_id", _)) => Err("the device is named as in cuda:1".to_string()),
            Some((key, _)) if ADDRESSES.contains(&key) => {
                Err(format!("the option '{key}' is an address in a program"))
            }
            Some((key, value)) if !key.is_empty() => Ok((key.to_string(), value.to_string())),
            _ => Err(format!("'{part}' is no option of the provider, as in prefer_nhwc=1")),
        };
        let device = device.ok_or_else(|| "expected cpu, cuda or cuda:N".to_string())?;
        Ok(Ep::Cuda { device, options: parts.map(option).collect::<Result<_, _>>()? })
    }
}

/// Options of the provider that point into the program that makes a session.
const ADDRESSES: [&str; 6] = [
    "default_memory_arena_cfg",
    "gpu_external_alloc",
    "gpu_external_empty_cache",
    "gpu_external_free",
    "has_user_compute_stream",
    "user_compute_stream",
];

/// What ONNX Runtime calls the provider for NVIDIA GPUs.
pub(crate) const CUDA: &str = "CUDAExecutionProvider";

/// Options of the CUDA execution provider; none for the processor. Those that were asked for by name come before those of
/// the settings. With `exact`, tensor cores do not round factors to ten bits (TF32), which they do by default, and which
/// would hide what differs.
pub(crate) fn cuda_options(settings: Settings, ep: &Ep, exact: bool) -> Vec<(&str, String)> {
    let Ep::Cuda { device, options: named } = ep else { return Vec::new() };
    let mut options = BTreeMap::from([("device_id", device.to_string())]);
    if !settings.arena {
        options.insert("arena_extend_strategy", "kSameAsRequested".to_string());
        options.insert("cudnn_conv_use_max_workspace", "0".to_string());
    }
    options.extend(named.iter().map(|(key, value)| (key.as_str(), value.clone())));
    if exact {
        options.insert("use_tf32", "0".to_string());
    }
    options.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_gets_the_device_and_when_tuned_a_frugal_arena() {
        let second = Ep::cuda(1);
        let options = cuda_options(SessionKind::Default.into(), &second, false);
        assert_eq!(options, [("device_id", "1".to_string())]);
        assert_eq!(cuda_options(SessionKind::Tuned.into(), &Ep::Cpu, false), []);
        let first = Ep::cuda(0);
        let tuned = cuda_options(SessionKind::Tuned.into(), &first, false);
        assert!(tuned.contains(&("arena_extend_strategy", "kSameAsRequested".to_string())), "{tuned:?}");
    }

    #[test]
    fn sessions_that_are_compared_do_not_round_factors() {
        let ep = "cuda,use_tf32=1".parse().unwrap();
        let exact = cuda_options(SessionKind::Default.into(), &ep, true);
        assert_eq!(exact, [("device_id", "0".to_string()), ("use_tf32", "0".to_string())]);
    }

    #[test]
    fn options_that_are_named_come_before_those_of_the_session() {
        let ep = "cuda:1,prefer_nhwc=1,arena_extend_strategy=kNextPowerOfTwo".parse().unwrap();
        let options = cuda_options(SessionKind::Tuned.into(), &ep, false);
        let text: Vec<String> = options.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            text.join(" "),
            "arena_extend_strategy=kNextPowerOfTwo cudnn_conv_use_max_workspace=0 device_id=1 prefer_nhwc=1"
        );
    }

    #[test]
    fn execution_providers_are_written_as_they_are_read() {
        for text in ["cpu", "cuda", "cuda:3", "cuda,a=1,b=x=y", "cuda:2,gpu_mem_limit=1000"] {
            assert_eq!(text.parse::<Ep>().map(|ep| ep.to_string()), Ok(text.to_string()));
        }
        for wrong in [
            "",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cpu:0",
            "cpu,a=1",
            "cuda,",
            "cuda,a",
            "cuda,=1",
            "cuda,device_id=1",
            "cuda,user_compute_stream=1",
        ] {
            assert!(wrong.parse::<Ep>().is_err(), "{wrong}");
        }
    }
}
