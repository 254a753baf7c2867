//! Whether a request was meant for this host: what keeps a page in somebody's browser from asking here under a name of
//! its own, and a page of another origin from acting as an operator.

use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::header::{self, HeaderMap};
use hyper::{Method, Uri, Version};

use super::wire::{Fail, is_old};
use crate::metrics::Outcome;

/// Checks the request's authority, `Host` and `Origin`: each, where given, must name the loopback.
///
/// `names` are those that this node has besides.
pub(super) fn check(
    headers: &HeaderMap,
    uri: &Uri,
    version: Version,
    names: &[String],
) -> Result<(), Fail> {
    let forbidden = |what: &str| {
        Err(Fail::new(
            Outcome::Forbidden,
            format!("{what} must name localhost, a loopback address or a name of this node's"),
        ))
    };
    let is_ours = |authority: &str| is_loopback(authority) || is_named(authority, names);
    if uri
        .authority()
        .is_some_and(|authority| !is_ours(authority.as_str()))
    {
        return forbidden("the target");
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if is_old(version) => {}
        (None, _) => return Err(Fail::new(Outcome::BadRequest, "Host is missing")),
        (Some(_), Some(_)) => return Err(Fail::new(Outcome::BadRequest, "Host is given twice")),
        (Some(host), None) if host.to_str().is_ok_and(is_ours) => {}
        (Some(_), None) => return forbidden("Host"),
    }
    for origin in headers.get_all(header::ORIGIN) {
        let host = origin.to_str().ok().and_then(|origin| {
            origin
                .strip_prefix("http://")
                .or_else(|| origin.strip_prefix("https://"))
        });
        if !host.is_some_and(is_ours) {
            return forbidden("Origin");
        }
    }
    Ok(())
}

/// Checks that a request of a browser comes from the page of this very listener, and that what changes something says
/// that it is JSON, which no page of another origin can without being asked first. Who is no browser has none of these
/// headers.
pub(super) fn check_same_origin(method: &Method, headers: &HeaderMap) -> Result<(), Fail> {
    let forbidden = |what: &str| Err(Fail::new(Outcome::Forbidden, what));
    let text = |name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let (origin, site) = (text("origin"), text("sec-fetch-site"));
    if let Some(origin) = origin {
        let of = origin.split_once("://").map(|(_, authority)| authority);
        let same = |of: &str| text("host").is_some_and(|host| host.eq_ignore_ascii_case(of));
        if !of.is_some_and(same) || headers.get_all("origin").iter().count() > 1 {
            return forbidden("Origin must be the page of this listener");
        }
    }
    if site.is_some_and(|site| site != "same-origin" && site != "none") {
        return forbidden("only the page of this listener may ask here from a browser");
    }
    let reads = method == Method::GET || method == Method::HEAD;
    let json = |kind: &str| {
        let essence = kind.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case("application/json")
    };
    if !reads && (origin.is_some() || site.is_some()) && !text("content-type").is_some_and(json) {
        return forbidden("Content-Type must be application/json");
    }
    Ok(())
}

/// As [`check`], for a request without `Origin` whose `Host`, if it has one, is this; where none of that counts, there
/// are no `names`.
pub(super) fn is_meant(host: Option<&str>, names: Option<&[String]>) -> bool {
    let Some(names) = names else {
        return true;
    };
    host.is_some_and(|host| is_loopback(host) || is_named(host, names))
}

/// One of these names, with or without a port.
fn is_named(authority: &str, names: &[String]) -> bool {
    names.iter().any(|name| {
        let rest = authority
            .get(..name.len())
            .filter(|start| start.eq_ignore_ascii_case(name))
            .and_then(|_| authority.get(name.len()..));
        match rest {
            None => false,
            Some("") => true,
            Some(rest) => rest.strip_prefix(':').is_some_and(|port| {
                port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
            }),
        }
    })
}

/// `localhost`, `127.x.x.x` or `[::1]`, with or without a port.
fn is_loopback(authority: &str) -> bool {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    if port.is_some_and(|port| {
        !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err()
    }) {
        return false;
    }
    let v6 = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback())
        || v6.is_some_and(|host| {
            host.parse::<Ipv6Addr>()
                .is_ok_and(|address| address.is_loopback())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(version: Version, target: &str, headers: &[(&str, &str)]) -> Option<Outcome> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                hyper::header::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        check(
            &map,
            &target.parse().unwrap(),
            version,
            &["n1.example".to_owned()],
        )
        .err()
        .map(|fail| fail.outcome)
    }

    #[test]
    fn a_loopback_host_is_let_through_with_and_without_a_port() {
        for host in [
            "localhost",
            "LocalHost:8377",
            "127.0.0.1",
            "127.8.9.1:80",
            "[::1]",
            "[::1]:8377",
        ] {
            assert_eq!(
                outcome(Version::HTTP_11, "/", &[("host", host)]),
                None,
                "{host}"
            );
        }
    }

    #[test]
    fn a_name_of_this_node_is_let_through_whole_and_no_longer_one() {
        for (host, told) in [
            ("n1.example", None),
            ("N1.example:8378", None),
            ("n1.example:", Some(Outcome::Forbidden)),
            ("n1.example.org", Some(Outcome::Forbidden)),
            ("xn1.example", Some(Outcome::Forbidden)),
        ] {
            assert_eq!(
                outcome(Version::HTTP_11, "/", &[("host", host)]),
                told,
                "{host}"
            );
        }
    }

    #[test]
    fn any_other_host_is_forbidden() {
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "localhost:",
            "localhost:x",
            "localhost:99999",
            "127.0.0.1.nip.io",
            "128.0.0.1",
            "0.0.0.0",
            "[::2]",
            "::1",
            "[::1",
            "user@localhost",
            "localhost:+80",
            "127.1",
        ] {
            assert_eq!(
                outcome(Version::HTTP_11, "/", &[("host", host)]),
                Some(Outcome::Forbidden),
                "{host}"
            );
        }
    }

    #[test]
    fn the_host_may_be_missing_only_in_http_1_0_and_is_never_given_twice() {
        assert_eq!(outcome(Version::HTTP_10, "/", &[]), None);
        assert_eq!(
            outcome(Version::HTTP_11, "/", &[]),
            Some(Outcome::BadRequest)
        );
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(
            outcome(Version::HTTP_11, "/", &twice),
            Some(Outcome::BadRequest)
        );
    }

    #[test]
    fn a_target_with_another_authority_is_forbidden() {
        let host = [("host", "localhost")];
        assert_eq!(
            outcome(Version::HTTP_11, "http://evil.example/v1/lookup", &host),
            Some(Outcome::Forbidden)
        );
        assert_eq!(
            outcome(Version::HTTP_11, "http://localhost:8377/v1/lookup", &host),
            None
        );
    }

    #[test]
    fn an_origin_must_be_a_page_of_this_host() {
        let with = |origin| {
            outcome(
                Version::HTTP_11,
                "/",
                &[("host", "localhost"), ("origin", origin)],
            )
        };
        assert_eq!(with("http://localhost:3000"), None);
        assert_eq!(with("https://127.0.0.1"), None);
        for origin in [
            "null",
            "http://evil.example",
            "file://",
            "http://localhost.evil.example",
            "",
        ] {
            assert_eq!(with(origin), Some(Outcome::Forbidden), "{origin}");
        }
    }

    #[test]
    fn a_browser_asks_operators_things_from_the_page_of_the_listener_alone() {
        let checked = |method: Method, headers: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            map.insert("host", "localhost:8378".parse().unwrap());
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            check_same_origin(&method, &map).is_ok()
        };
        let own = ("origin", "http://localhost:8378");
        let json = ("content-type", "application/json; charset=utf-8");
        let from = |site| ("sec-fetch-site", site);
        assert!(checked(Method::POST, &[]), "no browser");
        assert!(checked(Method::POST, &[("content-type", "text/plain")]));
        assert!(checked(Method::GET, &[from("same-origin")]));
        assert!(checked(Method::GET, &[from("none")]));
        assert!(checked(Method::POST, &[own, from("same-origin"), json]));
        for wrong in [
            &[own, from("same-origin")][..],
            &[own, ("content-type", "text/plain")],
            &[from("same-origin"), ("content-type", "text/plain")],
            &[("origin", "http://localhost:3000"), json],
            &[("origin", "http://localhost"), json],
            &[("origin", "null"), json],
            &[own, ("origin", "http://evil.example"), json],
            &[from("cross-site"), json],
            &[from("same-site"), json],
        ] {
            assert!(!checked(Method::POST, wrong), "{wrong:?}");
        }
        assert!(!checked(
            Method::GET,
            &[("origin", "http://localhost:3000")]
        ));
        assert!(!checked(Method::GET, &[from("cross-site")]));
    }
}
