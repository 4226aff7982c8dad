//! An allocator that ONNX Runtime can use for everything on the CPU, and that writes down what happens.
//!
//! Registered once with the environment; sessions opt in. What a session allocates on a thread is written down
//! while that thread [`record`]s, so sessions with a single thread can be measured side by side. What comes
//! through it: values between operators, temporaries of kernels, graph outputs, weights (while loading), and the
//! one block of all values where memory patterns are on. Sizes are those asked for, without any rounding.
//!
//! ONNX Runtime's profiler asks an allocator for statistics right before and right after each kernel (from version
//! 1.30 on), and only if it has some. That is how temporaries are told from values: a temporary is given back
//! before the kernel ends, a value never is.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ort::sys::{
    ORT_API_VERSION, OrtAllocator, OrtAllocatorType, OrtEnv, OrtKeyValuePairs, OrtMemType, OrtMemoryInfo,
    OrtStatusPtr,
};

use crate::Peak;

/// What happened at the allocator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// A block at this address, of this many bytes.
    Alloc(usize, u64),
    /// The block at this address was given back.
    Free(usize),
    /// Statistics were asked for: a kernel begins or ends.
    Mark,
}

thread_local!(static EVENTS: RefCell<Option<Vec<Event>>> = const { RefCell::new(None) });

/// Bytes in use by all sessions, and the most that ever were.
static IN_USE: AtomicU64 = AtomicU64::new(0);
static MOST: AtomicU64 = AtomicU64::new(0);

/// Writes down what happens on this thread meanwhile.
pub(super) fn record<T>(work: impl FnOnce() -> T) -> (T, Vec<Event>) {
    EVENTS.set(Some(Vec::new()));
    let result = work();
    (result, EVENTS.take().unwrap_or_default())
}

fn note(event: Event) {
    // A thread that is ending has no list any more.
    let _ = EVENTS.try_with(|events| {
        if let Some(events) = events.borrow_mut().as_mut() {
            events.push(event);
        }
    });
}

/// Bytes that were not given back.
pub(super) fn kept(events: &[Event]) -> u64 {
    let mut live = HashMap::new();
    for event in events {
        match *event {
            Event::Alloc(at, bytes) => _ = live.insert(at, bytes),
            Event::Free(at) => _ = live.remove(&at),
            Event::Mark => {}
        }
    }
    live.values().sum()
}

/// The first moment at which most memory was in use. `outputs` are the addresses of the graph outputs. Blocks from
/// before the recording do not count.
pub(super) fn peak(events: &[Event], outputs: &[usize]) -> Peak {
    #[derive(Clone, Copy)]
    enum Part {
        Activation,
        Scratch,
        Output,
    }
    let mut parts = vec![Part::Activation; events.len()];
    let mut live: HashMap<usize, (usize, usize)> = HashMap::new();
    let mut marks = 0;
    for (i, event) in events.iter().enumerate() {
        match *event {
            Event::Alloc(at, _) => _ = live.insert(at, (i, marks)),
            Event::Free(at) => {
                if let Some((born, then)) = live.remove(&at)
                    && then == marks
                    && marks > 0
                {
                    parts[born] = Part::Scratch;
                }
            }
            Event::Mark => marks += 1,
        }
    }
    for at in outputs {
        if let Some((born, _)) = live.get(at) {
            parts[*born] = Part::Output;
        }
    }
    let mut live: HashMap<usize, (Part, u64)> = HashMap::new();
    let (mut now, mut most) = ([0u64; 3], [0u64; 3]);
    for (event, part) in events.iter().zip(parts) {
        match *event {
            Event::Alloc(at, bytes) => {
                live.insert(at, (part, bytes));
                now[part as usize] += bytes;
                if now.iter().sum::<u64>() > most.iter().sum() {
                    most = now;
                }
            }
            Event::Free(at) => {
                if let Some((part, bytes)) = live.remove(&at) {
                    now[part as usize] -= bytes;
                }
            }
            Event::Mark => {}
        }
    }
    let [activations, scratch, outputs] = most;
    let bytes = activations + scratch + outputs;
    Peak { bytes, activations, scratch: (marks > 0).then_some(scratch), outputs }
}

/// The allocator as ONNX Runtime calls it: its own table of functions comes first.
#[repr(C)]
struct Counting {
    table: OrtAllocator,
    info: *const OrtMemoryInfo,
}

/// Registers the allocator with the environment. It is never freed: the environment lives as long as the process.
///
/// # Errors
/// What ONNX Runtime said.
pub(super) fn register(env: *mut OrtEnv) -> Result<(), ort::Error> {
    let mut info = ptr::null_mut();
    // SAFETY: the pointer is valid for writing, the name is a C string.
    unsafe {
        let create = ort::api().CreateMemoryInfo;
        // ONNX Runtime refuses to register an allocator that calls itself an arena, even where it is one.
        let (kind, memory) = (OrtAllocatorType::OrtDeviceAllocator, OrtMemType::OrtMemTypeDefault);
        ort::Error::result_from_status(create(c"Cpu".as_ptr(), kind, 0, memory, &mut info))?;
    }
    let table = OrtAllocator {
        version: ORT_API_VERSION,
        Alloc: Some(allocate),
        Free: Some(free),
        Info: Some(describe),
        Reserve: Some(reserve),
        GetStats: Some(statistics),
        AllocOnStream: None,
    };
    let allocator = Box::leak(Box::new(Counting { table, info }));
    // SAFETY: the table is complete, its layout is that of `OrtAllocator`, and it outlives the environment.
    unsafe {
        let status = (ort::api().RegisterAllocator)(env, ptr::from_mut(allocator).cast());
        ort::Error::result_from_status(status)
    }
}

/// Space before each block, which holds its size; the alignment that ONNX Runtime's own allocator keeps.
const HEADER: usize = 256;

unsafe extern "system" fn allocate(_: *mut OrtAllocator, bytes: usize) -> *mut c_void {
    take(bytes)
}

unsafe extern "system" fn reserve(_: *const OrtAllocator, bytes: usize) -> *mut c_void {
    take(bytes)
}

fn take(bytes: usize) -> *mut c_void {
    if bytes == 0 {
        return ptr::null_mut();
    }
    let Some(layout) = layout(bytes) else { return ptr::null_mut() };
    // SAFETY: the layout is not empty; the header is inside the block and aligned for an integer.
    let block = unsafe {
        let start = alloc(layout);
        if start.is_null() {
            return ptr::null_mut();
        }
        start.cast::<usize>().write(bytes);
        start.add(HEADER)
    };
    let in_use = IN_USE.fetch_add(bytes as u64, Relaxed) + bytes as u64;
    MOST.fetch_max(in_use, Relaxed);
    note(Event::Alloc(block.addr(), bytes as u64));
    block.cast()
}

unsafe extern "system" fn free(_: *mut OrtAllocator, block: *mut c_void) {
    if block.is_null() {
        return;
    }
    note(Event::Free(block.addr()));
    // SAFETY: only blocks that `take` made come back, each once; its header holds the size of its layout.
    unsafe {
        let start = block.cast::<u8>().sub(HEADER);
        let bytes = start.cast::<usize>().read();
        IN_USE.fetch_sub(bytes as u64, Relaxed);
        if let Some(layout) = layout(bytes) {
            dealloc(start, layout);
        }
    }
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(HEADER)?, HEADER).ok()
}

unsafe extern "system" fn describe(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    // SAFETY: the table is the first field of what was registered.
    unsafe { (*this.cast::<Counting>()).info }
}

unsafe extern "system" fn statistics(
    _: *const OrtAllocator,
    out: *mut *mut OrtKeyValuePairs,
) -> OrtStatusPtr {
    note(Event::Mark);
    let set = |pairs, key: &CStr, value: u64| {
        let value = CString::new(value.to_string()).unwrap_or_default();
        // SAFETY: both are C strings, which are copied.
        unsafe { (ort::api().AddKeyValuePair)(pairs, key.as_ptr(), value.as_ptr()) };
    };
    let mut pairs = ptr::null_mut();
    // SAFETY: the pointer is valid for writing; the caller owns the list and releases it.
    unsafe {
        (ort::api().CreateKeyValuePairs)(&mut pairs);
        *out = pairs;
    }
    set(pairs, c"InUse", IN_USE.load(Relaxed));
    set(pairs, c"MaxInUse", MOST.load(Relaxed));
    set(pairs, c"TotalAllocated", IN_USE.load(Relaxed));
    OrtStatusPtr(ptr::null_mut())
}

#[cfg(test)]
mod tests {
    use super::Event::*;
    use super::*;

    #[test]
    fn the_peak_is_split_at_its_moment() {
        // Two kernels: the first makes a value at 1 with 5 bytes of scratch, the second the output at 3.
        let events = [Mark, Alloc(1, 10), Alloc(2, 5), Free(2), Mark, Mark, Alloc(3, 10), Mark, Free(1)];
        let expected = Peak { bytes: 20, activations: 10, scratch: Some(0), outputs: 10 };
        assert_eq!(peak(&events, &[3]), expected);
        let wider = [Mark, Alloc(1, 10), Alloc(2, 50), Free(2), Mark, Mark, Alloc(3, 10), Mark, Free(1)];
        let expected = Peak { bytes: 60, activations: 10, scratch: Some(50), outputs: 0 };
        assert_eq!(peak(&wider, &[3]), expected);
    }

    #[test]
    fn without_marks_scratch_is_unknown_and_not_zero() {
        let events = [Alloc(1, 10), Alloc(2, 50), Free(2), Free(1)];
        let expected = Peak { bytes: 60, activations: 60, scratch: None, outputs: 0 };
        assert_eq!(peak(&events, &[]), expected);
    }

    #[test]
    fn an_address_that_is_used_again_is_another_block() {
        let events = [Mark, Alloc(1, 10), Free(1), Mark, Mark, Alloc(1, 20), Mark];
        assert_eq!(peak(&events, &[1]), Peak { bytes: 20, activations: 0, scratch: Some(0), outputs: 20 });
    }

    #[test]
    fn blocks_from_before_do_not_count() {
        assert_eq!(peak(&[Free(7), Alloc(7, 3)], &[]).bytes, 3);
    }

    #[test]
    fn what_is_kept_is_what_was_not_freed() {
        assert_eq!(kept(&[Alloc(1, 10), Alloc(2, 5), Free(1), Mark, Alloc(1, 2)]), 7);
    }

    #[test]
    fn only_the_recording_thread_is_written_down() {
        let ((), events) = record(|| {
            note(Mark);
            std::thread::spawn(|| note(Alloc(1, 1))).join().unwrap();
        });
        assert_eq!(events, [Mark]);
        note(Mark);
    }
}
