"""Devices: CUDA graphs for repeated steps, the fastest dtype, names."""

from collections.abc import Callable, Hashable

import torch


class Replay:
    """Runs `call(key)`; on a GPU captures one CUDA graph for each key and replays it.

    A step of a small model is hundreds of kernels that take longer to launch than to run. The
    tensors that `call` reads and writes must keep their addresses. It must not return a value or
    synchronise with the device. The first call of a key is not captured: it compiles and allocates.
    """

    def __init__(self, call: Callable[[Hashable], None], device: torch.device):
        self.call, self.device, self.pool = call, device, None
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}

    def __call__(self, key: Hashable) -> None:
        if self.device.type != "cuda" or key not in self.graphs:
            self.graphs[key] = None
            return self.call(key)
        if self.graphs[key] is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                self.call(key)  # recorded, not run
            self.pool = graph.pool()  # graphs never run concurrently, so they share one memory pool
            self.graphs[key] = graph
        self.graphs[key].replay()


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 if the device multiplies it natively, else float32."""
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def device_name(device: torch.device) -> str:
    """The name of a GPU as its driver has it, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
