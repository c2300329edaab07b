"""Mutations of valid files: of bytes, of JSON and YAML values, and of safetensors headers.

Each draws from a `random.Random`, so that an input is fixed by the seed of the run, the name of its
target and its number.
"""

import copy
import json
from random import Random
from typing import Any

VALUES = [
    None, True, False, 0, 1, -1, 2, 7, 1.0, 0.5, -0.0, 1e308, 2**31, 2**63, -(2**63), 10**30, "",
    " ", "x", "0", "no", "\u200b", "\u0000", "\ud800", "a" * 5000, "../../outside", "/etc/passwd",
    "~", "https://example.org/x", "$(id)", "${HOME}", "{0}", "{text.__class__}", "%s", "(a+)+!",
    "(.*.*.*)*x", "[", "(?P<a>", ".*", "LORA", "LOHA", "float32", "cuda", "tiny", "packages",
    "local:/outside", "nan", "1e400", "\u202eabc", "a\nb", "'", '"', "|", "---", [], {}, [[]],
    [None], [0], ["x"], {"": 1}, {"x": None}, {"__class__": "os.system"}, [1] * 300, {"(a+)+!": 2},
]  # fmt: skip
WORDS = [
    b"NaN",
    b"Infinity",
    b"-1",
    b"null",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b":",
    b",",
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"1e999",
    b"9" * 400,
    b"&a",
    b"*a",
    b"!!python/name:os",
    b"<<: *a",
    b"%YAML 1.1",
    b"---",
    b"...",
    b"\t",
    b"\r",
    b"\xef\xbb\xbf",
    b"- ",
    b"? ",
    b"| ",
]


def bytes_of(data: bytes, draw: Random) -> bytes:
    """`data` with bytes flipped, cut, doubled, moved or put in."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        at, kind = draw.randrange(len(data) + 1), draw.randrange(7)
        end = min(len(data), at + draw.choice((1, 2, 8, 64)))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = draw.randrange(256)
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = draw.choice(WORDS)
        elif kind == 4:
            data[at:at] = data[at:end]
        elif kind == 5:
            data[at:end] = draw.choice(WORDS)
        elif draw.random() < 0.2:
            del data[at:]
    return bytes(data)


def _places(content: Any, most: int = 3000) -> list[tuple[Any, Any]]:
    """(container, key) of every value."""
    places, waiting = [], [content]
    while waiting and len(places) < most:
        here = waiting.pop()
        keys = here.keys() if isinstance(here, dict) else range(len(here))
        for key in list(keys):
            places.append((here, key))
            if isinstance(here[key], dict | list):
                waiting.append(here[key])
    return places


def value_of(content: Any, draw: Random) -> Any:
    """A copy of JSON values in which values and keys are replaced, taken out or exchanged."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        places = _places(content)
        if not places:
            return draw.choice(VALUES)
        here, key = draw.choice(places)
        kind = draw.randrange(8)
        if kind <= 3:
            here[key] = copy.deepcopy(draw.choice(VALUES))
        elif kind == 4:
            del here[key]
        elif kind == 5:
            other, name = draw.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                here[key] = copy.deepcopy(other[name])
        elif kind == 6 and isinstance(here, dict):
            here[draw.choice([v for v in VALUES if isinstance(v, str)])] = here[key]
        elif isinstance(here[key], int) and not isinstance(here[key], bool):
            here[key] += draw.choice((-1, 1, 2**20, -(2**40)))
        elif isinstance(here[key], str):
            here[key] = bytes_of(here[key].encode(errors="replace"), draw).decode(errors="replace")
    return content


def json_of(content: Any, draw: Random) -> bytes:
    """The bytes of a JSON file: values are mutated, or doubled keys, depth or bytes."""
    kind = draw.randrange(12)
    if kind == 0:
        return bytes_of(json.dumps(content).encode(), draw)
    if kind == 1 and draw.random() < 0.1:
        deep = draw.choice((50, 5000, 100_000))
        return draw.choice((b"[" * deep, b"[" * deep + b"]" * deep, b'{"a":' * deep))
    text = json.dumps(value_of(content, draw))
    if kind == 2 and isinstance(content, dict) and text.startswith("{"):
        key = draw.choice(list(content))
        text = f"{{{json.dumps(key)}: {json.dumps(draw.choice(VALUES))}, {text[1:]}"
    if kind == 3:
        text = text.replace(": 1", ": NaN", 1).replace("0.", "-Infinity, 0.", draw.randrange(2))
    return text.encode(errors="surrogatepass")


def tensors_of(data: bytes, draw: Random) -> bytes:
    """A safetensors file: header, offsets, shapes, dtypes, length or values are mutated."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = draw.randrange(10)
    if kind == 0:
        return bytes_of(data, draw)
    if kind == 1:
        return (
            draw.choice((0, 1, length - 1, length + 1, 2**31, 2**60, 2**64 - 1)).to_bytes(
                8, "little"
            )
            + data[8:]
        )
    if kind == 2:
        return data[: 8 + length] + bytes_of(body, draw)
    if kind == 3:  # other values: NaN, infinity, huge
        at = 4 * draw.randrange(max(1, len(body) // 4))
        value = draw.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f"))
        return data[: 8 + length] + body[:at] + value + body[at + 4 :]
    names = [name for name in header if name != "__metadata__"]
    name = draw.choice(names)
    if kind == 4:
        header[name]["dtype"] = draw.choice(
            ("F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E5M2", "F8_E4M3", "C64", "X", "")
        )
    elif kind == 5:
        shape = header[name]["shape"]
        header[name]["shape"] = draw.choice((shape[::-1], [], [0], [*shape, 1], [2**62, 2], [-1]))
    elif kind == 6:
        header[name]["data_offsets"] = draw.choice(([0, 0], [4, 0], [0, 2**63], [-8, 0], [0, 4]))
    elif kind == 7:
        other = draw.choice(
            (*names, "../x", "a/b", "\ud800", "x" * 400, "", "__metadata__", "é.lora_A")
        )
        header[other] = header.pop(name)
    elif kind == 8:
        del header[name]
    else:
        header = value_of(header, draw)
    if kind in (4, 5) and draw.random() < 0.5 and name in header:  # offsets that fit what is said
        return _fitting(header, draw)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _fitting(header: dict, draw: Random) -> bytes:
    """A valid file with the names, dtypes and small shapes of `header`."""
    sizes = {"F64": 8, "I64": 8, "C64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
    at = 0
    for name in sorted(header):
        if name == "__metadata__":
            continue
        entry = header[name]
        count = sizes.get(entry["dtype"], 1)
        for size in entry["shape"]:
            count *= min(abs(size), 64)
        entry["shape"] = [min(abs(size), 64) for size in entry["shape"]]
        entry["data_offsets"] = [at, at + count]
        at += count
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)
