//! SluiceFS end to end: real volumes, real servers, real mounts. One test binary, one module per question.
//!
//! | module | question |
//! |---|---|
//! | `golden` | do volumes made by JuiceFS look here exactly as they did there? |
//! | `posix` | do names, links, modes, times and attributes do what POSIX and Linux promise? |
//! | `acl` | do ACLs, chattr, access times and names without case do what they do on Linux and JuiceFS? |
//! | `data` | does all that was written read back, in every form in which the store keeps it? |
//! | `semantics` | does each line of the README's semantics table hold? |
//! | `random_ops` | do random operations end as the model says? |
//! | `locks` | do flock and fcntl keep out whom they should, between mounts and with JuiceFS? |
//! | `coherence` | what do two mounts of one volume see of each other? |
//! | `concurrency` | do many threads on one file and in one directory lose nothing? |
//! | `hammer` | does everything hold under many threads on several mounts at once? |
//! | `copy_range` | do copies by reference read as their sources, and share their data? |
//! | `crash` | what is left after SIGKILL in the middle of writing? |
//! | `trees` | do rmr, clone and restore, and the jobs that empty the trash, do what they say? |
//! | `interop`, `side_by_side` | does JuiceFS find our volumes faultless, afterwards and meanwhile? |
//! | `admin` | do dump, load, config, destroy, gc, fsck and compact leave what they should? |
//! | `quota` | do limits hold, and is usage what JuiceFS counts? |
//! | `fio`, `workload` | do fio's checksums, tar, git, make and cc find what they wrote? |
//! | `ordinary_user` | does mounting work without privileges? |
//! | `bad_input` | is every wrong argument refused in one sentence, and damage contained? |
//!
//! Bodies that make sense on every metadata engine run on each (`on_both_engines!`). The binary under test
//! is the `sluice` beside this one, or `SLUICE`; `JUICEFS` names the other side, without which comparisons
//! are skipped aloud; `SLUICE_TEST_PATIENCE` stretches deadlines.

mod acl;
mod admin;
mod bad_input;
mod coherence;
mod concurrency;
mod copy_range;
mod crash;
mod data;
mod errno;
mod fio;
mod golden;
mod hammer;
mod interop;
mod locks;
mod ordinary_user;
mod posix;
mod quota;
mod random_ops;
mod semantics;
mod side_by_side;
mod trees;
mod workload;
