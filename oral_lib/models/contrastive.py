"""Matching: which pictures and which texts belong together, and how well a two-tower model tells.

Both towers end in one space; a picture and a text are as close as the cosine of their features.
Training pulls together what belongs together among the rows of a batch. Recall@k is the share of
queries that find one of their own among the k closest, asked both ways. Letters: `b` rows of a
batch, `n` texts, `m` pictures, `d` width of the shared space.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DEPTHS = (1, 5, 10)  # the k of recall@k


def contrastive(image: Tensor, text: Tensor, own: Tensor, scale: Tensor | float) -> Tensor:
    """[..., b] the loss of each row: cross-entropy of its own among all rows, mean of both ways.

    `image`, `text` [..., b, d] are of length one; rows of equal `own` [..., b] belong together, so
    that two captions of one picture are no negatives of each other (UniCL, arXiv 2204.03610).
    """
    logits = scale * image @ text.mT  # [..., b, b]
    same = (own[..., :, None] == own[..., None, :]).to(logits.dtype)
    target = same / same.sum(-1, keepdim=True)
    ways = [(target * side.log_softmax(-1)).sum(-1) for side in (logits, logits.mT)]
    return -(ways[0] + ways[1]) / 2


def ranks(closeness: Tensor, belongs: Tensor) -> Tensor:
    """[queries] how many wrong candidates are at least as close as the closest right one.

    `closeness`, `belongs` [queries, candidates]. A tie counts against the model: one that gives
    every candidate the same closeness finds nothing.
    """
    right = closeness.masked_fill(~belongs, -torch.inf).amax(1, keepdim=True)
    return ((closeness >= right) & ~belongs).sum(1)


def both_ways(closeness: Tensor, belongs: Tensor) -> dict[str, Tensor]:
    """`ranks` of every text's picture and of every picture's text; `closeness` [n, m]."""
    return {
        "text_to_image": ranks(closeness, belongs),
        "image_to_text": ranks(closeness.T, belongs.T),
    }


def recalls(closeness: Tensor, belongs: Tensor) -> dict[str, float]:
    """Recall@k both ways, by names like "text_to_image_recall@5"."""
    return {
        f"{way}_recall@{k}": round((found < k).double().mean().item(), 6)
        for way, found in both_ways(closeness.cpu(), belongs).items()
        for k in DEPTHS
    }


@dataclass(frozen=True)
class Gallery:
    """The different texts and pictures of rows: what each is, and which belong together."""

    texts: list[int]  # [n] the first row that holds it
    pictures: list[int]  # [m]
    belongs: Tensor  # [n, m] bool
    owners: Tensor  # [m] the label of a picture

    @classmethod
    def of(cls, rows) -> "Gallery":
        """Of rows with `text`, `image` and, the same for all that belong together, `label`."""
        texts: dict[str, int] = {}
        pictures: dict[bytes, int] = {}
        for place, row in enumerate(rows):
            texts.setdefault(row.text, place)
            pictures.setdefault(row.image, place)
        own = torch.tensor([row.label for row in rows])
        first, shown = list(texts.values()), list(pictures.values())
        kinds, kind = own.unique(return_inverse=True)
        number = {text: n for n, text in enumerate(texts)}
        said = torch.zeros(len(texts), len(kinds), dtype=torch.bool)  # a text may belong to several
        said[[number[row.text] for row in rows], kind] = True
        return cls(first, shown, said[:, kind[shown]], own[shown])
