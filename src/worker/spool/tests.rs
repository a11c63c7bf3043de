//! Spool files through crashes, full disks and damage.

use proptest::prelude::*;

use super::*;
use crate::model::VmUid;

const KEY: LogKey = (CopyId { uid: VmUid(uuid::Uuid::from_u128(7)), attempt: 3 }, 2);

fn now() -> Timestamp {
    Timestamp::default()
}

fn out(text: &str) -> (LogStream, String) {
    (LogStream::Stdout, text.to_owned())
}

/// All that is left to send, acknowledged batch by batch, each line with its number.
fn drain(log: &mut LogFile) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    while let Some(batch) = log.batch(now()) {
        assert!(!batch.lines.is_empty() && batch.lines.len() <= MAX_LOG_BATCH);
        all.extend((batch.first..).zip(batch.lines.iter().map(|line| line.text.clone())));
        log.acknowledge(&batch);
    }
    all
}

fn numbered(range: std::ops::Range<u64>) -> Vec<(u64, String)> {
    range.map(|n| (n, format!("line {n}"))).collect()
}

fn lines(range: std::ops::Range<u64>) -> Vec<(LogStream, String)> {
    range.map(|n| out(&format!("line {n}"))).collect()
}

/// As the next process of the worker finds it.
fn adopted(folder: &Path) -> LogFile {
    let left = left_in(folder).unwrap();
    assert_eq!(left.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [KEY]);
    LogFile::adopt(left[0].1.clone()).unwrap()
}

#[test]
fn lines_come_out_in_order_in_batches_that_fit_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogFile::begin(dir.path(), KEY);
    assert_eq!(log.batch(now()), None);
    log.append(lines(0..100), now());
    let batch = log.batch(now()).unwrap();
    assert_eq!((batch.first, batch.lines.len()), (0, MAX_LOG_BATCH));
    assert_eq!(log.batch(now()).unwrap(), batch, "it is sent again until it is acknowledged");
    log.acknowledge(&batch);
    log.append(lines(100..101), now());
    assert_eq!(drain(&mut log), numbered(64..101));
    log.remove();
    assert!(left_in(dir.path()).unwrap().is_empty());
}

#[test]
fn a_worker_that_was_killed_sends_again_what_stands_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogFile::begin(dir.path(), KEY);
    log.append(lines(0..10), now());
    let batch = log.batch(now()).unwrap();
    log.acknowledge(&batch);
    log.append(lines(10..20), now());
    drop(log);
    let mut next = adopted(dir.path());
    next.append(lines(20..21), now());
    assert_eq!(drain(&mut next), numbered(0..21), "what it has, the controller leaves out by its number");
}

#[test]
fn what_is_acknowledged_is_cut_off_and_the_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogFile::begin(dir.path(), KEY);
    let long = "x".repeat(MAX_LOG_LINE);
    for _ in 0..20 {
        log.append(vec![out(&long)], now());
    }
    assert!(log.size() > CUT_AT);
    assert_eq!(drain(&mut log).len(), 20);
    assert_eq!((log.size(), std::fs::metadata(path(dir.path(), KEY)).unwrap().len()), (0, 0));
    log.append(vec![out("more")], now());
    drop(log);
    assert_eq!(drain(&mut adopted(dir.path())), [(20, "more".to_owned())]);
}

#[test]
fn what_the_disk_does_not_take_is_held_in_memory_in_order_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogFile::begin(dir.path(), KEY);
    log.append(lines(0..2), now());
    // Every write to it fails as one to a full disk.
    log.file = Some(File::options().read(true).write(true).open("/dev/full").unwrap());
    log.append(vec![out("a")], now());
    log.append(vec![out("b")], now());
    assert_eq!(log.in_memory(), 3);
    log.file = Some(File::open(path(dir.path(), KEY)).unwrap());
    let told = drain(&mut log);
    assert_eq!(told.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert!(told[2].1.contains("No space left"), "{told:?}");
    assert_eq!((told[3].1.as_str(), told[4].1.as_str()), ("a", "b"));
}

#[test]
fn what_is_held_in_memory_fits_a_message_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogFile::begin(dir.path(), KEY);
    log.append(vec![out("begins")], now());
    log.file = Some(File::options().read(true).write(true).open("/dev/full").unwrap());
    // Bytes that are no text become three each.
    let long = "\u{fffd}".repeat(MAX_LOG_LINE);
    log.append(vec![out(&long); 40], now());
    log.file = Some(File::open(path(dir.path(), KEY)).unwrap());
    let mut seen = 0;
    while let Some(batch) = log.batch(now()) {
        assert!(!batch.lines.is_empty());
        assert!(batch.lines.iter().map(|line| line.text.len()).sum::<usize>() <= CHUNK);
        seen += batch.lines.len();
        log.acknowledge(&batch);
    }
    assert_eq!(seen, 42, "all of them, and why they were in memory");
}

#[test]
fn a_folder_that_is_gone_harms_no_script() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogFile::begin(&dir.path().join("gone"), KEY);
    log.append(lines(0..2), now());
    let told = drain(&mut log);
    assert_eq!((told.len(), log.in_memory()), (3, 0));
    assert!(told[0].1.contains("orchard:"), "{told:?}");
    log.remove();
}

#[test]
fn a_file_that_became_unreadable_loses_its_lines_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogFile::begin(dir.path(), KEY);
    log.append(lines(0..3), now());
    std::fs::write(path(dir.path(), KEY), vec![0; 4096]).unwrap();
    let told = drain(&mut log);
    assert!(told.len() == 1 && told[0].1.contains("lost"), "{told:?}");
    log.append(vec![out("after")], now());
    assert_eq!(drain(&mut log), [(4, "after".to_owned())]);
}

#[test]
fn only_its_own_files_are_taken_for_spools() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["x", "x.lines", "00000000-0000-0000-0000-000000000007-3.lines", "notes.2.lines"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    assert!(left_in(dir.path()).unwrap().is_empty());
}

proptest! {
    #[test]
    fn a_torn_or_damaged_end_costs_what_follows_it_and_nothing_else(
        texts in proptest::collection::vec("(?s).{0,30}", 1..20),
        cut in 0usize..2_000,
        garbage in proptest::collection::vec(any::<u8>(), 0..30),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFile::begin(dir.path(), KEY);
        for text in &texts {
            log.append(vec![out(text)], now());
        }
        drop(log);
        let path = path(dir.path(), KEY);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(cut);
        let whole = bytes.iter().filter(|byte| **byte == b'\n').count();
        // No end of a line, which might be just what is missing.
        bytes.push(0);
        bytes.extend(&garbage);
        std::fs::write(&path, &bytes).unwrap();
        let mut next = adopted(dir.path());
        next.append(vec![out("new")], now());
        let told: Vec<String> = drain(&mut next).into_iter().map(|(_, text)| text).collect();
        let expected: Vec<String> = texts.iter().take(whole).cloned().chain(["new".to_owned()]).collect();
        prop_assert_eq!(told, expected);
    }
}
