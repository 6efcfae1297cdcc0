//! How a browser may treat somebody's file: shown, or only saved.

use ruma::http_headers::{ContentDisposition, ContentDispositionType};

/// Kinds of files that a browser may show: the specification's list. All others are only downloaded.
const INLINE: &[&str] = &[
    "application/json",
    "application/ld+json",
    "audio/aac",
    "audio/flac",
    "audio/mp4",
    "audio/mpeg",
    "audio/ogg",
    "audio/wav",
    "audio/wave",
    "audio/webm",
    "audio/x-flac",
    "audio/x-pn-wav",
    "audio/x-wav",
    "image/apng",
    "image/avif",
    "image/gif",
    "image/jpeg",
    "image/png",
    "image/webp",
    "text/css",
    "text/csv",
    "text/plain",
    "video/mp4",
    "video/ogg",
    "video/quicktime",
    "video/webm",
];

/// Inline for kinds that do no harm, else as an attachment.
pub fn disposition(kind: &str, name: Option<String>) -> ContentDisposition {
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let inline = INLINE.contains(&essence.as_str());
    let disposition =
        if inline { ContentDispositionType::Inline } else { ContentDispositionType::Attachment };
    // It becomes part of a header, to clients and to other servers.
    let name = name.map(|name| name.chars().filter(|letter| !letter.is_control()).collect::<String>());
    ContentDisposition::new(disposition).with_filename(name.filter(|name| !name.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_kinds_are_shown_inline() {
        for (kind, name, expected) in [
            ("image/png", Some("a.png"), "inline; filename=a.png"),
            ("Text/Plain; charset=utf-8", None, "inline"),
            ("text/html", Some("a.html"), "attachment; filename=a.html"),
            ("image/svg+xml", None, "attachment"),
            ("application/pdf", Some("ä.pdf"), "attachment; filename*=utf-8''%C3%A4.pdf"),
            ("nonsense", Some(""), "attachment"),
            ("text/plain", Some("a\r\nb: c"), "inline; filename=\"ab: c\""),
        ] {
            let name = name.map(str::to_owned);
            assert_eq!(disposition(kind, name).to_string(), expected);
        }
    }
}
