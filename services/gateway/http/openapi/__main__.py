"""Write the document to a file, or check that the file is current.

``python -m services.gateway.http.openapi [--check] docs/api/openapi.json``
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from services.gateway.http.openapi.document import rendered


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Make the OpenAPI document from the protos.")
    parser.add_argument("--check", action="store_true", help="fail where the file is not current")
    parser.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    made = rendered()
    if not given.check:
        given.file.parent.mkdir(parents=True, exist_ok=True)
        given.file.write_bytes(made)
        return 0
    if given.file.is_file() and given.file.read_bytes() == made:
        return 0
    sys.stderr.write(f"{given.file} is not what the protos make; run `make proto`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
