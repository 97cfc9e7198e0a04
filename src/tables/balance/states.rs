//! How much each backend takes at present, and what becomes of the flows it has.

use std::sync::Arc;

use crate::config::{BackendAdmin, OnFailure};
use crate::packet::view::protocol;
use crate::tables::balance::{Backend, VirtualService};

/// What becomes of a flow whose backend is in no state to serve it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendFate {
    /// It goes on.
    #[default]
    Keep,
    /// It ends, and its client is told.
    Reset,
    /// Its next packet goes to another backend.
    Rehash,
}

/// What is known of a backend in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendState {
    /// How much of its share of new flows it takes: 255 all, 0 none.
    pub level: u8,
    /// It would take flows but for its health: if nobody else does, it has to.
    pub in_service: bool,
    /// What becomes of its flows.
    pub fate: BackendFate,
    /// It has failed, and not only been put out of service: what has no connection does not stay with it.
    pub has_failed: bool,
    /// Slot of the service that it is in, or was in last.
    pub service: Option<u16>,
    /// Generation since which that is so; 0 = ever.
    pub since: u64,
}

/// What the checks say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// It is well.
    pub up: bool,
    /// How much of its share it takes while it is: 255 all, less while it starts slowly.
    pub level: u8,
}

impl Health {
    /// Of a backend that nobody has found anything wrong with.
    pub const WELL: Health = Health { up: true, level: u8::MAX };
}

impl BackendState {
    /// Of a backend of a service.
    pub fn of(service: &VirtualService, backend: &Backend, health: Health) -> BackendState {
        let active = backend.admin == BackendAdmin::Active;
        let is_well = active && health.up;
        let ends = backend.admin == BackendAdmin::Disabled || !health.up;
        BackendState {
            level: if is_well { health.level } else { 0 },
            in_service: active && backend.weight > 0,
            fate: if ends { fate_of(service.behaviour.on_failure) } else { BackendFate::Keep },
            has_failed: !health.up,
            service: Some(service.slot),
            since: 0,
        }
    }

    /// The same, where the flows that there are stay whatever was said of it.
    pub fn kept(self) -> BackendState {
        BackendState { fate: BackendFate::Keep, ..self }
    }

    /// Of one that is in no service any more: its flows stay until they end, unless the service itself is gone, whose
    /// word that is.
    pub fn left(gone: Option<OnFailure>) -> BackendState {
        BackendState { fate: gone.map_or(BackendFate::Keep, fate_of), ..BackendState::default() }
    }
}

/// States that change together: a change copies no others.
const CHUNK: usize = 256;

/// The states of all backends, by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends(Arc<Vec<Arc<[BackendState; CHUNK]>>>);

impl Backends {
    fn of(&self, slot: u32) -> BackendState {
        let chunk = self.0.get(slot as usize / CHUNK);
        chunk.map(|chunk| chunk[slot as usize % CHUNK]).unwrap_or_default()
    }

    /// True if the backend takes a flow; `lot` is any byte of the flow's hash.
    pub fn takes(&self, slot: u32, lot: u8) -> bool {
        let level = self.level(slot);
        level == u8::MAX || lot < level
    }

    /// How much of its share of new flows it takes: 255 all, 0 none.
    pub fn level(&self, slot: u32) -> u8 {
        self.of(slot).level
    }

    /// True if it would take flows but for its health.
    pub fn is_in_service(&self, slot: u32) -> bool {
        self.of(slot).in_service
    }

    /// True if nothing is wrong with its health.
    pub fn is_well(&self, slot: u32) -> bool {
        let BackendState { level, in_service, has_failed, .. } = self.of(slot);
        !has_failed && (!in_service || level == u8::MAX)
    }

    /// All that is known of a backend.
    pub fn state(&self, slot: u32) -> BackendState {
        self.of(slot)
    }

    /// What becomes of a flow of this protocol.
    pub fn fate(&self, slot: u32, upper: u8) -> BackendFate {
        let state = self.of(slot);
        // Nobody would notice that a server without connections is dead, and clients go on sending to it.
        if upper != protocol::TCP && (state.has_failed || state.fate == BackendFate::Reset) {
            return BackendFate::Rehash;
        }
        state.fate
    }

    /// True if nothing has happened to the backend after `epoch` that matters to its flows. Lower halves of generations:
    /// what is behind is less than half a turn behind.
    pub fn still_holds(&self, slot: u32, epoch: u32) -> bool {
        epoch.wrapping_sub(self.of(slot).since as u32) as i32 >= 0
    }

    /// The states where those of some have changed, each of them once, in `generation`. True if flows have to be looked
    /// at again.
    pub fn after(
        &self,
        changed: impl IntoIterator<Item = (u32, BackendState)>,
        generation: u64,
    ) -> (Backends, bool) {
        let mut all = self.clone();
        let mut touched = false;
        for (slot, state) in changed {
            let old = self.of(slot);
            let ends = state.fate != BackendFate::Keep || state.has_failed;
            let is_news = ends && (old.fate, old.has_failed) != (state.fate, state.has_failed);
            let since = if is_news { generation } else { old.since };
            touched |= is_news;
            let state = BackendState { since, service: state.service.or(old.service), ..state };
            if state != old {
                let chunks = Arc::make_mut(&mut all.0);
                let at = slot as usize / CHUNK;
                if chunks.len() <= at {
                    chunks.resize_with(at + 1, || Arc::new([BackendState::default(); CHUNK]));
                }
                Arc::make_mut(&mut chunks[at])[slot as usize % CHUNK] = state;
            }
        }
        (all, touched)
    }
}

fn fate_of(on_failure: OnFailure) -> BackendFate {
    match on_failure {
        OnFailure::Reset => BackendFate::Reset,
        OnFailure::Rehash => BackendFate::Rehash,
        OnFailure::Finish => BackendFate::Keep,
    }
}
