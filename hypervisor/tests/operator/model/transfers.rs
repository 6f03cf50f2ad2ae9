//! Steps that put files and drop them.

use super::*;

impl World<'_, '_> {
    pub(super) fn begin(&mut self) -> (String, Expected) {
        let name = self.any(&FILES);
        let content: Vec<u8> = match self.chance(50) {
            true => self.server.image.clone(),
            false => (0..self.random.usize(1..20_000))
                .map(|i| (i / 3) as u8)
                .collect(),
        };
        let size = match self.random.u32(..20) {
            0 => 0,
            1 => QUOTA + 1,
            _ => content.len() as u64,
        };
        let line = format!("file begin {name} {size}");
        if size == 0 {
            return (line, Err("invalid-argument"));
        }
        if self.model.has_file(name) {
            return (line, Err("exists"));
        }
        // It begins anew, whatever comes of it.
        self.model.uploads.remove(name);
        if self.model.uploads.len() >= 4 || size > QUOTA {
            return (line, Err("no-resources"));
        }
        let upload = Upload {
            content,
            written: 0,
        };
        self.model.uploads.insert(name, upload);
        (
            line,
            Ok(vec![field("bytes", size), field("arrived_bytes", 0)]),
        )
    }

    pub(super) fn put(&mut self) -> (String, Expected) {
        let name = self.any(&FILES);
        let chunk = self.random.usize(1..12_000);
        let wrong = self.random.u32(..20);
        let Some(upload) = self.model.uploads.get_mut(name) else {
            return (format!("file put {name} 0 QUJD"), Err("no-such-file"));
        };
        let offset = upload.written;
        let end = (offset + chunk).min(upload.content.len());
        let mut data = upload.content[offset..end].to_vec();
        let (offset, expected) = match wrong {
            0 => (offset + 1, Err("wrong-content")),
            1 => {
                data = vec![0; upload.content.len() - offset + 1];
                (offset, Err("wrong-content"))
            }
            _ => {
                upload.written = end;
                (offset, Ok(vec![field("arrived_bytes", end)]))
            }
        };
        let mut data = STANDARD.encode(data);
        if wrong == 2 {
            upload.written = offset;
            data.insert(0, '%');
            return (
                format!("file put {name} {offset} {data}"),
                Err("invalid-argument"),
            );
        }
        if data.is_empty() {
            return (format!("file put {name} {offset}"), Err("missing-argument"));
        }
        (format!("file put {name} {offset} {data}"), expected)
    }

    pub(super) fn complete(&mut self) -> (String, Expected) {
        let name = self.any(&FILES);
        let wrong = self.chance(10);
        let Some(upload) = self.model.uploads.get(name) else {
            return (
                format!("file end {name} {}", "0".repeat(64)),
                Err("no-such-file"),
            );
        };
        let mut digest = Sha256::digest(&upload.content);
        if wrong {
            digest[7] ^= 1;
        }
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = format!("file end {name} {digits}");
        if upload.written < upload.content.len() {
            return (line, Err("wrong-content"));
        }
        let upload = self.model.uploads.remove(name).unwrap();
        if wrong {
            return (line, Err("wrong-content"));
        }
        let bytes = upload.content.len();
        self.model.files.insert(name, upload.content);
        (line, Ok(vec![field("bytes", bytes)]))
    }

    pub(super) fn drop_file(&mut self) -> (String, Expected) {
        let name = self.any(&FILES);
        let line = format!("file drop {name}");
        if self.model.uploads.remove(name).is_some() {
            return (line, Ok(vec![field("name", name)]));
        }
        if !self.model.has_file(name) {
            return (line, Err("no-such-file"));
        }
        let mut tds = self.model.tds.values();
        let is_used =
            tds.any(|td| td.defined.image == name || td.state.lives() && td.built.image == name);
        if is_used || name == "image" {
            return (line, Err("wrong-state"));
        }
        self.model.files.remove(name);
        (line, Ok(vec![field("name", name)]))
    }
}
