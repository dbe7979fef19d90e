//! Text in aligned columns: words to the left, figures to the right.

/// Lines of cells; each column is as wide as its widest cell.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    lines: Vec<Vec<String>>,
}

/// Between two columns.
const GAP: &str = "  ";

impl Columns {
    pub(crate) fn line<const N: usize>(&mut self, cells: [String; N]) {
        self.lines.push(cells.into());
    }

    /// The lines: the first column starts at the margin plus `indent`, all others end below each other.
    pub(crate) fn text(&self, indent: &str) -> Vec<String> {
        let columns = self.lines.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        self.lines
            .iter()
            .map(|line| {
                let cells: Vec<String> = line
                    .iter()
                    .zip(&widths)
                    .enumerate()
                    .map(|(index, (cell, width))| match index {
                        0 => format!("{cell:<width$}"),
                        _ => format!("{cell:>width$}"),
                    })
                    .collect();
                format!("{indent}{}", cells.join(GAP)).trim_end().to_owned()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_left_and_figures_right() {
        let mut columns = Columns::default();
        columns.line(["log".to_owned(), "3".to_owned(), "1.00 MiB".to_owned()]);
        columns.line(["reserve".to_owned(), "12".to_owned()]);
        assert_eq!(columns.text("  "), ["  log       3  1.00 MiB", "  reserve  12"]);
    }
}
