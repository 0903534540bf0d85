"""Reports a recorded day of San Francisco's taxis to a server, as if it had been yesterday. Python's standard library is enough.

    TOKEN=$(nearby token --user 1 --scope ingest:any)
    TOKEN=$TOKEN python3 e2e/python/taxis.py http://127.0.0.1:8080 cabs.txt.gz

Lines are "taxi latitude longitude occupied seconds". Taxis become the users 1, 2, 3 and so on. The day moves by whole days, so that the
hours stay what they were: the server takes what is at most 7 days old.
"""

import gzip
import json
import os
import sys
import time
import urllib.request

DAY_S = 86_400
REPORTS_MAX = 1000


def main():
    url, path = sys.argv[1:]
    with gzip.open(path, "rt") as file:
        rows = [line.split() for line in file]
    users = {}
    last_s = max(int(row[4]) for row in rows)
    shift_s = (int(time.time()) - last_s) // DAY_S * DAY_S
    reports = [
        {
            "user_id": str(users.setdefault(taxi, len(users) + 1)),
            "lat": float(lat),
            "lon": float(lon),
            "reported_at_ms": (int(seconds) + shift_s) * 1000,
        }
        for taxi, lat, lon, _, seconds in rows
    ]
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}", "Content-Type": "application/json"}
    for begin in range(0, len(reports), REPORTS_MAX):
        body = json.dumps(reports[begin : begin + REPORTS_MAX]).encode()
        request = urllib.request.Request(f"{url}/v1/locations", body, headers)
        with urllib.request.urlopen(request) as answer:
            answer.read()
    first, last = reports[0]["reported_at_ms"], reports[-1]["reported_at_ms"]
    print(f"{len(reports)} reports of {len(users)} taxis, from {first} to {last}")


main()
