//! Has the linker put together what runs at every world switch.

fn main() {
    println!("cargo::rerun-if-changed=hot.ld");
    // Asked for when it runs, so that a checkout may move with what was built in it.
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    println!("cargo::rustc-link-arg-bin=seamstub=-Wl,-T,{here}/hot.ld");
}
