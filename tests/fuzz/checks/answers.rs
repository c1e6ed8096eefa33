//! What servers may say to status objects: any bytes at all. The first byte chooses the reader.

use vipa::balance::status::dns::Question;
use vipa::balance::status::echo::Echo;
use vipa::balance::status::http::{Incoming, Progress};
use vipa::balance::status::prometheus::Selection;
use vipa::balance::status::sql::{Message, Scram};
use vipa::balance::status::{Failure, http_json, redis, sql, words};

/// Bytes of the largest body that is allowed.
const MOST: usize = 200;

pub(crate) fn check(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match first % 8 {
        0 => line(&text),
        1 => response(bytes),
        2 => finite(http_json::select(bytes, "/a/0")),
        3 => {
            let labels = vec![("b".to_owned(), "c".to_owned())];
            finite(Selection { metric: "a".to_owned(), labels, is_rate: false }.sum(&text));
        }
        4 => info(bytes),
        5 => postgres(bytes),
        6 => {
            let name = Question::name("a.bc").expect("a name");
            let answer = Some([192, 0, 2, 7].into());
            let question = Question { port: None, name, record: 1, answer };
            let _ = question.judge(0x6161, bytes);
        }
        _ => {
            for is_v6 in [false, true] {
                let _ = Echo { id: 0x6161, nonce: *b"aaaaaaaa", is_v6 }.hear(bytes);
            }
        }
    }
}

fn finite(value: Result<f64, Failure>) {
    match value {
        Ok(value) => assert!(value.is_finite()),
        Err(failure) => told(&failure),
    }
}

fn line(text: &str) {
    match words::read(text, true) {
        Ok(reading) => {
            assert!(reading.value.is_none_or(f64::is_finite));
            assert!(reading.words.weight.is_none_or(|share| (0.0..=256.0).contains(&share)));
            // Nothing behind the line's end counts.
            let first = text.split(['\r', '\n', '#']).next().unwrap_or_default();
            assert_eq!(words::read(first, true), Ok(reading));
        }
        Err(failure) => told(&failure),
    }
}

fn told(failure: &Failure) {
    let words = failure.to_string();
    assert!(words.chars().count() < 1000 && !words.chars().any(char::is_control), "{words:?}");
}

/// In one piece or byte by byte: the same comes of it.
fn response(bytes: &[u8]) {
    let mut whole = Incoming::new(false, MOST);
    let at_once = whole.advance(bytes, false);
    let mut piecewise = Incoming::new(false, MOST);
    let mut last = Ok(Progress::More);
    for end in 1..=bytes.len() {
        last = piecewise.advance(&bytes[..end], false);
        if !matches!(last, Ok(Progress::More)) {
            break;
        }
    }
    match (&at_once, &last) {
        (Ok(Progress::Done(a, _)), Ok(Progress::Done(b, _))) => {
            assert_eq!(a, b);
            assert!(a.body.len() <= MOST);
        }
        // What is wrong behind the end of a response is not seen byte by byte.
        (Ok(Progress::More), Ok(Progress::More)) | (Err(_), _) if !bytes.is_empty() => {}
        (_, _) if bytes.is_empty() => {}
        other => panic!("{other:?}"),
    }
    for failure in [at_once.err(), last.err()].into_iter().flatten() {
        told(&failure);
    }
}

fn info(bytes: &[u8]) {
    match redis::reply(bytes) {
        Ok(Some(Ok(text))) => finite(redis::field(&text, "a")),
        Ok(Some(Err(failure))) | Err(failure) => told(&failure),
        Ok(None) => {}
    }
}

fn postgres(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        match sql::parse(rest) {
            Ok(Some((message, length))) => {
                assert!(length <= rest.len());
                match message {
                    Message::Row(value) => finite(sql::value(value)),
                    Message::SaslContinue(said) if !has_many_rounds(said) => {
                        let _ = Scram::new("user", "abc").last("pencil", said);
                    }
                    _ => {}
                }
                rest = &rest[length..];
            }
            Ok(None) => return,
            Err(failure) => return told(&failure),
        }
    }
}

/// Hashing so often is slow, not wrong.
fn has_many_rounds(said: &[u8]) -> bool {
    let rounds = said.windows(2).rposition(|pair| pair == b"i=").map(|at| said.len() - at);
    rounds.is_some_and(|digits| digits > 4)
}
