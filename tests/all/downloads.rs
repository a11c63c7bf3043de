//! Downloads of images from servers that break off, forget, change their mind and lie: what arrives in the store is the file
//! that was asked for, or nothing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use orchard::task::{self, Task};
use orchard::worker::runtime::qemu::image::Images;
use orchard::worker::runtime::{Progress, RuntimeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const LEN: usize = 3 << 20;

/// A raw image, different for each `mark`.
fn disk(mark: u8) -> Vec<u8> {
    (0..LEN).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ mark).collect()
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
struct Asked {
    from: Option<usize>,
    if_range: Option<String>,
    /// What it has already.
    has: Option<String>,
}

/// An answer: its head's lines and as much of a body as is sent before the connection breaks.
type Answer = (String, Vec<u8>);
type Script = dyn Fn(usize, &Asked) -> Answer + Send + Sync;

/// A server that answers its n-th request as the script says, and then closes the connection.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _task: Task,
}

impl Server {
    async fn start(script: impl Fn(usize, &Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/disk.img", listener.local_addr().unwrap());
        let (asked, script): (Arc<Mutex<Vec<Asked>>>, Arc<Script>) = (Arc::default(), Arc::new(script));
        let log = asked.clone();
        let task = task::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let value = |name: &str| {
                    let line = request.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")))?;
                    Some(line.split_once(':').unwrap().1.trim().to_owned())
                };
                let from = value("range").map(|range| range["bytes=".len()..range.len() - 1].parse().unwrap());
                let has = value("if-none-match").or_else(|| value("if-modified-since"));
                let request = Asked { from, if_range: value("if-range"), has };
                let number = {
                    let mut log = log.lock().unwrap();
                    log.push(request.clone());
                    log.len() - 1
                };
                let (head, body) = script(number, &request);
                let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes()).await;
                let _ = stream.write_all(&body).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { url, asked, _task: task }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// All of `body` from `from` on, of which `sent` bytes are sent.
fn part(body: &[u8], tag: &str, from: usize, sent: usize) -> Answer {
    let rest = &body[from..];
    let (last, total) = (body.len() - 1, body.len());
    let head = format!(
        "206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{last}/{total}\r\nETag: {tag}",
        rest.len()
    );
    (head, rest[..sent.min(rest.len())].to_vec())
}

fn whole(body: &[u8], tag: &str, sent: usize) -> Answer {
    let head = format!("200 OK\r\nContent-Length: {}\r\nETag: {tag}", body.len());
    (head, body[..sent.min(body.len())].to_vec())
}

struct Store {
    dir: tempfile::TempDir,
}

impl Store {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn images(&self) -> Images {
        Images::open(self.dir.path().join("images"), "qemu-img".into(), None, true).unwrap()
    }

    async fn get(&self, url: &str) -> Result<PathBuf, RuntimeError> {
        let image = self.images().get(url, &Progress::new().0).await?;
        Ok(self.dir.path().join("images").join(&image.file))
    }

    fn parts(&self) -> Vec<String> {
        let all = std::fs::read_dir(self.dir.path().join("images")).unwrap().flatten();
        all.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name.contains(".part")).collect()
    }
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let body = disk(1);
    let copy = body.clone();
    let server = Server::start(move |number, asked| match (number, asked.from) {
        (0, _) => whole(&copy, "\"v1\"", 1_000_000),
        (2, _) => ("503 Service Unavailable\r\nContent-Length: 0".into(), Vec::new()),
        (_, Some(from)) => part(&copy, "\"v1\"", from, 700_000),
        (_, None) => panic!("it began anew"),
    })
    .await;
    let store = Store::new();
    assert!(std::fs::read(store.get(&server.url).await.unwrap()).unwrap() == body, "another file");
    let asked = server.asked();
    assert_eq!((&asked[0], asked[1].if_range.as_deref()), (&Asked::default(), Some("\"v1\"")));
    assert!(asked.windows(2).all(|pair| pair[0].from <= pair[1].from), "{asked:?}");
    assert_eq!(store.parts(), Vec::<String>::new());
}

#[tokio::test]
async fn what_has_arrived_is_kept_over_a_failure_and_another_worker_process() {
    let body = disk(1);
    let copy = body.clone();
    let server = Server::start(move |number, asked| match (number, asked.from) {
        (0, _) => whole(&copy, "\"v1\"", 2_000_000),
        (1, _) => ("404 Not Found\r\nContent-Length: 0".into(), Vec::new()),
        (_, Some(from)) => part(&copy, "\"v1\"", from, LEN),
        (_, None) => panic!("it began anew"),
    })
    .await;
    let store = Store::new();
    let error = store.get(&server.url).await.unwrap_err().to_string();
    assert!(error.contains("404"), "{error}");
    assert_eq!(store.parts().len(), 2, "{:?}", store.parts());
    assert!(std::fs::read(store.get(&server.url).await.unwrap()).unwrap() == body, "another file");
    assert_eq!(store.parts(), Vec::<String>::new());
}

#[tokio::test]
async fn a_file_that_changes_midway_is_fetched_anew_and_never_mixed() {
    let (old, new) = (disk(1), disk(2));
    let expected = new.clone();
    let server = Server::start(move |number, asked| match number {
        0 => whole(&old, "\"old\"", 1_500_000),
        _ if asked.if_range.as_deref() == Some("\"new\"") => part(&new, "\"new\"", asked.from.unwrap(), LEN),
        _ => whole(&new, "\"new\"", 1_200_000),
    })
    .await;
    let store = Store::new();
    assert!(std::fs::read(store.get(&server.url).await.unwrap()).unwrap() == expected, "a mixture");
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_server_that_ignores_ranges_or_sends_other_parts_is_coped_with() {
    let body = disk(1);
    for odd in 0..3 {
        let copy = body.clone();
        let server = Server::start(move |number, asked| match (number, odd) {
            (0, _) => whole(&copy, "\"v1\"", 1_000_000),
            (1, 0) => part(&copy, "\"v1\"", asked.from.unwrap() + 1, LEN),
            (1, 1) => ("416 Range Not Satisfiable\r\nContent-Length: 0".into(), Vec::new()),
            _ => whole(&copy, "\"v1\"", LEN),
        })
        .await;
        assert!(std::fs::read(Store::new().get(&server.url).await.unwrap()).unwrap() == body, "{odd}: another file");
    }
    // Without anything that tells one version from another, the rest is never asked for.
    let copy = body.clone();
    let server = Server::start(move |number, _| match number {
        0 => whole(&copy, "W/\"weak\"", 1_000_000),
        _ => whole(&copy, "W/\"weak\"", LEN),
    })
    .await;
    assert!(std::fs::read(Store::new().get(&server.url).await.unwrap()).unwrap() == body);
    assert_eq!(server.asked(), [Asked::default(), Asked::default()]);
}

#[tokio::test]
async fn who_wants_the_newest_has_the_server_asked_and_gets_another_file_only_if_there_is_one() {
    let date = "Mon, 23 Nov 2026 00:00:00 GMT";
    let dated = move |body: &[u8], asked: &Asked| match asked.has.as_deref() {
        Some(has) if has == date => ("304 Not Modified".to_owned(), Vec::new()),
        _ => (format!("200 OK\r\nContent-Length: {LEN}\r\nLast-Modified: {date}"), body.to_vec()),
    };
    let (old, new) = (disk(1), disk(2));
    let (first, second) = (old.clone(), new.clone());
    let server = Server::start(move |number, asked| match (number, asked.has.as_deref()) {
        (0, None) => whole(&first, "\"v1\"", LEN),
        (1, Some("\"v1\"")) => ("304 Not Modified".into(), Vec::new()),
        (2, Some("\"v1\"")) => whole(&second, "\"v2\"", 0),
        (3, None) => dated(&second, &Asked::default()),
        (4.., _) if number < 6 => dated(&second, asked),
        _ => ("404 Not Found\r\nContent-Length: 0".into(), Vec::new()),
    })
    .await;
    let store = Store::new();
    let newest = async || {
        let image = store.images().get_newest(&server.url, &Progress::new().0).await?;
        Ok::<_, RuntimeError>(std::fs::read(store.dir.path().join("images").join(&image.file)).unwrap())
    };
    for expected in [&old, &old, &new, &new] {
        assert!(&newest().await.unwrap() == expected, "another file, at {:?}", server.asked());
    }
    assert_eq!(server.asked().len(), 5, "{:?}", server.asked());
    // Whoever only wants it does not ask, and what has a certain digest does not change.
    let file = store.get(&server.url).await.unwrap();
    let digest = file.file_stem().unwrap().to_str().unwrap().strip_prefix("sha256-").unwrap().to_owned();
    let certain = format!("{}#sha256={digest}", server.url);
    store.images().get_newest(&certain, &Progress::new().0).await.unwrap();
    assert_eq!(server.asked().len(), 5);
    // A server that cannot be asked is not taken to have said that nothing has changed.
    assert!(newest().await.unwrap() == new);
    let error = newest().await.unwrap_err().to_string();
    assert!(error.contains("404"), "{error}");
}

#[tokio::test]
async fn lies_about_the_length_end_in_an_error_that_says_so() {
    let lies = [
        ("9000000000000000000", 1000, "is full"),
        ("banana", 1000, "cannot download"),
        ("-5", 1000, "cannot download"),
        ("5000", 1000, "1000 of 5000 bytes"),
    ];
    let each = lies.map(|(length, sent, why)| async move {
        let server = Server::start(move |_, _| (format!("200 OK\r\nContent-Length: {length}"), vec![0; sent])).await;
        let store = Store::new();
        let error = store.get(&server.url).await.unwrap_err().to_string();
        assert!(error.contains(why), "{length}: {error}");
        assert_eq!(store.parts(), Vec::<String>::new(), "{length}");
    });
    futures_util::future::join_all(each).await;
}

#[tokio::test]
async fn the_cache_tells_what_it_holds_and_knows_images_by_their_digest() {
    let body = disk(1);
    let server = Server::start(move |_, _| whole(&body, "\"v1\"", LEN)).await;
    let store = Store::new();
    let images = store.images();
    let image = images.get(&server.url, &Progress::new().0).await.unwrap();
    let [cached] = &images.list().unwrap()[..] else { panic!("one image") };
    assert_eq!((cached.file.as_str(), cached.sources[0].as_str(), cached.in_use), (&*image.file, &*server.url, true));
    assert!(cached.bytes >= LEN as u64 && cached.last_used > 1_700_000_000);
    let digest = image.file.strip_prefix("sha256-").unwrap().strip_suffix(".raw").unwrap();
    let elsewhere = format!("http://127.0.0.1:1/other.img#sha256={digest}");
    drop(image);
    assert!(!images.list().unwrap()[0].in_use);
    images.get(&elsewhere, &Progress::new().0).await.unwrap();
    assert_eq!(server.asked().len(), 1);
}
