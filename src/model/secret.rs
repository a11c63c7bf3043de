//! Text that must not leak: wiped when dropped, never shown by `Debug`.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

/// A password, token or other secret text. Serialises as the plain text: only put it into messages whose receiver may
/// know it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself; the name makes each use easy to find.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// `text` with user and password taken out of each URL in it: an image may be fetched with them, and is named in tables,
/// events and messages.
pub fn redact_urls(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        clean.push_str(before);
        clean.push_str("://");
        let ends_url = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>' | '\\');
        let url = after.split(ends_url).next().unwrap_or_default();
        let authority = url.split(['/', '?', '#']).next().unwrap_or_default();
        rest = after;
        if let Some((_, host)) = authority.rsplit_once('@') {
            clean.push_str("***@");
            rest = after.get(authority.len().saturating_sub(host.len())..).unwrap_or_default();
        }
        // What is left of this URL, in which another may stand.
        let left = url.len().saturating_sub(after.len().saturating_sub(rest.len()));
        let (url, behind) = rest.split_at_checked(left).unwrap_or((rest, ""));
        let address = url.split('#').next().unwrap_or_default();
        if let Some((path, query)) = address.split_once('?')
            && !query.is_empty()
        {
            clean.push_str(&redact_urls(path));
            clean.push_str("?***");
            clean.push_str(url.get(address.len()..).unwrap_or_default());
            rest = behind;
        }
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::{Secret, redact_urls};

    #[test]
    fn no_url_shows_who_fetches_it() {
        for (text, clean) in [
            ("https://ann:pw@host/i.qcow2", "https://***@host/i.qcow2"),
            ("https://t0ken@host", "https://***@host"),
            ("cannot fetch \"http://a:p@x@host:80/i?q=1\": no", "cannot fetch \"http://***@host:80/i?***\": no"),
            ("http://h/a@b and https://u:p@h2/", "http://h/a@b and https://***@h2/"),
            ("ghcr.io/org/image@sha256:ab", "ghcr.io/org/image@sha256:ab"),
            ("https://h/i.qcow2?X-Signature=s3cret&a=b#sha256=ab is gone", "https://h/i.qcow2?***#sha256=ab is gone"),
            ("https://u:p@h?token=t https://u:p@h2/?b=c", "https://***@h?*** https://***@h2/?***"),
            ("https://h/?next=https://u:p@h2/", "https://h/?***"),
            ("https://h/https://u:p@h2/?q=1", "https://h/https://***@h2/?***"),
            ("what? https://h/", "what? https://h/"),
            ("://@", "://***@"),
            ("", ""),
        ] {
            assert_eq!(redact_urls(text), clean);
        }
    }

    #[test]
    fn debug_does_not_show_it() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
    }
}
