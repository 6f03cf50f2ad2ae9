//! Numbers of CPUs in words.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt::Display;

/// Names CPUs: "CPU 3", "CPUs 0 to 3 and 7". A list of many ranges ends with the number of the others.
#[must_use]
pub fn name(cpus: &[u32]) -> String {
    const MAX_RANGES: usize = 8;
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(cpu) => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let range = |(first, last): &(u32, u32)| match last - first {
        0 => vec_of(first),
        1 => [first, last].map(|cpu| format!("{cpu}")).to_vec(),
        _ => Vec::from([format!("{first} to {last}")]),
    };
    let mut parts: Vec<String> = ranges.iter().take(MAX_RANGES).flat_map(range).collect();
    let others: u32 = ranges
        .iter()
        .skip(MAX_RANGES)
        .map(|(first, last)| last - first + 1)
        .sum();
    if others > 0 {
        parts.push(format!("{others} others"));
    }
    let noun = if cpus.len() == 1 { "CPU" } else { "CPUs" };
    let text = match parts.split_last() {
        Some((last, first)) if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        Some((last, _)) => last.clone(),
        None => "none".into(),
    };
    format!("{noun} {text}")
}

fn vec_of(value: &impl Display) -> Vec<String> {
    Vec::from([value.to_string()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_named_in_ranges() {
        assert_eq!(name(&[2]), "CPU 2");
        assert_eq!(name(&[2, 3]), "CPUs 2 and 3");
        assert_eq!(name(&[0, 1, 2, 3, 7]), "CPUs 0 to 3 and 7");
        let odd: Vec<u32> = (0..100).map(|n| n * 2 + 1).collect();
        assert_eq!(name(&odd), "CPUs 1, 3, 5, 7, 9, 11, 13, 15 and 92 others");
    }
}
