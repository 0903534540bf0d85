//! As much of Redis' protocol (RESP 2) as publishing and subscribing need. Pure.

use anyhow::{Context, bail};

/// What Redis said.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    Status(&'a [u8]),
    Error(&'a [u8]),
    /// To `PUBLISH`: how many heard it.
    Integer(i64),
    /// `message`, channel, payload; or `subscribe`, channel, number of channels.
    Push([&'a [u8]; 3]),
}

/// Appends a command.
pub fn command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

/// The first reply in the bytes and its length; none if it is not there in full.
pub fn reply(bytes: &[u8]) -> anyhow::Result<Option<(Reply<'_>, usize)>> {
    let Some((kind, line, mut used)) = line(bytes)? else { return Ok(None) };
    let reply = match kind {
        b'+' => Reply::Status(line),
        b'-' => Reply::Error(line),
        b':' => Reply::Integer(number(line)?),
        b'*' if number(line)? == 3 => {
            let mut parts = [&b""[..]; 3];
            for part in &mut parts {
                let Some((found, length)) = element(&bytes[used..])? else { return Ok(None) };
                *part = found;
                used += length;
            }
            Reply::Push(parts)
        }
        other => bail!("a reply that begins with {:?} was not expected", char::from(other)),
    };
    Ok(Some((reply, used)))
}

fn element(bytes: &[u8]) -> anyhow::Result<Option<(&[u8], usize)>> {
    let Some((kind, line, used)) = line(bytes)? else { return Ok(None) };
    if kind == b':' {
        return Ok(Some((line, used)));
    }
    let length = usize::try_from(number(line)?).context("the length of a string")?;
    Ok(bytes.get(used..used + length + 2).map(|text| (&text[..length], used + length + 2)))
}

/// Its first byte, the rest, and its length with its end.
fn line(bytes: &[u8]) -> anyhow::Result<Option<(u8, &[u8], usize)>> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\r') else { return Ok(None) };
    if bytes.len() < end + 2 {
        return Ok(None);
    }
    let (kind, line) = bytes[..end].split_first().context("an empty line from Redis")?;
    Ok(Some((*kind, line, end + 2)))
}

fn number(digits: &[u8]) -> anyhow::Result<i64> {
    std::str::from_utf8(digits)?.parse().context("a number from Redis")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_arrays_of_strings() {
        let mut out = Vec::new();
        command(&mut out, &[b"PUBLISH", b"42", b"a\r\n"]);
        assert_eq!(out, b"*3\r\n$7\r\nPUBLISH\r\n$2\r\n42\r\n$3\r\na\r\n\r\n");
    }

    #[test]
    fn replies_are_read_one_by_one_and_never_in_parts() {
        let stream: &[u8] = b"+PONG\r\n:12\r\n-ERR no\r\n*3\r\n$9\r\nsubscribe\r\n$2\r\n42\r\n:1\r\n\
            *3\r\n$7\r\nmessage\r\n$2\r\n42\r\n$4\r\n\r\n\x00*\r\n";
        let expected = [
            Reply::Status(b"PONG"),
            Reply::Integer(12),
            Reply::Error(b"ERR no"),
            Reply::Push([b"subscribe", b"42", b"1"]),
            Reply::Push([b"message", b"42", b"\r\n\x00*"]),
        ];
        let mut at = 0;
        for wanted in expected {
            let (found, length) = reply(&stream[at..]).unwrap().unwrap();
            assert_eq!(found, wanted);
            for cut in 0..length {
                assert_eq!(reply(&stream[at..at + cut]).unwrap(), None, "{wanted:?} cut at {cut}");
            }
            at += length;
        }
        assert_eq!(at, stream.len());
        reply(b"$3\r\nabc\r\n").unwrap_err();
    }
}
