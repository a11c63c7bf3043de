//! Where an image comes from, read out of the text a user gave, and what a disk image's first bytes tell. Pure.

use std::path::PathBuf;

use reqwest::Url;

use super::super::RuntimeError;
use crate::model::image;

/// An image as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where its bytes are.
    pub place: Place,
    /// The SHA-256 they must have, in lower-case hex.
    pub sha256: Option<String>,
}

/// Where an image's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An absolute path on the worker.
    File(PathBuf),
    /// A web address, without fragment.
    Web(Url),
}

impl Source {
    /// Reads what a user wrote: `/path`, `file:///path` or `https://…`, the latter two with `#sha256=HEX` if wanted.
    ///
    /// # Errors
    /// [`RuntimeError::Image`] saying what would be accepted.
    pub fn parse(text: &str) -> Result<Self, RuntimeError> {
        let refuse = |why: &str| {
            Err(RuntimeError::Image(format!(
                "image {:?} {why}; QEMU takes an absolute path on the worker, a file:// or an http(s):// URL of a \
                 qcow2 or raw disk image, URLs optionally with #sha256=HEX",
                image::shown(text)
            )))
        };
        if text.starts_with('/') {
            return Ok(Self { place: Place::File(PathBuf::from(text)), sha256: None });
        }
        let Ok(mut url) = Url::parse(text) else { return refuse("is neither a path nor a URL") };
        let sha256 = match url.fragment() {
            None => None,
            Some(fragment) => match fragment.strip_prefix("sha256=") {
                Some(hex) if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
                    Some(hex.to_ascii_lowercase())
                }
                _ => return refuse("has a part after # that is not sha256= and 64 hexadecimal digits"),
            },
        };
        url.set_fragment(None);
        match url.scheme() {
            "http" | "https" => Ok(Self { place: Place::Web(url), sha256 }),
            "file" => match url.to_file_path() {
                Ok(path) => Ok(Self { place: Place::File(path), sha256 }),
                Err(()) => refuse("names a file on another host"),
            },
            _ => refuse("is of a kind it cannot fetch"),
        }
    }

    /// The source for people: without credentials and query, which may hold secrets.
    pub fn shown(&self) -> String {
        match &self.place {
            Place::File(path) => path.display().to_string(),
            Place::Web(url) => {
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
            }
        }
    }
}

/// The form of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// QEMU's own.
    Qcow2,
    /// The disk's bytes.
    Raw,
}

impl Format {
    /// The name that QEMU knows it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
        }
    }
}

/// How many bytes [`inspect`] wants to see.
pub const HEADER_LEN: usize = 512;

/// What other files begin with, and what they are.
const FOREIGN: &[(&[u8], &str)] = &[
    (b"KDMV", "a VMDK image"),
    (b"# Disk DescriptorFile", "a VMDK description"),
    (b"vhdxfile", "a VHDX image"),
    (b"conectix", "a VHD image"),
    (b"<<< ", "a VDI image"),
    (b"QED\0", "a QED image"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\xfd7zXZ\0", "xz-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"BZh", "bzip2-compressed"),
    (b"PK\x03\x04", "a zip archive"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
];

/// Tells the form of an image of `len` bytes by its header, before any tool opens it: a hostile qcow2 can name any file
/// of the host as its backing or data file, and some tools open those even when only asked about the image.
///
/// # Errors
/// Why it cannot be used, to follow "the image".
pub fn inspect(header: &[u8], len: u64) -> Result<Format, String> {
    let number = |at: usize, bytes: usize| {
        header.get(at..at + bytes).map(|b| b.iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte)))
    };
    if header.starts_with(b"QFI\xfb") {
        let cut = || "is cut off within its qcow2 header".to_owned();
        let version = number(4, 4).ok_or_else(cut)?;
        if !(2..=3).contains(&version) {
            return Err(format!("is a qcow of version {version}; only 2 and 3 are supported"));
        }
        if number(8, 8).ok_or_else(cut)? != 0 {
            return Err("builds on another image (backing file); flatten it with qemu-img convert -O qcow2".to_owned());
        }
        if number(32, 4).ok_or_else(cut)? != 0 {
            return Err("is encrypted; convert it to a plain one".to_owned());
        }
        const EXTERNAL_DATA: u64 = 1 << 2;
        if version == 3 && number(72, 8).ok_or_else(cut)? & EXTERNAL_DATA != 0 {
            return Err("keeps its data in another file; convert it with qemu-img convert -O qcow2".to_owned());
        }
        return Ok(Format::Qcow2);
    }
    if let Some((_, what)) = FOREIGN.iter().find(|(magic, _)| header.starts_with(magic)) {
        return Err(format!("is {what}; give a qcow2 or raw disk image"));
    }
    if len == 0 || !len.is_multiple_of(512) {
        return Err(format!(
            "is neither qcow2 nor raw: its {len} bytes are not a whole number of 512-byte sectors; is it cut off?"
        ));
    }
    Ok(Format::Raw)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_and_urls_are_read() {
        let file = |text: &str| Source { place: Place::File(text.into()), sha256: None };
        assert_eq!(Source::parse("/a b,c#d.qcow2").unwrap(), file("/a b,c#d.qcow2"));
        assert_eq!(Source::parse("file:///a%20b").unwrap(), file("/a b"));
        let digest = "AB".repeat(32);
        let web = Source::parse(&format!("https://u:p@h.example:8443/x.img?token=t#sha256={digest}")).unwrap();
        assert_eq!(web.sha256, Some(digest.to_lowercase()));
        assert_eq!(web.shown(), "https://h.example:8443/x.img");
        assert!(matches!(&web.place, Place::Web(url) if url.fragment().is_none()));
    }

    #[test]
    fn what_qemu_cannot_fetch_is_refused_with_what_it_can() {
        for text in
            ["", "ghcr.io/x/y:latest", "relative/path", "-drive", "nbd://host/x", "https://h/x#sha256=12", "file://h/x"]
        {
            let error = Source::parse(text).unwrap_err();
            assert!(matches!(&error, RuntimeError::Image(why) if why.contains("absolute path")), "{text:?}: {error}");
        }
    }

    fn qcow2(change: impl FnOnce(&mut Vec<u8>)) -> Result<Format, String> {
        let mut header = vec![0; HEADER_LEN];
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        change(&mut header);
        inspect(&header, 1 << 20)
    }

    #[test]
    fn an_image_that_names_another_file_is_refused() {
        assert_eq!(qcow2(|_| ()), Ok(Format::Qcow2));
        assert!(qcow2(|h| h[15] = 104).unwrap_err().contains("backing file"));
        assert!(qcow2(|h| h[79] = 4).unwrap_err().contains("data in another file"));
        assert!(qcow2(|h| h[35] = 1).unwrap_err().contains("encrypted"));
        assert!(qcow2(|h| h.truncate(20)).unwrap_err().contains("cut off"));
        assert!(inspect(b"KDMV", 512).unwrap_err().contains("VMDK"));
        assert!(inspect(b"hello", 5).unwrap_err().contains("512"));
        assert_eq!(inspect(&[0; 512], 1024), Ok(Format::Raw));
    }

    proptest! {
        #[test]
        fn no_text_or_header_upsets_the_parsers(text in ".*", bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Source::parse(&text);
            let _ = inspect(&bytes, bytes.len() as u64);
        }
    }
}
