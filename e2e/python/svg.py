"""What is in a picture: its elements by name and number, and then its words, a line each. Ends with an error if it is no well-formed SVG."""

import collections
import sys
import xml.etree.ElementTree as tree

SVG = "{http://www.w3.org/2000/svg}"


def main():
    root = tree.parse(sys.argv[1]).getroot()
    elements = list(root.iter())
    foreign = {element.tag for element in elements if not element.tag.startswith(SVG)}
    if root.tag != f"{SVG}svg" or foreign:
        sys.exit(f"no SVG: {root.tag} {foreign}")
    for name, count in sorted(collections.Counter(element.tag.removeprefix(SVG) for element in elements).items()):
        print(name, count)
    _, _, width, height = (float(number) for number in root.get("viewBox").split())
    for element in root.iter(f"{SVG}polygon"):
        for point in element.get("points").split():
            x, y = (float(number) for number in point.split(","))
            if not (0 <= x <= width and 0 <= y <= height):
                sys.exit(f"{x},{y} is outside of the picture")
    for element in root.iter(f"{SVG}rect"):
        if element.get("width") != "100%" and float(element.get("height")) < 0:
            sys.exit("a bar without height")
    for element in root.iter(f"{SVG}text"):
        print("text", element.text)


main()
