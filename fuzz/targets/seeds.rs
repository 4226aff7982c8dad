//! Writes what fuzzing starts from: `seeds FOLDER [BACKEND_MODELS]` gives a folder for each target.

#![forbid(unsafe_code)]

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let [folder, models @ ..] = &arguments[..] else {
        return Err(io::Error::other("usage: seeds FOLDER [BACKEND_MODELS]"));
    };
    let seeds = dmopt_fuzz::seeds::all(models.first().map(Path::new))?;
    for seed in &seeds {
        let folder = Path::new(folder).join(seed.target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(&seed.name), &seed.bytes)?;
    }
    println!("{} seeds in {}", seeds.len(), Path::new(folder).display());
    Ok(())
}
