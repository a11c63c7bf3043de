//! This process's standard input as a stream that does not hold up the end of the process: `tokio::io::stdin` reads in
//! a pool that the runtime waits for, so a program would end only after one more key press. Used once, by the CLI.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::thread;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

/// Chunks read ahead of need; one being used and one ready keeps a pipe moving.
const CHUNKS: usize = 2;
/// Bytes read at a time.
const CHUNK: usize = 32 * 1024;

/// The standard input, read by a thread of its own that nobody waits for: it ends with the process, or with the next
/// input after this is dropped.
#[derive(Debug)]
pub struct Stdin {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

/// Starts to read the standard input. To be called once in a process: two would each get a part.
///
/// # Errors
/// When the system gives no further thread.
pub fn stdin() -> io::Result<Stdin> {
    from_reader(io::stdin())
}

fn from_reader(mut input: impl Read + Send + 'static) -> io::Result<Stdin> {
    let (sender, chunks) = mpsc::channel(CHUNKS);
    let work = move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let chunk = match input.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => Ok(Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = chunk.is_err();
            if sender.blocking_send(chunk).is_err() || failed {
                return;
            }
        }
    };
    thread::Builder::new().name("stdin".to_owned()).spawn(work)?;
    Ok(Stdin { chunks, rest: Bytes::new() })
}

impl AsyncRead for Stdin {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.chunks.poll_recv(cx)) {
                Some(chunk) => self.rest = chunk?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(self.rest.get(..count).unwrap_or_default());
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn all_of_the_input_arrives_and_then_its_end() {
        let bytes: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        let mut got = Vec::new();
        from_reader(io::Cursor::new(bytes.clone())).unwrap().read_to_end(&mut got).await.unwrap();
        assert_eq!(got, bytes);
    }

    #[test]
    fn an_input_that_never_comes_does_not_hold_up_the_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        runtime.block_on(async {
            let mut input = from_reader(reader).unwrap();
            tokio::select! { biased; _ = input.read_u8() => panic!("read"), () = std::future::ready(()) => {} }
        });
        drop(runtime); // would block here with tokio's own standard input
    }
}
