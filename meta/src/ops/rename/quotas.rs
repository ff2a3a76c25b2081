//! A rename between directories below different quotas: who is asked for room, and what moves.
//!
//! The entries themselves are charged as the statistics of their directories are; what comes on top is all that
//! is below a directory that moves. Its own quota knows, else it is summed up, entry by entry. What others
//! change below it between that and the commit is charged to where it was: drift that `quota check` finds.

use crate::client::{Meta, MetaResult};
use crate::ops::RenameMode;
use crate::ops::growth::inode_usage;
use crate::ops::summary::Walk;
use crate::quota::Usage;
use crate::types::{Attr, FileKind, Ino, QuotaKey};

use super::Scene;

impl Meta {
    /// Whether the quotas above the destination have room for what moves, less what makes room for it; in an
    /// exchange also the other way round. Answers what is below the directories that move: from, to, usage.
    pub(super) async fn check_quotas(&self, scene: &Scene) -> MetaResult<Vec<(Ino, Ino, Usage)>> {
        if !scene.crosses() || !self.shared.quotas.watches_dirs() {
            return Ok(Vec::new());
        }
        let (from, to) = (scene.from.dir, scene.to.dir);
        let (above_from, above_to) = (self.quota_dirs(from).await?, self.quota_dirs(to).await?);
        if above_from == above_to {
            return Ok(Vec::new());
        }
        let moved = self
            .tree_usage(scene.moved.dentry.ino, &scene.moved.attr)
            .await?;
        let mut trees = vec![(from, to, moved - inode_usage(&scene.moved.attr))];
        let mut makes_room = Usage::default();
        if let Some((victim, attr)) = scene
            .target
            .as_ref()
            .and_then(|victim| Some((victim, victim.attr.as_ref()?)))
        {
            makes_room = inode_usage(attr);
            if scene.mode == RenameMode::Exchange {
                makes_room = self.tree_usage(victim.dentry.ino, attr).await?;
                trees.push((to, from, makes_room - inode_usage(attr)));
                let entered = outside(&above_from, &above_to);
                self.check_dirs(&entered, makes_room - moved)?;
            }
        }
        self.check_dirs(&outside(&above_to, &above_from), moved - makes_room)?;
        Ok(trees)
    }

    /// What an inode with everything below it adds to the quotas above it.
    async fn tree_usage(&self, ino: Ino, attr: &Attr) -> MetaResult<Usage> {
        if attr.kind != FileKind::Directory {
            return Ok(inode_usage(attr));
        }
        if let Some(quota) = self.shared.quotas.get(QuotaKey::Dir(ino)) {
            return Ok(quota.used() + inode_usage(attr));
        }
        Ok(self.summary(ino, Walk::Strict).await?.usage())
    }
}

/// Those of `dirs` that are not among `others`.
fn outside(dirs: &[Ino], others: &[Ino]) -> Vec<Ino> {
    let outside = dirs.iter().filter(|dir| !others.contains(dir));
    outside.copied().collect()
}
