//! Steps that define TDs, change them and forget them.

use super::*;

impl World<'_, '_> {
    pub(super) fn define(&mut self) -> (String, Expected) {
        let name = self.any(&NAMES);
        let definition = Definition {
            image: self.any(&FILES).into(),
            memory: self.any(&MEMORIES),
            vcpus: self.random.u64(1..3),
            shares: 100,
            cap: self.chance(30).then_some(50),
            pci: Vec::new(),
        };
        let mut text = format!(
            "name = \"{name}\"\nimage = \"{}\"\nmemory = \"{}M\"\nvcpus = {}\n",
            definition.image, definition.memory, definition.vcpus
        );
        if let Some(cap) = definition.cap {
            text += &format!("cap = {cap}\n");
        }
        let mistake = self.chance(15);
        if mistake {
            text += self.any(&[
                "colour = 1\n",
                "shares = 0\n",
                "this is no TOML\n",
                "[host]\n",
                "max_4k = \"3M\"\n",
                "kernel = \"nowhere\"\n",
                "vcpus = 2\n",
            ]);
        }
        let line = format!("td define {}", serde_json::to_string(&text).unwrap());
        if mistake || !self.model.has_file(&definition.image) {
            return (line, Err("invalid-definition"));
        }
        if self.model.tds.contains_key(name) {
            return (line, Err("exists"));
        }
        self.model.next_id += 1;
        let id = self.model.next_id;
        let td = ModelTd {
            id,
            built: definition.clone(),
            defined: definition,
            state: State::Created,
            asked: None,
            is_overdue: false,
        };
        self.model.tds.insert(name, td);
        (line, Ok(vec![field("id", id), field("state", "created")]))
    }

    pub(super) fn undefine(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let expected = match td {
            None => Err("no-such-td"),
            Some(td) if td.state.lives() => Err("wrong-state"),
            Some(td) => {
                self.model.tds.remove(name);
                Ok(vec![field("id", td.id), field("name", name)])
            }
        };
        (format!("td undefine {word}"), expected)
    }

    pub(super) fn attach_or_detach(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let attaches = self.chance(60);
        let (device, address) = self.any(&[
            ("0000:01:00.0", "0000:01:00.0"),
            ("2:0.0", "0000:02:00.0"),
            ("0000:03:00.0", "0000:03:00.0"),
            ("0000:04:00.0", ""),
            ("0000:05:00.0", ""),
            ("8086:0001", ""),
            ("any", ""),
        ]);
        let verb = if attaches { "attach" } else { "detach" };
        let line = format!("td {verb} {word} {device}");
        let Some(td) = td else {
            return (line, Err("no-such-td"));
        };
        if device == "any" {
            return (line, Err("invalid-argument"));
        }
        let is_refused = attaches && address.is_empty();
        let expected = match device {
            "0000:04:00.0" if is_refused => Err("unsupported"),
            _ if is_refused => Err("invalid-argument"),
            _ if attaches && td.defined.pci.contains(&address) => Err("exists"),
            _ if td.state.lives() => Err("wrong-state"),
            _ if !attaches && !td.defined.pci.contains(&address) => Err("invalid-argument"),
            _ => {
                let pci = &mut self.model.tds.get_mut(name).unwrap().defined.pci;
                if attaches {
                    pci.push(address);
                } else {
                    pci.retain(|own| *own != address);
                }
                Ok(vec![field("name", name)])
            }
        };
        (line, expected)
    }

    pub(super) fn set(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let file = self.any(&FILES);
        let (key, value) = self.any(&[
            ("shares", "200"),
            ("shares", "0"),
            ("cap", "70"),
            ("cap", "default"),
            ("memory", "14M"),
            ("memory", "\"16M\""),
            ("memory", "3M"),
            ("memory", "default"),
            ("vcpus", "2"),
            ("vcpus", "default"),
            ("vcpus", "two"),
            ("image", ""),
            ("image", ""),
            ("image", "default"),
            ("initrd", "image"),
            ("name", "z"),
            ("colour", "1"),
        ]);
        let value = if value.is_empty() { file } else { value };
        let line = format!("td set {word} {key} {value}");
        if td.is_none() {
            return (line, Err("no-such-td"));
        }
        let has_file = self.model.has_file(file);
        let td = self.model.tds.get_mut(name).unwrap();
        let defined = &mut td.defined;
        let applies_now = match (key, value) {
            ("shares", "200") => {
                defined.shares = 200;
                true
            }
            ("cap", value) => {
                defined.cap = value.parse().ok();
                true
            }
            ("memory", "14M" | "\"16M\"") => {
                defined.memory = if value == "14M" { 14 } else { 16 };
                false
            }
            ("vcpus", "2" | "default") => {
                defined.vcpus = if value == "2" { 2 } else { 1 };
                false
            }
            ("image", name) if name != "default" && has_file => {
                defined.image = name.into();
                false
            }
            _ => return (line, Err("invalid-definition")),
        };
        let applies_now = applies_now || !td.state.lives();
        (
            line,
            Ok(vec![field("applies_now", applies_now), field("key", key)]),
        )
    }
}
