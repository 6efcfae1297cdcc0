//! Figures, their bounds, and whether they hold.

use crate::Result;

/// What a figure has to be.
#[derive(Clone, Copy)]
pub enum Bound {
    None,
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Default)]
pub struct Report {
    rows: Vec<(String, f64, Bound)>,
}

impl Report {
    /// Adds a figure, and shows it at once.
    pub fn add(&mut self, what: &str, value: f64, bound: Bound) {
        let (wanted, holds) = match bound {
            Bound::None => (String::new(), true),
            Bound::AtMost(most) => (format!("at most {most}"), value <= most),
            Bound::AtLeast(least) => (format!("at least {least}"), value >= least),
        };
        let mark = if holds { "ok" } else { "--" };
        println!("{mark}  {what:<72} {value:>12.3}  {wanted}");
        self.rows.push((what.to_owned(), value, bound));
    }

    /// Fails when a figure is out of its bound.
    pub fn finish(self) -> Result<()> {
        let out = self
            .rows
            .iter()
            .filter(|(_, value, bound)| match bound {
                Bound::None => false,
                Bound::AtMost(most) => value > most,
                Bound::AtLeast(least) => value < least,
            })
            .count();
        println!("{} figures, {out} out of their bounds", self.rows.len());
        if out > 0 { Err(format!("{out} figures are out of their bounds").into()) } else { Ok(()) }
    }
}

/// The middle value; 0 of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
