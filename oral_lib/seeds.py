"""One integer seed, spread into named random streams that do not depend on one another."""

import hashlib

import torch


def integer(seed: int, *names: str | int) -> int:
    """A 63-bit integer that is the same on every machine for the same seed and names."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for the stream `names` of `seed`."""
    return torch.Generator(device=device).manual_seed(integer(seed, *names))
