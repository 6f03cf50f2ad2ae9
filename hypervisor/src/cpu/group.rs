//! Sentences about CPUs: one for all CPUs of which the same is true.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt::Display;

/// Groups CPU numbers with the same text. `one` makes the sentence from "CPU 3" or "CPUs 0 to 3 and 7", a verb that
/// agrees ("is", "are"), and the text. The order is that of the first CPU of each group.
pub fn sentences(
    found: impl IntoIterator<Item = (u32, String)>,
    one: impl Fn(&str, &str, &str) -> String,
) -> Vec<String> {
    let mut groups: Vec<(String, Vec<u32>)> = Vec::new();
    for (cpu, text) in found {
        match groups.iter_mut().find(|(known, _)| *known == text) {
            Some((_, cpus)) => cpus.push(cpu),
            None => groups.push((text, Vec::from([cpu]))),
        }
    }
    let sentence = |(text, cpus): (String, Vec<u32>)| {
        let verb = if cpus.len() == 1 { "is" } else { "are" };
        one(&name(&cpus), verb, &text)
    };
    groups.into_iter().map(sentence).collect()
}

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
    fn what_is_the_same_is_one_sentence() {
        let found = (0..288).map(|cpu| {
            let why = if cpu == 7 { "VMXON failed" } else { "no VMX" };
            (cpu, why.into())
        });
        let told = sentences(found, |cpus, verb, why| {
            format!("{cpus} {verb} not in VMX operation: {why}")
        });
        assert_eq!(
            told,
            [
                "CPUs 0 to 6 and 8 to 287 are not in VMX operation: no VMX",
                "CPU 7 is not in VMX operation: VMXON failed"
            ]
        );
    }

    #[test]
    fn cpus_are_named_in_ranges() {
        assert_eq!(name(&[2]), "CPU 2");
        assert_eq!(name(&[2, 3]), "CPUs 2 and 3");
        assert_eq!(name(&[0, 1, 2, 3, 7]), "CPUs 0 to 3 and 7");
        let odd: Vec<u32> = (0..100).map(|n| n * 2 + 1).collect();
        assert_eq!(name(&odd), "CPUs 1, 3, 5, 7, 9, 11, 13, 15 and 92 others");
    }
}
