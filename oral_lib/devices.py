"""Steps that are repeated: launched once, replayed from then on."""

from collections.abc import Callable, Hashable

import torch


class Replay:
    """`call(key)`; on a GPU it becomes a CUDA graph for each key and is replayed from then on.

    A step of a small model is hundreds of kernels, which take longer to launch than to run. What
    `call` reads and writes must stay where it is: it may not return anything or ask the device.
    The first call of a key runs as it is, for what is compiled and set up at a first use.
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
                self.call(key)  # noted down, not run
            self.pool = graph.pool()  # never replayed at once, so all share their memory
            self.graphs[key] = graph
        self.graphs[key].replay()


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it natively, else float32."""
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32
