//! One row of the table: what is there before it, its steps, and what came of them.

use crate::driver::FakeDriver;
use crate::options::{self, list, number, object, text, words};
use gpucontainer::cgroup::Limits;
use gpucontainer::gpu::cdi::Spec;
use gpucontainer::gpu::{
    DriverRoot, GpuAllocator, GpuFault, GpuLease, GpuTicket, ImageFacts, Inventory, MigDevices, MigLease, Wait,
};
use gpucontainer::image::{Credentials, ImportOptions, PullOptions, PushOptions};
use gpucontainer::net::{NetworkMember, PortMapper, PortMapping, Protocol, Published, Reservation};
use gpucontainer::sandbox::{ExitStatus, Output, SandboxBuilder, Stdio};
use gpucontainer::{Cancel, Error, GpuGrant, Host, Image, ImageStore, Result, Sandbox};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long anything may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(30);

/// What came of a step.
#[derive(Default)]
struct Outcome {
    status: Option<ExitStatus>,
    stdout: String,
    stderr: String,
    text: String,
    count: Option<u64>,
}

impl Outcome {
    fn of(output: &Output) -> Self {
        let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            status: Some(output.status),
            stdout: words(&output.stdout),
            stderr: words(&output.stderr),
            ..Self::default()
        }
    }

    fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    fn count(count: usize) -> Self {
        Self { count: Some(u64::try_from(count).unwrap()), ..Self::default() }
    }
}

/// A service of the host that says one line to everybody.
struct Greeter {
    port: u16,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Greeter {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while let Ok((mut client, _)) = listener.accept() {
                if seen.load(Ordering::SeqCst) {
                    return;
                }
                let _ = client.write_all(b"hello from the host\n");
            }
        });
        Self { port, over, thread: Some(thread) }
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        self.thread.take().unwrap().join().unwrap();
    }
}

struct Scene {
    store: ImageStore,
    image: Option<Image>,
    driver: Option<FakeDriver>,
    allocator: Option<GpuAllocator>,
    sandboxes: BTreeMap<String, Sandbox>,
    leases: BTreeMap<String, GpuLease>,
    tickets: BTreeMap<String, GpuTicket>,
    grants: Vec<GpuGrant>,
    members: BTreeMap<String, NetworkMember>,
    mig: BTreeMap<String, MigLease>,
    reservations: BTreeMap<String, Reservation>,
    published: BTreeMap<String, Published>,
    directory: tempfile::TempDir,
    _greeter: Option<Greeter>,
}

/// Runs a row; a line for each step says what came of it, in words that are the same in all languages.
pub(crate) fn run(row: &Value, image: &Value, lines: &mut Vec<String>) {
    let name = text(&row["name"]);
    let directory = tempfile::Builder::new().prefix("gpuc-scenario-").tempdir().unwrap();
    let here = directory.path().to_str().unwrap().to_owned();
    std::fs::create_dir(directory.path().join("host")).unwrap();
    std::fs::write(directory.path().join("host/greeting"), "from the host\n").unwrap();
    let busybox = crate::common::which("busybox").unwrap();
    std::fs::create_dir_all(directory.path().join("root/bin")).unwrap();
    std::fs::copy(&busybox, directory.path().join("root/bin/sh")).unwrap();
    let said = row.to_string();
    let greeter = said.contains("$PORT").then(Greeter::start);
    let port = greeter.as_ref().map_or(0, |greeter| greeter.port).to_string();
    let data = crate::directory();
    let whole = |value: &Value| -> Value {
        let said = value.to_string().replace("\"$PORT\"", &port).replace("$PORT", &port).replace("$DIR", &here);
        let said = said.replace("$DATA", data.to_str().unwrap()).replace("$BUSYBOX", busybox.to_str().unwrap());
        serde_json::from_str(&said).unwrap()
    };
    let driver = row.get("host").map(|machine| FakeDriver::new(machine.as_str().unwrap()));
    let allocator = driver.as_ref().map(|driver| {
        let allocator = GpuAllocator::at(directory.path().join("leases")).unwrap();
        allocator.driver_root(DriverRoot::new(driver.path())).respect_outer(false)
    });
    let mut scene = Scene {
        store: ImageStore::open(directory.path().join("store")).unwrap(),
        image: None,
        driver,
        allocator,
        sandboxes: BTreeMap::new(),
        leases: BTreeMap::new(),
        tickets: BTreeMap::new(),
        grants: Vec::new(),
        members: BTreeMap::new(),
        mig: BTreeMap::new(),
        reservations: BTreeMap::new(),
        published: BTreeMap::new(),
        directory,
        _greeter: greeter,
    };
    let built = options::image(scene.store.build(), &whole(image)).commit("fixture:1").unwrap();
    scene.image = Some(built);
    for (number, step) in list(&row["steps"]).iter().map(whole).enumerate() {
        let place = format!("{name}, step {number}");
        let done = scene.step(&step);
        let mut said =
            line(&name, number, &step, &done).replace(&here, "$DIR").replace(data.to_str().unwrap(), "$DATA");
        if port != "0" {
            said = said.replace(&port, "$PORT");
        }
        lines.push(said);
        check(&place, &step, &done);
    }
}

/// What of an outcome is the same in all languages and all runs.
fn line(name: &str, number: usize, step: &Value, done: &Result<Outcome>) -> String {
    let mut all = vec![json!(name), json!(number), step["do"].clone()];
    all.extend(match done {
        Ok(Outcome { status: Some(status), stdout, stderr, .. }) => {
            let oom = status.oom_killed();
            vec![json!(status.code()), json!(status.signal()), json!(oom), json!(stdout), json!(stderr)]
        }
        Ok(done) if step["loose"] == true => vec![json!(done.count), Value::Null],
        Ok(done) => vec![json!(done.count), json!(done.text)],
        Err(error) => vec![json!(format!("{:?}", error.kind())), json!(error.errno()), json!(error.to_string())],
    });
    Value::from(all).to_string()
}

fn check(place: &str, step: &Value, done: &Result<Outcome>) {
    let expected = &step["expect"];
    if let Err(error) = done {
        assert_eq!(expected.get("error"), Some(&json!(format!("{:?}", error.kind()))), "{place}: {error}");
    }
    let nothing = Outcome::default();
    let outcome = done.as_ref().unwrap_or(&nothing);
    let shown = || {
        let Outcome { status, stdout, stderr, text, count } = outcome;
        format!("{place}: {status:?} {stdout:?} {stderr:?} {text:?} {count:?}")
    };
    for (key, value) in object(expected) {
        let has = |whole: &str| words(value).iter().all(|part| whole.contains(part.as_str()));
        let good = match key {
            "error" => done.is_err(),
            "says" => has(&done.as_ref().err().map(ToString::to_string).unwrap_or_default()),
            "errno" => done.as_ref().err().and_then(Error::errno) == Some(number(value)),
            "code" => outcome.status.and_then(ExitStatus::code) == Some(number(value)),
            "signal" => outcome.status.and_then(ExitStatus::signal) == Some(number(value)),
            "oom" => outcome.status.map(ExitStatus::oom_killed) == value.as_bool(),
            "stdout" => outcome.stdout == text(value),
            "stderr" => outcome.stderr == text(value),
            "stdout_has" => has(&outcome.stdout),
            "stderr_has" => has(&outcome.stderr),
            "text" => outcome.text == text(value),
            "text_has" => has(&outcome.text),
            "count" => outcome.count == value.as_u64(),
            "json" => {
                let whole: Value = serde_json::from_str(&outcome.text).unwrap();
                object(value).all(|(pointer, wanted)| whole.pointer(pointer) == Some(wanted))
            }
            other => panic!("no expectation is called {other:?}"),
        };
        assert!(good, "{key} {value} is not so of {}: {:?}", shown(), done.as_ref().err().map(ToString::to_string));
    }
}

fn key(step: &Value) -> String {
    step.get("as").map_or_else(|| "one".to_owned(), text)
}

fn input(step: &Value) -> String {
    step.get("input").map(text).unwrap_or_default().repeat(step.get("times").map_or(1, number))
}

fn time(value: Option<&Value>) -> Duration {
    value.map_or(LIMIT, |value| Duration::from_millis(number(value)))
}

/// Sends a line, if there is one, and reads to the end.
fn talk(mut stream: TcpStream, send: Option<&Value>) -> String {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    if let Some(send) = send {
        stream.write_all(text(send).as_bytes()).unwrap();
    }
    let mut answer = String::new();
    // One whom nobody inside takes yet is reset.
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// The same, until somebody inside listens.
fn served(host: SocketAddr, send: Option<&Value>) -> String {
    let start = Instant::now();
    loop {
        // Between two servers nobody takes it.
        let answer = TcpStream::connect(host).map(|stream| talk(stream, send)).unwrap_or_default();
        if !answer.is_empty() || start.elapsed() > LIMIT {
            return answer;
        }
    }
}

fn config(image: &Image) -> String {
    let config = image.config();
    let (entrypoint, command, env, user) = (&config.entrypoint, &config.command, &config.env, &config.user);
    json!({
        "id": image.id().to_string(), "reference": image.reference().to_string(), "entrypoint": entrypoint,
        "command": command, "env": env, "user": user, "working_dir": config.working_dir,
        "exposed_ports": config.exposed_ports, "labels": config.labels, "volumes": config.volumes,
        "stop_signal": config.stop_signal, "os": config.os,
    })
    .to_string()
}

impl Scene {
    fn sandbox(&self, step: &Value) -> &Sandbox {
        &self.sandboxes[&key(step)]
    }

    fn allocator(&self) -> &GpuAllocator {
        self.allocator.as_ref().unwrap()
    }

    fn builder(&self, with: &Value) -> Result<SandboxBuilder> {
        let mut builder = match (with.get("image"), with.get("directory")) {
            (Some(reference), _) => Sandbox::builder(text(reference)),
            (_, Some(path)) => Sandbox::from_directory(PathBuf::from(text(path))),
            _ => Sandbox::from_image(self.image.as_ref().unwrap()),
        };
        builder = builder.store(&self.store).stdin(Stdio::Piped).stdout(Stdio::Piped).stderr(Stdio::Piped);
        if let Some(driver) = &self.driver {
            builder = builder.driver_root(DriverRoot::new(driver.path()));
        }
        if let Some(other) = with.get("join") {
            let namespace = self.sandboxes[&text(other)].network_namespace()?;
            builder = builder.network(gpucontainer::sandbox::Network::Join(namespace));
        }
        if let Some(lease) = with.get("lease") {
            builder = builder.gpu_lease(&self.leases[&text(lease)]);
        }
        options::sandbox(builder, with, self.allocator.as_ref())
    }

    fn first_port(&self, step: &Value) -> SocketAddr {
        self.sandbox(step).ports()[0].host()
    }

    fn step(&mut self, step: &Value) -> Result<Outcome> {
        let with = &step["with"];
        let nothing = Ok(Outcome::default());
        match text(&step["do"]).as_str() {
            "run" => {
                let sandbox = self.builder(with)?.spawn()?;
                let input = input(step);
                let output = sandbox.communicate(input.as_bytes(), Some(LIMIT))?;
                sandbox.close()?;
                Ok(Outcome::of(&output))
            }
            "start" => {
                let sandbox = self.builder(with)?.spawn()?;
                self.sandboxes.insert(key(step), sandbox);
                nothing
            }
            "explain" => Ok(Outcome::text(self.builder(with)?.plan()?.explain())),
            "communicate" => {
                let input = input(step);
                let output = self.sandbox(step).communicate(input.as_bytes(), Some(time(step.get("timeout"))))?;
                Ok(Outcome::of(&output))
            }
            "wait" => {
                let ended = self.sandbox(step).wait_timeout(time(step.get("timeout")))?;
                Ok(Outcome { status: ended, text: "running".to_owned(), ..Outcome::default() })
            }
            "line" => {
                // Byte for byte, since the rest is for others.
                let stream = self.sandbox(step).take_stdout().unwrap();
                let (mut stream, mut line, mut byte) = (std::fs::File::from(stream), Vec::new(), [0]);
                while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
                    line.push(byte[0]);
                }
                Ok(Outcome::text(String::from_utf8(line).unwrap()))
            }
            "kill" => self.sandbox(step).kill(number(&step["signal"])).map(|()| Outcome::default()),
            "exec" => {
                let process = options::exec(self.sandbox(step).exec(words(&with["command"])), with).spawn()?;
                let input = input(step);
                Ok(Outcome::of(&process.communicate(input.as_bytes(), Some(LIMIT))?))
            }
            "stats" => {
                let stats = self.sandbox(step).stats()?;
                Ok(Outcome::text(serde_json::to_string(&stats).unwrap()))
            }
            "update" => {
                let limits: Limits = options::limits(with);
                self.sandbox(step).update(&limits).map(|()| Outcome::default())
            }
            "pause" => self.sandbox(step).pause().map(|()| Outcome::default()),
            "resume" => self.sandbox(step).resume().map(|()| Outcome::default()),
            "dial" => {
                let stream = self.sandbox(step).dial(number(&step["port"]), Some(time(step.get("timeout"))))?;
                Ok(Outcome::text(talk(stream, step.get("send"))))
            }
            "ready" => {
                let ready = self.sandbox(step).wait_ready(number(&step["port"]), Some(time(step.get("timeout"))));
                ready.map(|()| Outcome::default())
            }
            "connect" => Ok(Outcome::text(served(self.first_port(step), step.get("send")))),
            "publish" => {
                let mapping = PortMapping::tcp(number(&step["port"]), step.get("host_port").map_or(0, number));
                Ok(Outcome::count(self.sandbox(step).publish(&[mapping])?.len()))
            }
            "unpublish" => {
                let host = match step.get("host_port") {
                    Some(port) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), number(port)),
                    None => self.first_port(step),
                };
                self.sandbox(step).unpublish(host).map(|()| Outcome::default())
            }
            "ports" => Ok(Outcome::count(self.sandbox(step).ports().len())),
            "expose" => {
                let services = self.sandbox(step).expose_host(&[options::service(with)])?;
                Ok(Outcome::count(services.len()))
            }
            "services" => Ok(Outcome::count(self.sandbox(step).host_services().len())),
            "withdraw" => {
                self.sandbox(step).withdraw_host(number(&step["port"]), Protocol::Tcp).map(|()| Outcome::default())
            }
            "gpus" => Ok(Outcome::count(self.sandbox(step).gpus().len())),
            "close" => self.sandboxes.remove(&key(step)).unwrap().close().map(|()| Outcome::default()),
            "detach" => {
                let sandbox = self.sandboxes.remove(&key(step)).unwrap();
                let pid = rustix::process::Pid::from_raw(sandbox.pid()).unwrap();
                sandbox.detach()?;
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
                // Whoever detaches a child and lives on waits for it, like for any other.
                crate::common::until("the detached sandbox is gone", LIMIT, || {
                    rustix::process::wait(rustix::process::WaitOptions::NOHANG).is_err()
                });
                let start = Instant::now();
                loop {
                    gpucontainer::sandbox::collect_abandoned(&self.store)?;
                    let scratch = std::fs::read_dir(self.store.path().join("scratch"));
                    if scratch.map_or(0, Iterator::count) == 0 || start.elapsed() > LIMIT {
                        return nothing;
                    }
                }
            }
            "file" => Ok(Outcome::text(std::fs::read_to_string(text(&step["path"])).unwrap())),
            "write" => {
                std::fs::write(text(&step["path"]), text(&step["text"])).unwrap();
                nothing
            }
            "build" => {
                let mut builder = self.store.build();
                if let Some(base) = with.get("base") {
                    builder = builder.base(&self.store.image(&text(base))?);
                }
                options::image(builder, with)
                    .commit(&text(&with["reference"]))
                    .map(|image| Outcome::text(config(&image)))
            }
            "image" => self.store.image(&text(&step["reference"])).map(|image| Outcome::text(config(&image))),
            "tag" => {
                let image = self.store.image(&text(&step["reference"]))?;
                self.store.tag(&image, &text(&step["new"])).map(|image| Outcome::text(config(&image)))
            }
            "remove" => self.store.remove(&text(&step["reference"])).map(|()| Outcome::default()),
            "images" => Ok(Outcome::count(self.store.list()?.len())),
            "garbage" => {
                let cancel = Cancel::new();
                if step.get("cancelled") == Some(&Value::Bool(true)) {
                    cancel.cancel();
                }
                let collected = self.store.collect_garbage_cancellable(&cancel)?;
                Ok(Outcome::count(usize::try_from(collected.layers).unwrap()))
            }
            "import" => {
                let mut options = ImportOptions::new();
                for (key, value) in object(with) {
                    options = match key {
                        "path" => options,
                        "reference" => options.reference(text(value)),
                        "select" => options.select(text(value)),
                        "platform" => options.platform(text(value).parse()?),
                        other => panic!("no option of an import is called {other:?}"),
                    };
                }
                let cancel = Cancel::new();
                if step.get("cancelled") == Some(&Value::Bool(true)) {
                    cancel.cancel();
                }
                let image = self.store.import(text(&with["path"]), options.cancel(cancel))?;
                Ok(Outcome::text(config(&image)))
            }
            "pull" => {
                let options = PullOptions::new().credentials(Credentials::anonymous());
                self.store.pull(&text(&step["reference"]), options).map(|image| Outcome::text(config(&image)))
            }
            "push" => {
                let image = self.store.image(&text(&step["image"]))?;
                let options = PushOptions::new().credentials(Credentials::anonymous());
                let digest = self.store.push(&image, &text(&step["reference"]), options)?;
                Ok(Outcome::text(digest.to_string()))
            }
            "lease" => {
                let cancel = Cancel::new();
                if step.get("cancelled") == Some(&Value::Bool(true)) {
                    cancel.cancel();
                }
                let wait = Wait::at_most(step.get("timeout").map_or(Duration::ZERO, |value| time(Some(value))));
                let lease = self.allocator().acquire(&options::request(with)?, wait.cancel(&cancel))?;
                let count = lease.gpus().len();
                self.leases.insert(key(step), lease);
                Ok(Outcome::count(count))
            }
            "release" => self.leases.remove(&key(step)).unwrap().release().map(|()| Outcome::default()),
            "drop" => {
                drop(self.leases.remove(&key(step)));
                nothing
            }
            "leases" => Ok(Outcome::count(self.allocator().status()?.leases.len())),
            "queue" => {
                let mut ticket = self.allocator().enqueue(&options::request(with)?)?;
                let lease = ticket.wait(Some(Duration::ZERO))?;
                let count = lease.as_ref().map_or(0, |lease| lease.gpus().len());
                if let Some(lease) = lease {
                    self.leases.insert(key(step), lease);
                } else {
                    self.tickets.insert(key(step), ticket);
                }
                Ok(Outcome::count(count))
            }
            "served" => {
                let mut ticket = self.tickets.remove(&key(step)).unwrap();
                let lease = ticket.wait(Some(LIMIT))?.unwrap();
                let count = lease.gpus().len();
                self.leases.insert(key(step), lease);
                Ok(Outcome::count(count))
            }
            "quarantine" | "readmit" => {
                let gpu = match step.get("gpu") {
                    Some(gpu) => text(gpu),
                    None => self.allocator().status()?.gpus[0].uuid.clone(),
                };
                let quarantine = self.allocator().quarantine();
                let changed = if step["do"] == "readmit" {
                    quarantine.release(&gpu)?
                } else {
                    quarantine.report(&gpu, GpuFault::Requested)?
                };
                Ok(Outcome::count(usize::from(changed)))
            }
            "quarantined" => Ok(Outcome::count(self.allocator().status()?.quarantined.len())),
            "attach" => {
                let grant = match with.get("lease") {
                    Some(lease) => self.sandbox(step).attach_lease(&self.leases[&text(lease)])?,
                    None => self.sandbox(step).attach_gpus(&options::request(with)?, Wait::none())?,
                };
                self.grants.push(grant);
                Ok(Outcome::count(self.sandbox(step).granted().len()))
            }
            "take" => {
                let grant = self.grants.pop().unwrap();
                self.sandbox(step).detach_gpus(&grant, false).map(|()| Outcome::default())
            }
            "mig" => {
                let root = DriverRoot::new(self.driver.as_ref().unwrap().path());
                let devices = MigDevices::open(&root, self.directory.path().join("mig"))?;
                let lease = devices.acquire(&text(&step["profile"]), &[])?;
                let created = lease.created();
                self.mig.insert(key(step), lease);
                Ok(Outcome::count(usize::from(created)))
            }
            "unmig" => self.mig.remove(&key(step)).unwrap().release().map(|()| Outcome::default()),
            "cdi" => {
                let root = DriverRoot::new(self.driver.as_ref().unwrap().path());
                let inventory = Inventory::discover_with(&root);
                let spec = Spec::of_host(&options::request(with)?, &inventory, &root, &ImageFacts::default())?;
                Ok(Outcome::text(spec.to_json()?))
            }
            "join" => {
                let member = options::network(with).join(&text(&step["name"]))?;
                let first = member.addresses()[0].to_string();
                self.members.insert(key(step), member);
                Ok(Outcome::text(first))
            }
            "leave" => self.members.remove(&key(step)).unwrap().leave().map(|()| Outcome::default()),
            "addresses" => Ok(Outcome::text(self.sandbox(step).addresses()[0].to_string())),
            "reserve" => {
                let pairs = list(&step["ports"]).iter();
                let mappings: Vec<_> = pairs.map(|pair| PortMapping::tcp(number(&pair[0]), number(&pair[1]))).collect();
                let reservation = PortMapper::new().reserve(&mappings)?;
                let count = reservation.ports().len();
                self.reservations.insert(key(step), reservation);
                Ok(Outcome::count(count))
            }
            "relay" => {
                let reservation = self.reservations.remove(&key(step)).unwrap();
                let published = reservation.relay(self.sandbox(step).network_namespace()?)?;
                let count = published.ports().len();
                self.published.insert(key(step), published);
                Ok(Outcome::count(count))
            }
            "relayed" => {
                let host = self.published[&key(step)].ports()[0].host();
                Ok(Outcome::text(served(host, step.get("send"))))
            }
            "unrelay" => {
                self.published.remove(&key(step)).unwrap().close();
                nothing
            }
            "probe" => {
                let host = serde_json::to_value(Host::probe()).unwrap();
                Ok(Outcome::text(host.to_string()))
            }
            other => panic!("no step is called {other:?}"),
        }
    }
}
