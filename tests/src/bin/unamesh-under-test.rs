//! The `unamesh` program, built together with the tests that start it.

fn main() {}
