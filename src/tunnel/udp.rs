//! A UDP socket that makes quinn reserve no more for receiving than can arrive, and sends in several calls what one cannot.
//!
//! quinn hands over ten packets at a time, however large, and one call sends 64 KiB. As many calls as that takes cost less than
//! packets that are small enough: most work is for each packet.
//!
//! quinn multiplies the largest packet by the most segments (64) that the kernel may hand over as one (UDP GRO) and by the 32
//! messages of a batch: 13 MiB for each endpoint, which an allocator that reuses memory clears by hand. But such a message is
//! never longer than a UDP datagram, 64 KiB: 2.6 MiB do. An endpoint is made by every dial, of the CLI too.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};

/// The most that one message holds, with however many segments: the length of a UDP datagram has 16 bits (RFC 768), and Linux
/// joins no more than that (`GRO_LEGACY_MAX_SIZE`).
const LONGEST_MESSAGE: usize = 1 << 16;

/// The most that one call sends, in bytes: the longest datagram less the headers of IPv4 and UDP.
const LONGEST_CONTENTS: usize = u16::MAX as usize - 28;

/// The system's socket, with a true bound on what one message of it holds.
#[derive(Debug)]
pub(super) struct Bounded {
    socket: Arc<dyn AsyncUdpSocket>,
    segments: usize,
}

impl Bounded {
    /// Takes `socket` into tokio's care; `largest` is the largest packet in bytes that its endpoint takes.
    ///
    /// # Errors
    /// Whatever the system says.
    pub(super) fn new(socket: std::net::UdpSocket, largest: u16) -> io::Result<Arc<Self>> {
        let socket = TokioRuntime.wrap_udp_socket(socket)?;
        let segments = enough_for(largest).min(socket.max_receive_segments());
        Ok(Arc::new(Self { socket, segments }))
    }
}

/// How many packets of `largest` bytes are as long as the longest message.
fn enough_for(largest: u16) -> usize {
    LONGEST_MESSAGE.div_ceil(usize::from(largest.max(1)))
}

impl AsyncUdpSocket for Bounded {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(size) = transmit.segment_size.filter(|_| transmit.contents.len() > LONGEST_CONTENTS) else {
            return self.socket.try_send(transmit);
        };
        for contents in transmit.contents.chunks((LONGEST_CONTENTS / size.max(1)).max(1) * size) {
            let segment_size = (contents.len() > size).then_some(size);
            // Once there is no room, quinn sends all of it again: what went before is a copy, which its peer leaves out.
            self.socket.try_send(&Transmit { contents, segment_size, ..*transmit })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.segments
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_message_fits_whatever_its_packets_are() {
        for largest in [1, 1_200, 1_452, 6_500, 21_000, 65_527] {
            assert!(enough_for(largest) * usize::from(largest) >= usize::from(u16::MAX), "{largest}");
        }
        assert_eq!(enough_for(6_500), 11);
    }

    /// As many segments as the kernel joins, of each size, arrive whole: none is cut off at the end of the buffer. So do more than
    /// one call can send.
    #[tokio::test]
    async fn bursts_arrive_whole() {
        const LARGEST: u16 = 21_000;
        let bind = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (from, to) = (Bounded::new(bind(), LARGEST).unwrap(), Bounded::new(bind(), LARGEST).unwrap());
        let slot = to.max_receive_segments() * usize::from(LARGEST);
        let joined = |size| from.max_transmit_segments().min((LONGEST_MESSAGE - 1_000) / size);
        for (size, segments) in [1_200, 1_452, 6_500].map(|size| (size, joined(size))).into_iter().chain([(21_000, 5)])
        {
            let contents: Vec<u8> = (0..segments * size).map(|at| (at % 251) as u8).collect();
            let (destination, ecn, src_ip) = (to.local_addr().unwrap(), None, None);
            let segment_size = (segments > 1).then_some(size);
            let burst = Transmit { destination, ecn, contents: &contents, segment_size, src_ip };
            tokio::time::timeout(std::time::Duration::from_secs(10), async {
                let mut poller = from.clone().create_io_poller();
                while from.try_send(&burst).is_err() {
                    std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
                }
                let mut arrived = Vec::new();
                while arrived.len() < contents.len() {
                    let mut buffer = vec![0; slot];
                    let mut meta = [RecvMeta::default()];
                    let one =
                        std::future::poll_fn(|cx| to.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta));
                    assert_eq!(one.await.unwrap(), 1);
                    arrived.extend_from_slice(&buffer[..meta[0].len]);
                }
                assert!(arrived == contents, "packets of {size} bytes");
            })
            .await
            .unwrap();
        }
    }
}
