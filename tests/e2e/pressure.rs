//! The SYN proxy and a flood, with the kernel's TCP on either side: it is the judge of what we say in its name.

use std::process::Stdio;

use crate::NET;
use crate::gateway::{Config, Gateway};
use crate::lab::Lab;
use crate::sessions::{Server, python, python_says};

/// `a` is in zone inside, `net` in outside. Whoever begins a TCP connection has to prove himself, whichever way.
const PROXIED: &str = r#"
[[zone]]
name = "inside"
syn_proxy_above = 0
[[zone]]
name = "outside"
syn_proxy_above = 0
[[rule]]
name = "inside-out"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }
[[rule]]
name = "published"
action = "allow"
from = { zone = "outside" }
to = { zone = "inside", prefix = "10.0.1.10" }
service = "tcp/8080"
[[nat.source]]
name = "internet"
from = { zone = "inside" }
to = { zone = "outside" }
pool = ["198.51.100.64/30"]
[[nat.destination]]
name = "web"
address = "198.51.100.80"
service = "tcp/80"
target = "10.0.1.10:8080"
"#;

/// Speaks first, then sends everything back.
const GREETER: &str = r"
import socket, threading
def serve(c):
    c.sendall(b'hello\n')
    while data := c.recv(65536):
        c.sendall(data)
    c.close()
server = socket.create_server(('0.0.0.0', 8080), backlog=100)
print('ready')
while True:
    c, _ = server.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
";

/// A connection to the published address: what is said first, and a megabyte there and back.
const CLIENT: &str = r"
import socket, threading
c = socket.create_connection(('198.51.100.80', 80), 5)
c.settimeout(5)
f = c.makefile('rb')
print(f.readline().decode().strip())
sent = bytes(range(256)) * 4096
threading.Thread(target=lambda: (c.sendall(sent), c.shutdown(socket.SHUT_WR)), daemon=True).start()
print(f.read() == sent)
";

/// One of `show counters`.
pub fn counter(gateway: &Gateway, name: &str) -> u64 {
    let shown = gateway.show("counters");
    let counters = shown.as_array().unwrap_or_else(|| panic!("show counters is a list: {shown:#}"));
    let found = counters.iter().find(|counter| counter["name"] == name);
    found
        .and_then(|counter| counter["value"].as_u64())
        .unwrap_or_else(|| panic!("{name} is not in {shown:#}"))
}

/// The same, but it speaks first: who only listens cannot know that his ACK was lost, which is all that a cookie's session
/// begins with (RFC 4987 section 3.6).
const TALKER: &str = r"
import socket, threading
c = socket.create_connection(('198.51.100.80', 80), 10)
c.settimeout(10)
sent = bytes(range(256)) * 4096
threading.Thread(target=lambda: (c.sendall(sent), c.shutdown(socket.SHUT_WR)), daemon=True).start()
print(c.makefile('rb').read() == b'hello\n' + sent)
";

fn config(extra: &str) -> Config {
    Config { zones: ["inside", "servers", "outside"], ..Config::default() }.with(extra)
}

#[test]
fn real_connections_through_the_syn_proxy() {
    let Some(lab) = Lab::alone("real_connections_through_the_syn_proxy", &[]) else { return };
    let gateway = Gateway::start(&lab, &config(PROXIED));
    // Through source NAT and without NAT, each way; windows, SACK and FINs are the kernels'.
    for to in NET {
        let up = lab.iperf("a", to, "--time 1");
        assert!(up.mbits() > 50.0, "{to}: {} Mbit/s", up.mbits());
        let down = lab.iperf("a", to, "--time 1 --reverse");
        assert!(down.mbits() > 50.0, "{to}: {} Mbit/s back", down.mbits());
    }
    let _greeter = python(&lab, "a", "greeter.py", GREETER);
    assert_eq!(python_says(&lab, "net", CLIENT).trim(), "hello\nTrue");
    // Nobody listens: the client, connected to us, is reset; curl may learn both at once.
    let refused = lab.run("a", "curl -sS --max-time 3 http://198.51.100.1:81/");
    assert!(
        ["reset by peer", "curl: (7)"].iter().any(|said| refused.text.contains(said)),
        "{}",
        refused.text
    );
    let (sent, taken) = (counter(&gateway, "syn-cookies.sent"), counter(&gateway, "syn-cookies.taken"));
    // iperf3 opens two connections each time.
    assert!(taken >= 10 && sent >= taken, "{sent} sent, {taken} taken");
    gateway.stop();
}

/// Random SYNs to the published address, 5,000 a second, from addresses that nobody has.
pub const FLOOD: &str = r"
import random, socket, struct, time
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
dst = socket.inet_aton('198.51.100.80')
def total(data):
    t = sum(struct.unpack('>%dH' % (len(data) // 2), data))
    while t >> 16: t = (t & 65535) + (t >> 16)
    return t ^ 65535
def syn():
    src = bytes((198, 51, 100, random.randrange(200, 250)))
    tcp = struct.pack('>HHIIBBHHH', random.randrange(1024, 65536), 80, random.getrandbits(32), 0, 0x50, 2, 8192, 0, 0)
    tcp = tcp[:16] + struct.pack('>H', total(src + dst + struct.pack('>HH', 6, 20) + tcp)) + tcp[18:]
    return struct.pack('>BBHHHBBH', 0x45, 0, 40, 0, 0, 64, 6, 0) + src + dst + tcp
packets = [syn() for _ in range(20000)]
print('ready', flush=True)
end, n = time.time() + 60, 0
while time.time() < end:
    try:
        s.sendto(packets[n % len(packets)], ('198.51.100.80', 0))
    except OSError:
        pass
    n += 1
    if n % 50 == 0:
        time.sleep(0.01)
";

#[test]
fn a_flood_keeps_nobody_out_and_throws_nobody_out() {
    let Some(lab) = Lab::alone("a_flood_keeps_nobody_out_and_throws_nobody_out", &[]) else { return };
    let flooded = PROXIED.replace("syn_proxy_above = 0", "syn_proxy_above = 100");
    let gateway = Gateway::start(&lab, &config(&format!("[flows]\ncapacity = 2000\n{flooded}")));
    let _greeter = python(&lab, "a", "greeter.py", GREETER);
    // Established before, and working through all of it.
    let load = lab.start_iperf("a", NET[0], "--time 6 --bitrate 100M");
    let mut flood = lab.command("net", &format!("python3 {}", write(&lab, "flood.py", FLOOD)));
    let _flood = Server(flood.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("python3 starts"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    let mut answered = 0;
    for _ in 0..5 {
        assert_eq!(python_says(&lab, "net", TALKER).trim(), "True");
        answered += lab.answers("a", NET[0], 3);
    }
    // A machine that stands still for 50 ms has more frames waiting than a veth holds: one of them, or two, may be lost.
    assert!(answered >= 13, "{answered} of 15 pings answered");
    assert!(load.finish().mbits() > 10.0);
    assert!(counter(&gateway, "syn-cookies.sent") > 1000, "a flood");
    assert!(counter(&gateway, "syn-cookies.taken") >= 5);
    gateway.stop();
}

fn write(lab: &Lab, name: &str, text: &str) -> String {
    let file = lab.path(name);
    std::fs::write(&file, text).expect("the program can be written");
    file.display().to_string()
}
