"""The views of the history, computed plainly from recorded movement, to compare with what Postgres says.

    python e2e/python/history.py reports gowalla-nyc FOLDER          prints "user milliseconds lat_e7 lon_e7", in order of the log
    python e2e/python/history.py friends gowalla-nyc FOLDER          prints "user friend"
    python e2e/python/history.py VIEW gowalla-nyc FOLDER < ROWS      compares the rows of a view, as psql prints them

It shares nothing with the views but their comments. Times are milliseconds since 1970, UTC.
"""

import collections
import datetime
import gzip
import itertools
import math
import pathlib
import sys

import h3

MINUTE, SLOT, HOUR, DAY = 60_000, 600_000, 3_600_000, 86_400_000
Fix = collections.namedtuple("Fix", "time lat lon")


def lines(path):
    with gzip.open(path, "rt") as file:
        return file.read().splitlines()


def gowalla_reports(folder):
    # A user's newest check-in comes first: from the back, and stable, equal times keep their order.
    for line in sorted(reversed(lines(folder / "checkins.tsv.gz")), key=lambda line: line.split("\t")[1]):
        user, time, lat, lon, _ = line.split("\t")
        seconds = datetime.datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()
        yield int(user), int(seconds) * 1000, float(lat), float(lon)


def taxi_reports(folder):
    numbers = {}
    for line in lines(folder / "cabs.txt.gz"):
        taxi, lat, lon, _, seconds = line.split()
        yield numbers.setdefault(taxi, len(numbers) + 1), int(seconds) * 1000, float(lat), float(lon)


def reports(source, folder):
    of = {"gowalla-nyc": gowalla_reports, "cabspotting-sf": taxi_reports}[source]
    return [(user, time, round(lat * 1e7), round(lon * 1e7)) for user, time, lat, lon in of(folder)]


def friends(source, folder):
    """Who is in whose list. Taxis have no friends: here each has the two taxis with the next numbers, by invention."""
    if source == "cabspotting-sf":
        return [(taxi, taxi + next) for taxi in range(1, 500) for next in (1, 2)]
    return [tuple(map(int, line.split("\t"))) for line in lines(folder / "friends.tsv.gz")[1:]]


def distance_m(a, b):
    """By the angle between two vectors, not by the haversine."""
    def vector(fix):
        lat, lon = math.radians(fix.lat), math.radians(fix.lon)
        return math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)
    return 2 * 6_371_008.8 * math.asin(min(1, math.dist(vector(a), vector(b)) / 2))


def histories(source, folder):
    """Each user's fixes in order of time, each time once: of several the last in the log."""
    fixes = collections.defaultdict(dict)
    for user, time, lat_e7, lon_e7 in reports(source, folder):
        fixes[user][time] = Fix(time, lat_e7 / 1e7, lon_e7 / 1e7)
    return {user: [fix for _, fix in sorted(of_user.items())] for user, of_user in fixes.items()}


def latest_positions(users, _):
    for user, fixes in users.items():
        last = fixes[-1]
        yield (user, last.time), (last.lat, last.lon, h3.str_to_int(h3.latlng_to_cell(last.lat, last.lon, 9)))


def user_days(users, _):
    for user, fixes in users.items():
        for day, of_day in itertools.groupby(fixes, lambda fix: fix.time // DAY):
            of_day = list(of_day)
            metres = sum(distance_m(a, b) for a, b in zip(of_day, of_day[1:]))
            yield (user, day * DAY), (len(of_day), metres, of_day[0].time, of_day[-1].time)


def cell_hours(users, _):
    busy = collections.defaultdict(list)
    for user, fixes in users.items():
        for fix in fixes:
            cell = h3.str_to_int(h3.latlng_to_cell(fix.lat, fix.lon, 9))
            busy[cell, fix.time // HOUR * HOUR].append(user)
    for key, people in busy.items():
        yield key, (len(people), len(set(people)))


def stays(users, _):
    for user, fixes in users.items():
        runs = []
        for fix in fixes:
            if runs and distance_m(runs[-1][0], fix) <= 200:
                runs[-1].append(fix)
            else:
                runs.append([fix])
        for run in runs:
            lasted = run[-1].time - run[0].time
            if lasted >= 10 * MINUTE:
                yield (user, run[0].time), (run[-1].time, lasted / 1000, len(run), run[0].lat, run[0].lon)


def encounters(users, friendships):
    slots = {}
    for user, fixes in users.items():
        last_of_minutes = {fix.time // MINUTE: fix for fix in fixes}
        slots[user] = collections.defaultdict(list)
        for fix in last_of_minutes.values():
            slots[user][fix.time // SLOT * SLOT].append(fix)
    for a, b in {(min(pair), max(pair)) for pair in friendships if pair[0] != pair[1]}:
        for slot in slots.get(a, {}).keys() & slots.get(b, {}).keys():
            nearest = min(distance_m(here, there) for here in slots[a][slot] for there in slots[b][slot])
            if nearest <= 8000:
                yield (slot, a, b), (nearest,)


def compare(view, source, folder):
    """Rows are compared by their key, the columns before `len(key)`; integers (times, cells, counts) are equal.
    Floats are metres, by a millimetre, or else degrees or seconds, by 1e-7, which is what a report's degrees are kept to."""
    tolerance = 1e-3 if view in (user_days, encounters) else 1e-7
    expected = dict(view(histories(source, folder), friends(source, folder)))
    found, repeated = {}, 0
    for line in sys.stdin:
        fields = [float(field) if "." in field or "e" in field else int(field) for field in line.split("|")]
        size = len(next(iter(expected)))
        repeated += tuple(fields[:size]) in found
        found[tuple(fields[:size])] = tuple(fields[size:])

    def same(a, b):
        return len(a) == len(b) and all(
            x == y if isinstance(x, int) and isinstance(y, int) else abs(x - y) <= tolerance for x, y in zip(a, b))
    wrong = [key for key in expected.keys() | found.keys()
             if key not in expected or key not in found or not same(expected[key], found[key])]
    for key in wrong[:5]:
        print(key, "expected", expected.get(key), "found", found.get(key), file=sys.stderr)
    print(f"{len(expected)} expected, {len(found)} found, {repeated} repeated, {len(wrong)} wrong")


def main():
    what, source, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    if what in ("reports", "friends"):
        for row in {"reports": reports, "friends": friends}[what](source, folder):
            print(*row)
    else:
        views = [latest_positions, user_days, cell_hours, stays, encounters]
        compare({view.__name__: view for view in views}[what], source, folder)


main()
