"""A model under a LoRA adapter of PEFT: wrapped, filled, read and unwrapped again."""

import copy
import warnings

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from oral_lib.errors import OralError
from oral_lib.lora import patterns
from oral_lib.lora.adapter import LoraSettings, expressions


def wrap(model: nn.Module, config: LoraConfig) -> PeftModel:
    """`model`, changed in place, with trainable LoRA and head, which are float32 in any case.

    OralError for a configuration that is not plain LoRA or whose patterns take too long to match.
    """
    LoraSettings.of(config)
    patterns.check_all(expressions(config), (name for name, _ in model.named_modules()))
    with warnings.catch_warnings():  # PEFT reads a deprecated name
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        wrapped = get_peft_model(model, config)
    for module in wrapped.modules():
        if isinstance(module, ModulesToSaveWrapper):  # PEFT itself casts LoRA factors only
            module.modules_to_save.float()
            module.register_forward_pre_hook(_in_float32)
    return wrapped


def unload(wrapped: PeftModel) -> None:
    """Removes the adapter: the model that was wrapped is bit for bit what it was, and frozen."""
    named = wrapped.get_base_model().named_modules()
    heads = {n: m.original_module for n, m in named if isinstance(m, ModulesToSaveWrapper)}
    model = wrapped.unload().requires_grad_(False).eval()  # the object that was wrapped
    for name, head in heads.items():  # PEFT leaves the adapter's head in the base
        model.set_submodule(name, head)
    vars(model).pop("peft_config", None)  # PEFT may leave it and then warn at the next wrapping


def take(wrapped: PeftModel) -> dict[str, Tensor]:
    """A copy of the adapter's tensors by PEFT's saved names, float32, on the CPU."""
    return {name: value.detach().float().cpu().clone() for name, value in _state(wrapped).items()}


def put(wrapped: PeftModel, tensors: dict[str, Tensor]) -> None:
    """Writes adapter tensors (PEFT's saved names) into `wrapped`, in place.

    OralError unless the model has exactly these names: PEFT would ignore unknown names and leave
    missing ones as they were.
    """
    required = _state(wrapped).keys()
    if odd := sorted(required ^ tensors.keys()):
        fault = "lacks" if odd[0] in required else "has the unknown"
        raise OralError(f"This adapter does not fit the base model: it {fault} tensor {odd[0]!r}.")
    set_peft_model_state_dict(wrapped, tensors)


def shapes(model: nn.Module, config: LoraConfig) -> dict[str, torch.Size]:
    """The shapes of an adapter's tensors, in PEFT's order; `model` stays as it is.

    Draws from the global generator of the CPU exactly as `wrap` does.
    """
    memo = {id(buffer): buffer for buffer in model.buffers()}
    for weight in model.parameters():  # a copy without weights
        memo[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta"), False)
    state = _state(wrap(copy.deepcopy(model, memo), config))
    return {name: value.shape for name, value in state.items()}


def _state(wrapped: PeftModel) -> dict[str, Tensor]:
    # save_embedding_layers="auto" would query the hub for the size of the vocabulary
    return get_peft_model_state_dict(wrapped, save_embedding_layers=False)


def _in_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in inputs)
