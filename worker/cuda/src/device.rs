//! A device, its one stream, its kernels and its memory.

use crate::arena::{Arena, Block};
use crate::compile::{Arch, Compiler, cache_folder};
use crate::error::{CudaError, During, Result};
use crate::kernels::KernelSpec;
use crate::options::values_max;
use crate::timing::{Watch, Work};
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};

/// A loaded kernel.
#[derive(Clone)]
pub(crate) struct Function {
    handle: sys::CUfunction,
    name: Arc<str>,
    work: Work,
}

impl Function {
    /// The same, for a launch that moves so many bytes.
    pub fn moving(self, bytes: usize) -> Self {
        let work = Work::Bytes(bytes as f64);
        Self { work, ..self }
    }
}

// SAFETY: a handle of the context, usable from every thread that has the context bound.
unsafe impl Send for Function {}

/// A kernel's argument.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg {
    /// An address or another 64-bit value.
    U64(u64),
    /// `int` and `unsigned`.
    I32(i32),
    /// `float`.
    F32(f32),
}

/// What a device is, learned without taking any of its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its name.
    pub name: String,
    /// Architecture, such as 90.
    pub arch: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
}

impl Card {
    /// Device `ordinal`.
    pub fn probe(ordinal: usize) -> Result<Self> {
        crate::libs::guarded(|| {
            crate::libs::require()?;
            result::init().during("start the driver")?;
            let count = result::device::get_count().during("count the devices")? as usize;
            if ordinal >= count {
                return Err(CudaError::NoDevice { ordinal, count });
            }
            let device = result::device::get(ordinal as i32).during("find the device")?;
            let name = result::device::get_name(device).during("name the device")?;
            let attribute = |of: sys::CUdevice_attribute| {
                // SAFETY: the driver has just given the device.
                unsafe { result::device::get_attribute(device, of) }.during("ask what it can do")
            };
            use sys::CUdevice_attribute as A;
            let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            if major < 8 {
                let device = name;
                return Err(CudaError::OldDevice {
                    device,
                    major,
                    minor,
                });
            }
            Ok(Self {
                name,
                arch: (major * 10 + minor) as u32,
                multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            })
        })
    }

    /// What the bits of a result depend on besides the job: libraries choose their algorithms by the
    /// architecture, the number of multiprocessors, and the sizes of what is decoded at once, which
    /// `memory_limit` may bound.
    pub fn level(&self, memory_limit: Option<usize>) -> String {
        let level = format!("sm_{}x{}", self.arch, self.multiprocessors);
        match values_max(memory_limit) {
            Some(values) => format!("{level}p{}", values >> 20),
            None => level,
        }
    }
}

/// Everything that belongs to one device.
pub(crate) struct Device {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    /// Results go to the host on this one while `stream` goes on.
    copies: Arc<CudaStream>,
    pub arena: Arena,
    pub card: Card,
    pub arch: Arch,
    compiler: Compiler,
    /// Where blocks come from instead of `arena` while a computation is recorded.
    private: Mutex<Option<Arena>>,
    functions: Mutex<HashMap<(KernelSpec, &'static str), Function>>,
    staging: Mutex<Staging>,
    /// What is launched while somebody looks.
    pub(crate) watch: Watch,
}

/// Most bytes of one copy between host and device that go through pinned memory at a time.
const STAGING_BYTES: usize = 32 << 20;

/// Two pinned buffers: one is filled while the other is on its way.
#[derive(Default)]
struct Staging {
    buffers: Vec<Pinned>,
    turn: usize,
}

/// A point in the stream that a copy waits for.
pub(crate) struct Ready(sys::CUevent);

// SAFETY: an event is not bound to a thread, and only waited for.
unsafe impl Send for Ready {}
// SAFETY: the same.
unsafe impl Sync for Ready {}

impl Drop for Ready {
    fn drop(&mut self) {
        // SAFETY: created in `Device::ready`; the driver keeps it as long as something waits for it.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

struct Pinned {
    memory: *mut u8,
    /// Recorded behind the last copy that reads it.
    free: sys::CUevent,
}

// SAFETY: plain memory and an event, used under a lock.
unsafe impl Send for Pinned {}

impl Device {
    /// Opens device `ordinal`, taking at most `limit` bytes of its memory.
    pub fn open(ordinal: usize, limit: Option<usize>) -> Result<Self> {
        let card = Card::probe(ordinal)?;
        let context = CudaContext::new(ordinal).during("open the device")?;
        // SAFETY: all work goes to one stream, in order; no slice needs an event of its own, and
        // events would break graph capture.
        unsafe { context.disable_event_tracking() };
        let arch = Arch(card.arch);
        let stream = context.new_stream().during("create a stream")?;
        let copies = context.new_stream().during("create a stream")?;
        Ok(Self {
            arena: Arena::new(Arc::clone(&context), limit.unwrap_or(usize::MAX)),
            compiler: Compiler::new(arch, cache_folder())?,
            context,
            stream,
            copies,
            card,
            arch,
            private: Mutex::default(),
            functions: Mutex::default(),
            staging: Mutex::default(),
            watch: Watch::default(),
        })
    }

    /// Whether the FP8 conversions and tensor cores are there.
    pub fn has_fp8(&self) -> bool {
        self.arch.0 >= 89
    }

    /// Makes the device current on this thread.
    pub fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().during("bind the device")
    }

    /// A block of `bytes`.
    pub fn take(&self, bytes: usize) -> Result<Block> {
        let private = self.private.lock().unwrap_or_else(|e| e.into_inner());
        private.as_ref().unwrap_or(&self.arena).take(bytes)
    }

    /// Runs `f` with every block coming from `arena`.
    pub fn within<T>(&self, arena: &Arena, f: impl FnOnce() -> T) -> T {
        let set = |to| *self.private.lock().unwrap_or_else(|e| e.into_inner()) = to;
        set(Some(arena.clone()));
        let outcome = f();
        set(None);
        outcome
    }

    /// Function `entry` of a kernel; compiled and loaded at its first use.
    pub fn function(&self, spec: &KernelSpec, entry: &'static str) -> Result<Function> {
        let mut functions = self.functions.lock().unwrap_or_else(|e| e.into_inner());
        let key = (spec.clone(), entry);
        if let Some(function) = functions.get(&key) {
            return Ok(function.clone());
        }
        let cubin = self.compiler.cubin(spec)?;
        let name = if entry.is_empty() {
            spec.name()
        } else {
            entry.to_owned()
        };
        let label = Arc::from(name.as_str());
        let name = CString::new(name).map_err(|e| CudaError::Unsupported(e.to_string()))?;
        self.bind()?;
        // SAFETY: `cubin` is a whole cubin of NVRTC's; modules stay loaded as long as the context.
        let function = unsafe {
            let module =
                result::module::load_data(cubin.as_ptr().cast()).during("load a kernel")?;
            result::module::get_function(module, name).during("find a kernel")?
        };
        let function = Function {
            handle: function,
            name: label,
            work: Work::Unknown,
        };
        functions.insert(key, function.clone());
        Ok(function)
    }

    /// Launches `function`. `shared_bytes` above 48 KiB are asked for first.
    ///
    /// # Safety
    /// `args` must be what the kernel takes, in order and type, and its addresses must be valid for
    /// what the kernel reads and writes with this grid.
    pub unsafe fn launch(
        &self,
        function: Function,
        grid: [u32; 2],
        threads: u32,
        shared_bytes: u32,
        args: &[Arg],
    ) -> Result<()> {
        self.bind()?;
        if shared_bytes > 48 << 10 {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: `function` is loaded.
            unsafe {
                result::function::set_function_attribute(
                    function.handle,
                    attribute,
                    shared_bytes as i32,
                )
            }
            .during("ask for shared memory")?;
        }
        let mut pointers: Vec<*mut c_void> = args
            .iter()
            .map(|arg| match arg {
                Arg::U64(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::I32(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::F32(v) => std::ptr::from_ref(v).cast_mut().cast(),
            })
            .collect();
        // SAFETY: the caller vouches for the arguments; the pointers live until the launch returns,
        // which copies what they point to.
        unsafe {
            result::launch_kernel(
                function.handle,
                (grid[0], grid[1], 1),
                (threads, 1, 1),
                shared_bytes,
                self.stream.cu_stream(),
                &mut pointers,
            )
        }
        .during("launch a kernel")?;
        self.watch
            .saw(self, || (function.name.to_string(), function.work))
    }

    /// Copies `bytes` to `to`, which must have room. Returns when `bytes` may be changed.
    pub fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(|e| e.into_inner());
        while staging.buffers.len() < 2 {
            staging.buffers.push(Pinned::new()?);
        }
        for (i, part) in bytes.chunks(STAGING_BYTES).enumerate() {
            let turn = staging.turn;
            staging.turn = 1 - turn;
            let buffer = &staging.buffers[turn];
            // SAFETY: the buffer has STAGING_BYTES bytes; its last copy is waited for before it is
            // filled, and it is not touched until the next wait. `to` has room for `bytes`.
            unsafe {
                result::event::synchronize(buffer.free).during("wait for a copy")?;
                std::ptr::copy_nonoverlapping(part.as_ptr(), buffer.memory, part.len());
                let filled = std::slice::from_raw_parts(buffer.memory, part.len());
                let at = to + (i * STAGING_BYTES) as u64;
                result::memcpy_htod_async(at, filled, self.stream.cu_stream())
                    .during("copy to the device")?;
                result::event::record(buffer.free, self.stream.cu_stream())
                    .during("record an event")?;
            }
        }
        Ok(())
    }

    /// Copies from `from`, which must have as many bytes, once all that was asked for is done, and waits.
    pub fn download(&self, from: u64, bytes: &mut [MaybeUninit<u8>]) -> Result<()> {
        self.download_after(&self.ready()?, from, bytes)
    }

    /// An event behind all that was asked for.
    pub fn ready(&self) -> Result<Ready> {
        self.bind()?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let ready = Ready(result::event::create(flags).during("create an event")?);
        // SAFETY: both belong to the device.
        unsafe { result::event::record(ready.0, self.stream.cu_stream()) }
            .during("record an event")?;
        Ok(ready)
    }

    /// Copies from `from`, which must have as many bytes, once `ready` has come, and waits for that alone.
    pub fn download_after(
        &self,
        ready: &Ready,
        from: u64,
        bytes: &mut [MaybeUninit<u8>],
    ) -> Result<()> {
        let stream = self.copies.cu_stream();
        prefer_large_pages(bytes);
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(|e| e.into_inner());
        while staging.buffers.len() < 2 {
            staging.buffers.push(Pinned::new()?);
        }
        let wait = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both belong to the device.
        unsafe { result::stream::wait_event(stream, ready.0, wait) }.during("wait for a result")?;
        let total = bytes.len();
        let parts = total.div_ceil(STAGING_BYTES);
        let start = |i: usize, staging: &Staging| -> Result<()> {
            let length = STAGING_BYTES.min(total - i * STAGING_BYTES);
            let buffer = &staging.buffers[i % 2];
            // SAFETY: the buffer has STAGING_BYTES bytes and its last copy is over: `finish` or the
            // wait below came before. `from` has as many bytes as `bytes`.
            unsafe {
                result::event::synchronize(buffer.free).during("wait for a copy")?;
                let to = std::slice::from_raw_parts_mut(buffer.memory, length);
                let at = from + (i * STAGING_BYTES) as u64;
                result::memcpy_dtoh_async(to, at, stream).during("copy from the device")?;
                result::event::record(buffer.free, stream).during("record an event")
            }
        };
        if parts > 0 {
            start(0, &staging)?;
        }
        for i in 0..parts {
            if i + 1 < parts {
                start(i + 1, &staging)?;
            }
            let range = i * STAGING_BYTES..((i + 1) * STAGING_BYTES).min(total);
            let buffer = &staging.buffers[i % 2];
            // SAFETY: the copy into the buffer is waited for; ranges fit.
            unsafe {
                result::event::synchronize(buffer.free).during("wait for a copy")?;
                let filled = std::slice::from_raw_parts(buffer.memory, range.len());
                copy_by_many(filled, &mut bytes[range]);
            }
        }
        let bytes = total as f64;
        self.watch
            .saw(self, || ("to the host".to_owned(), Work::Bytes(bytes)))
    }

    /// Fills a block with zeros.
    pub fn zero(&self, block: &Block) -> Result<()> {
        self.bind()?;
        // SAFETY: the block has so many bytes.
        unsafe {
            result::memset_d8_async(block.address(), 0, block.size(), self.stream.cu_stream())
        }
        .during("fill with zeros")
    }

    /// Copies within the device.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: callers pass blocks that have `bytes` bytes.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .during("copy on the device")?;
        self.watch.saw(self, || {
            ("copy".to_owned(), Work::Bytes(2.0 * bytes as f64))
        })
    }

    /// Waits until everything is done, and learns whether it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        self.stream.synchronize().during("wait for the device")
    }
}

/// Asks for large pages below memory that is about to be filled: with small ones, touching it for the
/// first time takes longer than filling it. Only advice: it may well be refused.
fn prefer_large_pages(memory: &mut [MaybeUninit<u8>]) {
    const PAGE: usize = 2 << 20;
    let start = memory.as_mut_ptr().addr();
    let (first, end) = (
        start.next_multiple_of(PAGE),
        (start + memory.len()) / PAGE * PAGE,
    );
    if first < end {
        let at = memory.as_mut_ptr().wrapping_add(first - start).cast();
        // SAFETY: whole pages inside `memory`, whose contents the advice does not change.
        unsafe { libc::madvise(at, end - first, libc::MADV_HUGEPAGE) };
    }
}

/// Fills `to` with `from`, which is as long.
fn fill(to: &mut [MaybeUninit<u8>], from: &[u8]) {
    assert_eq!(to.len(), from.len(), "parts of one copy");
    // SAFETY: equally long, as was checked, and an exclusive borrow overlaps with nothing.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr().cast(), from.len()) };
}

/// Copies with several threads where it pays: memory that was never touched is slow to touch first.
fn copy_by_many(from: &[u8], to: &mut [MaybeUninit<u8>]) {
    const EACH_MIN: usize = 1 << 20;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(8).min(from.len() / EACH_MIN).max(1);
    let each = from.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let mut parts = from.chunks(each).zip(to.chunks_mut(each));
        let first = parts.next();
        for (from, to) in parts {
            scope.spawn(|| fill(to, from));
        }
        if let Some((from, to)) = first {
            fill(to, from);
        }
    });
}

impl Pinned {
    fn new() -> Result<Self> {
        // SAFETY: plain allocations; the device is bound.
        unsafe {
            let memory = result::malloc_host(STAGING_BYTES, 0).during("pin host memory")?;
            let free = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
                .during("create an event")?;
            Ok(Self {
                memory: memory.cast(),
                free,
            })
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: created in `new`; its copies are waited for.
        unsafe {
            let _ = result::event::synchronize(self.free);
            let _ = result::event::destroy(self.free);
            let _ = result::free_host(self.memory.cast());
        }
    }
}
