//! When certificates end. Whether they are to be believed is judged by TLS, not here.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;

/// When the first of these certificates ends; one that cannot be read says nothing.
pub fn first_expiry<'a>(
    certificates: impl IntoIterator<Item = &'a CertificateDer<'a>>,
) -> Option<Timestamp> {
    certificates.into_iter().filter_map(expiry).min()
}

/// When a certificate ends: the last moment at which it is valid.
#[must_use]
pub fn expiry(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    // Raw (the feature `hazmat`): a serial that is against RFC 5280 does not matter here.
    let read = CertificateInner::<Raw>::from_der(certificate).ok()?;
    let since = read
        .tbs_certificate
        .validity
        .not_after
        .to_unix_duration()
        .as_secs();
    Timestamp::from_second(i64::try_from(since).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn ending(year: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 3, 1);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn the_first_of_several_counts_and_what_is_no_certificate_does_not() {
        let several = [ending(2031), ending(2027), ending(2052)];
        let at = |text: &str| Some(text.parse().unwrap());
        assert_eq!(first_expiry(&several), at("2027-03-01T00:00:00Z"));
        assert_eq!(expiry(&several[2]), at("2052-03-01T00:00:00Z"));
        let broken = CertificateDer::from(b"0\x82".to_vec());
        assert_eq!(
            first_expiry([&broken, &several[0]]),
            at("2031-03-01T00:00:00Z")
        );
        assert_eq!(first_expiry([&broken]), None);
        assert_eq!(first_expiry([]), None);
    }
}
