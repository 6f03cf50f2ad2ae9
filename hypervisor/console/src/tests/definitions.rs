//! Definitions that record what they are asked for.

use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};
use core::cell::RefCell;

use super::pci::DRIVE;
use crate::host::{
    define::*,
    failure::{Code, Failure},
    pci::TdPci,
    td::{TdNow, TdState},
};

/// Files *linux*, which was loaded at boot, and *initrd*, of which half has arrived.
#[derive(Default)]
pub struct Known {
    pub done: RefCell<Vec<String>>,
}

impl Known {
    fn did(&self, what: String) {
        self.done.borrow_mut().push(what);
    }
}

fn now(id: u32) -> TdNow {
    TdNow {
        id,
        name: "hello".into(),
        state: TdState::Runnable,
    }
}

fn part(name: &str, arrived_bytes: u64) -> FilePart {
    FilePart {
        name: name.into(),
        bytes: 8,
        arrived_bytes,
    }
}

fn function(device: &str) -> TdPci {
    TdPci {
        device: device.into(),
        address: Some(DRIVE.into()),
        kind: Some("NVMe drive"),
        owner: Some("formerly hello".into()),
        counts: None,
    }
}

fn linux() -> FileLine {
    FileLine {
        name: "linux".into(),
        bytes: 11_655_104,
        from: "boot",
        arrived_bytes: None,
    }
}

impl Definitions for &Known {
    fn define(&self, text: &str) -> Result<TdDefined, Failure> {
        let names = config::Names {
            is_file: &|name| name == "linux",
            is_network: &|_| false,
        };
        let td = config::read_td(text, &names).map_err(|problems| {
            let lines: Vec<_> = problems.iter().map(|p| format!("line {p}")).collect();
            Code::InvalidDefinition.because(lines.join("; "))
        })?;
        self.did(format!("define {}", td.name));
        Ok(TdDefined {
            id: 3,
            warnings: td.warning(4).into_iter().collect(),
            name: td.name,
            state: TdState::Created,
        })
    }

    fn undefine(&self, id: u32) -> Result<TdForgotten, Failure> {
        self.did(format!("undefine {id}"));
        Ok(TdForgotten {
            id,
            name: "hello".into(),
        })
    }

    fn set(&self, id: u32, key: &str, value: &str) -> Result<TdSet, Failure> {
        self.did(format!("set {id} {key} {value}"));
        Ok(TdSet {
            now: now(id),
            key: key.into(),
            applies_now: key == "cap",
            warnings: vec![],
        })
    }

    fn attach(&self, id: u32, device: &str) -> Result<TdAttached, Failure> {
        self.did(format!("attach {id} {device}"));
        Ok(TdAttached {
            now: now(id),
            function: function(device),
            warnings: match device {
                DRIVE => vec![],
                _ => vec!["TD hello can't start with it now".into()],
            },
        })
    }

    fn detach(&self, id: u32, device: &str) -> Result<TdDetached, Failure> {
        self.did(format!("detach {id} {device}"));
        Ok(TdDetached {
            now: now(id),
            function: function(device),
        })
    }

    fn shut_down(&self, id: u32, limit_s: u32, force: bool) -> Result<TdAsked, Failure> {
        self.did(format!("shutdown {id} {limit_s} {force}"));
        Ok(TdAsked {
            now: now(id),
            listens: !force,
            limit_s,
            force,
        })
    }

    fn definitions(&self) -> Vec<config::Td> {
        let text = "name = \"hello\"\nmemory = \"64M\"\nkernel = \"linux\"\n";
        let names = config::Names {
            is_file: &|_| true,
            is_network: &|_| true,
        };
        config::read_td(text, &names).into_iter().collect()
    }

    fn files(&self) -> Files {
        Files {
            files: vec![
                FileLine {
                    name: "initrd".into(),
                    bytes: 8,
                    from: "put",
                    arrived_bytes: Some(4),
                },
                linux(),
            ],
            quota_bytes: 1 << 30,
            used_bytes: 8,
        }
    }

    fn file(&self, name: &str) -> Result<FileReport, Failure> {
        match name {
            "linux" => Ok(FileReport {
                line: linux(),
                sha256: Some("0f".repeat(32)),
                tds: vec!["hello".into()],
            }),
            _ => Err(Code::NoSuchFile.because("there is no such file")),
        }
    }

    fn begin_file(&self, name: &str, bytes: u64) -> Result<FilePart, Failure> {
        self.did(format!("begin {name} {bytes}"));
        Ok(part(name, 0))
    }

    fn put_file(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<FilePart, Failure> {
        let text = String::from_utf8_lossy(bytes).to_string();
        let text = if bytes.len() > 8 {
            format!("{} bytes", bytes.len())
        } else {
            text
        };
        self.did(format!("put {name} {offset} {text}"));
        Ok(part(name, offset + bytes.len() as u64))
    }

    fn end_file(&self, name: &str, sha256: &[u8; 32]) -> Result<FilePart, Failure> {
        self.did(format!("end {name} {:02x}{:02x}", sha256[0], sha256[31]));
        Ok(part(name, 8))
    }

    fn drop_file(&self, name: &str) -> Result<FilePart, Failure> {
        self.did(format!("drop {name}"));
        Ok(part(name, 0))
    }
}
