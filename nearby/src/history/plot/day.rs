//! A day by its hours: fixes above, people below. Pure.

use super::HOURS;
use super::svg::{Anchor, Svg, step};
use crate::history::grouped;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 92.0;
const PANEL: f64 = 190.0;
const BETWEEN: f64 = 58.0;
const BOTTOM: f64 = 58.0;

/// The hours' fixes and people; the first of them is this hour of the day, UTC.
pub fn picture(title: &str, first_hour: usize, hours: &[(i64, i64); HOURS]) -> String {
    let mut svg = Svg::new(WIDTH, TOP + 2.0 * PANEL + BETWEEN + BOTTOM, title);
    let fixes = hours.map(|(fixes, _)| fixes);
    svg.heading(LEFT, title, &format!("{} fixes; each person and moment counted once", grouped(fixes.iter().sum())));
    panel(&mut svg, TOP, "fixes per hour", "#3b5b92", first_hour, &fixes);
    panel(&mut svg, TOP + PANEL + BETWEEN, "people per hour", "#a4462f", first_hour, &hours.map(|(_, people)| people));
    let bottom = TOP + 2.0 * PANEL + BETWEEN;
    svg.words((f64::midpoint(LEFT, WIDTH - RIGHT), bottom + 44.0), Anchor::Middle, "hour of the day, UTC");
    svg.finish()
}

fn panel(svg: &mut Svg, top: f64, name: &str, colour: &str, first_hour: usize, values: &[i64; HOURS]) {
    let (right, bottom) = (WIDTH - RIGHT, top + PANEL);
    let most = values.iter().copied().max().unwrap_or(0).max(1) as f64;
    let step = step(most, 4.0).max(1.0);
    let full = (most / step).ceil() * step;
    svg.raw(&format!("<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"600\" fill=\"{colour}\">{name}</text>", top - 12.0));
    let mut tick = 0.0;
    while tick <= full {
        let y = bottom - tick / full * PANEL;
        svg.line((LEFT, y), (right, y), if tick == 0.0 { "#222" } else { "#e4e4e4" });
        svg.words((LEFT - 8.0, y + 4.0), Anchor::End, &grouped(tick as i64));
        tick += step;
    }
    let slot = (right - LEFT) / HOURS as f64;
    for (index, value) in values.iter().enumerate() {
        let (x, height) = (LEFT + index as f64 * slot, *value as f64 / full * PANEL);
        svg.raw(&format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>",
            x + 2.0,
            bottom - height,
            slot - 4.0
        ));
        let hour = (first_hour + index) % HOURS;
        svg.words((x + slot / 2.0, bottom + 18.0), Anchor::Middle, &format!("{hour:02}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_bar_is_the_busiest_hour() {
        let mut hours = [(0, 0); HOURS];
        hours[3] = (2_000, 40);
        hours[4] = (500, 10);
        let picture = picture("Activity", 8, &hours);
        assert_eq!(picture.matches("<rect x=").count(), 2 * HOURS);
        assert_eq!(
            picture.matches("height=\"190.0\"").count(),
            2,
            "both panels are as high as their highest bar\n{picture}"
        );
        assert!(
            picture.contains("2,500 fixes") && picture.contains(">2,000<") && picture.contains(">08<"),
            "{picture}"
        );
    }
}
