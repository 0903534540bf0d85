//! A map of H3 cells, the busier the darker. Pure.

use super::svg::{Anchor, Svg, step};
use crate::history::grouped;
use h3o::CellIndex;
use std::fmt::Write;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 96.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 66.0;
const BOTTOM: f64 = 56.0;
/// The map's height, whatever the shape of the area.
const MAP_HEIGHT: std::ops::RangeInclusive<f64> = 240.0..=1_000.0;
/// This part of the fixes decides which area is shown: a phone that is lost at sea does not shrink the town.
const SHOWN: f64 = 0.995;
const DEGREE_KM: f64 = 111.195;
/// From few to many, light to dark, told apart by people who see no red or no green.
const COLOURS: [(f64, f64, f64); 5] =
    [(254.0, 237.0, 176.0), (250.0, 175.0, 94.0), (222.0, 92.0, 84.0), (139.0, 38.0, 108.0), (45.0, 15.0, 72.0)];

struct Cell {
    outline: Vec<(f64, f64)>,
    centre: (f64, f64),
    fixes: i64,
}

/// The map of these cells with their fixes; none if there is no cell.
pub fn picture(title: &str, subtitle: &str, busy: &[(i64, i64)]) -> Option<String> {
    let mut cells: Vec<Cell> = busy.iter().filter_map(|(cell, fixes)| cell_of(*cell, *fixes)).collect();
    unroll(&mut cells);
    let area = Area::of(&cells)?;
    let shown: Vec<&Cell> = cells.iter().filter(|cell| area.has(cell)).collect();
    let (most, all): (i64, i64) =
        (shown.iter().map(|cell| cell.fixes).max()?, shown.iter().map(|cell| cell.fixes).sum());
    let mut svg = Svg::new(WIDTH, TOP + area.height + BOTTOM, title);
    svg.heading(LEFT, title, &format!("{subtitle}: {} fixes in {} cells", grouped(all), grouped(shown.len() as i64)));
    axes(&mut svg, &area);
    let mut outlines = "<g stroke=\"#fff\" stroke-width=\"0.5\">\n".to_owned();
    for cell in shown {
        let points: Vec<String> =
            cell.outline.iter().map(|place| area.point(*place)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let colour = colour(share(cell.fixes, most));
        writeln!(outlines, "<polygon points=\"{}\" fill=\"{colour}\"/>", points.join(" ")).expect("a string");
    }
    svg.raw(&(outlines + "</g>"));
    scale(&mut svg, &area);
    legend(&mut svg, &area, most);
    Some(svg.finish())
}

fn cell_of(cell: i64, fixes: i64) -> Option<Cell> {
    let cell = CellIndex::try_from(cell.cast_unsigned()).ok()?;
    let centre = h3o::LatLng::from(cell);
    let outline = cell.boundary().iter().map(|place| (place.lat(), place.lng())).collect();
    Some(Cell { outline, centre: (centre.lat(), centre.lng()), fixes })
}

/// Cuts the globe open where the widest stretch without a cell is, instead of at the antimeridian: what is east of the cut and west of
/// the antimeridian gets longitudes above 180°. No cell is torn.
fn unroll(cells: &mut [Cell]) {
    let mut lons: Vec<f64> = cells.iter().map(|cell| cell.centre.1).collect();
    lons.sort_by(f64::total_cmp);
    let round = lons.first().map(|first| first + 360.0);
    let gaps = lons.iter().zip(lons.iter().skip(1).copied().chain(round)).map(|(west, east)| (east - west, *west));
    let Some((_, cut)) = gaps.max_by(|a, b| a.0.total_cmp(&b.0)) else { return };
    let is_whole = lons.last().is_some_and(|last| (last - cut).abs() < f64::EPSILON);
    for cell in cells {
        if !is_whole && cell.centre.1 <= cut {
            cell.centre.1 += 360.0;
        }
        for (_, lon) in &mut cell.outline {
            *lon += ((cell.centre.1 - *lon) / 360.0).round() * 360.0;
        }
    }
}

/// What is shown of the world, and how large.
struct Area {
    south: f64,
    north: f64,
    west: f64,
    east: f64,
    height: f64,
}

impl Area {
    fn of(cells: &[Cell]) -> Option<Area> {
        let (south, north) = middle(cells, |cell| cell.centre.0)?;
        let (west, east) = middle(cells, |cell| cell.centre.1)?;
        // Room for whole cells at the edges.
        let (lat, lon) = (cells[0].outline.iter().map(|place| place.0), cells[0].outline.iter().map(|place| place.1));
        let pad = (lat.clone().fold(f64::MIN, f64::max) - lat.fold(f64::MAX, f64::min))
            .max(lon.clone().fold(f64::MIN, f64::max) - lon.fold(f64::MAX, f64::min))
            .min(1.0);
        let (south, north, west, east) = (south - pad, north + pad, west - pad, east + pad);
        let shrink = ((south + north) / 2.0).to_radians().cos().max(0.05);
        let width = WIDTH - LEFT - RIGHT;
        let height = (width * (north - south) / ((east - west) * shrink)).clamp(*MAP_HEIGHT.start(), *MAP_HEIGHT.end());
        // The other side grows with a height that was bounded, so that a kilometre is as long both ways.
        let (tall, wide) = ((north - south) * width / height, (east - west) * shrink);
        let more = |from: f64, to: f64, by: f64| (from - by / 2.0, to + by / 2.0);
        let ((south, north), (west, east)) = if tall > wide {
            ((south, north), more(west, east, (tall - wide) / shrink))
        } else {
            (more(south, north, (wide - tall) * height / width), (west, east))
        };
        Some(Area { south, north, west, east, height })
    }

    fn has(&self, cell: &Cell) -> bool {
        let inside = |(lat, lon): &(f64, f64)| {
            self.south <= *lat && *lat <= self.north && self.west <= *lon && *lon <= self.east
        };
        cell.outline.iter().all(inside)
    }

    fn point(&self, (lat, lon): (f64, f64)) -> (f64, f64) {
        let x = LEFT + (lon - self.west) / (self.east - self.west) * (WIDTH - LEFT - RIGHT);
        (x, TOP + (self.north - lat) / (self.north - self.south) * self.height)
    }
}

/// From where to where most fixes are, by one coordinate.
fn middle(cells: &[Cell], coordinate: impl Fn(&Cell) -> f64) -> Option<(f64, f64)> {
    let mut by_coordinate: Vec<(f64, i64)> = cells.iter().map(|cell| (coordinate(cell), cell.fixes)).collect();
    by_coordinate.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all: i64 = by_coordinate.iter().map(|(_, fixes)| fixes).sum();
    let left_out = all as f64 * (1.0 - SHOWN) / 2.0;
    let reach = |cells: &mut dyn Iterator<Item = &(f64, i64)>| {
        let mut passed = 0.0;
        for (coordinate, fixes) in cells {
            passed += *fixes as f64;
            if passed > left_out {
                return Some(*coordinate);
            }
        }
        None
    };
    Some((reach(&mut by_coordinate.iter())?, reach(&mut by_coordinate.iter().rev())?))
}

fn axes(svg: &mut Svg, area: &Area) {
    let (right, bottom) = (WIDTH - RIGHT, TOP + area.height);
    let (lon_step, lat_step) = (step(area.east - area.west, 6.0), step(area.north - area.south, 6.0));
    for lon in ticks(area.west, area.east, lon_step) {
        let (x, _) = area.point((area.south, lon));
        svg.line((x, TOP), (x, bottom + 5.0), "#e4e4e4");
        svg.words((x, bottom + 20.0), Anchor::Middle, &degrees(lon, lon_step, 'E', 'W'));
    }
    for lat in ticks(area.south, area.north, lat_step) {
        let (_, y) = area.point((lat, area.west));
        svg.line((LEFT - 5.0, y), (right, y), "#e4e4e4");
        svg.words((LEFT - 9.0, y + 4.0), Anchor::End, &degrees(lat, lat_step, 'N', 'S'));
    }
    svg.words((f64::midpoint(LEFT, right), bottom + 42.0), Anchor::Middle, "longitude");
    svg.raw(&format!(
        "<text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">latitude</text>",
        TOP + area.height / 2.0
    ));
}

fn ticks(from: f64, to: f64, step: f64) -> impl Iterator<Item = f64> {
    let first = (from / step).ceil();
    (0..32).map(move |index| (first + f64::from(index)) * step).take_while(move |tick| *tick <= to)
}

fn degrees(value: f64, step: f64, positive: char, negative: char) -> String {
    // Beyond the antimeridian.
    let value = if value > 180.0 { value - 360.0 } else { value };
    let digits = (-step.log10().floor()).max(0.0) as usize;
    format!("{:.digits$}° {}", value.abs(), if value < 0.0 { negative } else { positive })
}

/// A bar as long as so many kilometres.
fn scale(svg: &mut Svg, area: &Area) {
    let across_km = (area.north - area.south) * DEGREE_KM / area.height * (WIDTH - LEFT - RIGHT);
    let long_km = step(across_km, 8.0);
    let (x, y) = (LEFT + 14.0, TOP + area.height - 14.0);
    let to = x + long_km / across_km * (WIDTH - LEFT - RIGHT);
    let label = if long_km < 1.0 { format!("{:.0} m", long_km * 1_000.0) } else { format!("{long_km:.0} km") };
    svg.raw(&format!(
        "<path d=\"M{x:.1} {:.1}V{y:.1}H{to:.1}V{:.1}\" fill=\"none\" stroke=\"#222\" stroke-width=\"2\"/>",
        y - 5.0,
        y - 5.0
    ));
    svg.words((f64::midpoint(x, to), y - 9.0), Anchor::Middle, &label);
}

/// The colours with their numbers of fixes: by logarithm, because few cells are very busy.
fn legend(svg: &mut Svg, area: &Area, most: i64) {
    let (x, height) = (WIDTH - RIGHT + 22.0, area.height.min(260.0));
    let bottom = TOP + 24.0 + height;
    svg.words((x, TOP + 8.0), Anchor::Start, "fixes");
    for index in 0..64 {
        let part = f64::from(index) / 63.0;
        let y = bottom - (part * height).min(height - height / 64.0) - height / 64.0;
        svg.raw(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.2}\" width=\"16\" height=\"{:.2}\" fill=\"{}\"/>",
            height / 64.0 + 0.5,
            colour(part)
        ));
    }
    let powers = (0..18).map(|power| 10_i64.pow(power)).take_while(|power| *power < most);
    for fixes in powers.filter(|power| share(*power, most) < 0.93).chain([most]) {
        let y = bottom - share(fixes, most) * height;
        svg.line((x + 16.0, y), (x + 21.0, y), "#222");
        svg.words((x + 25.0, y + 4.0), Anchor::Start, &grouped(fixes));
    }
}

/// How far a number is on the way from 1 to the largest, by logarithm.
fn share(fixes: i64, most: i64) -> f64 {
    if most <= 1 { 1.0 } else { (fixes as f64).ln() / (most as f64).ln() }
}

fn colour(share: f64) -> String {
    let at = share.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f64;
    let index = (at as usize).min(COLOURS.len() - 2);
    let (from, to, part) = (COLOURS[index], COLOURS[index + 1], at - index as f64);
    let mix = |from: f64, to: f64| (from + (to - from) * part).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_town_is_drawn_and_one_far_away_is_not() {
        let town = h3o::LatLng::new(37.77, -122.42).expect("a place").to_cell(h3o::Resolution::Nine);
        let far = h3o::LatLng::new(50.3, -122.42).expect("a place").to_cell(h3o::Resolution::Nine);
        let id = |cell: CellIndex| u64::from(cell).cast_signed();
        let mut busy: Vec<(i64, i64)> = town.grid_disk::<Vec<_>>(2).into_iter().map(|cell| (id(cell), 100)).collect();
        busy.push((id(far), 1));
        // No H3 index.
        busy.push((77, 5));
        let picture = picture("Fixes", "2026", &busy).expect("a picture");
        assert_eq!(picture.matches("<polygon").count(), 19);
        assert!(picture.contains("1,900 fixes in 19 cells") && picture.contains("122.420° W"), "{picture}");
        assert!(super::picture("Fixes", "2026", &[]).is_none());
    }

    #[test]
    fn a_town_on_the_antimeridian_is_a_town() {
        let cells = |lon: f64| {
            let centre = h3o::LatLng::new(-16.8, lon).expect("a place").to_cell(h3o::Resolution::Nine);
            let ids = centre.grid_disk::<Vec<_>>(3).into_iter().map(|cell| (u64::from(cell).cast_signed(), 100));
            ids.collect::<Vec<(i64, i64)>>()
        };
        for lon in [179.999, -179.999, 180.0, 179.9, -179.9, 0.0] {
            let picture = picture("Fixes", "2026", &cells(lon)).expect("a picture");
            assert_eq!(picture.matches("<polygon").count(), 37, "{lon}");
            assert!(
                picture.contains(">500 m<") || picture.contains(">200 m<"),
                "{lon}: it is some 2 km wide\n{picture}"
            );
        }
        let picture = picture("Fixes", "2026", &cells(180.0)).expect("a picture");
        assert!(picture.contains(">179.990° E<") && picture.contains(">179.990° W<"), "{picture}");
    }

    #[test]
    fn busy_is_dark() {
        assert_eq!([colour(0.0), colour(1.0)], ["#feedb0", "#2d0f48"]);
        assert!(share(1, 1_000) < f64::EPSILON && (share(10, 1_000) - 1.0 / 3.0).abs() < 1e-9);
    }
}
