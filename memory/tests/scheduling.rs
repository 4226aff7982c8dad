//! The networks of `docs/scheduling.md`. Where a row differs, `cargo run --release -p dmopt-memory --example scheduling`
//! makes the table again.

#[path = "../examples/scheduling/table.rs"]
mod table;

use dmopt_fixtures::nas::{Cells, Genotype};

fn documented() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/scheduling.md")).unwrap_or_default()
}

#[test]
fn documented_rows_are_what_a_search_finds() {
    let text = documented();
    let (name, model) = table::direct_mixing(2, 1, (224, 224));
    let cells = [Genotype::Darts, Genotype::NasNet].map(Cells::image_net);
    let rows = cells.map(|network| table::row(&network.name(), &network.build()));
    for row in rows.into_iter().chain([table::row(&name, &model())]) {
        assert!(text.contains(&row), "not in the table: {row}");
    }
}

#[test]
fn the_table_has_a_row_for_every_network() {
    let text = documented();
    let (_, rest) = text.split_once(table::BEGIN).unwrap();
    let (body, _) = rest.split_once(table::END).unwrap();
    let names =
        body.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | ")).map(|(name, _)| name);
    let expected: Vec<String> = table::networks().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.skip(1).collect::<Vec<_>>(), expected);
    assert!(body.contains(table::HEAD));
}
