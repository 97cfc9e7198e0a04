//! SoftGate: a software gateway for bare-metal networks.
//!
//! # Layers
//!
//! Imports point down, never up or sideways.
//!
//! ```text
//! cli         commands; what a person types and reads
//! gateway     the live node: devices, workers and tables held together by the control thread
//! replay, bench, selftest, explain   the same workers over captures and memory
//! remote      etcd and HTTP: processes of their own, clients of the socket
//! control     the socket: requests, framing, transactions; revisions of the config on disk; never touches a packet
//! worker      the run-to-completion loop; the only place that moves frames between ports and pipeline
//! reader      how commands read and end what belongs to a worker; `replica`, how its sessions get to the peer, and
//!             `journal`, how they get to the next process
//! pipeline    the packet path, one stage per file; sees no socket, file, lock or clock
//! flow        sessions of a worker: flow table, timers, TCP tracker, NAT mappings
//! ha          VRRP: which node answers for the addresses of both, and BFD: whether neighbours are reached; without I/O and
//!             clock
//! host        what the gateway says for itself: ARP, ND, ICMP; pure functions; health checks, without I/O and clock
//! tables      immutable lookup tables, compiled from the config
//! neighbours  a shared table that changes under the workers: a slot is an atomic word; with it `macs` and `vteps`,
//!             behind which remote tunnel end point the stations of an overlay are, `listeners` to multicast,
//!             `affinity`, which backend a client of a service had last, and `roles` of virtual routers
//! config      what was typed, with legal values only
//! flow        state of flows, NAT bindings and datagrams in fragments, of one worker each; no lock, no clock
//! copied      copies of shared tables, for dry runs
//! packet, telemetry, ratelimit, time
//! io          ports: AF_XDP, capture files, memory; knows no protocol above the frame
//! mem         packet memory, frames, pools; with io the only home of `unsafe`
//! ```
//!
//! # The life of a packet
//!
//! A worker's turn takes a burst of up to 64 frames from each of its queues ([`io::Port::receive`]), looks
//! once at the published [`tables::Tables`] and once at the clock, and runs [`pipeline::run`] over it: *link*
//! (tags, interface), *network* (IP header), *source* (martians, anti-spoofing), *route* (longest prefix
//! match for the whole burst), *adjacency* (the checks before any rewrite, the next hop's MAC) and *rewrite*
//! (TTL, L2 header). What is to a tunnel end point of ours goes through the first of them once more with the
//! frame inside, as if it had come in by the overlay's interface; what leaves by one gets the headers of its
//! tunnel behind the last. What is to be forwarded is staged for the egress queue and sent at the end of the
//! turn. Everything else goes to [`pipeline::slow`]: neighbours to resolve, packets to the gateway,
//! fragments, ICMP errors, DHCP messages to be relayed (the *relay* stage, before *source*, finds those of clients
//! without an address). A packet that has to wait is parked as frame, ingress and time, and starts again
//! at the first stage; so does a fragment between zones that comes before the first of its datagram
//! ([`flow::fragments`]).
//!
//! # What always holds
//!
//! - Nothing is lost in silence: losing a packet takes a [`packet::DropReason`].
//! - A packet never sees two generations of the tables: one snapshot per burst.
//! - On the packet path there is no lock, no allocation, no log and one clock read per turn.
//! - Frames are owned: by a worker's pool, by a packet, or by a port that gave them to the kernel. At the end
//!   all come home, or [`mem::PacketMemory::leaked`] tells.
//! - State is an immutable snapshot, or owned by one worker, or a shared table whose value is one atomic word.
//! - A change is answered only when every worker has reported its generation; old tables are freed by the
//!   control thread.
//! - [`pipeline::decide`] is pure, and nothing else walks policy.
//! - Time is an argument: the same captures give the same bytes.

// `foundations`: what the model checker and AddressSanitizer look at, in a third of the time the whole takes to compile
// (scripts/rustc-loom, scripts/rustc-asan). Nothing below needs anything above it.
pub mod affinity;
#[cfg(not(foundations))]
pub mod bench;
pub mod by_slot;
#[cfg(not(foundations))]
pub mod cli;
pub mod config;
#[cfg(not(foundations))]
pub mod control;
mod copied;
#[cfg(not(foundations))]
pub mod explain;
pub mod flow;
#[cfg(not(foundations))]
pub mod gateway;
#[cfg(not(foundations))]
pub mod ha;
#[cfg(not(foundations))]
pub mod host;
pub mod io;
#[cfg(not(foundations))]
pub mod journal;
pub mod listeners;
pub mod macs;
pub mod mem;
pub mod neighbours;
pub mod packet;
#[cfg(not(foundations))]
pub mod pipeline;
pub mod publication;
pub mod ratelimit;
#[cfg(not(foundations))]
pub mod reader;
// Not where the packet path is fuzzed: that builds the crate once more.
#[cfg(all(feature = "remote", not(foundations), not(fuzzing)))]
pub mod remote;
#[cfg(not(foundations))]
pub mod replay;
#[cfg(not(foundations))]
pub mod replica;
pub mod roles;
#[cfg(not(foundations))]
pub mod selftest;
pub mod tables;
pub mod telemetry;
pub mod time;
pub mod vteps;
#[cfg(not(foundations))]
pub mod worker;
