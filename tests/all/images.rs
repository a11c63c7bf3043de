//! The QEMU image store: downloads checked, shared and bounded in time; local files kept apart from their source.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use orchard::task::{self, Task};
use orchard::worker::runtime::qemu::image::Images;
use orchard::worker::runtime::{Progress, RuntimeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::wait;

struct Store {
    dir: tempfile::TempDir,
    images: Images,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path().join("images"), "qemu-img".into(), None, true).unwrap();
        Self { dir, images }
    }

    /// A raw image whose bytes hold `mark`.
    fn raw(&self, name: &str, mark: u8) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, disk(mark)).unwrap();
        path
    }

    async fn get(&self, source: &str) -> Result<String, RuntimeError> {
        self.images.get(source, &Progress::new().0).await.map(|image| image.file)
    }

    fn files(&self, end: &str) -> usize {
        let all = std::fs::read_dir(self.dir.path().join("images")).unwrap().flatten();
        all.filter(|entry| entry.file_name().to_string_lossy().ends_with(end)).count()
    }
}

fn disk(mark: u8) -> Vec<u8> {
    [vec![0; 512], vec![mark; 512], vec![0; 64 << 10]].concat()
}

/// SHA-256 of [`disk`] of 1, computed elsewhere.
const DISK_1: &str = "59da2a21491a1f13ef504abc391bbe010e996ea711b30c0083dfe9259fbf414c";

/// A web server: `/disk` is an image, `/short` ends before its announced length, everything else is not there. Every
/// answer takes a permit after its first half.
pub struct Web {
    pub url: String,
    pub requests: Arc<AtomicUsize>,
    pub permits: Arc<Semaphore>,
    _task: Task,
}

impl Web {
    pub async fn start(permits: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let permits = Arc::new(Semaphore::new(permits));
        let (count, gate) = (requests.clone(), permits.clone());
        let task = task::spawn(async move {
            let mut connections = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (count, gate) = (count.clone(), gate.clone());
                connections.push(task::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        request.push(stream.read_u8().await.unwrap());
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    let body = disk(1);
                    let (status, sent) = match () {
                        () if request.starts_with(b"GET /disk") => ("200 OK", body.as_slice()),
                        () if request.starts_with(b"GET /short") => ("200 OK", &body[..1000]),
                        () => ("404 Not Found", &b""[..]),
                    };
                    let length = if status.starts_with("200") { body.len() } else { 0 };
                    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                    let (first, second) = sent.split_at(sent.len() / 2);
                    stream.write_all(head.as_bytes()).await.unwrap();
                    stream.write_all(first).await.unwrap();
                    gate.acquire().await.unwrap().forget();
                    let _ = stream.write_all(second).await;
                    let _ = stream.shutdown().await;
                }));
            }
        });
        Self { url, requests, permits, _task: task }
    }
}

const LIMIT: Duration = Duration::from_secs(180);

#[tokio::test]
async fn a_local_image_is_kept_apart_and_known_again_until_it_changes() {
    let store = Store::new();
    let path = store.raw("disk.img", 1);
    let first = store.get(path.to_str().unwrap()).await.unwrap();
    assert_eq!(first, format!("sha256-{DISK_1}.raw"));
    assert_eq!(store.get(&format!("file://{}", path.display())).await.unwrap(), first);
    let kept = store.dir.path().join("images").join(&first);
    assert!(kept.metadata().unwrap().permissions().readonly());

    let again = store.raw("other.img", 2);
    std::fs::rename(again, &path).unwrap();
    let second = store.get(path.to_str().unwrap()).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(std::fs::read(kept).unwrap(), disk(1), "the base of earlier VMs is as it was");
}

#[tokio::test]
async fn two_vms_at_once_share_one_download_and_later_ones_need_none() {
    let store = Store::new();
    let web = Web::start(0).await;
    let url = format!("{}/disk", web.url);
    let (progress, told) = Progress::new();
    let release = async {
        wait::until("the half of the download", LIMIT, || async {
            let said = told.borrow().clone();
            if said.contains("downloading the image: 5") || said.contains("downloading the image: 4") {
                Ok(())
            } else {
                Err(said)
            }
        })
        .await;
        web.permits.add_permits(1);
    };
    let (a, b, ()) = tokio::join!(store.images.get(&url, &progress), store.get(&url), release);
    assert_eq!(a.unwrap().file, b.unwrap());
    store.get(&url).await.unwrap();
    assert_eq!(web.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_cancelled_download_leaves_nothing_and_the_next_in_line_takes_over() {
    let store = Store::new();
    let web = Web::start(0).await;
    let url = format!("{}/disk", web.url);
    {
        let first = store.get(&url);
        let begun = wait::until("the request", LIMIT, || async {
            if web.requests.load(Ordering::SeqCst) == 1 { Ok(()) } else { Err("none yet") }
        });
        tokio::select! {
            result = first => panic!("ended by itself: {result:?}"),
            () = begun => {}
        }
    }
    assert_eq!(store.files(".part"), 0);
    web.permits.add_permits(2);
    store.get(&url).await.unwrap();
    assert_eq!(web.requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_digest_is_kept_to() {
    let store = Store::new();
    let web = Web::start(10).await;
    let wrong = format!("{}/disk#sha256={}", web.url, "0".repeat(64));
    let error = store.get(&wrong).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Image(why) if why.contains(DISK_1)), "{error}");
    assert_eq!((store.files(".part"), store.files(".raw")), (0, 0));
    store.get(&format!("{}/disk#sha256={}", web.url, DISK_1.to_uppercase())).await.unwrap();
}

#[tokio::test]
async fn a_failed_download_says_what_was_found() {
    let store = Store::new();
    let web = Web::start(10).await;
    for (path, why) in [("/absent", "404"), ("/short", "cannot download")] {
        let error = store.get(&format!("{}{path}?token=hidden", web.url)).await.unwrap_err();
        let RuntimeError::Image(text) = error else { panic!("{error}") };
        assert!(text.contains(why) && text.contains(path) && !text.contains("hidden"), "{text}");
    }
    assert_eq!(store.files(".part"), 0);
}

#[tokio::test]
async fn local_images_may_be_kept_to_one_folder() {
    let store = Store::new();
    let allowed = store.dir.path().join("allowed");
    std::fs::create_dir(&allowed).unwrap();
    let outside = store.raw("outside.img", 1);
    std::os::unix::fs::symlink(&outside, allowed.join("link.img")).unwrap();
    std::fs::copy(&outside, allowed.join("inside.img")).unwrap();
    let other = store.dir.path().join("other");
    let images = Images::open(other, "qemu-img".into(), Some(allowed.clone()), true).unwrap();
    for (path, fine) in [(allowed.join("inside.img"), true), (allowed.join("link.img"), false), (outside, false)] {
        let result = images.get(path.to_str().unwrap(), &Progress::new().0).await;
        assert_eq!(result.is_ok(), fine, "{}: {result:?}", path.display());
    }
}

#[tokio::test]
async fn images_go_when_room_is_wished_for_but_never_one_that_is_in_use_or_under_way() {
    let store = Store::new();
    let held = store.images.get(store.raw("held.img", 1).to_str().unwrap(), &Progress::new().0).await.unwrap();
    for mark in 2..5 {
        store.get(store.raw(&format!("{mark}.img"), mark).to_str().unwrap()).await.unwrap();
    }
    assert_eq!(store.files(".raw"), 4);
    assert!(store.images.prune(0).unwrap().is_empty(), "enough is free");
    let web = Web::start(0).await;
    let url = format!("{}/disk", web.url);
    let prune = async {
        // The file is made when the answer begins, which is later than the request.
        wait::until("the download", LIMIT, || async {
            if store.files(".part") == 1 { Ok(()) } else { Err("not yet") }
        })
        .await;
        // More than there is: all goes that can.
        let removed = store.images.prune(u64::MAX).unwrap();
        assert!(removed.len() == 3 && removed.iter().any(|gone| gone.contains("4.img")), "{removed:?}");
        assert_eq!((store.files(".raw"), store.files(".part")), (1, 1));
        web.permits.add_permits(2);
    };
    let (fetched, ()) = tokio::join!(store.get(&url), prune);
    fetched.unwrap();
    // The same bytes, which somebody holds.
    assert!(store.dir.path().join("images").join(&held.file).exists());
    drop(held);
    assert_eq!(store.images.prune(u64::MAX).unwrap().len(), 1);
    assert_eq!(store.files(".raw"), 0);
    store.get(&url).await.unwrap();
    assert_eq!(store.files(".raw"), 1, "what was removed is fetched anew");
    // Which of them VMs' disks stand on cannot be known: none is removed.
    std::fs::write(store.dir.path().join("vms"), "no folder").unwrap();
    assert!(store.images.prune(u64::MAX).unwrap().is_empty());
    assert_eq!(store.files(".raw"), 1);
}
