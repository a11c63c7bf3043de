//! The SSH client against the synthetic guest; `real` runs the same checks against OpenSSH and dropbear.

mod keys;
mod real;
pub mod sshd;
mod terminal;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use orchard::model::event::LogStream;
use orchard::model::secret::Secret;
use orchard::model::vm::{StartupScript, VmSpec};
use orchard::model::{CopyId, VmUid};
use orchard::ssh::client::{Program, Pty, Session, Stdio};
use orchard::ssh::script::{self, ScriptError};
use orchard::ssh::terminal::Size;
use orchard::ssh::{AcceptAny, ExitStatus, HostKey, Login, SshError};
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::{CopySpec, GuestStream, Progress, Runtime};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::server::{self, Auth};
use russh::{MethodKind, MethodSet};
use tokio::io::{AsyncReadExt, AsyncWriteExt, empty, sink};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

struct Vm {
    runtime: Synthetic,
    copy: CopySpec,
}

impl Vm {
    async fn start(spec: VmSpec) -> Vm {
        let id = CopyId { uid: VmUid(uuid::Uuid::new_v4()), attempt: 0 };
        let copy = CopySpec { id, name: "guest-1".parse().unwrap(), spec, cpu: 1, memory: 1 };
        let runtime = Synthetic::new();
        runtime.create(&copy, &Progress::new().0).await.unwrap();
        runtime.start(&copy).await.unwrap();
        Vm { runtime, copy }
    }

    async fn dial(&self) -> GuestStream {
        self.runtime.dial(self.copy.id, 22).await.unwrap()
    }

    async fn session(&self) -> Session {
        let login = login(self.copy.spec.guest_user(), self.copy.spec.guest_password().expose());
        Session::connect(self.dial().await, login, AcceptAny, DEADLINE).await.unwrap()
    }
}

fn login(user: &str, password: &str) -> Login {
    Login::with_password(user, Secret::new(password))
}

async fn session() -> (Vm, Session) {
    let vm = Vm::start(VmSpec::default()).await;
    let session = vm.session().await;
    (vm, session)
}

async fn exec(session: &Session, command: &str, input: &[u8]) -> (ExitStatus, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let stdio = Stdio { stdin: input, stdout: &mut out, stderr: &mut err };
    let status = timeout(DEADLINE, session.exec(command, stdio)).await.unwrap().unwrap();
    (status, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn code(code: u32) -> ExitStatus {
    ExitStatus::Code(code)
}

fn startup_script(content: &str, env: &[(&str, &str)]) -> StartupScript {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect();
    StartupScript { script_content: content.to_owned(), env }
}

type Lines = Vec<(LogStream, String)>;

async fn run_script(session: &Session, script: &StartupScript) -> (Result<ExitStatus, ScriptError>, Lines) {
    let (sender, mut receiver) = mpsc::channel(1); // the smallest: back-pressure all the way
    let collect = async {
        let mut lines = Vec::new();
        while let Some(line) = receiver.recv().await {
            lines.push(line);
        }
        lines
    };
    timeout(DEADLINE, async { tokio::join!(script::run(session, script, 8192, sender), collect) }).await.unwrap()
}

/// What every server must pass. Only uses what the synthetic guest's shell knows.
async fn commands_work(session: &Session) {
    assert_eq!(exec(session, "echo out; echo err >&2; exit 7", b"").await, (code(7), "out\n".into(), "err\n".into()));
    assert_eq!(
        exec(session, "sh -s", b"echo one\necho two\nexit 5\n").await,
        (code(5), "one\ntwo\n".into(), "".into())
    );
    assert_eq!(exec(session, "cat", b"through").await.1, "through");

    let big: Vec<u8> = (0..1_000_000u32).flat_map(|i| [(i % 95 + 32) as u8]).collect();
    let (status, echoed, _) = exec(session, "cat", &big).await;
    assert!(status.success() && echoed.as_bytes() == big, "1 MB in and out again");

    let (status, long, _) = exec(session, "seq 1200000", b"").await;
    assert!(status.success() && long.len() == 8_488_896 && long.ends_with("1200000\n"), "{} bytes", long.len());
}

async fn what_was_ended_before_it_began_does_not_begin(session: &Session) {
    let mut out = Vec::new();
    let stdio = Stdio { stdin: empty(), stdout: &mut out, stderr: sink() };
    let ended = session.exec_until(Program::Command("echo it runs"), None, stdio, async {}).await;
    assert!(matches!(&ended, Err(SshError::Lost(why)) if why.contains("before it began")), "{ended:?}");
    assert!(out.is_empty(), "{out:?}");
    assert_eq!(exec(session, "echo next", b"").await.1, "next\n", "the session is none the worse for it");
}

async fn a_command_ends_though_its_input_is_open(session: &Session) {
    let (near, _open) = tokio::io::duplex(16);
    let stdio = Stdio { stdin: near, stdout: sink(), stderr: sink() };
    let status = timeout(DEADLINE, session.exec("exit 3", stdio)).await.unwrap().unwrap();
    assert_eq!(status, code(3));
}

async fn a_closed_output_ends_the_command(session: &Session) {
    let (mut reader, writer) = tokio::io::duplex(64);
    let stdio = Stdio { stdin: empty(), stdout: writer, stderr: sink() };
    let head = async {
        reader.read_exact(&mut [0; 16]).await.unwrap();
        drop(reader);
    };
    let (ended, ()) =
        timeout(DEADLINE, async { tokio::join!(session.exec("seq 100000000", stdio), head) }).await.unwrap();
    match ended {
        Err(SshError::Local { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::BrokenPipe),
        other => panic!("{other:?}"),
    }
}

async fn scripts_work(session: &Session) {
    let odd = "it's \"$(exit 1)\" `x` \\ $HOME !\n second line\n";
    let script = startup_script("echo \"$ODD\"\necho $FOO\ncat\necho on stderr >&2", &[("ODD", odd), ("FOO", "Bar")]);
    let (status, lines) = run_script(session, &script).await;
    assert_eq!(status.unwrap(), code(0));
    let (out, err): (Lines, Lines) = lines.into_iter().partition(|(stream, _)| *stream == LogStream::Stdout);
    let text = |lines: Lines| lines.into_iter().map(|(_, line)| line + "\n").collect::<String>();
    assert_eq!((text(out), text(err)), (format!("{odd}\nBar\n"), "on stderr\n".to_owned()));

    let (status, lines) = run_script(session, &startup_script("seq 1000", &[])).await;
    assert_eq!(status.unwrap(), code(0));
    let numbers: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
    assert_eq!(numbers, (1..=1000).map(|n| n.to_string()).collect::<Vec<_>>());

    let (status, lines) = run_script(session, &startup_script("echo -n half a line\nexit 123\necho never", &[])).await;
    assert_eq!(status.unwrap(), code(123));
    assert_eq!(lines, [(LogStream::Stdout, "half a line".to_owned())]);

    let (status, lines) = run_script(session, &startup_script("true\nfalse\necho never", &[])).await;
    assert_eq!((status.unwrap(), lines), (code(1), vec![]));

    let (status, _) = run_script(session, &startup_script("echo x", &[("1A", "")])).await;
    assert!(matches!(status, Err(ScriptError::Text(_))));
}

/// `stty size` before and after the window changes.
async fn terminals_work(session: &Session) {
    let (sizes, resized) = watch::channel(Size { columns: 80, rows: 24 });
    let pty = Pty { term: "xterm".into(), size: Size { columns: 80, rows: 24 }, resized };
    let (keys, mut keyboard) = tokio::io::duplex(1024);
    let (screen, mut shown) = tokio::io::duplex(64 * 1024);
    let user = async move {
        let mut seen = String::new();
        keyboard.write_all(b"stty size\r").await.unwrap();
        see(&mut shown, &mut seen, "24 80").await;
        sizes.send_replace(Size { columns: 120, rows: 40 });
        while !seen.contains("40 120") {
            keyboard.write_all(b"stty size\r").await.unwrap();
            see(&mut shown, &mut seen, "\n").await;
        }
        keyboard.write_all(b"exit 4\r").await.unwrap();
        while shown.read_buf(&mut Vec::with_capacity(1024)).await.unwrap() > 0 {}
    };
    let stdio = Stdio { stdin: keys, stdout: screen, stderr: sink() };
    let run = session.exec_in_terminal(Program::LoginShell, pty, stdio);
    let (status, ()) = timeout(DEADLINE, async { tokio::join!(run, user) }).await.unwrap();
    assert_eq!(status.unwrap(), code(4));
}

async fn see(shown: &mut (impl AsyncReadExt + Unpin), seen: &mut String, what: &str) {
    let from = seen.len();
    while !seen[from..].contains(what) {
        let mut bytes = Vec::with_capacity(1024);
        assert!(shown.read_buf(&mut bytes).await.unwrap() > 0, "ended before {what:?}: {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&bytes));
    }
}

#[tokio::test]
async fn a_synthetic_guest_runs_commands() {
    let (_vm, session) = session().await;
    commands_work(&session).await;
    what_was_ended_before_it_began_does_not_begin(&session).await;
    a_command_ends_though_its_input_is_open(&session).await;
    a_closed_output_ends_the_command(&session).await;
    assert_eq!(exec(&session, "frobnicate -x", b"").await.0, code(127));
    assert!(exec(&session, "uname -a", b"").await.1.starts_with("Linux guest-1 synthetic"));
    session.close().await;
}

#[tokio::test]
async fn a_synthetic_guest_runs_scripts_and_terminals() {
    let (_vm, session) = session().await;
    scripts_work(&session).await;
    terminals_work(&session).await;
}

#[tokio::test]
async fn many_commands_share_a_session() {
    let (_vm, session) = session().await;
    let runs = (0..32).map(|n| {
        let session = &session;
        async move { assert_eq!(exec(session, &format!("echo {n}; exit {n}"), b"").await.0, code(n)) }
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn a_wrong_password_or_user_is_refused() {
    let vm = Vm::start(VmSpec { password: Some(Secret::new("right")), ..VmSpec::default() }).await;
    for (user, password) in [("admin", "wrong"), ("root", "right"), ("admin", "")] {
        let refused = Session::connect(vm.dial().await, login(user, password), AcceptAny, DEADLINE).await.unwrap_err();
        assert!(matches!(&refused, SshError::AuthRefused { user: named, .. } if named == user), "{refused:?}");
    }
    vm.session().await;
}

/// A server that takes no password as such but asks for it, as PAM may be set up.
struct Asking;

impl server::Handler for Asking {
    type Error = russh::Error;

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _: &str,
        _: &str,
        response: Option<server::Response<'a>>,
    ) -> Result<Auth, russh::Error> {
        let answers: Vec<Vec<u8>> = response.into_iter().flatten().map(|answer| answer.to_vec()).collect();
        Ok(match answers.as_slice() {
            [] => Auth::Partial {
                name: "".into(),
                instructions: "".into(),
                prompts: vec![("Your pet's name? ".into(), true), ("Password: ".into(), false)].into(),
            },
            [pet, password] if pet.is_empty() && password == b"right" => Auth::Accept,
            _ => Auth::reject(),
        })
    }
}

#[tokio::test]
async fn a_server_that_asks_for_the_password_gets_it_and_nothing_else_does() {
    for (password, accepted) in [("right", true), ("wrong", false)] {
        let (near, far) = tokio::io::duplex(1024 * 1024);
        let config = server::Config {
            methods: MethodSet::from([MethodKind::KeyboardInteractive].as_slice()),
            auth_rejection_time: Duration::ZERO,
            keys: vec![PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]))],
            ..server::Config::default()
        };
        let _server = orchard::task::spawn(async move {
            let running = server::run_stream(Arc::new(config), far, Asking).await?;
            running.await
        });
        let connected = Session::connect(near, login("admin", password), AcceptAny, DEADLINE).await;
        assert_eq!(connected.is_ok(), accepted, "{connected:?}");
    }
}

#[tokio::test]
async fn the_host_key_check_decides() {
    let vm = Vm::start(VmSpec::default()).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..2 {
        let seen = seen.clone();
        let note = move |key: &HostKey| {
            seen.lock().unwrap().push(key.clone());
            Ok(())
        };
        Session::connect(vm.dial().await, login("admin", "admin"), note, DEADLINE).await.unwrap();
    }
    let seen = seen.lock().unwrap().clone();
    assert!(seen[0] == seen[1] && seen[0].fingerprint.starts_with("SHA256:") && seen[0].algorithm == "ssh-ed25519");
    let refuse = |_: &HostKey| Err("another one is known".to_owned());
    let refused = Session::connect(vm.dial().await, login("admin", "admin"), refuse, DEADLINE).await.unwrap_err();
    assert!(matches!(refused, SshError::HostKeyRefused { key, reason } if key == seen[0] && reason.contains("known")));
}

#[tokio::test]
async fn silence_garbage_and_absence_are_told_apart() {
    let (near, _far) = tokio::io::duplex(64);
    let started = Instant::now();
    let silent = Session::connect(near, login("a", "b"), AcceptAny, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(silent, SshError::Timeout { .. }) && started.elapsed() < DEADLINE, "{silent:?}");

    let (near, far) = tokio::io::duplex(64);
    drop(far);
    let absent = Session::connect(near, login("a", "b"), AcceptAny, DEADLINE).await.unwrap_err();
    assert!(matches!(absent, SshError::Closed), "{absent:?}");

    let (near, mut far) = tokio::io::duplex(4096);
    far.write_all(b"SSH-2.0-x\r\nthis is not a packet, whatever its length may be").await.unwrap();
    let garbage = Session::connect(near, login("a", "b"), AcceptAny, Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(garbage, SshError::Protocol(_) | SshError::Timeout { .. }), "{garbage:?}");
}

#[tokio::test]
async fn a_given_up_connect_closes_its_stream() {
    let (near, mut far) = tokio::io::duplex(4096);
    let connect = Session::connect(near, login("a", "b"), AcceptAny, Duration::from_millis(200));
    far.write_all(b"SSH-2.0-x\r\n").await.unwrap(); // so that a task of its own has the stream by then
    assert!(matches!(connect.await, Err(SshError::Timeout { .. })));
    let mut rest = Vec::new();
    timeout(DEADLINE, far.read_to_end(&mut rest)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_guest_that_dies_ends_what_runs_on_it() {
    let (vm, session) = session().await;
    let (sender, mut lines) = mpsc::channel::<(LogStream, String)>(4);
    let script = startup_script("echo begun\nsleep 600", &[]);
    let crash = async {
        assert_eq!(lines.recv().await.unwrap().1, "begun");
        vm.runtime.host().crash(vm.copy.id, "power cut");
    };
    let (ended, ()) =
        timeout(DEADLINE, async { tokio::join!(script::run(&session, &script, 8192, sender), crash) }).await.unwrap();
    assert!(matches!(ended, Err(ScriptError::Ssh(SshError::Lost(_)))), "{ended:?}");
    let stdio = Stdio { stdin: empty(), stdout: sink(), stderr: sink() };
    assert!(matches!(session.exec("true", stdio).await, Err(SshError::Lost(_))) && session.is_closed());
}

#[tokio::test]
async fn a_guest_can_switch_itself_off() {
    let (vm, session) = session().await;
    let stdio = Stdio { stdin: empty(), stdout: sink(), stderr: sink() };
    let (exit, _) = tokio::join!(vm.runtime.wait_exit(vm.copy.id), session.exec("poweroff", stdio));
    assert_eq!(exit, orchard::worker::runtime::Exit::PoweredOff);
}

#[tokio::test]
async fn a_log_that_nobody_reads_ends_the_script() {
    let (_vm, session) = session().await;
    let (sender, lines) = mpsc::channel(1);
    drop(lines);
    let ended = script::run(&session, &startup_script("seq 10", &[]), 8192, sender).await;
    assert!(matches!(ended, Err(ScriptError::Ssh(SshError::Local { .. }))), "{ended:?}");
    assert!(exec(&session, "true", b"").await.0.success(), "the session is still good");
}

/// Passes bytes between the two ends until `silent`, then drops everything that comes, as a broken network does.
async fn pass_on(near: tokio::io::DuplexStream, far: GuestStream, silent: CancellationToken) {
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    tokio::select! {
        _ = tokio::io::copy(&mut near_read, &mut far_write) => {}
        _ = tokio::io::copy(&mut far_read, &mut near_write) => {}
        () = silent.cancelled() => {}
    }
    let _ = tokio::io::copy(&mut near_read, &mut sink()).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_is_given_up_after_a_minute() {
    let vm = Vm::start(VmSpec::default()).await;
    let (near, far) = tokio::io::duplex(1024 * 1024);
    let silent = CancellationToken::new();
    let _network = orchard::task::spawn(pass_on(far, vm.dial().await, silent.clone()));
    let session = Session::connect(near, login("admin", "admin"), AcceptAny, DEADLINE).await.unwrap();

    let stdio = Stdio { stdin: empty(), stdout: sink(), stderr: sink() };
    let quiet = session.exec("sleep 1800", stdio).await.unwrap();
    assert!(quiet.success(), "a quiet command is not a silent peer");

    silent.cancel();
    let begun = tokio::time::Instant::now();
    let stdio = Stdio { stdin: empty(), stdout: sink(), stderr: sink() };
    let ended = session.exec("true", stdio).await.unwrap_err();
    assert!(matches!(ended, SshError::Timeout { .. }), "{ended:?}");
    let gone = async {
        while !session.is_closed() {
            tokio::task::yield_now().await;
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    };
    gone.await;
    assert!(begun.elapsed() < Duration::from_secs(70), "{:?}", begun.elapsed());
}
