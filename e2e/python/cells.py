"""H3 by the package h3, of the people who made it, to compare with.

    python e2e/python/cells.py of         reads places, "lat lon", prints the cell of each at resolution 9
    python e2e/python/cells.py parents    prints "cell resolution parent" of very many cells, the pentagons among them
"""

import random
import sys

import h3


def of():
    for line in sys.stdin:
        lat, lon = map(float, line.split())
        print(h3.str_to_int(h3.latlng_to_cell(lat, lon, 9)))


def parents():
    dice = random.Random(1)
    cells = [h3.latlng_to_cell(dice.uniform(-90, 90), dice.uniform(-180, 180), dice.choice([5, 7, 9, 9, 15])) for _ in range(20_000)]
    for resolution in range(16):
        for pentagon in h3.get_pentagons(resolution):
            cells.append(pentagon)
            cells.extend(h3.grid_disk(pentagon, 1))
    for cell in cells:
        finest = h3.get_resolution(cell)
        for resolution in {0, 5, 7, finest}:
            if resolution <= finest:
                print(h3.str_to_int(cell), resolution, h3.str_to_int(h3.cell_to_parent(cell, resolution)))


{"of": of, "parents": parents}[sys.argv[1]]()
