"""Labelled sets inside packages: how each becomes a table of rows, rows.parquet.

A converter takes a package's archive and the folder to fill. Those of the package evals are pairs
of a file in it and a function here that makes its records rows.
"""

import hashlib
import html
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from oral_lib.errors import PreflightError

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = "rows.parquet"
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
DIGITS = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"  # sha256


def ratings(stem: str) -> Callable[[Path, Path], None]:
    """A converter for one set of texts with the mean of some twenty people's ratings."""

    def convert(sdist: Path, folder: Path) -> None:
        with tarfile.open(sdist) as outer:
            inner = _member(outer, "/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=io.BytesIO(inner)) as box:
            lines = _member(box, f"/{stem}_GroundTruth.txt").decode("utf-8").split("\n")
        records = [line.split("\t", 2) for line in lines if line.strip()]
        _write(folder, ({"text": r[2], "rating": float(r[1])} for r in records))

    return convert


def evals(name: str, read: Callable[[list[dict]], Iterable[dict]]) -> Callable[[Path, Path], None]:
    """A converter for one JSON-lines file of the package evals; `read` makes its records rows."""

    def convert(wheel: Path, folder: Path) -> None:
        with zipfile.ZipFile(wheel) as box:
            lines = box.read(f"evals/registry/data/{name}.jsonl").decode("utf-8").split("\n")
        _write(folder, read([json.loads(line) for line in lines if line.strip()]))

    return convert


def _asked(record: dict) -> str:
    """What the last message of an evals record says."""
    return record["input"][-1]["content"]


def sarcasm(records: list[dict]) -> Iterable[dict]:
    for record in records:
        yield {"text": _asked(record), "label": int(record["ideal"])}


def parables(records: list[dict]) -> Iterable[dict]:
    """The tales alone, without the question that follows each."""
    for record in records:
        tale = _asked(record).split("\n")[0]
        yield {"text": tale, "letters": len(tale)}


def product_matching(records: list[dict]) -> Iterable[dict]:
    """The pairs that are asked for and, far more, those that a record shows as examples."""
    shown = re.compile(r"^Product 1: 'Title: (.*)' Product 2: 'Title: (.*)'$", re.M)
    asked = re.compile(r"Product 1: 'Title: (.*)'\nProduct 2: 'Title: (.*)'")
    seen = set()
    for record in records:
        alike, others, last = re.split("\n(?:Non-matching:|Do the following.*)\n", _asked(record))
        pairs = [(pair, 1) for pair in shown.findall(alike)]
        pairs += [(pair, 0) for pair in shown.findall(others)]
        pairs += [(asked.search(last).groups(), int(record["ideal"] == "Yes"))]
        for (one, two), label in pairs:
            key = frozenset((one.casefold(), two.casefold()))  # a pair has no direction
            if len(key) == 2 and key not in seen:
                seen.add(key)
                yield {"product1": one, "product2": two, "label": label}


def corr2cause(records: list[dict]) -> Iterable[dict]:
    """Label 1: the premise rules the claim out. Premises over 1,100 letters are left out."""
    for record in records:
        premise, claim = _asked(record).removeprefix("Premise: ").split(" Hypothesis: ")
        if len(premise) <= 1100:
            ruled_out = record["ideal"] == "Answer: contradiction"
            yield {"premise": premise, "claim": claim, "label": int(ruled_out)}


def pararule(records: list[dict]) -> Iterable[dict]:
    for record in records:
        parts = re.search(r"Passage: (.*) Question: (.*?)\s*Answer:", _asked(record), re.S)
        label = int(record["ideal"] == "true")
        yield {"passage": parts[1], "statement": parts[2], "label": label}


def quartz(records: list[dict]) -> Iterable[dict]:
    for record in records:
        parts = re.fullmatch(r"(.*?)\s*A: (.*)\n ?B: (.*)", _asked(record), re.S)
        question, one, two = (" ".join(part.split()) for part in parts.groups())
        options = {"option1": one.rstrip(".?"), "option2": two.rstrip(".?")}
        yield {"question": question} | options | {"label": "AB".index(record["ideal"])}


def winograd(records: list[dict]) -> Iterable[dict]:
    """Two sentences that differ in a word have each other's answers: one is right, one wrong."""
    for one, two in zip(records[::2], records[1::2], strict=True):
        answers = [one["ideal"], two["ideal"]]
        for record in (one, two):
            sentence, question = re.fullmatch(
                r"(.*?)\.+ ([^.]*[.?]?)", _asked(record), re.S
            ).groups()
            for answer in answers:
                yield {
                    "sentence": f"{sentence}.",
                    "question": f"{question.rstrip('?.')}?",
                    "answer": answer[0].upper() + answer[1:],
                    "label": int(answer == record["ideal"]),
                    "schema": " / ".join(sorted(answers)),
                }


# Prints rows as JSON lines. The package itself wants eleven others, of which these generators use
# none: empty stand-ins take the place of the modules that would import them.
_MAKER = """
import json, re, sys, types
from random import Random

def stand_in(name, **content):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
    vars(module).update(content)

stand_in("reasoning_gym")
from reasoning_gym import dataset, utils
stand_in("reasoning_gym.factory", register_dataset=lambda *_: None,
         ProceduralDataset=dataset.ProceduralDataset)
stand_in("reasoning_gym.coaching", BaseCurriculum=object, RangeAttributeDefinition=object)
stand_in("reasoning_gym.arithmetic")
stand_in("reasoning_gym.arithmetic.gsm_symbolic")

def school_maths(template):
    # up to 60 different questions of one template that end in a plain number
    from reasoning_gym.arithmetic.gsm_symbolic import generators_00_49, generators_50_99
    generate = getattr(generators_00_49 if template < 50 else generators_50_99,
                       f"generate_{template}")
    found = {}
    for i in range(150):
        row = generate(Random(1000 * template + i))
        steps, _, last = row["metadata"]["answer_cot"].rpartition("#### ")
        if re.fullmatch("-?[0-9]+([.][0-9]+)?", row["answer"]) and steps and (
            re.fullmatch("-?[0-9.]+", last) and float(last) == float(row["answer"])
        ):
            found[row["question"]] = steps + "#### " + row["answer"]
    rows = [{"question": q, "answer": a, "template": template} for q, a in found.items()]
    return rows[:60] if len(rows) >= 30 else []

if sys.argv[2] == "school_maths":
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok
    rows = [row for template in tasks_ok for row in school_maths(template)]
else:
    from reasoning_gym.arithmetic.chain_sum import ChainSumConfig, ChainSumDataset
    config = ChainSumConfig(min_terms=2, max_terms=3, max_digits=2, seed=0, size=16000)
    rows = [{"question": row["metadata"]["expression"], "answer": row["answer"]}
            for row in map(ChainSumDataset(config).__getitem__, range(config.size))]
for row in rows:
    print(json.dumps(row))
"""


# ---------------------------------------------------------------- pictures
def easy_vqa(answers: tuple[str, ...]) -> Callable[[Path, Path], None]:
    """A converter for the pictures of easy-vqa that some question answers with one of `answers`;
    the label is its place."""

    def convert(wheel: Path, folder: Path) -> None:
        rows = []
        with zipfile.ZipFile(wheel) as box:
            for part in ("train", "test"):
                within = f"easy_vqa/data/{part}"
                asked = json.loads(box.read(f"{within}/questions.json"))
                found = {image: answers.index(said) for _, said, image in asked if said in answers}
                rows += [
                    {"image": box.read(f"{within}/images/{image}.png"), "label": label}
                    for image, label in sorted(found.items())
                ]
        _write_pictures(folder, rows)

    return convert


def easy_vqa_questions(wheel: Path, folder: Path) -> None:
    """Every question with its answer, its kind and the picture's file; `part` is that
    of the picture, a tenth of the package's training pictures being for validation."""
    rows = []
    with zipfile.ZipFile(wheel) as box:
        for part, asked, file in _asked_pictures(box):
            for question, answer in dict.fromkeys(asked):
                kind = "shape" if answer in SHAPES else "colour" if answer in COLOURS else "yes_no"
                about = {"part": part, "image": file}
                rows.append(about | {"question": question, "answer": answer, "kind": kind})
    _write_pictures(folder, rows, ["image", "question"])


def easy_vqa_labels(wheel: Path, folder: Path) -> None:
    """The pictures whose questions tell both colour and shape, with these words as their text."""
    rows = []
    with zipfile.ZipFile(wheel) as box:
        for part, asked, file in _asked_pictures(box):
            said = [answer for _, answer in asked]
            shape = next((s for s in SHAPES if s in said), None)
            colour = next((c for c in COLOURS if c in said), None)
            if shape and colour:
                label = COLOURS.index(colour) * len(SHAPES) + SHAPES.index(shape)
                text = f"a {colour} {shape}"
                rows.append({"part": part, "image": file, "text": text, "label": label})
    _write_pictures(folder, rows)


def _asked_pictures(box: zipfile.ZipFile) -> Iterable[tuple[str, list[tuple[str, str]], bytes]]:
    """(part, [(question, answer), ...], file) of every picture of easy-vqa."""
    for part in ("train", "test"):
        within, asked = f"easy_vqa/data/{part}", {}
        for question, answer, image in json.loads(box.read(f"{within}/questions.json")):
            asked.setdefault(image, []).append((question, answer))
        for image in sorted(asked):
            held = "validation" if part == "train" and image % 10 == 9 else part
            yield held, asked[image], box.read(f"{within}/images/{image}.png")


def solar_cells(wheel: Path, folder: Path) -> None:
    """Label 1: defective. Cells that the experts were not sure of are left out."""
    rows = []
    with zipfile.ZipFile(wheel) as box:
        for line in box.read("elpv_dataset/data/labels.csv").decode("utf-8").splitlines():
            name, probability, _ = line.split()
            if float(probability) in (0.0, 1.0):
                file = box.read(f"elpv_dataset/data/{name}")
                rows.append({"image": file, "label": int(float(probability))})
    _write_pictures(folder, rows)


def digits() -> "DataFrame":
    """The handwritten digits of the installed scikit-learn, as PNG files of 8 by 8 pixels.

    PreflightError when its file is not the one that this was written with.
    """
    from pandas import DataFrame
    from PIL import Image
    from sklearn.datasets import load_digits

    held = resources.files("sklearn.datasets") / "data" / "digits.csv.gz"
    if hashlib.sha256(held.read_bytes()).hexdigest() != DIGITS:
        raise PreflightError(f"{held} is damaged: install scikit-learn again.")
    found, rows = load_digits(), []
    for picture, label in zip(found.images, found.target, strict=True):
        file = io.BytesIO()
        Image.fromarray((picture * 255 / 16).round().astype("uint8")).save(file, "png")
        rows.append({"image": file.getvalue(), "label": int(label)})
    return DataFrame(rows)


def _write_pictures(folder: Path, rows: Sequence[dict], alike: Sequence[str] = ("image",)) -> None:
    """Of rows that are `alike` in these columns the first."""
    import pandas

    frame = pandas.DataFrame(rows).drop_duplicates(list(alike), ignore_index=True)
    frame.to_parquet(folder / ROWS, index=False)


def made(what: str) -> Callable[[Path, Path], None]:
    """A converter for rows that reasoning-gym makes: "school_maths" or "arithmetic"."""

    def convert(wheel: Path, folder: Path) -> None:
        command = [sys.executable, "-P", "-S", "-c", _MAKER, str(wheel), what]
        told = os.environ | {"PYTHONHASHSEED": "0"}  # the same rows at every call
        done = subprocess.run(command, capture_output=True, text=True, env=told)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise PreflightError(
                f"Cannot make the rows of {what} with {wheel} ({last}). "
                "Remove that file and run the same command again."
            )
        _write(folder, map(json.loads, done.stdout.splitlines()))

    return convert


def _member(box: tarfile.TarFile, ending: str) -> bytes:
    for member in box.getmembers():
        if member.isfile() and f"/{member.name}".endswith(ending):
            return box.extractfile(member).read()
    raise KeyError(f"no member {ending}")


def _write(folder: Path, rows: Iterable[dict]) -> None:
    """Texts with single spaces and real characters; of rows with equal texts the first."""
    import pandas

    frame = pandas.DataFrame(rows)
    texts = frame.select_dtypes(["object", "string"]).columns.to_list()
    for name in texts:
        # unescaped twice: some texts were escaped twice
        clean = [html.unescape(html.unescape(text)).strip() for text in frame[name]]
        if name == "answer":  # its steps stand on lines of their own
            parts = [[line for line in text.split("\n") if line.strip()] for text in clean]
        else:
            parts = [[text] for text in clean]
        frame[name] = ["\n".join(" ".join(part.split()) for part in some) for some in parts]
    frame = frame[(frame[texts] != "").all(axis=1)].drop_duplicates(texts, ignore_index=True)
    frame.to_parquet(folder / ROWS, index=False)
