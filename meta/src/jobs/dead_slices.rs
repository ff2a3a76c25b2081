//! Slices without references whose objects nobody has deleted: their deletion was cut short by a crash or a
//! failing store.
//!
//! Clients agree on who looks by [`Counter::NextCleanupSlices`]. Nothing is changed here but that lock: the
//! record of a slice goes when its objects are gone ([`Meta::forget_slice`]), so an answer that is lost is
//! given again an hour later.

use super::DeadSlice;
use crate::client::{Meta, MetaResult};
use crate::engine::{Counter, Engine, Item, Scan};
use crate::limits;

impl Meta {
    /// Slices without references, at most about [`limits::DEAD_SLICES_MAX`]. None if any client has looked
    /// within the last [`limits::CLEAN_UP_PERIOD`] seconds.
    pub async fn collect_dead_slices(&self) -> MetaResult<Vec<DeadSlice>> {
        self.check_writable()?;
        let mut dead = Vec::new();
        if !self
            .take_job(Counter::NextCleanupSlices, limits::CLEAN_UP_PERIOD)
            .await?
        {
            return Ok(dead);
        }
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&Scan::DeadSlices, cursor.as_ref(), 1000)
                .await?;
            dead.extend(page.items.into_iter().filter_map(|item| match item {
                Item::DeadSlice { id, size } => Some(DeadSlice { id, size }),
                _ => None,
            }));
            match page.next {
                Some(next) if dead.len() < limits::DEAD_SLICES_MAX => cursor = Some(next),
                _ => return Ok(dead),
            }
        }
    }
}
