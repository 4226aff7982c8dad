//! Inputs in files: a NumPy archive, or the layout of ONNX's own test data.
//!
//! A folder has `input_0.pb`, `input_1.pb`, ... and maybe `output_0.pb`, ..., each a tensor; or folders
//! `test_data_set_0`, `test_data_set_1`, ... that do. A tensor belongs to the input of its name or, where it has no
//! name or one that the model does not have, to the input of its number.

use std::fs;
use std::path::{Path, PathBuf};

use dmopt_ir::{Dim, Tensor};
use dmopt_runtime::{Named, Port, read_npz};

use crate::{Error, onnx};

/// One set of inputs.
pub(crate) struct Set {
    /// A tensor for every input that needs one.
    pub inputs: Vec<Named>,
    /// What the outputs should be, by name; empty where the files do not say.
    pub expected: Vec<Named>,
}

/// The sets at a path, at least one, each checked against the model's `inputs`.
///
/// # Errors
/// [`Error::Inputs`].
pub(crate) fn read(path: &Path, inputs: &[Port], outputs: &[String]) -> Result<Vec<Set>, Error> {
    if !path.is_dir() {
        let arrays = read_npz(path).map_err(|cause| Error::Inputs(cause.to_string()))?;
        check(path, &arrays, inputs)?;
        return Ok(vec![Set { inputs: arrays, expected: Vec::new() }]);
    }
    let names: Vec<String> = inputs.iter().map(|port| port.name.clone()).collect();
    let sets = sets_in(path)?.into_iter().map(|folder| {
        let found = tensors(&folder, "input", &names)?;
        check(&folder, &found, inputs)?;
        Ok(Set { inputs: found, expected: tensors(&folder, "output", outputs)? })
    });
    sets.collect()
}

/// The folder itself, or its test data sets in the order of their numbers.
fn sets_in(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if path.join("input_0.pb").is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries =
        fs::read_dir(path).map_err(|cause| Error::Io { path: path.into(), action: "list", cause })?;
    let number = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        let number: u64 = name.strip_prefix("test_data_set_")?.parse().ok()?;
        path.is_dir().then(|| (number, path.clone()))
    };
    let mut sets: Vec<(u64, PathBuf)> = entries.flatten().filter_map(|entry| number(entry.path())).collect();
    sets.sort();
    if sets.is_empty() {
        let reason = format!("{}: no input_0.pb and no test_data_set_0 in this folder", path.display());
        return Err(Error::Inputs(reason));
    }
    Ok(sets.into_iter().map(|(_, path)| path).collect())
}

/// `input_0.pb`, ... or `output_0.pb`, ..., as far as they go.
fn tensors(folder: &Path, kind: &str, names: &[String]) -> Result<Vec<Named>, Error> {
    let mut found = Vec::new();
    for i in 0.. {
        let path = folder.join(format!("{kind}_{i}.pb"));
        if !path.exists() {
            break;
        }
        let (name, tensor) = onnx::load_tensor(&path)?;
        let own = names.contains(&name).then_some(name);
        let name = own.or_else(|| names.get(i).cloned()).ok_or_else(|| {
            Error::Inputs(format!("{}: the model has {} {kind}s only", path.display(), names.len()))
        })?;
        found.push((name, tensor));
    }
    Ok(found)
}

/// Every input has exactly one tensor, of its type and rank and of the sizes that are fixed.
fn check(path: &Path, found: &[Named], inputs: &[Port]) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::Inputs(format!("{}: {reason}", path.display())));
    if let Some((name, _)) = found.iter().find(|(name, _)| inputs.iter().all(|port| port.name != *name)) {
        let known: Vec<&str> = inputs.iter().map(|port| port.name.as_str()).collect();
        return refuse(format!("the model has no input named {name} (it has {})", known.join(", ")));
    }
    for port in inputs {
        let mut values = found.iter().filter(|(name, _)| *name == port.name).map(|(_, tensor)| tensor);
        match (values.next(), values.next()) {
            (None, _) => return refuse(format!("there is no value for input {}", port.name)),
            (Some(_), Some(_)) => return refuse(format!("there are two values for input {}", port.name)),
            (Some(tensor), None) if !fits(tensor, port) => {
                return refuse(format!("input {} is {}, not {}", port.name, port.ty, tensor.ty()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn fits(tensor: &Tensor, port: &Port) -> bool {
    let sizes = |shape: &dmopt_ir::Shape| {
        shape.len() == tensor.dims.len()
            && shape.iter().zip(&tensor.dims).all(|(dim, &size)| match dim {
                Dim::Known(known) => *known == size,
                _ => true,
            })
    };
    tensor.dtype == port.ty.dtype && port.ty.shape.as_ref().is_none_or(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::{DType, TensorType};
    use dmopt_onnx::schema::TensorProto;
    use prost::Message;

    fn ports() -> Vec<Port> {
        let port = |name: &str, shape: Vec<Dim>| Port {
            name: name.into(),
            ty: TensorType { dtype: DType::F32, shape: Some(shape.into_iter().collect()) },
        };
        vec![port("a", vec![Dim::Symbol("N".into()), Dim::Known(2)]), port("b", vec![Dim::Known(1)])]
    }

    fn write(path: &Path, name: &str, dims: &[i64]) {
        let bytes = vec![0u8; 4 * dims.iter().product::<i64>() as usize];
        let proto = TensorProto {
            name: (!name.is_empty()).then(|| name.to_string()),
            dims: dims.to_vec(),
            data_type: Some(1),
            raw_data: Some(bytes.into()),
            ..TensorProto::default()
        };
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, proto.encode_to_vec()).unwrap();
    }

    fn reason(path: &Path) -> String {
        read(path, &ports(), &["y".to_string()]).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn tensors_go_by_name_or_else_by_number() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write(&at("input_0.pb"), "b", &[1]);
        write(&at("input_1.pb"), "a", &[5, 2]);
        write(&at("output_0.pb"), "unknown", &[3]);
        let sets = read(folder.path(), &ports(), &["y".to_string()]).unwrap();
        let names: Vec<&str> = sets[0].inputs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, sets[0].expected[0].0.as_str()), (vec!["b", "a"], "y"));
        write(&at("input_0.pb"), "", &[5, 2]);
        write(&at("input_1.pb"), "", &[1]);
        let sets = read(folder.path(), &ports(), &[]).map(|_| ()).unwrap_err().to_string();
        assert!(sets.ends_with("output_0.pb: the model has 0 outputs only"), "{sets}");
        assert_eq!(read(folder.path(), &ports(), &["y".to_string()]).unwrap()[0].inputs[0].0, "a");
    }

    #[test]
    fn sets_come_in_the_order_of_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for (set, batch) in [(10, 3), (9, 2)] {
            write(&folder.path().join(format!("test_data_set_{set}/input_0.pb")), "", &[batch, 2]);
            write(&folder.path().join(format!("test_data_set_{set}/input_1.pb")), "", &[1]);
        }
        let sets = read(folder.path(), &ports(), &[]).unwrap();
        let batches: Vec<u64> = sets.iter().map(|set| set.inputs[0].1.dims[0]).collect();
        assert_eq!(batches, [2, 3]);
    }

    #[test]
    fn what_does_not_fit_the_model_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(reason(folder.path()).ends_with("no input_0.pb and no test_data_set_0 in this folder"));
        write(&at("input_0.pb"), "a", &[5, 2]);
        assert!(reason(folder.path()).ends_with("there is no value for input b"));
        write(&at("input_1.pb"), "a", &[5, 2]);
        assert!(reason(folder.path()).ends_with("there are two values for input a"));
        write(&at("input_1.pb"), "b", &[2]);
        assert!(
            reason(folder.path()).ends_with("input b is float[1], not float[2]"),
            "{}",
            reason(folder.path())
        );
        write(&at("input_2.pb"), "c", &[2]);
        assert!(reason(folder.path()).ends_with("input_2.pb: the model has 2 inputs only"));
        assert!(reason(&at("missing.npz")).contains("missing.npz"));
    }
}
