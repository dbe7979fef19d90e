//! The environment of a test run, read in this file only.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `TAFFRAIL_BIN` | the server under test | built with cargo, once per test binary |
//! | `TAFFRAIL_FSCK_BIN` | the checker `taffrail-fsck` | the same |
//! | `TAFFRAIL_TEST_PROFILE` | cargo profile to build them with | `dev` |
//! | `TAFFRAIL_REQUIRE_TOOLS` | `1`: an absent tool fails the test | unset: it is skipped, and says so |
//! | `TAFFRAIL_SKIPPED_FILE` | file that collects the `SKIPPED` lines | none |
//! | `TAFFRAIL_KILL_CYCLES` | rounds of kill -9 | 5 |
//! | `TAFFRAIL_POWERCUT_ROUNDS` | rounds of the power cut, half on each back end | 4 |
//! | `TAFFRAIL_SOAK_EVENTS` | requests of the soak | 2000 |
//! | `TAFFRAIL_SEED` | seed of the random loads | drawn, and printed |
//! | `TAFFRAIL_BIG_LAYER_MIB` | size of the large layer | 1024 |
//! | `TAFFRAIL_TOOL_DIRS` | more folders to look for clients in, before `PATH` | none |

use std::path::PathBuf;

#[expect(clippy::disallowed_methods, reason = "this is where a test run reads its environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number(name: &str, default: u64) -> u64 {
    match variable(name) {
        None => default,
        Some(text) => match text.parse() {
            Ok(value) => value,
            Err(_) => {
                crate::tools::say(&format!("{name}={text} is not a number; using {default}"));
                default
            }
        },
    }
}

/// The server binary that was named, if one was.
#[must_use]
pub fn server_binary() -> Option<PathBuf> {
    variable("TAFFRAIL_BIN").map(PathBuf::from)
}

/// The checker's binary that was named, if one was.
#[must_use]
pub fn fsck_binary() -> Option<PathBuf> {
    variable("TAFFRAIL_FSCK_BIN").map(PathBuf::from)
}

/// The cargo profile to build server and checker with.
#[must_use]
pub fn build_profile() -> String {
    variable("TAFFRAIL_TEST_PROFILE").unwrap_or_else(|| "dev".to_owned())
}

/// Whether an absent tool is a failure.
#[must_use]
pub fn tools_are_required() -> bool {
    variable("TAFFRAIL_REQUIRE_TOOLS").as_deref() == Some("1")
}

/// The file that collects `SKIPPED` lines.
#[must_use]
pub fn skipped_file() -> Option<PathBuf> {
    variable("TAFFRAIL_SKIPPED_FILE").map(PathBuf::from)
}

/// Rounds of kill -9.
#[must_use]
pub fn kill_cycles() -> u64 {
    number("TAFFRAIL_KILL_CYCLES", 5)
}

/// Rounds of the power cut, over both back ends.
#[must_use]
pub fn powercut_rounds() -> u64 {
    number("TAFFRAIL_POWERCUT_ROUNDS", 4)
}

/// Requests of the soak.
#[must_use]
pub fn soak_events() -> u64 {
    number("TAFFRAIL_SOAK_EVENTS", 2_000)
}

/// The seed of the random loads: the one that was given, or a fresh one.
#[must_use]
pub fn seed() -> u64 {
    variable("TAFFRAIL_SEED").and_then(|text| text.parse().ok()).unwrap_or_else(rand::random)
}

/// Size of the large layer, in MiB.
#[must_use]
pub fn big_layer_mib() -> u64 {
    number("TAFFRAIL_BIG_LAYER_MIB", 1024)
}

/// The folders in which programs are looked for, in order: those that were named, `PATH`, where Go puts what it
/// installs, and the `sbin` folders that an ordinary user's `PATH` lacks.
#[must_use]
pub fn tool_dirs() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for list in ["TAFFRAIL_TOOL_DIRS", "PATH"].into_iter().filter_map(variable) {
        dirs.extend(std::env::split_paths(&list).collect::<Vec<_>>());
    }
    dirs.extend(variable("GOBIN").map(PathBuf::from));
    dirs.extend(variable("GOPATH").map(|path| PathBuf::from(path).join("bin")));
    dirs.extend(variable("HOME").map(|home| PathBuf::from(home).join("go/bin")));
    dirs.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs
}
