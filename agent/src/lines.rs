//! Cuts a byte stream into lines of bounded length.

use crate::protocol::MAX_LINE;

/// A line of more than [`MAX_LINE`] bytes went by; it is reported once and skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A line is longer than {MAX_LINE} bytes")]
pub struct Overlong;

/// The line that is being read. It holds at most [`MAX_LINE`] bytes, whatever the peer sends.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    skipping: bool,
}

impl Lines {
    /// Takes the next bytes of the stream and passes on every line that ends in them, without
    /// its newline. Empty lines are passed over.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Result<&[u8], Overlong>)) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            if !self.skipping {
                if self.line.len() + text.len() > MAX_LINE {
                    self.skipping = true;
                    self.line.clear();
                    each(Err(Overlong));
                } else {
                    self.line.extend_from_slice(text);
                }
            }
            if ends {
                if !self.line.is_empty() {
                    each(Ok(&self.line));
                }
                self.clear();
            }
        }
    }

    /// Forgets the unfinished line: another peer begins.
    pub fn clear(&mut self) {
        self.line.clear();
        self.skipping = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all_of(pieces: &[&[u8]]) -> Vec<Result<Vec<u8>, Overlong>> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.push(piece, |line| found.push(line.map(<[u8]>::to_vec)));
        }
        found
    }

    #[test]
    fn an_overlong_line_is_reported_once_and_the_next_one_is_read() {
        let long = vec![b'x'; MAX_LINE];
        let found = all_of(&[&long, &long, &long, b"\n", b"next\n"]);
        assert_eq!(found, [Err(Overlong), Ok(b"next".to_vec())]);
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_read() {
        let mut long = vec![b'x'; MAX_LINE];
        long.push(b'\n');
        assert_eq!(all_of(&[&long]), [Ok(long[..MAX_LINE].to_vec())]);
    }

    #[test]
    fn an_unfinished_line_is_forgotten_with_its_peer() {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        lines.push(b"{\"id\":", |_| panic!("no line has ended"));
        lines.clear();
        lines.push(b"new\n", |line| found.push(line.map(<[u8]>::to_vec)));
        assert_eq!(found, [Ok(b"new".to_vec())]);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_stream_was_cut(
            lines in prop::collection::vec("[a-z]{1,20}", 0..20),
            cut in 1usize..30,
        ) {
            let stream = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            let found = all_of(&stream.as_bytes().chunks(cut).collect::<Vec<_>>());
            let expected = lines.iter().map(|line| Ok(line.clone().into_bytes()));
            prop_assert_eq!(found, expected.collect::<Vec<_>>());
        }
    }
}
