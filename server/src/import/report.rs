//! What an import did: counted, and everything that was refused with its reason.

use std::path::Path;
use std::time::Duration;

use indicatif::BinaryBytes;
use serde_json::{Value, json};

use crate::cli::ImportMode;

/// Refusals that the text names; the JSON form names all.
const REFUSED_IN_TEXT_MAX: usize = 100;

/// What was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Repository,
    Manifest,
    Tag,
    Layer,
    Blob,
}

impl What {
    const fn name(self) -> &'static str {
        match self {
            What::Repository => "repository",
            What::Manifest => "manifest",
            What::Tag => "tag",
            What::Layer => "layer link",
            What::Blob => "blob",
        }
    }
}

/// One refusal.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) what: What,
    /// The repository in the tree; empty for a blob, which belongs to none.
    pub(crate) repository: String,
    /// The tag or digest; empty for a repository.
    pub(crate) name: String,
    /// Where it lies, relative to the tree.
    pub(crate) path: String,
    pub(crate) reason: String,
}

/// A number of things and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

impl Count {
    /// One more.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }

    fn json(self) -> Value {
        json!({"count": self.count, "bytes": self.bytes})
    }

    fn text(self) -> String {
        format!("{} of {}", self.count, BinaryBytes(self.bytes))
    }
}

/// The report.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) repositories: u64,
    pub(crate) projects_made: Vec<String>,
    /// Of the projects that were there, those that anybody may pull from.
    pub(crate) projects_public: Vec<String>,
    pub(crate) manifests: u64,
    pub(crate) tags: u64,
    /// Blobs whose bytes were taken in.
    pub(crate) blobs: Count,
    /// Links to blobs that the store held already.
    pub(crate) deduplicated: Count,
    /// Links that an earlier import, or a push, made.
    pub(crate) blobs_skipped: Count,
    pub(crate) manifests_skipped: u64,
    pub(crate) tags_skipped: u64,
    /// Of all links to blobs, those that no manifest of the repository names.
    pub(crate) unreferenced: Count,
    /// Links of layers whose bytes the other registry's own garbage collection removed.
    pub(crate) layers_gone: u64,
    pub(crate) refused: Vec<Refused>,
    pub(crate) mode: Option<ImportMode>,
    pub(crate) took: Duration,
}

impl Report {
    /// Whether everything was taken over.
    pub(crate) fn is_whole(&self) -> bool {
        self.refused.is_empty()
    }

    fn rate(&self) -> u64 {
        let ms = u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX).max(1);
        self.blobs.bytes.saturating_mul(1000) / ms
    }

    fn mode(&self) -> &'static str {
        match self.mode {
            Some(ImportMode::Reflink) => "reflink",
            Some(ImportMode::Copy) => "copy",
            None => "dry-run",
        }
    }

    /// As one document.
    pub(crate) fn json(&self, tree: &Path) -> Value {
        let refused: Vec<Value> = self
            .refused
            .iter()
            .map(|refused| {
                json!({
                    "what": refused.what.name(),
                    "repository": refused.repository,
                    "name": refused.name,
                    "path": refused.path,
                    "reason": refused.reason,
                })
            })
            .collect();
        json!({
            "tree": tree.display().to_string(),
            "mode": self.mode(),
            "complete": self.is_whole(),
            "repositories": self.repositories,
            "projects_made": self.projects_made,
            "projects_public": self.projects_public,
            "tags": self.tags,
            "manifests": self.manifests,
            "blobs": self.blobs.json(),
            "deduplicated": self.deduplicated.json(),
            "skipped": {
                "tags": self.tags_skipped,
                "manifests": self.manifests_skipped,
                "blobs": self.blobs_skipped.json(),
            },
            "unreferenced_blobs": self.unreferenced.json(),
            "layers_gone": self.layers_gone,
            "refused": refused,
            "seconds": self.took.as_secs_f64(),
            "bytes_per_second": self.rate(),
        })
    }

    /// For people.
    pub(crate) fn text(&self, tree: &Path) -> String {
        let mut lines: Vec<String> = Vec::new();
        for refused in self.refused.iter().take(REFUSED_IN_TEXT_MAX) {
            let of = if refused.repository.is_empty() { "" } else { " of " };
            let what = format!("{} {}", refused.what.name(), refused.name);
            lines.push(format!(
                "refused: {}{of}{}: {} ({})",
                what.trim_end(),
                refused.repository,
                refused.reason,
                refused.path
            ));
        }
        if let Some(more) = self.refused.len().checked_sub(REFUSED_IN_TEXT_MAX).filter(|more| *more > 0) {
            lines.push(format!("refused: {more} more (see --json)"));
        }
        let verb = if self.mode.is_some() { "took over" } else { "would take over" };
        lines.push(format!("{}: {verb}", tree.display()));
        let mut line = |what: &str, figure: String| lines.push(format!("  {what:<22} {figure}"));
        line("repositories", self.repositories.to_string());
        if !self.projects_made.is_empty() {
            line(
                "projects, private",
                format!("{} ({})", self.projects_made.len(), self.projects_made.join(", ")),
            );
        }
        if !self.projects_public.is_empty() {
            let names = self.projects_public.join(", ");
            line("projects, PUBLIC", format!("{} ({names}): everybody can pull", self.projects_public.len()));
        }
        line("tags", self.tags.to_string());
        line("manifests", self.manifests.to_string());
        line("blobs", self.blobs.text());
        line("deduplicated", self.deduplicated.text());
        if self.mode.is_some() {
            line(
                "there already",
                format!(
                    "{} tags, {} manifests, {} blobs",
                    self.tags_skipped, self.manifests_skipped, self.blobs_skipped.count
                ),
            );
        }
        if self.unreferenced.count > 0 {
            line("without a manifest", format!("{}, dropped after a day", self.unreferenced.text()));
        }
        if self.layers_gone > 0 {
            line("layers gone before", self.layers_gone.to_string());
        }
        line("refused", self.refused.len().to_string());
        if self.mode.is_some() {
            let rate = BinaryBytes(self.rate());
            line("took", format!("{:.1} s, {rate}/s, {}", self.took.as_secs_f64(), self.mode()));
        }
        lines.iter().map(|line| plain(line) + "\n").collect()
    }
}

/// A line that a terminal shows as it is: names in the other registry are whatever somebody called them, and must neither steer the
/// terminal, nor begin a line of their own, nor turn the order of what follows. What would is escaped as in JSON.
pub(crate) fn plain(line: &str) -> String {
    let steers = |character: char| {
        character.is_control()
            || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(line.len());
    for character in line.chars() {
        if steers(character) {
            // All of them are below U+10000: four digits do.
            shown.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of folders in the tree went to the terminal as they were.
    #[test]
    fn no_name_in_the_tree_steers_the_terminal() {
        let name = "a\u{1b}]0;pwned\u{7}\u{9b}31m\n  refused  0\u{202e}b\u{7f}";
        let refused = Refused {
            what: What::Repository,
            repository: name.to_owned(),
            name: String::new(),
            path: format!("repositories/{name}"),
            reason: format!("{name} is no name"),
        };
        let report = Report { refused: vec![refused], ..Report::default() };
        let text = report.text(Path::new(name));
        assert!(
            text.chars().all(|shown| shown == '\n' || !(shown.is_control() || shown == '\u{202e}')),
            "{text:?}"
        );
        let shown = "a\\u001b]0;pwned\\u0007\\u009b31m\\u000a  refused  0\\u202eb\\u007f";
        let first = text.lines().next().unwrap();
        assert_eq!(
            first,
            format!("refused: repository of {shown}: {shown} is no name (repositories/{shown})")
        );
        assert_eq!(plain("å ok — 結構"), "å ok — 結構");
    }

    #[test]
    fn whoever_imports_into_a_public_project_is_told() {
        let report = Report { projects_public: vec!["library".to_owned()], ..Report::default() };
        assert!(report.text(Path::new("t")).contains("1 (library): everybody can pull"));
        assert_eq!(report.json(Path::new("t"))["projects_public"], json!(["library"]));
    }
}
