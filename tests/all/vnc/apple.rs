//! A VNC server as macOS has one, as far as logging in goes: a user and a password, encrypted with a key that both sides agree on.

use std::net::Ipv4Addr;

use aes::Aes128;
use aes::cipher::{BlockCipherDecrypt, KeyInit};
use num_bigint::BigUint;
use orchard::task::{self, Task};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Bytes of the numbers that are exchanged, as Apple has it.
const LENGTH: usize = 128;

/// The modulus: the second group of RFC 2409. The stock client looks whether it is a good one.
const PRIME: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD\
    EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE65381FFFFFFFFFFFFFFFF";

/// The server; ends when dropped.
pub struct Mac {
    _task: Task,
}

impl Mac {
    /// Columns and rows of its screen.
    pub const SIDE: u32 = 16;
    /// Each pixel has a colour of its own.
    pub const COLOURS: usize = 256;

    /// Listens at the VNC port of an address and lets one user in.
    pub async fn start(address: Ipv4Addr, user: &'static str, password: &'static str) -> Self {
        let listener = TcpListener::bind((address, 5900)).await.unwrap();
        let task = task::spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                clients.spawn(async move { serve(stream, user, password).await });
            }
        });
        Self { _task: task }
    }
}

async fn serve(mut stream: TcpStream, user: &str, password: &str) -> std::io::Result<()> {
    stream.write_all(b"RFB 003.889\n").await?;
    stream.read_exact(&mut [0; 12]).await?;
    stream.write_all(&[3, 30, 33, 36]).await?;
    if stream.read_u8().await? != 30 {
        return Ok(());
    }
    let modulus = BigUint::parse_bytes(PRIME.as_bytes(), 16).unwrap();
    let secret = BigUint::from(0xfeed_beef_1234_5679u64);
    stream.write_all(&[0, 2, 0, LENGTH as u8]).await?;
    stream.write_all(&padded(&modulus)).await?;
    stream.write_all(&padded(&BigUint::from(2u8).modpow(&secret, &modulus))).await?;
    let (mut login, mut key) = ([0; 128], [0; LENGTH]);
    stream.read_exact(&mut login).await?;
    stream.read_exact(&mut key).await?;
    let shared = padded(&BigUint::from_bytes_be(&key).modpow(&secret, &modulus));
    let cipher = Aes128::new(&md5::compute(shared).0.into());
    for block in login.as_chunks_mut::<16>().0 {
        let mut plain = (*block).into();
        cipher.decrypt_block(&mut plain);
        *block = plain.into();
    }
    let text = |half: &[u8]| half.split(|byte| *byte == 0).next().unwrap().to_owned();
    if text(&login[..64]) != user.as_bytes() || text(&login[64..]) != password.as_bytes() {
        stream.write_all(b"\0\0\0\x01\0\0\0\x05Nope.").await?;
        return Ok(());
    }
    stream.write_all(&[0; 4]).await?;
    stream.read_u8().await?;
    let side = u16::try_from(Mac::SIDE).unwrap().to_be_bytes();
    let format = [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
    stream.write_all(&[&side[..], &side, &format, &[0, 0, 0, 3], b"Mac"].concat()).await?;
    show(stream).await
}

/// Sends the screen to whoever asks for it, in the format that was asked for.
async fn show(mut stream: TcpStream) -> std::io::Result<()> {
    let mut shifts = [16, 8, 0];
    loop {
        let rest = match stream.read_u8().await? {
            0 => 19,
            2 => {
                stream.read_u8().await?;
                4 * usize::from(stream.read_u16().await?)
            }
            3 => 9,
            4 => 7,
            5 => 5,
            other => panic!("message {other}"),
        };
        let mut message = vec![0; rest];
        stream.read_exact(&mut message).await?;
        match rest {
            19 => shifts.copy_from_slice(&message[13..16]),
            9 => {
                let side = u16::try_from(Mac::SIDE).unwrap().to_be_bytes();
                let mut update = [&[0, 0, 0, 1, 0, 0, 0, 0][..], &side, &side, &[0; 4]].concat();
                for n in 0..Mac::SIDE * Mac::SIDE {
                    let [red, green, blue] = [n, 255 - n, n / 2];
                    update.extend((red << shifts[0] | green << shifts[1] | blue << shifts[2]).to_le_bytes());
                }
                stream.write_all(&update).await?;
            }
            _ => {}
        }
    }
}

fn padded(number: &BigUint) -> Vec<u8> {
    let bytes = number.to_bytes_be();
    [vec![0; LENGTH - bytes.len()], bytes].concat()
}
