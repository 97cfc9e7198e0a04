//! What a node tells its peer of a connection: where it stands and how its windows are scaled. Sequence numbers are not
//! told: they have moved on by the time they would be needed, and are learned from the first segments of both sides
//! ([`Tcp::resume`]).

use super::{AWAIT, End, FINISHED, MAX_SCALE, MAX_WINDOW_EXPONENT, NO_SCALE, ONE_SIDED, State, Tcp};

impl Tcp {
    /// Bytes of [`Tcp::to_replica`].
    pub const REPLICA_BYTES: usize = 4;

    /// True if the connection is worth telling: both sides wanted it, or the only one that is heard. What still opens is
    /// never told: a flood of SYNs is no business of the peer's.
    pub fn is_replicated(&self) -> bool {
        self.state != State::None && !self.is_embryonic()
    }

    /// As it is told: state, flags, scales of both sides.
    pub fn to_replica(self) -> [u8; Tcp::REPLICA_BYTES] {
        let told = self.flags & (FINISHED[0] | FINISHED[1] | ONE_SIDED);
        [self.state as u8, told, self.windows[0], self.windows[1]]
    }

    /// A connection that the peer has told of. `None`: it is none that would be told.
    pub fn from_replica(told: [u8; Tcp::REPLICA_BYTES]) -> Option<Tcp> {
        let [state, flags, windows @ ..] = told;
        let state = *State::ALL.get(usize::from(state))?;
        let is_known = flags & !(FINISHED[0] | FINISHED[1] | ONE_SIDED) == 0;
        let is_window = |window: u8| {
            (window & 0x0f <= MAX_SCALE || window & 0x0f == NO_SCALE) && window >> 4 <= MAX_WINDOW_EXPONENT
        };
        let tcp = Tcp { ends: [End::default(); 2], windows, state, flags: flags | AWAIT[0] | AWAIT[1] };
        let tells = matches!(
            state,
            State::Established | State::FinOriginal | State::FinReply | State::BothFin | State::Closing
        );
        (is_known && tells && windows.into_iter().all(is_window)).then(|| tcp.resume())
    }
}
