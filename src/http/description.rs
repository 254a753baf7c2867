//! The description of every route, OpenAPI 3.1, as a file: `docs/openapi.yaml`, which is the contract.

use std::sync::LazyLock;

use bytes::Bytes;
use hyper::{StatusCode, header};

use super::wire::{Asked, Form, Reply, names_tag};

/// Where it is read, on either side.
pub(super) const PATH: &str = "/openapi.yaml";

const TEXT: &[u8] = include_bytes!("../../docs/openapi.yaml");

static ETAG: LazyLock<String> = LazyLock::new(|| {
    let hash = blake3::hash(TEXT).to_hex();
    format!("\"{}\"", hash.get(..32).unwrap_or_default())
});

/// The description, or that it is still the one which the caller has.
pub(super) fn answer(asked: &Asked) -> Reply {
    let mut given = asked.headers(header::IF_NONE_MATCH).into_iter();
    // A 304 has the length of the file that it stands for; its body is not sent.
    let code = if given.any(|given| names_tag(given, &ETAG)) {
        StatusCode::NOT_MODIFIED
    } else {
        StatusCode::OK
    };
    // RFC 9512
    Reply::new(
        code,
        Form::File("application/yaml"),
        Bytes::from_static(TEXT),
    )
    .with(header::ETAG, &ETAG)
}
