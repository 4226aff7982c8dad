//! Which ONNX Runtime libraries there are on this machine.
//!
//! Nothing here binds the process to a library: each is opened beside the others, asked for its version and its
//! execution providers, and closed.

use std::collections::HashSet;
use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use ort::sys::{ORT_API_VERSION, OrtApi, OrtApiBase};

/// Where a library was found, in the order in which the places are searched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Named by the caller (`--ort-lib`).
    Option,
    /// The environment variable `ORT_DYLIB_PATH`.
    Variable,
    /// A Python package: `DMOPT_PYTHON`, the active virtual environment, `python3` on the path.
    Python,
    /// A folder of the system's loader.
    System,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Option => "--ort-lib",
            Origin::Variable => "ORT_DYLIB_PATH",
            Origin::Python => "Python package",
            Origin::System => "system",
        })
    }
}

/// A library, and what it says of itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Candidate {
    /// The file.
    pub path: PathBuf,
    /// Where it was found.
    pub origin: Origin,
    /// Version and execution providers, or why the library cannot be used.
    pub library: Result<Library, String>,
}

/// What a library says of itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Library {
    /// Version, as `1.32.0`.
    pub version: String,
    /// Execution providers that it was built with. That one is listed does not mean that what it needs (drivers,
    /// libraries, a device) is there.
    pub providers: Vec<String>,
}

impl Candidate {
    fn new(path: PathBuf, origin: Origin) -> Candidate {
        let library = inspect(&path);
        Candidate { path, origin, library }
    }
}

/// Every library on this machine, the ones to prefer first: `explicit`, `ORT_DYLIB_PATH`, the `onnxruntime` package
/// of the active Python, the system's library folders.
pub fn discover(explicit: Option<&Path>) -> Vec<Candidate> {
    let variable = std::env::var_os("ORT_DYLIB_PATH").filter(|v| !v.is_empty()).map(PathBuf::from);
    let places = explicit
        .map(|path| (path.to_owned(), Origin::Option))
        .into_iter()
        .chain(variable.map(|path| (path, Origin::Variable)))
        .chain(python_packages().map(|path| (path, Origin::Python)))
        .chain(system_libraries().map(|path| (path, Origin::System)));
    let mut seen = HashSet::new();
    places
        .filter(|(path, _)| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())))
        .map(|(path, origin)| Candidate::new(path, origin))
        .collect()
}

/// The library to use: the [preferred] one of those that are found.
///
/// # Errors
/// See [`preferred`].
pub fn choose(explicit: Option<&Path>) -> Result<Candidate, String> {
    preferred(&discover(explicit)).cloned()
}

/// The library that the caller or `ORT_DYLIB_PATH` names, whatever it is, or else the first that is new enough.
///
/// # Errors
/// One sentence: nothing was found, or why nothing of what was found can be used.
pub fn preferred(found: &[Candidate]) -> Result<&Candidate, String> {
    let named = found.iter().find(|c| matches!(c.origin, Origin::Option | Origin::Variable));
    let usable = || found.iter().find(|c| c.library.is_ok());
    let Some(choice) = named.or_else(usable).or(found.first()) else {
        return Err("no ONNX Runtime library was found; `pip install onnxruntime` provides one".to_string());
    };
    match &choice.library {
        Ok(_) => Ok(choice),
        Err(reason) => Err(format!("{} ({}): {reason}", choice.path.display(), choice.origin)),
    }
}

/// Opens a library beside whatever the process uses, and asks it for its version and execution providers.
///
/// # Errors
/// One sentence: the library does not load, is no ONNX Runtime, or is too old.
pub fn inspect(path: &Path) -> Result<Library, String> {
    // SAFETY: running the initializers of a library that the user points to, or installed, is what was asked for.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| dlopen_reason(&e))?;
    // SAFETY: the symbol has this signature in every release of ONNX Runtime.
    let base = unsafe { library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0") }
        .map_err(|_| "this is no ONNX Runtime library (OrtGetApiBase is missing)".to_string())?;
    // SAFETY: it takes nothing and returns a pointer to a static table, or null.
    let base = unsafe { base().as_ref() }.ok_or("OrtGetApiBase gave no interface")?;
    // SAFETY: the table is valid as long as the library is open; the text is static.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) }.to_string_lossy().into_owned();
    if !new_enough(&version) {
        return Err(format!("version {version} is too old; 1.{ORT_API_VERSION} or later is needed"));
    }
    // SAFETY: as above; the interface of this number is a static table, or null where the library lacks it.
    let api = unsafe { (base.GetApi)(ORT_API_VERSION).as_ref() }
        .ok_or_else(|| format!("version {version} has no interface of number {ORT_API_VERSION}"))?;
    let providers = available_providers(api)?;
    Ok(Library { version, providers })
}

/// The dynamic loader's own words: libloading's message has them only as its source.
fn dlopen_reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| source.to_string())
}

fn new_enough(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (1, ORT_API_VERSION)
}

fn available_providers(api: &OrtApi) -> Result<Vec<String>, String> {
    let (mut names, mut count): (*mut *mut c_char, c_int) = (ptr::null_mut(), 0);
    // SAFETY: both pointers are valid for writing; on success `names` is an array of `count` strings, which is
    // copied and given back through the function that belongs to it.
    unsafe {
        let status = (api.GetAvailableProviders)(&mut names, &mut count);
        if !status.0.is_null() {
            (api.ReleaseStatus)(status.0);
            return Err("the library does not list its execution providers".to_string());
        }
        let list = (0..usize::try_from(count).unwrap_or(0))
            .map(|i| CStr::from_ptr(*names.add(i)).to_string_lossy().into_owned())
            .collect();
        let status = (api.ReleaseAvailableProviders)(names, count);
        if !status.0.is_null() {
            (api.ReleaseStatus)(status.0);
        }
        Ok(list)
    }
}

/// Libraries inside the `onnxruntime` package (every distribution of it installs under this name) of the Pythons
/// that are active.
fn python_packages() -> impl Iterator<Item = PathBuf> {
    let chosen = std::env::var_os("DMOPT_PYTHON").map(PathBuf::from);
    let virtual_environment = std::env::var_os("VIRTUAL_ENV").map(|root| {
        let root = PathBuf::from(root);
        if cfg!(windows) { root.join("Scripts/python.exe") } else { root.join("bin/python") }
    });
    let default = PathBuf::from(if cfg!(windows) { "python" } else { "python3" });
    chosen
        .into_iter()
        .chain(virtual_environment)
        .chain([default])
        .filter_map(|python| package_folder(&python))
        .flat_map(|package| libraries_in(&package.join("capi")))
}

/// Folder of the package, without importing it: an import would run it, and can fail where the library loads.
fn package_folder(python: &Path) -> Option<PathBuf> {
    const ASK: &str = "import importlib.util as u; s = u.find_spec('onnxruntime'); \
                       print(s.submodule_search_locations[0] if s and s.submodule_search_locations else '')";
    let output = Command::new(python).args(["-c", ASK]).output().ok().filter(|o| o.status.success())?;
    let folder = String::from_utf8(output.stdout).ok()?;
    Some(folder.trim()).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// Folders of the dynamic loader: `LD_LIBRARY_PATH`, what `ldconfig` knows, and the usual ones elsewhere.
fn system_libraries() -> impl Iterator<Item = PathBuf> {
    let variable = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&variable).collect();
    folders.extend(["/usr/local/lib", "/opt/homebrew/lib"].map(PathBuf::from));
    let cached = Command::new("ldconfig").arg("-p").output().map(|o| o.stdout).unwrap_or_default();
    let cached = in_loader_cache(&String::from_utf8_lossy(&cached));
    folders.into_iter().flat_map(|folder| libraries_in(&folder)).chain(cached)
}

/// Paths of ONNX Runtime in the output of `ldconfig -p`, whose lines are `name (kind) => path`.
fn in_loader_cache(listing: &str) -> Vec<PathBuf> {
    listing
        .lines()
        .filter_map(|line| line.split_once(" => "))
        .filter(|(name, _)| is_library(name.split_whitespace().next().unwrap_or_default()))
        .map(|(_, path)| PathBuf::from(path.trim()))
        .collect()
}

/// ONNX Runtime libraries in a folder, in the order of their names.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_str().is_some_and(is_library)).map(|e| e.path()).collect();
    found.sort();
    found
}

/// `libonnxruntime.so`, `libonnxruntime.so.1.32.0`, `libonnxruntime.1.32.0.dylib`, `onnxruntime.dll`; not the
/// libraries of single execution providers beside them.
fn is_library(name: &str) -> bool {
    let Some(rest) =
        name.strip_prefix(std::env::consts::DLL_PREFIX).and_then(|n| n.strip_prefix("onnxruntime"))
    else {
        return false;
    };
    let suffix = std::env::consts::DLL_SUFFIX;
    rest.starts_with(&format!("{suffix}.")) || (rest.ends_with(suffix) && !rest.starts_with('_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn libraries_are_told_from_their_neighbours() {
        for name in ["libonnxruntime.so", "libonnxruntime.so.1", "libonnxruntime.so.1.32.0"] {
            assert!(is_library(name), "{name}");
        }
        for name in ["libonnxruntime_providers_cuda.so", "onnxruntime.dll", "libonnx.so", ""] {
            assert!(!is_library(name), "{name}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_loader_cache_is_read() {
        let listing = "2 libs found in cache `/etc/ld.so.cache'\n\
                       \tlibonnxruntime.so.1 (libc6,x86-64) => /usr/lib/libonnxruntime.so.1\n\
                       \tlibz.so.1 (libc6,x86-64) => /lib/libz.so.1\n";
        assert_eq!(in_loader_cache(listing), [PathBuf::from("/usr/lib/libonnxruntime.so.1")]);
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert!(new_enough("1.24.4") && new_enough("1.100.0") && new_enough("2.0.0"));
        assert!(!new_enough("1.9.0") && !new_enough("1.23.2") && !new_enough("nonsense"));
    }

    #[test]
    fn a_file_that_is_no_library_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so");
        std::fs::write(&path, "text").unwrap();
        let reason = inspect(&path).unwrap_err();
        assert!(reason.contains("libonnxruntime.so"), "{reason}");
        let reason = choose(Some(&path)).unwrap_err();
        assert!(reason.contains("(--ort-lib)"), "{reason}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn another_library_is_no_onnx_runtime() {
        assert_eq!(
            inspect(Path::new("libc.so.6")).unwrap_err(),
            "this is no ONNX Runtime library (OrtGetApiBase is missing)"
        );
    }
}
