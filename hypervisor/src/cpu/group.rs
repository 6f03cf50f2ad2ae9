//! Sentences about CPUs: one for all CPUs of which the same is true.

use alloc::{string::String, vec::Vec};

use console::cpus::name;

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

#[cfg(test)]
mod tests {
    use alloc::format;

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
}
