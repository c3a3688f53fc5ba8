"""What agent/lean.py does to the modules of an interpreter, in one of its own."""

import json
import subprocess
import sys


def after(*imports: str) -> dict[str, object]:
    program = f"""
import json, sys
{"; ".join(f"import {name}" for name in imports)}
import dataclasses
from dataclasses import dataclass

@dataclass
class Point:
    x: int

before = "inspect" in sys.modules
print(json.dumps({{
    "inspect": before,
    "signature": str(dataclasses.inspect.signature(Point)),
    "abstract": dataclasses.inspect.isabstract(Point),
    "repr": repr(Point(1)),
}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_dataclasses_are_made_without_inspect_and_get_the_real_one_for_what_else_they_ask() -> None:
    found = after("nodemem.agent.lean")
    assert found["inspect"] is False
    assert found["abstract"] is False
    assert str(found["repr"]).startswith("<__main__.Point object")


def test_the_stand_in_has_signatures_that_become_text() -> None:
    # dataclasses of Python 3.11.2 (Debian 12) expect no error here.
    assert after("nodemem.agent.lean")["signature"] == ""


def test_whoever_has_inspect_already_keeps_it() -> None:
    found = after("inspect", "nodemem.agent.lean")
    assert found["inspect"] is True
    assert found["signature"] == "(x: int) -> None"
    assert found["repr"] == "Point(x=1)"
