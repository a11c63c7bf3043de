//! The worker's side and the keeper's, in one process.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use uuid::Uuid;

use super::keeper::{self, KeepError, Limits};
use super::{Sessions, folder_of, make_folder};
use crate::identity::new_token;
use crate::model::error::ErrorCode;
use crate::model::secret::Secret;
use crate::model::{CopyId, VmUid};
use crate::task::{self, Task};
use crate::tunnel::Reason;
use crate::tunnel::header::Resume;
use crate::tunnel::resume::VERSION;
use crate::tunnel::resume::drive::{Carrier, Event, Local, drive};
use crate::tunnel::resume::end::End;
use crate::worker::companion::CompanionCommand;
use crate::worker::runtime::GuestStream;

const LIMITS: Limits = Limits { session: Duration::from_secs(60), linger: Duration::from_secs(60) };

fn copy(attempt: u32) -> CopyId {
    CopyId { uid: VmUid(Uuid::nil()), attempt }
}

fn named(session: &Secret, again: bool) -> Resume {
    Resume { version: VERSION, session: session.clone(), again }
}

/// A keeper on `dir`, and the worker's way to it.
async fn kept(dir: &Path, limits: Limits) -> (Sessions, Task<Result<(), KeepError>>) {
    make_folder(dir).unwrap();
    let command = CompanionCommand { program: "/nonexistent".into(), arguments: Vec::new() };
    let sessions = Sessions::new(dir, Some(command));
    let path = dir.to_owned();
    let keeper = task::spawn(async move { keeper::run(&path, limits).await });
    while !folder_of(dir).join(super::SOCKET).exists() {
        tokio::task::yield_now().await;
    }
    (sessions, keeper)
}

/// A connection into a guest, and the guest's side of it.
async fn guest() -> (GuestStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap().into(), far.unwrap().0)
}

/// The client's end of a session, with the program's side of it.
struct Client {
    end: End,
    local: Local<tokio::io::DuplexStream>,
    program: tokio::io::DuplexStream,
}

impl Client {
    fn new() -> Self {
        let (program, local) = tokio::io::duplex(1000);
        Self { end: End::at_client(), local: Local::new(local, Reason::Aborted), program }
    }

    /// Says something over `stream` and hears the same back from the guest that answers so.
    async fn converse(&mut self, stream: UnixStream, guest: &mut TcpStream, text: &[u8]) {
        self.end.attach();
        let mut carrier = Carrier::new(stream);
        let Self { end, local, program } = self;
        let talk = async {
            program.write_all(text).await.unwrap();
            let mut heard = vec![0; text.len()];
            guest.read_exact(&mut heard).await.unwrap();
            guest.write_all(&heard).await.unwrap();
            program.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, text);
        };
        let mut talk = std::pin::pin!(talk);
        loop {
            tokio::select! {
                () = &mut talk => break,
                event = drive(end, local, Some(&mut carrier)) => assert!(matches!(event, Event::Greeted), "{event:?}"),
            }
        }
        end.detach();
    }
}

#[tokio::test]
async fn a_session_goes_on_over_another_stream_and_only_for_who_knows_it_and_its_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (sessions, _keeper) = kept(dir.path(), LIMITS).await;
    let (near, mut far) = guest().await;
    let (name, mut client) = (new_token(), Client::new());
    let at = (copy(0), 22);
    let socket = || near.socket().unwrap().unwrap();
    let first = sessions.begin(at, &named(&name, false), socket()).await.unwrap().expect("it is kept");
    client.converse(first, &mut far, b"first").await;
    drop(sessions);

    // The next process of the worker.
    let sessions = Sessions::new(dir.path(), None);
    let refused = async |at, resume: &Resume| sessions.go_on(at, resume).await.unwrap_err().code;
    assert_eq!(refused((copy(1), 22), &named(&name, true)).await, ErrorCode::NotFound, "another copy");
    assert_eq!(refused((copy(0), 23), &named(&name, true)).await, ErrorCode::NotFound, "another port");
    assert_eq!(refused(at, &named(&new_token(), true)).await, ErrorCode::NotFound, "another name");
    let later = Resume { version: VERSION + 1, ..named(&name, true) };
    assert_eq!(refused(at, &later).await, ErrorCode::Invalid, "another version");
    let second = sessions.go_on(at, &named(&name, true)).await.unwrap();
    client.converse(second, &mut far, b"second").await;
    // One takes over from another that still seems to be there.
    let third = sessions.go_on(at, &named(&name, true)).await.unwrap();
    let fourth = sessions.go_on(at, &named(&name, true)).await.unwrap();
    client.converse(fourth, &mut far, b"fourth").await;
    drop(third);

    // Another keeper sees that it is not needed.
    keeper::run(dir.path(), LIMITS).await.unwrap();
    sessions.forget(&named(&name, true)).await;
    drop(near);
    assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0, "the guest's connection is closed");
    assert_eq!(refused(at, &named(&name, true)).await, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_name_is_taken_once_and_a_weak_one_never() {
    let dir = tempfile::tempdir().unwrap();
    let (sessions, _keeper) = kept(dir.path(), LIMITS).await;
    let (near, _far) = guest().await;
    let at = (copy(0), 22);
    let socket = || near.socket().unwrap().unwrap();
    let name = new_token();
    let _first = sessions.begin(at, &named(&name, false), socket()).await.unwrap().expect("it is kept");
    let again = sessions.begin(at, &named(&name, false), socket()).await;
    assert_eq!(again.unwrap_err().code, ErrorCode::Conflict);
    let weak = sessions.begin(at, &named(&Secret::new("guess"), false), socket()).await;
    assert!(weak.unwrap().is_none(), "the connection is used as it is");
}

#[tokio::test]
async fn without_a_keeper_sessions_are_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let (near, _far) = guest().await;
    let at = (copy(0), 22);
    let socket = || near.socket().unwrap().unwrap();
    let unable = CompanionCommand { program: "/nonexistent".into(), arguments: Vec::new() };
    for command in [None, Some(unable)] {
        let sessions = Sessions::new(dir.path(), command);
        assert!(sessions.begin(at, &named(&new_token(), false), socket()).await.unwrap().is_none());
        let error = sessions.go_on(at, &named(&new_token(), true)).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
    }
}

#[tokio::test]
async fn a_keeper_ends_soon_after_its_last_session_and_another_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { session: Duration::from_secs(2), linger: Duration::from_secs(3) };
    let (sessions, keeper) = kept(dir.path(), limits).await;
    let (near, mut far) = guest().await;
    let mut client = Client::new();
    let resume = named(&new_token(), false);
    let stream = sessions.begin((copy(0), 22), &resume, near.socket().unwrap().unwrap()).await.unwrap();
    drop(near);
    client.converse(stream.expect("it is kept"), &mut far, b"hello").await;
    // Nobody comes back for it.
    assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
    keeper.join().await.unwrap().unwrap();
    assert!(!folder_of(dir.path()).join(super::SOCKET).exists());
    let (_sessions, _keeper) = kept(dir.path(), limits).await;
}
