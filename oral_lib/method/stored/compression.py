"""A network in few bytes: what the file of a generator stores of each tensor.

    code = round(value / scale), |code| <= limit      scale = largest |value| of the group / limit

| tensor | stored |
| --- | --- |
| basis of a base model, matrices of the network | int8 codes, limit 127 |
| of these, large matrices of the denoiser (LARGE) | 4-bit codes, limit 7 |
| center, directions of the zoo | float16, if that is exact to HALF_ERROR |
| everything else | float32 |

A group is NEIGHBOURS values in a row of a matrix, or in one direction of one token. Padding is not
stored, nor are directions that the zoo does not span: those with a share of energy below SPANNED.
Scales are bfloat16. A code times its scale is then exact in float32, so values that were restored
are compressed to the same bytes again.

Letters: l tokens, k values a token, v values of an adapter, r components a token, d directions.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib.errors import OralError
from oral_lib.lora.adapter import first_difference
from oral_lib.method.base_entry import BaseEntry
from oral_lib.method.conditioning import FINGERPRINT
from oral_lib.method.config import GeneratorConfig
from oral_lib.method.model import ORAL
from oral_lib.method.tokenization import Layout

Form = tuple[torch.dtype | tuple[torch.dtype, ...], tuple[int, ...]]  # dtype or dtypes, shape
BYTE, NIBBLE = 127, 7  # largest codes of 8 and of 4 bits
LARGE = ("denoiser.blocks.", "denoiser.modulation.")  # most of the weights of a network
NEIGHBOURS = 64  # values that share a scale
HALF_ERROR = 1e-3  # of the norm of a tensor, by which its half precision may differ
SPANNED = 1e-6  # a direction with a smaller share of the largest energy is float32 rounding
# a file restores to so many times its values, or to _FREE: a small file does not fill the memory
_EXPANSION, _FREE = 64, 1 << 25


def compress(network: ORAL) -> dict[str, Tensor]:
    """The tensors of a network as its file stores them, on the CPU.

    >>> import oral_lib.method as method
    >>> start = {"q.lora_A.weight": torch.ones(2, 96), "q.lora_B.weight": torch.zeros(96, 2)}
    >>> zoo = [{n: t + torch.randn_like(t) for n, t in start.items()} for _ in range(4)]
    >>> texts = {task: torch.randn(3, 64) for task in ("cheerful", "formal")}
    >>> config = method.GeneratorConfig(k=128, components=64)
    >>> layout, tasks = method.Layout.of(start, config.k), ["cheerful", "cheerful", *2 * ["formal"]]
    >>> data = method.TrainingSet.of(layout, start, zoo, tasks, texts, config)
    >>> network = ORAL(config, {"mine": data.base(torch.randn(64), torch.randn(64))})
    >>> stored = compress(network)
    >>> stored["entries.0.basis"].shape  # 4 adapters span 4 directions of 384 values
    torch.Size([4, 384])
    >>> stored["denoiser.blocks.0.0.weight"].shape  # [1024, 512], two codes a byte
    torch.Size([1024, 256])
    """
    stored = {}
    for number, entry in enumerate(network.bases.values()):
        parts = _compress_entry(entry)
        stored |= {f"entries.{number}.{name}": tensor for name, tensor in parts.items()}
    for name, tensor in network.state_dict().items():
        if not name.startswith("entries."):
            stored |= _compress_weight(name, tensor.detach().cpu())
    return {name: tensor.contiguous() for name, tensor in stored.items()}


def restore(
    config: GeneratorConfig,
    bases: Mapping[str, tuple[Layout, dict]],
    stored: Mapping[str, Tensor],
) -> ORAL:
    """The network, float32 on the CPU, whose compressed tensors are `stored`.

    Args:
        config: of the network.
        bases: layout and PEFT configuration by base model.
        stored: what `compress` returned.

    Raises:
        OralError: a tensor is missing or unexpected, or has another dtype, shape or range.
    """
    entries, weights = {}, dict(stored)
    for number, (name, (layout, peft_config)) in enumerate(sorted(bases.items())):
        prefix = f"entries.{number}."
        names = [n for n in weights if n.startswith(prefix)]
        parts = {n.removeprefix(prefix): weights.pop(n) for n in names}
        try:
            state = _restore_entry(layout, config.components, parts)
            entries[name] = BaseEntry.restored(layout, state, peft_config)
        except OralError as error:
            raise OralError(f"base model {name!r}: {error}") from error
    network = ORAL(config, entries)
    shapes = {n: t.shape for n, t in network.state_dict().items() if not n.startswith("entries.")}
    _check(weights, {n: form for name in shapes for n, form in _form(name, shapes[name]).items()})
    restored = {name: _restore_weight(name, shape, weights) for name, shape in shapes.items()}
    network.load_state_dict(restored, strict=False)  # the entries are complete
    return network


def compressed(network: ORAL) -> ORAL:
    """The network that is read back after `network` is saved; on its device, for sampling."""
    bases = {name: (entry.layout, entry.peft_config) for name, entry in network.bases.items()}
    return restore(network.config, bases, compress(network)).to(network.device).eval()


# ---------------------------------------------------------------- codes
def _codes(values: Tensor, scale: Tensor, limit: int) -> Tensor:
    """int8 codes of `values`, for scales that broadcast."""
    step = scale.float().where(scale > 0, 1.0)
    return (values / step).round().clamp(-limit, limit).to(torch.int8)


def _values(codes: Tensor, scale: Tensor, limit: int) -> Tensor:
    """float32 codes * scale, which broadcast. OralError if one is out of range."""
    if (codes.abs() > limit).any() or (codes == -128).any() or (scale < 0).any():
        raise OralError(f"a code beyond {limit} or a scale below 0.")
    values = codes.float() * scale.float()
    if not values.isfinite().all():
        raise OralError("a scale is too large.")
    return values


def _half(tensor: Tensor) -> Tensor:
    """`tensor` in half precision where that is exact to HALF_ERROR, else itself."""
    half = tensor.half()
    return half if (half.float() - tensor).norm() <= HALF_ERROR * tensor.norm() else tensor


# ---------------------------------------------------------------- a base model
def _compress_entry(entry: BaseEntry) -> dict[str, Tensor]:
    """The stored tensors of the entry of a base model."""
    buffers = {name: t.detach().cpu() for name, t in entry.named_buffers()}
    layout = entry.layout
    names = ("structure", "fingerprint", "scale", "coords")
    parts = {name: buffers[name] for name in names if name in buffers}
    parts["center"] = _half(buffers["center"][layout.mask])  # [v]
    mask = layout.mask
    if "basis" in buffers:
        rows = buffers["basis"].movedim(1, 0)  # [r, l, k]
        energy = rows.square().sum((1, 2))  # [r]
        spanned = (energy > SPANNED * energy.max()).nonzero()
        rows = rows[: int(spanned.max()) + 1 if len(spanned) else 0]  # [d, l, k]
        rows, group = rows[:, layout.mask], _groups(layout)  # [d, v], [v]
        largest = rows.new_zeros(len(rows), int(group[-1]) + 1)  # [d, groups]
        largest.scatter_reduce_(1, group.expand_as(rows), rows.abs(), "amax")
        parts["basis.scale"] = (largest / BYTE).bfloat16()
        parts["basis"] = _codes(rows, parts["basis.scale"][:, group], BYTE)
        mask = _mask(_restore_basis(layout, entry.size, parts))
    if "directions" in buffers:
        parts["directions"] = _half(buffers["directions"][:, mask])  # [s, used]
    return parts


def _restore_entry(
    layout: Layout, components: int, parts: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The buffers of the entry of a base model."""
    rows = {name: len(part) if part.ndim else 0 for name, part in parts.items()}
    values, half = sum(layout.sizes), (torch.float16, torch.float32)
    forms = {"center": (half, (values,)), "scale": (torch.float32, (layout.l, 1))}
    forms |= {"structure": (torch.float32, (rows.get("structure", 0),))}
    forms |= {"fingerprint": (torch.float32, (FINGERPRINT,))}
    if components:
        d = min(rows.get("basis", 0), components)
        forms |= {"basis": (torch.int8, (d, values))}
        forms |= {"basis.scale": (torch.bfloat16, (d, int(_groups(layout)[-1]) + 1))}
    _check({name: part for name, part in parts.items() if name in forms}, forms)
    restored, mask = layout.l * layout.k * max(components, 1), layout.mask
    if restored > max(_FREE, _EXPANSION * sum(part.numel() for part in parts.values())):
        raise OralError(f"{layout.l} tokens of {layout.k} values are more than the weights have.")
    buffers = {"center": _spread(parts["center"][None].float(), mask)[0]}  # [l, k]
    for name in ("scale", "structure", "fingerprint"):
        buffers[name] = parts[name].clone()  # as aligned in memory as after training
    if components:
        buffers["basis"] = _restore_basis(layout, components, parts)
        mask = _mask(buffers["basis"])
    if rest := parts.keys() - forms.keys():
        s, n = rows.get("directions", 0), max(1, rows.get("coords", 1))
        forms = {"directions": (half, (s, int(mask.sum()))), "coords": (torch.float32, (n, s))}
        _check({name: parts[name] for name in rest}, forms)
        if s * mask.numel() > max(_FREE, _EXPANSION * parts["directions"].numel()):
            raise OralError(f"{s} directions of {mask.numel()} numbers are more than stored.")
        buffers["directions"] = _spread(parts["directions"].float(), mask)
        buffers["coords"] = parts["coords"].clone()
    return buffers


def _restore_basis(layout: Layout, components: int, parts: Mapping[str, Tensor]) -> Tensor:
    """float32 [l, r, k]; zero rows where the zoo spans no direction."""
    rows = _values(parts["basis"], parts["basis.scale"][:, _groups(layout)], BYTE)  # [d, v]
    rows = _spread(rows, layout.mask)  # [d, l, k]
    return F.pad(rows, (0, 0, 0, 0, 0, components - len(rows))).movedim(0, 1).contiguous()


def _groups(layout: Layout) -> Tensor:
    """long [v]: the group of each value; NEIGHBOURS values of a token are one."""
    token, place = layout.mask.nonzero().unbind(1)  # [v] each
    blocks = token * -(-layout.k // NEIGHBOURS) + place // NEIGHBOURS
    return blocks.unique_consecutive(return_inverse=True)[1]


def _spread(rows: Tensor, mask: Tensor) -> Tensor:
    """[d, *mask] of `rows` [d, values of the mask], 0 elsewhere."""
    spread = rows.new_zeros(len(rows), *mask.shape)
    spread[:, mask] = rows
    return spread


def _mask(basis: Tensor) -> Tensor:
    """bool [l, r]: the components that the tokens of `basis` [l, r, k] have."""
    return basis.square().sum(-1) > 0


# ---------------------------------------------------------------- the network
def _limit(name: str, shape: tuple[int, ...]) -> int:
    """The largest code of a tensor of the network, 0 if it is not stored as codes."""
    if len(shape) != 2 or shape[1] % NEIGHBOURS:
        return 0
    return NIBBLE if name.startswith(LARGE) else BYTE


def _form(name: str, shape: tuple[int, ...]) -> dict[str, Form]:
    """The stored tensors of one tensor of the network."""
    limit = _limit(name, shape)
    if not limit:
        return {name: (torch.float32, tuple(shape))}
    rows, columns = shape
    codes = (torch.uint8, (rows, columns // 2)) if limit == NIBBLE else (torch.int8, tuple(shape))
    return {name: codes, f"{name}.scale": (torch.bfloat16, (rows, columns // NEIGHBOURS))}


def _compress_weight(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The stored tensors of one tensor of the network."""
    limit = _limit(name, tensor.shape)
    if not limit:
        return {name: tensor}
    groups = tensor.unflatten(1, (-1, NEIGHBOURS))  # [rows, groups, 64]
    scale = (groups.abs().amax(-1) / limit).bfloat16()  # [rows, groups]
    codes = _codes(groups, scale[..., None], limit).flatten(1)  # [rows, columns]
    if limit == NIBBLE:
        nibbles = (codes + 8).to(torch.uint8)  # 1 to 15
        codes = nibbles[:, ::2] | nibbles[:, 1::2] << 4  # [rows, columns / 2]
    return {name: codes, f"{name}.scale": scale}


def _restore_weight(name: str, shape: tuple[int, ...], stored: Mapping[str, Tensor]) -> Tensor:
    """One float32 tensor of the network."""
    limit, codes = _limit(name, shape), stored[name]
    if not limit:
        return codes
    if limit == NIBBLE:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(1).to(torch.int8) - 8
    groups = codes.unflatten(1, (-1, NEIGHBOURS))  # [rows, groups, 64]
    return _values(groups, stored[f"{name}.scale"][..., None], limit).flatten(1)


def _check(tensors: Mapping[str, Tensor], forms: Mapping[str, Form]) -> None:
    """OralError with the first difference between `tensors` and their `forms`."""
    if difference := first_difference(tensors, {n: shape for n, (_, shape) in forms.items()}):
        raise OralError(f"{difference}.")
    for name, (dtype, _) in forms.items():
        if tensors[name].dtype not in (dtype if isinstance(dtype, tuple) else (dtype,)):
            raise OralError(f"tensor {name!r} is {tensors[name].dtype}, expected {dtype}.")
