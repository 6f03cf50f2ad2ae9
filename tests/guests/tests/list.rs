//! Tests that the list of the guests, their programs and the manifest agree.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn each_program_is_listed_and_has_its_entry_in_the_manifest() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let programs: BTreeSet<String> = fs::read_dir(root.join("src/bin"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let listed: BTreeSet<String> = guests::ALL.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(
        listed, programs,
        "guests::ALL in src/lib.rs (left) names every program in src/bin (right)"
    );
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    for name in programs {
        let entry = format!("[[bin]]\nname = \"{name}\"\n");
        assert!(
            manifest.contains(&entry),
            "Cargo.toml needs a [[bin]] for {name}, with required-features = [\"bare\"]"
        );
    }
}
