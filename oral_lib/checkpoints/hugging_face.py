"""Models and tokenizers of transformers and diffusers, read from named files of a local folder.

All of `from_pretrained` is called here. Nothing is downloaded, no code of a folder is run, weights
are safetensors, and settings that a configuration class does not declare are left out.
"""

import dataclasses
import errno
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from oral_lib.checkpoints import folders
from oral_lib.checkpoints.folders import MODEL_CONFIG, TOKENIZER_CONFIG, TOKENIZER_FILES
from oral_lib.errors import OralError

FILE_FAULTS = (OSError, SafetensorError, StrictDataclassError)  # of a missing or damaged file
CONFIG_FAULTS = (  # of a configuration class that is given values of other types
    *(ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError),
    StrictDataclassError,
)
OLDER_KEYS = (  # of files by earlier versions of transformers, read by its classes
    *("torch_dtype", "rope_theta", "rope_scaling", "rope_local_base_freq"),
    *("partial_rotary_factor", "sliding_window_pattern"),
)
NOT_READ = (  # what a model returns, and the head, which belongs to the adapter
    *("return_dict", "output_hidden_states", "output_attentions", "is_encoder_decoder"),
    *("id2label", "label2id", "problem_type"),
)
SIZE_FAULTS = (  # of a model of sizes or settings that no layer has
    *(ArithmeticError, AssertionError, LookupError, TypeError, ValueError),
)
FORM_FAULTS = (LookupError, TypeError, ValueError)  # settings of another form
KIND_KEYS = ("model_type", "transformers_version")  # all that a tokenizer reads of config.json
GENERATION_CONFIG = "generation_config.json"
PROCESSOR_CONFIG = "preprocessor_config.json"
PROCESSOR_KEYS = (
    *("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "size", "min_pixels"),
    *("max_pixels", "patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std"),
    *("resample", "rescale_factor"),
)
TOKENIZER_FORMS = {  # setting -> its types
    "tokenizer_class": str,
    "model_max_length": int | float,
    "added_tokens_decoder": dict,
} | dict.fromkeys(
    ("pad_token", "bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token"),
    str | dict,
)
USED_TOKENS = ("pad_token", "bos_token", "eos_token", "unk_token", "sep_token", "cls_token")
LAYER_COUNTS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth"}
MOST_LAYERS = 1000
MODEL_SIZES = {
    *("hidden_size", "intermediate_size", "vocab_size"),
    *("num_attention_heads", "num_key_value_heads"),
}
LARGEST_SIZE = 1 << 20
FLOAT_TYPES = ("float32", "float16", "bfloat16")


# ---------------------------------------------------------------- reading
@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the reports and progress bars of transformers."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def reading(folder: Path, what: str, *faults: type[Exception]) -> Iterator[None]:
    """Reads files of `what` in `folder`, quietly. OralError for missing and damaged files.

    Only `FILE_FAULTS`, `faults` and the bare Exception of tokenizers become an OralError: too
    little memory and programming errors pass through unchanged.
    """
    try:
        with quiet():
            yield
    except Exception as error:
        no_memory = getattr(error, "errno", None) == errno.ENOMEM or "os error 12" in str(error)
        bare = type(error) is Exception  # tokenizers has no class of its own
        if no_memory or not (bare or isinstance(error, (*FILE_FAULTS, *faults))):
            raise
        raise _damaged(folder, what, error_line(error)) from error


def error_line(error: Exception) -> str:
    """The kind of `error` and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _damaged(folder: Path, what: str, fault: str) -> OralError:
    return OralError(
        f"{folder} does not hold a complete {what} ({fault}): put its files there again, weights "
        "as safetensors; pickled weights are never read."
    )


# ---------------------------------------------------------------- settings
def read_config(folder: Path, what: str, kinds: Collection[str]) -> PretrainedConfig:
    """The configuration in config.json of `folder`, with settings that its class declares.

    Args:
        folder: the model's folder.
        what: name of the model in error messages.
        kinds: the values of model_type that may be read.

    Raises:
        OralError: the file is missing or damaged, or describes another kind of model.
    """
    settings = config_settings(folder, what, kinds)
    try:
        with quiet():
            return CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    except CONFIG_FAULTS as error:
        raise OralError(
            f"{folder / MODEL_CONFIG} does not describe a {settings['model_type']} "
            f"({error_line(error)}): use the released file."
        ) from error


def config_settings(folder: Path, what: str, kinds: Collection[str]) -> dict[str, Any]:
    """The settings in config.json of `folder` that the class of its model_type declares.

    Arguments and errors as of `read_config`.
    """
    file, content = folder / MODEL_CONFIG, _settings(folder, MODEL_CONFIG, what)
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING or kind not in kinds:
        raise OralError(
            f"{folder} does not hold a {what}: config.json has model_type {kind!r}. Put its "
            "released files there."
        )
    if content.get("quantization_config") is not None:
        raise OralError(f"{file} describes quantised weights: use weights of full precision.")
    return _declared(CONFIG_MAPPING[kind], content, file)


def _settings(folder: Path, name: str, what: str) -> dict[str, Any]:
    try:
        return folders.read_settings(folder / name)
    except OralError as error:
        raise _damaged(folder, what, str(error).rstrip(".")) from error


def _declared(config_class: type, content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The settings in `content` that `config_class` declares, also in its nested settings."""
    names = {field.name for field in dataclasses.fields(config_class)}
    names |= {*config_class.attribute_map, *OLDER_KEYS, "model_type"}
    parts = config_class.sub_configs
    for part in filter(dataclasses.is_dataclass, parts.values()):
        # older files have the settings of a part among all others
        names |= {field.name for field in dataclasses.fields(part)}
    settings = {key: content[key] for key in content if key in names and key not in NOT_READ}
    for key in settings.keys() & parts.keys():
        if isinstance(part := settings[key], dict):
            fixed = dataclasses.is_dataclass(parts[key])  # else its model_type decides
            kind = parts[key] if fixed else CONFIG_MAPPING[_kind(part, file)]
            settings[key] = _declared(kind, part, file)
    for key in settings.keys() & LAYER_COUNTS:
        if settings[key] not in range(1, MOST_LAYERS):
            raise OralError(f"{file}: {key} {settings[key]!r} is not a number of layers.")
    for key in settings.keys() & MODEL_SIZES:
        if isinstance(settings[key], int) and not 0 < settings[key] <= LARGEST_SIZE:
            raise OralError(
                f"{file}: {key} {settings[key]!r} is not from 1 to {LARGEST_SIZE}: use the "
                "released file."
            )
    for key in settings.keys() & {"dtype", "torch_dtype"}:
        if settings[key] not in (None, "auto", *FLOAT_TYPES):
            raise OralError(
                f"{file}: {key} {settings[key]!r} is not one of {', '.join(FLOAT_TYPES)}."
            )
    return settings


def _kind(content: Mapping[str, Any], file: Path) -> str:
    """The model_type of a part of a model. OralError for one that transformers does not have."""
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise OralError(f"{file} has a part of model_type {kind!r}: use the released file.")
    return kind


def read_tokenizer(folder: Path, what: str):
    """The tokenizer in `folder`, from files of the names that tokenizers have.

    The model_type in config.json, if there is such a file, may decide the class of the tokenizer.
    OralError if files are missing or damaged.
    """
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    settings = {}
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            _settings(folder, name, what)
    if (folder / TOKENIZER_CONFIG).is_file():
        content = _settings(folder, TOKENIZER_CONFIG, what)
        for key, form in TOKENIZER_FORMS.items():
            if not isinstance(content.get(key), form | None):
                raise OralError(
                    f"{folder / TOKENIZER_CONFIG}: {key} is {content[key]!r}: use the "
                    "released file."
                )
        settings[TOKENIZER_CONFIG] = {k: v for k, v in content.items() if not _names_a_file(k)}
    if (folder / MODEL_CONFIG).is_file():
        content = _settings(folder, MODEL_CONFIG, what)
        settings[MODEL_CONFIG] = {k: content[k] for k in KIND_KEYS if k in content}
    with (
        folders.only(files, settings) as clean,
        reading(folder, f"tokenizer of {what}", *FORM_FAULTS),
    ):
        tokenizer = AutoTokenizer.from_pretrained(
            clean, local_files_only=True, trust_remote_code=False
        )
    tokenizer.name_or_path = ""  # not the temporary folder
    return tokenizer


def _names_a_file(key: str) -> bool:
    """Whether a setting of a tokenizer names code or a file elsewhere."""
    return key in ("auto_map", "name_or_path") or key.endswith(("_file", "_path", "_dir"))


def read_processor(kind: type, folder: Path, what: str):
    """The image processor of class `kind` that preprocessor_config.json in `folder` describes.

    OralError if the file is missing or damaged.
    """
    content = _settings(folder, PROCESSOR_CONFIG, what)
    settings = {key: content[key] for key in PROCESSOR_KEYS if key in content}
    with (
        folders.only((), {PROCESSOR_CONFIG: settings}) as clean,
        reading(folder, what, *FORM_FAULTS),
    ):
        return kind.from_pretrained(clean, local_files_only=True)


def constructor_settings(
    kind: type, folder: Path, what: str, name: str = MODEL_CONFIG
) -> dict[str, Any]:
    """The settings in the file `name` that the constructor of `kind`, a class of diffusers, has.

    OralError if the file is missing or damaged, or describes quantised weights.
    """
    content = _settings(folder, name, what)
    if content.get("quantization_config") is not None:
        raise OralError(
            f"{folder / name} describes quantised weights: use weights of full precision."
        )
    names = set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"}
    return {key: value for key, value in content.items() if key in names}


def require_padding(folder: Path, tokenizer) -> None:
    """Pads with the end-of-text token if there is no token for it. OralError without both."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise OralError(
            f"{folder}: the tokenizer has no token that fills a batch: name its pad_token in "
            f"{TOKENIZER_CONFIG}."
        )


def check_vocabulary(folder: Path, tokenizer, embedding: nn.Embedding) -> None:
    """OralError if tokens of the tokenizer in `folder` have no row in the model's embedding.

    Special tokens that only appear where a text spells them out are checked when it is read.
    """
    rows, added = embedding.num_embeddings, set(tokenizer.added_tokens_decoder)
    used = {getattr(tokenizer, f"{name}_id") for name in USED_TOKENS} - {None}
    missing = [
        (i, token)
        for token, i in tokenizer.get_vocab().items()
        if i >= rows and (i in used or i not in added)
    ]
    if missing:
        i, token = min(missing)
        raise OralError(
            f"{folder}: token {token!r} of the tokenizer has id {i}, and the model's embedding has "
            f"{rows} rows: use tokenizer and weights of one model."
        )


# ---------------------------------------------------------------- weights
def pretrained(
    kind: type,
    folder: Path,
    what: str,
    *,
    new: Sequence[str] = (),
    extra: Sequence[str] = (),
    **options,
) -> nn.Module:
    """The model of class `kind` of transformers or diffusers with the weights in `folder`.

    Args:
        kind: a class with `from_pretrained`.
        folder: the model's folder.
        what: name of the model in error messages.
        new, extra: names that may be missing or superfluous, see `check_fit`.
        options: passed to `from_pretrained`; transformers requires `config` of `read_config`.

    Raises:
        OralError: the weights are missing, damaged, or of another model than `config.json` says.
    """
    files = folders.weight_links(folder)
    if not files:
        raise _damaged(folder, what, "no safetensors file")
    if config := options.get("config"):  # how a model writes is decided where it writes
        ends = ("bos_token_id", "eos_token_id", "pad_token_id")
        settings = {GENERATION_CONFIG: {name: getattr(config, name, None) for name in ends}}
    else:
        about = {"_class_name": kind.__name__}
        settings = {MODEL_CONFIG: about | constructor_settings(kind, folder, what)}
    with folders.only(files, settings) as clean, reading(folder, what, *SIZE_FAULTS):
        for file in folders.weight_files(folder):
            with safe_open(file, "pt"):  # the header must account for every byte of the file
                pass
        model, info = kind.from_pretrained(
            clean,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_fit` refuses them by name
            **options,
        )
    check_fit(folder, info, new, extra)
    if isinstance(model.config, PretrainedConfig):
        model.config.name_or_path = ""  # not the temporary folder
    return model


def check_fit(
    folder: Path, info: Mapping[str, Collection], new: Sequence[str] = (), extra: Sequence[str] = ()
) -> None:
    """OralError unless the weights of `folder` fit the model in its config.json.

    `info` is the `output_loading_info` of transformers or diffusers. Names that contain a string of
    `new` may be missing, names that contain one of `extra` may be superfluous. Everything else must
    match: transformers initialises missing weights at random without failing.
    """
    extra = (*extra, "position_ids", "inv_freq")  # tables in older files, now computed
    odd = [n for n in map(str, info["missing_keys"]) if not any(part in n for part in new)]
    odd += [n for n in map(str, info["unexpected_keys"]) if not any(part in n for part in extra)]
    odd += [str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]]
    if odd:
        raise _other_model(folder, min(odd), "config.json")


def check_tensors(
    folder: Path, tensors: Mapping[str, Tensor], model: nn.Module, config: str
) -> None:
    """OralError unless `tensors` have the names and shapes of the state of `model`, which `config`
    describes."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    required = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if odd := sorted(dict(shapes.items() ^ required.items())):
        raise _other_model(folder, odd[0], config)


def _other_model(folder: Path, name: str, config: str) -> OralError:
    return OralError(
        f"{folder} holds weights of another model than {config} describes: {name!r} does not fit. "
        "Put both there again."
    )
