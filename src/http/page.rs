//! The files that a browser shows: the page at `/` and what it is made of, and the description of every route (OpenAPI
//! 3.1) with a page at `/api` that renders it. Built into the binary.
//!
//! Always true: no file holds anything of the node, so that all may be loaded without a token; none lets the browser
//! ask anybody but this node, nor anybody show it within a page of theirs.

use std::sync::OnceLock;

use bytes::Bytes;
use hyper::{Method, StatusCode, header};

use super::wire::{Asked, Form, Reply, names_tag, not_allowed};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// What the page may do: its own files and this node's routes, no text that becomes markup or script.
const STRICT: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// What Swagger UI may do: that, but it writes markup and shows arrows out of its style sheet. Its own files and the
/// description are all it may read; it can send nothing that it was not told to.
const RENDERS: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

/// Where the description is read, on either side.
pub(super) const DESCRIPTION: &str = "/openapi.yaml";

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
    /// `ETag`, worked out when it is first asked for.
    tag: OnceLock<String>,
}

/// A file of the repository under a path.
macro_rules! file {
    ($path:literal, $media_type:expr, $policy:expr, $from:literal) => {{
        static FILE: File = File {
            path: $path,
            media_type: $media_type,
            policy: $policy,
            bytes: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $from)),
            tag: OnceLock::new(),
        };
        &FILE
    }};
}

/// RFC 9512
static CONTRACT: &File = file!(
    "/openapi.yaml",
    "application/yaml",
    STRICT,
    "docs/openapi.yaml"
);

static FILES: &[&File] = &[
    CONTRACT,
    file!("/api", HTML, RENDERS, "assets/api.html"),
    file!("/assets/api.css", STYLE, RENDERS, "assets/api.css"),
    file!("/assets/swagger.js", SCRIPT, RENDERS, "assets/swagger.js"),
    file!(
        "/assets/swagger-ui.css",
        STYLE,
        RENDERS,
        "vendor/swagger-ui/swagger-ui.css"
    ),
    file!(
        "/assets/swagger-ui-bundle.js",
        SCRIPT,
        RENDERS,
        "vendor/swagger-ui/swagger-ui-bundle.js"
    ),
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
    Some(file.given_to(asked))
}

/// The description of every route.
pub(super) fn description(asked: &Asked) -> Reply {
    CONTRACT.given_to(asked)
}

impl File {
    fn given_to(&self, asked: &Asked) -> Reply {
        let tag = self.tag.get_or_init(|| {
            let hash = blake3::hash(self.bytes).to_hex();
            format!("\"{}\"", hash.get(..16).unwrap_or_default())
        });
        let held = asked.headers(header::IF_NONE_MATCH);
        // A 304 has the length of the file that it stands for; its body is not sent.
        let code = if held.into_iter().any(|held| names_tag(held, tag)) {
            StatusCode::NOT_MODIFIED
        } else {
            StatusCode::OK
        };
        let reply = Reply::new(
            code,
            Form::File(self.media_type),
            Bytes::from_static(self.bytes),
        )
        .with(header::ETAG, tag)
        .with(header::CONTENT_SECURITY_POLICY, self.policy);
        GUARDS.iter().fold(reply, |reply, (name, value)| {
            reply.with(header::HeaderName::from_static(name), value)
        })
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderMap, HeaderValue};
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::answer::Field;
    use crate::feed::handle::Difference;
    use crate::health::{FeedState, Held, LastError};
    use crate::metrics::{Certificate, Label as _};
    use crate::row::{Reason, Table};
    use crate::watch::Standing;

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

    /// A part of the description.
    fn described(pointer: &str) -> Value {
        let text = std::str::from_utf8(CONTRACT.bytes).unwrap();
        let description: Value = serde_saphyr::from_str(text).unwrap();
        let part = description.pointer(&format!("/components/schemas/{pointer}"));
        part.unwrap_or_else(|| panic!("{pointer}")).clone()
    }

    #[test]
    fn the_description_has_every_word_that_the_code_has() {
        let fields: Vec<&str> = Field::ALL.iter().map(|field| field.name()).collect();
        assert_eq!(described("FieldName/enum"), json!(fields));
        for (pointer, words) in [
            (
                "FeedState/enum",
                FeedState::ALL.map(FeedState::as_str).to_vec(),
            ),
            ("Table/enum", Table::ALL.map(Table::as_str).to_vec()),
            (
                "Status/properties/certificates/items/properties/certificate/enum",
                Certificate::ALL.iter().map(|one| one.label()).collect(),
            ),
            (
                "Fault/properties/reason/enum",
                Reason::ALL.map(Reason::as_str).to_vec(),
            ),
        ] {
            assert_eq!(described(pointer), json!(words), "{pointer}");
        }
        let mut standings: Vec<Value> = ["WatchedNumber", "WatchedTenant"]
            .map(|name| described(&format!("{name}/properties/status/enum")))
            .iter()
            .flat_map(|words| words.as_array().unwrap().clone())
            .collect();
        standings.sort_by_key(Value::to_string);
        standings.dedup();
        let mut known = Standing::ALL.map(Standing::as_str);
        known.sort_unstable();
        assert_eq!(json!(standings), json!(known));
    }

    #[test]
    fn what_is_seldom_sent_has_the_fields_that_are_described() {
        let at = Timestamp::UNIX_EPOCH;
        let held = Held {
            since: at,
            tenants: 1,
            numbers: 2,
            remedy: String::new(),
        };
        let error = LastError {
            at,
            text: String::new(),
        };
        let difference = Difference {
            table: Table::Tenants,
            key: String::new(),
            what: "missing".to_owned(),
        };
        for (pointer, sent) in [
            ("FeedStatus/properties/held", json!(held)),
            ("FeedStatus/properties/last_error", json!(error)),
            ("VerifyReport/properties/first/items", json!(difference)),
        ] {
            let described = described(&format!("{pointer}/properties"));
            let described: Vec<&String> = described.as_object().unwrap().keys().collect();
            let sent: Vec<&String> = sent.as_object().unwrap().keys().collect();
            assert_eq!(sent, described, "{pointer}");
        }
    }
}
