use super::packet::Packet;
use super::rig::{OnWire, Shim, Wire};
pub(super) struct Passing {
    pub now_s: f64,
    pub to_gateway: bool,
    pub wire: Wire,
    pub packet: Packet,
}
pub struct Break {}
pub const BREAKS: &[Break] = &[];
impl Break {
    pub(super) fn shim(&self) -> Shim {
        Box::new(|p| vec![(p.wire, p.packet)])
    }
}
