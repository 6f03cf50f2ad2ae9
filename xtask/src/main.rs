//! Everything a developer does with Seamark.

fn main() {}
