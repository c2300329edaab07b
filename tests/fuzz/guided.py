"""python -m tests.fuzz.guided TARGET SECONDS: inputs that are chosen by what they cover.

atheris (3.0.0) chooses bytes, and every draw of a mutation comes from them. It is no dependency of
the project: `pip install atheris`, or put it on PYTHONPATH.
"""

import sys
import time
from random import Random

import atheris

with atheris.instrument_imports(include=["oral_lib"]):
    from tests.fuzz import guard
from tests.fuzz.targets import TARGETS


class Bytes(Random):
    """Draws from given bytes; zeros when they are used up."""

    def __init__(self, data: bytes):
        super().__init__(0)
        self.data, self.at = data, 0

    def getrandbits(self, k: int) -> int:
        size = (k + 7) // 8
        piece = self.data[self.at : self.at + size].ljust(size, b"\0")
        self.at += size
        return int.from_bytes(piece, "little") >> (8 * size - k)

    def random(self) -> float:
        return self.getrandbits(16) / 65536


def main() -> None:
    name, seconds = sys.argv[1], float(sys.argv[2])
    assert name in TARGETS, f"one of {', '.join(TARGETS)}"
    begin, counts = time.monotonic(), {"read": 0, "refused": 0}
    with guard.watched() as root:

        def one(data: bytes) -> None:
            kind, words = guard.outcome(root, name, Bytes(data))
            assert kind in counts, (kind, words)
            counts[kind] += 1
            if time.monotonic() - begin > seconds:
                print(f"{name}: {counts}, {seconds:.0f} s", flush=True)
                raise KeyboardInterrupt

        atheris.Setup([sys.argv[0], "-seed=1", "-max_len=4096"], one)
        try:
            atheris.Fuzz()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
