//! How many descriptors the process may have (getrlimit(2), RLIMIT_NOFILE): a packet socket for each device of a link that
//! speaks VRRP or BFD, and usually 1,024 without asking.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as it may be raised without rights, and says how many descriptors there may be then; `None`:
/// any number. Whoever waits with select(2), which cannot take more than 1,024, is not in this process.
pub fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let is_lower = match (current, maximum) {
        (Some(current), Some(maximum)) => current < maximum,
        (Some(_), None) => true,
        (None, _) => false,
    };
    if is_lower {
        // Refused where somebody filters system calls: then it is as it was.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_what_it_may_be() {
        let before = getrlimit(Resource::Nofile);
        assert_eq!(raise(), before.maximum);
        assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: before.maximum, ..before });
        assert_eq!(raise(), before.maximum, "once more");
    }
}
