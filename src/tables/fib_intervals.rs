//! From nested prefixes to flat intervals: the form from which both FIBs are built.
//!
//! A routing table over an address range is a list of boundaries: from each on, one leaf holds until the
//! next. One sweep over the routes, sorted by first address and then from short to long, finds them.

use super::Leaf;

/// An address as an unsigned number.
pub(super) trait Key: Copy + Ord {
    /// The address after this one, or `None` after the last.
    fn next(self) -> Option<Self>;
}

macro_rules! keys {
    ($($key:ty)*) => { $(impl Key for $key {
        fn next(self) -> Option<Self> { self.checked_add(1) }
    })* };
}
keys!(u32 u64 u128);

/// The addresses `first..=last`, and the leaf of the route to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span<K> {
    pub first: K,
    pub last: K,
    pub leaf: Leaf,
}

/// From `first` on, to the next interval's first, addresses have this leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval<K> {
    pub first: K,
    pub leaf: Leaf,
}

/// Adds a boundary to a list of intervals; the later word on an address holds, equal neighbours merge.
#[inline]
pub(super) fn push<K: Key>(intervals: &mut Vec<Interval<K>>, first: K, leaf: Leaf) {
    if intervals.last().is_some_and(|last| last.first == first) {
        intervals.pop();
    }
    if intervals.last().is_none_or(|last| last.leaf != leaf) {
        intervals.push(Interval { first, leaf });
    }
}

/// The intervals of the range `whole`, whose own leaf holds where no route does. `routes` are nested or
/// disjoint, lie in the range, and are sorted by first address, then longest span first; of two with the
/// same span the later holds.
pub(super) fn sweep<K: Key>(whole: Span<K>, routes: impl IntoIterator<Item = Span<K>>) -> Vec<Interval<K>> {
    let routes = routes.into_iter();
    let mut intervals = Vec::with_capacity(1 + routes.size_hint().0);
    let mut open = vec![whole];
    push(&mut intervals, whole.first, whole.leaf);
    for route in routes {
        close(&mut open, &mut intervals, Some(route.first));
        open.push(route);
        push(&mut intervals, route.first, route.leaf);
    }
    close(&mut open, &mut intervals, None);
    intervals
}

/// Ends the open spans that do not reach `until` (`None`: all): the span around each goes on after it.
fn close<K: Key>(open: &mut Vec<Span<K>>, intervals: &mut Vec<Interval<K>>, until: Option<K>) {
    while let [.., outer, inner] = open.as_slice() {
        if until.is_some_and(|until| inner.last >= until) {
            return;
        }
        if inner.last < outer.last
            && let Some(after) = inner.last.next()
        {
            push(intervals, after, outer.leaf);
        }
        open.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep_of(routes: &[(u32, u32, Leaf)]) -> Vec<(u32, Leaf)> {
        let whole = Span { first: 0, last: u32::MAX, leaf: 0 };
        let routes = routes.iter().map(|&(first, last, leaf)| Span { first, last, leaf });
        sweep(whole, routes).iter().map(|interval| (interval.first, interval.leaf)).collect()
    }

    #[test]
    fn nothing_is_one_interval() {
        assert_eq!(sweep_of(&[]), [(0, 0)]);
    }

    #[test]
    fn nested_spans_resume_the_outer_one() {
        assert_eq!(
            sweep_of(&[(16, 31, 1), (20, 23, 2), (20, 20, 3)]),
            [(0, 0), (16, 1), (20, 3), (21, 2), (24, 1), (32, 0)]
        );
    }

    #[test]
    fn spans_that_end_together_resume_the_outermost() {
        assert_eq!(
            sweep_of(&[(16, 31, 1), (24, 31, 2), (28, 31, 3), (32, 47, 4)]),
            [(0, 0), (16, 1), (24, 2), (28, 3), (32, 4), (48, 0)]
        );
    }

    #[test]
    fn equal_neighbours_merge_and_the_last_address_has_no_successor() {
        assert_eq!(
            sweep_of(&[(0, u32::MAX, 7), (16, 31, 7), (u32::MAX, u32::MAX, 8)]),
            [(0, 7), (u32::MAX, 8)]
        );
    }

    #[test]
    fn of_two_equal_spans_the_later_holds() {
        assert_eq!(sweep_of(&[(16, 31, 1), (16, 31, 2)]), [(0, 0), (16, 2), (32, 0)]);
    }
}
