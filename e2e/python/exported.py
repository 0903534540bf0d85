"""What other tools read in a file of `nearby history export`: a line a row or fix, columns parted by |, nothing for null.

Arguments: the tool and the file. First comes what the tool takes the columns for. Times are microseconds since 1970.

- pyarrow, duckdb: Parquet; duckdb-csv: CSV
- gdal LAYER: GeoJSON or GPX, with what QGIS and others read them with
- geojson: GeoJSON, if all of it is valid by RFC 7946
"""

import sys
from datetime import datetime, timezone
from struct import unpack

DEGREES = ("lat", "lon")
METRES = ("accuracy_m", "speed_mps", "heading_deg")
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def us(time):
    # Integers: a float of seconds has no room for microseconds.
    since = time - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def text(name, value):
    if value is None:
        return ""
    if isinstance(value, datetime):
        return str(us(value))
    if name in DEGREES:
        return f"{value:.7f}"
    if name in METRES:
        return f"{value:.3f}"
    return str(value)


def rows(names, values):
    for row in values:
        print("|".join(text(name, value) for name, value in zip(names, row)))


def pyarrow(path):
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    print("; ".join(f"{field.name} {field.type}{'' if field.nullable else ' not null'}" for field in file.schema_arrow))
    print("groups", *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)))
    table = file.read()
    rows(table.column_names, zip(*(column.to_pylist() for column in table.columns)))


def duckdb(path, reader="read_parquet"):
    import duckdb as tool

    connection = tool.connect()
    connection.execute("SET TimeZone = 'UTC'")
    columns = connection.execute(f"DESCRIBE SELECT * FROM {reader}(?)", [path]).fetchall()
    print("; ".join(f"{column[0]} {column[1]}" for column in columns))
    # DuckDB gives moments as Python's only with another package; its own arithmetic does without.
    wanted = [f"epoch_us({name})" if kind.startswith("TIMESTAMP") else name for name, kind, *_ in columns]
    found = connection.execute(f"SELECT {', '.join(wanted)} FROM {reader}(?)", [path])
    rows([column[0] for column in columns], found.fetchall())


def gdal(path, layer):
    from pyogrio import list_layers
    from pyogrio.raw import read

    print("; ".join(f"{name} {kind}" for name, kind in list_layers(path)))
    meta, _, geometries, fields = read(path, layer=layer, datetime_as_string=True)
    names = list(meta["fields"])
    print(meta["crs"], *(f"{name} {kind}" for name, kind in zip(names, meta["dtypes"])), sep="; ")
    for at, wkb in enumerate(geometries):
        order, kind, lon, lat = unpack("<BIdd", wkb[:21])
        assert (order, kind) == (1, 1), "a point"
        named = {name: column[at] for name, column in zip(names, fields)}
        time = named.get("reported_at") or named.get("time")
        segment = named.get("track_seg_id", 0)
        print(us(datetime.fromisoformat(time.replace("Z", "+00:00"))), f"{lat:.7f}", f"{lon:.7f}", segment, sep="|")


def geojson(path):
    import geojson as tool

    # It rounds to six decimals by itself.
    tool.geometry.DEFAULT_PRECISION = 7
    with open(path, encoding="utf-8") as file:
        collection = tool.load(file)
    assert collection.is_valid, collection.errors()
    for feature in collection.features:
        (lon, lat), time = feature.geometry.coordinates, feature.properties["reported_at"]
        print(us(datetime.fromisoformat(time.replace("Z", "+00:00"))), f"{lat:.7f}", f"{lon:.7f}", 0, sep="|")


if __name__ == "__main__":
    tool, path, *more = sys.argv[1:]
    {
        "pyarrow": pyarrow,
        "duckdb": duckdb,
        "duckdb-csv": lambda path: duckdb(path, "read_csv"),
        "gdal": gdal,
        "geojson": geojson,
    }[tool](path, *more)
