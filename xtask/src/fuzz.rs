//! The fuzz targets, each built and run for a while. They live outside of the workspace, because they need a nightly
//! compiler.

use anyhow::{Context as _, Result};

use crate::step::{Count, Step, root};

/// One step for each target that `fuzz/Cargo.toml` names.
pub(crate) fn steps(seconds: u32) -> Result<Vec<Step>> {
    let manifest = root()?.join("fuzz/Cargo.toml");
    if !manifest.is_file() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
    Ok(targets(&text).into_iter().map(|target| step(target, seconds)).collect())
}

/// The names of the `[[bin]]` sections.
fn targets(manifest: &str) -> Vec<&str> {
    manifest
        .split("[[bin]]")
        .skip(1)
        .filter_map(|section| {
            section
                .lines()
                .take_while(|line| !line.starts_with('['))
                .find_map(|line| line.trim().strip_prefix("name = \"")?.strip_suffix('"'))
        })
        .collect()
}

fn step(target: &str, seconds: u32) -> Step {
    Step {
        name: format!("fuzz {target}"),
        program: "cargo".to_owned(),
        args: [
            "+nightly",
            "fuzz",
            "run",
            target,
            "--",
            &format!("-max_total_time={seconds}"),
            "-print_final_stats=1",
        ]
        .map(str::to_owned)
        .to_vec(),
        env: Vec::new(),
        count: Count::Step,
        // The fuzzer writes a line for each input that it keeps.
        quiet: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_names_of_the_binaries() {
        let text = "[package]\nname = \"fuzz\"\n[[bin]]\nname = \"record\"\npath = \"x\"\n[[bin]]\ntest = false\nname = \"range\"\n";
        assert_eq!(targets(text), ["record", "range"]);
    }
}
