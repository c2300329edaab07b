"""What is fuzzed: each target writes a mutated file, has the project read it, and cleans up."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import torch
import yaml

import oral_lib
from oral_lib import lora, method, storage
from oral_lib.assets.parquet import read_table
from oral_lib.documents.document import load_yaml
from oral_lib.generator import Generator
from oral_lib.lora.peft_folder import CONFIG, FORM, WEIGHTS, Card
from oral_lib.method.stored import shards
from oral_lib.prompting import forms, released
from oral_lib.tasks import rows
from oral_lib.tasks.task import load_task
from oral_lib.tasks.task_schema import check_task
from oral_lib.workflow import own_adapters, sweeps
from tests.fuzz import mutations as mutate

PROJECT = Path(oral_lib.__file__).parent.parent
STEM = "base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight"
PEFT = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
    "rank_pattern": {"layers.1.self_attn.v_proj": 3}, "alpha_pattern": {"q_proj": 2},
    "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "task_type": "CAUSAL_LM", "base_model_name_or_path": "their/base", "modules_to_save": None,
    "use_rslora": False, "use_dora": False, "layers_to_transform": None, "layers_pattern": None,
    "exclude_modules": None, "lora_dropout": 0.0, "revision": None, "peft_version": "0.21.0",
}  # fmt: skip


def adapter_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        for name in ("q_proj", "v_proj"):
            r = 3 if (layer, name) == (1, "v_proj") else 2
            tensors[STEM.format(layer, name, "A")] = torch.randn(r, 6, generator=draw)
            tensors[STEM.format(layer, name, "B")] = torch.randn(5, r, generator=draw)
    return tensors


@cache
def weights() -> bytes:
    from safetensors.torch import save

    return save(adapter_tensors(), {"format": "pt"})


@cache
def generator_files(embedding: int = 16) -> dict[str, bytes]:
    """The files of a small generator with random weights."""
    import tempfile

    start, made = adapter_tensors(), [adapter_tensors(seed) for seed in range(1, 5)]
    tasks = ["cheerful", "cheerful", "formal", "formal"]
    config = method.GeneratorConfig(
        k=8, components=4, recurrence=method.RecurrenceConfig(width=16, state=4, head=8, chunk=8),
        denoiser=method.DenoiserConfig(hidden=64, depth=1), text_encoder="hashed-words",
    )  # fmt: skip
    texts = {task: torch.randn(2, embedding) for task in tasks}
    layout = method.Layout.of(start, config.k)
    data = method.TrainingSet.of(layout, start, made, tasks, texts, config)
    entry = data.base(
        torch.randn(embedding),
        torch.randn(method.fingerprint({"a": start[min(start)]}).numel()),
        PEFT,
    )
    network = method.ORAL(config, {"theirs": entry})
    zoo = [{"base": "theirs", "task": "cheerful", "seed": 0, "sha256": "0" * 64}]
    with tempfile.TemporaryDirectory() as folder:
        generator = Generator(network, {"scale": "smoke", "zoo": zoo})
        generator.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _write(folder: Path, files: dict[str, bytes], draw: Random) -> Path:
    """Writes `files`; now and then one is missing, a folder, or a link out of the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if draw.random() < 0.02:
        path = folder / draw.choice(list(files))
        path.unlink()
        kind = draw.randrange(4)
        if kind == 0:
            path.mkdir()
        elif kind == 1:
            path.symlink_to(path)
        elif kind == 2:
            path.symlink_to(folder.parent / "outside" / path.name)
    return folder


def adapter(folder: Path, draw: Random) -> None:
    """lora.load, save and distance of an adapter folder."""
    kind, config, data = draw.randrange(3), json.dumps(PEFT).encode(), weights()
    if kind != 0:
        config = mutate.json_of(PEFT, draw)
    if kind != 1:
        data = mutate.tensors_of(data, draw)
    _write(folder / "a", {CONFIG: config, WEIGHTS: data}, draw)
    tensors, settings = lora.load(folder / "a")
    card = Card("see", "base", "fuzz", 0)
    lora.save(folder / "out", tensors, settings, card, overwrite=True)
    lora.distance(tensors, tensors, settings)


def safetensors(folder: Path, draw: Random) -> None:
    """storage.read_tensors of a safetensors file."""
    (folder / "x.safetensors").write_bytes(mutate.tensors_of(weights(), draw))
    storage.read_tensors(folder / "x.safetensors")


def generator(folder: Path, draw: Random) -> None:
    """A generator's folder, and one sample of it."""
    files = dict(generator_files())
    kind, fitting = draw.randrange(10), draw.random() < 0.9
    if kind < 7:
        files["config.json"] = mutate.json_of(json.loads(files["config.json"]), draw)
    elif kind < 9:
        files["manifest.json"] = mutate.json_of(json.loads(files["manifest.json"]), draw)
    else:
        files["generator.safetensors"] = mutate.tensors_of(files["generator.safetensors"], draw)
        if fitting:
            digest = hashlib.sha256(files["generator.safetensors"]).hexdigest()
            hashes = {"generator.safetensors": digest}
            manifest = {**json.loads(files["manifest.json"]), "files": hashes}
            manifest["sha256"] = shards.identity(hashes)
            files["manifest.json"] = json.dumps(manifest).encode()
    read = Generator.from_pretrained(_write(folder / "g", files, draw))
    if draw.random() < 0.2:
        read.generate("", next(iter(read.bases)))


def task(folder: Path, draw: Random) -> None:
    """A task's YAML file."""
    name = draw.choice(("movie", "boolq", "gsm8k", "rte", "cifar10", "copa"))
    path = PROJECT / "oral_lib" / "tasks" / f"{name}.yaml"
    if not path.is_file():
        name, path = "movie", path.with_name("movie.yaml")
    (folder / "movie.yaml").write_bytes(_yaml(path.read_bytes(), draw))
    document = load_yaml(folder / "movie.yaml", f"{name}.yaml")
    check_task(document, name)
    made = load_task.__wrapped__.__globals__["Task"](**document.content)
    if made.template:
        made.prompt("some text")


def form(folder: Path, draw: Random) -> None:
    """oral.json of an adapter's folder, and what a text becomes in its template."""
    content = forms.form_of(load_task(draw.choice(("movie", "gsm8k", "quartz", "digits"))))
    data = mutate.json_of(content, draw)
    if draw.random() < 0.3:
        data = mutate.bytes_of(data, draw)
    read = forms.read_form(_write(folder / "a", {FORM: data}, draw))
    if read and read.template:
        read.prompt("some text")
    if read and read.answer_pattern:
        read.extracted("The answer is 4. #### 4\n")


def sums(folder: Path, draw: Random) -> None:
    """SHA256SUMS of a release."""
    files = {"config.json": b"{}", "manifest.json": b"{}", "generator.safetensors": b"x"}
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    text = "".join(lines).encode()
    files[released.SUMS] = mutate.bytes_of(text, draw) if draw.random() < 0.9 else text
    released.check_files(_write(folder / "r", files, draw))


def sweep(folder: Path, draw: Random) -> None:
    """A sweep's YAML file."""
    path = PROJECT / "notebooks" / "sweeps" / draw.choice(("ablations.yaml", "vision.yaml"))
    (folder / "sweep.yaml").write_bytes(_yaml(path.read_bytes(), draw))
    sweeps.read_sweep(folder / "sweep.yaml")


def _yaml(data: bytes, draw: Random) -> bytes:
    kind = draw.randrange(3)
    if kind == 0:
        return mutate.bytes_of(data, draw)
    content = mutate.value_of(yaml.safe_load(data), draw)
    if kind == 1:
        return json.dumps(content).encode(errors="surrogatepass")
    text = yaml.safe_dump(content, allow_unicode=True)
    return text.encode(errors="surrogatepass")


def manifest(folder: Path, draw: Random) -> None:
    """A JSON-lines manifest of one's own adapters."""
    for number in (1, 2):
        if not (folder / f"a{number}").is_dir():
            files = {CONFIG: json.dumps(PEFT).encode(), WEIGHTS: weights()}
            _write(folder / f"a{number}", files, Random(0))
    lines = [
        {"path": f"a{number}", "text": f"task {number}", "base": "theirs"} for number in (1, 2)
    ]
    data = b"\n".join(mutate.json_of(line, draw) for line in lines)
    if draw.random() < 0.3:
        data = mutate.bytes_of(data, draw)
    (folder / "manifest.jsonl").write_bytes(data)
    own_adapters.read_manifest(folder / "manifest.jsonl")


@cache
def _tables() -> list[bytes]:
    import pandas

    contents = [
        {"question": ["is it"] * 4, "passage": ["a", "b", "c", "d"], "answer": [True, False] * 2},
        {
            "question": ["is it"] * 4,
            "passage": ["a", "b", "c", "d"],
            "answer": ["x", None, "", "é"],
        },
        {
            "question": [b"\xff", b"a", b"b", b"c"],
            "passage": [[1], [2], [3], [4]],
            "answer": [1, 2, 0, 1],
        },
        {"question": ["is it"], "passage": ["a"], "answer": [float("nan")]},
    ]
    files = []
    for content in contents:
        stream = io.BytesIO()
        pandas.DataFrame(content).to_parquet(stream)
        files.append(stream.getvalue())
    return files


def _drawn_table(draw: Random) -> bytes:
    """A parquet file with cells, column names and metadata of any kind."""
    import pyarrow
    from pyarrow import parquet as files

    names = [draw.choice(["question", "passage", "answer", "", "x", "é"]) for _ in range(4)]
    names[:3] = ["question", "passage", "answer"] if draw.random() < 0.8 else names[:3]
    columns = []
    for name in names[: draw.randrange(1, 5)]:
        values = [draw.choice(mutate.VALUES) for _ in range(3)]
        kind = draw.randrange(4)
        if name == "answer" and kind:
            values = draw.choices([0, 1, True, None, 2, 1.0, -1], k=3)
        elif kind:
            values = [str(value).encode(errors="replace").decode() for value in values]
        try:
            columns.append(pyarrow.array(values))
        except (pyarrow.ArrowException, UnicodeError, OverflowError, TypeError):
            columns.append(pyarrow.array([b"\xff", None, b"x"]))
    table = pyarrow.Table.from_arrays(columns, names[: len(columns)])
    metadata = draw.choice(
        [None, {"pandas": "{"}, {"pandas": "{}"}, {"pandas": '{"columns": [1]}'}]
    )
    stream = io.BytesIO()
    try:
        files.write_table(table.replace_schema_metadata(metadata), stream)
    except pyarrow.ArrowException:
        return _tables()[0]
    return stream.getvalue()


def parquet(folder: Path, draw: Random) -> None:
    """A parquet file of a local source, and its rows."""
    data = _drawn_table(draw) if draw.random() < 0.4 else draw.choice(_tables())
    if draw.random() < 0.6:
        data = mutate.bytes_of(data, draw)
    (folder / "x.parquet").write_bytes(data)
    frame = read_table(folder / "x.parquet")
    of = load_task("boolq")
    rows._rows(
        of,
        frame,
        of.sources.get("local") or {"text": "{passage} {question}", "label": "answer"},
        "train",
    )


TARGETS: dict[str, Callable[[Path, Random], None]] = {
    target.__name__: target
    for target in (adapter, safetensors, generator, task, form, sums, sweep, manifest, parquet)
}
SHARES = {"adapter": 24, "safetensors": 33, "generator": 6, "task": 5, "sweep": 4, "manifest": 10}
SHARES |= {"parquet": 14, "form": 2, "sums": 2}  # percent of all inputs
