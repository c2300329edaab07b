"""Data sets inside packages: how each archive becomes a table, rows.parquet.

A conversion takes the package's archive and the folder to fill. A set of the package evals is a
JSON-lines file and a function of this module that turns its records into rows.
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

from oral_lib.documents.words import is_blank
from oral_lib.errors import PreflightError

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = "rows.parquet"
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
DIGITS = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"  # sha256


def ratings(stem: str) -> Callable[[Path, Path], None]:
    """A conversion of one set of texts, each with the mean rating of about twenty annotators."""

    def convert(sdist: Path, folder: Path) -> None:
        with tarfile.open(sdist) as outer:
            inner = _member(outer, "/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=io.BytesIO(inner)) as box:
            lines = _member(box, f"/{stem}_GroundTruth.txt").decode("utf-8").split("\n")
        records = [line.split("\t", 2) for line in lines if line.strip()]
        _write(folder, ({"text": r[2], "rating": float(r[1])} for r in records))

    return convert


def evals(name: str, read: Callable[[list[dict]], Iterable[dict]]) -> Callable[[Path, Path], None]:
    """A conversion of one JSON-lines file of the package evals; `read` maps records to rows."""

    def convert(wheel: Path, folder: Path) -> None:
        with zipfile.ZipFile(wheel) as box:
            lines = box.read(f"evals/registry/data/{name}.jsonl").decode("utf-8").split("\n")
        _write(folder, read([json.loads(line) for line in lines if line.strip()]))

    return convert


def _last_message(record: dict) -> str:
    """Text of the last message of an evals record."""
    return record["input"][-1]["content"]


def sarcasm(records: list[dict]) -> Iterable[dict]:
    """Headlines; label 1: sarcastic."""
    for record in records:
        yield {"text": _last_message(record), "label": int(record["ideal"])}


def parables(records: list[dict]) -> Iterable[dict]:
    """The tales without the question that follows each."""
    for record in records:
        tale = _last_message(record).split("\n")[0]
        yield {"text": tale, "letters": len(tale)}


def product_matching(records: list[dict]) -> Iterable[dict]:
    """Pairs of titles; label 1: the same product. Each record is a question with many examples:
    both become rows."""
    example = re.compile(r"^Product 1: 'Title: (.*)' Product 2: 'Title: (.*)'$", re.M)
    question = re.compile(r"Product 1: 'Title: (.*)'\nProduct 2: 'Title: (.*)'")
    seen = set()
    for record in records:
        sections = re.split("\n(?:Non-matching:|Do the following.*)\n", _last_message(record))
        matching, different, last = sections
        pairs = [(pair, 1) for pair in example.findall(matching)]
        pairs += [(pair, 0) for pair in example.findall(different)]
        pairs += [(question.search(last).groups(), int(record["ideal"] == "Yes"))]
        for (one, two), label in pairs:
            key = frozenset((one.casefold(), two.casefold()))  # a pair has no direction
            if len(key) == 2 and key not in seen:
                seen.add(key)
                yield {"product1": one, "product2": two, "label": label}


def corr2cause(records: list[dict]) -> Iterable[dict]:
    """Label 1: the premise contradicts the claim. Premises over 1,100 letters are left out."""
    for record in records:
        premise, claim = _last_message(record).removeprefix("Premise: ").split(" Hypothesis: ")
        if len(premise) <= 1100:
            ruled_out = record["ideal"] == "Answer: contradiction"
            yield {"premise": premise, "claim": claim, "label": int(ruled_out)}


def pararule(records: list[dict]) -> Iterable[dict]:
    """Label 1: the statement follows from the passage."""
    for record in records:
        parts = re.search(r"Passage: (.*) Question: (.*?)\s*Answer:", _last_message(record), re.S)
        label = int(record["ideal"] == "true")
        yield {"passage": parts[1], "statement": parts[2], "label": label}


def quartz(records: list[dict]) -> Iterable[dict]:
    """Questions with two options; the label is the index of the right one."""
    for record in records:
        parts = re.fullmatch(r"(.*?)\s*A: (.*)\n ?B: (.*)", _last_message(record), re.S)
        question, one, two = (" ".join(part.split()) for part in parts.groups())
        options = {"option1": one.rstrip(".?"), "option2": two.rstrip(".?")}
        yield {"question": question} | options | {"label": "AB".index(record["ideal"])}


def winograd(records: list[dict]) -> Iterable[dict]:
    """Sentences with an answer; label 1: right. The two sentences of a schema differ in one word,
    so the right answer to one is the wrong answer to the other."""
    for one, two in zip(records[::2], records[1::2], strict=True):
        answers = [one["ideal"], two["ideal"]]
        for record in (one, two):
            sentence, question = re.fullmatch(
                r"(.*?)\.+ ([^.]*[.?]?)", _last_message(record), re.S
            ).groups()
            for answer in answers:
                yield {
                    "sentence": f"{sentence}.",
                    "question": f"{question.rstrip('?.')}?",
                    "answer": answer[0].upper() + answer[1:],
                    "label": int(answer == record["ideal"]),
                    "schema": " / ".join(sorted(answers)),
                }


# Prints rows as JSON lines. The package depends on eleven others that these generators do not use:
# empty modules replace those that would import them.
_SCRIPT = """
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
    solutions = {}
    for i in range(150):
        row = generate(Random(1000 * template + i))
        steps, _, last = row["metadata"]["answer_cot"].rpartition("#### ")
        if re.fullmatch("-?[0-9]+([.][0-9]+)?", row["answer"]) and steps and (
            re.fullmatch("-?[0-9.]+", last) and float(last) == float(row["answer"])
        ):
            solutions[row["question"]] = steps + "#### " + row["answer"]
    rows = [{"question": q, "answer": a, "template": template} for q, a in solutions.items()]
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


# ---------------------------------------------------------------- images
def easy_vqa(answers: tuple[str, ...]) -> Callable[[Path, Path], None]:
    """A conversion of the easy-vqa images that have a question whose answer is in `answers`; the
    label is the index of that answer."""

    def convert(wheel: Path, folder: Path) -> None:
        rows = []
        with zipfile.ZipFile(wheel) as box:
            for part in ("train", "test"):
                within = f"easy_vqa/data/{part}"
                questions = json.loads(box.read(f"{within}/questions.json"))
                labels = {
                    image: answers.index(answer)
                    for _, answer, image in questions
                    if answer in answers
                }
                rows += [
                    {"image": box.read(f"{within}/images/{image}.png"), "label": label}
                    for image, label in sorted(labels.items())
                ]
        _write_images(folder, rows)

    return convert


def easy_vqa_questions(wheel: Path, folder: Path) -> None:
    """All questions with answer, kind and image file. `part` is the part of the image: a tenth of
    the package's training images is for validation."""
    rows = []
    with zipfile.ZipFile(wheel) as box:
        for part, questions, file in _images_with_questions(box):
            for question, answer in dict.fromkeys(questions):
                kind = "shape" if answer in SHAPES else "colour" if answer in COLOURS else "yes_no"
                row = {"part": part, "image": file}
                rows.append(row | {"question": question, "answer": answer, "kind": kind})
    _write_images(folder, rows, ["image", "question"])


def easy_vqa_labels(wheel: Path, folder: Path) -> None:
    """Images whose questions name both colour and shape; the text is these two words."""
    rows = []
    with zipfile.ZipFile(wheel) as box:
        for part, questions, file in _images_with_questions(box):
            answers = [answer for _, answer in questions]
            shape = next((s for s in SHAPES if s in answers), None)
            colour = next((c for c in COLOURS if c in answers), None)
            if shape and colour:
                label = COLOURS.index(colour) * len(SHAPES) + SHAPES.index(shape)
                text = f"a {colour} {shape}"
                rows.append({"part": part, "image": file, "text": text, "label": label})
    _write_images(folder, rows)


def _images_with_questions(
    box: zipfile.ZipFile,
) -> Iterable[tuple[str, list[tuple[str, str]], bytes]]:
    """(part, [(question, answer), ...], file) of every image of easy-vqa."""
    for folder in ("train", "test"):
        within, by_image = f"easy_vqa/data/{folder}", {}
        for question, answer, image in json.loads(box.read(f"{within}/questions.json")):
            by_image.setdefault(image, []).append((question, answer))
        for image in sorted(by_image):
            part = "validation" if folder == "train" and image % 10 == 9 else folder
            yield part, by_image[image], box.read(f"{within}/images/{image}.png")


def solar_cells(wheel: Path, folder: Path) -> None:
    """Label 1: defective. Cells on which the experts were uncertain are left out."""
    rows = []
    with zipfile.ZipFile(wheel) as box:
        for line in box.read("elpv_dataset/data/labels.csv").decode("utf-8").splitlines():
            name, probability, _ = line.split()
            if float(probability) in (0.0, 1.0):
                file = box.read(f"elpv_dataset/data/{name}")
                rows.append({"image": file, "label": int(float(probability))})
    _write_images(folder, rows)


def digits() -> "DataFrame":
    """The handwritten digits of the installed scikit-learn as PNG files of 8 by 8 pixels.

    Raises:
        PreflightError: if the hash of scikit-learn's file is not `DIGITS`.
    """
    from pandas import DataFrame
    from PIL import Image
    from sklearn.datasets import load_digits

    table = resources.files("sklearn.datasets") / "data" / "digits.csv.gz"
    if hashlib.sha256(table.read_bytes()).hexdigest() != DIGITS:
        raise PreflightError(f"{table} is damaged: reinstall scikit-learn.")
    digits, rows = load_digits(), []
    for image, label in zip(digits.images, digits.target, strict=True):
        file = io.BytesIO()
        Image.fromarray((image * 255 / 16).round().astype("uint8")).save(file, "png")
        rows.append({"image": file.getvalue(), "label": int(label)})
    return DataFrame(rows)


def _write_images(folder: Path, rows: Sequence[dict], key: Sequence[str] = ("image",)) -> None:
    """Writes the first of all rows that are equal in the columns `key`."""
    import pandas

    frame = pandas.DataFrame(rows).drop_duplicates(list(key), ignore_index=True)
    _report_dropped(folder, len(rows), len(frame))
    frame.to_parquet(folder / ROWS, index=False)


def _report_dropped(folder: Path, total: int, kept: int) -> None:
    """Prints how many rows of a data set are left out."""
    if total > kept:
        name = folder.name.strip(".").split(".")[0]  # of a temporary folder, too
        print(
            f"note: {name}: {total - kept:,} of {total:,} rows are left out: they are empty or "
            "repeat others.",
            file=sys.stderr,
        )


def reasoning_gym(name: str) -> Callable[[Path, Path], None]:
    """A conversion that generates "school_maths" or "arithmetic" with reasoning-gym's code."""

    def convert(wheel: Path, folder: Path) -> None:
        command = [sys.executable, "-P", "-S", "-c", _SCRIPT, str(wheel), name]
        environment = os.environ | {"PYTHONHASHSEED": "0"}  # the same rows at every call
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise PreflightError(
                f"Cannot generate the rows of {name} with {wheel} ({last}). "
                "Remove this file and run the same command again."
            )
        _write(folder, map(json.loads, done.stdout.splitlines()))

    return convert


def _member(box: tarfile.TarFile, ending: str) -> bytes:
    """Content of the first file in `box` whose path ends with `ending`."""
    for member in box.getmembers():
        if member.isfile() and f"/{member.name}".endswith(ending):
            return box.extractfile(member).read()
    raise KeyError(f"no member {ending}")


def _write(folder: Path, rows: Iterable[dict]) -> None:
    """Writes the rows with HTML entities decoded and runs of white space reduced to one space.

    Rows with an empty text are dropped, as are repetitions of the same texts.
    """
    import pandas

    frame = pandas.DataFrame(rows)
    texts = frame.select_dtypes(["object", "string"]).columns.to_list()
    for name in texts:
        # unescaped twice: some texts were escaped twice
        clean = [html.unescape(html.unescape(text)).strip() for text in frame[name]]
        if name == "answer":  # one line a step
            parts = [[line for line in text.split("\n") if line.strip()] for text in clean]
        else:
            parts = [[text] for text in clean]
        frame[name] = ["\n".join(" ".join(line.split()) for line in lines) for lines in parts]
    total = len(frame)
    visible = [not any(map(is_blank, row)) for row in frame[texts].itertuples(index=False)]
    frame = frame[visible].drop_duplicates(texts, ignore_index=True)
    _report_dropped(folder, total, len(frame))
    frame.to_parquet(folder / ROWS, index=False)
