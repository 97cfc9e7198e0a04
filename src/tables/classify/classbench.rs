//! ClassBench rule sets and header traces (Taylor and Turner, INFOCOM 2005), for tests and benchmarks.
//! Also compiled into `benches/classify.rs`.

/// A filter: prefixes, port ranges, protocol.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    /// Source address and prefix length.
    pub src: (u32, u8),
    /// Destination address and prefix length.
    pub dst: (u32, u8),
    /// First and last source port.
    pub src_ports: (u16, u16),
    /// First and last destination port.
    pub dst_ports: (u16, u16),
    /// Protocol, if it is not any.
    pub protocol: Option<u8>,
}

/// A header: addresses, ports, protocol.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Source address.
    pub src: u32,
    /// Destination address.
    pub dst: u32,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Protocol.
    pub protocol: u8,
}

/// The rule set and the trace of this name, from the directory that SOFTGATE_CLASSBENCH names, else from
/// the shared data beside the repository; `None` if there is neither.
pub fn read(name: &str) -> Option<(Vec<Filter>, Vec<Header>)> {
    let directory = std::env::var_os("SOFTGATE_CLASSBENCH").map_or_else(
        || {
            let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into());
            std::path::Path::new(&manifest).join("../shared/data/classbench")
        },
        Into::into,
    );
    let text = |ending: &str| {
        let file = directory.join(format!("{name}.{ending}.gz"));
        let out = std::process::Command::new("gzip").arg("-dc").arg(file).output().ok()?;
        if out.status.success() { String::from_utf8(out.stdout).ok() } else { None }
    };
    let filters = text("rules")?.lines().map(filter).collect::<Option<_>>().expect("ClassBench filters");
    let headers = text("trace")?.lines().map(header).collect::<Option<_>>().expect("ClassBench headers");
    Some((filters, headers))
}

/// `@1.2.3.0/24 0.0.0.0/0 0 : 65535 80 : 80 0x06/0xFF`, with tabs between the fields.
fn filter(line: &str) -> Option<Filter> {
    let mut fields = line.strip_prefix('@')?.split_whitespace().filter(|field| *field != ":");
    let mut prefix = || {
        let (addr, len) = fields.next()?.split_once('/')?;
        Some((addr.parse::<std::net::Ipv4Addr>().ok()?.into(), len.parse().ok()?))
    };
    let (src, dst) = (prefix()?, prefix()?);
    let mut ports = || Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?));
    let (src_ports, dst_ports) = (ports()?, ports()?);
    let (protocol, mask) = fields.next()?.split_once('/')?;
    let hex = |text: &str| u8::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let protocol = if hex(mask)? == 0 { None } else { Some(hex(protocol)?) };
    Some(Filter { src, dst, src_ports, dst_ports, protocol })
}

/// Source, destination, ports, protocol, and the rule it was drawn from, which need not be the first match.
fn header(line: &str) -> Option<Header> {
    let mut numbers = line.split_whitespace().map(|field| field.parse::<u32>().ok());
    let mut next = || numbers.next()?;
    Some(Header {
        src: next()?,
        dst: next()?,
        src_port: next()?.try_into().ok()?,
        dst_port: next()?.try_into().ok()?,
        protocol: next()?.try_into().ok()?,
    })
}
