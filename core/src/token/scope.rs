//! Scopes as clients ask for them: `repository:NAME:ACTION,…`, several in one parameter or in several.
//!
//! Grammar: distribution's token specification. What cannot be parsed is not granted, and is no error: clients ask for more than
//! they need.

use taffrail_distribution::access::Action;
use taffrail_distribution::name::RepositoryName;

/// Most scopes in one request. A build that mounts from many repositories asks for a dozen.
pub const SCOPES_MAX: usize = 64;

/// Something asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Actions in a repository; `*` asks for all.
    Repository {
        /// Where.
        name: RepositoryName,
        /// What, each once.
        actions: Vec<Action>,
    },
    /// `registry:catalog:*`.
    Catalog,
}

/// More than [`SCOPES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token request names at most {SCOPES_MAX} scopes")]
pub struct TooMany;

/// Parses the values of all `scope` parameters.
///
/// # Errors
/// [`TooMany`].
pub fn parse_all<'a>(values: impl Iterator<Item = &'a str>) -> Result<Vec<Scope>, TooMany> {
    let mut scopes = Vec::new();
    for (count, text) in values.flat_map(|value| value.split(' ')).filter(|text| !text.is_empty()).enumerate()
    {
        if count >= SCOPES_MAX {
            return Err(TooMany);
        }
        scopes.extend(parse(text));
    }
    Ok(scopes)
}

fn parse(text: &str) -> Option<Scope> {
    let (kind, rest) = text.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    // `repository(plugin)` and its kin are classes of repositories that we do not have.
    match kind {
        "repository" => {
            let name = RepositoryName::parse(name).ok()?;
            let mut parsed: Vec<Action> = Vec::new();
            for action in actions.split(',') {
                match action {
                    "pull" => parsed.push(Action::Pull),
                    "push" => parsed.push(Action::Push),
                    "delete" => parsed.push(Action::Delete),
                    "*" => parsed.extend([Action::Pull, Action::Push, Action::Delete]),
                    _ => {}
                }
            }
            parsed.sort_unstable();
            parsed.dedup();
            Some(Scope::Repository { name, actions: parsed })
        }
        "registry" if name == "catalog" && actions.split(',').any(|action| action == "*") => {
            Some(Scope::Catalog)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_parsed_joined_and_repeated_and_nonsense_is_passed_over() {
        let name = |text: &str| RepositoryName::parse(text).unwrap();
        let parsed = parse_all(
            ["repository:a/b:pull,push repository:c/d:pull", "registry:catalog:*", "x"].into_iter(),
        );
        assert_eq!(
            parsed,
            Ok(vec![
                Scope::Repository { name: name("a/b"), actions: vec![Action::Pull, Action::Push] },
                Scope::Repository { name: name("c/d"), actions: vec![Action::Pull] },
                Scope::Catalog,
            ])
        );
        for nonsense in [
            "*",
            "repository",
            "repository::pull",
            "repository:pa/*:pull",
            "repository:A/b:pull",
            "registry:x:*",
            "repository:host:5000/a:pull",
            "repository(plugin):a/b:pull",
        ] {
            assert_eq!(parse_all([nonsense].into_iter()), Ok(vec![]), "{nonsense}");
        }
        let all = parse_all(["repository:a/b:*,pull,pull,fly"].into_iter()).unwrap();
        let actions = vec![Action::Pull, Action::Push, Action::Delete];
        assert_eq!(all, [Scope::Repository { name: name("a/b"), actions }]);
    }

    #[test]
    fn one_scope_too_many_is_refused() {
        let scopes = |count: usize| vec!["repository:a/b:pull"; count].join(" ");
        assert!(parse_all([scopes(SCOPES_MAX).as_str()].into_iter()).is_ok());
        assert_eq!(parse_all([scopes(SCOPES_MAX + 1).as_str()].into_iter()), Err(TooMany));
    }
}
