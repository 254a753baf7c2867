//! The files that a browser shows: the page at `/` and what it is made of, built into the binary.
//!
//! Always true: no file holds anything of the node, so that all may be loaded without a token; none lets the browser
//! ask anybody but this node, nor anybody show it within a page of theirs.

use hyper::{Method, StatusCode, header};

use super::wire::{Asked, Form, Reply, not_allowed};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// What the page may do: its own files and this node's routes, no text that becomes markup or script.
const STRICT: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// Headers of every file.
const GUARDS: [(&str, &str); 6] = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-cache"),
];

struct File {
    path: &'static str,
    media_type: &'static str,
    /// `Content-Security-Policy`
    policy: &'static str,
    bytes: &'static [u8],
}

/// A file of the repository under a path.
macro_rules! file {
    ($path:literal, $media_type:expr, $policy:expr, $from:literal) => {
        File {
            path: $path,
            media_type: $media_type,
            policy: $policy,
            bytes: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $from)),
        }
    };
}

const FILES: &[File] = &[
    file!("/", HTML, STRICT, "assets/index.html"),
    file!("/assets/page.css", STYLE, STRICT, "assets/page.css"),
    file!("/assets/icon.svg", SVG, STRICT, "assets/icon.svg"),
    file!("/assets/main.js", SCRIPT, STRICT, "assets/main.js"),
    file!("/assets/dom.js", SCRIPT, STRICT, "assets/dom.js"),
    file!("/assets/api.js", SCRIPT, STRICT, "assets/api.js"),
    file!("/assets/i18n.js", SCRIPT, STRICT, "assets/i18n.js"),
    file!("/assets/health.js", SCRIPT, STRICT, "assets/health.js"),
    file!("/assets/plots.js", SCRIPT, STRICT, "assets/plots.js"),
    file!("/assets/ask.js", SCRIPT, STRICT, "assets/ask.js"),
    file!("/assets/why.js", SCRIPT, STRICT, "assets/why.js"),
    file!("/assets/orders.js", SCRIPT, STRICT, "assets/orders.js"),
    file!(
        "/assets/uplot.css",
        STYLE,
        STRICT,
        "vendor/uplot/uPlot.min.css"
    ),
    file!(
        "/assets/uplot.js",
        SCRIPT,
        STRICT,
        "vendor/uplot/uPlot.iife.min.js"
    ),
];

/// The file of a path, if there is one.
pub(super) fn answer(asked: &Asked) -> Option<Reply> {
    let file = FILES.iter().find(|file| file.path == asked.path)?;
    if asked.method != Method::GET && asked.method != Method::HEAD {
        return Some(not_allowed("GET, HEAD", Form::Json));
    }
    let hash = blake3::hash(file.bytes).to_hex();
    let tag = format!("\"{}\"", hash.get(..16).unwrap_or_default());
    // A 304 has the length of the file that it stands for; its body is not sent.
    let code = if asked.header(header::IF_NONE_MATCH) == Some(tag.as_str()) {
        StatusCode::NOT_MODIFIED
    } else {
        StatusCode::OK
    };
    let reply = Reply::new(code, Form::File(file.media_type), file.bytes)
        .with(header::ETAG, &tag)
        .with(header::CONTENT_SECURITY_POLICY, file.policy);
    Some(GUARDS.iter().fold(reply, |reply, (name, value)| {
        reply.with(header::HeaderName::from_static(name), value)
    }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::header::{HeaderMap, HeaderValue};

    use super::*;

    fn asked(method: Method, path: &str, tag: Option<&str>) -> Asked {
        let mut headers = HeaderMap::new();
        if let Some(tag) = tag {
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_str(tag).unwrap());
        }
        Asked {
            method,
            path: path.to_owned(),
            query: String::new(),
            headers,
            body: Bytes::new(),
        }
    }

    fn named<'a>(reply: &'a Reply, name: &str) -> &'a str {
        let found = reply.headers().iter().find(|(given, _)| given == name);
        found.unwrap().1.to_str().unwrap()
    }

    #[test]
    fn every_file_is_given_once_with_its_guards_and_again_only_when_it_changed() {
        for file in FILES {
            let reply = answer(&asked(Method::GET, file.path, None)).unwrap();
            assert_eq!(
                (reply.code.as_u16(), reply.length(), reply.content_type()),
                (200, file.bytes.len(), file.media_type),
                "{}",
                file.path
            );
            assert_eq!(named(&reply, "x-content-type-options"), "nosniff");
            let policy = named(&reply, "content-security-policy");
            assert!(policy.starts_with("default-src 'none'; "), "{policy}");
            assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
            let again = asked(Method::GET, file.path, Some(named(&reply, "etag")));
            assert_eq!(answer(&again).unwrap().code.as_u16(), 304);
            let of_path = FILES.iter().filter(|other| other.path == file.path);
            assert_eq!(of_path.count(), 1, "{}", file.path);
        }
    }

    #[test]
    fn other_paths_are_no_files_and_nothing_is_written_to_a_file() {
        for path in [
            "",
            "/x",
            "//",
            "/assets/",
            "/assets/../Cargo.toml",
            "/v1/admin/status",
        ] {
            assert!(answer(&asked(Method::GET, path, None)).is_none(), "{path}");
        }
        let posted = answer(&asked(Method::POST, "/", None)).unwrap();
        assert_eq!(posted.code.as_u16(), 405);
    }
}
