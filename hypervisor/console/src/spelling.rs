//! The similarity of words, and the shortening of words in errors.

use alloc::{
    borrow::ToOwned,
    string::{String, ToString},
    vec::Vec,
};

/// Returns the Levenshtein distance.
pub fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (above, left) in from.bytes().enumerate() {
        let mut diagonal = core::mem::replace(&mut row[0], above + 1);
        for (column, right) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

/// Shortens an operator's word for an error.
pub fn shorten(word: &str) -> String {
    match word.get(..32) {
        Some(start) if word.len() > 32 => start.to_owned() + "...",
        _ => word.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::edits;

    #[test]
    fn the_distance_is_levenshtein_s() {
        for (from, to, distance) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("mem", "mem", 0),
        ] {
            assert_eq!(edits(from, to), distance);
            assert_eq!(edits(to, from), distance);
        }
    }
}
