//! Holds any registry against the OCI distribution specification with our own check:
//! `cargo run -p taffrail-tests --example conformance -- http://127.0.0.1:5000 NAME PASSWORD [1.1|dev]`.
#![expect(clippy::print_stdout, reason = "a command-line tool speaks on standard output")]

use anyhow::{Result, bail};
use taffrail_tests::conformance::{Target, Version, check};

#[expect(clippy::disallowed_methods, reason = "a binary reads its own command line")]
fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (base, name, password, version) = match args.as_slice() {
        [base, name, password] => (base, name, password, "1.1"),
        [base, name, password, version] => (base, name, password, version.as_str()),
        _ => bail!("usage: conformance URL NAME PASSWORD [1.1|dev]"),
    };
    let version = match version {
        "1.1" => Version::Published,
        "dev" => Version::Development,
        other => bail!("no such version: {other}"),
    };
    let totals = check(&Target {
        base: base.clone(),
        user: (name.clone(), password.clone()),
        repository: "library/conformance/repo1".to_owned(),
        other_repository: "library/conformance/repo2".to_owned(),
        version,
    })?;
    for line in &totals.said {
        println!("{line}");
    }
    println!("{totals}");
    if totals.failed + totals.skipped > 0 {
        std::process::exit(1);
    }
    Ok(())
}
