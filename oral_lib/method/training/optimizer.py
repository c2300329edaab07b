"""The optimiser of a network: AdamW on clipped gradients, and an average (EMA) of the weights.

    g = g * min(1, clip / |g|)      w <- AdamW(w, g)      w_ema <- w_ema + rate * (w - w_ema)

Nothing here waits for the device, so that an update can be part of a CUDA graph. The state of the
optimiser is stored with the network: an interrupted training continues bit for bit.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from oral_lib import learning_rate, storage
from oral_lib.errors import OralError, UsageError
from oral_lib.method.model import ORAL

CHECK_EVERY = 100  # steps: reading the loss makes the host wait for the device


class Schedule:
    """What the configurations of both training signals share: rates by step, and ranges.

    A subclass is a dataclass with the fields below.
    """

    steps: int
    lr: float
    warmup: int
    clip: float
    save_every: float
    ema: float
    text_noise: float

    def check(self, positive: Sequence[str], shares: Sequence[str]) -> None:
        """UsageError if a field is out of range.

        Args:
            positive: further fields above 0.
            shares: fields from 0 to 1.
        """
        for name in ("steps", "lr", "clip", "save_every", *positive):
            if getattr(self, name) <= 0:
                raise UsageError(f"training: {name} must be positive, got {getattr(self, name)!r}.")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"training: {name}={getattr(self, name)!r} must lie in [0, 1].")
        if not 0 <= self.ema < 1:
            raise UsageError(f"training: ema={self.ema!r} must lie in [0, 1).")
        if self.text_noise < 0:
            raise UsageError(f"training: text_noise={self.text_noise!r} must not be negative.")

    def lr_at(self, step: int) -> float:
        """Linear warm-up to `lr`, then a cosine to zero."""
        return learning_rate.cosine(self.lr, step, steps=self.steps, warmup=self.warmup)

    def average_rate(self, step: int) -> float:
        """Weight of the values of `step` in the average. Its memory grows up to `ema`, so that
        early values fade."""
        return 1 - min(self.ema, (1 + step) / (10 + step)) if step else 1.0


class AveragedAdamW:
    """AdamW for `model`, and `averaged`, a copy of it with averaged weights.

    Args:
        model: is trained in place; it is on the device of the training.
        lr: learning rate; `update` reads the rate of each group.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        faster: factor on the learning rate by name of a parameter's module; others have 1.
    """

    def __init__(
        self,
        model: ORAL,
        *,
        lr: float,
        weight_decay: float,
        clip: float,
        faster: Mapping[str, float] | None = None,
    ):
        device = model.device
        self.model, self.clip, self.faster = model, clip, faster or {}
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        groups = _groups(model, self.faster)
        self.optimizer = torch.optim.AdamW(
            [{"params": part, "lr": torch.tensor(lr, device=device)} for part in groups.values()],
            weight_decay=weight_decay,
            betas=(0.9, 0.99),
            fused=True,
            capturable=device.type == "cuda",
        )
        self.factors = [self.faster.get(name, 1.0) for name in groups]
        self.rate, self.norm = (torch.zeros((), device=device) for _ in range(2))
        self.average, self.now = list(self.averaged.parameters()), list(model.parameters())

    def set_rates(self, lr: float, average_rate: float) -> None:
        """Sets the learning rate and the weight of the present values in the average."""
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"].fill_(lr * factor)
        self.rate.fill_(average_rate)

    def update(self) -> None:
        """One step on the gradients of the parameters; `norm` is their norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.norm.copy_(norm)
        self.optimizer.step()
        with torch.no_grad():  # average + rate * (now - average)
            change = torch._foreach_sub(self.now, self.average)
            torch._foreach_mul_(change, self.rate)
            torch._foreach_add_(self.average, change)

    # ------------------------------------------------------------ on disk
    def store(
        self, path: Path, run: int, step: int, curves: Mapping[str, Sequence[Tensor]]
    ) -> None:
        """Writes what a training resumes from.

        Args:
            path: of the file.
            run: identifies the training.
            step: steps done.
            curves: values by step, such as the losses.
        """
        state = {f"model.{n}": v for n, v in self.model.state_dict().items()}
        state |= {f"ema.{n}": v for n, v in self.averaged.state_dict().items()}
        for i, slots in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{i}.{n}": v for n, v in slots.items()}
        state |= {"run": torch.tensor(run), "step": torch.tensor(step)}
        state |= {n: torch.stack([*values]).float() for n, values in curves.items()}
        state = {n: v.detach().to("cpu", copy=True).contiguous() for n, v in state.items()}
        storage.write_tensors(path, state)

    def resume(self, path: Path, run: int, curves: Sequence[str]) -> tuple[int, dict[str, list]]:
        """(steps done, values by step of each of `curves`), after reading `path`.

        OralError if it belongs to another training or to a network of another shape.
        """
        state = storage.read_tensors(path)
        if int(state.get("run", 0)) != run:
            raise OralError(
                f"{path} belongs to a training with other settings or adapters: delete it to "
                "start again."
            )

        def part(prefix: str) -> dict[str, Tensor]:
            cut = len(prefix) + 1
            return {n[cut:]: v for n, v in state.items() if n.startswith(prefix + ".")}

        try:
            self.model.load_state_dict(part("model"))
            self.averaged.load_state_dict(part("ema"))
        except RuntimeError as error:
            raise OralError(
                f"{path} belongs to a network of another shape: delete it to start again."
            ) from error
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer").items():
            i, slot = name.split(".")
            slots.setdefault(int(i), {})[slot] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        return int(state["step"]), {n: list(state[n].to(self.norm.device)) for n in curves}


def _groups(model: ORAL, faster: Mapping[str, float]) -> dict[str, list[torch.nn.Parameter]]:
    """The parameters by name of the module in `faster` that holds them, others under ""."""
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        module = next((m for m in faster if name.startswith(f"{m}.")), "")
        groups.setdefault(module, []).append(parameter)
    return groups
