//! A program that behaves like Cloud Hypervisor where we look: its arguments, its REST API, its rules
//! for vhost-user, its exit. Written by hand from the API description; feature `testing`.
//!
//! It shares no type and no HTTP code with the client, so that a wrong name in one shows in the
//! other. It runs no guest: the "guest" prints its command line on the serial console and sleeps.
//!
//! # Threads
//! One per connection; the state is behind one lock.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::{Value, json};

const MAX_BODY_BYTES: usize = 1 << 20;

/// Names of the API description (version 54) that a request may have, by object.
const VM_FIELDS: &[&str] =
    &["cpus", "memory", "payload", "disks", "net", "rng", "serial", "console", "vsock", "fs"];
const NET_FIELDS: &[&str] = &[
    "id",
    "tap",
    "ip",
    "mask",
    "mac",
    "host_mac",
    "mtu",
    "iommu",
    "num_queues",
    "queue_size",
    "vhost_user",
    "vhost_socket",
    "vhost_mode",
    "fds",
    "pci_segment",
    "offload_tso",
    "offload_ufo",
    "offload_csum",
];
const MEMORY_FIELDS: &[&str] = &[
    "size",
    "shared",
    "hugepages",
    "hugepage_size",
    "prefault",
    "mergeable",
    "thp",
    "hotplug_method",
    "hotplug_size",
    "hotplugged_size",
    "zones",
];
const DISK_FIELDS: &[&str] = &["id", "path", "readonly", "direct", "image_type", "serial"];
const FS_FIELDS: &[&str] = &["id", "tag", "socket", "num_queues", "queue_size", "pci_segment"];
const VSOCK_FIELDS: &[&str] = &["id", "cid", "socket", "iommu", "pci_segment"];
const PAYLOAD_FIELDS: &[&str] =
    &["kernel", "cmdline", "initramfs", "firmware", "igvm", "host_data"];

/// Runs the program with the arguments after its name; returns its exit code when it cannot start, and
/// exits the process when it is told to shut down.
pub fn main(args: &[String]) -> i32 {
    let socket = match args {
        [flag, value] if flag == "--api-socket" => value.strip_prefix("path="),
        _ => None,
    };
    let Some(socket) = socket else {
        eprintln!("fake cloud-hypervisor: unexpected arguments {args:?}");
        return 1;
    };
    let listener = match UnixListener::bind(socket) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("fake cloud-hypervisor: cannot bind {socket}: {error}");
            return 1;
        }
    };
    let machine = Arc::new(Mutex::new(FakeMachine::default()));
    for stream in listener.incoming().map_while(Result::ok) {
        let machine = Arc::clone(&machine);
        thread::spawn(move || {
            // A client that breaks off is the client's business.
            let _ = converse(&stream, &machine);
        });
    }
    1
}

/// Whether the process goes on after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    Exit,
}

type Reply = Result<(Option<Value>, Next), (u16, String)>;

fn converse(stream: &UnixStream, machine: &Mutex<FakeMachine>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some((method, path, body)) = read_request(&mut reader)? {
        let endpoint = path.strip_prefix("/api/v1/").unwrap_or_default();
        let body = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body) };
        let reply = match body {
            Ok(body) => {
                let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
                machine.answer(&format!("{method} {endpoint}"), &body)
            }
            Err(error) => Err((400, format!("no JSON: {error}"))),
        };
        let (status, body, next) = match reply {
            Ok((Some(body), next)) => ("200 OK".to_owned(), body.to_string(), next),
            Ok((None, next)) => ("204 No Content".to_owned(), String::new(), next),
            Err((code, message)) => (format!("{code} Error"), message, Next::GoOn),
        };
        let length = body.len();
        write!(
            &*stream,
            "HTTP/1.1 {status}\r\nServer: fake\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        if next == Next::Exit {
            std::process::exit(0);
        }
    }
    Ok(())
}

/// Method, path and body of the next request, or `None` at the end.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<(String, String, Vec<u8>)>> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path), Some(version)) = (words.next(), words.next(), words.next())
    else {
        return Err(invalid("request line"));
    };
    if version != "HTTP/1.1" {
        return Err(invalid("version"));
    }
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').ok_or_else(|| invalid("header"))?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| invalid("length"))?;
        }
    }
    if length > MAX_BODY_BYTES {
        return Err(invalid("body too long"));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((method, path, body)))
}

/// The VM behind the API.
#[derive(Debug, Default)]
struct FakeMachine {
    config: Option<Value>,
    state: &'static str,
    /// Bytes.
    memory: u64,
    nics: Vec<UnixStream>,
    vsock: Option<UnixListener>,
    plugged: Vec<String>,
}

impl FakeMachine {
    fn answer(&mut self, request: &str, body: &Value) -> Reply {
        let done = Ok((None, Next::GoOn));
        match request {
            "GET vmm.ping" => Ok((Some(json!({"version": "fake", "pid": 1})), Next::GoOn)),
            "PUT vm.create" => self.create(body).and(done),
            "PUT vm.boot" => self.boot().and(done),
            "GET vm.info" => self.info(),
            "PUT vm.pause" => self.change("Running", "Paused").and(done),
            "PUT vm.resume" => self.change("Paused", "Running").and(done),
            "PUT vm.reboot" => {
                self.created()?;
                println!("fake guest: rebooted");
                self.state = "Running";
                done
            }
            "PUT vm.resize" => self.resize(body).and(done),
            "PUT vm.add-disk" => self.add_disk(body),
            "PUT vm.remove-device" => self.remove_device(body).and(done),
            "PUT vm.power-button" => self.created().map(|_| (None, Next::Exit)),
            "PUT vmm.shutdown" => Ok((None, Next::Exit)),
            _ => Err((404, format!("no end point '{request}'"))),
        }
    }

    fn created(&self) -> Result<&Value, (u16, String)> {
        self.config.as_ref().ok_or_else(|| (500, "VmNotCreated".to_owned()))
    }

    fn create(&mut self, config: &Value) -> Result<(), (u16, String)> {
        if self.config.is_some() {
            return Err((500, "VmAlreadyCreated".to_owned()));
        }
        check_config(config).map_err(|what| (500, format!("ConfigValidation: {what}")))?;
        self.memory = config["memory"]["size"].as_u64().unwrap_or_default();
        self.config = Some(config.clone());
        self.state = "Created";
        Ok(())
    }

    fn boot(&mut self) -> Result<(), (u16, String)> {
        let config = self.created()?.clone();
        if self.state != "Created" {
            return Err((500, format!("InvalidStateTransition({}, Running)", self.state)));
        }
        for nic in config["net"].as_array().into_iter().flatten() {
            let socket = Path::new(nic["vhost_socket"].as_str().unwrap_or_default());
            let connected = match nic["vhost_mode"].as_str() {
                // It blocks here until the switch connects, as the real one does.
                Some("Server") => UnixListener::bind(socket).and_then(|l| l.accept()).map(|a| a.0),
                _ => UnixStream::connect(socket),
            };
            let connected = connected.map_err(|e| (500, format!("VhostUserConnect: {e}")))?;
            self.nics.push(connected);
        }
        for fs in config["fs"].as_array().into_iter().flatten() {
            let socket = Path::new(fs["socket"].as_str().unwrap_or_default());
            let connected = UnixStream::connect(socket);
            self.nics.push(connected.map_err(|e| (500, format!("VhostUserConnect: {e}")))?);
        }
        if let Some(socket) = config["vsock"]["socket"].as_str() {
            let bound = UnixListener::bind(socket);
            self.vsock = Some(bound.map_err(|e| (500, format!("CreateVsockBackend: {e}")))?);
        }
        println!("fake guest: {}", config["payload"]["cmdline"].as_str().unwrap_or_default());
        self.state = "Running";
        Ok(())
    }

    fn info(&self) -> Reply {
        let config = self.created()?;
        let info = json!({
            "config": config, "state": self.state, "memory_actual_size": self.memory,
            "device_tree": {},
        });
        Ok((Some(info), Next::GoOn))
    }

    fn change(&mut self, from: &str, to: &'static str) -> Result<(), (u16, String)> {
        self.created()?;
        if self.state != from {
            return Err((500, format!("InvalidStateTransition({}, {to})", self.state)));
        }
        self.state = to;
        Ok(())
    }

    fn resize(&mut self, body: &Value) -> Result<(), (u16, String)> {
        let config = self.created()?;
        let bytes = |value: &Value| value.as_u64().unwrap_or_default();
        let memory = &config["memory"];
        let max = bytes(&memory["size"]) + bytes(&memory["hotplug_size"]);
        let max_vcpus = bytes(&config["cpus"]["max_vcpus"]);
        if let Some(desired) = body["desired_ram"].as_u64() {
            if desired > max || desired % (128 << 20) != 0 {
                return Err((500, format!("InvalidRamSize: {desired} of {max}")));
            }
            self.memory = desired;
        }
        if let Some(desired) = body["desired_vcpus"].as_u64() {
            if desired == 0 || desired > max_vcpus {
                return Err((500, format!("DesiredVCpuCountExceedsMax: {desired}")));
            }
            if let Some(config) = &mut self.config {
                config["cpus"]["boot_vcpus"] = desired.into();
            }
        }
        Ok(())
    }

    fn add_disk(&mut self, disk: &Value) -> Reply {
        self.created()?;
        check_disk(disk).map_err(|what| (500, format!("ConfigValidation: {what}")))?;
        let id = disk["id"].as_str().unwrap_or_default().to_owned();
        if self.plugged.contains(&id) {
            return Err((500, format!("IdentifierNotUnique({id})")));
        }
        self.plugged.push(id.clone());
        let bdf = format!("0000:00:{:02x}.0", 0x10 + self.plugged.len());
        Ok((Some(json!({"id": id, "bdf": bdf})), Next::GoOn))
    }

    fn remove_device(&mut self, body: &Value) -> Result<(), (u16, String)> {
        let id = body["id"].as_str().unwrap_or_default();
        let at = self.plugged.iter().position(|plugged| plugged == id);
        self.plugged.remove(at.ok_or_else(|| (500, format!("UnknownDeviceId({id})")))?);
        Ok(())
    }
}

fn check_disk(disk: &Value) -> Result<(), String> {
    check_fields(disk, DISK_FIELDS)?;
    let path = disk["path"].as_str().ok_or("disk.path is missing")?;
    fs::metadata(path).map(drop).map_err(|error| format!("disk {path}: {error}"))
}

/// The rules for vhost-user NICs, and the names of fields.
fn check_config(config: &Value) -> Result<(), String> {
    check_fields(config, VM_FIELDS)?;
    check_fields(&config["memory"], MEMORY_FIELDS)?;
    check_fields(&config["payload"], PAYLOAD_FIELDS)?;
    check_fields(
        &config["cpus"],
        &["boot_vcpus", "max_vcpus", "topology", "affinity", "features"],
    )?;
    let kernel = config["payload"]["kernel"].as_str().ok_or("payload.kernel is missing")?;
    fs::metadata(kernel).map_err(|error| format!("kernel {kernel}: {error}"))?;
    let vcpus = config["cpus"]["boot_vcpus"].as_u64().ok_or("cpus.boot_vcpus is missing")?;
    config["memory"]["size"].as_u64().ok_or("memory.size is missing")?;
    let list = |name: &str| config[name].as_array().cloned().unwrap_or_default();
    list("disks").iter().try_for_each(check_disk)?;
    list("fs").iter().try_for_each(|fs| check_fields(fs, FS_FIELDS))?;
    if config["vsock"].is_object() {
        check_fields(&config["vsock"], VSOCK_FIELDS)?;
        if config["vsock"]["cid"].as_u64().is_none_or(|cid| cid < 3) {
            return Err(format!("InvalidVsockCid({})", config["vsock"]["cid"]));
        }
    }
    for nic in config["net"].as_array().into_iter().flatten() {
        check_fields(nic, NET_FIELDS)?;
        if nic["vhost_user"] != true {
            return Err("this fake knows vhost-user NICs only".to_owned());
        }
        if config["memory"]["shared"] != true {
            return Err("vhost-user requires shared memory".to_owned());
        }
        let socket = nic["vhost_socket"].as_str().ok_or("vhost_socket is missing")?;
        if nic["vhost_mode"] == "Server" && Path::new(socket).exists() {
            return Err(format!("{socket} is there already"));
        }
        let queues = nic["num_queues"].as_u64().unwrap_or(2);
        if queues < 2 || queues / 2 > vcpus {
            return Err(format!("num_queues {queues} with {vcpus} vCPUs"));
        }
        if !nic["queue_size"].as_u64().unwrap_or(256).is_power_of_two() {
            return Err(format!("queue_size {}", nic["queue_size"]));
        }
    }
    Ok(())
}

fn check_fields(object: &Value, known: &[&str]) -> Result<(), String> {
    let object = object.as_object().ok_or_else(|| format!("{object} is no object"))?;
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("unknown field '{key}'")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut Value)) -> String {
        let mut config = json!({
            "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
            "memory": {"size": 128 << 20, "shared": true},
            "payload": {"kernel": "/proc/self/exe"},
            "net": [{"vhost_user": true, "vhost_socket": "/nowhere", "vhost_mode": "Server"}],
        });
        assert_eq!(check_config(&config), Ok(()));
        change(&mut config);
        check_config(&config).unwrap_err()
    }

    #[test]
    fn the_fake_refuses_what_cloud_hypervisor_refuses() {
        assert!(refusal(|c| c["memory"]["shared"] = json!(false)).contains("shared memory"));
        assert!(refusal(|c| c["net"][0]["num_queues"] = json!(4)).contains("num_queues 4"));
        assert!(refusal(|c| c["net"][0]["queue_size"] = json!(300)).contains("queue_size 300"));
        assert!(
            refusal(|c| c["net"][0]["vhost_socket"] = json!("/proc")).contains("there already")
        );
        assert!(
            refusal(|c| c["net"][0]["socket"] = json!("/x")).contains("unknown field 'socket'")
        );
        assert!(refusal(|c| c["payload"]["kernel"] = json!("/nowhere")).contains("/nowhere"));
    }
}
