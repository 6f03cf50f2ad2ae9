use super::evaluate::{Boot, Evaluation, Files};
use super::{ESP, ROOT};

/// The configuration that `update-grub` of Debian 13 writes on a disk with one kernel and a serial port.
const WRITTEN: &str = include_str!("written.cfg");
const UUID: &str = "5ea3a4c0-0d13-4b1a-9c50-6e2f1c7d8a02";

/// Files by device and path.
struct Disk(Vec<(&'static str, &'static str, String)>);

impl Files for Disk {
    fn read(&self, device: &str, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let named = |(on, name, _): &&(&str, &str, String)| (*on, *name) == (device, path);
        let found = self.0.iter().find(named);
        Ok(found.map(|(_, _, content)| content.clone().into_bytes()))
    }

    fn device_of(&self, uuid: &str) -> Option<String> {
        (uuid == UUID).then(|| ROOT.to_owned())
    }
}

/// Returns a disk with this configuration and environment block.
fn disk(config: &str, environment: &str) -> Disk {
    let first = format!(
        "search.fs_uuid {UUID} root hd0,gpt2\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
    );
    Disk(vec![
        (ESP, "/EFI/debian/grub.cfg", first),
        (ROOT, "/boot/grub/grub.cfg", config.to_owned()),
        (ROOT, "/boot/grub/grubenv", environment.to_owned()),
        (ROOT, "/boot/vmlinuz-6.12", "kernel".to_owned()),
        (ROOT, "/boot/initrd.img-6.12", "initrd".to_owned()),
    ])
}

fn boot(config: &str, environment: &str) -> anyhow::Result<Boot> {
    let disk = disk(config, environment);
    let mut evaluation = Evaluation::new(&disk);
    evaluation.set("root", ESP);
    evaluation.boot(&format!("({ESP})/EFI/debian/grub.cfg"))
}

#[test]
fn the_configuration_that_update_grub_writes_boots_its_first_entry() {
    let booted = boot(WRITTEN, "# GRUB Environment Block\n").unwrap();
    assert_eq!(booted.kernel, "/boot/vmlinuz-6.12");
    assert_eq!(booted.initrd.as_deref(), Some("/boot/initrd.img-6.12"));
    assert_eq!(
        booted.command_line,
        format!("BOOT_IMAGE=/boot/vmlinuz-6.12 root=UUID={UUID} ro console=ttyS0 quiet")
    );
}

#[test]
fn the_environment_block_chooses_an_entry_once() {
    let recovery = "gnulinux-advanced>gnulinux-6.12-recovery";
    let booted = boot(WRITTEN, &format!("next_entry={recovery}\n")).unwrap();
    assert!(booted.command_line.contains(" single "), "{booted:?}");
    let title = "next_entry=No such entry\n";
    assert_eq!(boot(WRITTEN, title).unwrap(), boot(WRITTEN, "").unwrap());
}

#[test]
fn a_command_that_can_t_be_evaluated_is_named_with_its_line() {
    for (config, said) in [
        (
            "\nmenuentry a {\nchainloader /x\n}\n",
            "grub.cfg:3: `chainloader /x` can't be evaluated",
        ),
        (
            "set x=1\nif [ 1 -lt 2 ]; then true; fi\n",
            "grub.cfg:2: `[ 1 -lt 2 ]` can't be evaluated",
        ),
        (
            "for x in a; do true; done\n",
            "line 1: `for` can't be evaluated",
        ),
        ("function f { f; }\nf\n", "it calls itself"),
        ("menuentry a {\ntrue\n}\n", "the entry `a` starts no kernel"),
        ("set x=1\n", "it has no entry to boot"),
        ("linux /boot/none\n", "there is no (hd0,gpt2)/boot/none"),
        ("echo 'a\n", "line 1: a quote without its end"),
        ("if true; then true\n", "no `fi`"),
    ] {
        let error = format!("{:#}", boot(config, "").unwrap_err());
        assert!(error.contains(said), "{config:?}: {error}");
    }
}

#[test]
fn words_are_split_and_joined_as_grub_does() {
    let line = |linux: &str| {
        let config = format!("set two='a b'\nset none=\n{linux}\n");
        boot(&config, "").unwrap().command_line
    };
    for (written, expected) in [
        ("linux /boot/vmlinuz-6.12 $two", "a b"),
        ("linux /boot/vmlinuz-6.12 \"$two\"", "\"a b\""),
        ("linux /boot/vmlinuz-6.12 x${two}y", "xa by"),
        ("linux /boot/vmlinuz-6.12 $none q", "q"),
        ("linux /boot/vmlinuz-6.12 'x'\"y\"z # comment", "xyz"),
        ("linux /boot/vmlinuz-6.12 a\\ b", "\"a b\""),
    ] {
        assert_eq!(
            line(written),
            format!("BOOT_IMAGE=/boot/vmlinuz-6.12 {expected}")
        );
    }
}

proptest::proptest! {
    #[test]
    fn any_text_boots_or_gives_an_error(text: String) {
        let _ = boot(&text, &text);
    }
}
