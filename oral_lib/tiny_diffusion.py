"""The latent diffusion model of the smoke scale: diffusers' own classes, tiny, trained on the spot.

It learns to paint coloured squares on grey noise, in no style. Its folder is a pipeline of
diffusers, loaded by the same code as a released one; it is made once and kept in the cache.
"""

import json
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from oral_lib import latent_diffusion, seeds, storage
from oral_lib.assets import sources
from oral_lib.progress import bar
from oral_lib.registry import BaseSpec
from oral_lib.tasks import images

PICTURES = 512
BATCH = 24
STEPS = {"vae": 150, "unet": 250}
LR = {"vae": 5e-3, "unet": 5e-3}  # of AdamW
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": images.SIDE,
    "mid_block_add_attention": False,
}
UNET = {
    "sample_size": images.SIDE // 2,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": [2, 4],
    "norm_num_groups": 4,
    "use_linear_projection": True,
}
SCHEDULE = {  # Stable Diffusion 2.1's
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
WORDS = 16  # tokens of a prompt


def ensure(spec: BaseSpec) -> Path:
    """The folder of the pipeline called `spec.name`, made if it is not in the cache yet.
    PreflightError without diffusers."""
    latent_diffusion.need_diffusers()
    recipe = [PICTURES, BATCH, STEPS, LR, VAE, UNET, SCHEDULE, WORDS, version("diffusers")]
    key = sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:10]
    folder = sources.cache_dir() / "models" / f"{spec.name}-{key}"
    if not folder.is_dir():
        with sources.alone():
            if not folder.is_dir():  # another process may have made it
                with storage.replacing(folder) as temporary, torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seeds.integer(0, "tiny", spec.name))
                    _made(temporary)
    return folder


def _made(folder: Path) -> None:
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    draw = np.random.default_rng(seeds.integer(0, "tiny-diffusion"))
    files = [images.styled(draw) for _ in range(PICTURES)]
    pictures = images.decoded(files, images.SIDE, "bicubic").float() / 127.5 - 1
    pieces = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=WORDS
    )
    config = CLIPTextConfig(
        vocab_size=len(pieces),
        hidden_size=UNET["cross_attention_dim"],
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=WORDS,
        bos_token_id=len(pieces) - 2,
        eos_token_id=len(pieces) - 1,
        pad_token_id=len(pieces) - 1,
    )
    encoder = CLIPTextModel(config).eval()
    vae, unet = AutoencoderKL(**VAE), UNet2DConditionModel(**UNET)
    scheduler = DDIMScheduler(**SCHEDULE)

    def rebuilt(some: Tensor) -> Tensor:
        latent = vae.encode(some).latent_dist
        return F.mse_loss(vae.decode(latent.sample()).sample, some) + 1e-4 * latent.kl().mean()

    _trained(vae, "vae", pictures, rebuilt)
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode()
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    told = [
        latent_diffusion.told(encoder, tokenizer, text) for text in (latent_diffusion.PROMPT, "")
    ]
    entry = BaseSpec("made", "diffusion", None, "", ())
    base = latent_diffusion.LatentDiffusion(entry, unet, vae, scheduler, *told)
    scaled = latents.flatten(1) * vae.config.scaling_factor

    def denoised(some: Tensor) -> Tensor:
        return base.denoising(unet, some, torch.randint(base.draws, (len(some),))).mean()

    _trained(unet.requires_grad_(True), "unet", scaled, denoised)
    pipe = StableDiffusionPipeline(
        vae, encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder)


def _trained(model: nn.Module, name: str, data: Tensor, loss) -> None:
    """Lowers `loss` of random batches of `data` in place."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=LR[name])
    ease = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS[name])
    for _ in bar(range(STEPS[name]), label=f"make the tiny {name}", unit="step"):
        found = loss(data[torch.randint(len(data), (BATCH,))])
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        ease.step()
    model.requires_grad_(False).eval()
