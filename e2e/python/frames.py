"""Recorded frames against schemas/asyncapi.yaml, and that file against AsyncAPI's own schema.

Standard input has a frame a line: {"direction": "sent" or "received", "text": "…"}, as a client sees it. Arguments: the
project's folder and AsyncAPI's schema. Prints how often each message was seen, as JSON.
"""

import json
import sys
from pathlib import Path

import yaml
from jsonschema import Draft7Validator, Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012


def main(schemas, asyncapi_schema):
    documents = {name: yaml.safe_load((schemas / name).read_text()) for name in ("asyncapi.yaml", "openapi.yaml")}
    document = documents["asyncapi.yaml"]
    faults = [f"{list(error.path)}: {error.message}" for error in Draft7Validator(json.loads(asyncapi_schema.read_text())).iter_errors(document)]
    if faults:
        sys.exit("schemas/asyncapi.yaml is no AsyncAPI document: " + "\n".join(faults[:20]))

    # A relative reference in the file is one beside it.
    base = "file:///schemas/"
    registry = Registry().with_resources(
        (base + name, Resource(contents=contents, specification=DRAFT202012)) for name, contents in documents.items()
    )
    channel = document["channels"]["stream"]["messages"]
    validators = {}
    for operation in document["operations"].values():
        for reference in operation.get("messages", []):
            name = reference["$ref"].rpartition("/")[2]
            if name in channel:
                # The server sends what a client receives.
                direction = "received" if operation["action"] == "send" else "sent"
                pointer = f"{base}asyncapi.yaml#/components/messages/{name}/payload"
                validators[direction, name] = Draft202012Validator({"$ref": pointer}, registry=registry)
    seen = {name: 0 for _, name in validators}

    for line in sys.stdin:
        frame = json.loads(line)
        value = json.loads(frame["text"])
        name = value["type"]
        validator = validators.get((frame["direction"], name))
        if validator is None:
            sys.exit(f"the file has no message {name} that is {frame['direction']} by a client: {frame['text']}")
        faults = [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(value)]
        if faults:
            sys.exit(f"{frame['text']} is no {name}: {faults}")
        seen[name] += 1
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "schemas", Path(sys.argv[2]))
