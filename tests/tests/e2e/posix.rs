//! What POSIX and Linux promise of names, links, modes, times and attributes, through a real mount.

mod access;
mod files;
mod names;
