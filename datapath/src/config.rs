//! From what was typed to what the program uses: the only place that checks options. Everything it refuses
//! comes as one sentence: what, why, what to do.

use std::path::PathBuf;
use std::time::Duration;

use sluice_meta::ops::{AtimeMode, NameMatch};

use crate::cli::MountArgs;
use crate::fuse::mount::is_root;
use crate::object::ObjectSync;

/// An option that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that is not of the option's form.
    #[error("{option} cannot be {value:?}: {why}")]
    Value {
        /// The option.
        option: &'static str,
        /// What was typed.
        value: String,
        /// What is expected.
        why: String,
    },
    /// Options that exclude or need each other.
    #[error("{0}")]
    Combination(String),
}

/// Parses a size such as `4M`, `1.5G`, `64KiB`; a plain number is in `unit` (`b'K'`, `b'M'`, `b'G'`).
pub fn parse_bytes(option: &'static str, text: &str, unit: u8) -> Result<u64, ConfigError> {
    let refuse = || ConfigError::Value {
        option,
        value: text.to_owned(),
        why: "give a number with K, M, G, T or P, such as 300M".to_owned(),
    };
    let trimmed = text.trim();
    let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = trimmed[digits.len()..].to_ascii_uppercase();
    let unit = match suffix.as_str() {
        "" => unit,
        "B" => b'B',
        other => {
            let bytes = other.as_bytes();
            if !matches!(&other[1..], "" | "B" | "IB") {
                return Err(refuse());
            }
            bytes[0]
        }
    };
    let shift = match unit {
        b'B' => 0,
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        b'P' => 50,
        _ => return Err(refuse()),
    };
    let number: f64 = digits.trim().parse().map_err(|_| refuse())?;
    let bytes = number * (1u64 << shift) as f64;
    if !(0.0..=9.0e18).contains(&bytes) {
        return Err(refuse());
    }
    Ok(bytes as u64)
}

/// A heartbeat that other clients can judge.
fn parse_heartbeat(text: &str) -> Result<Duration, ConfigError> {
    // Sessions expire by the second; JuiceFS clients beside us judge by the same clock.
    match parse_duration("--heartbeat", text)? {
        beat if beat >= Duration::from_secs(1) && beat <= Duration::from_secs(3600) => Ok(beat),
        _ => Err(ConfigError::Value {
            option: "--heartbeat",
            value: text.to_owned(),
            why: "give a time from 1s to 1h".to_owned(),
        }),
    }
}

/// Parses a duration such as `1s`, `100ms`, `2m`, `1h`; a plain number is in seconds.
pub fn parse_duration(option: &'static str, text: &str) -> Result<Duration, ConfigError> {
    let refuse = || ConfigError::Value {
        option,
        value: text.to_owned(),
        why: "give a time such as 1s, 100ms or 5m".to_owned(),
    };
    let trimmed = text.trim();
    let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &trimmed[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(refuse()),
    };
    let number: f64 = digits.trim().parse().map_err(|_| refuse())?;
    let seconds = number * scale;
    if !(0.0..=1e9).contains(&seconds) {
        return Err(refuse());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_atime(text: &str) -> Result<AtimeMode, ConfigError> {
    AtimeMode::from_name(text).ok_or_else(|| ConfigError::Value {
        option: "--atime-mode",
        value: text.to_owned(),
        why: "it is noatime, relatime or strictatime".to_owned(),
    })
}

/// Parses a count within bounds.
pub fn parse_count(
    option: &'static str,
    text: &str,
    bounds: std::ops::RangeInclusive<u64>,
) -> Result<u64, ConfigError> {
    text.trim()
        .parse()
        .ok()
        .filter(|count| bounds.contains(count))
        .ok_or_else(|| ConfigError::Value {
            option,
            value: text.to_owned(),
            why: format!(
                "give a whole number from {} to {}",
                bounds.start(),
                bounds.end()
            ),
        })
}

/// Where JuiceFS keeps objects when nothing is said.
pub fn default_bucket() -> String {
    if is_root() {
        "/var/jfs".to_owned()
    } else {
        format!("{}/.juicefs/local", home())
    }
}

/// Where a background mount logs when nothing is said.
pub fn default_log() -> PathBuf {
    if is_root() {
        PathBuf::from("/var/log/sluice.log")
    } else {
        PathBuf::from(format!("{}/.sluice/sluice.log", home()))
    }
}

fn home() -> String {
    std::env::var("HOME").unwrap_or_else(|_| ".".to_owned())
}

/// A mount, checked.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// Refuse every change.
    pub read_only: bool,
    /// `-o rw` was given: do not fall back to read-only.
    pub force_writable: bool,
    /// Directory served as the root, components.
    pub subdir: Option<String>,
    /// Store to use in place of the one in the setting.
    pub bucket: Option<String>,
    /// Disk tier of the cache.
    pub cache_dir: Option<PathBuf>,
    /// Its size in bytes.
    pub cache_bytes: u64,
    /// Memory for dirty data, bytes.
    pub dirty_bytes: u64,
    /// Memory tier of the cache, bytes.
    pub cache_memory_bytes: u64,
    /// Kernel's attribute cache.
    pub attr_timeout: Duration,
    /// Kernel's entry cache, files.
    pub entry_timeout: Duration,
    /// Kernel's entry cache, directories.
    pub dir_entry_timeout: Duration,
    /// Kernel's cache of names that do not exist.
    pub negative_timeout: Duration,
    /// `.trash` stays out of listings.
    pub hide_internal: bool,
    /// Parallel uploads of the process.
    pub uploads_max: usize,
    /// Further tries of an upload or commit.
    pub io_retries: u32,
    /// When access times move.
    pub atime: AtimeMode,
    /// Whether case matters in names.
    pub names: NameMatch,
    /// Usage is shown without asking the metadata.
    pub fast_statfs: bool,
    /// For how long opens may be answered from memory.
    pub open_cache: Duration,
    /// Skip-mtime rule.
    pub skip_dir_mtime: Duration,
    /// Time between signs of life of the session.
    pub heartbeat: Duration,
    /// Background jobs run.
    pub jobs: bool,
    /// Executors; `None` for one per CPU.
    pub cores: Option<usize>,
    /// Durability of the local store.
    pub object_sync: ObjectSync,
    /// The `-o` options as typed, split at commas.
    pub fuse_options: Vec<String>,
}

/// Smallest buffer (as JuiceFS): room for a few blocks on every core.
const BUFFER_BYTES_MIN: u64 = 32 << 20;

impl MountConfig {
    /// Checks what was typed.
    pub fn new(args: &MountArgs) -> Result<MountConfig, ConfigError> {
        let fuse_options: Vec<String> = args
            .options
            .iter()
            .flat_map(|list| list.split(','))
            .filter(|option| !option.is_empty())
            .map(str::to_owned)
            .collect();
        let has = |name: &str| fuse_options.iter().any(|option| option == name);
        let read_only = args.read_only || has("ro");
        if read_only && has("rw") {
            return Err(ConfigError::Combination(
                "both read-only and -o rw were given: drop one of them".to_owned(),
            ));
        }
        let buffer = parse_bytes("--buffer-size", &args.buffer_size, b'M')?;
        if buffer < BUFFER_BYTES_MIN {
            return Err(ConfigError::Value {
                option: "--buffer-size",
                value: args.buffer_size.clone(),
                why: "at least 32M is needed for blocks on their way".to_owned(),
            });
        }
        let count = |option, text: &str, most| parse_count(option, text, 1..=most);
        Ok(MountConfig {
            read_only,
            force_writable: has("rw"),
            subdir: args
                .subdir
                .clone()
                .filter(|dir| dir.split('/').any(|part| !part.is_empty())),
            bucket: args.volume.bucket.clone(),
            cache_dir: args.cache_dir.clone(),
            cache_bytes: parse_bytes("--cache-size", &args.cache_size, b'M')?,
            dirty_bytes: buffer / 2,
            cache_memory_bytes: buffer / 2,
            attr_timeout: parse_duration("--attr-cache", &args.attr_cache)?,
            entry_timeout: parse_duration("--entry-cache", &args.entry_cache)?,
            dir_entry_timeout: parse_duration("--dir-entry-cache", &args.dir_entry_cache)?,
            negative_timeout: parse_duration("--negative-entry-cache", &args.negative_entry_cache)?,
            hide_internal: args.hide_internal,
            uploads_max: count("--max-uploads", &args.max_uploads, 1000)? as usize,
            io_retries: parse_count("--io-retries", &args.io_retries, 0..=1000)? as u32,
            atime: parse_atime(&args.atime_mode)?,
            names: match args.case_insensitive {
                true => NameMatch::IgnoreCase,
                false => NameMatch::Exact,
            },
            fast_statfs: args.fast_statfs,
            open_cache: parse_duration("--open-cache", &args.open_cache)?,
            skip_dir_mtime: parse_duration("--skip-dir-mtime", &args.skip_dir_mtime)?,
            heartbeat: parse_heartbeat(&args.heartbeat)?,
            jobs: !args.no_bgjob && !read_only,
            cores: args
                .cores
                .as_deref()
                .map(|text| count("--cores", text, 1024))
                .transpose()?
                .map(|cores| cores as usize),
            object_sync: match args.object_sync.as_str() {
                "commit" => ObjectSync::Full,
                "none" => ObjectSync::None,
                other => {
                    return Err(ConfigError::Value {
                        option: "--object-sync",
                        value: other.to_owned(),
                        why: "it is commit (synced before the commit that names it) or none"
                            .to_owned(),
                    });
                }
            },
            fuse_options,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, unit, bytes) in [
            ("4M", b'K', 4 << 20),
            ("4096", b'K', 4 << 20),
            ("64KiB", b'M', 64 << 10),
            ("1.5g", b'M', 3 << 29),
            ("0", b'G', 0),
            ("12B", b'G', 12),
        ] {
            assert_eq!(parse_bytes("--x", text, unit).unwrap(), bytes, "{text}");
        }
        for text in ["", "M", "-1", "4X", "4MM", "1e400", "four"] {
            assert!(parse_bytes("--x", text, b'M').is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("1", 1000),
            ("1s", 1000),
            ("0.5", 500),
            ("100ms", 100),
            ("2m", 120_000),
        ] {
            assert_eq!(
                parse_duration("--x", text).unwrap(),
                Duration::from_millis(millis)
            );
        }
        for text in ["", "s", "1y", "-3s"] {
            assert!(parse_duration("--x", text).is_err(), "{text}");
        }
    }
}
