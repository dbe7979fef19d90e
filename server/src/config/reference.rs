//! The reference page of the configuration, made from the types.

use std::fmt::Write as _;

use serde_json::Value;

use super::Config;

/// The page, in Markdown. `docs/operations/configuration.md` is this text; a test holds the two together.
pub(crate) fn markdown() -> String {
    let mut page = String::from(HEAD);
    for (section, about, keys) in Config::sections() {
        let _ = writeln!(page, "\n## `{section}`\n\n{}", join(about));
        for key in keys {
            let _ = writeln!(page, "\n### `{section}.{}`\n\n{}\n", key.name, join(key.doc));
            let bounds = key.bounds.map_or(String::new(), |b| format!(", {} to {}", b.start(), b.end()));
            let _ = writeln!(page, "- value: {}{bounds}", key.kind);
            let _ = writeln!(page, "- default: {}", default(&key.default));
            let variable = format!("TAFFRAIL__{section}__{}", key.name).to_ascii_uppercase();
            let _ = writeln!(page, "- environment: `{variable}`");
        }
    }
    page
}

const HEAD: &str = "# Configuration

This page is made from the source: `taffrail config reference` prints it.

Every key has a default, so that a file is not needed. Values come from, the first one wins:

1. the command line: `--listen` and `--data-dir`;
2. the environment: `TAFFRAIL__SECTION__KEY`, for instance `TAFFRAIL__SERVER__LISTEN=127.0.0.1:8080`; a list is divided
   by commas;
3. the YAML file that `--config` names;
4. the default.

A key that does not exist is an error, wherever it stands. `taffrail config check` tells whether the configuration is
good, `taffrail config show` prints every value in force, with secrets masked; both take the same options as `serve`.

```yaml
server:
  listen: 0.0.0.0:443
  external_url: https://registry.example.org
tls:
  mode: files
  cert_file: /etc/taffrail/tls.crt
  key_file: /etc/taffrail/tls.key
storage:
  data_dir: /var/lib/taffrail
log:
  format: json
```

`listen`, `external_url`, `insecure_http` and `data_dir` may also stand at the top of the file, without their section.
";

/// Doc comment lines as one text; each begins with the space that follows `///`.
fn join(lines: &[&str]) -> String {
    lines.iter().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

fn default(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Array(items) if items.is_empty() => "the empty list".to_owned(),
        Value::String(text) => format!("`{text}`"),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => format!("`{value}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_stands_on_the_page_with_a_text_of_its_own() {
        let page = markdown();
        for (section, about, keys) in Config::sections() {
            assert!(!about.is_empty(), "{section} has no text");
            for key in keys {
                assert!(page.contains(&format!("### `{section}.{}`", key.name)));
                assert!(!key.doc.is_empty(), "{section}.{} has no text", key.name);
            }
        }
    }
}
