//! Names that users write in files, and what they probably meant.

/// The name among `known` (at least one) that `key` is most like.
pub fn nearest(key: &str, known: &[&'static str]) -> &'static str {
    let nearest = known.iter().min_by_key(|known| edit_distance(key, known));
    nearest.expect("some name is known")
}

/// The name among `known` that `name` may have been meant to be: at most a third of it is otherwise.
pub fn similar<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, nearest) = known
        .map(|known| (edit_distance(name, known), known))
        .min()?;
    (3 * distance <= name.chars().count()).then_some(nearest)
}

/// Insertions, deletions and replacements that turn `a` into `b` (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits() {
        for (a, b, distance) in [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3)] {
            assert_eq!(edit_distance(a, b), distance);
        }
    }

    #[test]
    fn only_what_is_similar_is_suggested() {
        let known = ["ltxv-tiny", "ltxv-13b-0.9.8-dev"];
        let suggested = |name| similar(name, known.into_iter());
        assert_eq!(suggested("ltxv-tny"), Some("ltxv-tiny"));
        assert_eq!(suggested("ltxv-13b-0.9.7-dev"), Some("ltxv-13b-0.9.8-dev"));
        assert_eq!(suggested("flux"), None);
    }
}
