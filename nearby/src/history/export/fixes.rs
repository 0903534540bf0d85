//! Of one user's rows in order of time those that are fixes, as the view `fixes` has them: of several reports of one time the
//! last in the log. Withdrawals pass as they are, since they end a track. Pure.

use super::Row;

/// Holds one row until it is known whether it is the last of its time.
#[derive(Default)]
pub struct Fixes {
    held: Option<Row>,
}

impl Fixes {
    /// Takes the next row, or the end; gives one that is complete.
    pub fn next(&mut self, row: Option<Row>) -> Option<Row> {
        match (&self.held, row) {
            (Some(held), Some(row)) if same_time(held, &row) => {
                if row.kafka_offset >= held.kafka_offset {
                    self.held = Some(row);
                }
                None
            }
            (_, row) => std::mem::replace(&mut self.held, row),
        }
    }
}

/// Withdrawals are no reports of a place: they replace none.
fn same_time(held: &Row, row: &Row) -> bool {
    held.reported_at_us == row.reported_at_us && held.lat.is_some() == row.lat.is_some()
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;

    fn of(rows: &[Row]) -> Vec<(i64, i64)> {
        let mut fixes = Fixes::default();
        let given = rows.iter().cloned().map(Some).chain([None]).filter_map(|row| fixes.next(row));
        given.map(|row| (row.reported_at_us / 1_000_000, row.kafka_offset)).collect()
    }

    #[test]
    fn of_one_time_the_last_in_the_log() {
        let row = |second, kafka_offset| Row { kafka_offset, ..at(second, 1.0, 2.0) };
        let withdrawn = |second, kafka_offset| Row { lat: None, lon: None, ..row(second, kafka_offset) };
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[row(1, 0), row(1, 3), row(1, 2), row(2, 1)]), [(1, 3), (2, 1)]);
        assert_eq!(of(&[row(1, 0), withdrawn(1, 1), row(2, 2)]), [(1, 0), (1, 1), (2, 2)]);
    }
}
