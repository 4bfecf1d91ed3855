//! Where the pools' chunks come from.
//!
//! A pool has a range of addresses of its own, and memory is mapped behind what is there: a block may
//! lie across chunks, so that no request finds enough memory free in pieces that are all too small.

use crate::error::{CudaError, During, Result};
use cudarc::driver::{CudaContext, result, sys};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Gives a pool its chunks.
pub(crate) trait ChunkSource: Send + Sync {
    /// `bytes` of memory, behind all other chunks as long as there is room.
    fn take(&self, bytes: usize) -> Result<u64>;
    /// Gives back what `take` gave.
    fn give_back(&self, address: u64, bytes: usize);
    /// Whether blocks may lie across neighbouring chunks.
    fn joins(&self) -> bool;
    /// A source for another pool of the same device.
    fn another(&self) -> Arc<dyn ChunkSource>;
    /// What is in a chunk, in host memory, once the device is done with it.
    fn copy_out(&self, address: u64, bytes: usize) -> Result<HostCopy>;
    /// Takes the memory from behind a chunk's addresses; `give_back` is still to come.
    fn unmap(&self, address: u64, bytes: usize);
    /// Puts memory behind the addresses again, with `copy` in it.
    fn map_again(&self, address: u64, copy: &HostCopy) -> Result<()>;
}

/// A copy of device memory in the host's.
pub(crate) enum HostCopy {
    /// Memory that the device reads by itself.
    Pinned {
        /// From the driver.
        memory: *mut u8,
        /// All of them initialised.
        bytes: usize,
    },
    /// Any memory.
    Plain(Vec<u8>),
}

// SAFETY: plain memory that is written once, before anybody else sees it.
unsafe impl Send for HostCopy {}
// SAFETY: the same.
unsafe impl Sync for HostCopy {}

impl HostCopy {
    /// Memory for `bytes`, pinned if possible; the device is bound.
    fn new(bytes: usize) -> Self {
        // SAFETY: a plain allocation.
        match unsafe { result::malloc_host(bytes, 0) } {
            Ok(memory) => {
                let memory = memory.cast::<u8>();
                // SAFETY: `memory` has so many bytes.
                unsafe { memory.write_bytes(0, bytes) };
                Self::Pinned { memory, bytes }
            }
            Err(_) => Self::Plain(vec![0; bytes]),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            // SAFETY: `memory` has so many bytes, initialised in `new`, and lives as long as `self`.
            Self::Pinned { memory, bytes } => unsafe {
                std::slice::from_raw_parts(*memory, *bytes)
            },
            Self::Plain(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: as in `bytes`, and the borrow is exclusive.
            Self::Pinned { memory, bytes } => unsafe {
                std::slice::from_raw_parts_mut(*memory, *bytes)
            },
            Self::Plain(bytes) => bytes,
        }
    }
}

impl Drop for HostCopy {
    fn drop(&mut self) {
        if let Self::Pinned { memory, .. } = self {
            // SAFETY: allocated in `new`; copies from it are waited for.
            let _ = unsafe { result::free_host(memory.cast()) };
        }
    }
}

/// A source of memory of a device.
pub(crate) fn source(context: &Arc<CudaContext>) -> Arc<dyn ChunkSource> {
    match Range::reserve(context) {
        Ok(range) => Arc::new(range),
        Err(error) => {
            tracing::info!(%error, "this device's memory cannot be mapped piece by piece");
            Arc::new(Plain(Arc::clone(context)))
        }
    }
}

fn full(wanted: usize) -> CudaError {
    CudaError::Memory {
        wanted,
        free: result::mem_get_info().map_or(0, |(free, _)| free),
        hint: "end other programs on this device, use a smaller --size, or set --max-vram",
    }
}

/// Allocations that have nothing to do with each other.
struct Plain(Arc<CudaContext>);

impl ChunkSource for Plain {
    fn take(&self, bytes: usize) -> Result<u64> {
        self.0.bind_to_thread().during("bind the device")?;
        // SAFETY: a plain allocation; the context is bound.
        unsafe { result::malloc_sync(bytes) }.map_err(|_| full(bytes))
    }

    fn give_back(&self, address: u64, _: usize) {
        let _ = self.0.bind_to_thread();
        // SAFETY: `address` came from `take`, and no block of it is in use. Freeing waits for the device.
        let _ = unsafe { result::free_sync(address) };
    }

    fn joins(&self) -> bool {
        false
    }

    fn another(&self) -> Arc<dyn ChunkSource> {
        Arc::new(Self(Arc::clone(&self.0)))
    }

    fn copy_out(&self, _: u64, _: usize) -> Result<HostCopy> {
        Err(CudaError::Unsupported(
            "this device's memory cannot be mapped piece by piece".to_owned(),
        ))
    }

    // Not reached: nothing is copied out.
    fn unmap(&self, _: u64, _: usize) {}

    fn map_again(&self, _: u64, copy: &HostCopy) -> Result<()> {
        Err(full(copy.bytes().len()))
    }
}

/// Addresses that memory is mapped to.
struct Range {
    context: Arc<CudaContext>,
    start: u64,
    size: usize,
    /// Bytes by address of what is mapped.
    mapped: Mutex<BTreeMap<u64, usize>>,
}

impl Range {
    /// Addresses for twice the device's memory: what is given back leaves gaps.
    fn reserve(context: &Arc<CudaContext>) -> Result<Self> {
        context.bind_to_thread().during("bind the device")?;
        let (_, total) = result::mem_get_info().during("ask for free memory")?;
        let size = (2 * total).next_multiple_of(1 << 30);
        let mut start = 0;
        // SAFETY: only addresses are asked for, the place left to the driver.
        unsafe { sys::cuMemAddressReserve(&mut start, size, 0, 0, 0) }
            .result()
            .during("reserve addresses")?;
        Ok(Self {
            context: Arc::clone(context),
            start,
            size,
            mapped: Mutex::default(),
        })
    }

    fn location(&self) -> sys::CUmemLocation {
        // SAFETY: a plain C structure, for which all zeros are a value.
        let mut location: sys::CUmemLocation = unsafe { std::mem::zeroed() };
        location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        location.id = self.context.ordinal() as i32;
        location
    }

    /// The first address behind everything, or the lowest gap that is large enough.
    fn place(&self, mapped: &BTreeMap<u64, usize>, bytes: usize) -> Option<u64> {
        let range_end = self.start + self.size as u64;
        let end = |(&at, &size): (&u64, &usize)| at + size as u64;
        let last = mapped.last_key_value().map_or(self.start, end);
        if last + bytes as u64 <= range_end {
            return Some(last);
        }
        let mut free = self.start;
        for (&at, &size) in mapped {
            if at - free >= bytes as u64 {
                return Some(free);
            }
            free = at + size as u64;
        }
        None
    }

    fn map(&self, at: u64, bytes: usize) -> Result<()> {
        let location = self.location();
        // SAFETY: plain C structures, for which all zeros are a value; `at` and `bytes` lie in the
        // range and nothing is mapped there. The memory lives on in the mapping without its handle.
        unsafe {
            let mut kind: sys::CUmemAllocationProp = std::mem::zeroed();
            kind.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
            kind.location = location;
            let mut memory = 0;
            sys::cuMemCreate(&mut memory, bytes, &kind, 0)
                .result()
                .map_err(|_| full(bytes))?;
            let mapped = sys::cuMemMap(at, bytes, 0, memory, 0).result();
            let _ = sys::cuMemRelease(memory);
            mapped.during("map memory")?;
            let mut access: sys::CUmemAccessDesc = std::mem::zeroed();
            access.location = location;
            access.flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
            let allowed = sys::cuMemSetAccess(at, bytes, &access, 1).result();
            if allowed.is_err() {
                let _ = sys::cuMemUnmap(at, bytes);
            }
            allowed.during("map memory")
        }
    }
}

impl ChunkSource for Range {
    fn take(&self, bytes: usize) -> Result<u64> {
        self.context.bind_to_thread().during("bind the device")?;
        let mut mapped = self.mapped.lock().unwrap_or_else(|e| e.into_inner());
        let at = self.place(&mapped, bytes).ok_or_else(|| full(bytes))?;
        self.map(at, bytes)?;
        mapped.insert(at, bytes);
        Ok(at)
    }

    fn give_back(&self, address: u64, bytes: usize) {
        let _ = self.context.bind_to_thread();
        let mut mapped = self.mapped.lock().unwrap_or_else(|e| e.into_inner());
        mapped.remove(&address);
        // SAFETY: mapped by `take` with as many bytes, and no block of it is in use by the host; what
        // the device still does is waited for.
        unsafe {
            let _ = sys::cuCtxSynchronize();
            let _ = sys::cuMemUnmap(address, bytes);
        }
    }

    fn joins(&self) -> bool {
        true
    }

    fn another(&self) -> Arc<dyn ChunkSource> {
        source(&self.context)
    }

    fn copy_out(&self, address: u64, bytes: usize) -> Result<HostCopy> {
        self.context.bind_to_thread().during("bind the device")?;
        let mut copy = HostCopy::new(bytes);
        // SAFETY: as many bytes are mapped at `address` as the copy has.
        unsafe {
            sys::cuCtxSynchronize()
                .result()
                .during("wait for the device")?;
            result::memcpy_dtoh_sync(copy.bytes_mut(), address).during("copy from the device")?;
        }
        Ok(copy)
    }

    fn unmap(&self, address: u64, bytes: usize) {
        let _ = self.context.bind_to_thread();
        // SAFETY: mapped by `take` with as many bytes, and nobody uses them; what the device still
        // does is waited for. The place stays in `mapped`: nothing else is mapped there.
        unsafe {
            let _ = sys::cuCtxSynchronize();
            let _ = sys::cuMemUnmap(address, bytes);
        }
    }

    fn map_again(&self, address: u64, copy: &HostCopy) -> Result<()> {
        self.context.bind_to_thread().during("bind the device")?;
        let bytes = copy.bytes();
        self.map(address, bytes.len())?;
        // SAFETY: as many bytes are mapped there now. The copy is over when this returns.
        let copied = unsafe { result::memcpy_htod_sync(address, bytes) };
        if copied.is_err() {
            self.unmap(address, bytes.len());
        }
        copied.during("copy to the device")
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: the pool that this belongs to has given everything back.
        let _ = unsafe { sys::cuMemAddressFree(self.start, self.size) };
    }
}
