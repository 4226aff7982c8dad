//! What can go wrong, each with the exit code of the command line.

use std::path::PathBuf;

use crate::Report;
use crate::{onnx, passes};

/// Why a model was not optimized. Each message is one line that names the file and the reason.
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
    /// The exit code of the command line: 3 when outputs differ, 5 when a required runtime is not available, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::OutputsDiffer { .. } => 3,
            Error::NotValidated { .. } => 5,
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
