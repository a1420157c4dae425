//! Text for people and for programs.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use crate::failure::{Failure, Kind};

/// Writes to standard output, to the last byte.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| unwritten(&error))
}

/// Writes one JSON value and a line ending.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(format!("{value:#}\n").as_bytes())
}

/// Writes a line to standard error. Where that cannot be done, nobody can be told.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

pub(crate) fn unwritten(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::new(Kind::Unread, ""),
        _ => Failure::new(Kind::Output, format!("standard output cannot be written: {error}; look where it goes")),
    }
}

/// Where standard output goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Terminal {
    /// To a file or a program.
    None,
    /// To a person who wants no colours.
    Plain,
    /// To a person.
    Painted,
}

pub(crate) fn terminal() -> Terminal {
    let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match (io::stdout().is_terminal(), wants_colour) {
        (false, _) => Terminal::None,
        (true, false) => Terminal::Plain,
        (true, true) => Terminal::Painted,
    }
}

/// A line for a person as lines that the terminal does not break within words: those after the first stand two further in.
pub(crate) fn broken(line: &str) -> String {
    let width = terminal_size::terminal_size_of(io::stdout()).map_or(usize::MAX, |(width, _)| usize::from(width.0));
    let (mut text, mut column) = (String::with_capacity(line.len()), 0);
    for word in line.split(' ') {
        let length = word.chars().count();
        if column > 0 {
            let fits = column + 1 + length <= width;
            text.push_str(if fits { " " } else { "\n  " });
            column = if fits { column + 1 } else { 2 };
        }
        text.push_str(word);
        column += length;
    }
    text
}

/// A span for people, in its two largest units.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_millis().div_ceil(1_000);
    match (seconds / 3_600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// A line from elsewhere without what a terminal would obey.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}
