//! File data over the memory engine and the faulty block store.

mod concurrency;
mod faults;
mod model;
