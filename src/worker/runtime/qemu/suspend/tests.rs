//! What is done to a guest whose memory does not fit on the disk, shown with a control socket that writes down what it is told.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;

use super::*;
use crate::model::CopyId;
use crate::task::{self, Task};

struct World {
    _dir: tempfile::TempDir,
    folder: Folder,
    qmp: Qmp,
    told: Arc<Mutex<Vec<String>>>,
    _qemu: Task,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uid = "00000000-0000-7000-8000-000000000001".parse().unwrap();
        let folder = Folder::of(dir.path(), CopyId { uid, attempt: 0 });
        folder.make().unwrap();
        note_run(&folder, &["-nodefaults".to_owned()]).unwrap();
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let log = told.clone();
        let qemu = task::spawn(async move {
            let (read, mut write) = theirs.into_split();
            let mut read = BufReader::new(read).lines();
            write.write_all(b"{\"QMP\":{}}\n").await.unwrap();
            while let Ok(Some(line)) = read.next_line().await {
                let command: Value = serde_json::from_str(&line).unwrap();
                log.lock().unwrap().push(command["execute"].as_str().unwrap().to_owned());
                let answer = json!({ "return": "pc-q35-7.2-machine", "id": command["id"] });
                write.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            }
        });
        let qmp = Qmp::open(ours).await.unwrap();
        Self { _dir: dir, folder, qmp, told, _qemu: qemu }
    }

    fn stops(&self) -> bool {
        self.told.lock().unwrap().iter().any(|command| command == "stop")
    }
}

#[tokio::test]
async fn a_guest_whose_memory_did_not_fit_is_not_stopped_again_before_there_is_room() {
    let (world, need, progress) = (World::new().await, Need::default(), Progress::new().0);
    let no_room = std::io::Error::from(std::io::ErrorKind::StorageFull);
    full(&world.folder, &need, 1 << 60, no_room);
    let error = freeze(&world.folder, &world.qmp, &need, &progress).await.unwrap_err().to_string();
    assert!(error.contains("is full") && error.contains("the guest's memory needs"), "{error}");
    assert!(!world.stops(), "{:?}", world.told);
    assert!(!world.folder.file(PART).exists());
}

#[tokio::test]
async fn a_failure_that_has_another_reason_says_nothing_of_the_room() {
    let (world, need) = (World::new().await, Need::default());
    full(&world.folder, &need, 1 << 60, std::io::Error::from(std::io::ErrorKind::PermissionDenied));
    assert_eq!(need.0.load(Ordering::Relaxed), 0);
    full(&world.folder, &need, 5, std::io::Error::from(std::io::ErrorKind::QuotaExceeded));
    assert_eq!(need.0.load(Ordering::Relaxed), 5 + LOOK_EVERY);
}
