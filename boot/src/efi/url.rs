//! Addresses of files on the HTTP server that the program was loaded from.
//!
//! Source: RFC 3986, sections 2.3, 3 and 3.3.

use alloc::{format, string::String};
use core::fmt::Write;

/// The address of a folder on a server, with a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folder {
    url: String,
    /// The end of the host's name and the port.
    authority_end: usize,
}

impl Folder {
    /// Returns the folder of the file at `url`. Returns `None` if that is no address of an HTTP server.
    pub fn of(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        if !["http", "https"].contains(&&*scheme.to_ascii_lowercase()) {
            return None;
        }
        let start = url.len() - rest.len();
        let place = rest.find(['?', '#']).map_or(rest, |end| &rest[..end]);
        let authority = place.split('/').next()?;
        let authority_end = start + authority.len();
        let folder = match place.rfind('/') {
            Some(last) => &url[..=start + last],
            None => &url[..authority_end],
        };
        let mut folder = String::from(folder);
        if folder.len() == authority_end {
            folder.push('/');
        }
        let named = !authority.is_empty() && folder.bytes().all(|b| b.is_ascii_graphic());
        named.then_some(Self {
            url: folder,
            authority_end,
        })
    }

    /// Returns the address of the file at `path` in the folder.
    pub fn file(&self, path: &str) -> String {
        let mut url = self.url.clone();
        for byte in path.trim_start_matches('/').bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                    url.push(byte.into());
                }
                // Writing to a string does not fail.
                _ => drop(write!(url, "%{byte:02X}")),
            }
        }
        url
    }

    /// Returns the server's name and port, as a request's field Host has them.
    pub fn host(&self) -> &str {
        let authority = &self.url[..self.authority_end];
        authority.rsplit(['/', '@']).next().unwrap_or(authority)
    }

    /// Goes to the server's root. Returns whether that is another folder.
    pub fn go_to_root(&mut self) -> bool {
        let root = format!("{}/", &self.url[..self.authority_end]);
        let moved = self.url != root;
        self.url = root;
        moved
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn files_are_next_to_the_program_or_in_the_root() {
        for (program, beside, root) in [
            (
                "http://10.77.1.1/seamark.efi",
                "http://10.77.1.1/vmlinuz",
                "http://10.77.1.1/vmlinuz",
            ),
            (
                "HTTPS://boot.test:8443/a/b/seamark.efi?v=1/2#x",
                "HTTPS://boot.test:8443/a/b/vmlinuz",
                "HTTPS://boot.test:8443/vmlinuz",
            ),
            ("http://boot", "http://boot/vmlinuz", "http://boot/vmlinuz"),
            (
                "http://boot?a/b",
                "http://boot/vmlinuz",
                "http://boot/vmlinuz",
            ),
        ] {
            let mut folder = Folder::of(program).unwrap();
            assert_eq!(folder.file("vmlinuz"), beside);
            assert_eq!(folder.go_to_root(), beside != root);
            assert_eq!(folder.file("vmlinuz"), root);
            assert!(!folder.go_to_root());
        }
    }

    #[test]
    fn the_host_is_named_with_its_port_and_without_a_user() {
        let host = |url| Folder::of(url).map(|folder| String::from(folder.host()));
        assert_eq!(host("http://a:8080/x").as_deref(), Some("a:8080"));
        assert_eq!(host("http://me@a/x/y").as_deref(), Some("a"));
        assert_eq!(
            host("http://[fe80::1]:80/x").as_deref(),
            Some("[fe80::1]:80")
        );
        for wrong in [
            "",
            "a/b",
            "tftp://a/b",
            "http:///b",
            "http://a b/c",
            "http://",
        ] {
            assert_eq!(Folder::of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_path_is_written_as_an_address_requires() {
        let folder = Folder::of("http://a/").unwrap();
        assert_eq!(
            folder.file("/my kernel/ü?"),
            "http://a/my%20kernel/%C3%BC%3F"
        );
    }

    proptest! {
        #[test]
        fn any_address_is_survived(url in "(http://)?[a-z/?#@:é ]{0,12}", path: String) {
            if let Some(mut folder) = Folder::of(&url) {
                prop_assert!(folder.file(&path).bytes().all(|b| b.is_ascii_graphic()));
                folder.host();
                folder.go_to_root();
                prop_assert!(folder.file("x").ends_with("/x"));
            }
        }
    }
}
