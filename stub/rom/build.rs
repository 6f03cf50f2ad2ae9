//! Passes the linker the script that places the code of every world switch together.

fn main() {
    println!("cargo::rerun-if-changed=hot.ld");
    // Read at run time, so that a checkout can move together with its build output.
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    println!("cargo::rustc-link-arg-bin=seamstub=-Wl,-T,{here}/hot.ld");
}
