//! Has the linker put together what runs at every world switch.

fn main() {
    println!("cargo::rerun-if-changed=hot.ld");
    println!(
        "cargo::rustc-link-arg-bin=seamstub=-Wl,-T,{}/hot.ld",
        env!("CARGO_MANIFEST_DIR")
    );
}
