//! A guest that is not there: processes, their streams and signals behind the fake agent, and the VMM
//! that "boots" it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kata_agent_protocol::agent as msg;
use kata_agent_protocol::protobuf::Message;
use kata_agent_protocol::ttrpc::Code;
use tokio::sync::{mpsc, watch};
use vmm_glue::agent::fake::FakeAgent;
use vmm_glue::fake::FakeVmm;
use vmm_glue::{AgentChannel, Vm, VmFuture, VmSpec, Vmm, VmmError};

/// Container, and process as the agent knows it.
type Key = (String, String);
type Reply<T> = Result<T, (Code, String)>;

#[derive(Debug, Default)]
struct Pipe {
    data: VecDeque<u8>,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Proc {
    out: watch::Sender<Pipe>,
    err: watch::Sender<Pipe>,
    exit: watch::Sender<Option<i32>>,
    input: watch::Sender<(Vec<u8>, bool)>,
}

impl Proc {
    fn end(&self, code: i32) {
        for pipe in [&self.out, &self.err] {
            pipe.send_modify(|pipe| pipe.is_closed = true);
        }
        self.exit.send_replace(Some(code));
    }
}

/// The guest; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Guest(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    agent: Mutex<Option<FakeAgent>>,
    processes: Mutex<BTreeMap<Key, Arc<Proc>>>,
    /// By method; without words it hangs.
    faults: Mutex<BTreeMap<&'static str, &'static str>>,
    is_silent: Mutex<bool>,
    oom: Mutex<Option<mpsc::UnboundedSender<String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(container: &str, exec: &str) -> Key {
    let exec = if exec.is_empty() { container } else { exec };
    (container.to_owned(), exec.to_owned())
}

impl Guest {
    /// From the next boot on `method` fails.
    pub fn fail(&self, method: &'static str, message: &'static str) {
        lock(&self.0.faults).insert(method, message);
        if let Some(agent) = &*lock(&self.0.agent) {
            agent.fail(method, Code::INTERNAL, message);
        }
    }

    /// From the next boot on `method` never answers.
    pub fn hang(&self, method: &'static str) {
        lock(&self.0.faults).insert(method, "");
    }

    /// Returns once `method` was called.
    pub async fn wait_for(&self, method: &str) {
        while !self.with_agent(|agent| agent.methods().iter().any(|called| called == method)) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// From the next boot on everything works.
    pub fn heal(&self) {
        lock(&self.0.faults).clear();
        *lock(&self.0.is_silent) = false;
    }

    /// From the next boot on no agent answers.
    pub fn be_silent(&self) {
        *lock(&self.0.is_silent) = true;
    }

    /// The agent's connections end, and nobody answers any more.
    pub fn vanish(&self) {
        *lock(&self.0.agent) = None;
    }

    /// Runs `look` with the agent.
    pub fn with_agent<T>(&self, look: impl FnOnce(&FakeAgent) -> T) -> T {
        look(lock(&self.0.agent).as_ref().expect("the guest was booted"))
    }

    /// The last request of `method`.
    pub fn last<M: Message>(&self, method: &str) -> M {
        let calls = self.with_agent(FakeAgent::calls);
        let call = calls.iter().rev().find(|call| call.method == method);
        call.unwrap_or_else(|| panic!("{method} was not called")).request()
    }

    fn process(&self, container: &str, exec: &str) -> Arc<Proc> {
        let found = lock(&self.0.processes).get(&key(container, exec)).cloned();
        found.unwrap_or_else(|| panic!("there is no process {exec} in {container}"))
    }

    fn find(&self, container: &str, exec: &str) -> Reply<Arc<Proc>> {
        let found = lock(&self.0.processes).get(&key(container, exec)).cloned();
        found.ok_or_else(|| (Code::NOT_FOUND, format!("no process {exec} in {container}")))
    }

    /// Lets a process write.
    pub fn print(&self, container: &str, exec: &str, text: &[u8]) {
        let process = self.process(container, exec);
        process.out.send_modify(|pipe| pipe.data.extend(text));
    }

    /// Lets a process write errors.
    pub fn print_error(&self, container: &str, exec: &str, text: &[u8]) {
        let process = self.process(container, exec);
        process.err.send_modify(|pipe| pipe.data.extend(text));
    }

    /// A process ends; what it wrote may still be read.
    pub fn exit(&self, container: &str, exec: &str, code: i32) {
        self.process(container, exec).end(code);
    }

    /// A process ends while a child of it keeps its output open.
    pub fn exit_and_hold(&self, container: &str, exec: &str, code: i32) {
        self.process(container, exec).exit.send_replace(Some(code));
    }

    /// All that a process was given to read, once its input has ended.
    pub async fn input(&self, container: &str, exec: &str) -> Vec<u8> {
        let mut input = self.process(container, exec).input.subscribe();
        input.wait_for(|(_, is_closed)| *is_closed).await.expect("the process is there").0.clone()
    }

    /// What a process was given to read so far, once it is `count` bytes.
    pub async fn input_so_far(&self, container: &str, exec: &str, count: usize) -> Vec<u8> {
        let mut input = self.process(container, exec).input.subscribe();
        input.wait_for(|(data, _)| data.len() >= count).await.expect("it is there").0.clone()
    }

    /// A container runs out of memory.
    pub fn run_out_of_memory(&self, container: &str) {
        let oom = lock(&self.0.oom);
        oom.as_ref().expect("booted").send(container.to_owned()).expect("the agent listens");
    }

    /// Serves the agent where `spec` says.
    fn boot(&self, spec: &VmSpec) {
        self.vanish();
        lock(&self.0.processes).clear();
        let Some(AgentChannel::Serial { socket }) = &spec.agent else {
            panic!("the rig's configuration says serial, not {:?}", spec.agent)
        };
        if *lock(&self.0.is_silent) {
            return;
        }
        let agent = FakeAgent::serve(socket).expect("the way is clear");
        self.answer_life(&agent);
        self.answer_streams(&agent);
        let (sender, receiver) = mpsc::unbounded_channel();
        *lock(&self.0.oom) = Some(sender);
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        agent.on("GetOOMEvent", move |_: msg::GetOOMEventRequest| {
            let receiver = Arc::clone(&receiver);
            async move {
                let mut event = msg::OOMEvent::new();
                let container = receiver.lock().await.recv().await;
                event.container_id =
                    container.ok_or((Code::UNAVAILABLE, "the guest is gone".to_owned()))?;
                Ok(event)
            }
        });
        for (method, message) in &*lock(&self.0.faults) {
            match message.is_empty() {
                true => agent.hang(method),
                false => agent.fail(method, Code::INTERNAL, message),
            }
        }
        *lock(&self.0.agent) = Some(agent);
    }

    fn answer_life(&self, agent: &FakeAgent) {
        let guest = self.clone();
        agent.on("CreateContainer", move |request: msg::CreateContainerRequest| {
            let key = key(&request.container_id, &request.exec_id);
            lock(&guest.0.processes).insert(key, Arc::default());
            std::future::ready(Ok(msg::GetDiagnosticDataResponse::new()))
        });
        let guest = self.clone();
        agent.on("ExecProcess", move |request: msg::ExecProcessRequest| {
            let key = key(&request.container_id, &request.exec_id);
            lock(&guest.0.processes).insert(key, Arc::default());
            std::future::ready(Ok(msg::GetDiagnosticDataResponse::new()))
        });
        let guest = self.clone();
        agent.on("SignalProcess", move |request: msg::SignalProcessRequest| {
            let is_all = request.exec_id.is_empty();
            let signal = i32::try_from(request.signal).expect("a signal");
            for ((container, exec), process) in &*lock(&guest.0.processes) {
                let is_meant = is_all || *exec == request.exec_id;
                if *container == request.container_id && is_meant && [9, 15].contains(&signal) {
                    process.end(128 + signal);
                }
            }
            std::future::ready(Ok(msg::GetDiagnosticDataResponse::new()))
        });
        let guest = self.clone();
        agent.on("WaitProcess", move |request: msg::WaitProcessRequest| {
            let process = guest.find(&request.container_id, &request.exec_id);
            async move {
                let mut exit = process?.exit.subscribe();
                let code = *exit.wait_for(Option::is_some).await.expect("it is there");
                let mut answer = msg::WaitProcessResponse::new();
                answer.status = code.expect("it was waited for");
                Ok(answer)
            }
        });
    }

    fn answer_streams(&self, agent: &FakeAgent) {
        for (method, is_out) in [("ReadStdout", true), ("ReadStderr", false)] {
            let guest = self.clone();
            agent.on(method, move |request: msg::ReadStreamRequest| {
                let process = guest.find(&request.container_id, &request.exec_id);
                async move {
                    let process = process?;
                    let pipe = if is_out { &process.out } else { &process.err };
                    let mut state = pipe.subscribe();
                    let has_news = |pipe: &Pipe| !pipe.data.is_empty() || pipe.is_closed;
                    drop(state.wait_for(has_news).await.expect("it is there"));
                    let mut answer = msg::ReadStreamResponse::new();
                    pipe.send_modify(|pipe| {
                        let count = pipe.data.len().min(request.len as usize);
                        answer.data = pipe.data.drain(..count).collect();
                    });
                    Ok(answer)
                }
            });
        }
        let guest = self.clone();
        agent.on("WriteStdin", move |request: msg::WriteStreamRequest| {
            let process = guest.find(&request.container_id, &request.exec_id);
            std::future::ready(process.map(|process| {
                // A pipe takes what fits, not all.
                let taken = request.data.len().min(10_000);
                process.input.send_modify(|(data, _)| data.extend(&request.data[..taken]));
                let mut answer = msg::WriteStreamResponse::new();
                answer.len = u32::try_from(taken).expect("small");
                answer
            }))
        });
        let guest = self.clone();
        agent.on("CloseStdin", move |request: msg::CloseStdinRequest| {
            let process = guest.find(&request.container_id, &request.exec_id);
            std::future::ready(process.map(|process| {
                process.input.send_modify(|(_, is_closed)| *is_closed = true);
                msg::GetDiagnosticDataResponse::new()
            }))
        });
    }
}

/// The fake VMM with this guest in it.
#[derive(Debug)]
pub struct GuestVmm {
    pub vmm: FakeVmm,
    pub guest: Guest,
    /// What was booted.
    pub specs: Arc<Mutex<Vec<VmSpec>>>,
}

impl Vmm for GuestVmm {
    fn name(&self) -> String {
        self.vmm.name()
    }

    fn boot<'a>(&'a self, spec: &'a VmSpec) -> VmFuture<'a, Result<Box<dyn Vm>, VmmError>> {
        Box::pin(async move {
            let vm = self.vmm.boot(spec).await?;
            lock(&self.specs).push(spec.clone());
            self.guest.boot(spec);
            Ok(vm)
        })
    }
}
