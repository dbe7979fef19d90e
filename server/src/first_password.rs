//! The first administrator's password: the one that was given, or a random one that is kept in a file, and shown on a terminal.
//!
//! What must stay true: a random password is in its file, durably, before the account exists; else nobody could ever log in. It
//! goes to no log: what is no terminal is one, as with systemd and containers, and is kept and shipped elsewhere.

use std::path::Path;

use taffrail_core::facade::FirstPassword;

use crate::ambient;
use crate::config::Config;
use crate::data_dir::{DataDir, write_private};

/// Letters and digits that cannot be mistaken for each other, 32 of them: five bits a character.
const ALPHABET: &[u8; 32] = b"ABCDEFGHJKLMabcdefghkmnp23456789";
/// Characters of a random password: 120 bits.
const CHARS: usize = 24;

/// A random password that meets core's rule: one capital, one small letter and one digit at least.
pub(crate) fn draw() -> String {
    loop {
        // One in two thousand lacks one of the three; the next one then does not.
        let text = draw_any();
        let has = |class: fn(&u8) -> bool| text.as_bytes().iter().any(class);
        if has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit) {
            return text;
        }
    }
}

fn draw_any() -> String {
    let bytes: [u8; CHARS] = ambient::random_bytes();
    let mut text = String::with_capacity(CHARS);
    for byte in bytes {
        // 32 divides 256: every character is equally likely.
        text.push(char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
    }
    text
}

/// Where core gets the password from when there is no administrator yet.
pub(crate) fn source(config: &Config, dir: &DataDir) -> FirstPassword {
    announced_on(std::io::stdout(), config, dir)
}

/// The same, announced elsewhere than on standard output.
pub(crate) fn announced_on(
    mut out: impl std::io::Write + std::io::IsTerminal + Send + 'static,
    config: &Config,
    dir: &DataDir,
) -> FirstPassword {
    let given = config.bootstrap.admin_password.as_ref().map(|secret| secret.expose().to_owned());
    let file = dir.initial_admin_password();
    Box::new(move || {
        if let Some(given) = given {
            return Ok(given);
        }
        // A start that was killed between file and account has drawn one already, and may have printed it.
        let kept = std::fs::read_to_string(&file).ok().map(|text| text.trim().to_owned());
        let password = match kept.filter(|text| !text.is_empty()) {
            Some(kept) => kept,
            None => {
                let drawn = draw();
                write_private(&file, format!("{drawn}\n").as_bytes())
                    .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
                drawn
            }
        };
        let shown = out.is_terminal().then_some(password.as_str());
        let _ = writeln!(out, "{}", announcement(shown, &file));
        Ok(password)
    })
}

/// What is printed: where the password is kept and, on a terminal, what it is.
fn announcement(shown: Option<&str>, file: &Path) -> String {
    let file = file.display();
    match shown {
        Some(password) => format!(
            "The administrator is \"admin\", the password {password}\n(also in {file}; change it and remove the file)"
        ),
        None => format!(
            "The administrator is \"admin\", the password is in {file}\n(change it and remove the file)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn random_passwords_differ_and_use_the_whole_alphabet() {
        let drawn: Vec<String> = (0..100).map(|_| draw()).collect();
        let seen: BTreeSet<u8> = drawn.iter().flat_map(|text| text.bytes()).collect();
        assert_eq!(seen.len(), 32);
        assert!(drawn.iter().all(|text| taffrail_core::identity::password::check(text).is_ok()));
        assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), 100);
        assert_eq!(ALPHABET.iter().collect::<BTreeSet<_>>().len(), 32);
    }

    #[test]
    fn a_password_is_shown_to_a_terminal_only() {
        let file = Path::new("/data/initial-admin-password");
        assert!(announcement(Some("secret"), file).contains("secret"));
        for shown in [Some("secret"), None] {
            assert!(announcement(shown, file).contains("/data/initial-admin-password"));
        }
    }

    #[test]
    fn a_drawn_password_is_kept_and_a_given_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        let mut config = Config::default();
        let first = source(&config, &dir)().unwrap();
        assert_eq!(std::fs::read_to_string(dir.initial_admin_password()).unwrap().trim(), first);
        assert_eq!(source(&config, &dir)().unwrap(), first, "the same after a crash in between");
        std::fs::remove_file(dir.initial_admin_password()).unwrap();
        config.bootstrap.admin_password =
            crate::config::section::Setting::parse(&serde_json::Value::from("Given-Word-1"));
        assert_eq!(source(&config, &dir)().unwrap(), "Given-Word-1");
        assert!(!dir.initial_admin_password().exists());
    }
}
