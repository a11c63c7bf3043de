//! `orchard exec`, its sessions, and `orchard cp`, against a real guest. The numbers are those of the acceptance cases.

use std::process::{Output, Stdio};

use orchard::model::access::Role;
use orchard::model::secret::Secret;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::access::people::account;
use crate::guest::guest_image;
use crate::harness::{Cluster, LIMIT, finish, succeed};
use crate::real::QemuCluster;
use crate::wait;

mod library;

/// `seq` up to here says some fifty million bytes.
const LINES: usize = 6_500_000;
/// And up to here some twenty million, which is more than is kept of a session.
const FEWER: usize = 2_700_000;

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_copies_work_in_a_real_guest() {
    let real = QemuCluster::start().await;
    let cluster = &real.cluster;
    create(cluster).await;
    streams_input_and_exit_code_are_the_commands_own(cluster).await;
    variables_and_words_arrive_as_they_are(cluster).await;
    a_terminal_has_the_users_size_and_follows_it(cluster).await;
    many_commands_run_at_once(cluster).await;
    a_slow_reader_gets_everything(cluster, &[], LINES).await;
    files_are_copied_there_and_back(cluster).await;
    folders_are_copied_there_and_back(cluster).await;
    what_cannot_be_copied_is_said_and_leaves_nothing(cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_their_clients() {
    let real = QemuCluster::start().await;
    let cluster = &real.cluster;
    create(cluster).await;
    a_session_goes_on_without_its_client_and_tells_all_since(cluster).await;
    a_session_is_its_accounts_own(cluster).await;
    a_session_takes_input_and_can_be_ended(cluster).await;
    library::a_program_runs_commands(cluster).await;
    sessions_end_with_the_token_of_their_account(cluster).await;
    a_slow_reader_gets_everything(cluster, &["--session", "slow"], FEWER).await;
    what_did_not_fit_is_told(cluster).await;
    sessions_are_bounded_in_number(cluster).await;
}

async fn create(cluster: &Cluster) {
    let image = guest_image();
    let create = ["create", "vm", "box", "--image", image.to_str().unwrap(), "--cpu", "1", "--memory", "128", "--wait"];
    cluster.run(&create).await;
}

/// The command line of an exec with `options`.
fn exec<'a>(options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    [&["exec", "vm"], options, &["box", "--"], command].concat()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn failed(output: &Output, code: i32, why: &str) {
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{told}");
    assert!(told.contains(why), "{told}");
}

/// Case 35.
async fn streams_input_and_exit_code_are_the_commands_own(cluster: &Cluster) {
    let script = "echo out; echo err >&2; read line; echo \"got $line\"; exit 7";
    let mut command = cluster.cli(&exec(&["-i"], &["sh", "-c", script]));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"a line\nmore").await.unwrap();
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
    let told = (output.status.code(), text(&output.stdout), text(&output.stderr));
    assert_eq!(told, (Some(7), "out\ngot a line\n".to_owned(), "err\n".to_owned()));

    // Without -i there is no input, whatever this process has.
    let mut command = cluster.cli(&exec(&[], &["cat"]));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let _open = child.stdin.take();
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));

    failed(&finish(cluster.cli(&exec(&[], &["no-such-program"]))).await, 127, "no-such-program");
    failed(&finish(cluster.cli(&exec(&["-p", "wrong"], &["true"]))).await, 1, "refused user");
}

/// Case 37.
async fn variables_and_words_arrive_as_they_are(cluster: &Cluster) {
    let odd = "it's \"$(exit 1)\" `x` \\ $HOME !\n second line";
    let variable = format!("ODD={odd}");
    let shown = "printf '%s|%s|%s' \"$ODD\" \"$PWD\" \"$1\"";
    let said = cluster.run(&exec(&["-e", &variable, "-w", "/tmp"], &["sh", "-c", shown, "sh", odd])).await;
    assert_eq!(said, format!("{odd}|/tmp|{odd}"));
    let mut inherited = cluster.cli(&exec(&["-e", "FROM_HERE"], &["sh", "-c", "echo $FROM_HERE"]));
    inherited.env("FROM_HERE", "a value");
    assert_eq!(succeed(inherited).await, "a value\n");
    failed(&finish(cluster.cli(&exec(&["-e", "1A=x"], &["true"]))).await, 2, "1A");
    let nowhere = finish(cluster.cli(&exec(&["-w", "/nowhere"], &["echo", "never"]))).await;
    assert!(!nowhere.status.success() && nowhere.stdout.is_empty(), "{nowhere:?}");
}

/// Gives `argv` a terminal of 24 × 80, types a line, makes the terminal 40 × 120, types another, and prints what was shown.
const TERMINAL: &str = r#"
import fcntl, os, pty, select, struct, sys, termios, time
def size(terminal, rows, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
pid, master = pty.fork()
if pid == 0:
    size(0, 24, 80)
    os.execvp(sys.argv[1], sys.argv[1:])
seen = b""
deadline = time.time() + 120
def until(what):
    global seen
    while what not in seen:
        if not select.select([master], [], [], max(0, deadline - time.time()))[0]:
            sys.exit("no %r in %r" % (what, seen))
        seen += os.read(master, 1024)
until(b"$ ")
os.write(master, b"stty size; echo fi''rst\r")
until(b"first\r\n")
size(master, 40, 120)
while b"40 120" not in seen:
    os.write(master, b"stty size; echo aga''in\r")
    seen, before = b"", seen
    until(b"again\r\n")
    seen = before + seen
os.write(master, b"exit 9\r")
try:
    while True:
        chunk = os.read(master, 1024)
        if not chunk: break
        seen += chunk
except OSError: pass
sys.stdout.write(seen.decode(errors="replace"))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

async fn in_terminal(cluster: &Cluster, options: &[&str]) -> Output {
    let orchard = cluster.cli(&exec(options, &["sh"]));
    let mut python = Command::new("python3");
    python.args(["-c", TERMINAL]).arg(orchard.as_std().get_program()).args(orchard.as_std().get_args());
    for (name, value) in orchard.as_std().get_envs() {
        python.env(name, value.unwrap());
    }
    finish({
        python.env("TERM", "xterm").stdin(Stdio::null()).kill_on_drop(true);
        python
    })
    .await
}

/// Case 36.
async fn a_terminal_has_the_users_size_and_follows_it(cluster: &Cluster) {
    for options in [&["-it"][..], &["-t", "--session", "terminal"]] {
        let output = in_terminal(cluster, options).await;
        let shown = text(&output.stdout);
        assert_eq!(output.status.code(), Some(9), "{shown}{}", text(&output.stderr));
        let (first, then) = (shown.find("24 80"), shown.find("40 120"));
        assert!(first.is_some() && then > first, "{options:?}: {shown}");
    }
    failed(&finish(cluster.cli(&exec(&["-t"], &["true"]))).await, 2, "terminal");
}

/// Case 40.
async fn many_commands_run_at_once(cluster: &Cluster) {
    let runs = (0..32).map(|n| async move {
        let script = format!("echo {n}; exit {n}");
        let mut run = cluster.cli(&exec(&["--wait", "500s"], &["sh", "-c", &script]));
        // All log in at once into a guest with one processor.
        let output = tokio::time::timeout(3 * LIMIT, run.output()).await.expect("all to end in time").unwrap();
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(n), format!("{n}\n")),
            "{}",
            text(&output.stderr)
        );
    });
    futures_util::future::join_all(runs).await;
}

/// Case 39.
async fn a_slow_reader_gets_everything(cluster: &Cluster, options: &[&str], lines: usize) {
    let last = lines.to_string();
    let mut command = cluster.cli(&exec(options, &["sh", "-c", &format!("seq {last}; exit 5")]));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut chunk = vec![0; 1 << 20];
    loop {
        let count = tokio::time::timeout(LIMIT, stdout.read(&mut chunk)).await.unwrap().unwrap();
        if count == 0 {
            break;
        }
        hash.update(&chunk[..count]);
        let (before, after) = (size / 10_000_000, (size + count) / 10_000_000);
        size += count;
        if before != after {
            // Time passes in which nothing is read, and the VM serves others.
            cluster.run(&exec(&[], &["true"])).await;
        }
    }
    assert_eq!(child.wait().await.unwrap().code(), Some(5));
    let expected: String = (1..=lines).map(|n| format!("{n}\n")).collect();
    assert_eq!((size, hash.finalize()), (expected.len(), Sha256::digest(expected)));
}

async fn sha(cluster: &Cluster, path: &str) -> String {
    cluster.run(&exec(&[], &["sha256sum", path])).await.split(' ').next().unwrap().trim_start_matches('\\').to_owned()
}

fn hex(data: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(data))
}

/// What a copy that failed or was done leaves beside its place.
async fn leftovers(cluster: &Cluster) -> String {
    cluster.run(&exec(&[], &["sh", "-c", "find / -xdev -name '.orchard-*' 2>/dev/null; true"])).await
}

async fn files_are_copied_there_and_back(cluster: &Cluster) {
    let odd = "it's a \"$(name)\"\n-of two lines";
    let here = cluster.dir.path().join(odd);
    let data: Vec<u8> = (0..5_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 16) as u8).collect();
    std::fs::write(&here, &data).unwrap();
    std::fs::set_permissions(&here, std::os::unix::fs::PermissionsExt::from_mode(0o751)).unwrap();
    let path = here.to_str().unwrap();
    for to in ["box:", "box:-x $HOME", "box:/tmp/", "box:~/renamed"] {
        cluster.run(&["cp", path, to]).await;
    }
    for there in [&format!("./{odd}")[..], "./-x $HOME", &format!("/tmp/{odd}"), "renamed"] {
        assert_eq!(sha(cluster, there).await, hex(&data), "{there}");
        let mode = cluster.run(&exec(&[], &["stat", "-c", "%a", there])).await;
        assert_eq!(mode, "751\n", "{there}");
    }
    // In the place of one that is there, and with nothing in it.
    std::fs::write(&here, "").unwrap();
    cluster.run(&["cp", path, "box:renamed"]).await;
    assert_eq!(sha(cluster, "renamed").await, hex(b""));

    let back = cluster.dir.path().join("back");
    std::fs::create_dir(&back).unwrap();
    cluster.run(&["cp", "box:-x $HOME", back.to_str().unwrap()]).await;
    cluster.run(&["cp", &format!("box:/tmp/{odd}"), back.join("as").to_str().unwrap()]).await;
    for came in ["-x $HOME", "as"] {
        assert!(std::fs::read(back.join(came)).unwrap() == data, "{came} came back changed");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(back.join(came)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o751);
    }
    assert_eq!(leftovers(cluster).await, "");
}

async fn folders_are_copied_there_and_back(cluster: &Cluster) {
    let from = cluster.dir.path().join("a tree");
    let long = format!("{0}/{0}/{0}", "long name ".repeat(9));
    std::fs::create_dir_all(from.join(&long)).unwrap();
    std::fs::create_dir(from.join("empty")).unwrap();
    std::fs::write(from.join(&long).join("deep"), vec![7; 300_000]).unwrap();
    std::fs::write(from.join("new\nline"), "two lines").unwrap();
    std::os::unix::fs::symlink("new\nline", from.join("link")).unwrap();
    let path = from.to_str().unwrap();
    failed(&finish(cluster.cli(&["cp", path, "box:tree"])).await, 1, "-r");
    cluster.run(&["cp", "-r", path, "box:tree"]).await;
    cluster.run(&["cp", "-r", path, "box:tree"]).await;
    cluster.run(&exec(&[], &["test", "-h", "tree/a tree/link"])).await;
    failed(&finish(cluster.cli(&["cp", "-r", path, "box:tree"])).await, 1, "--force");
    std::fs::write(from.join("more"), "").unwrap();
    cluster.run(&["cp", "-r", "--force", path, "box:tree"]).await;

    let back = cluster.dir.path().join("tree back");
    failed(&finish(cluster.cli(&["cp", "box:tree/a tree", back.to_str().unwrap()])).await, 1, "-r");
    cluster.run(&["cp", "-r", "box:tree/a tree", back.to_str().unwrap()]).await;
    let mut differ = Command::new("diff");
    differ.args(["-r", "--no-dereference"]).arg(&from).arg(&back).stdin(Stdio::null());
    assert_eq!(succeed(differ).await, "");
    assert_eq!(leftovers(cluster).await, "");
}

async fn what_cannot_be_copied_is_said_and_leaves_nothing(cluster: &Cluster) {
    let dir = cluster.dir.path().join("nothing");
    std::fs::create_dir(&dir).unwrap();
    let here = dir.to_str().unwrap();
    for (arguments, why) in [
        (&["cp", "box:missing", here][..], "there is no file missing"),
        (&["cp", "box:/etc/shadow", here], "ermission denied"),
        (&["cp", "box:/dev/null", here], "neither a file"),
        (&["cp", "box:/etc/passwd", "/nonexistent/x"], "/nonexistent"),
        (&["cp", "/nonexistent/x", "box:"], "/nonexistent/x"),
        (&["cp", "/etc/passwd", "box:/root/x"], "ermission denied"),
        (&["cp", "/etc/passwd", "box:missing/"], "no folder"),
        (&["cp", "/etc/passwd", "never-was:x"], "never-was"),
    ] {
        failed(&finish(cluster.cli(arguments)).await, 1, why);
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    assert_eq!(leftovers(cluster).await, "");
}

/// Waits until `child` has shown `what`, and yields all that it has shown.
async fn shows(child: &mut Child, what: &str) -> String {
    let stdout = child.stdout.as_mut().unwrap();
    let mut seen = Vec::new();
    while !text(&seen).contains(what) {
        let count = tokio::time::timeout(LIMIT, stdout.read_buf(&mut seen)).await.unwrap().unwrap();
        assert!(count > 0, "ended before {what:?}: {}", text(&seen));
    }
    text(&seen)
}

/// Case 38.
async fn a_session_goes_on_without_its_client_and_tells_all_since(cluster: &Cluster) {
    let script = "echo one; while [ ! -e go ]; do sleep 0.1; done; echo two >&2; echo three; exit 7";
    let begin = exec(&["--session", "s"], &["sh", "-c", script]);
    let mut first = cluster.cli(&begin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(shows(&mut first, "one\n").await, "one\n");
    // Ctrl-C ends the client, and it says how to come back.
    let pid = first.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = tokio::time::timeout(LIMIT, first.wait_with_output()).await.unwrap().unwrap();
    failed(&output, 130, "--session s --attach --after 1");

    let other = exec(&["--session", "s"], &["echo", "other"]);
    failed(&finish(cluster.cli(&other)).await, 1, "runs something else");
    let unknown = ["exec", "vm", "--session", "unknown", "--attach", "box"];
    failed(&finish(cluster.cli(&unknown)).await, 1, "no session unknown");
    let listed = cluster.json(&["list", "execs", "vm", "box"]).await;
    assert_eq!((&listed[0]["session"], &listed[0]["ended"]), (&"s".into(), &serde_json::Value::Null), "{listed}");
    crate::completion::offered_next(cluster, &["exec", "vm", "box", "--session"], "s").await;

    // With the same command it is attached to, not begun anew; a second client sees what the first does.
    let mut second = cluster.cli(&begin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(shows(&mut second, "one\n").await, "one\n");
    cluster.run(&exec(&[], &["touch", "go"])).await;
    let output = tokio::time::timeout(LIMIT, second.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stdout), text(&output.stderr)),
        (Some(7), "three\n".into(), "two\n".into())
    );

    // After its end, from any number on.
    for (after, out, err) in [("0", "one\nthree\n", "two\n"), ("1", "three\n", "two\n"), ("3", "", "")] {
        let attach = ["exec", "vm", "--session", "s", "--attach", "--after", after, "box"];
        let output = finish(cluster.cli(&attach)).await;
        let told = (output.status.code(), text(&output.stdout), text(&output.stderr));
        assert_eq!(told, (Some(7), out.to_owned(), err.to_owned()), "after {after}");
    }
    let table = cluster.run(&["list", "execs", "vm", "box"]).await;
    assert!(table.contains("exit status 7") && table.contains("1 to 3"), "{table}");
}

async fn a_session_is_its_accounts_own(cluster: &Cluster) {
    let other = account(cluster, "other", &[Role::ComputeConnect]).await;
    let home = cluster.dir.path().join("other");
    let listed = succeed(other.cli(&home, &["list", "execs", "vm", "box", "-o", "json"])).await;
    assert_eq!(listed.trim(), "[]");
    for arguments in
        [&["exec", "vm", "--session", "s", "--attach", "box"][..], &["exec", "vm", "--session", "s", "--end", "box"]]
    {
        failed(&finish(other.cli(&home, arguments)).await, 1, "no session s");
    }
    // One of the same name is another one.
    let own = finish(other.cli(&home, &exec(&["--session", "s"], &["echo", "mine"]))).await;
    assert_eq!((own.status.code(), text(&own.stdout)), (Some(0), "mine\n".to_owned()), "{}", text(&own.stderr));
}

async fn a_session_takes_input_and_can_be_ended(cluster: &Cluster) {
    let begin = exec(&["-i", "--session", "in"], &["sh", "-c", "cat; echo end; exec sleep 600"]);
    let mut child = cluster.cli(&begin);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"typed\n").await.unwrap();
    shows(&mut child, "typed\n").await;
    drop(stdin);
    shows(&mut child, "end\n").await;
    cluster.run(&["exec", "vm", "--session", "in", "--end", "box"]).await;
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
    failed(&output, 143, "signal TERM");
    wait::until("the command to end with its session", LIMIT, || async {
        let left = cluster.run(&exec(&[], &["sh", "-c", "ps | grep '[s]leep 600' || true"])).await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// Whoever had a token that is worth nothing any more has left no command behind, and nothing for who has the name next.
async fn sessions_end_with_the_token_of_their_account(cluster: &Cluster) {
    let (home, stays) = (cluster.dir.path().join("leaver"), exec(&["--session", "stays"], &["sleep", "5432"]));
    let mut bystander = cluster.cli(&stays).stdout(Stdio::null()).spawn().unwrap();
    wait::until("the bystander's session to begin", LIMIT, || async {
        let listed = cluster.json(&["list", "execs", "vm", "box"]).await;
        if listed.to_string().contains("\"stays\"") { Ok(()) } else { Err(listed) }
    })
    .await;
    let mut leaver = account(cluster, "leaver", &[Role::ComputeConnect]).await;
    for (take_away, seconds) in [("rotate", "4321"), ("delete", "4322")] {
        let script = format!("echo begun; exec sleep {seconds}");
        let begin = exec(&["--session", "left"], &["sh", "-c", &script]);
        let mut child = leaver.cli(&home, &begin).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        shows(&mut child, "begun\n").await;
        let pid = child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        tokio::time::timeout(LIMIT, child.wait()).await.unwrap().unwrap();
        let listed = succeed(leaver.cli(&home, &["list", "execs", "vm", "box", "-o", "json"])).await;
        assert!(listed.contains("left"), "{listed}");

        let token = cluster.run(&[take_away, "service-account", "leaver"]).await;
        leaver = match take_away {
            "rotate" => cluster.access.of("leaver", &Secret::new(token.trim())),
            _ => account(cluster, "leaver", &[Role::ComputeConnect]).await,
        };
        wait::until("the session to be nobody's", LIMIT, || async {
            let listed = finish(leaver.cli(&home, &["list", "execs", "vm", "box", "-o", "json"])).await;
            if listed.stdout == b"[]\n" { Ok(()) } else { Err(listed) }
        })
        .await;
        let attach = ["exec", "vm", "--session", "left", "--attach", "box"];
        failed(&finish(leaver.cli(&home, &attach)).await, 1, "no session left");
        let left = format!("ps | grep '[s]leep {seconds}' || true");
        wait::until("the command to end with its account", LIMIT, || async {
            let left = cluster.run(&exec(&[], &["sh", "-c", &left])).await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    }
    let others = cluster.json(&["list", "execs", "vm", "box"]).await;
    let of_bystander = others.as_array().unwrap().iter().find(|session| session["session"] == "stays").unwrap();
    assert_eq!(of_bystander["ended"], serde_json::Value::Null, "{others}");
    cluster.run(&["exec", "vm", "--session", "stays", "--end", "box"]).await;
    tokio::time::timeout(LIMIT, bystander.wait()).await.unwrap().unwrap();
}

/// With nobody attached a command runs on, and what had to go is told by its numbers.
async fn what_did_not_fit_is_told(cluster: &Cluster) {
    let script = format!("echo begun; while [ ! -e flood ]; do sleep 0.1; done; seq {FEWER}; echo done");
    let begin = exec(&["--session", "flood"], &["sh", "-c", &script]);
    let mut first = cluster.cli(&begin).stdout(Stdio::piped()).spawn().unwrap();
    shows(&mut first, "begun\n").await;
    first.kill().await.unwrap();
    // The relay hears of a client that was killed by its silence.
    wait::until("the session to be left alone", LIMIT, || async {
        let listed = cluster.json(&["list", "execs", "vm", "box"]).await;
        let of = listed.as_array().unwrap().iter().find(|session| session["session"] == "flood").unwrap().clone();
        if of["attached"] == 0 { Ok(()) } else { Err(of) }
    })
    .await;
    cluster.run(&exec(&[], &["touch", "flood"])).await;
    wait::until("the session to end by itself", LIMIT, || async {
        let listed = cluster.json(&["list", "execs", "vm", "box"]).await;
        let of = listed.as_array().unwrap().iter().find(|session| session["session"] == "flood").unwrap().clone();
        if of["code"] == 0 { Ok(()) } else { Err(of) }
    })
    .await;
    let output = finish(cluster.cli(&["exec", "vm", "--session", "flood", "--attach", "--after", "1", "box"])).await;
    let told = text(&output.stderr);
    assert!(told.starts_with("records 2 to ") && told.contains("not kept"), "{told}");
    let kept = text(&output.stdout);
    assert!(
        kept.len() > 7_000_000 && kept.len() < 17_000_000 && kept.ends_with(&format!("\n{FEWER}\ndone\n")),
        "{}",
        kept.len()
    );
}

async fn sessions_are_bounded_in_number(cluster: &Cluster) {
    for number in 0..32 {
        let name = format!("n{number}");
        let output = finish(cluster.cli(&exec(&["--session", &name], &["true"]))).await;
        if !output.status.success() {
            failed(&output, 1, "limit");
            // One that has ended makes room when that is said.
            cluster.run(&["exec", "vm", "--session", "s", "--end", "box"]).await;
            cluster.run(&exec(&["--session", &name], &["true"])).await;
            return;
        }
    }
    panic!("there is no limit");
}
