//! Asks the mesh one question and prints the answer as it comes, whichever machines give it.
fn main() {}
