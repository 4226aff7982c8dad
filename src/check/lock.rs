//! The lock file: what dmopt made of models, one fact per line, in an order that does not change. It is TOML.
//!
//! ```text
//! version = 1
//!
//! [models."nets/a.onnx"]
//! content = "sha256:9f86d0..."          # of the file, as sha256sum prints it
//!
//! [models."nets/a.onnx".data]           # the same for each file with external data
//! "a.onnx.data" = "sha256:60303a..."
//!
//! [models."nets/a.onnx".targets.portable]
//! structure = "5891b5b522d5df08..."     # digest of the result: names and order do not count
//! nodes = 559                           # operators of the result
//! original-peak = 152320                # predicted bytes, of the original
//! peak = 121344                         # predicted bytes, of the result
//! lower-bound = 99328                   # no order of the result's operators needs less, in bytes
//!
//! [models."nets/a.onnx".targets.portable.sizes]      # of open dimensions, where the peak depends on them
//! [models."nets/a.onnx".targets.portable.rewrites]   # applied, by pass
//! [models."nets/a.onnx".targets.portable.sites]      # mixing sites: form, terms, what became of it
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, onnx};

/// The version of the format.
const VERSION: u32 = 1;

const HEAD: &str =
    "# What dmopt makes of these models. `dmopt check` compares with it, `dmopt check --update` writes it.\n";

/// A lock file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Lock {
    version: u32,
    /// By path relative to the folder of the lock file, with `/` between parts.
    #[serde(default)]
    pub models: BTreeMap<String, Entry>,
}

/// What is known of one model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Entry {
    /// SHA-256 of the model file, after `sha256:`.
    pub content: String,
    /// The same of each file that holds external data, by location.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// What became of it, by name of the target.
    pub targets: BTreeMap<String, Made>,
}

/// What became of a model for one target.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Made {
    /// Digest of the result's structure.
    pub structure: String,
    /// Operators of the result.
    pub nodes: u64,
    /// Predicted peak of the original in bytes; absent when it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_peak: Option<u64>,
    /// Predicted peak of the result in bytes; absent when it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<u64>,
    /// No order of the result's operators needs less, in bytes; absent when no bound is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower_bound: Option<u64>,
    /// Sizes of open dimensions that the peaks are for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sizes: BTreeMap<String, u64>,
    /// Rewrites applied, by pass; passes that found nothing are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rewrites: BTreeMap<String, u64>,
    /// Mixing sites of the original, by the value that holds the result: form, number of terms, what became of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sites: BTreeMap<String, String>,
}

impl Default for Lock {
    fn default() -> Lock {
        Lock { version: VERSION, models: BTreeMap::new() }
    }
}

impl Lock {
    /// Reads a lock file; one that is not there is empty.
    ///
    /// # Errors
    /// It cannot be read, or is no lock file of this version.
    pub fn read(path: &Path) -> Result<Lock, Error> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(Lock::default()),
            Err(cause) => return Err(Error::Io { path: path.to_path_buf(), action: "read", cause }),
        };
        let wrong = |reason: String| Error::Lock { path: path.to_path_buf(), reason };
        let lock: Lock = toml::from_str(&text).map_err(|cause| {
            let line =
                cause.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            wrong(format!("line {line}: {}", cause.message()))
        })?;
        match lock.version {
            VERSION => Ok(lock),
            other => Err(wrong(format!("it has version {other}, this dmopt reads version {VERSION}"))),
        }
    }

    /// The text of the file.
    ///
    /// # Errors
    /// A number is beyond what the format can hold: a sentence.
    pub fn text(&self) -> Result<String, String> {
        toml::to_string(self).map(|text| HEAD.to_string() + &text).map_err(|cause| cause.to_string())
    }

    /// Replaces a lock file as a whole.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        use std::io::Write;
        let text = self.text().map_err(|reason| Error::Lock { path: path.to_path_buf(), reason })?;
        Ok(onnx::replace(path, |file| file.write_all(text.as_bytes()))?)
    }
}

impl Made {
    /// What is another than `locked`: what counts against it, and what is better or only worth knowing.
    pub(crate) fn compare(&self, locked: &Made) -> (Vec<String>, Vec<String>) {
        let (mut against, mut notes) = (Vec::new(), Vec::new());
        for (name, was) in &locked.sites {
            match self.sites.get(name) {
                None => against.push(format!("mixing site {name} is gone (it was {was})")),
                Some(is) if is != was => against.push(format!("mixing site {name}: {was} -> {is}")),
                Some(_) => {}
            }
        }
        let new = self.sites.iter().filter(|(name, _)| !locked.sites.contains_key(*name));
        against.extend(new.map(|(name, is)| format!("mixing site {name} is new: {is}")));
        let passes: std::collections::BTreeSet<&String> =
            self.rewrites.keys().chain(locked.rewrites.keys()).collect();
        for pass in passes {
            let count = |made: &Made| made.rewrites.get(pass).copied().unwrap_or(0);
            match (count(locked), count(self)) {
                (was, is) if was == is => {}
                (was, 0) => against.push(format!("{pass} no longer fires ({was} rewrites before)")),
                (was, is) => against.push(format!("{pass}: {was} -> {is} rewrites")),
            }
        }
        if self.structure != locked.structure {
            let (was, is) = (&locked.structure, &self.structure);
            let nodes = match locked.nodes == self.nodes {
                true => format!("{} operators as before", self.nodes),
                false => format!("{} -> {} operators", locked.nodes, self.nodes),
            };
            against.push(format!("the result has another structure: {was:.12} -> {is:.12}, {nodes}"));
        }
        let sizes = |made: &Made| {
            let list: Vec<String> = made.sizes.iter().map(|(name, size)| format!("{name}={size}")).collect();
            if list.is_empty() { "none".to_string() } else { list.join(", ") }
        };
        if self.sizes != locked.sizes {
            against.push(format!("peaks are for other sizes: {} -> {}", sizes(locked), sizes(self)));
            return (against, notes);
        }
        let shown = |bytes: u64| format!("{bytes} bytes");
        match (locked.peak, self.peak) {
            (Some(was), Some(is)) if is > was => {
                against.push(format!(
                    "the predicted peak grew: {} -> {} ({})",
                    shown(was),
                    shown(is),
                    change(was, is)
                ));
            }
            (Some(was), Some(is)) if is < was => {
                notes.push(format!(
                    "the predicted peak fell: {} -> {} ({})",
                    shown(was),
                    shown(is),
                    change(was, is)
                ));
            }
            (Some(was), None) => {
                against.push(format!("the predicted peak is no longer known (it was {})", shown(was)))
            }
            (None, Some(is)) => notes.push(format!("the predicted peak is known now: {}", shown(is))),
            _ => {}
        }
        let bound = |bound: Option<u64>| bound.map_or_else(|| "unknown".to_string(), shown);
        if self.lower_bound != locked.lower_bound {
            notes.push(format!(
                "the lower bound: {} -> {}",
                bound(locked.lower_bound),
                bound(self.lower_bound)
            ));
        }
        (against, notes)
    }
}

fn change(was: u64, is: u64) -> String {
    format!("{:+.1} %", (is as f64 / was.max(1) as f64 - 1.0) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Made {
        let map = |list: &[(&str, u64)]| list.iter().map(|(name, n)| (name.to_string(), *n)).collect();
        Made {
            structure: "0123456789abcdef".into(),
            nodes: 10,
            original_peak: Some(2000),
            peak: Some(1000),
            lower_bound: Some(900),
            sizes: map(&[("N", 2)]),
            rewrites: map(&[("drop-dead", 1), ("fuse-scaled-sum", 4)]),
            sites: BTreeMap::from([("y".to_string(), "stack-sum, 3 terms, rewritten".to_string())]),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dmopt.lock");
        assert_eq!(Lock::read(&path).unwrap(), Lock::default());
        let entry = Entry {
            content: "sha256:00".into(),
            data: BTreeMap::from([("w \"1\".bin".to_string(), "sha256:11".to_string())]),
            targets: BTreeMap::from([("portable".to_string(), made())]),
        };
        let lock = Lock { models: BTreeMap::from([("a b/ä.onnx".to_string(), entry)]), ..Lock::default() };
        lock.write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), lock);
    }

    #[test]
    fn a_damaged_lock_file_is_refused_with_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dmopt.lock");
        std::fs::write(&path, "version = 1\n[models\n").unwrap();
        let reason = Lock::read(&path).unwrap_err().to_string();
        assert!(reason.contains("dmopt.lock: line 2: "), "{reason}");
        std::fs::write(&path, "version = 7\n").unwrap();
        assert!(Lock::read(&path).unwrap_err().to_string().contains("version 7"));
    }

    #[test]
    fn what_got_worse_counts_and_what_got_better_is_a_note() {
        assert_eq!(made().compare(&made()), (vec![], vec![]));
        let mut worse = made();
        worse.peak = Some(1100);
        worse.rewrites.remove("fuse-scaled-sum");
        worse.sites.insert("y".into(), "stack-sum, 3 terms, left alone: no".into());
        worse.structure = "fedcba9876543210".into();
        worse.nodes = 14;
        assert_eq!(
            worse.compare(&made()),
            (
                vec![
                    "mixing site y: stack-sum, 3 terms, rewritten -> stack-sum, 3 terms, left alone: no"
                        .to_string(),
                    "fuse-scaled-sum no longer fires (4 rewrites before)".to_string(),
                    "the result has another structure: 0123456789ab -> fedcba987654, 10 -> 14 operators"
                        .to_string(),
                    "the predicted peak grew: 1000 bytes -> 1100 bytes (+10.0 %)".to_string(),
                ],
                vec![]
            )
        );
        let better = Made { peak: Some(950), ..made() };
        assert_eq!(
            better.compare(&made()),
            (vec![], vec!["the predicted peak fell: 1000 bytes -> 950 bytes (-5.0 %)".to_string()])
        );
        let elsewhere = Made { sizes: BTreeMap::from([("N".to_string(), 4)]), peak: Some(3000), ..made() };
        assert_eq!(elsewhere.compare(&made()).0, ["peaks are for other sizes: N=2 -> N=4"]);
    }
}
