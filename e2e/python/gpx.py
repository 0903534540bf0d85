"""Whether a file is GPX 1.1 as its schema has it (topografix.com/GPX/1/1/gpx.xsd): which elements, in which order, with which values.

The schema's own text is not here: its licence says nothing about copies. These are its rules for what `nearby history export` may write.
"""

import re
import sys
import xml.etree.ElementTree as tree

GPX = "{http://www.topografix.com/GPX/1/1}"
# The sequences of gpxType, metadataType, trkType, trksegType and wptType.
CHILDREN = {
    "gpx": "metadata wpt* rte* trk* extensions",
    "metadata": "name desc author copyright link* time keywords bounds extensions",
    "trk": "name cmt desc src link* number type extensions trkseg*",
    "trkseg": "trkpt* extensions",
    "trkpt": "ele time magvar geoidheight name cmt desc src link* sym type fix sat hdop vdop pdop ageofdgpsdata dgpsid extensions",
}
ATTRIBUTES = {"gpx": ["creator", "version"], "trkpt": ["lat", "lon"]}
TIME = re.compile(r"-?\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?")
DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")


def check(element):
    name = element.tag.removeprefix(GPX)
    if name == "extensions":
        own = [child.tag for child in element if child.tag.startswith(GPX) or not child.tag.startswith("{")]
        return [f"extensions of GPX's own: {own}"] if own else []
    wrong = []
    if sorted(element.keys()) != ATTRIBUTES.get(name, []):
        wrong.append(f"{name} has the attributes {sorted(element.keys())}")
    if name == "trkpt":
        lat, lon = element.get("lat", ""), element.get("lon", "")
        if not (DECIMAL.fullmatch(lat) and -90 <= float(lat) <= 90 and DECIMAL.fullmatch(lon) and -180 <= float(lon) < 180):
            wrong.append(f"no place: {lat} {lon}")
    if name == "time" and not TIME.fullmatch(element.text or ""):
        wrong.append(f"no time: {element.text}")
    if name not in CHILDREN:
        return wrong + [f"{name} has children" for _ in element]
    # As a word a child: the sequence is a regular expression.
    words = "".join(child.tag.removeprefix(GPX) + " " for child in element)
    sequence = "".join(f"({word.rstrip('*')} ){'*' if word.endswith('*') else '?'}" for word in CHILDREN[name].split())
    if not re.fullmatch(sequence, words):
        wrong.append(f"{name} has {words[:200]}")
    if (element.text or "").strip() or any((child.tail or "").strip() for child in element):
        wrong.append(f"{name} has text")
    for child in element:
        wrong.extend(check(child))
    return wrong


def main():
    root = tree.parse(sys.argv[1]).getroot()
    wrong = check(root) if root.tag == f"{GPX}gpx" and root.get("version") == "1.1" else [f"no GPX 1.1: {root.tag}"]
    if wrong:
        sys.exit("\n".join(wrong[:5]))
    print(sum(1 for _ in root.iter(f"{GPX}trkpt")))


main()
