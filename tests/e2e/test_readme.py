"""The README's curl lines work as printed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

BASH = shutil.which("bash") or "bash"
README = Path(__file__).parents[2] / "README.md"


def test_the_first_event_of_the_readme_costs_what_it_says_and_its_prices_are_taken(address):
    blocks = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    script = "\n".join(blocks).replace("A=http://127.0.0.1:8080", f"A={address}")
    assert address in script
    done = subprocess.run(
        [BASH, "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    user, accepted, costs, own, less, unpriced = json_values(done.stdout)
    assert user["email_verified"] is False
    assert (accepted["accepted"], accepted["rejected"]) == (1, [])
    (row,) = costs["rows"]
    shown = re.findall(r'"((?:input|output|cost)_usd)": "([\d.]+)"', README.read_text())
    assert {name: row[name] for name, _ in shown} == dict(shown)
    assert (own["model"], less["discount_bp"], unpriced["unpriced"]) == ("house-7b", 1000, [])


def json_values(text: str) -> list[dict[str, object]]:
    """The JSON objects that stand one behind the other in a text."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        while at < len(text) and text[at].isspace():
            at += 1
    return found
