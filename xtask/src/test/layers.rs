//! Rules that the compiler does not check: portable crates do not depend on the machine, and modules import in one
//! direction.
//!
//! The submodules of a module must not import each other in cycles. A module and its own submodules may.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{build, workspace};

/// Crates that must run on any machine.
const PORTABLE: &[&str] = &[
    "sync", "config", "td-acpi", "tdvf", "mm", "devices", "virtio", "vcpu", "host", "console",
    "mca", "uart", "crashlog", "vtd", "io",
];
/// Crates that depend on the machine, its firmware or its devices.
const METAL: &[&str] = &[
    "acpi",
    "boot",
    "hypervisor",
    "linked_list_allocator",
    "uefi",
    "x86_64",
];
/// Crates without any unsafe code.
const SAFE: &[&str] = &[
    "vcpu/devices",
    "vcpu/virtio",
    "boot/config",
    "firmware/acpi",
    "firmware/tdvf",
    "hypervisor/host",
    "hypervisor/console",
    "hypervisor/mca",
    "hypervisor/crashlog",
    "hypervisor/uart",
    "hypervisor/vtd",
    "hypervisor/io",
];
/// Source folders whose modules are checked.
const SOURCES: &[&str] = &[
    "firmware/acpi/src",
    "vcpu/devices/src",
    "vcpu/virtio/src",
    "hypervisor/host/src",
    "hypervisor/console/src",
    "hypervisor/mca/src",
    "hypervisor/crashlog/src",
    "hypervisor/uart/src",
    "hypervisor/vtd/src",
    "hypervisor/io/src",
    "hypervisor/src",
    "mm/src",
    "vcpu/src",
    "stub/rom/src",
];

/// Checks all rules.
///
/// # Errors
/// The violations, one line for each.
pub fn check() -> Result<()> {
    let mut found = metal_in_portable(&metadata()?)?;
    for folder in SAFE {
        let root = format!("{folder}/src/lib.rs");
        let text = fs::read_to_string(workspace::root().join(&root))?;
        if !text.contains("#![forbid(unsafe_code)]") {
            found.push(format!("{root} does not forbid unsafe code"));
        }
    }
    for folder in SOURCES {
        let modules = Modules::read(&workspace::root().join(folder))?;
        let circles = modules.circles().into_iter();
        found.extend(circles.map(|circle| format!("{folder}: {circle}")));
    }
    ensure!(found.is_empty(), "\n{}", found.join("\n"));
    Ok(())
}

fn metadata() -> Result<Value> {
    let output = Command::new(workspace::cargo())
        .current_dir(workspace::root())
        .args(["metadata", "--format-version", "1", "--offline"])
        .args(["--filter-platform", build::TARGET])
        .output()
        .context("can't start cargo")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Returns the portable crates that depend on the machine, and the path of the dependency.
fn metal_in_portable(metadata: &Value) -> Result<Vec<String>> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = list(&metadata["packages"]);
    let names: BTreeMap<_, _> = packages
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let mut needs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let deps = list(&node["deps"]);
        let is_normal = |dep: &&Value| {
            list(&dep["dep_kinds"])
                .iter()
                .any(|kind| kind["kind"].is_null())
        };
        let normal = deps.iter().filter(is_normal);
        let needed = normal.filter_map(|dep| names.get(dep["pkg"].as_str()?).cloned());
        let name = names.get(&text(&node["id"])).cloned().unwrap_or_default();
        needs.entry(name).or_default().extend(needed);
    }
    let mut found = Vec::new();
    for &name in PORTABLE {
        ensure!(needs.contains_key(name), "there is no crate {name}");
        let mut ways = vec![vec![name]];
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop() {
            let last = way[way.len() - 1];
            if METAL.contains(&last) {
                found.push(format!(
                    "a portable crate depends on the metal: {}",
                    way.join(" -> ")
                ));
                continue;
            }
            for next in needs.get(last).into_iter().flatten() {
                if seen.insert(next) {
                    ways.push(way.iter().copied().chain([&**next]).collect());
                }
            }
        }
    }
    Ok(found)
}

/// The path of a module in its crate.
type ModulePath = Vec<String>;

/// The modules of a crate, each with the modules that its file names.
struct Modules(BTreeMap<ModulePath, BTreeSet<ModulePath>>);

impl Modules {
    /// Reads all modules below a folder, except for tests.
    fn read(folder: &Path) -> Result<Self> {
        let mut texts = BTreeMap::new();
        collect(folder, &mut Vec::new(), &mut texts)?;
        Ok(Self::of(&texts))
    }

    fn of(texts: &BTreeMap<ModulePath, String>) -> Self {
        let module = |path: &[String]| {
            let lengths = (0..=path.len()).rev();
            let mut prefixes = lengths.map(|length| path[..length].to_vec());
            prefixes.find(|prefix| texts.contains_key(prefix))
        };
        let uses = |(own, text): (&ModulePath, &String)| {
            let named = named(own, text);
            let used = named.iter().filter_map(|path| module(path)).collect();
            (own.clone(), used)
        };
        Self(texts.iter().map(uses).collect())
    }

    /// Returns the cycles between the submodules of each module.
    fn circles(&self) -> Vec<String> {
        // For each module: the submodules that import others, and the files that do so.
        let mut parts: BTreeMap<&[String], BTreeMap<&str, BTreeMap<&str, String>>> =
            BTreeMap::new();
        for (from, all) in &self.0 {
            for to in all {
                let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
                let (Some(importer), Some(imported)) = (from.get(common), to.get(common)) else {
                    continue;
                };
                let why = format!("{} imports {}", from.join("::"), to.join("::"));
                let of = parts.entry(&from[..common]).or_default();
                of.entry(importer)
                    .or_default()
                    .entry(imported)
                    .or_insert(why);
            }
        }
        let mut circles = Vec::new();
        for edges in parts.values() {
            for (from, all) in edges {
                for (to, why) in all {
                    if reaches(edges, to, from) {
                        circles.push(format!("in a circle: {why}"));
                    }
                }
            }
        }
        circles
    }
}

/// Returns true if `from` imports `to`, directly or indirectly.
fn reaches<T>(edges: &BTreeMap<&str, BTreeMap<&str, T>>, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut left = vec![from];
    while let Some(part) = left.pop() {
        if part == to {
            return true;
        }
        if seen.insert(part) {
            left.extend(edges.get(part).into_iter().flat_map(BTreeMap::keys));
        }
    }
    false
}

fn collect(
    folder: &Path,
    path: &mut ModulePath,
    texts: &mut BTreeMap<ModulePath, String>,
) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("can't read {}", folder.display()))?;
    for entry in entries {
        let file = entry?.path();
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        if name == "tests" || name == "main" {
            continue;
        }
        if file.is_dir() {
            path.push(name.into_owned());
            collect(&file, path, texts)?;
            path.pop();
        } else if file.extension().is_some_and(|extension| extension == "rs") {
            let mut own = path.clone();
            if !matches!(&*name, "mod" | "lib") {
                own.push(name.into_owned());
            }
            texts.insert(own, fs::read_to_string(&file)?);
        }
    }
    Ok(())
}

/// Returns the paths in the module `own` that begin with `crate` or `super`, as seen from the crate's root.
fn named(own: &[String], text: &str) -> Vec<ModulePath> {
    let code = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let code: String = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = Vec::new();
    for word in ["crate::", "super::"] {
        for (at, _) in code.match_indices(word) {
            // Part of another path or name.
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let mut rest = &code[at..];
            tree(&mut rest, &mut Vec::new(), &mut found);
        }
    }
    found
        .iter()
        .filter_map(|path| absolute(own, path))
        .collect()
}

/// Resolves a path such as `super::super::a::B` from the crate's root.
fn absolute(own: &[String], path: &[String]) -> Option<ModulePath> {
    let supers = path.iter().take_while(|word| *word == "super").count();
    let base = match path.first()?.as_str() {
        "crate" => &[],
        _ => &own[..own.len().checked_sub(supers)?],
    };
    let rest = &path[supers.max(1)..];
    Some(base.iter().chain(rest).cloned().collect())
}

/// Reads a path, which may branch in braces, from the start of `text`, and adds each of its branches to `found`.
fn tree(text: &mut &str, before: &mut ModulePath, found: &mut Vec<ModulePath>) {
    let depth = before.len();
    loop {
        *text = text.trim_start();
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
        let (word, rest) = text.split_at(end.unwrap_or(text.len()));
        if word.is_empty() {
            break;
        }
        before.push(word.to_owned());
        *text = rest;
        let Some(after) = rest.strip_prefix("::") else {
            break;
        };
        *text = after;
        if let Some(mut inner) = after.strip_prefix('{') {
            loop {
                tree(&mut inner, before, found);
                inner = inner.trim_start();
                match inner.strip_prefix(',') {
                    Some(next) => inner = next,
                    None => break,
                }
            }
            *text = inner.strip_prefix('}').unwrap_or(inner);
            before.truncate(depth);
            return;
        }
    }
    if before.len() > depth {
        found.push(before.clone());
    }
    // Skips the new name of a renamed import.
    if let Some(renamed) = text.strip_prefix(" as ") {
        let end = renamed.find(|c: char| !c.is_alphanumeric() && c != '_');
        *text = &renamed[end.unwrap_or(renamed.len())..];
    }
    before.truncate(depth);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ModulePath {
        let words = text.split("::").filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    }

    fn modules(texts: &[(&str, &str)]) -> Modules {
        let texts = texts
            .iter()
            .map(|(own, text)| (path(own), (*text).to_owned()));
        Modules::of(&texts.collect())
    }

    #[test]
    fn use_trees_are_taken_apart() {
        let text = "use crate::{a::{self, b::C as D}, e, f::*};\nuse super::g::h;\nlet x = crate::i::J { k };\n\
                    // crate::not::this\nmycrate::nor::that; x::crate::nor";
        let found: Vec<_> = named(&path("m::n"), text)
            .iter()
            .map(|path| path.join("::"))
            .collect();
        assert_eq!(found, ["a::self", "a::b::C", "e", "f", "i::J", "m::g::h"]);
    }

    #[test]
    fn parts_of_a_module_must_not_import_each_other_in_circles() {
        let clear = [("", ""), ("a", "use crate::b::X;"), ("b", "")];
        assert_eq!(modules(&clear).circles(), [""; 0]);
        let circle = [
            ("", ""),
            ("a::x", "use crate::b::X;"),
            ("a", ""),
            ("b::y", "use crate::c;"),
            ("b", ""),
            ("c", "use crate::a::x;"),
        ];
        let found = modules(&circle).circles();
        let expected = [
            "in a circle: a::x imports b",
            "in a circle: b::y imports c",
            "in a circle: c imports a::x",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_module_and_its_parts_may_import_each_other() {
        let texts = [
            ("a", "use crate::a::b::C;"),
            ("a::b", "use super::D; use crate::E;"),
            ("", "use crate::a::D;"),
        ];
        assert_eq!(modules(&texts).circles(), [""; 0]);
    }

    #[test]
    fn metal_is_found_behind_other_crates() {
        let package = |name: &str| serde_json::json!({"id": name, "name": name});
        let node = |name: &str, needs: &[(&str, Option<&str>)]| {
            let deps = needs.iter().map(
                |(name, kind)| serde_json::json!({"pkg": name, "dep_kinds": [{"kind": kind}]}),
            );
            serde_json::json!({"id": name, "deps": deps.collect::<Vec<_>>()})
        };
        let others = PORTABLE.iter().filter(|name| **name != "host");
        let mut nodes: Vec<_> = others
            .clone()
            .map(|name| node(name, &[("x86_64", Some("dev"))]))
            .collect();
        nodes.push(node("host", &[("between", None)]));
        nodes.push(node("between", &[("x86_64", None)]));
        let names = PORTABLE.iter().chain(&["between", "x86_64"]);
        let metadata = serde_json::json!({
            "packages": names.map(|name| package(name)).collect::<Vec<_>>(),
            "resolve": {"nodes": nodes},
        });
        let found = metal_in_portable(&metadata).unwrap();
        assert_eq!(
            found,
            ["a portable crate depends on the metal: host -> between -> x86_64"]
        );
    }
}
