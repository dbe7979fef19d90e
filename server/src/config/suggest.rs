//! "Did you mean": the known key that is nearest to a misspelt one.

/// Farther than this is not a slip of the finger.
const DISTANCE_MAX: usize = 4;

/// The nearest of `known`, when one is near.
pub(crate) fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (distance(wrong, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= DISTANCE_MAX.min(candidate.len() / 2))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, over bytes: keys are ASCII.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 3] = ["server.listen", "server.external_url", "tls.mode"];

    #[test]
    fn a_slip_finds_its_key_and_nonsense_finds_none() {
        assert_eq!(nearest("server.lisen", KNOWN.into_iter()), Some("server.listen"));
        assert_eq!(nearest("server.externalurl", KNOWN.into_iter()), Some("server.external_url"));
        assert_eq!(nearest("tls.model", KNOWN.into_iter()), Some("tls.mode"));
        assert_eq!(nearest("completely_else", KNOWN.into_iter()), None);
    }

    #[test]
    fn distance_counts_insertions_deletions_and_substitutions() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
