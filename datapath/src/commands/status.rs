//! `sluice status`: setting, sessions and usage of a volume, or what one session holds.

use std::rc::Rc;

use sluice_meta::runtime::Runtime;
use sluice_meta::store::{Access, Store};
use sluice_meta::tools::status::{SessionDetail, SessionStatus, Status, session, status};
use sluice_meta::types::SessionId;

use super::{Failure, Outcome};
use crate::cli::StatusArgs;
use crate::runtime::{GlommioRuntime, run_on_one};

/// Runs the command.
pub fn run(args: &StatusArgs) -> Outcome {
    let url = super::parse_url(&args.meta_url)?;
    let (json, sid) = (args.json, args.session);
    run_on_one(|| async move {
        let runtime: Rc<dyn Runtime> = Rc::new(GlommioRuntime::new());
        let store = Store::open(&url, Access::ReadOnly).map_err(Failure::from_error)?;
        let engine = store.connect(runtime).await.map_err(Failure::from_store)?;
        if let Some(sid) = sid {
            let found = session(&engine, SessionId(sid)).await;
            let Some(found) = found.map_err(Failure::from_error)? else {
                return Err(Failure(format!(
                    "there is no session {sid}; `sluice status` lists those there are"
                )));
            };
            return if json {
                print_json(&found)
            } else {
                print_session(&found);
                Ok(())
            };
        }
        let status = status(&engine).await.map_err(Failure::from_error)?;
        if json {
            return print_json(&status);
        }
        print(&status);
        Ok(())
    })
    .map_err(Failure::from_error)?
}

fn print_json(value: &impl serde::Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value).map_err(Failure::from_error)?;
    println!("{text}");
    Ok(())
}

fn line(session: &SessionStatus) -> String {
    let info = &session.info;
    format!(
        "{:<6} {} on {} pid {}, {}",
        session.sid, info.mount_point, info.host_name, info.process_id, info.version
    )
}

fn print_session(found: &SessionDetail) {
    println!("session      {}", line(&found.session));
    println!("expires      {}", found.session.expire);
    println!("deleted, but open  {}", found.sustained.len());
    for ino in &found.sustained {
        println!("  inode {ino}");
    }
    println!("flock        {}", found.flocks.len());
    for lock in &found.flocks {
        println!(
            "  inode {} owner {:x} {}",
            lock.inode, lock.owner, lock.ltype
        );
    }
    println!("POSIX locks  {}", found.plocks.len());
    for lock in &found.plocks {
        for range in &lock.records {
            let kind = if range.r#type == 0 { "R" } else { "W" };
            println!(
                "  inode {} owner {:x} {kind} bytes {} to {}, pid {}",
                lock.inode, lock.owner, range.start, range.end, range.pid
            );
        }
    }
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
        println!("  {}", line(session));
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
