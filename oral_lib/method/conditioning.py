"""The condition c = [c_text ; c_model]: what the task is, in words, and what the base model is.

c_text is a sentence embedding of the task's description by a frozen encoder. c_model is the same
embedding of the base model's structure in words and, in the `fingerprint` arm, a sketch of its very
weights: versions of one model share their structure and differ only there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib.errors import UsageError, closest

ARMS = ("fingerprint", "describe")


class Condition(nn.Module):
    """Fuses text [b, e], structure [b, e] and fingerprint [b, f] into c [b, m].

    A dropped or empty text becomes a learned vector, so that the generator can be guided and can be
    asked without words. In the `describe` arm the fingerprint is not read at all.
    """

    def __init__(self, embedding: int, width: int, arm: str = "fingerprint"):
        super().__init__()
        if arm not in ARMS:
            raise UsageError(f"base condition {arm!r}: use one of {ARMS}.{closest(arm, ARMS)}")
        self.arm = arm
        self.no_text = nn.Parameter(torch.zeros(embedding))
        self.text = nn.Linear(embedding, width)
        self.structure = nn.Linear(embedding, width)
        self.fingerprint = nn.Linear(FINGERPRINT, width) if arm == "fingerprint" else None
        self.fuse = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, text: Tensor, given: Tensor, structure: Tensor, fingerprint: Tensor):
        """c [b, m]; `given` [b] bool says whose text is to be read. Unit vectors of e values are
        scaled to unit size a value, as everything else that enters a linear layer here."""
        text = torch.where(given[:, None], text * text.shape[-1] ** 0.5, self.no_text)
        c = self.text(text) + self.structure(structure * structure.shape[-1] ** 0.5)
        if self.fingerprint is not None:
            c = c + self.fingerprint(F.layer_norm(fingerprint, fingerprint.shape[-1:]))
        return self.fuse(c)


SKETCH = 16  # columns of the random projection through which a weight matrix is seen

FINGERPRINT = 64  # values of a fingerprint
