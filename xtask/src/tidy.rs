//! Rules of the source that no compiler knows (docs/ARCHITECTURE.md, "Invariants").

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::step::root;

/// Longest source file in lines. Past 400 a file is worth a look, past this it has two nouns.
const LINES_MAX: usize = 900;

/// What the numbers mean that comments and names of tests cite.
const REQUIREMENTS: &str = "docs/requirements.md";

/// A rule: in which files, which words, which files excepted, and why.
struct Rule {
    under: &'static str,
    words: &'static [&'static str],
    except: &'static [&'static str],
    why: &'static str,
}

const RULES: [Rule; 4] = [
    Rule {
        under: "blobstore/src/format",
        words: &["std::fs", "std::io", "std::time", "std::thread", "crate::disk"],
        except: &[],
        why: "format/ is pure: no I/O, no clock",
    },
    Rule {
        under: "distribution/src",
        words: &[
            "StatusCode::BAD_",
            "StatusCode::UNAUTHORIZED",
            "StatusCode::FORBIDDEN",
            "StatusCode::NOT_FOUND",
            "StatusCode::METHOD_",
            "StatusCode::CONFLICT",
            "StatusCode::PRECONDITION_",
            "StatusCode::PAYLOAD_",
            "StatusCode::URI_",
            "StatusCode::RANGE_",
            "StatusCode::REQUEST_",
            "StatusCode::TOO_",
            "StatusCode::INTERNAL_",
            "StatusCode::INSUFFICIENT_",
            "StatusCode::SERVICE_",
        ],
        except: &["error.rs", "tests.rs"],
        why: "the status and code of a refusal are chosen in error.rs",
    },
    Rule {
        under: "core/src",
        words: &[
            "sqlx::query",
            "query_as(",
            "query_scalar(",
            "\"SELECT ",
            "\"INSERT ",
            "\"UPDATE ",
            "\"DELETE ",
        ],
        except: &["store.rs", "db/", "outbox/", "tests.rs"],
        why: "SQL appears only in store files, the outbox and migrations",
    },
    Rule {
        under: "",
        words: &["todo!(", "unimplemented!(", "#[ignore"],
        except: &["xtask/src/tidy.rs"],
        why: "nothing half done lands",
    },
];

/// What breaks a rule, as sentences.
pub(crate) fn violations() -> Result<Vec<String>> {
    let root = root()?;
    let page = std::fs::read_to_string(root.join(REQUIREMENTS)).context(REQUIREMENTS)?;
    let explained = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()).collect();
    let mut sentences = Vec::new();
    for file in sources(&root)? {
        let name = file.strip_prefix(&root).unwrap_or(&file).to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&file).with_context(|| name.clone())?;
        sentences.extend(violations_of(&name, &text));
        sentences.extend(unexplained(&name, &text, &explained));
    }
    Ok(sentences)
}

fn violations_of(name: &str, text: &str) -> Vec<String> {
    let mut sentences = Vec::new();
    if text.lines().count() > LINES_MAX {
        sentences.push(format!("{name} has more than {LINES_MAX} lines; which are its two nouns?"));
    }
    let rules = RULES
        .iter()
        .filter(|rule| name.starts_with(rule.under) && !rule.except.iter().any(|part| name.contains(part)));
    for rule in rules {
        for (number, line) in code_of(text).enumerate() {
            let code = line.split("//").next().unwrap_or(line);
            if let Some(word) = rule.words.iter().find(|word| code.contains(**word)) {
                sentences.push(format!("{name}:{}: {word} ({})", number + 1, rule.why));
            }
        }
    }
    sentences
}

/// The lines of `text` before its tests, which stand at the end of a file and may do what the code may not.
fn code_of(text: &str) -> impl Iterator<Item = &str> {
    let mut lines = text.lines().peekable();
    std::iter::from_fn(move || {
        let line = lines.next()?;
        let opens_tests = |next: &&str| next.contains("mod ") && next.ends_with('{');
        (line != "#[cfg(test)]" || !lines.peek().is_some_and(opens_tests)).then_some(line)
    })
}

/// The requirements that `text` cites and that have no line among the `explained`.
fn unexplained(name: &str, text: &str, explained: &BTreeSet<&str>) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
    let cited: BTreeSet<String> = words.filter_map(cited).collect();
    let missing = cited.iter().filter(|number| !explained.contains(number.as_str()));
    missing.map(|number| format!("{name} cites {number}, which is not in {REQUIREMENTS}")).collect()
}

/// `S-07` of the word `S-07`, or of `s_07_…` as names of tests begin.
fn cited(word: &str) -> Option<String> {
    let (letter, rest) = word.split_at_checked(1)?;
    let digits = match letter {
        "S" | "F" | "P" | "A" | "L" => rest.strip_prefix('-')?,
        "s" | "f" | "p" | "a" | "l" => rest.strip_prefix('_')?.split('_').next()?,
        _ => return None,
    };
    let is_number = matches!(digits.len(), 2 | 3) && digits.bytes().all(|byte| byte.is_ascii_digit());
    // P-256 is a curve.
    (is_number && word != "P-256").then(|| format!("{}-{digits}", letter.to_uppercase()))
}

/// Every Rust file of the workspace and of the fuzz targets.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" && name != "node_modules" {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_keeps_its_rules() {
        assert_eq!(violations().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_broken_rule_is_found_in_code_and_not_in_comments_or_tests() {
        let found = |name: &str, text: &str| violations_of(name, text).len();
        assert_eq!(found("blobstore/src/format/x.rs", "use std::fs;"), 1);
        assert_eq!(found("blobstore/src/log.rs", "use std::fs;"), 0);
        let tests = "// std::fs\n#[cfg(test)]\nmod tests {\nuse std::fs;\n}";
        assert_eq!(found("blobstore/src/format/x.rs", tests), 0);
        assert_eq!(found("blobstore/src/format/x.rs", "#[cfg(test)]\nmod tests;\nuse std::fs;"), 1);
        assert_eq!(found("core/src/user/api.rs", "sqlx::query(\"SELECT 1\")"), 1);
        assert_eq!(found("core/src/user/store.rs", "sqlx::query(\"SELECT 1\")"), 0);
        assert_eq!(found("server/src/x.rs", &"\n".repeat(LINES_MAX + 1)), 1);
    }

    #[test]
    fn a_cited_requirement_has_its_line() {
        let text = "// (S-42, P-256, S-4, LS-42)\nfn s_07_a_claim() {}\nfn as_07() {}";
        let found = |explained: &[&str]| unexplained("x.rs", text, &explained.iter().copied().collect());
        assert_eq!(found(&["S-07", "S-42"]), Vec::<String>::new());
        assert_eq!(found(&["S-42"]), ["x.rs cites S-07, which is not in docs/requirements.md"]);
        assert_eq!(found(&[]).len(), 2);
    }
}
