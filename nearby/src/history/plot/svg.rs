//! What both pictures are drawn with: text and lines, dark on white. Pure.

use std::fmt::Write;

/// Where the text stands at its point.
#[derive(Clone, Copy, PartialEq)]
pub enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// An SVG that is being drawn, in pixels.
pub struct Svg {
    text: String,
}

impl Svg {
    /// An empty white picture, read out as its title.
    pub fn new(width: f64, height: f64, title: &str) -> Svg {
        let title = escaped(title);
        Svg {
            text: format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
                 role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#222\">\n<title>{title}</title>\n\
                 <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
            ),
        }
    }

    /// Anything.
    pub fn raw(&mut self, element: &str) {
        self.text += element;
        self.text.push('\n');
    }

    /// Words at a point.
    pub fn words(&mut self, (x, y): (f64, f64), anchor: Anchor, words: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let words = escaped(words);
        writeln!(self.text, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>")
            .expect("a string");
    }

    /// Title and subtitle at the top.
    pub fn heading(&mut self, x: f64, title: &str, subtitle: &str) {
        let (title, subtitle) = (escaped(title), escaped(subtitle));
        self.raw(&format!("<text x=\"{x:.1}\" y=\"28\" font-size=\"18\" font-weight=\"600\">{title}</text>"));
        self.raw(&format!("<text x=\"{x:.1}\" y=\"48\" fill=\"#555\">{subtitle}</text>"));
    }

    /// A thin line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.raw(&format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"));
    }

    /// The whole picture.
    pub fn finish(self) -> String {
        self.text + "</svg>\n"
    }
}

/// 1, 2 or 5 times a power of ten, so that a range has about so many steps.
pub fn step(range: f64, steps: f64) -> f64 {
    let rough = range / steps;
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|times| times * power).find(|step| *step >= rough).unwrap_or(10.0 * power)
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        assert_eq!([(100.0, 5.0), (7.0, 5.0), (0.13, 6.0)].map(|(range, steps)| step(range, steps)), [20.0, 2.0, 0.05]);
    }
}
