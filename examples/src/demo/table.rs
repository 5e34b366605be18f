use std::fmt;

/// A plain-text table: a label and one or two columns, aligned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    label: String,
    cells: Vec<String>,
}

impl Table {
    /// Adds a row of one cell for each attention.
    pub fn pair(&mut self, label: &str, dense: impl Into<String>, hira: impl Into<String>) {
        self.rows.push(Row {
            label: label.into(),
            cells: vec![dense.into(), hira.into()],
        });
    }

    /// Adds a row of one cell that spans both columns.
    pub fn one(&mut self, label: &str, cell: impl Into<String>) {
        self.rows.push(Row {
            label: label.into(),
            cells: vec![cell.into()],
        });
    }

    /// Adds a line between rows.
    pub fn line(&mut self) {
        self.rows.push(Row {
            label: String::new(),
            cells: Vec::new(),
        });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: &str| text.chars().count();
        let pairs = || self.rows.iter().filter(|row| row.cells.len() == 2);
        let label = self
            .rows
            .iter()
            .map(|row| width(&row.label))
            .max()
            .unwrap_or(0);
        let [dense, hira] = [0, 1].map(|column| {
            pairs()
                .map(|row| width(&row.cells[column]))
                .max()
                .unwrap_or(0)
        });
        let single = self
            .rows
            .iter()
            .filter(|row| row.cells.len() == 1)
            .map(|row| width(&row.cells[0]))
            .max();
        let all = label + 2 + (dense + 2 + hira).max(single.unwrap_or(0));
        for row in &self.rows {
            match row.cells.as_slice() {
                [] => writeln!(f, "{}", "-".repeat(all))?,
                [first, second] => {
                    writeln!(f, "{:label$}  {first:>dense$}  {second:>hira$}", row.label)?
                }
                cells => writeln!(f, "{:label$}  {}", row.label, cells.concat())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::default();
        table.pair("", "dense", "Hira");
        table.line();
        table.pair("tokens/s", "9.5", "21.25");
        table.one("both", "x");
        let expected = [
            "          dense   Hira",
            "----------------------",
            "tokens/s    9.5  21.25",
            "both      x",
        ];
        assert_eq!(table.to_string().lines().collect::<Vec<_>>(), expected);
    }
}
