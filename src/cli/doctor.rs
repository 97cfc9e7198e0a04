//! `softgate doctor DEVICE...`: what works on a device, what is lost, and what to type to mend it.

use std::process::ExitCode;

use crate::io::link::findings::{self, Finding, Status};
use crate::io::link::probe::{self, Depth};

/// Says what a gateway on these devices can do, what it loses, and how to mend it.
///
/// Programs and sockets are attached for a moment, unless the device is in use: a running gateway is
/// not disturbed. Network cards restart their queues for it, some are without link for a second.
///
/// Exit code: 0 usable, 1 something is broken, 2 no such device.
#[derive(Clone, Debug, clap::Args)]
pub struct DoctorArgs {
    /// The devices, as `ip link` names them.
    #[arg(required = true, value_name = "DEVICE")]
    pub devices: Vec<String>,
    /// The same data as JSON.
    #[arg(long)]
    pub json: bool,
    /// Only ask driver and kernel, try nothing out.
    #[arg(long)]
    pub passive: bool,
}

/// What was found on machine and devices.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Diagnosis {
    /// Every device is there and nothing is broken.
    pub usable: bool,
    /// Machine and process.
    pub host: Vec<Finding>,
    /// The devices, in the order asked for.
    pub devices: Vec<DeviceDiagnosis>,
}

/// What was found on one device.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceDiagnosis {
    /// Its name.
    pub device: String,
    /// It is there.
    pub present: bool,
    /// One per subject.
    pub findings: Vec<Finding>,
}

/// Diagnoses and prints.
pub fn run(args: DoctorArgs) -> ExitCode {
    let depth = if args.passive { Depth::Ask } else { Depth::Try };
    let diagnosis = diagnose(&args.devices, depth);
    print!("{}", if args.json { diagnosis.json() } else { diagnosis.text() });
    ExitCode::from(diagnosis.exit_code())
}

/// Probes machine and devices.
pub fn diagnose(devices: &[String], depth: Depth) -> Diagnosis {
    let host = findings::of_host(&probe::host());
    let devices: Vec<DeviceDiagnosis> = devices
        .iter()
        .map(|device| {
            let (present, findings) = match probe::device(device, depth) {
                Ok(facts) => (true, findings::of_device(&facts)),
                Err(error) => (false, vec![findings::missing(device, &error)]),
            };
            DeviceDiagnosis { device: device.clone(), present, findings }
        })
        .collect();
    let all = || host.iter().chain(devices.iter().flat_map(|device| &device.findings));
    let usable = devices.iter().all(|device| device.present) && all().all(|f| f.status != Status::Broken);
    Diagnosis { usable, host, devices }
}

impl Diagnosis {
    /// 0 usable, 1 something is broken, 2 a device is not there.
    pub fn exit_code(&self) -> u8 {
        match (self.usable, self.devices.iter().all(|device| device.present)) {
            (_, false) => 2,
            (false, true) => 1,
            (true, true) => 0,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!("this machine\n{}", findings::text(&self.host));
        for DeviceDiagnosis { device, findings, .. } in &self.devices {
            out += &format!("\n{device}\n{}", findings::text(findings));
        }
        let verdict = match self.exit_code() {
            0 => "usable",
            1 => "not usable: see what is broken above",
            _ => "not usable: a device is missing",
        };
        out + &format!("\n{verdict}\n")
    }

    /// For programs.
    pub fn json(&self) -> String {
        let json = serde_json::to_string_pretty(self)
            .unwrap_or_else(|error| unreachable!("strings, booleans and lists always serialise: {error}"));
        json + "\n"
    }
}
