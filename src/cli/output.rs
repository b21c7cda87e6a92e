//! What commands hand back, and tables.
//!
//! PURE. Owns alignment, colours, and that nothing which somebody else wrote into an object can steer the reader's
//! terminal.

use anyhow::Context;
use serde::Serialize;
use std::fmt::Write;

/// What a command has to say, and how it ends.
#[derive(Debug, Default)]
pub struct Outcome {
    /// For standard output.
    pub text: String,
    /// For standard error.
    pub notes: Vec<String>,
    /// See [`Answer`].
    pub answer: Answer,
}

impl Outcome {
    /// An answer of yes.
    pub fn yes(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

/// How a command ends. What cannot be answered is an error, and the exit code 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// Done; allowed; nothing to see. Exit code 0.
    #[default]
    Yes,
    /// Denied; there are differences; there are findings; not in time. Exit code 1.
    No,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For people with wide terminals.
    Wide,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

impl Format {
    /// Whether columns beyond the usual ones are wanted.
    pub fn is_wide(self) -> bool {
        self == Self::Wide
    }

    /// A value as a program wants it; `None`: people are to read it.
    pub fn document<T: Serialize>(self, value: &T) -> anyhow::Result<Option<String>> {
        Ok(match self {
            Self::Table | Self::Wide => None,
            Self::Json => Some(serde_json::to_string_pretty(value)? + "\n"),
            Self::Yaml => Some(serde_saphyr::to_string(value).context("cannot write YAML")?),
        })
    }
}

/// What a cell's colour says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing.
    #[default]
    Plain,
    /// As it should be, or opened.
    Good,
    /// Worth a look.
    Doubtful,
    /// Wrong, denied, or cut.
    Bad,
    /// A heading.
    Heading,
}

/// Whether to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paint(pub bool);

impl Paint {
    /// A text in a colour.
    pub fn tone(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Doubtful => "33",
            Tone::Bad => "31",
            Tone::Heading => "1",
        };
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A heading on a line of its own.
    pub fn heading(self, text: &str) -> String {
        self.tone(Tone::Heading, text) + "\n"
    }
}

/// A cell of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// In a colour.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: clean(&text.into()), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// Without what a terminal would obey: descriptions and names are other people's text.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Columns as `kubectl` aligns them.
#[derive(Clone, Debug, Default)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    indent: usize,
}

impl Table {
    /// With these columns.
    pub fn new(header: impl IntoIterator<Item = &'static str>) -> Self {
        Self { header: header.into_iter().collect(), ..Self::default() }
    }

    /// Moved to the right.
    pub fn indented(mut self, indent: usize) -> Self {
        self.indent = indent;
        self
    }

    /// One row more.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// As text.
    pub fn render(&self, paint: Paint) -> String {
        let header: Vec<Cell> = self.header.iter().map(|title| Cell::toned(*title, Tone::Heading)).collect();
        let lines: Vec<&[Cell]> =
            std::iter::once(header.as_slice()).chain(self.rows.iter().map(Vec::as_slice)).collect();
        let width = |column: usize| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.text.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let mut text = String::new();
        for line in lines {
            let mut written = " ".repeat(self.indent);
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let last = column + 1 == line.len();
                let gap = if last { 0 } else { width - cell.text.chars().count() + 3 };
                // Padding outside of the colour: underlining and the like would show it.
                written += &paint.tone(cell.tone, &cell.text);
                written += &" ".repeat(gap);
            }
            text += written.trim_end();
            text.push('\n');
        }
        text
    }
}

/// "Name:   value" lines, as `kubectl describe` has them.
pub fn fields<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<14}{}", format!("{name}:"), clean(&value));
    }
    text
}

/// How long ago, as `kubectl` says it.
pub fn age(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        ..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{minutes}m"),
        7200..172_800 => format!("{hours}h"),
        _ if days < 730 => format!("{days}d"),
        _ => format!("{}y", days / 365),
    }
}

/// "1 pod", "2 pods", "1,000 pods".
pub fn counted(count: usize, singular: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {singular}{plural}", thousands(count))
}

/// "1,234,567".
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_their_colour() {
        let mut table = Table::new(["NAME", "ENFORCED", "AGE"]).indented(2);
        table.row(["web-public".into(), Cell::toned("True", Tone::Good), "8s".into()]);
        table.row(["db".into(), Cell::toned("False", Tone::Bad), "".into()]);
        let plain = "  NAME         ENFORCED   AGE\n  web-public   True       8s\n  db           False\n";
        assert_eq!(table.render(Paint(false)), plain);
        let coloured = table.render(Paint(true));
        assert!(coloured.contains("\x1b[32mTrue\x1b[0m       8s"), "{coloured:?}");
    }

    #[test]
    fn other_peoples_text_steers_no_terminal() {
        let mut table = Table::new(["A"]);
        table.row(["x\x1b]0;owned\x07y\nz".into()]);
        assert_eq!(table.render(Paint(true)).lines().nth(1), Some("x ]0;owned y z"));
    }

    #[test]
    fn numbers_as_people_read_them() {
        assert_eq!([age(119), age(120), age(7200), age(200_000), age(-5)], ["119s", "2m", "2h", "2d", "0s"]);
        assert_eq!(
            [thousands(0), thousands(999), thousands(1000), thousands(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!([counted(1, "pod"), counted(2, "pod")], ["1 pod", "2 pods"]);
    }
}
