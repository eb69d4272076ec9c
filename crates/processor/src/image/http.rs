//! Files over the network, for those who allow it.

use std::time::Duration;

/// What fetching a file may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// Seconds for everything: name, connection, redirects, body; 30.
    pub max_seconds: u64,
    /// Redirects that are followed; 5.
    pub max_redirects: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self { max_seconds: 30, max_redirects: 5 }
    }
}

/// Why a file did not come over the network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The server has another answer.
    #[error("the server answers {status}, needed 200")]
    Status {
        /// The status.
        status: u16,
    },
    /// More bytes than the limit.
    #[error("more than the limit of {limit} bytes")]
    TooLarge {
        /// Bytes allowed.
        limit: u64,
    },
    /// Slower than the limit.
    #[error("not there after {seconds} s, the limit")]
    Slow {
        /// Seconds allowed.
        seconds: u64,
    },
    /// No such server, no connection, no trust.
    #[error("no answer")]
    Transport(#[source] Box<ureq::Error>),
}

impl HttpLimits {
    /// The body behind a URL.
    pub(super) fn fetch(&self, url: &str, max_bytes: u64) -> Result<Vec<u8>, HttpError> {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(self.max_seconds)))
            .max_redirects(self.max_redirects)
            // A redirect to the same server would go over the connection of the first answer, which that server may have closed by then without
            // having said so. One file is fetched at a time: nothing is lost by a new one.
            .max_idle_connections(0)
            .user_agent(concat!("glm4v/", env!("CARGO_PKG_VERSION")))
            .build();
        let problem = |error| match error {
            ureq::Error::StatusCode(status) => HttpError::Status { status },
            ureq::Error::BodyExceedsLimit(_) => HttpError::TooLarge { limit: max_bytes },
            ureq::Error::Timeout(_) => HttpError::Slow { seconds: self.max_seconds },
            other => HttpError::Transport(Box::new(other)),
        };
        let mut answer = config.new_agent().get(url).call().map_err(problem)?;
        answer.body_mut().with_config().limit(max_bytes).read_to_vec().map_err(problem)
    }
}
