//! The gateway from afar: processes of their own that are clients of a gateway's control socket, and nothing more. A
//! gateway knows nothing of them; what they may do is what the `[[role]]` of their user may do.
//!
//! [`agent`] follows a config document in etcd, [`http`] serves the requests of the control socket as REST.

pub mod agent;
pub mod http;
