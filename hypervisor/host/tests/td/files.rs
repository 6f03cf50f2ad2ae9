//! Tests that a TD's files are checked before anything is taken for it.

use host::platform::Platform;
use host::td::files::{Files, Loaded};
use seam::abi::PAGE_4K;
use seam::address::Hpa;

use super::head::head;
use super::kit::{Server, Wired};

const FILES: &str = "[[file]]\nname = \"linux\"\npath = \"vmlinuz\"\n[[file]]\nname = \"root\"\npath = \"root.cpio\"\n";
/// Address of the kernel in the host's memory.
const KERNEL: Hpa = Hpa(2 << 20);
const KERNEL_BYTES: u64 = 11_655_104;

/// Returns the answer to `td start` for a TD of this much memory and with files of these sizes.
fn said(memory: &str, kernel: u64, initrd: Option<u64>) -> String {
    let server = Server::new("");
    server.rig.write(KERNEL, &head());
    let initrd_key = initrd.map_or("", |_| "initrd = \"root\"\n");
    let text = format!(
        "{FILES}[[td]]\nname = \"a\"\nmemory = \"{memory}\"\nvcpus = 4\nkernel = \"linux\"\n{initrd_key}"
    );
    let td = config::parse(text.as_bytes()).unwrap().td.remove(0);
    let files = Files {
        kernel: Some(Loaded {
            hpa: KERNEL,
            bytes: kernel,
        }),
        initrd: initrd.map(|bytes| Loaded {
            hpa: Hpa(KERNEL.0 + kernel.next_multiple_of(PAGE_4K)),
            bytes,
        }),
        ..Files::default()
    };
    let tds = server.tds_of(&server.rig, [(td, files)].into(), &Wired);
    let error = tds.start(1).unwrap_err().to_string();
    server.assert_spotless();
    error
}

#[test]
fn a_td_without_room_for_its_initrd_is_refused_with_the_size_needed() {
    assert_eq!(
        said("64M", KERNEL_BYTES, Some(80_000_000)),
        "memory = \"64M\" is too small: the kernel \"linux\" takes 72 MiB, the initrd \"root\" 77 MiB; set memory = \
         \"150M\" or more"
    );
    assert_eq!(
        said("64M", KERNEL_BYTES, None),
        "memory = \"64M\" is too small: the kernel \"linux\" takes 72 MiB; set memory = \"72M\" or more"
    );
    let enough = said("150M", KERNEL_BYTES, Some(80_000_000));
    assert!(
        enough.starts_with("its image can't be used"),
        "there is no firmware here: {enough}"
    );
    let never = said("64M", KERNEL_BYTES, Some(2 << 30));
    assert!(
        never.starts_with("no amount of memory is enough: ") && never.contains("\"root\" 2048 MiB"),
        "{never}"
    );
}

#[test]
fn an_empty_file_is_named() {
    assert_eq!(
        said("64M", 0, None),
        "its kernel \"linux\" is an empty file"
    );
    assert_eq!(
        said("256M", KERNEL_BYTES, Some(0)),
        "its initrd \"root\" is an empty file"
    );
}
