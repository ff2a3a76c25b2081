//! Tests of the local store: what it promises of names, crashes, ranges and syncs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use futures_lite::future;

use super::*;
use crate::runtime::{Tasks, breathe, run_on_one};

fn run<Fut: Future<Output = ()>>(
    sync: ObjectSync,
    test: impl FnOnce(Rc<LocalStore>, PathBuf) -> Fut,
) {
    let dir = tempfile::tempdir().unwrap();
    let bucket = dir.path().join("bucket");
    let store = Rc::new(LocalStore::new(&bucket, "vol", sync));
    run_on_one(|| test(store, bucket.join("vol"))).unwrap();
}

/// Names in a directory; none if it does not exist.
fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Completes when every job given to the blocking pool before has ended.
async fn drain_pool() {
    const THREADS: usize = 4;
    let barrier = Arc::new(Barrier::new(THREADS));
    let jobs: Vec<_> = (0..THREADS)
        .map(|_| {
            let barrier = Arc::clone(&barrier);
            glommio::spawn_local(blocking(move || {
                barrier.wait();
            }))
        })
        .collect();
    for job in jobs {
        job.await;
    }
}

fn noise(bytes: usize) -> Bytes {
    (0..bytes)
        .map(|_| fastrand::u8(..))
        .collect::<Vec<_>>()
        .into()
}

#[test]
fn objects_are_files_under_their_keys() {
    for sync in [ObjectSync::Full, ObjectSync::None] {
        run(sync, |store, root| async move {
            let data = noise(3 << 20);
            let pieces = vec![data.slice(..1000), data.slice(1000..)];
            store.put("chunks/0/1/1000_0_7", pieces).await.unwrap();
            assert_eq!(
                std::fs::read(root.join("chunks/0/1/1000_0_7")).unwrap(),
                data
            );
            assert_eq!(names(&root.join("chunks/0/1")), ["1000_0_7"]);
            assert_eq!(store.get("chunks/0/1/1000_0_7", None).await.unwrap(), data);
            for range in [
                0..0,
                0..1,
                1..4097,
                5..RING_READ_BYTES + 5,
                5..RING_READ_BYTES + 6,
                9..3 << 20,
            ] {
                let got = store
                    .get("chunks/0/1/1000_0_7", Some(range.clone()))
                    .await
                    .unwrap();
                assert_eq!(
                    got,
                    data.slice(range.start as usize..range.end as usize),
                    "{range:?}"
                );
            }
        });
    }
}

#[test]
fn missing_and_short_objects_are_errors() {
    run(ObjectSync::None, |store, _| async move {
        for range in [None, Some(0..5), Some(0..1 << 20)] {
            let error = store.get("a/b", range).await.unwrap_err();
            assert!(
                matches!(error, ObjectError::NotFound { ref key } if key == "a/b"),
                "{error}"
            );
        }
        store.put("a/b", vec![noise(1000)]).await.unwrap();
        for range in [0..1001, 999..1001, 2000..2001, 0..1 << 20, 2000..1 << 40] {
            let error = store.get("a/b", Some(range.clone())).await.unwrap_err();
            assert!(
                matches!(error, ObjectError::Damaged { ref key, .. } if key == "a/b"),
                "{range:?} {error}"
            );
        }
        assert_eq!(store.get("a/b", Some(0..1000)).await.unwrap().len(), 1000);
    });
}

#[test]
fn deleted_is_gone_also_from_open_files() {
    run(ObjectSync::None, |store, _| async move {
        store.put("a/b", vec![noise(10)]).await.unwrap();
        store.get("a/b", Some(0..10)).await.unwrap();
        store.delete("a/b").await.unwrap();
        let error = store.get("a/b", Some(0..10)).await.unwrap_err();
        assert!(matches!(error, ObjectError::NotFound { .. }));
        store.delete("a/b").await.unwrap();
        store.delete("never/there").await.unwrap();
    });
}

#[test]
fn writing_again_is_seen() {
    run(ObjectSync::Full, |store, _| async move {
        for round in 0..3 {
            let data = noise(100 + round);
            store.put("testing/x", vec![data.clone()]).await.unwrap();
            assert_eq!(
                store
                    .get("testing/x", Some(0..data.len() as u64))
                    .await
                    .unwrap(),
                data
            );
        }
    });
}

#[test]
fn keys_stay_inside() {
    run(ObjectSync::None, |store, _| async move {
        for key in ["", "..", "../x", "a/../../x", "/etc/passwd", "./x"] {
            assert!(
                matches!(store.get(key, None).await, Err(ObjectError::Io { .. })),
                "{key}"
            );
            assert!(
                matches!(store.put(key, vec![]).await, Err(ObjectError::Io { .. })),
                "{key}"
            );
            assert!(
                matches!(store.delete(key).await, Err(ObjectError::Io { .. })),
                "{key}"
            );
        }
    });
}

#[test]
fn a_vanished_directory_is_made_again() {
    run(ObjectSync::Full, |store, root| async move {
        store.put("chunks/0/0/1_0_1", vec![noise(1)]).await.unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        store.put("chunks/0/0/2_0_1", vec![noise(1)]).await.unwrap();
        assert_eq!(names(&root.join("chunks/0/0")), ["2_0_1"]);
    });
}

#[test]
fn a_failed_put_leaves_nothing() {
    for sync in [ObjectSync::Full, ObjectSync::None] {
        run(sync, |store, root| async move {
            std::fs::create_dir_all(root.join("a/taken/by-a-directory")).unwrap();
            let error = store.put("a/taken", vec![noise(10)]).await.unwrap_err();
            assert!(
                matches!(error, ObjectError::Io { action: "put", ref key, .. } if key == "a/taken")
            );
            assert_eq!(names(&root.join("a")), ["taken"]);
            std::fs::write(root.join("a/file"), "").unwrap();
            let error = store
                .put("a/file/below", vec![noise(10)])
                .await
                .unwrap_err();
            assert!(matches!(error, ObjectError::Io { .. }));
        });
    }
}

/// Wherever a put is given up, the object is there as a whole or nothing is.
#[test]
fn a_dropped_put_leaves_nothing_or_all() {
    let (mut whole, mut nothing) = (0, 0);
    for polls in 0..40 {
        run(ObjectSync::Full, |store, root| {
            let (whole, nothing) = (&mut whole, &mut nothing);
            async move {
                let data = noise(64 << 10);
                let mut put = Box::pin(store.put("a/b", vec![data.clone()]));
                for _ in 0..polls {
                    if future::poll_once(&mut put).await.is_some() {
                        break;
                    }
                    breathe().await;
                }
                drop(put);
                drain_pool().await;
                // A job's result, and the guard in it, may be dropped by the executor after the job.
                breathe().await;
                match names(&root.join("a"))[..] {
                    [] => *nothing += 1,
                    [ref name] if name == "b" => {
                        assert_eq!(std::fs::read(root.join("a/b")).unwrap(), data);
                        *whole += 1;
                    }
                    ref other => panic!("after {polls} polls: {other:?}"),
                }
            }
        });
    }
    assert!(nothing > 0, "{whole} whole");
}

/// Whoever looks into the directory at any moment sees whole objects under final names.
#[test]
fn final_names_are_whole_at_all_times() {
    run(ObjectSync::Full, |store, root| async move {
        const BYTES: usize = 100_000;
        let dir = root.join("chunks/0/0");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watched = dir.clone();
        let watcher = std::thread::spawn(move || {
            let mut seen_tmp = 0;
            while !stopped.load(Ordering::Acquire) {
                for name in names(&watched) {
                    if name.starts_with(".jfs.") {
                        seen_tmp += 1;
                    } else {
                        assert_eq!(
                            std::fs::read(watched.join(&name)).unwrap().len(),
                            BYTES,
                            "{name}"
                        );
                    }
                }
            }
            seen_tmp
        });
        let tasks = Tasks::new();
        for slice in 0..150 {
            let store = Rc::clone(&store);
            tasks.spawn(async move {
                let key = format!("chunks/0/0/{slice}_0_{BYTES}");
                store.put(&key, vec![noise(BYTES)]).await.unwrap();
            });
        }
        tasks.finished().await;
        stop.store(true, Ordering::Release);
        assert!(
            watcher.join().unwrap() > 0,
            "the watcher never saw a put in progress"
        );
        assert_eq!(names(&dir).len(), 150);
    });
}

#[test]
fn puts_share_directory_syncs() {
    run(ObjectSync::Full, |store, root| async move {
        store.put("a/first", vec![noise(1)]).await.unwrap();
        let (dir, before) = (root.join("a"), store.dir_syncs());
        assert_eq!(before, 1);
        // The first one's sync starts at once, the others arrive while it runs: one more serves them all.
        let waiting: Vec<_> = (0..20).map(|_| Box::pin(store.dirs.sync(&dir))).collect();
        all_succeed(waiting).await;
        assert_eq!(store.dir_syncs(), before + 2);
    });
}

/// Polls all until all have succeeded.
async fn all_succeed<F: Future<Output = io::Result<()>> + Unpin>(mut futures: Vec<F>) {
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| match std::pin::Pin::new(future).poll(context) {
            std::task::Poll::Ready(result) => {
                result.unwrap();
                false
            }
            std::task::Poll::Pending => true,
        });
        if futures.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

#[test]
fn a_failed_directory_sync_is_everybodys_error() {
    run(ObjectSync::Full, |store, root| async move {
        let missing = root.join("missing");
        let one = store.dirs.sync(&missing);
        let other = store.dirs.sync(&missing);
        let (one, other) = future::zip(one, other).await;
        assert_eq!(one.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(other.unwrap_err().kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn system_errors_by_kind() {
    let check = |action, errno, expected: &str| {
        let error = failed(action, "k", &io::Error::from_raw_os_error(errno));
        let debug = format!("{error:?}");
        assert!(debug.starts_with(expected), "{debug}");
    };
    check("put", libc::ENOSPC, "NoSpace");
    check("put", libc::EDQUOT, "NoSpace");
    check("put", libc::ENOENT, "Io");
    check("get", libc::ENOENT, "NotFound");
    check("get", libc::EACCES, "Io");
    check("delete", libc::EROFS, "Io");
}

#[test]
fn listings_show_one_level_and_nothing_on_its_way() {
    run(ObjectSync::None, |store, root| async move {
        assert_eq!(store.list("").await.unwrap(), []);
        for key in ["chunks/0/1/1000_0_7", "chunks/0/1/1001_0_3", "juicefs_uuid"] {
            store.put(key, vec![noise(7)]).await.unwrap();
        }
        std::fs::write(root.join("chunks/0/1/.jfs.1002_0_7.tmp.55"), b"half").unwrap();
        let level = async |dir| {
            let listed = store.list(dir).await.unwrap().into_iter();
            let mut found: Vec<_> = listed.map(|one| (one.key, one.is_dir)).collect();
            found.sort();
            found
        };
        let entry = |key: &str, is_dir| (key.to_owned(), is_dir);
        let top = [entry("chunks", true), entry("juicefs_uuid", false)];
        assert_eq!(level("").await, top);
        let below = [
            entry("chunks/0/1/1000_0_7", false),
            entry("chunks/0/1/1001_0_3", false),
        ];
        assert_eq!(level("chunks/0/1").await, below);
        assert_eq!(level("chunks/9").await, []);
        let listed = store.list("chunks/0/1").await.unwrap();
        assert!(listed.iter().all(|one| one.bytes == 7 && one.modified > 0));
        assert!(store.list("../other").await.is_err());

        // Only empty directories go, and puts make them again.
        store.remove_dir("chunks/0/1").await.unwrap();
        assert_eq!(level("chunks/0/1").await, below);
        store.delete("juicefs_uuid").await.unwrap();
        store.put("chunks/2/2/2_0_7", vec![noise(7)]).await.unwrap();
        store.delete("chunks/2/2/2_0_7").await.unwrap();
        store.remove_dir("chunks/2/2").await.unwrap();
        assert_eq!(level("chunks/2").await, []);
        store.put("chunks/2/2/2_0_7", vec![noise(7)]).await.unwrap();
        assert_eq!(level("chunks/2").await, [entry("chunks/2/2", true)]);
    });
}
