//! Set-up and chores behind one command.
fn main() {}
