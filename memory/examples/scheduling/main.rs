//! Writes the table of `docs/scheduling.md`: `cargo run --release -p dmopt-memory --example scheduling`.

mod table;

use std::io;
use std::path::Path;

fn main() -> io::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scheduling.md");
    let text = std::fs::read_to_string(&path)?;
    let (before, rest) = text.split_once(table::BEGIN).ok_or_else(|| io::Error::other("no table begins"))?;
    let (_, after) = rest.split_once(table::END).ok_or_else(|| io::Error::other("no table ends"))?;
    let mut rows = String::from(table::HEAD);
    for (name, model) in table::networks() {
        let row = table::row(&name, &model());
        println!("{row}");
        rows = rows + &row + "\n";
    }
    std::fs::write(&path, format!("{before}{}\n{rows}{}{after}", table::BEGIN, table::END))
}
