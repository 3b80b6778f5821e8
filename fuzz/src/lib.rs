//! What every fuzz target does before its first input. The targets' laws are `tests/it/hostile/*.rs`.

use std::alloc::{GlobalAlloc, Layout, System};

/// The most bytes of one allocation. libFuzzer's own limit needs a sanitizer, which stable Rust has not. Far
/// above what the laws' settings let any input ask for (an image of a megapixel: 32 MiB), and far below what a
/// length that is believed can be.
const MAX_ALLOCATION_BYTES: usize = 512 << 20;

/// The system's allocator, which aborts where an input asks for too much at once.
struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

// SAFETY: every call that is passed on is passed on as it came.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        // SAFETY: the caller's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn check(bytes: usize) {
    if bytes > MAX_ALLOCATION_BYTES {
        eprintln!("ERROR: an allocation of {bytes} bytes");
        std::process::abort();
    }
}

/// Lets panics that the program catches pass: a decoder's is a refusal by design. libFuzzer's hook would end the
/// process at each. What nobody catches still ends it, with the input that did it.
pub fn prepare() {
    drop(std::panic::take_hook());
}
