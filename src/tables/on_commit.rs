//! What commits have said of the sessions that they would end ([`Fate`]), as far as they said anything else than to decide them
//! again.

use crate::config::Fate;

/// Commits that are remembered. What one has said matters until every session has been looked at after it.
const MOST: usize = 16;

/// By generation, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnCommit(Vec<(u64, Fate)>);

impl OnCommit {
    /// What the commit that made a generation has said.
    pub fn of(&self, generation: u64) -> Fate {
        let known = self.0.iter().rev().find(|(known, _)| *known == generation);
        known.map_or(Fate::ReDecide, |(_, fate)| *fate)
    }

    /// True if a commit since `epoch`, the lower half of a generation, has said that sessions which end are told.
    pub fn resets_since(&self, epoch: u32) -> bool {
        let resets = self.0.iter().filter(|(_, fate)| *fate == Fate::Reset);
        resets.into_iter().any(|(generation, _)| (epoch.wrapping_sub(*generation as u32) as i32) < 0)
    }

    /// And with one more.
    pub fn with(&self, generation: u64, fate: Fate) -> OnCommit {
        let skipped = (self.0.len() + 1).saturating_sub(MOST);
        OnCommit(self.0.iter().skip(skipped).copied().chain([(generation, fate)]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered() {
        let all = (1..=20).fold(OnCommit::default(), |all, generation| all.with(generation, Fate::Keep));
        assert_eq!(all.0.len(), MOST);
        assert_eq!((all.of(4), all.of(5), all.of(21)), (Fate::ReDecide, Fate::Keep, Fate::ReDecide));
        let told = all.with(30, Fate::Reset);
        assert!(told.resets_since(29) && !told.resets_since(30) && !all.resets_since(0));
    }
}
