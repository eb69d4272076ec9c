//! Download of images and videos, where the caller allows it.

use std::time::Duration;

/// Limits of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// Timeout in seconds, from DNS lookup to the end of the body; 30.
    pub max_seconds: u64,
    /// Redirects to follow; 5.
    pub max_redirects: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self { max_seconds: 30, max_redirects: 5 }
    }
}

/// Error of a download.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The server responded with another status than 200.
    #[error("the server answers {status}, needed 200")]
    Status {
        /// Status code.
        status: u16,
    },
    /// The body is longer than the limit.
    #[error("more than the limit of {limit} bytes")]
    TooLarge {
        /// Bytes allowed.
        limit: u64,
    },
    /// The timeout elapsed.
    #[error("not there after {seconds} s, the limit")]
    Timeout {
        /// Seconds allowed.
        seconds: u64,
    },
    /// DNS, connection or TLS failed.
    #[error("no answer")]
    Transport(#[source] Box<ureq::Error>),
}

impl HttpLimits {
    /// The body of the response, after redirects.
    pub(super) fn fetch(&self, url: &str, max_bytes: u64) -> Result<Vec<u8>, HttpError> {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(self.max_seconds)))
            .max_redirects(self.max_redirects)
            // A redirect to the same server would reuse the connection of the first response, which that server may have closed
            // in the meantime. One file is fetched at a time, so nothing is lost.
            .max_idle_connections(0)
            .user_agent(concat!("glm4v/", env!("CARGO_PKG_VERSION")))
            .build();
        let problem = |error| match error {
            ureq::Error::StatusCode(status) => HttpError::Status { status },
            ureq::Error::BodyExceedsLimit(_) => HttpError::TooLarge { limit: max_bytes },
            ureq::Error::Timeout(_) => HttpError::Timeout { seconds: self.max_seconds },
            other => HttpError::Transport(Box::new(other)),
        };
        let mut response = config.new_agent().get(url).call().map_err(problem)?;
        response.body_mut().with_config().limit(max_bytes).read_to_vec().map_err(problem)
    }
}
