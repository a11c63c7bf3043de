//! `orchard vnc`: pictures compared with those that a stock VNC client takes through the same command's forward, of QEMU's own
//! screen and of servers in guests that ask for a password; and what is said where there is no screen.

mod apple;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orchard::worker::runtime::synthetic::Synthetic;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use self::apple::Mac;
use crate::guest::guest_image;
use crate::harness::{Cluster, LIMIT, finish, succeed};
use crate::real::QemuCluster;
use crate::tart::guest::Guest;
use crate::tart::host::{Host, LIMITS};
use crate::terminal::client;
use crate::wait;

/// A picture out of a file: its size, and red, green and blue of each pixel.
#[derive(PartialEq, Eq)]
struct Seen {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}, of {} colours", self.width, self.height, self.colours())
    }
}

impl Seen {
    fn parse(png: &[u8]) -> Self {
        let mut decoder = png::Decoder::new(std::io::Cursor::new(png));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        let pixels = match frame.color_type {
            png::ColorType::Rgb => pixels,
            png::ColorType::Rgba => pixels.chunks(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
            other => panic!("{other:?}"),
        };
        Self { width: frame.width, height: frame.height, pixels }
    }

    fn of(path: &Path) -> Self {
        Self::parse(&std::fs::read(path).unwrap())
    }

    fn colours(&self) -> usize {
        self.pixels.chunks(3).collect::<std::collections::HashSet<_>>().len()
    }
}

/// A stock client at this machine's end of a forward; `password` and more as it takes them.
async fn capture(vncdo: &Path, address: &str, options: &[&str], file: &Path) -> Output {
    let mut command = Command::new(vncdo);
    let server = address.strip_prefix("vnc://").unwrap().rsplit('@').next().unwrap().replacen(':', "::", 1);
    command.args(["-s", &server, "-t", "60"]).args(options).arg("capture").arg(file);
    command.stdin(Stdio::null()).kill_on_drop(true);
    finish(command).await
}

/// `orchard vnc` that forwards, and the address that it printed.
struct Forward {
    _child: Child,
    address: String,
}

impl Forward {
    async fn start(cluster: &Cluster, options: &[&str]) -> Self {
        let mut command = cluster.cli(&[&["vnc", "vm", "box"], options].concat());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap();
        Self { _child: child, address: line.expect("it prints an address") }
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Both take pictures until they have the same one: the cursor of a console blinks.
async fn the_same_is_seen(cluster: &Cluster, vncdo: &Path, ours: &[&str], theirs: &[&str]) -> Seen {
    let forward = Forward::start(cluster, &[&["--no-viewer"], &ours[..ours.len().min(4)]].concat()).await;
    let (own, other) = (cluster.dir.path().join("own.png"), cluster.dir.path().join("other.png"));
    let own_path = own.to_str().unwrap();
    wait::until("both clients to see the same", LIMIT, || async {
        let arguments = [&["vnc", "vm", "box", "--screenshot", own_path, "--force"], ours].concat();
        let printed = cluster.run(&arguments).await;
        let taken = capture(vncdo, &forward.address, theirs, &other).await;
        assert!(taken.status.success(), "{}", told(&taken));
        let (own, other) = (Seen::of(&own), Seen::of(&other));
        assert_eq!(printed, format!("{own_path}: {} x {}\n", own.width, own.height));
        if own == other { Ok(own) } else { Err((own, other)) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_of_a_real_guest_is_what_a_stock_client_sees() {
    let Some(vncdo) = client("vncdo") else { return };
    let real = QemuCluster::start().await;
    let cluster = &real.cluster;
    let image = guest_image();
    let create = ["create", "vm", "box", "--image", image.to_str().unwrap(), "--cpu", "1", "--memory", "128", "--wait"];
    cluster.run(&create).await;
    // The console's cursor blinks: who has asked QEMU for one picture may never see what who asks for more sees.
    cluster.run(&["ssh", "vm", "box", r"printf '\033[?25l' | sudo tee /dev/tty1"]).await;
    let before = the_same_is_seen(cluster, &vncdo, &[], &[]).await;
    assert!(before.width >= 640 && before.height >= 400 && before.colours() > 1, "{before:?}");

    // What is written on the console is seen.
    let write = "for n in $(seq 20); do echo \"$n ################################\"; done | sudo tee /dev/tty1";
    cluster.run(&["ssh", "vm", "box", write]).await;
    let after = the_same_is_seen(cluster, &vncdo, &[], &[]).await;
    assert_ne!(before, after);

    a_picture_goes_where_it_is_sent(cluster).await;
    a_viewer_is_started(cluster, &vncdo).await;
    // A VM that does not run has no screen, and that is said.
    cluster.run(&["stop", "vm", "box", "--wait"]).await;
    let started = Instant::now();
    let stopped = finish(cluster.cli(&["vnc", "vm", "box", "--wait", "0s", "--screenshot", "-"])).await;
    assert_eq!((stopped.status.code(), stopped.stdout.len()), (Some(1), 0));
    assert!(told(&stopped).contains("VM box is stopped; `orchard start vm box` switches it on"), "{}", told(&stopped));
    assert!(started.elapsed() < Duration::from_secs(30));
}

async fn a_picture_goes_where_it_is_sent(cluster: &Cluster) {
    let shown = finish(cluster.cli(&["vnc", "vm", "box", "--screenshot", "-"])).await;
    assert!(shown.status.success(), "{}", told(&shown));
    assert!(Seen::parse(&shown.stdout).width >= 640);
    let mine = cluster.dir.path().join("mine.png");
    std::fs::write(&mine, "mine").unwrap();
    let refused = finish(cluster.cli(&["vnc", "vm", "box", "--screenshot", mine.to_str().unwrap()])).await;
    assert!(refused.status.code() == Some(1) && told(&refused).contains("--force"), "{}", told(&refused));
    assert_eq!(std::fs::read(&mine).unwrap(), b"mine");
}

/// The system's viewer here is the stock client, called as TigerVNC's would be.
async fn a_viewer_is_started(cluster: &Cluster, vncdo: &Path) {
    let bin = cluster.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let seen = cluster.dir.path().join("seen.png");
    let script = format!(
        "#!/bin/sh\n[ \"$VNC_USERNAME $VNC_PASSWORD\" = 'ann se cret' ] || exit 9\nexec '{}' -s \"$1\" capture '{}'\n",
        vncdo.display(),
        seen.display()
    );
    std::fs::write(bin.join("vncviewer"), script).unwrap();
    std::fs::set_permissions(bin.join("vncviewer"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = cluster.cli(&["vnc", "vm", "box", "-u", "ann", "-p", "se cret"]);
    command.env("DISPLAY", ":none").env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    wait::until("the viewer to have seen the screen", LIMIT, || async {
        match std::fs::read(&seen) {
            Ok(png) if png.ends_with(b"IEND\xaeB`\x82") => Ok(()),
            other => Err(other.map(|png| png.len())),
        }
    })
    .await;
    assert!(Seen::of(&seen).width >= 640);
    assert!(child.try_wait().unwrap().is_none(), "the way to the VM stays until it is stopped");
    let id = i32::try_from(child.id().unwrap()).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(id).unwrap(), rustix::process::Signal::INT).unwrap();
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).await.unwrap();
    assert!(printed.starts_with("vnc://ann@127.0.0.1:") && !printed.contains("cret"), "{printed}");
    assert_eq!(tokio::time::timeout(LIMIT, child.wait()).await.unwrap().unwrap().code(), Some(130));
}

/// A Tart VM on a worker of this machine, and its guest's address.
async fn tart() -> (Host, Guest, Cluster, Ipv4Addr) {
    let host = Host::tart();
    let guest = Guest::of(&host).await;
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", host.shared(LIMITS)).await;
    let create = [
        "create",
        "vm",
        "box",
        "--image",
        "ghcr.io/x/y:1",
        "--runtime",
        "tart",
        "--cpu",
        "1",
        "--memory",
        "64",
        "--wait",
    ];
    cluster.run(&create).await;
    let address = std::fs::read_to_string(host.file("ip")).unwrap().trim().parse().unwrap();
    (host, guest, cluster, address)
}

/// A VM is ready before its worker's way to the relay need be up; this waits for it, as what waits for nothing does not.
async fn the_way_is_there(cluster: &Cluster) {
    assert_eq!(cluster.run(&["ssh", "vm", "box", "echo", "hi"]).await.trim(), "hi");
}

/// A VNC server that asks for a password: QEMU's, of a machine without a system.
async fn server_with_password(address: Ipv4Addr, port: u16, password: &str) -> Child {
    let display = port - 5900;
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-S", "-accel", "tcg", "-m", "16", "-vga", "std"]);
    qemu.args([
        "-object",
        &format!("secret,id=pw,data={password}"),
        "-vnc",
        &format!("{address}:{display},password-secret=pw"),
    ]);
    let child = qemu.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    wait::until("the server", LIMIT, || async { TcpStream::connect((address, port)).await.map(drop) }).await;
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guests_own_server_asks_for_its_password() {
    let Some(vncdo) = client("vncdo") else { return };
    let (_host, _guest, cluster, address) = tart().await;
    the_way_is_there(&cluster).await;
    let nothing = finish(cluster.cli(&["vnc", "vm", "box", "--wait", "0s", "--screenshot", "-"])).await;
    assert!(told(&nothing).contains("5900") && nothing.status.code() == Some(1), "{}", told(&nothing));

    let server = server_with_password(address, 5900, "letmein").await;
    let seen = the_same_is_seen(&cluster, &vncdo, &["-p", "letmein"], &["-p", "letmein"]).await;
    assert!(seen.colours() > 1, "{seen:?}");
    for wrong in [&["-p", "other"][..], &[]] {
        let arguments = [&["vnc", "vm", "box", "--screenshot", "-"], wrong].concat();
        let refused = finish(cluster.cli(&arguments)).await;
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
        assert!(told(&refused).contains("refused the given password"), "{}", told(&refused));
        assert!(told(&refused).contains("; give what it knows with -u and -p"), "{}", told(&refused));
    }
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_macs_server_asks_for_a_user() {
    let Some(vncdo) = client("vncdo") else { return };
    let (_host, _guest, cluster, address) = tart().await;
    let _mac = Mac::start(address, "ann", "pass word").await;
    // The stock client shows that the server does as Apple's do.
    let login = ["-u", "ann", "-p", "pass word"];
    let theirs = ["--username", "ann", "--password", "pass word"];
    let seen = the_same_is_seen(&cluster, &vncdo, &login, &theirs).await;
    assert_eq!((seen.width, seen.height, seen.colours()), (Mac::SIDE, Mac::SIDE, Mac::COLOURS));
    for (login, why) in [
        (&["-u", "ann", "-p", "other"][..], "refused user \"ann\" with the given password"),
        (&[], "refused user \"admin\""),
        (&["-p", "pass word"], "asks for a user, too"),
    ] {
        let refused = finish(cluster.cli(&[&["vnc", "vm", "box", "--screenshot", "-"], login].concat())).await;
        assert!(refused.status.code() == Some(1) && told(&refused).contains(why), "{}", told(&refused));
    }
}

/// Which asks for a password as Screen Sharing does; QEMU's server plays it.
#[tokio::test(flavor = "multi_thread")]
async fn the_screen_of_a_workers_machine_is_its_operators() {
    let Some(vncdo) = client("vncdo") else { return };
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    // Below the ports that the system gives out, so that nobody is given it before the server has it.
    let random = usize::from(uuid::Uuid::new_v4().into_bytes()[0]);
    let is_free = |port: &u16| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let free = (10_000..30_000u16).skip(64 * random).find(is_free).unwrap();
    let server = server_with_password(Ipv4Addr::LOCALHOST, free, "letmein").await;
    let port = free.to_string();
    let vnc = |more: &[&str]| cluster.cli(&[&["vnc", "worker", "--port", &port, "--wait", "30s", "w1"], more].concat());

    let (own, other) = (cluster.dir.path().join("own.png"), cluster.dir.path().join("other.png"));
    let printed = succeed(vnc(&["-p", "letmein", "--screenshot", own.to_str().unwrap()])).await;
    let direct = format!("vnc://127.0.0.1:{port}");
    let taken = capture(&vncdo, &direct, &["-p", "letmein"], &other).await;
    assert!(taken.status.success(), "{}", told(&taken));
    let (own_seen, seen) = (Seen::of(&own), Seen::of(&other));
    assert_eq!(printed, format!("{}: {} x {}\n", own.display(), seen.width, seen.height));
    assert!(own_seen == seen && seen.colours() > 1, "{own_seen:?} {seen:?}");

    // A viewer of one's own, through the printed address.
    let mut forward = vnc(&["--no-viewer"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
    let address = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    std::fs::remove_file(&other).unwrap();
    let taken = capture(&vncdo, &address, &["-p", "letmein"], &other).await;
    assert!(taken.status.success() && Seen::of(&other) == own_seen, "{}", told(&taken));
    forward.kill().await.unwrap();

    // A guest's usual password is not tried on somebody's machine.
    for (login, why) in [(&[][..], "asks for a password"), (&["-p", "admin"], "refused the given password")] {
        let refused = finish(vnc(&[&["--screenshot", "-"], login].concat())).await;
        assert!(refused.status.code() == Some(1) && told(&refused).contains(why), "{}", told(&refused));
    }
    drop(server);
    let gone = ["vnc", "worker", "w1", "--port", &port, "--screenshot", "-"];
    wait::until("the server to be gone", LIMIT, || async {
        let nothing = told(&finish(cluster.cli(&gone)).await);
        if nothing.contains("nothing listens there") { Ok(()) } else { Err(nothing) }
    })
    .await;
    let roles = "compute:read,compute:write,compute:connect,admin:read";
    let token = succeed(cluster.cli(&["create", "service-account", "eve", "--roles", roles])).await;
    let eve = cluster.access.of("eve", &orchard::model::secret::Secret::new(token.trim()));
    let refused = finish(eve.cli(&cluster.dir.path().join("home"), &gone)).await;
    assert!(refused.status.code() == Some(1) && told(&refused).contains("admin:write"), "{}", told(&refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_without_a_screen_is_told_so() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "box", "--image", "any", "--wait"]).await;
    the_way_is_there(&cluster).await;
    let file: PathBuf = cluster.dir.path().join("x.png");
    let picture = ["--screenshot", file.to_str().unwrap()];
    for options in [&["--no-viewer"][..], &picture] {
        let refused = finish(cluster.cli(&[&["vnc", "vm", "box", "--wait", "0s"], options].concat())).await;
        let said = told(&refused);
        assert!(refused.status.code() == Some(1) && said.contains("before a VNC server had greeted"), "{said}");
    }
    assert!(!file.exists());
    let absent = finish(cluster.cli(&["vnc", "vm", "none", "--no-viewer"])).await;
    assert!(absent.status.code() == Some(1) && told(&absent).contains("no VM named none"), "{}", told(&absent));
    let token = succeed(cluster.cli(&["create", "service-account", "eve", "--roles", "compute:read"])).await;
    let eve = cluster.access.of("eve", &orchard::model::secret::Secret::new(token.trim()));
    let refused = finish(eve.cli(&cluster.dir.path().join("home"), &["vnc", "vm", "box", "--screenshot", "-"])).await;
    assert!(refused.status.code() == Some(1) && told(&refused).contains("compute:connect"), "{}", told(&refused));
}
