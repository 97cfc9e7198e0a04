//! Driver settings through `SIOCETHTOOL` (linux/ethtool.h): driver, channels, rings, features; and the
//! [`OffloadGuard`] that switches off what hides frames from us.
//!
//! The ioctl and not ethtool's netlink: it exists in every kernel, answers at once, and names features
//! by the kernel's own strings.
#![allow(unsafe_code, reason = "two ioctls; each with its proof")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use super::netlink::string;

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_SRINGPARAM: u32 = 0x11;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
/// The string set of feature names. Its length is a constant of the running kernel, not of the device.
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_BYTES: usize = 32;
/// cmd, five strings of 32 bytes, reserved, five counts.
const DRVINFO_WORDS: usize = 49;

/// What hides frames from a gateway, by the kernel's feature name, with what is lost while it is on.
pub const HIDING: [(&str, &str); 7] = [
    (
        "rx-vlan-hw-parse",
        "the card takes 802.1Q tags off before we see the frame: VLANs cannot be told apart",
    ),
    ("rx-vlan-stag-hw-parse", "the card takes 802.1ad tags off before we see the frame: QinQ does not work"),
    ("rx-vlan-filter", "the card drops VLANs the kernel has no device for: ours are among them"),
    ("rx-vlan-stag-filter", "the card drops outer tags the kernel has no device for: QinQ does not work"),
    ("rx-gro-hw", "the card merges TCP segments: merged frames do not fit and are dropped"),
    ("rx-lro", "the card merges TCP segments for good: they cannot be forwarded"),
    ("rx-gro", "the kernel merges segments before a generic-mode program sees them: they are dropped"),
];

/// A setting could not be read or made.
#[derive(Debug, thiserror::Error)]
#[error("{device}: cannot {what}: {source}")]
pub struct EthtoolError {
    /// The device asked about.
    pub device: String,
    /// What was tried, as the end of "cannot ...".
    pub what: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

impl EthtoolError {
    /// The device is not there (any more).
    pub fn is_gone(&self) -> bool {
        self.source.raw_os_error() == Some(libc::ENODEV)
    }

    /// The driver has no such setting.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
    }
}

/// Who drives a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DriverInfo {
    /// The driver's name.
    pub driver: String,
    /// Its version, for drivers of the kernel tree the kernel's.
    pub version: String,
    /// The card's firmware.
    pub firmware: String,
    /// Where the card sits (a PCI address); empty for virtual devices.
    pub bus: String,
}

/// Numbers of queues; a combined channel is one receive and one transmit queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Channels {
    /// Receive-only channels in use.
    pub rx: u32,
    /// Transmit-only channels in use.
    pub tx: u32,
    /// Combined channels in use.
    pub combined: u32,
    /// Most receive-only channels.
    pub rx_max: u32,
    /// Most transmit-only channels.
    pub tx_max: u32,
    /// Most combined channels.
    pub combined_max: u32,
    /// Channels for other things (link interrupts), kept as they are.
    pub other: u32,
    /// Most of these.
    pub other_max: u32,
}

impl Channels {
    /// Receive queues in use.
    pub fn rx_queues(&self) -> u32 {
        self.rx + self.combined
    }

    /// Transmit queues in use.
    pub fn tx_queues(&self) -> u32 {
        self.tx + self.combined
    }
}

/// Descriptors per ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Rings {
    /// Receive descriptors per queue.
    pub rx: u32,
    /// Transmit descriptors per queue.
    pub tx: u32,
    /// Most receive descriptors.
    pub rx_max: u32,
    /// Most transmit descriptors.
    pub tx_max: u32,
}

/// One offload.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Feature {
    /// The kernel's name (`ethtool -k` shows it or an older one; `ethtool -K` takes both).
    pub name: String,
    /// It is on.
    pub active: bool,
    /// It is wanted; it may be off all the same because of something else.
    pub requested: bool,
    /// It cannot be changed on this device.
    pub fixed: bool,
}

/// The offloads of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct Features(pub Vec<Feature>);

impl Features {
    /// The feature of this name, where the kernel knows it.
    pub fn find(&self, name: &str) -> Option<&Feature> {
        self.0.iter().find(|feature| feature.name == name)
    }

    /// It exists and is on.
    pub fn is_active(&self, name: &str) -> bool {
        self.find(name).is_some_and(|feature| feature.active)
    }
}

/// Access to the settings of all devices of one network namespace: the one of the opening thread.
#[derive(Debug)]
pub struct Ethtool {
    socket: UdpSocket,
}

impl Ethtool {
    /// Opens the control socket.
    pub fn open() -> io::Result<Self> {
        // Any socket will do; an unconnected UDP one without traffic costs nothing.
        UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).map(|socket| Self { socket })
    }

    /// The driver's name and version.
    pub fn driver(&self, device: &str) -> Result<DriverInfo, EthtoolError> {
        let mut words = [0; DRVINFO_WORDS];
        words[0] = ETHTOOL_GDRVINFO;
        self.ask(device, "ask for its driver", &mut words)?;
        let bytes = bytes_of(&words);
        let text = |n: usize| string(&bytes[4 + 32 * n..][..32]);
        Ok(DriverInfo { driver: text(0), version: text(1), firmware: text(2), bus: text(3) })
    }

    /// The numbers of queues.
    pub fn channels(&self, device: &str) -> Result<Channels, EthtoolError> {
        let mut words = [0; 9];
        words[0] = ETHTOOL_GCHANNELS;
        self.ask(device, "read its channels", &mut words)?;
        let [_, rx_max, tx_max, other_max, combined_max, rx, tx, other, combined] = words;
        Ok(Channels { rx, tx, combined, rx_max, tx_max, combined_max, other, other_max })
    }

    /// Sets the numbers of queues in use.
    pub fn set_channels(&self, device: &str, c: &Channels) -> Result<(), EthtoolError> {
        let mut words = [
            ETHTOOL_SCHANNELS,
            c.rx_max,
            c.tx_max,
            c.other_max,
            c.combined_max,
            c.rx,
            c.tx,
            c.other,
            c.combined,
        ];
        self.ask(device, "set its channels", &mut words)
    }

    /// The ring sizes.
    pub fn rings(&self, device: &str) -> Result<Rings, EthtoolError> {
        let words = self.raw_rings(device)?;
        Ok(Rings { rx_max: words[1], tx_max: words[4], rx: words[5], tx: words[8] })
    }

    /// Sets the ring sizes in use.
    pub fn set_rings(&self, device: &str, rings: &Rings) -> Result<(), EthtoolError> {
        let mut words = self.raw_rings(device)?;
        (words[0], words[5], words[8]) = (ETHTOOL_SRINGPARAM, rings.rx, rings.tx);
        self.ask(device, "set its ring sizes", &mut words)
    }

    fn raw_rings(&self, device: &str) -> Result<[u32; 9], EthtoolError> {
        let mut words = [0; 9];
        words[0] = ETHTOOL_GRINGPARAM;
        self.ask(device, "read its ring sizes", &mut words)?;
        Ok(words)
    }

    /// All offloads.
    pub fn features(&self, device: &str) -> Result<Features, EthtoolError> {
        let names = self.feature_names(device)?;
        let blocks = names.len().div_ceil(32);
        let mut words = vec![0; 2 + 4 * blocks];
        (words[0], words[1]) = (ETHTOOL_GFEATURES, blocks as u32);
        self.ask(device, "read its offloads", &mut words)?;
        let list = names.into_iter().enumerate().filter(|(_, name)| !name.is_empty());
        let list = list.map(|(n, name)| {
            let block = &words[2 + 4 * (n / 32)..][..4];
            let bit = |word: u32| word & (1 << (n % 32)) != 0;
            let [available, requested, active, never_changed] =
                [block[0], block[1], block[2], block[3]].map(bit);
            Feature { name, active, requested, fixed: !available || never_changed }
        });
        Ok(Features(list.collect()))
    }

    /// Sets offloads by name. Names the kernel does not know are passed over; what the driver does with
    /// the wish shows in [`Ethtool::features`] afterwards.
    pub fn set_features(&self, device: &str, wishes: &[(&str, bool)]) -> Result<(), EthtoolError> {
        let names = self.feature_names(device)?;
        let blocks = names.len().div_ceil(32);
        let mut words = vec![0; 2 + 2 * blocks];
        (words[0], words[1]) = (ETHTOOL_SFEATURES, blocks as u32);
        for (name, on) in wishes {
            let Some(n) = names.iter().position(|known| known == name) else { continue };
            words[2 + 2 * (n / 32)] |= 1 << (n % 32);
            words[3 + 2 * (n / 32)] |= u32::from(*on) << (n % 32);
        }
        self.ask(device, "set its offloads", &mut words)
    }

    fn feature_names(&self, device: &str) -> Result<Vec<String>, EthtoolError> {
        const WHAT: &str = "read the names of its offloads";
        // cmd, reserved, a 64-bit mask of string sets, one length
        let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
        self.ask(device, WHAT, &mut info)?;
        let count = info[4] as usize;
        let mut words = vec![0; 3 + count * ETH_GSTRING_BYTES / 4];
        (words[0], words[1], words[2]) = (ETHTOOL_GSTRINGS, ETH_SS_FEATURES, info[4]);
        self.ask(device, WHAT, &mut words)?;
        Ok(bytes_of(&words[3..]).chunks_exact(ETH_GSTRING_BYTES).map(string).collect())
    }

    /// The device's index in this socket's namespace.
    fn ifindex(&self, device: &str) -> io::Result<u32> {
        let mut request = request_for(device)?;
        // SAFETY: SIOCGIFINDEX reads the name from and writes the index into the ifreq, which lives
        // across the call.
        let answer = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a successful SIOCGIFINDEX has written this field; any bits are a valid int.
        Ok(unsafe { request.ifr_ifru.ifru_ifindex }.cast_unsigned())
    }

    /// One ethtool command: `words` is its structure, command first, and receives the answer.
    fn ask(&self, device: &str, what: &'static str, words: &mut [u32]) -> Result<(), EthtoolError> {
        let failed = |source| EthtoolError { device: device.to_owned(), what, source };
        let mut request = request_for(device).map_err(failed)?;
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        // SAFETY: the ifreq lives across the call and points at `words`, borrowed exclusively. Every
        // caller sizes it as the command's structure: fixed ones by linux/ethtool.h; GFEATURES and
        // SFEATURES carry the number of blocks and the kernel writes no more; GSTRINGS writes as many
        // strings as GSSET_INFO told, a constant of the running kernel for ETH_SS_FEATURES.
        let answer = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        // SFEATURES answers with a positive number when it did not fulfil every wish: not an error.
        if answer < 0 { Err(failed(io::Error::last_os_error())) } else { Ok(()) }
    }
}

/// A request about `device`; no such device where the name cannot be one.
fn request_for(device: &str) -> io::Result<libc::ifreq> {
    let mut name = [0; libc::IFNAMSIZ];
    if device.is_empty() || device.len() >= libc::IFNAMSIZ || device.bytes().any(|b| b == 0) {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: std::ptr::null_mut() };
    Ok(libc::ifreq { ifr_name: name, ifr_ifru })
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// What an [`OffloadGuard`] found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct OffloadReport {
    /// Was on, is off until the guard goes.
    pub switched_off: Vec<&'static str>,
    /// Is on and stays on: the driver does not let go of it.
    pub stuck: Vec<&'static str>,
}

/// Keeps what hides frames switched off while it lives, and restores what it changed.
///
/// It works in the network namespace of the thread that made it, whichever thread drops it. A device
/// that vanished, or another one that came under its name, is left alone.
#[derive(Debug)]
pub struct OffloadGuard {
    ethtool: Ethtool,
    device: String,
    ifindex: u32,
    /// Taken by [`OffloadGuard::restore`].
    restore: Vec<&'static str>,
    report: OffloadReport,
}

impl OffloadGuard {
    /// Switches off everything in [`HIDING`] that is on. Succeeds also where something stays on: the
    /// report tells. Fails only when the device cannot be asked at all.
    ///
    /// Make it before attaching a program: drivers often refuse offload changes while one is attached.
    pub fn engage(device: &str) -> Result<Self, EthtoolError> {
        let failed = |source| EthtoolError { device: device.to_owned(), what: "read its offloads", source };
        let ethtool = Ethtool::open().map_err(failed)?;
        let ifindex = ethtool.ifindex(device).map_err(failed)?;
        let before = ethtool.features(device)?;
        let on: Vec<&'static str> =
            HIDING.iter().map(|(name, _)| *name).filter(|name| before.is_active(name)).collect();
        let changeable = |name: &&str| before.find(name).is_some_and(|feature| !feature.fixed);
        let wishes: Vec<(&str, bool)> =
            on.iter().copied().filter(|name| changeable(name)).map(|name| (name, false)).collect();
        // All in one go, since some drivers restart the device for each; then one by one what is left,
        // since a driver that refuses one wish may refuse the whole set.
        let mut now = before.clone();
        if !wishes.is_empty() {
            let _ = ethtool.set_features(device, &wishes);
            now = ethtool.features(device)?;
            for wish in wishes.iter().filter(|(name, _)| now.is_active(name)) {
                let _ = ethtool.set_features(device, &[*wish]);
            }
            now = ethtool.features(device)?;
        }
        let (stuck, switched_off) = on.into_iter().partition(|name| now.is_active(name));
        // A wish that was refused stays noted in the kernel and may come true later: taken back as well.
        let changed = |name: &&str| {
            let requested = |features: &Features| features.find(name).is_some_and(|f| f.requested);
            requested(&before) && !requested(&now)
        };
        let restore = HIDING.iter().map(|(name, _)| *name).filter(changed).collect();
        let report = OffloadReport { switched_off, stuck };
        Ok(Self { ethtool, device: device.to_owned(), ifindex, restore, report })
    }

    /// What was found and done.
    pub fn report(&self) -> &OffloadReport {
        &self.report
    }

    /// Restores now, and says when that failed. `Drop` does the same in silence.
    pub fn restore(mut self) -> Result<(), EthtoolError> {
        self.put_back()
    }

    /// What is to be switched on again, by the kernel's names.
    pub fn to_restore(&self) -> &[&'static str] {
        &self.restore
    }

    /// Another process restores it ([`OffloadGuard::inherit`]): this one does not any more.
    pub fn leave(mut self) {
        self.restore.clear();
    }

    /// Also restores what another process has switched off, by the kernel's names; others than [`HIDING`] are none of ours.
    pub fn inherit(&mut self, names: &[String]) {
        let known = HIDING.iter().map(|(name, _)| *name);
        let more = known.filter(|name| names.iter().any(|left| left == name) && !self.restore.contains(name));
        let more: Vec<&'static str> = more.collect();
        self.restore.extend(more);
    }

    fn put_back(&mut self) -> Result<(), EthtoolError> {
        let restore = std::mem::take(&mut self.restore);
        // Gone, or replaced by a device that never had our changes: nothing to restore.
        if restore.is_empty() || self.ethtool.ifindex(&self.device).ok() != Some(self.ifindex) {
            return Ok(());
        }
        let wishes: Vec<(&str, bool)> = restore.into_iter().map(|name| (name, true)).collect();
        match self.ethtool.set_features(&self.device, &wishes) {
            Err(error) if error.is_gone() => Ok(()), // it went between the two calls
            outcome => outcome,
        }
    }
}

impl Drop for OffloadGuard {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            tracing::warn!(%error, "offloads are not restored");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_devices_are_no_such_device() {
        for name in ["", "a-name-much-too-long", "a\0b"] {
            let error = Ethtool::open().unwrap().features(name).unwrap_err();
            assert!(error.is_gone(), "{name:?}: {error}");
        }
    }

    #[test]
    fn a_combined_channel_counts_on_both_sides() {
        let channels = Channels { rx: 1, tx: 2, combined: 4, ..Channels::default() };
        assert_eq!((channels.rx_queues(), channels.tx_queues()), (5, 6));
    }

    #[test]
    fn every_kernel_knows_the_offloads_of_lo() {
        let ethtool = Ethtool::open().unwrap();
        let features = ethtool.features("lo").unwrap();
        assert!(features.find("rx-gro").is_some());
        assert!(features.find("rx-vlan-hw-parse").is_some_and(|f| f.fixed && !f.active));
        for (name, _) in HIDING {
            assert!(features.find(name).is_some(), "{name} is no feature of this kernel");
        }
        assert_eq!(ethtool.ifindex("lo").unwrap(), 1);
    }
}
