//! A bound device, whichever back end bound it.

use std::sync::Arc;

use crate::io::Port;
#[cfg(feature = "afxdp")]
use crate::io::xdp::AfxdpDevice;
use crate::io::xdp::{Bound, LeftDevice, Mode, ProgramCounters, RingSizes, XdpDevice, XdpError, XdpProgram};
use crate::mem::PacketMemory;

/// Who does the rings of AF_XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackEnd {
    /// Our own ring layer.
    #[default]
    Own,
    /// The crate `afxdp`.
    #[cfg(feature = "afxdp")]
    Crate,
}

/// A device with its program attached and its sockets bound.
pub enum Device {
    /// By our own ring layer.
    Own(XdpDevice),
    /// By the crate `afxdp`.
    #[cfg(feature = "afxdp")]
    Crate(AfxdpDevice, Box<Bound>),
}

/// How to open one.
pub(super) struct Plan<'a> {
    pub back_end: BackEnd,
    pub program: &'a Arc<XdpProgram>,
    pub name: &'a str,
    pub program_slot: u16,
    pub mode: Mode,
    pub queues: u16,
    pub memory: &'a Arc<PacketMemory>,
    pub rings: RingSizes,
}

impl Device {
    pub(super) fn open(plan: &Plan<'_>) -> Result<(Device, Vec<Box<dyn Port>>), XdpError> {
        let Plan { back_end, program, name, program_slot, mode, queues, memory, rings } = *plan;
        match back_end {
            BackEnd::Own => {
                let (device, ports) =
                    XdpDevice::open(program, name, program_slot, mode, queues, memory, rings)?;
                Ok((
                    Device::Own(device),
                    ports.into_iter().map(|port| Box::new(port) as Box<dyn Port>).collect(),
                ))
            }
            #[cfg(feature = "afxdp")]
            BackEnd::Crate => {
                let (device, ports) = AfxdpDevice::open(name, mode, queues, rings)?;
                let bound = Bound {
                    mode: device.mode(),
                    zero_copy: device.mode() == Mode::ZeroCopy,
                    multi_buffer: false,
                    need_wakeup: true,
                    tx_budget: None,
                    queues,
                    tx_queues: queues,
                    max_frame_bytes: AfxdpDevice::MAX_FRAME_BYTES,
                    rings,
                    refused: Vec::new(),
                };
                let ports = ports.into_iter().map(|port| Box::new(port) as Box<dyn Port>).collect();
                Ok((Device::Crate(device, Box::new(bound)), ports))
            }
        }
    }

    /// Goes on with one that another process has opened.
    pub(super) fn adopt(
        program: &Arc<XdpProgram>,
        left: LeftDevice,
        program_slot: u16,
        memory: &Arc<PacketMemory>,
    ) -> Result<(Device, Vec<Box<dyn Port>>), XdpError> {
        let (device, ports) = XdpDevice::adopt(program, left, program_slot, memory)?;
        Ok((Device::Own(device), ports.into_iter().map(|port| Box::new(port) as Box<dyn Port>).collect()))
    }

    /// How it was bound.
    pub fn bound(&self) -> &Bound {
        match self {
            Device::Own(device) => device.bound(),
            #[cfg(feature = "afxdp")]
            Device::Crate(_, bound) => bound,
        }
    }

    /// What became of its frames in the XDP program.
    pub fn counters(&self) -> Result<ProgramCounters, XdpError> {
        match self {
            Device::Own(device) => device.counters(),
            #[cfg(feature = "afxdp")]
            Device::Crate(device, _) => device.program().counters(0),
        }
    }

    /// Its place in the maps of the program that all devices share.
    pub(super) fn shared_slot(&self) -> Option<u16> {
        match self {
            Device::Own(device) => Some(device.slot()),
            #[cfg(feature = "afxdp")]
            Device::Crate(..) => None,
        }
    }

    /// The program's instance that only this device has.
    pub(super) fn own_program(&self) -> Option<&Arc<XdpProgram>> {
        match self {
            Device::Own(_) => None,
            #[cfg(feature = "afxdp")]
            Device::Crate(device, _) => Some(device.program()),
        }
    }
}
