//! The table of who may import whom, held against what cargo resolved (docs/ARCHITECTURE.md, invariants 1 and 5).

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::step::root;

/// Each package of the workspace with those that it may import, for building or for testing.
const MAY_IMPORT: [(&str, &[&str]); 9] = [
    ("taffrail-blobstore", &[]),
    ("taffrail-distribution", &["taffrail-blobstore"]),
    ("taffrail-core", &["taffrail-blobstore", "taffrail-distribution"]),
    ("taffrail-jobservice", &["taffrail-blobstore", "taffrail-distribution", "taffrail-core"]),
    (
        "taffrail-server",
        &["taffrail-blobstore", "taffrail-distribution", "taffrail-core", "taffrail-jobservice"],
    ),
    ("taffrail-fsck", &["taffrail-blobstore"]),
    // The tests drive the binary from outside.
    ("taffrail-tests", &[]),
    // The benches drive the binary as the tests do, and the engine alone.
    ("taffrail-benches", &["taffrail-blobstore", "taffrail-tests"]),
    ("xtask", &[]),
];

/// Packages that carry neither HTTP nor SQL nor an async runtime, directly or through others; but see [`EXCEPTED`].
const PLAIN: [&str; 2] = ["taffrail-blobstore", "taffrail-fsck"];

/// What "HTTP, SQL or an async runtime" means.
const NOT_PLAIN: [&str; 11] = [
    "async-std",
    "axum",
    "futures-executor",
    "http",
    "hyper",
    "reqwest",
    "rusqlite",
    "smol",
    "sqlx",
    "tokio",
    "tower",
];

/// The one edge that may lead to an async runtime: `disk/uring.rs`, behind a feature that the server alone asks for.
const EXCEPTED: (&str, &str) = ("taffrail-blobstore", "tokio-uring");

/// What cargo resolved: for each package its dependencies, without those of tests.
struct Graph {
    direct: BTreeMap<String, BTreeSet<String>>,
    members: BTreeSet<String>,
}

impl Graph {
    fn load() -> Result<Graph> {
        let output = Command::new("cargo")
            .args([
                "metadata",
                "--format-version",
                "1",
                "--locked",
                "--filter-platform",
                "x86_64-unknown-linux-gnu",
            ])
            .current_dir(root()?)
            .output()
            .context("running cargo metadata")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Graph::parse(&serde_json::from_slice(&output.stdout)?)
    }

    fn parse(metadata: &Value) -> Result<Graph> {
        let packages = metadata["packages"].as_array().context("packages")?;
        let name_of: BTreeMap<&str, &str> = packages
            .iter()
            .filter_map(|package| Some((package["id"].as_str()?, package["name"].as_str()?)))
            .collect();
        let mut graph = Graph { direct: BTreeMap::new(), members: BTreeSet::new() };
        for id in metadata["workspace_members"].as_array().context("workspace_members")? {
            graph.members.extend(id.as_str().and_then(|id| name_of.get(id)).map(ToString::to_string));
        }
        for node in metadata["resolve"]["nodes"].as_array().context("nodes")? {
            let name = node["id"].as_str().and_then(|id| name_of.get(id)).context("a node's name")?;
            let wanted = node["deps"].as_array().context("deps")?.iter().filter(|dependency| {
                let kinds = dependency["dep_kinds"].as_array();
                kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"] != "dev"))
            });
            let names = wanted.filter_map(|dependency| name_of.get(dependency["pkg"].as_str()?));
            graph.direct.entry((*name).to_owned()).or_default().extend(names.map(ToString::to_string));
        }
        Ok(graph)
    }

    /// Everything below `package`, but for what lies behind [`EXCEPTED`].
    fn below(&self, package: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut open = vec![package];
        while let Some(name) = open.pop() {
            let dependencies = self.direct.get(name).into_iter().flatten();
            for dependency in dependencies.filter(|dependency| (name, dependency.as_str()) != EXCEPTED) {
                if found.insert(dependency.as_str()) {
                    open.push(dependency);
                }
            }
        }
        found
    }
}

/// The imports that the table does not allow, as sentences.
pub(crate) fn violations() -> Result<Vec<String>> {
    let graph = Graph::load()?;
    let mut sentences = Vec::new();
    let table: BTreeMap<&str, &[&str]> = MAY_IMPORT.into_iter().collect();
    for member in &graph.members {
        let Some(allowed) = table.get(member.as_str()) else {
            sentences.push(format!(
                "{member} is not in the import table; say in xtask/src/imports.rs what it may import"
            ));
            continue;
        };
        for import in graph.direct.get(member).into_iter().flatten() {
            if graph.members.contains(import) && !allowed.contains(&import.as_str()) {
                sentences
                    .push(format!("{member} imports {import}, against the arrows of docs/ARCHITECTURE.md"));
            }
        }
    }
    for package in PLAIN {
        for import in graph.below(package).intersection(&NOT_PLAIN.into_iter().collect()) {
            sentences
                .push(format!("{package} pulls in {import}; the engine has no HTTP, SQL or async runtime"));
        }
    }
    Ok(sentences)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_import_follows_the_arrows() {
        assert_eq!(violations().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_import_through_others_is_found() {
        let dependency = |name: &str, kind: Value| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let package = |name: &str| json!({ "id": name, "name": name });
        let metadata = json!({
            "packages": [package("a"), package("b"), package("tokio"), package("axum")],
            "workspace_members": ["a"],
            "resolve": { "nodes": [
                { "id": "a", "deps": [dependency("b", Value::Null), dependency("axum", json!("dev"))] },
                { "id": "b", "deps": [dependency("tokio", json!("build"))] },
            ] },
        });
        let graph = Graph::parse(&metadata).unwrap();
        assert_eq!(graph.below("a"), BTreeSet::from(["b", "tokio"]));
    }
}
