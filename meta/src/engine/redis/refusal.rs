//! What error replies mean: to the one who made a request, and to the one who dials. Pure.
//!
//! Called by [`super::conn`] and [`super::place`].

use redis::{ServerError, Value};

use crate::error::EngineError;
use crate::runtime::Address;

use super::ENGINE;

/// Refusals that end by themselves, as a server before release 7 wraps them when they meet a script at its first
/// write.
const WRAPPED_BUSY: [&str; 3] = ["-READONLY ", "-MISCONF ", "-NOREPLICAS "];

/// Why dialling failed.
#[derive(Clone)]
pub(super) enum DialError {
    /// Nobody answers, or not for long: try again.
    Unreachable(String),
    /// The server says that it is not ready: try again.
    Busy(String),
    /// The server does not want us.
    Refused(String),
}

impl DialError {
    /// The same, with the server's address before the cause.
    pub(super) fn at(self, address: &Address) -> DialError {
        match self {
            DialError::Unreachable(cause) => DialError::Unreachable(format!("{address}: {cause}")),
            DialError::Busy(cause) => DialError::Busy(format!("{address}: {cause}")),
            DialError::Refused(cause) => DialError::Refused(format!("{address}: {cause}")),
        }
    }
}

/// Whether the volume's master is elsewhere, or will be: the connection is of no more use.
pub(super) fn is_elsewhere(error: &ServerError) -> bool {
    matches!(error.code(), "MOVED" | "READONLY") || words_of(error).contains("-READONLY ")
}

/// Whether a script met a key on its way to another node of a cluster. Only a script that changes nothing may
/// be asked again: it ended in the middle.
pub(super) fn is_half_moved(error: &ServerError) -> bool {
    words_of(error).contains("non local key")
}

/// The first error among replies.
pub(super) fn first_error(replies: &[Value]) -> Option<&ServerError> {
    replies.iter().find_map(|reply| match reply {
        Value::ServerError(error) => Some(error),
        _ => None,
    })
}

/// The server's words.
pub(super) fn words_of(error: &ServerError) -> String {
    format!("{} {}", error.code(), error.details().unwrap_or_default())
}

/// What an error reply means to the one who dials.
pub(super) fn dial_error(error: &ServerError) -> DialError {
    let words = words_of(error);
    // The server's words with which it turns away one connection too many.
    if words.contains("max number of clients") {
        return DialError::Unreachable(words);
    }
    match refusal(error) {
        EngineError::Busy { cause, .. } => DialError::Busy(cause),
        _ => match error.code() {
            "NOAUTH" | "WRONGPASS" => DialError::Refused(format!(
                "{words} (give the password in the metadata URL or in META_PASSWORD)"
            )),
            _ => DialError::Refused(words),
        },
    }
}

/// What an error reply means.
pub(super) fn refusal(error: &ServerError) -> EngineError {
    let cause = words_of(error);
    match error.code() {
        "LOADING" | "BUSY" | "TRYAGAIN" | "MASTERDOWN" | "CLUSTERDOWN" | "READONLY" | "MISCONF"
        | "NOREPLICAS" | "MOVED" | "ASK" => EngineError::Busy {
            engine: ENGINE,
            cause,
        },
        "OOM" => EngineError::NoSpace {
            engine: ENGINE,
            cause,
        },
        _ if WRAPPED_BUSY.iter().any(|words| cause.contains(words)) => EngineError::Busy {
            engine: ENGINE,
            cause,
        },
        _ if cause.contains("OOM command not allowed") => EngineError::NoSpace {
            engine: ENGINE,
            cause,
        },
        _ => EngineError::Refused {
            engine: ENGINE,
            cause,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_replies() {
        for (reply, expected) in [
            ("LOADING Redis is loading the dataset in memory", "busy"),
            ("BUSY Redis is busy running a script.", "busy"),
            ("MASTERDOWN Link with MASTER is down", "busy"),
            ("TRYAGAIN later", "busy"),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                "full",
            ),
            ("CLUSTERDOWN The cluster is down", "busy"),
            ("MOVED 3999 127.0.0.1:6381", "busy"),
            ("ASK 3999 127.0.0.1:6381", "busy"),
            ("NOREPLICAS Not enough good replicas to write.", "busy"),
            // As releases 5 and 6 report it from within a script.
            (
                "ERR Error running script (call to f_0): @user_script:9: @user_script: 9: \
                 -READONLY You can't write against a read only replica.",
                "busy",
            ),
            (
                "ERR Error running script (call to f_0): @user_script:9: \
                 -OOM command not allowed when used memory > 'maxmemory'.",
                "full",
            ),
            (
                "READONLY You can't write against a read only replica.",
                "busy",
            ),
            ("NOAUTH Authentication required.", "refused"),
            ("WRONGPASS invalid username-password pair", "refused"),
            ("NOPERM this user has no permissions", "refused"),
            ("WRONGTYPE Operation against a key", "refused"),
            ("MISCONF Redis is configured to save RDB snapshots", "busy"),
        ] {
            let value = redis::parse_redis_value(format!("-{reply}\r\n").as_bytes());
            let Ok(Value::ServerError(error)) = value else {
                panic!("{reply}: {value:?}")
            };
            let refusal = refusal(&error);
            let kind = match &refusal {
                EngineError::Busy { .. } => "busy",
                EngineError::NoSpace { .. } => "full",
                EngineError::Refused { .. } => "refused",
                _ => "other",
            };
            assert_eq!(kind, expected, "{reply}");
            assert!(refusal.to_string().contains(reply), "{refusal}");
        }
    }
}
