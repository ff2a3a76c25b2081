//! `sluice status`: setting, sessions and usage of a volume.

use std::rc::Rc;

use sluice_meta::runtime::Runtime;
use sluice_meta::store::{Access, Store};
use sluice_meta::tools::status::{Status, status};

use super::{Failure, Outcome};
use crate::cli::StatusArgs;
use crate::runtime::{GlommioRuntime, run_on_one};

/// Runs the command.
pub fn run(args: &StatusArgs) -> Outcome {
    let url = super::parse_url(&args.meta_url)?;
    let json = args.json;
    run_on_one(|| async move {
        let runtime: Rc<dyn Runtime> = Rc::new(GlommioRuntime::new());
        let store = Store::open(&url, Access::ReadOnly).map_err(Failure::from_error)?;
        let engine = store.connect(runtime).await.map_err(Failure::from_store)?;
        let status = status(&engine).await.map_err(Failure::from_error)?;
        if json {
            println!(
                "{}",
                serde_json::to_string_pretty(&status).map_err(Failure::from_error)?
            );
        } else {
            print(&status);
        }
        Ok(())
    })
    .map_err(Failure::from_error)?
}

fn print(status: &Status) {
    let setting = &status.setting;
    let limit = |value: u64| {
        if value == 0 {
            "no limit".to_owned()
        } else {
            size(value)
        }
    };
    println!("volume       {} ({})", setting.name, setting.uuid);
    println!("data         {} in {}", setting.storage, setting.bucket);
    println!(
        "blocks       {} KiB, compression {}{}{}",
        setting.block_size_kib,
        setting.compression.name(),
        if setting.encrypt_key.is_empty() {
            ""
        } else {
            ", encrypted"
        },
        if setting.hash_prefix {
            ", hashed names"
        } else {
            ""
        },
    );
    println!("trash        {} days", setting.trash_days);
    println!("capacity     {}", limit(setting.capacity));
    println!(
        "used         {} in {} inodes",
        size(status.stat.used_space),
        status.stat.used_inodes
    );
    println!("sessions     {}", status.sessions.len());
    for session in &status.sessions {
        println!(
            "  {:<6} {} on {} pid {}, {}",
            session.sid,
            session.info.mount_point,
            session.info.host_name,
            session.info.process_id,
            session.info.version
        );
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.2} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.50 KiB"),
            (1 << 50, "1.00 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
