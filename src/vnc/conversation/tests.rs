//! The conversation against what servers say: orderly ones of each version, and any bytes at all.

use proptest::prelude::*;

use super::*;
use crate::model::secret::Secret;

fn begin() -> Conversation {
    let login = Login { user: Some("admin".into()), password: Some(Secret::new("letmein")) };
    Conversation::new(login, [7; RANDOM_LEN])
}

/// Hands over what a server says, as far as it is wanted; what was sent back, all of it.
fn hear(conversation: &mut Conversation, mut said: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    let mut sent = conversation.to_send();
    while let Some((bytes, rest)) = said.split_at_checked(conversation.needs()) {
        if bytes.is_empty() {
            break;
        }
        conversation.take(bytes)?;
        sent.extend(conversation.to_send());
        said = rest;
    }
    Ok(sent)
}

fn u16s(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// Describes a screen; its name is "n".
fn init(width: u16, height: u16) -> Vec<u8> {
    [u16s(&[width, height]), vec![9; 16], vec![0, 0, 0, 1], b"n".to_vec()].concat()
}

fn update(rectangles: &[Vec<u8>]) -> Vec<u8> {
    [vec![0, 0], u16s(&[rectangles.len() as u16]), rectangles.concat()].concat()
}

/// A rectangle in one colour.
fn plain(x: u16, y: u16, width: u16, height: u16, colour: u8) -> Vec<u8> {
    let pixels = vec![colour; usize::from(width) * usize::from(height) * PIXEL_LEN];
    [u16s(&[x, y, width, height, 0, 0]), pixels].concat()
}

fn resize(width: u16, height: u16) -> Vec<u8> {
    [u16s(&[0, 0, width, height]), ENCODING_DESKTOP_SIZE.to_be_bytes().to_vec()].concat()
}

/// What an orderly server says until it lets the client in.
const LET_IN: &[u8] = b"RFB 003.008\n\x01\x01\0\0\0\0";

fn entered(width: u16, height: u16) -> Conversation {
    let mut conversation = begin();
    hear(&mut conversation, &[LET_IN, &init(width, height)].concat()).unwrap();
    conversation
}

fn colours(conversation: Conversation) -> Vec<u8> {
    conversation.into_picture().unwrap().rows().flatten().step_by(3).collect()
}

#[test]
fn every_version_is_spoken() {
    let challenge = [3; 16];
    let response = security::password_response(&challenge, "letmein");
    for (said, sent) in [
        (&b"RFB 003.003\n\0\0\0\x01"[..], &b"RFB 003.003\n\x01"[..]),
        (
            &[b"RFB 003.003\n\0\0\0\x02", &challenge[..], &[0; 4]].concat(),
            &[b"RFB 003.003\n", &response[..], &[1]].concat(),
        ),
        (b"RFB 003.007\n\x02\x10\x01", b"RFB 003.007\n\x01\x01"),
        (LET_IN, b"RFB 003.008\n\x01\x01"),
        (
            &[b"RFB 003.008\n\x01\x02", &challenge[..], &[0; 4]].concat(),
            &[b"RFB 003.008\n\x02", &response[..], &[1]].concat(),
        ),
    ] {
        let mut conversation = begin();
        assert_eq!(hear(&mut conversation, said).unwrap(), sent, "{said:?}");
        assert_eq!((conversation.needs(), conversation.stage()), (protocol::INIT_LEN, Stage::Login));
    }
}

#[test]
fn refusals_are_told_with_their_reasons() {
    let refused = |said: &[u8]| hear(&mut begin(), said).unwrap_err();
    let too_many = b"RFB 003.008\n\0\0\0\0\x08too many";
    assert_eq!(refused(too_many), ProtocolError::Closed("too many".into()));
    assert_eq!(refused(b"RFB 003.003\n\0\0\0\0\0\0\0\x02no"), ProtocolError::Closed("no".into()));
    assert_eq!(refused(b"SSH-2.0-Open"), ProtocolError::NotVnc("SSH-2.0-Open".into()));
    assert_eq!(refused(b"RFB 003.008\n\x02\x12\x13"), ProtocolError::NoWay("TLS (18), VeNCrypt (19)".into()));
    let wrong = [&b"RFB 003.008\n\x01\x02"[..], &[3; 16], b"\0\0\0\x01\0\0\0\x05wrong"].concat();
    let who = "the given password".to_owned();
    assert_eq!(refused(&wrong), ProtocolError::Refused { who: who.clone(), reason: "wrong".into() });
    let silent = [&b"RFB 003.007\n\x01\x02"[..], &[3; 16], b"\0\0\0\x01"].concat();
    assert!(matches!(refused(&silent), ProtocolError::Refused { who: named, .. } if named == who));
    let long = [&b"RFB 003.008\n\0\xff\xff\xff\xff"[..], &[b'x'; 2000]].concat();
    assert!(matches!(refused(&long), ProtocolError::Closed(reason) if reason.len() == MAX_REASON as usize));
}

#[test]
fn a_user_is_let_in_as_apple_does_it() {
    let mut conversation = begin();
    let offer = [&b"RFB 003.889\n\x03\x1e\x21\x24"[..], &[0, 2, 0, 16], &[255; 16], &[3; 16]].concat();
    let sent = hear(&mut conversation, &offer).unwrap();
    assert_eq!((&sent[..13], sent.len()), (&b"RFB 003.008\n\x1e"[..], 13 + security::LOGIN_LEN + 16));
    let error = hear(&mut conversation, b"\0\0\0\x01\0\0\0\0").unwrap_err();
    assert!(matches!(&error, ProtocolError::Refused { who, .. } if who.contains("\"admin\"")), "{error}");
    for length in [[0, 0], [2, 1], [255, 255]] {
        let offer = [&b"RFB 003.889\n\x01\x1e\0\x02"[..], &length].concat();
        assert_eq!(hear(&mut begin(), &offer).unwrap_err(), UNUSABLE_KEYS);
    }
}

#[test]
fn a_picture_comes_in_any_number_of_updates_among_other_messages() {
    let mut conversation = entered(3, 2);
    let clipboard = b"\x03\0\0\0\0\0\0\x04text".to_vec();
    let palette = [vec![1, 0, 0, 0, 0, 2], vec![0; 12]].concat();
    let sent =
        hear(&mut conversation, &[clipboard, vec![2], palette, update(&[plain(0, 0, 3, 1, 5)])].concat()).unwrap();
    assert_eq!(sent, protocol::request_update(Size { width: 3, height: 2 }, true), "the rest is asked for");
    assert_eq!(conversation.stage(), Stage::Screen);
    hear(&mut conversation, &update(&[plain(0, 1, 0, 1, 9), plain(0, 1, 2, 1, 6), plain(2, 1, 1, 1, 7)])).unwrap();
    assert_eq!(conversation.needs(), 0);
    assert_eq!(colours(conversation), [5, 5, 5, 6, 6, 7]);
}

#[test]
fn a_screen_that_changes_its_size_is_looked_at_anew() {
    let mut conversation = entered(3, 2);
    let sent = hear(&mut conversation, &update(&[plain(0, 0, 3, 1, 5), resize(1, 2)])).unwrap();
    assert!(sent.starts_with(&protocol::request_update(Size { width: 1, height: 2 }, false)));
    hear(&mut conversation, &update(&[plain(0, 0, 1, 2, 8)])).unwrap();
    assert_eq!(colours(conversation), [8, 8]);

    let mut conversation = entered(1, 1);
    let error = hear(&mut conversation, &update(&vec![resize(2, 2); 30])).unwrap_err();
    assert!(matches!(error, ProtocolError::Broken(_)), "{error}");
}

#[test]
fn a_screen_that_cannot_be_is_refused() {
    for (width, height) in [(0, 5), (65_535, 65_535), (16_384, 5_000)] {
        let error = hear(&mut begin(), &[LET_IN, &init(width, height)].concat()).unwrap_err();
        assert_eq!(error, ProtocolError::Screen { width, height });
        let error = hear(&mut entered(2, 2), &update(&[resize(width, height)])).unwrap_err();
        assert_eq!(error, ProtocolError::Screen { width, height });
    }
    for beside in [plain(1, 0, 2, 1, 0), plain(0, 2, 1, 1, 0), plain(65_535, 0, 1, 1, 0)] {
        let error = hear(&mut entered(2, 2), &update(&[beside])).unwrap_err();
        assert!(matches!(error, ProtocolError::Broken(why) if why.contains("beside")), "{error}");
    }
}

/// A screen cut into rectangles: columns of one width and rows of another.
fn pieces(width: u16, height: u16, across: u16, down: u16) -> Vec<(u16, u16, u16, u16)> {
    let cut = |side: u16, step: u16| (0..side).step_by(step.into()).map(move |from| (from, step.min(side - from)));
    cut(height, down).flat_map(|(y, h)| cut(width, across).map(move |(x, w)| (x, y, w, h))).collect()
}

proptest! {
    #[test]
    fn a_screen_sent_in_pieces_is_put_together(
        (width, height, across, down) in (1u16..40, 1u16..40, 1u16..15, 1u16..15),
        split in 0usize..20,
        seed: u8,
    ) {
        let colour = |x: u16, y: u16| (x as u8).wrapping_mul(31) ^ (y as u8).wrapping_mul(17) ^ seed;
        let rectangle = |&(x, y, w, h): &(u16, u16, u16, u16)| {
            let pixels = (y..y + h).flat_map(|y| (x..x + w).flat_map(move |x| [0, 0, colour(x, y), seed]));
            [u16s(&[x, y, w, h, 0, 0]), pixels.collect()].concat()
        };
        let rectangles: Vec<Vec<u8>> = pieces(width, height, across, down).iter().map(rectangle).collect();
        let (first, second) = rectangles.split_at(split.min(rectangles.len()));
        let mut conversation = entered(width, height);
        hear(&mut conversation, &[update(first), update(second)].concat()).unwrap();
        let expected: Vec<u8> = (0..height).flat_map(|y| (0..width).map(move |x| colour(x, y))).collect();
        prop_assert_eq!(colours(conversation), expected);
    }

    #[test]
    fn no_bytes_do_harm(start in 0usize..4, said in prop::collection::vec(any::<u8>(), 0..4_000)) {
        let begun = [
            Vec::new(),
            b"RFB 003.008\n".to_vec(),
            [LET_IN, &init(4, 4)].concat(),
            [LET_IN, &init(300, 2), &[0, 0, 255, 255]].concat(),
        ];
        let mut conversation = begin();
        hear(&mut conversation, &begun[start]).unwrap();
        let mut said = &said[..];
        while let Some((bytes, rest)) = said.split_at_checked(conversation.needs()) {
            if bytes.is_empty() || conversation.take(bytes).is_err() {
                break;
            }
            prop_assert!(conversation.needs() <= MAX_NEED);
            prop_assert!(conversation.to_send().len() < 2_000);
            said = rest;
        }
    }
}
