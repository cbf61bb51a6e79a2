"""`aws`, `curl` and `grep`, as far as the guide uses them, for machines that have only Python and make.

Run as `stand_ins.py aws …` and so on. A real one on PATH comes first: see test_guide.py.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import boto3
import requests
from botocore import xform_name


def aws(arguments: list[str]) -> int:
    """Call one operation of a service by the parameters of its model; print the answer as JSON."""
    service, command, *rest = arguments
    words = dict(zip(rest[::2], rest[1::2], strict=True))
    region, endpoint = words.pop("--region", None), words.pop("--endpoint-url", None)
    client = boto3.session.Session(region_name=region).client(service, endpoint_url=endpoint)  # type: ignore[call-overload]
    operation = next(name for name in client.meta.service_model.operation_names if xform_name(name, "-") == command)
    members = client.meta.service_model.operation_model(operation).input_shape.members
    names = {"--" + xform_name(name, "-"): name for name in members}
    values = {
        names[word]: text if members[names[word]].type_name == "string" else json.loads(text)
        for word, text in words.items()
    }
    answer = getattr(client, xform_name(operation))(**values)
    answer.pop("ResponseMetadata")
    if answer:
        sys.stdout.write(json.dumps(answer, indent=4, default=str) + "\n")
    return 0


def curl(arguments: list[str]) -> int:
    """Send one request; print the body. Code 22 for 400 and above, as with --fail-with-body."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="data")
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-S", action="store_true")
    parser.add_argument("-i", dest="head", action="store_true")
    parser.add_argument("url")
    wanted = parser.parse_args(arguments)
    answer = requests.request(
        wanted.method or ("GET" if wanted.data is None else "POST"),
        wanted.url,
        headers=dict(line.split(": ", 1) for line in wanted.headers),
        data=wanted.data,
        timeout=30,
    )
    if wanted.head:
        sys.stdout.write("".join(f"{name}: {value}\n" for name, value in answer.headers.items()) + "\n")
    sys.stdout.write(answer.text)
    return 0 if answer.ok else 22


def grep(arguments: list[str]) -> int:
    """Print the lines of a file, or of stdin, that hold the text, or with -E the expression; code 1 when none does."""
    extended = arguments[0] == "-E"
    pattern, *files = arguments[extended:]
    text = Path(files[0]).read_text(encoding="utf-8") if files else sys.stdin.read()
    found = [line for line in text.splitlines() if re.search(pattern if extended else re.escape(pattern), line)]
    sys.stdout.write("".join(line + "\n" for line in found))
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit({"aws": aws, "curl": curl, "grep": grep}[sys.argv[1]](sys.argv[2:]))
