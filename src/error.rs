//! What can go wrong, each with the exit code of the command line.

use std::path::PathBuf;

use crate::Report;
use crate::{onnx, passes};

/// Why a model was not optimized, or what is wrong with one that was compared. Each message is one line that names the file and the reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written, or is no model.
    #[error(transparent)]
    Onnx(#[from] onnx::Error),
    /// A file that the output would destroy.
    #[error("{}: {reason}; choose another output", .output.display())]
    Overwrites {
        /// The output.
        output: PathBuf,
        /// What it would overwrite.
        reason: &'static str,
    },
    /// A pass failed.
    #[error("{file}: {cause}")]
    Passes {
        /// The input.
        file: String,
        /// What happened.
        cause: passes::Error,
    },
    /// The rewritten graph cannot be written as a model.
    #[error("{file}: {cause}")]
    Export {
        /// The input.
        file: String,
        /// What happened.
        cause: onnx::ExportError,
    },
    /// Sizes that contradict the model.
    #[error("{file}: {reason}")]
    Sizes {
        /// The input.
        file: String,
        /// What does not fit.
        reason: String,
    },
    /// A file operation failed.
    #[error("{}: cannot {action}: {cause}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system answered.
        cause: std::io::Error,
    },
    /// A runtime, execution provider or device that was asked for is not there, or cannot tell what was asked.
    #[error("{0}")]
    Unavailable(String),
    /// Two models that are to be compared have other inputs or outputs.
    #[error("{candidate} has another interface than {reference}: {reason}")]
    Interface {
        /// The reference.
        reference: String,
        /// The candidate.
        candidate: String,
        /// The first difference.
        reason: String,
    },
    /// Inputs in files that cannot be read or do not fit the model.
    #[error("{0}")]
    Inputs(String),
    /// Two models that were compared do not compute the same.
    #[error("{candidate} does not compute what {reference} does: {reason}")]
    Differ {
        /// The reference.
        reference: String,
        /// The candidate.
        candidate: String,
        /// What differs.
        reason: String,
    },
    /// A model does not give the outputs that came with its inputs.
    #[error("{reference} does not give the outputs that came with its inputs: {reason}")]
    Unexpected {
        /// The model.
        reference: String,
        /// What differs.
        reason: String,
    },
    /// Two models were not compared, because the reference does not run.
    #[error("{reference}: nothing was compared: {reason}")]
    NotCompared {
        /// The reference.
        reference: String,
        /// Why it does not run.
        reason: String,
    },
    /// A model takes more than it may.
    #[error("{candidate}: {exceeded}")]
    Limit {
        /// The model.
        candidate: String,
        /// Each limit with what was found.
        exceeded: String,
    },
    /// An edit of a pass is to blame for something.
    #[error("{model}: {reason}")]
    Bisected {
        /// The model.
        model: String,
        /// What goes wrong, and the edit.
        reason: String,
        /// True if outputs differ, false if the peak grows.
        outputs: bool,
    },
    /// A lock file that is none.
    #[error("{}: {reason}", .path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Models are not as a lock file says.
    #[error("{lock}: {reason}")]
    Check {
        /// The lock file.
        lock: String,
        /// How many models are not, and how.
        reason: String,
        /// True if one of them could not be read.
        unreadable: bool,
    },
    /// Original and result do not compute the same. The output was not put in place.
    #[error("{}: outputs differ: {}; {}", input(.report), reason(.report), where_to(.kept))]
    OutputsDiffer {
        /// What was done and found.
        report: Box<Report>,
        /// Where the result was kept, or why it was not.
        kept: Result<PathBuf, String>,
    },
    /// Validation was required and did not take place. The output was not put in place.
    #[error("{}: validation was required but skipped: {}; nothing written", input(.report), reason(.report))]
    NotValidated {
        /// What was done and found.
        report: Box<Report>,
    },
}

impl Error {
    /// The exit code of the command line: 3 when outputs differ, 4 when a limit is exceeded, 5 when a required runtime
    /// is not available or cannot run the model, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::OutputsDiffer { .. }
            | Error::Differ { .. }
            | Error::Unexpected { .. }
            | Error::Bisected { outputs: true, .. } => 3,
            Error::Limit { .. }
            | Error::Check { unreadable: false, .. }
            | Error::Bisected { outputs: false, .. } => 4,
            Error::NotValidated { .. } | Error::NotCompared { .. } | Error::Unavailable(_) => 5,
            _ => 1,
        }
    }

    /// The report, when there is one in spite of the error.
    pub fn report(&self) -> Option<&Report> {
        match self {
            Error::OutputsDiffer { report, .. } | Error::NotValidated { report } => Some(report),
            _ => None,
        }
    }
}

fn input(report: &Report) -> &str {
    report.input.path.as_deref().unwrap_or_default()
}

fn reason(report: &Report) -> &str {
    report.validation.reason.as_deref().unwrap_or("no reason given")
}

fn where_to(kept: &Result<PathBuf, String>) -> String {
    match kept {
        Ok(path) => format!("the result was kept as {}, the output is untouched", path.display()),
        Err(reason) => format!("the result was not kept: {reason}"),
    }
}
