//! What runtimes there are on this machine, and what would provide those that are missing.

#[cfg(feature = "ort")]
mod ort;

use std::path::Path;

use serde::{Serialize, Serializer};

/// The value of [`Diagnosis::schema`].
pub const SCHEMA: &str = "dmopt.doctor/1";

/// The runtimes of a machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Diagnosis {
    /// Always [`SCHEMA`].
    pub schema: &'static str,
    /// Every runtime that was found, those that cannot be used included.
    pub runtimes: Vec<Runtime>,
    /// What CUDA needs (provider, driver, device), by name: what there is, or what is wrong.
    #[serde(serialize_with = "parts")]
    pub cuda: Vec<(&'static str, Result<String, String>)>,
    /// For each thing that is missing, the command that would provide it.
    pub remedies: Vec<Remedy>,
    /// What is used for what, in sentences.
    pub uses: Vec<String>,
}

/// A runtime.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Runtime {
    /// Name and version.
    pub name: String,
    /// Where it comes from.
    pub origin: String,
    /// Why it cannot be used.
    pub problem: Option<String>,
    /// Execution providers. That one is listed does not mean that what it needs is there.
    pub providers: Vec<String>,
    /// Devices that it finds; of the library that is used only, since a process can use one.
    pub devices: Vec<String>,
    /// True for those that are used when nothing else is said.
    pub used: bool,
}

/// How to get something that is missing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Remedy {
    /// What is missing.
    pub what: &'static str,
    /// The command that would provide it.
    pub command: &'static str,
}

/// `{"name": ..., "there": ..., "missing": ...}`, of which one is null.
fn parts<S: Serializer>(
    parts: &[(&'static str, Result<String, String>)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Part<'a> {
        name: &'a str,
        there: Option<&'a String>,
        missing: Option<&'a String>,
    }
    let part = |(name, part): &'_ (&'static str, Result<String, String>)| -> serde_json::Value {
        let part = Part { name, there: part.as_ref().ok(), missing: part.as_ref().err() };
        serde_json::json!(part)
    };
    parts.iter().map(part).collect::<Vec<_>>().serialize(serializer)
}

const TRACT: Remedy = Remedy { what: "embedded runtime", command: "cargo install --path . --features tract" };

/// Looks at the machine; `explicit` is a library of ONNX Runtime to look at first. Missing things are part of the answer,
/// never an error.
pub fn diagnose(explicit: Option<&Path>) -> Diagnosis {
    let mut found = Diagnosis {
        schema: SCHEMA,
        runtimes: Vec::new(),
        cuda: Vec::new(),
        remedies: Vec::new(),
        uses: Vec::new(),
    };
    if cfg!(feature = "tract") {
        found.runtimes.push(Runtime {
            name: format!("tract {}", dmopt_runtime::TRACT_VERSION),
            origin: "built in".to_string(),
            providers: vec!["the processor".to_string()],
            used: true,
            ..Runtime::default()
        });
    } else {
        found.remedies.push(TRACT);
    }
    #[cfg(feature = "ort")]
    ort::look(&mut found, explicit);
    #[cfg(not(feature = "ort"))]
    {
        let _ = explicit;
        let command = "cargo install --path . --features ort";
        found.remedies.push(Remedy { what: "use of ONNX Runtime", command });
        found.uses = uses(Err("this build lacks the feature ort".to_string()));
    }
    found
}

const TRACT_ONLY: &str = "tract; memory is not measured";

/// What the commands use unless they are told otherwise.
fn uses(ort: Result<String, String>) -> Vec<String> {
    let tract = cfg!(feature = "tract");
    let (both, one) = match (&ort, tract) {
        (Ok(ort), true) => (format!("tract and {ort}; memory is measured in {ort}"), ort.clone()),
        (Ok(ort), false) => (format!("{ort}, which measures memory too"), ort.clone()),
        (Err(_), true) => (TRACT_ONLY.to_string(), TRACT_ONLY.to_string()),
        (Err(_), false) => {
            ("nothing: results are not validated".to_string(), "nothing: it fails".to_string())
        }
    };
    let mut lines = vec![format!("dmopt optimize  {both}"), format!("dmopt validate  {one}")];
    lines.extend(ort.err().map(|reason| format!("without ONNX Runtime: {reason}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_cannot_be_used_is_part_of_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so");
        std::fs::write(&path, "text").unwrap();
        let found = diagnose(Some(&path));
        #[cfg(feature = "ort")]
        {
            let listed = found.runtimes.iter().find(|r| r.origin.contains("--ort-lib")).unwrap();
            assert!(listed.problem.is_some() && !listed.used, "{listed:?}");
            assert!(
                found.remedies.contains(&ort::ORT) && found.remedies.contains(&ort::CUDA_PROVIDER),
                "{found:?}"
            );
            assert_eq!(found.cuda.len(), 3);
        }
        assert_eq!(found.uses[0].starts_with("dmopt optimize  tract"), cfg!(feature = "tract"), "{found:?}");
    }
}
