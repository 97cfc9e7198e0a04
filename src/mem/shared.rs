//! Words in a file that outlives the process: mapped shared, so that what was stored is there whoever ends us.
#![allow(unsafe_code, reason = "raw memory lives in mem/ and io/ only")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Words of a file on tmpfs. Whoever has the file sees what is stored; nobody has to be told.
#[derive(Debug)]
pub struct SharedWords {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to the value; its words are atomic.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Gives the file so many zeroed words and maps them. All memory is taken now: a page that a full file system has
    /// no room for would end the process (SIGBUS) when it is written.
    pub fn create(file: &File, words: usize) -> io::Result<SharedWords> {
        let bytes = words * size_of::<AtomicU64>();
        let len = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
        file.set_len(0)?;
        // SAFETY: no memory is involved.
        let error = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        let mapped = SharedWords::map(file, words, libc::PROT_READ | libc::PROT_WRITE)?;
        // So that no packet waits for a page. Before Linux 5.14 the first touches fault.
        // SAFETY: the mapping just made.
        unsafe { libc::madvise(mapped.base.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) };
        Ok(mapped)
    }

    /// Maps the words that a file has, to be read. The file must not be made shorter meanwhile.
    pub fn open(file: &File) -> io::Result<SharedWords> {
        let words =
            usize::try_from(file.metadata()?.len()).map_err(io::Error::other)? / size_of::<AtomicU64>();
        if words == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        SharedWords::map(file, words, libc::PROT_READ)
    }

    fn map(file: &File, words: usize, protection: i32) -> io::Result<SharedWords> {
        let (fd, bytes) = (file.as_raw_fd(), words * size_of::<AtomicU64>());
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(SharedWords { base, words })
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    #[inline(always)]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds so many words, aligned to a page, and lives as long as `self`. Whoever else has the
        // file may store to them at any time, which is what atomics are for. Those of `open` are only loaded: a store
        // would fault, not corrupt.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping with this length.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.words * size_of::<AtomicU64>()) };
    }
}

/// True if files of the folder lie in memory: tmpfs or ramfs.
pub fn is_in_memory(folder: &File) -> io::Result<bool> {
    // `linux/magic.h`.
    const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];
    // SAFETY: integers only, for which zero is a value.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills in a live, writable value.
    if unsafe { libc::fstatfs(folder.as_raw_fd(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    #[allow(clippy::unnecessary_cast, reason = "another type on other machines")]
    let kind = found.f_type as i64;
    Ok(IN_MEMORY.contains(&kind))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn what_is_stored_is_in_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("words");
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
        let words = SharedWords::create(&file, 1000).expect("memory");
        assert!(words.len() == 1000 && words.iter().all(|word| word.load(Relaxed) == 0));
        words[999].store(7, Relaxed);
        let read = SharedWords::open(&File::open(&path).expect("the file")).expect("memory");
        assert_eq!(read[999].load(Relaxed), 7);
        words[0].store(5, Relaxed);
        assert_eq!(read[0].load(Relaxed), 5);
        drop((words, read));
        let again = SharedWords::create(&file, 10).expect("memory");
        assert!(again.iter().all(|word| word.load(Relaxed) == 0), "nothing is left");
        let empty = File::create(folder.path().join("empty")).expect("a file");
        assert!(SharedWords::open(&empty).is_err());
    }

    #[test]
    fn it_is_known_what_lies_in_memory() {
        let is = |path: &str| File::open(path).and_then(|folder| is_in_memory(&folder)).ok();
        assert_eq!(is("/proc"), Some(false));
        assert!(is("/dev/shm").is_none_or(|is| is));
    }
}
