//! Compares the console's reports with the model after each step.

use super::*;

impl World<'_, '_> {
    /// Compares what the host shows with the model.
    pub(super) fn compare(&mut self) {
        let list = self.operator.succeed("td list");
        let mut tds: Vec<_> = self.model.tds.iter().collect();
        tds.sort_by_key(|(_, td)| td.id);
        let shown = list["tds"].as_array().unwrap();
        assert_eq!(shown.len(), tds.len(), "{list}");
        for ((name, td), shown) in tds.iter().zip(shown) {
            let in_force = if td.state.lives() {
                &td.built
            } else {
                &td.defined
            };
            assert_eq!(shown["id"], td.id, "{list}");
            assert_eq!(shown["name"], **name, "{list}");
            assert_eq!(shown["state"], td.state.name(), "{list}");
            assert_eq!(shown["vcpus"], in_force.vcpus, "{list}");
            assert_eq!(shown["memory_bytes"], in_force.memory << 20, "{list}");
        }
        for (name, td) in self.model.tds.clone() {
            self.compare_one(name, &td);
        }
        let list = self.operator.succeed("file list");
        let mut files: Vec<_> = self
            .model
            .files
            .iter()
            .map(|(name, content)| (*name, content.len(), None))
            .collect();
        let uploads = self.model.uploads.iter();
        files.extend(
            uploads.map(|(name, upload)| (*name, upload.content.len(), Some(upload.written))),
        );
        files.push(("image", self.server.image.len(), None));
        files.sort_unstable();
        let shown = list["files"].as_array().unwrap();
        assert_eq!(shown.len(), files.len(), "{list}");
        for ((name, bytes, written), shown) in files.iter().zip(shown) {
            assert_eq!(shown["name"], *name, "{list}");
            assert_eq!(shown["bytes"], *bytes, "{list}");
            assert_eq!(shown["arrived_bytes"], Value::from(*written), "{list}");
            assert_eq!(
                shown["from"],
                if *name == "image" { "boot" } else { "put" },
                "{list}"
            );
        }
        self.compare_configuration();
        self.compare_memory(&files);
    }

    pub(super) fn compare_one(&mut self, name: &str, td: &ModelTd) {
        let shown = self.operator.succeed(&format!("td show {name}"));
        assert_eq!(shown["shares"], td.defined.shares, "{shown}");
        assert_eq!(shown["cap"], Value::from(td.defined.cap), "{shown}");
        let functions = shown["pci"].as_array().unwrap().iter();
        let functions: Vec<_> = functions.map(|function| &function["address"]).collect();
        assert_eq!(functions, td.defined.pci, "{shown}");
        let mut pending = Vec::new();
        if td.state.lives() {
            let (new, old) = (&td.defined, &td.built);
            let keys = [
                ("image", new.image != old.image),
                ("memory", new.memory != old.memory),
                ("vcpus", new.vcpus != old.vcpus),
            ];
            pending.extend(keys.into_iter().filter(|key| key.1).map(|key| key.0));
        }
        assert_eq!(shown["pending"], Value::from(pending), "{shown}");
        let said = shown["shutdown"].as_str().unwrap_or_default();
        match (td.state, td.asked, td.is_overdue) {
            (State::Runnable, Some((_, force)), _) => {
                assert!(said.starts_with("asked for; the guest has "), "{shown}");
                assert_eq!(said.ends_with(", then it is terminated"), force, "{shown}");
            }
            (State::Runnable, None, true) => {
                assert_eq!(said, "asked for; the guest did not follow within 0 s");
            }
            _ => assert_eq!(said, "", "{shown}"),
        }
    }

    /// Checks that the configuration that is shown would define the same TDs.
    pub(super) fn compare_configuration(&mut self) {
        let shown = self.operator.succeed("config show");
        let toml = shown["toml"].as_str().unwrap();
        // The image was loaded at boot, by a [[file]] that this host does not have.
        let toml = format!("{toml}[[file]]\nname = \"image\"\npath = \"image\"\n");
        let config = config::parse(toml.as_bytes()).unwrap();
        assert_eq!(config.td.len(), self.model.tds.len());
        for td in &config.td {
            let known = &self.model.tds[&*td.name].defined;
            let shown = Definition {
                image: td.image.clone().unwrap(),
                memory: td.memory >> 20,
                vcpus: td.vcpus.into(),
                shares: td.shares.into(),
                cap: td.cap.map(u64::from),
                pci: (known.pci.iter().copied())
                    .filter(|own| td.pci.iter().any(|pci| pci.device.to_string() == *own))
                    .collect(),
            };
            assert_eq!(td.pci.len(), known.pci.len(), "{toml}");
            assert_eq!(shown, *known, "{toml}");
        }
        assert_eq!(config.file.len(), self.model.files.len() + 1, "{toml}");
    }

    /// Checks that only files have memory when no TD has any.
    pub(super) fn compare_memory(&self, files: &[(&str, usize, Option<usize>)]) {
        if self.model.tds.values().any(|td| td.state.lives()) {
            return;
        }
        let put = files.iter().filter(|file| file.0 != "image");
        let bytes: u64 = put.map(|file| (file.1 as u64).next_multiple_of(4096)).sum();
        assert_eq!(self.server.rig.out(), (bytes, 0));
        assert_eq!(self.server.hkids(), (0, 0));
    }
}
