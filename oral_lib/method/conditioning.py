"""The condition c = [c_text ; c_model]: the task in words and examples, and the base model.

    c = fuse( W_text text + mean_i( g_{y_i} * W_x x_i + d_{y_i} )
              + W_structure structure + W_fingerprint norm(fingerprint) )

c_text is the sentence embedding of the task's description by a frozen encoder, with the embeddings
x_i of labelled examples, y_i their labels. c_model is the embedding of the base model's structure
in words and, in the `fingerprint` arm, a sketch of its weights. Versions of one model share their
structure and differ in their weights only.

Letters: b batch, e values of a text embedding, f values of a fingerprint, m width of the network,
n examples, q columns of a sketch.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oral_lib import seeds
from oral_lib.errors import OralError, UsageError, closest

ARMS = ("fingerprint", "describe")
SKETCH = 16  # q, columns of the random projection of a weight matrix
FINGERPRINT = 64  # f
ENERGY_FLOOR = 1e-12  # smallest squared singular value whose logarithm is taken
MOST_LABELS = 16  # different labels that examples may have


class Examples(NamedTuple):
    """Labelled rows of b tasks, in any order.

    Args:
        embeddings: [b, n, e] unit vectors of the rows' texts.
        labels: long [b, n], from 0 to MOST_LABELS - 1.
        given: bool [b, n], False for a row that is not used.

    >>> rows, labels = torch.randn(1, 4, 6), torch.tensor([[1, 0, 1, 0]])  # 4 rows of one task
    >>> examples = Examples(rows, labels, torch.ones(1, 4, dtype=torch.bool))
    >>> condition = Condition(embedding=6, width=8, examples=True)
    >>> about = torch.randn(1, 6), torch.randn(1, FINGERPRINT)  # description and fingerprint
    >>> condition(torch.randn(1, 6), torch.tensor([True]), *about, examples).shape
    torch.Size([1, 8])
    """

    embeddings: Tensor
    labels: Tensor
    given: Tensor


class ExampleReader(nn.Module):
    """The mean over examples of g_y * W x + d_y, [b, m]: it does not depend on their order.

    g and d are a learned scale and shift of each label. Without examples the result is 0. As in
    prototypical networks (arXiv 1703.05175), a mean for each label is what a few rows tell best.

    Args:
        embedding: e.
        width: m.
    """

    def __init__(self, embedding: int, width: int):
        super().__init__()
        self.read = nn.Linear(embedding, width, bias=False)
        self.scale = nn.Embedding(MOST_LABELS, width)
        self.shift = nn.Embedding(MOST_LABELS, width)
        nn.init.zeros_(self.shift.weight)

    def forward(self, examples: Examples) -> Tensor:
        x, labels, given = examples
        read = self.read(x * x.shape[-1] ** 0.5)  # [b, n, m]
        terms = self.scale(labels) * read + self.shift(labels)  # [b, n, m]
        used = given[..., None].to(terms.dtype)  # [b, n, 1]
        return (terms * used).sum(1) / used.sum(1).clamp_min(1)  # [b, m]


class Condition(nn.Module):
    """The condition c [b, m] from text [b, e], structure [b, e] and fingerprint [b, f].

    A dropped or empty text is replaced by a learned vector: this serves guidance and generation
    without text. The `describe` arm ignores the fingerprint. Source: ORAL (arXiv 2503.24354),
    c = [c_model ; c_text], where c_text may contain few-shot examples; the fingerprint, the reader
    of examples and the fusion are choices of this project (D-CON).

    Args:
        embedding: e, size of the text and structure embeddings.
        width: m.
        arm: "fingerprint" (structure and weights) or "describe" (structure only).
        examples: whether the condition reads labelled examples.
        skip: add the input of `fuse` to its output, so that c also has a part that is linear in
            text and examples.

    Raises:
        UsageError: `arm` is neither of the two.

    >>> condition = Condition(embedding=6, width=8)
    >>> text, structure = torch.randn(2, 6), torch.randn(2, 6)
    >>> given = torch.tensor([True, False])  # the second row has no text
    >>> condition(text, given, structure, torch.randn(2, FINGERPRINT)).shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        embedding: int,
        width: int,
        arm: str = "fingerprint",
        examples: bool = False,
        skip: bool = False,
    ):
        super().__init__()
        if arm not in ARMS:
            raise UsageError(f"base condition {arm!r}: use one of {ARMS}.{closest(arm, ARMS)}")
        self.arm, self.skip = arm, skip
        self.no_text = nn.Parameter(torch.zeros(embedding))
        self.text = nn.Linear(embedding, width)
        self.structure = nn.Linear(embedding, width)
        self.fingerprint = nn.Linear(FINGERPRINT, width) if arm == "fingerprint" else None
        self.fuse = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.examples = ExampleReader(embedding, width) if examples else None

    def forward(
        self,
        text: Tensor,
        given: Tensor,
        structure: Tensor,
        fingerprint: Tensor,
        examples: Examples | None = None,
    ) -> Tensor:
        """c [b, m].

        Args:
            text: [b, e] unit vectors.
            given: bool [b], False where the learned vector replaces the text.
            structure: [b, e] unit vectors.
            fingerprint: [b, f].
            examples: labelled rows of the b tasks; None: there are none.

        Raises:
            UsageError: examples for a condition that reads none.
        """
        if examples is not None and self.examples is None:
            raise UsageError("this network reads no examples: leave them out.")
        # unit vectors of e values are scaled to unit size a value, like other inputs of a layer
        text = torch.where(given[:, None], text * text.shape[-1] ** 0.5, self.no_text)  # [b, e]
        c = self.text(text) + self.structure(structure * structure.shape[-1] ** 0.5)  # [b, m]
        if self.fingerprint is not None:
            c = c + self.fingerprint(F.layer_norm(fingerprint, fingerprint.shape[-1:]))
        if examples is not None:
            c = c + self.examples(examples)
        return c + self.fuse(c) if self.skip else self.fuse(c)


def fingerprint(weights: Mapping[str, Tensor]) -> Tensor:
    """The fingerprint, float32 [64] on the CPU: a fixed random sketch of weight matrices.

    Each W [out, in] is multiplied by a Gaussian P [in, q] and a Gaussian u [out], both drawn from
    the module's name. Its features are the logarithms of the singular values of W P / sqrt(q) (a
    sketch of its leading spectrum) and u^T W P / |W|. A random matrix of each module, also drawn
    from its name, maps the features to 64 values. These are summed over modules, so the order of
    modules does not matter. This fingerprint is a choice of this project (D-CON).

    Args:
        weights: matrices [out, in] by module name, on one device; any floating-point dtype.

    Raises:
        OralError: there are no weights.

    >>> layers = {"layers.0.q": torch.eye(5, 4), "layers.1.q": torch.ones(5, 4)}
    >>> sketch = fingerprint(layers)
    >>> sketch.shape
    torch.Size([64])
    >>> torch.equal(sketch, fingerprint(dict(reversed(layers.items()))))
    True
    """
    if not weights:
        raise OralError("A fingerprint needs at least one weight matrix, got none.")
    names = sorted(weights)
    draws, maps, sketches = [], [], []
    for name in names:
        rows, columns = weights[name].shape
        stream = seeds.generator(0, "fingerprint", name)
        draws += [torch.randn(columns, SKETCH, generator=stream).flatten()]  # [in q]
        draws += [torch.randn(rows, generator=stream)]  # [out]
        maps.append(torch.randn(FINGERPRINT, 2 * SKETCH, generator=stream))  # [f, 2 q]
    sizes = [len(draw) for draw in draws]
    # all draws move to the device at once
    on_device = iter(torch.cat(draws).to(weights[names[0]].device).split(sizes))
    for name in names:
        w = weights[name].detach().float()
        p, u = next(on_device).view(-1, SKETCH), next(on_device)  # [in, q], [out]
        wp = w @ p  # [out, q]
        sketches.append(torch.cat([(wp.T @ wp / SKETCH).flatten(), u @ wp / w.norm()]))
    stacked = torch.stack(sketches).cpu().double()  # [modules, q q + q]
    gram = stacked[:, : SKETCH**2].unflatten(1, (SKETCH, SKETCH))  # [modules, q, q]
    spectrum = torch.linalg.eigvalsh(gram).clamp_min(ENERGY_FLOOR).log() / 2  # [modules, q]
    features = torch.cat([spectrum, stacked[:, SKETCH**2 :]], 1)  # [modules, 2 q]
    total = torch.einsum("mfq,mq->f", torch.stack(maps).double(), features)  # [f]
    return (total / len(weights) ** 0.5).float()
