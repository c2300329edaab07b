"""One integer seed, split into named random streams that are independent of each other."""

import hashlib

import torch


def integer(seed: int, *names: str | int) -> int:
    """A 63-bit integer that depends on `seed` and `names` only, on every machine."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator of the stream `names` of `seed`."""
    return torch.Generator(device=device).manual_seed(integer(seed, *names))
