//! Mappings on huge pages: for the packet memory, and as slices of plain values for large tables.
#![allow(unsafe_code, reason = "raw memory lives in mem/ and io/ only")]

use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::ptr::NonNull;

use zerocopy::FromZeros;

use super::{MemoryError, PageKind};

/// Transparent huge pages are 2 MiB on x86-64.
pub(super) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A slice of fixed length on huge pages, zero at first.
#[derive(Debug)]
pub struct HugeSlice<T> {
    base: NonNull<T>,
    len: usize,
    /// Bytes of the mapping.
    bytes: usize,
}

// SAFETY: the slice owns its mapping as a `Box<[T]>` would.
unsafe impl<T: Send> Send for HugeSlice<T> {}
// SAFETY: as above; access through `&self` is `&[T]`.
unsafe impl<T: Sync> Sync for HugeSlice<T> {}

impl<T: FromZeros> HugeSlice<T> {
    /// `len` zeroed values. With `populate` the memory is taken at once; else page by page, as it is used.
    pub fn zeroed(len: usize, populate: bool) -> Result<HugeSlice<T>, MemoryError> {
        const { assert!(!std::mem::needs_drop::<T>() && align_of::<T>() <= HUGE_PAGE_BYTES) };
        let bytes = (len * size_of::<T>()).max(1).next_multiple_of(HUGE_PAGE_BYTES);
        let (base, _) = map(bytes, populate)?;
        Ok(HugeSlice { base: base.cast(), len, bytes })
    }

    /// Whether there is address space for so many values: no limit of the process is in the way.
    pub fn can_be(len: usize) -> bool {
        const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
        // Without a reserve: so much at once is what the kernel would not believe, unlike as much in pieces.
        const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let Some(bytes) = len.max(1).checked_mul(size_of::<T>().max(1)) else { return false };
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, PROT, FLAGS, -1, 0) };
        if base == libc::MAP_FAILED {
            return false;
        }
        // SAFETY: the mapping made above, of which nobody knows.
        unsafe { libc::munmap(base, bytes) };
        true
    }
}

impl<T> Deref for HugeSlice<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `len` values, zeroed at first, for which all-zero bytes are a value
        // (`FromZeros` at construction); it lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for HugeSlice<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`; `&mut self` is the only way to the values.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl<T> Drop for HugeSlice<T> {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping with this length; the values need no drop (checked when made).
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Bytes of memory that a process may take just now: the kernel's estimate, and huge pages kept for such as we are.
/// `None` where it does not tell.
pub fn available_bytes() -> Option<usize> {
    available_in(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn available_in(meminfo: &str) -> Option<usize> {
    let field = |name: &str| {
        let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.split_whitespace().next()?.parse::<usize>().ok()
    };
    let huge = field("HugePages_Free").unwrap_or(0).saturating_sub(field("HugePages_Rsvd").unwrap_or(0));
    Some((field("MemAvailable")? + huge * field("Hugepagesize").unwrap_or(0)) * 1024)
}

/// Maps `bytes` (a multiple of the huge page size) of zeroed memory, on huge pages where possible; with
/// `populate` the pages are there at once, so that nobody takes a page fault for them later.
pub(super) fn map(bytes: usize, populate: bool) -> Result<(NonNull<u8>, PageKind), MemoryError> {
    const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
    const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let reserved = FLAGS | libc::MAP_HUGETLB | if populate { libc::MAP_POPULATE } else { 0 };
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of ours.
    let huge = unsafe { libc::mmap(std::ptr::null_mut(), bytes, PROT, reserved, -1, 0) };
    if huge != libc::MAP_FAILED
        && let Some(base) = NonNull::new(huge.cast())
    {
        return Ok((base, PageKind::Huge));
    }
    let map_error = || MemoryError::Map { bytes, source: std::io::Error::last_os_error() };
    let length = bytes + HUGE_PAGE_BYTES;
    // SAFETY: as above.
    let raw = unsafe { libc::mmap(std::ptr::null_mut(), length, PROT, FLAGS, -1, 0) };
    if raw == libc::MAP_FAILED {
        return Err(map_error());
    }
    let start = raw as usize;
    let aligned = start.next_multiple_of(HUGE_PAGE_BYTES);
    let (before, after) = (aligned - start, start + length - (aligned + bytes));
    for (at, len) in [(start, before), (aligned + bytes, after)] {
        if len > 0 {
            // SAFETY: trims the unaligned ends of the mapping made above; nothing points there.
            unsafe { libc::munmap(at as *mut _, len) };
        }
    }
    // SAFETY: the range is the mapping made above; the advice changes no content. Where it is refused
    // (THP switched off) ordinary pages serve.
    unsafe { libc::madvise(aligned as *mut _, bytes, libc::MADV_HUGEPAGE) };
    if populate {
        // MADV_POPULATE_WRITE needs Linux 5.14; without it the first touches fault.
        // SAFETY: as above.
        unsafe { libc::madvise(aligned as *mut _, bytes, libc::MADV_POPULATE_WRITE) };
    }
    NonNull::new(aligned as *mut u8).map(|base| (base, PageKind::Transparent)).ok_or_else(map_error)
}

/// Has the kernel put huge pages below memory that a file has (since Linux 6.1; whatever `shmem_enabled` says but `deny`).
const MADV_COLLAPSE: i32 = 25;

/// As [`map`] with all pages there at once, but of a file without a name: another process that has its descriptor maps the
/// same memory. The file keeps its size (sealed). `None` where such memory cannot be had on huge pages: nobody should
/// forward more slowly all day for the sake of an upgrade.
pub(super) fn map_shareable(bytes: usize) -> Option<(NonNull<u8>, PageKind, File)> {
    let on_huge = || {
        let file = memfd(bytes, libc::MFD_HUGETLB)?;
        Some((map_file(&file, bytes)?, PageKind::Huge, file))
    };
    let on_transparent = || {
        let file = memfd(bytes, 0)?;
        let base = map_file(&file, bytes)?;
        for advice in [libc::MADV_POPULATE_WRITE, MADV_COLLAPSE] {
            // SAFETY: the mapping just made; neither advice changes its content.
            if unsafe { libc::madvise(base.as_ptr().cast(), bytes, advice) } != 0 {
                // SAFETY: as above, and nobody knows of it.
                unsafe { libc::munmap(base.as_ptr().cast(), bytes) };
                return None;
            }
        }
        Some((base, PageKind::Transparent, file))
    };
    on_huge().or_else(on_transparent)
}

/// A file in memory that keeps its size: a page that is taken away would end whoever touches it (SIGBUS).
fn memfd(bytes: usize, pages: libc::c_uint) -> Option<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | pages;
    // SAFETY: a NUL-terminated name.
    let fd = unsafe { libc::memfd_create(c"softgate-packets".as_ptr(), flags) };
    if fd < 0 {
        return None;
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes as u64).ok()?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: integers only.
    (unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } == 0).then_some(file)
}

/// True if nobody can make the file shorter.
pub(super) fn keeps_its_size(file: &File) -> bool {
    // SAFETY: no memory is involved.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & libc::F_SEAL_SHRINK != 0
}

/// Maps the first `bytes` (a multiple of the huge page size) of a file in memory, aligned for huge pages.
pub(super) fn map_file(file: &File, bytes: usize) -> Option<NonNull<u8>> {
    const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
    const RESERVE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let length = bytes + HUGE_PAGE_BYTES;
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of ours.
    let raw = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, RESERVE, -1, 0) };
    if raw == libc::MAP_FAILED {
        return None;
    }
    let start = raw as usize;
    let aligned = start.next_multiple_of(HUGE_PAGE_BYTES);
    let shared = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE;
    // SAFETY: replaces pages of the mapping just made, of which nobody knows.
    let base = unsafe { libc::mmap(aligned as *mut _, bytes, PROT, shared, file.as_raw_fd(), 0) };
    let is_mapped = base != libc::MAP_FAILED;
    let ends = [(start, aligned - start), (aligned + bytes, start + length - (aligned + bytes))];
    let all = [(start, length), (0, 0)];
    for (at, len) in if is_mapped { ends } else { all } {
        if len > 0 {
            // SAFETY: what nothing points to of the mapping made above.
            unsafe { libc::munmap(at as *mut _, len) };
        }
    }
    NonNull::new(aligned as *mut u8).filter(|_| is_mapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_what_the_kernel_says_and_free_huge_pages() {
        let meminfo = "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:     1000 kB\nHugePages_Total:  9\n\
            HugePages_Free:  5\nHugePages_Rsvd:        2\nHugepagesize:       2048 kB\n";
        assert_eq!(available_in(meminfo), Some((1000 + 3 * 2048) * 1024));
        assert_eq!(available_in("MemAvailable: 7 kB\n"), Some(7 * 1024));
        assert_eq!(available_in(""), None);
        assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 20), "this machine tells");
    }

    #[test]
    fn no_process_has_room_for_everything() {
        assert!(HugeSlice::<u64>::can_be(1 << 20));
        assert!(!HugeSlice::<u64>::can_be(usize::MAX / 8));
        assert!(!HugeSlice::<u64>::can_be(usize::MAX));
    }

    #[test]
    fn values_are_zero_and_keep_what_is_written() {
        let mut slice: HugeSlice<u64> = HugeSlice::zeroed(300_000, false).expect("memory");
        assert_eq!(slice.len(), 300_000);
        assert!(slice.iter().all(|value| *value == 0));
        slice[299_999] = 7;
        assert_eq!(slice[299_999], 7);
        assert!(HugeSlice::<u32>::zeroed(0, true).expect("memory").is_empty());
    }
}
