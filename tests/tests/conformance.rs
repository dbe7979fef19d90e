//! The OCI distribution conformance program, against the published specification and its development version; and our
//! own check of the same demands, which needs nothing installed.
//!
//! The program ends with 0 on a configuration mistake, so its exit code says nothing: its results file does. Not one
//! FAIL, not one error and not one Skip is accepted. `Disabled` are tests that the program itself switches off for the
//! chosen version of the specification.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use taffrail_tests::conformance::{self, Target, Version};
use taffrail_tests::program::Program;
use taffrail_tests::require_tools;
use taffrail_tests::scene::ADMIN;
use taffrail_tests::server::Server;
use taffrail_tests::tools::{Tool, say};

/// Fewer passes than this mean that the program did not run what it should: it has about 850 tests for 1.1.
const PASSES_MIN: u64 = 700;

#[derive(Debug)]
struct Totals {
    tests: u64,
    failures: u64,
    errors: u64,
    skipped: u64,
    disabled: u64,
}

impl Totals {
    /// Reads the attributes of the `testsuites` element of a junit file.
    fn parse(junit: &str) -> Result<Self> {
        let (_, rest) = junit.split_once("<testsuites").context("a testsuites element")?;
        let (element, _) = rest.split_once('>').context("the end of the element")?;
        let attribute = |name: &str| -> Result<u64> {
            // The program leaves an attribute out when it is zero.
            match element.split_once(&format!(" {name}=\"")) {
                None => Ok(0),
                Some((_, value)) => {
                    let (value, _) = value.split_once('"').context("the end of an attribute")?;
                    Ok(value.parse()?)
                }
            }
        };
        Ok(Self {
            tests: attribute("tests")?,
            failures: attribute("failures")?,
            errors: attribute("errors")?,
            skipped: attribute("skipped")?,
            disabled: attribute("disabled")?,
        })
    }

    fn passed(&self) -> u64 {
        self.tests.saturating_sub(self.failures + self.errors + self.skipped + self.disabled)
    }
}

/// The test cases of a junit file that are neither passed nor disabled by the configuration, with what they said.
fn unhappy(junit: &str) -> Vec<String> {
    junit
        .split("<testcase ")
        .skip(1)
        .filter(|case| !case.contains("status=\"passed\""))
        .map(|case| case.split("</testcase>").next().unwrap_or_default().chars().take(600).collect())
        .collect()
}

fn conforms(version: &str) -> Result<()> {
    let server = Server::start()?;
    let results = tempfile::tempdir()?;
    let printed = Program::new("conformance")?
        .dir(results.path())
        .env("OCI_REGISTRY", server.host())
        .env("OCI_TLS", "disabled")
        .env("OCI_USERNAME", ADMIN.0)
        .env("OCI_PASSWORD", ADMIN.1)
        .env("OCI_REPO1", "library/conformance/repo1")
        .env("OCI_REPO2", "library/conformance/repo2")
        .env("OCI_VERSION", version)
        .env("OCI_RESULTS_DIR", results.path())
        .run()?;
    let junit = read(&results.path().join("junit.xml")).with_context(|| printed.all())?;
    let totals = Totals::parse(&junit)?;
    say(&format!(
        "conformance {version}: {} passed, {} failed, {} errors, {} skipped, {} disabled, {} in all",
        totals.passed(),
        totals.failures,
        totals.errors,
        totals.skipped,
        totals.disabled,
        totals.tests
    ));
    let good =
        totals.failures == 0 && totals.errors == 0 && totals.skipped == 0 && totals.passed() >= PASSES_MIN;
    ensure!(good, "{totals:?}\n{}", unhappy(&junit).join("\n"));
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

#[test]
fn the_server_conforms_to_the_published_specification() -> Result<()> {
    require_tools!(Tool::Program("conformance"));
    conforms("1.1")
}

#[test]
fn the_server_conforms_to_the_specification_in_development() -> Result<()> {
    require_tools!(Tool::Program("conformance"));
    conforms("dev")
}

/// Skips that the program of 2023 makes by design: it tests either with or without pushing its own data, and either with or
/// without mounts that find their source themselves.
const SKIPPED_OF_2023: u64 = 4;

/// The program before its rewrite; it is a package of tests, and has 68.
#[test]
fn the_server_passes_the_conformance_program_of_2023() -> Result<()> {
    require_tools!(Tool::Program("conformance-2023"));
    let server = Server::start()?;
    let results = tempfile::tempdir()?;
    let program = Program::new("conformance-2023")?
        .dir(results.path())
        .env("OCI_ROOT_URL", server.url())
        .env("OCI_NAMESPACE", "library/conformance/repo1")
        .env("OCI_CROSSMOUNT_NAMESPACE", "library/conformance/repo2")
        .env("OCI_USERNAME", ADMIN.0)
        .env("OCI_PASSWORD", ADMIN.1)
        .env("OCI_AUTOMATIC_CROSSMOUNT", "1")
        .env("OCI_HIDE_SKIPPED_WORKFLOWS", "0")
        .env("OCI_REPORT_DIR", results.path());
    let program = ["PULL", "PUSH", "CONTENT_DISCOVERY", "CONTENT_MANAGEMENT"]
        .iter()
        .fold(program, |program, workflow| program.env(&format!("OCI_TEST_{workflow}"), "1"));
    let printed = program.run()?;
    let junit = read(&results.path().join("junit.xml")).with_context(|| printed.all())?;
    let cases = junit.matches("<testcase ").count() as u64;
    let failed = junit.matches("<failure").count() as u64;
    let skipped = junit.matches("<skipped").count() as u64;
    say(&format!(
        "conformance of 2023: {} passed, {failed} failed, {skipped} skipped, {cases} in all",
        cases - failed - skipped
    ));
    ensure!(failed == 0 && skipped <= SKIPPED_OF_2023 && cases >= 60, "{}", printed.all());
    Ok(())
}

fn meets_our_own_check(version: Version) -> Result<()> {
    let server = Server::start()?;
    let totals = conformance::check(&Target {
        base: server.url(),
        user: (ADMIN.0.to_owned(), ADMIN.1.to_owned()),
        repository: "library/conformance/repo1".to_owned(),
        other_repository: "library/conformance/repo2".to_owned(),
        version,
    })?;
    say(&format!("conformance, own check, {version:?}: {totals}"));
    ensure!(totals.failed == 0 && totals.skipped == 0, "{totals}\n{}", totals.said.join("\n"));
    ensure!(totals.passed >= PASSES_MIN, "the check did not run: {totals}");
    Ok(())
}

#[test]
fn the_server_meets_our_check_of_the_published_specification() -> Result<()> {
    meets_our_own_check(Version::Published)
}

#[test]
fn the_server_meets_our_check_of_the_specification_in_development() -> Result<()> {
    meets_our_own_check(Version::Development)
}

#[test]
fn totals_are_read_from_the_results_and_an_absent_one_is_zero() -> Result<()> {
    let junit = "<testsuites name=\"x\" tests=\"12\" failures=\"2\" skipped=\"1\" disabled=\"3\">\n\
                 <testcase name=\"a\" status=\"failure\">why</testcase><testcase name=\"b\" status=\"passed\"/>";
    let totals = Totals::parse(junit)?;
    ensure!((totals.tests, totals.failures, totals.errors, totals.skipped) == (12, 2, 0, 1));
    ensure!(totals.passed() == 6);
    ensure!(unhappy(junit).len() == 1);
    Ok(())
}
