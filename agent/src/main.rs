//! The `unamesh` command.

fn main() {}
