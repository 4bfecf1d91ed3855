//! Artifacts in a bucket of S3, or of anything that speaks its protocol.

use super::{ArtifactError, Settings};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of one part of a large file. S3 takes parts of at least 5 MiB and at most 10,000 of them.
pub(super) const PART_BYTES: usize = 8 << 20;
/// Longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// Longest a request may take: a part at 300 kB/s.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// Where the endpoint is named, the most specific variable first.
const ENDPOINT: &[&str] = &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
/// Ways to have credentials that do not ask the machine's metadata service.
const CREDENTIALS: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
];

/// The bucket at `url`, `s3://BUCKET[/PREFIX]`. What fails is tried again for as long as `patience`.
pub(super) fn open(
    url: &str,
    settings: &Settings,
    patience: Duration,
) -> Result<Arc<dyn ObjectStore>, ArtifactError> {
    let (bucket, prefix) = parts(url).ok_or_else(|| ArtifactError::BucketUrl(url.to_owned()))?;
    let unusable = |reason: String| ArtifactError::Settings {
        url: url.to_owned(),
        reason,
    };
    let plain = is_plain(settings).map_err(unusable)?;
    let mut builder = AmazonS3Builder::new();
    for (name, value) in &settings.0 {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    // The variables say nothing about these; the URL and this module do.
    let options = ClientOptions::new()
        .with_allow_http(plain)
        // They are not needed there, take time to load, and small images have none.
        .with_no_system_certificates(plain)
        .with_timeout(REQUEST_MAX)
        .with_connect_timeout(Duration::from_secs(5).min(patience));
    let retry = RetryConfig {
        backoff: BackoffConfig {
            max_backoff: BACKOFF_MAX,
            ..BackoffConfig::default()
        },
        max_retries: 1000,
        retry_timeout: patience,
    };
    // One of them has to be chosen for the process; if somebody was first, theirs is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = builder
        .with_bucket_name(bucket)
        .with_client_options(options)
        .with_retry(retry)
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    Ok(match prefix {
        "" => Arc::new(store),
        prefix => Arc::new(PrefixStore::new(store, prefix)),
    })
}

/// Bucket and prefix of a URL.
fn parts(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("s3://")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
    let whole = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['?', '#', '%']);
    let good = !bucket.is_empty()
        && bucket.chars().all(name)
        && (prefix.is_empty() || prefix.split('/').all(whole));
    good.then_some((bucket, prefix))
}

/// Whether the endpoint is to be spoken to without encryption; what is wrong when that is not safe,
/// or when there is nothing to sign requests with.
fn is_plain(settings: &Settings) -> Result<bool, String> {
    let Some(endpoint) = settings.find(ENDPOINT) else {
        return Ok(false); // Amazon's, encrypted; its machines have credentials of their own
    };
    if settings.find(CREDENTIALS).is_none() {
        return Err(format!(
            "there are no credentials for {endpoint}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ));
    }
    let Some(rest) = endpoint.strip_prefix("http://") else {
        return Ok(false);
    };
    let allowed = settings.find(&["AWS_ALLOW_HTTP"]);
    if allowed.is_some_and(|value| value.eq_ignore_ascii_case("true")) || is_loopback(rest) {
        return Ok(true);
    }
    Err(format!(
        "nothing is encrypted on the way to {endpoint}: use https, or set AWS_ALLOW_HTTP=true if the network is trusted"
    ))
}

/// Whether `HOST[:PORT][/...]` is this machine.
fn is_loopback(authority: &str) -> bool {
    let authority = authority.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Settings {
        pairs.iter().copied().collect()
    }

    #[test]
    fn urls_name_a_bucket_and_a_prefix() {
        for (url, expected) in [
            ("s3://b", Some(("b", ""))),
            ("s3://my-bucket.1/a/b/", Some(("my-bucket.1", "a/b"))),
            ("s3://b//a", None),
            ("s3://b/../a", None),
            ("s3://b/a?x=1", None),
            ("s3://user:pass@b", None),
            ("s3://B", None),
            ("s3://", None),
            ("s3:b", None),
        ] {
            assert_eq!(parts(url), expected, "{url}");
        }
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear() {
        let key = ("AWS_ACCESS_KEY_ID", "k");
        for (endpoint, plain) in [
            ("http://127.0.0.1:9000", true),
            ("http://localhost:9000/", true),
            ("http://[::1]:9000", true),
            ("https://s3.example", false),
        ] {
            let settings = with(&[("AWS_ENDPOINT_URL", endpoint), key]);
            assert_eq!(is_plain(&settings), Ok(plain), "{endpoint}");
        }
        for endpoint in [
            "http://s3.example",
            "http://127.0.0.1.example:1",
            "http://10.0.0.1",
        ] {
            let endpoint = ("AWS_ENDPOINT_URL", endpoint);
            let reason = is_plain(&with(&[endpoint, key])).expect_err("refused");
            assert!(reason.contains("AWS_ALLOW_HTTP=true"), "{reason}");
            let allowed = with(&[endpoint, key, ("AWS_ALLOW_HTTP", "true")]);
            assert_eq!(is_plain(&allowed), Ok(true));
        }
    }

    #[test]
    fn an_endpoint_without_credentials_is_refused_at_once() {
        let settings = with(&[
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
            ("AWS_SECRET_ACCESS_KEY", "do not show this"),
        ]);
        assert!(!format!("{settings:?}").contains("do not show"));
        let error = open("s3://b", &settings, Duration::ZERO)
            .expect_err("refused")
            .to_string();
        assert!(error.contains("AWS_SECRET_ACCESS_KEY"), "{error}");
    }
}
