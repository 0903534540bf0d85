//! A picture of the costs: a bar a line of the table, from nothing to the median, with minimum and maximum marked. Logarithmic, since
//! peers differ by orders of magnitude. Pure.

use super::measured::Row;
use std::fmt::Write;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 230.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 70.0;
const BAR: f64 = 18.0;
const STEP: f64 = 26.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 4] = ["#3b5b92", "#a4462f", "#5f7d3a", "#8a6d3b"];

/// The picture; none if nothing was measured.
pub fn picture(rows: &[Row], subtitle: &str) -> Option<String> {
    let rows: Vec<&Row> = rows.iter().filter(|row| !row.runs.is_empty()).collect();
    let costs: Vec<_> = rows.iter().map(|row| row.cpu_s_per_million()).collect();
    let lowest = costs.iter().map(|cost| cost.minimum()).reduce(f64::min)?.max(0.001).log10().floor();
    let highest = costs.iter().map(|cost| cost.maximum()).reduce(f64::max)?.max(0.01).log10().ceil().max(lowest + 1.0);
    let bottom = TOP + STEP * as_f64(rows.len());
    let x = |cost: f64| LEFT + (cost.max(0.001).log10() - lowest) / (highest - lowest) * (WIDTH - LEFT - RIGHT);
    let title = "CPU-seconds of all server processes per million reports";
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#222\">\n<title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"20\" y=\"28\" font-size=\"18\" font-weight=\"600\">{title}</text>\n\
         <text x=\"20\" y=\"48\" fill=\"#555\">{subtitle}</text>\n",
        height = bottom + BOTTOM,
        subtitle = escaped(subtitle),
    );
    let mut power = lowest;
    while power <= highest {
        let (tick, at) = (10_f64.powf(power), x(10_f64.powf(power)));
        line(&mut svg, (at, TOP - 6.0), (at, bottom), "#e4e4e4");
        words(&mut svg, (at, bottom + 18.0), "middle", &format!("{tick}"));
        power += 1.0;
    }
    words(&mut svg, (LEFT, bottom + 38.0), "start", "logarithmic; bar: median, line: minimum to maximum");
    let mut peers: Vec<&str> = rows.iter().map(|row| row.peer).collect();
    peers.dedup();
    for (number, (row, cost)) in rows.iter().zip(&costs).enumerate() {
        let y = TOP + STEP * as_f64(number);
        let colour = peers.iter().position(|peer| *peer == row.peer).unwrap_or_default();
        words(&mut svg, (LEFT - 8.0, y + 14.0), "end", &format!("{} {}", row.peer, row.setting));
        writeln!(
            svg,
            "<rect x=\"{LEFT:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR:.1}\" fill=\"{}\"/>",
            x(cost.median()) - LEFT,
            COLOURS[colour % COLOURS.len()]
        )
        .expect("a string");
        let middle = y + BAR / 2.0;
        line(&mut svg, (x(cost.minimum()), middle), (x(cost.maximum()), middle), "#222");
        words(&mut svg, (x(cost.maximum()) + 6.0, y + 14.0), "start", &format!("{:.1}", cost.median()));
    }
    Some(svg + "</svg>\n")
}

fn words(svg: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    let words = escaped(words);
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>").expect("a string");
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
    writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>")
        .expect("a string");
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[expect(clippy::cast_precision_loss, reason = "some lines of a table")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::super::tables::tests::row;
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_cost() {
        // Per million: 10, and 100.
        let rows = [row("nearby", "2 gateways", [4.0; 3]), row("redis", "a < b", [49.0; 3])];
        let picture = picture(&rows, "W & more").unwrap();
        // 10 to 100, so the second is as long as the picture is wide.
        let full = WIDTH - LEFT - RIGHT;
        for expected in ["width=\"0.0\"", &format!("width=\"{full:.1}\""), "redis a &lt; b", "W &amp; more", ">100.0<"]
        {
            assert!(picture.contains(expected), "no {expected} in {picture}");
        }
        assert_eq!(super::picture(&[], ""), None);
    }
}
