//! Request buffers: page-aligned anonymous memory, reused per core.
//!
//! A queue takes one [`Buffer`] per request it reads; dropping it gives it back to the pool it came
//! from, on whatever core that happens. Requests are read so that header and fixed struct of a WRITE
//! end exactly on a page boundary: with 80 bytes before the data, reading starts at offset
//! 4096 - 80 = 4016 and the data begins at offset 4096, aligned for direct I/O.
//!
//! Bounds: a pool keeps at most `idle_max` buffers, anything above is unmapped when it comes back; how
//! many are out at once is bounded by the queue, which reads no request without a permit. One mutex
//! per pool, held for a push or a pop, contended only when another core returns a buffer.
//! Fails only when the kernel refuses memory, which the queue reports.

use std::io;
use std::sync::Arc;

use memmap2::MmapMut;
use parking_lot::Mutex;

use super::abi::{MIN_READ_BUFFER, WRITE_PREFIX};

const PAGE: usize = 4096;
/// Where a request starts within its buffer.
const START: usize = PAGE - WRITE_PREFIX;
const _: () = assert!(START.is_multiple_of(8));

/// Buffers of one size, shared by the requests of one queue.
#[derive(Debug)]
pub struct BufferPool {
    /// Bytes of one mapping.
    bytes: usize,
    /// Most buffers kept for reuse.
    idle_max: usize,
    idle: Mutex<Vec<MmapMut>>,
}

impl BufferPool {
    /// A pool whose buffers hold a WRITE of `max_write` bytes.
    pub fn new(max_write: usize, idle_max: usize) -> Arc<BufferPool> {
        let bytes = PAGE + max_write.max(MIN_READ_BUFFER).next_multiple_of(PAGE);
        Arc::new(BufferPool {
            bytes,
            idle_max,
            idle: Mutex::new(Vec::with_capacity(idle_max)),
        })
    }

    /// An idle buffer, the one used last first (its pages are warm), or a new one.
    pub fn take(self: &Arc<Self>) -> io::Result<Buffer> {
        let idle = self.idle.lock().pop();
        let memory = match idle {
            Some(memory) => memory,
            None => MmapMut::map_anon(self.bytes)?,
        };
        Ok(Buffer {
            memory: Some(memory),
            pool: Arc::clone(self),
        })
    }

    /// Buffers waiting to be reused.
    pub fn idle_count(&self) -> usize {
        self.idle.lock().len()
    }
}

/// One buffer on loan from its pool.
#[derive(Debug)]
pub struct Buffer {
    /// Always present until drop.
    memory: Option<MmapMut>,
    pool: Arc<BufferPool>,
}

impl Buffer {
    /// The part a request is read into.
    pub fn space(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Some(memory) => &mut memory[START..],
            None => &mut [],
        }
    }

    /// The same part, to look at.
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            Some(memory) => &memory[START..],
            None => &[],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else {
            return;
        };
        let mut idle = self.pool.idle.lock();
        if idle.len() < self.pool.idle_max {
            idle.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_data_is_page_aligned_and_fits() {
        for max_write in [4096, 128 << 10, 1 << 20] {
            let pool = BufferPool::new(max_write, 1);
            let mut buffer = pool.take().unwrap();
            let space = buffer.space();
            assert!(space.len() >= (WRITE_PREFIX + max_write).max(MIN_READ_BUFFER));
            assert_eq!(space[WRITE_PREFIX..].as_ptr().addr() % PAGE, 0);
        }
    }

    #[test]
    fn buffers_come_back_up_to_the_bound_from_any_thread() {
        let pool = BufferPool::new(4096, 2);
        let buffers: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert_eq!(pool.idle_count(), 0);
        std::thread::spawn(move || drop(buffers)).join().unwrap();
        assert_eq!(pool.idle_count(), 2);
        let again = pool.take().unwrap();
        assert_eq!(pool.idle_count(), 1);
        drop(again);
        assert_eq!(pool.idle_count(), 2);
    }
}
