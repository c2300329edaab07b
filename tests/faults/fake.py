"""A fake run for tests: `python -m tests.faults.fake --out DIR` runs five short nodes.

Each node writes three files as a whole and a line into logs/ran.txt. Code in DIR/<node>.does runs
before the files are written.
"""

import signal
import sys
from pathlib import Path

from oral_lib import paths
from oral_lib.runner.nodes import Node
from oral_lib.workflow import reproduce

CODE = """
import os, sys, time
from pathlib import Path
name, out, outputs = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
(out / "logs").mkdir(exist_ok=True)
with open(out / "logs" / "ran.txt", "a") as file:
    file.write(name + "\\n")
print("words of", name, flush=True)
does = out / (name + ".does")
if does.exists():
    exec(does.read_text())
for path in map(Path, outputs):
    time.sleep(0.1)
    part = path.with_name(f".{path.name}.tmp")
    part.write_text(name)
    os.replace(part, path)
"""
NEEDS = {"a": (), "b": ("a",), "c": ("a",), "d": ("b",), "last": ("c", "d")}


def planner(scale: str, source: str, out: Path) -> list[Node]:
    """a -> b -> d -> last, a -> c -> last."""
    run = paths.run_folder(scale, source, out)

    def node(name: str) -> Node:
        outputs = tuple(str(run / f"{name}-{i}.txt") for i in range(3))
        inputs = tuple(str(run / f"{need}-{i}.txt") for need in NEEDS[name] for i in range(3))
        command = ("-c", CODE, name, str(out), *outputs)
        return Node(name, outputs, command, inputs=inputs, memory_mb=10, minutes=0.02)

    return [node(name) for name in NEEDS]


def main(argv: list[str]) -> int:
    """The exit code of `./reproduce.sh --scale smoke` with the fake plan."""
    return reproduce.main(["--scale", "smoke", *argv], planner=planner)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
