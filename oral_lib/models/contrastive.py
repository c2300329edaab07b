"""Contrastive learning of two towers: the loss, and retrieval of images by texts and back.

Both towers project into one space; the similarity of an image and a text is the cosine of their
features. Training makes pairs that belong together more similar than all other pairs of a batch.
Recall@k is the share of queries with a correct candidate among the k most similar.

Letters: `b` rows of a batch, `n` texts, `m` images, `d` width of the shared space.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DEPTHS = (1, 5, 10)  # the k of recall@k


def contrastive(image: Tensor, text: Tensor, labels: Tensor, scale: Tensor | float) -> Tensor:
    """[..., b] loss of each row: cross-entropy of its counterparts among all rows, averaged over
    both directions.

    Args:
        image, text: features [..., b, d] of length one.
        labels: [..., b]; rows of equal label belong together, so that two captions of one image are
            not negatives of each other (UniCL, arXiv 2204.03610).
        scale: multiplies similarities to give logits.
    """
    logits = scale * image @ text.mT  # [..., b, b]
    same = (labels[..., :, None] == labels[..., None, :]).to(logits.dtype)
    target = same / same.sum(-1, keepdim=True)
    directions = [(target * side.log_softmax(-1)).sum(-1) for side in (logits, logits.mT)]
    return -(directions[0] + directions[1]) / 2


def ranks(similarity: Tensor, matches: Tensor) -> Tensor:
    """[queries] number of wrong candidates at least as similar as the best correct one.

    `similarity`, `matches` [queries, candidates]. A tie counts against the model: with equal
    similarities everywhere, nothing is retrieved.
    """
    best = similarity.masked_fill(~matches, -torch.inf).amax(1, keepdim=True)
    return ((similarity >= best) & ~matches).sum(1)


def retrieval_ranks(similarity: Tensor, matches: Tensor) -> dict[str, Tensor]:
    """`ranks` of each text's image and of each image's text; `similarity`, `matches` [n, m]."""
    return {
        "text_to_image": ranks(similarity, matches),
        "image_to_text": ranks(similarity.T, matches.T),
    }


def recalls(similarity: Tensor, matches: Tensor) -> dict[str, float]:
    """Recall@k in both directions, by names such as "text_to_image_recall@5"."""
    return {
        f"{direction}_recall@{k}": round((rank < k).double().mean().item(), 6)
        for direction, rank in retrieval_ranks(similarity.cpu(), matches).items()
        for k in DEPTHS
    }


@dataclass(frozen=True)
class Gallery:
    """The distinct texts and images of rows, and which of them belong together."""

    texts: list[int]  # [n] index of the first row with each text
    images: list[int]  # [m] index of the first row with each image
    matches: Tensor  # [n, m] bool
    image_labels: Tensor  # [m]

    @classmethod
    def of(cls, rows) -> "Gallery":
        """The gallery of rows with `text`, `image` and a `label` shared by all that match."""
        texts: dict[str, int] = {}
        images: dict[bytes, int] = {}
        for i, row in enumerate(rows):
            texts.setdefault(row.text, i)
            images.setdefault(row.image, i)
        labels = torch.tensor([row.label for row in rows])
        first_texts, first_images = list(texts.values()), list(images.values())
        kinds, kind = labels.unique(return_inverse=True)
        number = {text: n for n, text in enumerate(texts)}
        has_kind = torch.zeros(len(texts), len(kinds), dtype=torch.bool)  # a text may have several
        has_kind[[number[row.text] for row in rows], kind] = True
        return cls(first_texts, first_images, has_kind[:, kind[first_images]], labels[first_images])
