//! Takes a picture over a stream: reads, writes and waits for what [`Conversation`] decides.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::time::timeout;

use super::Login;
use super::conversation::{Conversation, ProtocolError, Stage};
use super::picture::Picture;
use super::protocol::{self, GREETING_LEN};
use super::security::RANDOM_LEN;

/// How long a server may say nothing once it has greeted: one that draws a large screen in software takes some seconds, and a
/// connection that was lost as many to come back.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a picture may take: the pixels of a 4K screen over a line of 1 Mbit/s.
const LONGEST: Duration = Duration::from_secs(300);

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum VncError {
    /// The connection ended.
    #[error("the connection ended {}", told(*.0))]
    Ended(Stage),
    /// The connection broke.
    #[error("the connection broke {}", told(*.0))]
    Broke(Stage, #[source] io::Error),
    /// The server said nothing for too long.
    #[error("nothing came for {} s {}", .1.as_secs(), told(*.0))]
    Silent(Stage, Duration),
    /// The picture took too long.
    #[error("the picture was not there after {} s", LONGEST.as_secs())]
    Slow,
    /// The system has no randomness, without which nobody can log in.
    #[error("the system yields no random bytes: {0}")]
    NoRandomness(String),
    /// The server says something that waiting does not change.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

impl VncError {
    /// Whether it may succeed later, as with a guest that boots.
    pub fn is_passing(&self) -> bool {
        !matches!(self, VncError::Protocol(_) | VncError::NoRandomness(_))
    }
}

fn told(stage: Stage) -> &'static str {
    match stage {
        Stage::Greeting => "before a VNC server had greeted",
        Stage::Login => "while the VNC server was to let this client in",
        Stage::Screen => "while the VNC server sent its screen",
    }
}

/// Takes a picture of what is shown. The server must have greeted within `greeting`. Cancel safe: dropping it closes the
/// stream.
///
/// # Errors
/// [`VncError`]; those that [pass](VncError::is_passing) are worth another try.
pub async fn take_picture<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    login: Login,
    greeting: Duration,
) -> Result<Picture, VncError> {
    let mut random = [0; RANDOM_LEN];
    getrandom::fill(&mut random).map_err(|error| VncError::NoRandomness(error.to_string()))?;
    let conversation = Conversation::new(login, random);
    timeout(LONGEST, talk(stream, conversation, greeting)).await.map_err(|_| VncError::Slow)?
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    mut conversation: Conversation,
    greeting: Duration,
) -> Result<Picture, VncError> {
    let mut stream = BufReader::new(stream);
    let mut buffer = Vec::new();
    while conversation.needs() > 0 {
        let stage = conversation.stage();
        let patience = if stage == Stage::Greeting { greeting } else { SILENCE };
        buffer.resize(conversation.needs(), 0);
        let step = async {
            stream.write_all(&conversation.to_send()).await?;
            stream.flush().await?;
            stream.read_exact(&mut buffer).await
        };
        let read = timeout(patience, step).await.map_err(|_| VncError::Silent(stage, patience))?;
        read.map_err(|error| failed(stage, error))?;
        conversation.take(&buffer)?;
    }
    conversation.into_picture().ok_or(VncError::Ended(Stage::Screen))
}

/// Whether a VNC server greets within `patience`. The connection is of no use to anybody else then.
///
/// # Errors
/// As for [`take_picture`].
pub async fn probe(stream: &mut (impl AsyncRead + Unpin), patience: Duration) -> Result<(), VncError> {
    let mut greeting = [0; GREETING_LEN];
    let read = timeout(patience, stream.read_exact(&mut greeting)).await;
    read.map_err(|_| VncError::Silent(Stage::Greeting, patience))?.map_err(|error| failed(Stage::Greeting, error))?;
    match protocol::version(&greeting) {
        Some(_) => Ok(()),
        None => Err(ProtocolError::NotVnc(String::from_utf8_lossy(&greeting).into_owned()).into()),
    }
}

fn failed(stage: Stage, error: io::Error) -> VncError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => VncError::Ended(stage),
        _ => VncError::Broke(stage, error),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::model::secret::Secret;
    use crate::task;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn login() -> Login {
        Login { user: None, password: Some(Secret::new("pw")) }
    }

    /// What becomes of a picture when the server says `said`, and then nothing more or, if it `ends`, hangs up.
    async fn picture(said: Vec<u8>, ends: bool) -> Result<Picture, VncError> {
        let (near, mut far): (DuplexStream, DuplexStream) = tokio::io::duplex(64);
        let server = task::spawn(async move {
            let (mut read, mut write) = tokio::io::split(&mut far);
            let mut heard = tokio::io::sink();
            let listen = tokio::io::copy(&mut read, &mut heard);
            let speak = async {
                let _ = write.write_all(&said).await;
                if !ends {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! { _ = listen => {}, () = speak => {} }
        });
        let taken = take_picture(near, login(), PATIENCE).await;
        drop(server);
        taken
    }

    fn orderly(width: u16, height: u16) -> Vec<u8> {
        let mut said = b"RFB 003.008\n\x01\x01\0\0\0\0".to_vec();
        let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
        said.extend([&size[..], &[0; 16], &[0; 4], &[0, 0, 0, 1, 0, 0, 0, 0], &size, &[0; 4]].concat());
        said.extend(vec![200; usize::from(width) * usize::from(height) * 4]);
        said
    }

    #[tokio::test(start_paused = true)]
    async fn a_picture_comes_through_a_narrow_stream() {
        let picture = picture(orderly(100, 50), false).await.unwrap();
        assert_eq!((picture.size().width, picture.size().height), (100, 50));
        assert!(picture.rows().all(|row| row == [200; 300]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stops_at_any_byte_is_told_of_and_nothing_hangs() {
        let said = orderly(3, 2);
        for length in 0..said.len() {
            let cut = said[..length].to_vec();
            let ended = picture(cut.clone(), true).await.unwrap_err();
            assert!(matches!(ended, VncError::Ended(_)) && ended.is_passing(), "after {length}: {ended}");
            let silent = picture(cut, false).await.unwrap_err();
            let patience = if length < GREETING_LEN { PATIENCE } else { SILENCE };
            assert!(matches!(silent, VncError::Silent(_, waited) if waited == patience), "after {length}: {silent}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn garbage_ends_it_for_good() {
        for garbage in [&b"HTTP/1.1 400 Bad Request"[..], b"RFB 003.008\n\x01\x13", &[0; 100]] {
            let error = picture(garbage.to_vec(), false).await.unwrap_err();
            assert!(!error.is_passing(), "{error}");
        }
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(b"RFB 003.008\n").await.unwrap();
        probe(&mut near, PATIENCE).await.unwrap();
        far.write_all(b"SSH-2.0-dropbear\r\n").await.unwrap();
        assert!(!probe(&mut near, PATIENCE).await.unwrap_err().is_passing());
        assert!(matches!(probe(&mut near, PATIENCE).await, Err(VncError::Silent(Stage::Greeting, _))));
    }

    /// One that always has something to say, and never the picture.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_only_talks_is_left_in_the_end() {
        let (near, mut far) = tokio::io::duplex(4_096);
        let _server = task::spawn(async move {
            let said = orderly(2, 2);
            far.write_all(&said[..said.len() - 32]).await.unwrap();
            loop {
                tokio::time::sleep(Duration::from_secs(10)).await;
                far.write_all(&[2]).await.unwrap();
            }
        });
        assert!(matches!(take_picture(near, login(), PATIENCE).await, Err(VncError::Slow)));
    }
}
