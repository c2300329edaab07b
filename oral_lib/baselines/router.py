"""The router: a linear classifier of the task, which returns a stored adapter.

A ridge classifier on sentence embeddings is fitted to the training wordings of all tasks with
adapters on a base model. For a text it picks a task, and an adapter of that task is drawn from the
zoo. Retrieval picks the task whose description is nearest. Neither makes a new adapter, so both
show how far choosing is enough.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from sklearn.linear_model import RidgeClassifierCV
from torch import Tensor

from oral_lib import seeds
from oral_lib.errors import OralError
from oral_lib.tasks.task import load_task

PENALTIES = tuple(np.logspace(-3, 2, 6))  # of squared weights; selected by leave-one-out error


class Encoder(Protocol):
    """What embeds texts: unit embeddings [b, e]."""

    def encode(self, texts: Sequence[str]) -> Tensor: ...


class Router:
    """A classifier of the task from a text.

    Args:
        names: the tasks to choose from.
        encoder: of their training wordings and of the texts.

    Raises:
        OralError: there is no task.

    >>> from oral_lib.models.text_encoder import HashedWords
    >>> router = Router(["movie", "digits"], HashedWords())
    >>> router.pick("Which digit is written on this cheque?")
    'digits'
    """

    def __init__(self, names: Sequence[str], encoder: Encoder):
        if not names:
            raise OralError("a router for no tasks: the zoo of this base model is empty.")
        self.names, self.encoder = tuple(names), encoder
        self.classifier = None  # one task needs no classifier
        if len(names) > 1:
            wordings = [(text, name) for name in names for text in load_task(name).training_texts]
            texts, tasks = zip(*wordings, strict=True)
            self.classifier = RidgeClassifierCV(PENALTIES).fit(self._embedded(texts), tasks)

    def pick(self, text: str) -> str:
        """The task that the classifier assigns to `text`, which may be empty."""
        if self.classifier is None:
            return self.names[0]
        return str(self.classifier.predict(self._embedded([text]))[0])

    @property
    def values(self) -> int:
        """The number of weights of the classifier."""
        fitted = self.classifier
        return 0 if fitted is None else fitted.coef_.size + np.size(fitted.intercept_)

    def _embedded(self, texts: Sequence[str]) -> np.ndarray:
        return self.encoder.encode(texts).double().numpy()


class Retrieval:
    """The task whose description is nearest to a text (cosine of embeddings).

    Args:
        names: the tasks to choose from.
        encoder: of their descriptions and of the texts.
    """

    def __init__(self, names: Sequence[str], encoder: Encoder):
        self.names, self.encoder = tuple(names), encoder
        self.descriptions = encoder.encode([load_task(name).description for name in names])

    def pick(self, text: str) -> str:
        """The task with the description nearest to `text`, which may be empty."""
        return self.names[int((self.descriptions @ self.encoder.encode([text])[0]).argmax())]


def draw(total: int, n: int, seed: int) -> list[int]:
    """The numbers of at most `n` adapters of `total`, drawn without replacement."""
    order = np.random.default_rng(seeds.integer(seed, "router")).permutation(total)
    return order[:n].tolist()
