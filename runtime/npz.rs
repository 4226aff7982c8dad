//! Inputs from NumPy: `.npz` archives, which hold one `.npy` file for each array.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use dmopt_ir::{DType, Tensor};

use crate::Named;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NpzError {
    /// The file cannot be opened, or is no archive.
    #[error("cannot read {path}: {source}")]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: zip::result::ZipError,
    },
    /// An array cannot be used.
    #[error("array {array} in {path}: {reason}")]
    Array {
        /// The file.
        path: PathBuf,
        /// Name of the array.
        array: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Arrays of an archive, by their names.
///
/// # Errors
/// See [`NpzError`]. Arrays of objects, strings and complex numbers are not read.
pub fn read_npz(path: &Path) -> Result<Vec<Named>, NpzError> {
    let failed = |source| NpzError::Archive { path: path.to_owned(), source };
    let file = File::open(path).map_err(|e| failed(e.into()))?;
    let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(failed)?;
    let mut arrays = Vec::with_capacity(archive.len());
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(failed)?;
        let name = entry.name().map_err(failed)?.into_owned();
        let array = name.strip_suffix(".npy").unwrap_or(&name).to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|e| failed(e.into()))?;
        let tensor = npy(&bytes).map_err(|reason| NpzError::Array {
            path: path.to_owned(),
            array: array.clone(),
            reason,
        })?;
        arrays.push((array, tensor));
    }
    Ok(arrays)
}

/// One array: a magic word, the version of the format, the length of a header, the header (a Python dictionary), and
/// the elements.
fn npy(bytes: &[u8]) -> Result<Tensor, String> {
    let damaged = || "this is no .npy data".to_string();
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or_else(damaged)?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(damaged)?;
    let (length, rest) = if version[0] == 1 {
        let (length, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
        (usize::from(u16::from_le_bytes(*length)), rest)
    } else {
        let (length, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
        (u32::from_le_bytes(*length) as usize, rest)
    };
    let (header, elements) = rest.split_at_checked(length).ok_or_else(damaged)?;
    let header = std::str::from_utf8(header).map_err(|_| damaged())?;
    let field = |name: &str| {
        let (_, value) = header.split_once(&format!("'{name}':")).ok_or_else(damaged)?;
        Ok::<&str, String>(value.trim_start())
    };
    let quoted = field("descr")?.strip_prefix('\'').and_then(|text| text.split('\'').next());
    let kind = quoted.ok_or("it has several fields")?;
    let dims =
        field("shape")?.strip_prefix('(').and_then(|text| text.split(')').next()).ok_or_else(damaged)?;
    let dims: Vec<u64> = dims
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(|size| size.parse().map_err(|_| damaged()))
        .collect::<Result<_, _>>()?;
    let (big_endian, dtype) = dtype(kind).ok_or_else(|| format!("elements of type {kind}"))?;
    let mut elements = elements.to_vec();
    let width = dtype.bits().unwrap_or(8) as usize / 8;
    if big_endian {
        elements.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    }
    if field("fortran_order")?.starts_with("True") {
        elements = last_axis_first(&elements, &dims, width);
    }
    let tensor = Tensor::raw(dtype, dims, elements);
    tensor.bytes().map_err(|e| e.to_string())?;
    Ok(tensor)
}

/// Byte order and element type, from NumPy's letters.
fn dtype(kind: &str) -> Option<(bool, DType)> {
    let big_endian = kind.starts_with('>');
    let dtype = match kind.trim_start_matches(['<', '>', '|', '=']) {
        "f2" => DType::F16,
        "f4" => DType::F32,
        "f8" => DType::F64,
        "i1" => DType::I8,
        "i2" => DType::I16,
        "i4" => DType::I32,
        "i8" => DType::I64,
        "u1" => DType::U8,
        "u2" => DType::U16,
        "u4" => DType::U32,
        "u8" => DType::U64,
        "b1" => DType::Bool,
        _ => return None,
    };
    Some((big_endian, dtype))
}

/// Elements whose first axis varies fastest, put in the order in which the last one does. Data that do not fit the
/// sizes come back as they are.
fn last_axis_first(elements: &[u8], dims: &[u64], width: usize) -> Vec<u8> {
    // Steps of the axes in the source, whose first axis has step 1.
    let steps = dims.iter().scan(1u64, |next, &size| {
        let step = *next;
        *next = next.saturating_mul(size);
        Some(step)
    });
    let axes: Vec<(u64, u64)> = dims.iter().copied().zip(steps).collect();
    let mut ordered = Vec::with_capacity(elements.len());
    for flat in 0..(elements.len() / width) as u64 {
        let (mut rest, mut from) = (flat, 0u64);
        for &(size, step) in axes.iter().rev() {
            from = from.saturating_add((rest % size.max(1)).saturating_mul(step));
            rest /= size.max(1);
        }
        let Some(element) = elements.chunks_exact(width).nth(from as usize) else { return elements.to_vec() };
        ordered.extend_from_slice(element);
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::write::SimpleFileOptions;

    fn array(kind: &str, fortran: bool, shape: &str, elements: &[u8]) -> Vec<u8> {
        let fortran = if fortran { "True" } else { "False" };
        let header = format!("{{'descr': '{kind}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(elements);
        bytes
    }

    #[test]
    fn archives_are_read_stored_and_compressed() {
        for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            let mut archive = zip::ZipWriter::new(&mut file);
            for (name, value) in [("x", 1.5f32), ("a/b", 2.5)] {
                let options = SimpleFileOptions::default().compression_method(method).large_file(true);
                archive.start_file(format!("{name}.npy"), options).unwrap();
                let elements: Vec<u8> = [value; 6].iter().flat_map(|v| v.to_le_bytes()).collect();
                archive.write_all(&array("<f4", false, "(2, 3)", &elements)).unwrap();
            }
            archive.finish().unwrap();
            let arrays = read_npz(file.path()).unwrap();
            assert_eq!(arrays[0], ("x".into(), Tensor::from_f64(DType::F32, vec![2, 3], &[1.5; 6]).unwrap()));
            assert_eq!(arrays[1].0, "a/b");
        }
    }

    #[test]
    fn every_kind_of_number_is_read() {
        assert_eq!(npy(&array("|b1", false, "()", &[1])).unwrap(), Tensor::raw(DType::Bool, vec![], vec![1]));
        let big = npy(&array(">i8", false, "(1,)", &[0, 0, 0, 0, 0, 0, 1, 2])).unwrap();
        assert_eq!(big, Tensor::i64s(&[258]));
        assert_eq!(npy(&array("<f2", false, "(0, 2)", &[])).unwrap().dims, [0, 2]);
    }

    #[test]
    fn arrays_in_fortran_order_are_turned() {
        // [[1, 2, 3], [4, 5, 6]], column by column.
        let turned = npy(&array("|u1", true, "(2, 3)", &[1, 4, 2, 5, 3, 6])).unwrap();
        assert_eq!(turned, Tensor::raw(DType::U8, vec![2, 3], vec![1, 2, 3, 4, 5, 6]));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let reason = |bytes: &[u8]| npy(bytes).unwrap_err();
        assert_eq!(reason(b"text"), "this is no .npy data");
        assert_eq!(reason(&array("<U3", false, "(1,)", &[0; 12])), "elements of type <U3");
        assert_eq!(reason(&array("<f4", false, "(2,)", &[0; 4])), "expected 8 bytes, found 4");
        assert_eq!(reason(&array("|u1", true, "(2, 9)", &[0; 4])), "expected 18 bytes, found 4");
        assert!(
            read_npz(Path::new("nowhere.npz")).unwrap_err().to_string().starts_with("cannot read nowhere")
        );
    }
}
