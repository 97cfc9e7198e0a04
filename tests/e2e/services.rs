//! Load balancing between real web servers and real clients: what those see of a change is the judge.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::gateway::{Config, Gateway};
use crate::lab::Lab;
use crate::lost_since;
use crate::sessions::{Server, python_says};
use crate::vrrp::wait_for;

/// Outside, in the uplink's own network: the gateway has to answer for it.
const SERVICE: &str = "198.51.100.80";

/// nginx on `host`: says its name to whoever asks, and notes each request.
fn nginx(lab: &Lab, host: &str, name: &str, port: u16) -> Server {
    let dir = lab.path(name);
    std::fs::create_dir_all(&dir).expect("a directory");
    let config = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log {dir}/errors;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 1000000;\n\
         server {{ listen {port} reuseport backlog=4096; location / {{ return 200 \"{name}\\n\"; }} }} }}\n",
        dir = dir.display()
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config).expect("the config can be written");
    let command = format!("/usr/sbin/nginx -p {} -c {}", dir.display(), file.display());
    let child = lab.command(host, &command).spawn().expect("nginx starts");
    let deadline = Instant::now() + Duration::from_secs(5);
    while lab.must(host, &format!("ss -Htln sport = :{port}")).is_empty() {
        assert!(Instant::now() < deadline, "nginx does not listen on {host}: {name}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Server(child)
}

/// Connects so many times, from ports that others may have had just before, and tells who answered how often; whatever goes
/// wrong is an answer as well.
fn answers(lab: &Lab, connections: usize) -> BTreeMap<String, usize> {
    let program = format!(
        r"
import collections, socket
found = collections.Counter()
for _ in range({connections}):
    c = socket.socket()
    c.settimeout(5)
    c.bind(('', 0))
    try:
        with c:
            c.connect(('{SERVICE}', 80))
            c.sendall(b'GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n')
            data = b''
            while more := c.recv(4096):
                data += more
        found[data.rsplit(b'\r\n\r\n', 1)[1].decode().strip()] += 1
    except OSError as error:
        found[str(error)] += 1
for name, count in found.items():
    print(name, count, sep='=')
"
    );
    let said = python_says(lab, "net", &program);
    let count = |line: &str| {
        let (name, count) = line.split_once('=').expect("NAME=COUNT");
        (name.to_owned(), count.parse().expect("a number"))
    };
    said.lines().map(count).collect()
}

/// `wrk` on `net`, with connections that stay open: started, to be read later.
fn wrk(lab: &Lab, seconds: u32) -> std::process::Child {
    let command =
        format!("wrk --threads 1 --connections 40 --duration {seconds}s --timeout 5s http://{SERVICE}/");
    lab.command("net", &command).stdout(std::process::Stdio::piped()).spawn().expect("wrk starts")
}

/// What it says of errors: nothing, if there were none.
fn errors(wrk: std::process::Child) -> String {
    let output = wrk.wait_with_output().expect("wrk ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("requests in"), "{said}");
    let wrong = said.lines().filter(|line| line.contains("errors") || line.contains("Non-2xx"));
    wrong.collect::<Vec<_>>().join("\n")
}

fn backends(gateway: &Gateway) -> BTreeMap<String, Value> {
    let services: Value =
        serde_json::from_str(&gateway.ask("show services --json")).expect("what programs are told is JSON");
    let listed = services[0]["backends"].as_array().expect("backends");
    listed.iter().map(|of| (of["name"].as_str().expect("a name").to_owned(), of.clone())).collect()
}

fn flows_opened(gateway: &Gateway, name: &str) -> u64 {
    backends(gateway)[name]["opened"].as_u64().expect("a count")
}

/// Waits until the backend has got more flows than these.
fn until_busy(gateway: &Gateway, name: &str, before: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while flows_opened(gateway, name) == before {
        assert!(Instant::now() < deadline, "nobody comes to {name}: {:?}", backends(gateway));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until no flow of the backend is left.
fn until_done(gateway: &Gateway, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while backends(gateway).get(name).is_some_and(|of| of["flows"] != 0) {
        assert!(Instant::now() < deadline, "flows are left at {name}: {:?}", backends(gateway));
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn balanced() -> Config {
    Config { zones: ["inside", "servers", "outside"], ..Config::default() }.with(&format!(
        r#"
[flows]
tcp_transitory_s = 2
[[service]]
name = "shop"
address = "{SERVICE}"
service = "tcp/80"
backends = [
    {{ address = "10.0.1.10:8081" }},
    {{ address = "10.0.1.10:8082", weight = 2 }},
    {{ address = "10.0.2.10:8083" }},
]
[[rule]]
name = "shop-a"
action = "allow"
from = {{ zone = "outside" }}
to = {{ zone = "inside" }}
service = "tcp/8080-8089"
[[rule]]
name = "shop-b"
action = "allow"
from = {{ zone = "outside" }}
to = {{ zone = "servers" }}
service = "tcp/8080-8089"
"#
    ))
}

/// Weights, a drain, a set that is replaced, a backend that is disabled and one that dies.
#[test]
fn backends_come_and_go_under_load() {
    let Some(lab) = Lab::alone("backends_come_and_go_under_load", &[]) else { return };
    let servers = [("a", "one", 8081), ("a", "two", 8082), ("b", "three", 8083), ("b", "four", 8084)];
    let _servers: Vec<Server> =
        servers.iter().map(|(host, name, port)| nginx(&lab, host, name, *port)).collect();
    let gateway = Gateway::start(&lab, &balanced());

    // 4,000 connections: the standard deviation of a quarter is 0.7 %.
    let found = answers(&lab, 4000);
    let share = |name: &str| found.get(name).copied().unwrap_or(0) as f64 / 40.0;
    assert_eq!(found.values().sum::<usize>(), 4000);
    for (name, percent) in [("one", 25.0), ("two", 50.0), ("three", 25.0)] {
        assert!((share(name) - percent).abs() < 2.9, "{found:?}");
    }
    let shown = backends(&gateway);
    assert_eq!(shown["10.0.1.10:8082"]["opened"], found["two"]);

    // A drain and a larger set while 40 connections are busy: nobody notices.
    let before = flows_opened(&gateway, "10.0.1.10:8082");
    let load = wrk(&lab, 6);
    until_busy(&gateway, "10.0.1.10:8082", before);
    gateway.ask("service drain shop 10.0.1.10:8082");
    let opened = backends(&gateway)["10.0.1.10:8082"]["opened"].clone();
    std::thread::sleep(Duration::from_secs(1));
    gateway.ask("service set-backends shop 10.0.1.10:8081 10.0.2.10:8083 10.0.2.10:8084=2");
    let left = &backends(&gateway)["10.0.1.10:8082"];
    assert!(
        left["left"] == true && left["flows"].as_u64() > Some(0),
        "connections stay where they are: {left}"
    );
    assert_eq!(left["opened"], opened, "and no new ones come");
    let found = answers(&lab, 200);
    assert!(found.contains_key("four") && !found.contains_key("two"), "{found:?}");
    assert_eq!(errors(load), "");
    until_done(&gateway, "10.0.1.10:8082");

    // Disabled: what it has is reset, nothing else.
    let before = flows_opened(&gateway, "10.0.2.10:8084");
    let load = wrk(&lab, 6);
    until_busy(&gateway, "10.0.2.10:8084", before);
    gateway.ask("service disable shop 10.0.2.10:8084");
    let wrong = errors(load);
    assert!(wrong.contains("read") && wrong.contains("connect 0") && wrong.contains("timeout 0"), "{wrong}");
    until_done(&gateway, "10.0.2.10:8084");
    let shown = &backends(&gateway)["10.0.2.10:8084"];
    assert!(shown["lost"].as_u64() > Some(0) && shown["takes_percent"] == 0, "{shown}");
    assert_eq!(answers(&lab, 100).keys().collect::<Vec<_>>(), ["one", "three"]);

    // Backends that are named for a time: they leave when nobody names them again, and outlive a new config until then.
    gateway.ask("service add-backends shop 10.0.1.10:8082 --ttl 4s");
    gateway.ask("service add-backends shop 10.0.1.10:8085 --ttl 1h");
    assert!(gateway.ask("show services").contains("leaves in"));
    let (status, said) = gateway.apply(
        &lab,
        &balanced().text(gateway.socket()).replace("{ address = \"10.0.1.10:8082\", weight = 2 },", ""),
    );
    assert!(status.success(), "{said}");
    let names: Vec<String> = backends(&gateway).into_keys().collect();
    assert_eq!(names, ["10.0.1.10:8081", "10.0.1.10:8082", "10.0.1.10:8085", "10.0.2.10:8083"]);
    until_done(&gateway, "10.0.1.10:8082");
    let deadline = Instant::now() + Duration::from_secs(10);
    while backends(&gateway).get("10.0.1.10:8082").is_some_and(|of| of["left"] != true) {
        assert!(Instant::now() < deadline, "it does not leave: {:?}", backends(&gateway));
        std::thread::sleep(Duration::from_millis(100));
    }
    gateway.ask("service del-backends shop 10.0.1.10:8085");
    assert_eq!(answers(&lab, 100).keys().collect::<Vec<_>>(), ["one", "three"]);

    // Nobody left: refused at once, not timed out.
    gateway.ask("service set-backends shop");
    let found = answers(&lab, 5);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [(String::from("[Errno 111] Connection refused"), 5)]);
    gateway.stop();
}

/// Waits until the checks say this of a backend, and returns all that is shown of it.
fn until_health(gateway: &Gateway, name: &str, health: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let shown = backends(gateway);
        if shown[name]["health"] == health {
            return shown[name].clone();
        }
        assert!(Instant::now() < deadline, "{name} is not {health}: {shown:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A server dies and comes back; its checks pass the firewall, which lets nobody else speak to the gateway.
#[test]
fn failed_backends_are_found_and_come_back() {
    let Some(lab) = Lab::up("failed_backends_are_found_and_come_back", &[]) else { return };
    let one = nginx(&lab, "a", "one", 8081);
    let two = nginx(&lab, "a", "two", 8082);
    let _three = nginx(&lab, "b", "three", 8083);
    let mut config = balanced();
    config.extra = config.extra.replace(
        "service = \"tcp/80\"\n",
        "service = \"tcp/80\"\nslow_start_s = 1\n\
         health = { type = \"http\", interval = \"200ms\", rise = 2, fall = 2, status = 200 }\n",
    );
    let gateway = Gateway::start(&lab, &config);
    for name in ["10.0.1.10:8081", "10.0.1.10:8082", "10.0.2.10:8083"] {
        until_health(&gateway, name, "up");
    }
    assert_eq!(answers(&lab, 200).keys().collect::<Vec<_>>(), ["one", "three", "two"]);

    // It dies under load: what it has is lost, and what comes to it until that is known; nothing after that.
    let before = flows_opened(&gateway, "10.0.1.10:8082");
    let load = wrk(&lab, 6);
    until_busy(&gateway, "10.0.1.10:8082", before);
    drop(two);
    let shown = until_health(&gateway, "10.0.1.10:8082", "down");
    assert!(shown["note"] == "refused", "{shown}");
    // The verdict is shown as the checks' thread has it; the tables follow when the control thread has heard of it.
    wait_for("it takes nothing", || backends(&gateway)["10.0.1.10:8082"]["takes_percent"] == 0);
    assert_eq!(answers(&lab, 300).keys().collect::<Vec<_>>(), ["one", "three"]);
    let wrong = errors(load);
    assert!(wrong.contains("timeout 0") && !wrong.contains("Non-2xx"), "{wrong}");

    let _two = nginx(&lab, "a", "two", 8082);
    until_health(&gateway, "10.0.1.10:8082", "up");
    let deadline = Instant::now() + Duration::from_secs(10);
    while backends(&gateway)["10.0.1.10:8082"]["takes_percent"] != 100 {
        assert!(Instant::now() < deadline, "it starts too slowly: {:?}", backends(&gateway));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(answers(&lab, 200).keys().collect::<Vec<_>>(), ["one", "three", "two"]);
    drop(one);
    gateway.stop();
}

/// Takes what comes in tunnels to a backend out of them, as the kernel's `ipip` and `fou` devices do, of which not every
/// kernel has one: IP in IP, and variant 0 of GUE. What is inside comes in by a device of its own.
const END_OF_TUNNELS: &str = r"
import fcntl, os, select, socket, struct, subprocess
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH', b'inside', 0x1001))
ipip = socket.socket(socket.AF_INET, socket.SOCK_RAW, 4)
gue = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
gue.bind(('', 6080))
subprocess.run('ip link set inside up; sysctl -qw net.ipv4.conf.inside.rp_filter=0', shell=True, check=True)
while True:
    for ready in select.select([ipip, gue], [], [])[0]:
        data = ready.recv(65536)
        if ready is gue:
            assert data[:4] == b'\0\4\0\0', data[:4]
            os.write(tun, data[4:])
        else:
            os.write(tun, data[(data[0] & 15) * 4:])
";

/// Backends with the services' addresses on their loopback answer the client by a cable that the gateway is no end of.
#[test]
fn backends_answer_past_the_gateway() {
    const MODES: [(&str, &str); 3] =
        [("198.51.100.80", "l2-dsr"), ("198.51.100.81", "ipip"), ("198.51.100.82", "gue")];
    const REQUESTS: usize = 20;
    let Some(lab) = Lab::up("backends_answer_past_the_gateway", &[]) else { return };
    let mut running = Vec::new();
    for (number, (host, name)) in [("a", "one"), ("b", "two")].into_iter().enumerate() {
        let (here, there) = (format!("back{number}"), format!("to{host}"));
        lab.must("net", &format!("ip link add {there} type veth peer name {here}"));
        lab.hand(&here, "net", host);
        lab.must("net", &format!("ip addr add 10.99.{number}.1/24 dev {there}"));
        lab.must("net", &format!("ip link set {there} up"));
        lab.must(host, &format!("ip addr add 10.99.{number}.2/24 dev {here}"));
        lab.must(host, &format!("ip link set {here} up"));
        lab.must(host, &format!("ip route add 198.51.100.0/24 via 10.99.{number}.1"));
        lab.must(
            "net",
            &format!("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{there}.rp_filter=0"),
        );
        lab.must(host, "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2");
        lab.must(host, "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0");
        for (address, _) in MODES {
            lab.must(host, &format!("ip addr add {address}/32 dev lo"));
        }
        running.push(nginx(&lab, host, name, 80));
        let program = lab.path(&format!("{host}-tunnels.py"));
        std::fs::write(&program, END_OF_TUNNELS).expect("the program can be written");
        let command = format!("python3 {}", program.display());
        running.push(Server(lab.command(host, &command).spawn().expect("python starts")));
        let deadline = Instant::now() + Duration::from_secs(5);
        while !lab.run(host, "ip link show up dev inside").text.contains("inside") {
            assert!(Instant::now() < deadline, "no end of tunnels on {host}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let mut extra = String::new();
    for (address, mode) in MODES {
        extra += &format!(
            "[[service]]\nname = \"{mode}\"\naddress = \"{address}\"\nservice = \"tcp/80\"\nmode = \"{mode}\"\n\
             health = {{ type = \"icmp\", interval = \"200ms\" }}\n\
             backends = [{{ address = \"10.0.1.10\" }}, {{ address = \"10.0.2.10\" }}]\n"
        );
    }
    for (name, zone) in [("a", "inside"), ("b", "servers")] {
        extra += &format!(
            "[[rule]]\nname = \"{name}\"\naction = \"allow\"\nservice = \"tcp/80\"\n\
             from = {{ zone = \"outside\" }}\nto = {{ zone = \"{zone}\" }}\n"
        );
    }
    let config = Config { zones: ["inside", "servers", "outside"], ..Config::default() }.with(&extra);
    let gateway = Gateway::start(&lab, &config);
    let upload = lab.path("upload");
    std::fs::write(&upload, vec![b'x'; 300_000]).expect("a file");
    for (address, mode) in MODES {
        let mut found = BTreeMap::new();
        for _ in 0..REQUESTS {
            let said = lab.must("net", &format!("curl --silent --show-error --max-time 5 http://{address}/"));
            *found.entry(said.trim().to_owned()).or_insert(0) += 1;
        }
        assert_eq!(found.keys().collect::<Vec<_>>(), ["one", "two"], "{mode}: {found:?}");
        // Longer than the tunnel takes: the client is told, and its segments become shorter.
        let command = format!(
            "curl --silent --show-error --max-time 10 --data-binary @{} http://{address}/",
            upload.display()
        );
        let said = lab.must("net", &command);
        assert!(["one", "two"].contains(&said.trim()), "{mode}: {said}");
        let shown: Value =
            serde_json::from_str(&gateway.ask(&format!("show services {mode} --json"))).expect("JSON");
        assert_eq!(shown[0]["mode"], mode);
        let opened =
            shown[0]["backends"].as_array().expect("backends").iter().map(|of| of["opened"].as_u64());
        assert_eq!(opened.sum::<Option<u64>>(), Some(REQUESTS as u64 + 1), "{shown}");
    }
    // Whole answers came by the other cables, and none by the gateway.
    let shown: Value = gateway.show("sessions");
    assert!(shown.to_string().contains("198.51.100.80"), "{shown}");
    let mut lost = lost_since(&gateway, &BTreeMap::new());
    assert!(lost.iter().any(|(reason, _)| reason == "fragmentation-needed"), "{lost:?}");
    // A host whose end of the tunnels is late may say that it does not know what came.
    lost.retain(|(reason, _)| !["fragmentation-needed", "icmp-error-no-session"].contains(&reason.as_str()));
    assert_eq!(lost, []);
    gateway.stop();
}

/// Who of several clients gets which backend's answer, three times each; one after the other.
fn answers_by_client(lab: &Lab, clients: std::ops::Range<u8>) -> BTreeMap<String, Vec<String>> {
    let program = format!(
        r"
import socket
for client in range({}, {}):
    for _ in range(3):
        with socket.create_connection(('{SERVICE}', 80), 5, ('198.51.100.%d' % client, 0)) as c:
            c.sendall(b'GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n')
            data = b''
            while more := c.recv(4096):
                data += more
        print(client, data.rsplit(b'\r\n\r\n', 1)[1].decode().strip(), sep='=')
",
        clients.start, clients.end
    );
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in python_says(lab, "net", &program).lines() {
        let (client, name) = line.split_once('=').expect("CLIENT=NAME");
        found.entry(client.to_owned()).or_default().push(name.to_owned());
    }
    found
}

/// Where each client is, if all its connections went to one backend.
fn places(found: BTreeMap<String, Vec<String>>) -> BTreeMap<String, String> {
    let place = |(client, names): (String, Vec<String>)| {
        assert!(names.iter().all(|name| *name == names[0]), "{client} is sent about: {names:?}");
        (client, names[0].clone())
    };
    found.into_iter().map(place).collect()
}

/// Clients stay with their backends while others come, and who was moved stays where it was moved to.
#[test]
fn clients_stay_with_their_backend() {
    const CLIENTS: std::ops::Range<u8> = 100..140;
    let Some(lab) = Lab::up("clients_stay_with_their_backend", &[]) else { return };
    let servers = [("a", "one", 8081), ("a", "two", 8082), ("b", "three", 8083), ("b", "four", 8084)];
    let _servers: Vec<Server> =
        servers.iter().map(|(host, name, port)| nginx(&lab, host, name, *port)).collect();
    for client in CLIENTS {
        lab.must("net", &format!("ip addr add 198.51.100.{client}/24 dev eth0"));
    }
    let mut config = balanced();
    config.extra = config
        .extra
        .replace("service = \"tcp/80\"\n", "service = \"tcp/80\"\naffinity = { timeout_s = 3600 }\n");
    let gateway = Gateway::start(&lab, &config);
    let first = places(answers_by_client(&lab, CLIENTS));
    let of = |places: &BTreeMap<String, String>, name: &str| places.values().filter(|of| *of == name).count();
    assert!(["one", "two", "three"].iter().all(|name| of(&first, name) > 0), "they are spread: {first:?}");
    let shown: Value = serde_json::from_str(&gateway.ask("show services --json")).expect("JSON");
    assert_eq!(shown[0]["clients"], 40, "{shown}");

    // A larger set, with a new backend that most would go to.
    gateway.ask("service add-backends shop 10.0.2.10:8084=9");
    assert_eq!(places(answers_by_client(&lab, CLIENTS)), first);
    gateway.ask("service drain shop 10.0.1.10:8082");
    let second = places(answers_by_client(&lab, CLIENTS));
    assert_eq!((of(&second, "two"), of(&second, "four") > 0), (0, true), "{second:?}");
    for (client, name) in first.iter().filter(|(_, name)| *name != "two") {
        assert_eq!(second[client], *name, "{client} was not with the one that is drained");
    }
    gateway.ask("service enable shop 10.0.1.10:8082");
    assert_eq!(places(answers_by_client(&lab, CLIENTS)), second);
    gateway.stop();
}

/// A backend that does not answer SYNs any more gets no new connections, without any health check.
#[test]
fn silent_backends_are_ejected() {
    const SILENT: &str = "10.0.1.11:8082";
    let Some(lab) = Lab::up("silent_backends_are_ejected", &[]) else { return };
    lab.must("a", "ip addr add 10.0.1.11/24 dev eth0");
    let servers = [("a", "one", 8081), ("a", "two", 8082), ("b", "three", 8083)];
    let _servers: Vec<Server> =
        servers.iter().map(|(host, name, port)| nginx(&lab, host, name, *port)).collect();
    let mut config = balanced();
    let checks = "passive_checks = { failures = 3, percent = 10, clients = 1, eject_s = 3600 }";
    config.extra = config
        .extra
        .replace("10.0.1.10:8082", SILENT)
        .replace("service = \"tcp/80\"\n", &format!("service = \"tcp/80\"\n{checks}\n"));
    let gateway = Gateway::start(&lab, &config);
    assert_eq!(answers(&lab, 100).keys().collect::<Vec<_>>(), ["one", "three", "two"]);
    assert_eq!(backends(&gateway)[SILENT]["health"], "up");

    // What it would answer goes nowhere.
    lab.must("a", "ip rule add from 10.0.1.11 blackhole");
    let program = format!(
        r"
import concurrent.futures, socket
def connect(_):
    try:
        socket.create_connection(('{SERVICE}', 80), 20).close()
    except OSError as error:
        return str(error)
with concurrent.futures.ThreadPoolExecutor(40) as pool:
    print(sum(result is not None for result in pool.map(connect, range(40))))
"
    );
    // Clients that wait for long enough to ask a third time.
    let waiting = lab.path("waiting.py");
    std::fs::write(&waiting, program).expect("the program can be written");
    let child = lab
        .command("net", &format!("python3 {}", waiting.display()))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python starts");
    let shown = until_health(&gateway, SILENT, "ejected");
    assert!(shown["failed"].as_u64() >= Some(3) && shown["takes_percent"] == 0, "{shown}");
    let found = answers(&lab, 100);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["one", "three"], "{found:?}");
    // Those who wait are shown by service and backend.
    let waiting = "show sessions --service shop --state syn-sent";
    let held = gateway.ask(&format!("{waiting} --backend 10.0.1.11 --json"));
    let held: Value = serde_json::from_str(&held).expect("JSON");
    let held = held.as_array().expect("sessions");
    assert!(!held.is_empty() && held.iter().all(|of| of["backend"] == format!("shop/{SILENT}")), "{held:?}");
    let count = gateway.ask(&format!("{waiting} --backend {SILENT} --count"));
    assert_eq!(count.trim(), format!("{} sessions", held.len()));
    let opened = backends(&gateway)[SILENT]["opened"].clone();
    assert_eq!(answers(&lab, 100).len(), 2);
    // It is back: those who have waited get it, and with other limits all others as well.
    lab.must("a", "ip rule del from 10.0.1.11 blackhole");
    let said = child.wait_with_output().expect("python ends");
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "0", "connections are kept and not reset");
    assert_eq!(backends(&gateway)[SILENT]["opened"], opened, "nobody new came to it");
    let next = config.text(gateway.socket()).replace("eject_s = 3600", "eject_s = 1");
    let (status, said) = gateway.apply(&lab, &next);
    assert!(status.success(), "{said}");
    until_health(&gateway, SILENT, "up");
    assert_eq!(answers(&lab, 100).keys().collect::<Vec<_>>(), ["one", "three", "two"]);
    gateway.stop();
}
