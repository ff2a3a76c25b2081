//! File data over the memory engine and the faulty block store.

mod compaction;
mod concurrency;
mod faults;
mod model;
