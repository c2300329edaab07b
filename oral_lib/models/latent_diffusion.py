"""Latent diffusion models: a frozen pipeline of diffusers under LoRA on its UNet's attention.

    z_0 = s E(x)                            latents [b, c, h, w] of pictures x; E the VAE's encoder
    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps
    loss = mean (UNet(z_t, t, prompt) - y)^2

where y is what the pipeline's scheduler says: eps, z_0, or v = sqrt(abar_t) eps - sqrt(1 - abar_t)
z_0, as Stable Diffusion 2.1 has it.

A style is learned under one fixed prompt, so that whatever tells it from other styles is in the
adapter. VAE and text encoder are frozen: each picture is encoded once, and the prompt when the
model is loaded. A step is told by one whole number, the draw, which t and which eps it has; so
it waits for nothing, and a stack can be trained again, or alone, with the very same noise.

diffusers is an optional extra and imported only when such a model is asked for.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from oral_lib import seeds, storage
from oral_lib.assets.cache import cache_dir, cache_lock
from oral_lib.errors import OralError, PreflightError
from oral_lib.models.base import BaseModel, reading
from oral_lib.models.registry import BaseSpec
from oral_lib.progress import bar
from oral_lib.tasks import images
from oral_lib.tasks.rows import Row

PROMPT = "a picture"  # of every style, in training and in painting
NOISES = 512  # different eps; with each t of the schedule a draw
JUDGED = 4  # draws in which a picture is judged
AT_ONCE = {"cpu": 64, "cuda": 16}  # pictures encoded, denoised or decoded at once
TARGETS = ("epsilon", "v_prediction", "sample")


class LatentDiffusion(BaseModel):
    """A UNet with its VAE and scheduler; `prompt` and `nothing` [1, tokens, width] are what the
    text encoder makes of PROMPT and of an empty text."""

    def __init__(
        self, spec: BaseSpec, unet: nn.Module, vae: nn.Module, scheduler, prompt: Tensor,
        nothing: Tensor,
    ):  # fmt: skip
        super().__init__(spec, unet, None, labels=0)
        self.vae, self.scheduler = vae.requires_grad_(False).eval(), scheduler
        self.prompt, self.nothing = prompt, nothing
        self.target = scheduler.config.prediction_type
        if self.target not in TARGETS:
            raise OralError(
                f"{spec.name!r} predicts {self.target!r}, which is none of {', '.join(TARGETS)}."
            )
        side = unet.config.sample_size
        self.shape = (unet.config.in_channels, side, side)  # of a picture's latents
        self.pixels = side * 2 ** (len(vae.config.block_out_channels) - 1)
        self.abar = scheduler.alphas_cumprod.float().to(self.device)
        noise = torch.randn(NOISES, *self.shape, generator=seeds.generator(0, "eps"))
        self.eps = noise.to(self.device)
        self._latents: dict[tuple[str, ...], Tensor] = {}

    @property
    def draws(self) -> int:
        """How many different draws (t, eps) there are."""
        return len(self.abar) * NOISES

    def peft_config(self) -> LoraConfig:
        """The LoRA that every adapter of this UNet has."""
        return LoraConfig(
            r=self.spec.rank,
            lora_alpha=self.spec.alpha,
            lora_dropout=0.0,
            target_modules=list(self.spec.targets),
            base_model_name_or_path=self.spec.hub,
        )

    def describe(self) -> str:
        """The structure in words: architecture, sizes, adapted modules. Never the model's name."""
        channels, side, _ = self.shape
        return (
            f"A latent diffusion model whose {type(self.model).__name__} has {self.weights} "
            f"weights in blocks of {', '.join(map(str, self.model.config.block_out_channels))} "
            f"channels and predicts {self.target} in {channels} latent channels of {side} by "
            f"{side}, for pictures of {self.pixels} pixels; LoRA of rank {self.spec.rank} on "
            f"{len(self.adapted())} attention projections, {', '.join(self.spec.targets)}."
        )

    def adapted(self) -> dict[str, Tensor]:
        """The weights [out, in] that LoRA adapts, by module name. OralError while one is
        attached."""
        ends = tuple(f".{target}" for target in self.spec.targets)
        found = {
            name: module.weight.detach()
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and name.endswith(ends)
        }
        if not found:
            raise OralError(
                f"{self.name!r} has no plain linear layers {', '.join(self.spec.targets)}: leave "
                "`attach` before you read its weights."
            )
        return found

    @torch.no_grad()
    def latents(self, rows: Sequence[Row]) -> Tensor:
        """float32 [n, c * h * w] on the device: the mode of what the VAE makes of each picture,
        scaled; encoded once, then kept."""
        key = tuple(row.key for row in rows)
        if key not in self._latents:
            table = images.decode([row.image for row in rows], self.pixels, "bicubic")
            parts = []
            for some in table.split(AT_ONCE[self.device.type]):
                seen = some.to(self.device).float() / 127.5 - 1
                found = self.vae.encode(seen).latent_dist.mode()
                parts.append(found.flatten(1) * self.vae.config.scaling_factor)
            self._latents[key] = torch.cat(parts)
        return self._latents[key]

    def denoising(self, unet: nn.Module, latents: Tensor, draws: Tensor) -> Tensor:
        """float32 [b]: the loss above, a row; latents [b, c * h * w], draws [b] whole numbers."""
        t, eps = draws % len(self.abar), self.eps[draws // len(self.abar)]
        z = latents.view(-1, *self.shape)
        abar = self.abar[t][:, None, None, None]
        noisy = abar.sqrt() * z + (1 - abar).sqrt() * eps
        v = abar.sqrt() * eps - (1 - abar).sqrt() * z
        y = {"epsilon": eps, "sample": z, "v_prediction": v}[self.target]
        return (self._predicted(unet, noisy, t, self.prompt) - y).square().flatten(1).mean(1)

    def judged(self, unet: nn.Module, latents: Tensor, places: Tensor) -> Tensor:
        """float32 [b]: the loss over JUDGED evenly spread t, with noise that depends on nothing
        but the row's place in its task; places [b]."""
        many, found = len(self.abar), 0.0
        for k in range(JUDGED):
            t = (2 * k + 1) * many // (2 * JUDGED)
            eps = (places * JUDGED + k) % NOISES
            found = found + self.denoising(unet, latents, t + many * eps)
        return found / JUDGED

    def _predicted(self, unet: nn.Module, z: Tensor, t: Tensor, told: Tensor) -> Tensor:
        told = told.expand(len(z), -1, -1)
        return unet(z.to(told.dtype), t, encoder_hidden_states=told).sample.float()

    @torch.inference_mode()
    def paint(
        self, unet: nn.Module, n: int, *, steps: int, guidance: float = 1.0, groups: int = 1
    ) -> Tensor:
        """uint8 [groups, n, 3, pixels, pixels] on the CPU: what `unet`, under `groups` adapters,
        paints to PROMPT from `n` fixed noises, which are the same for all adapters.

        `steps` of DDIM without noise of its own; with `guidance` w the prediction is
        w f(prompt) + (1 - w) f("").
        """
        from diffusers import DDIMScheduler

        draw, made = seeds.generator(0, "paint"), []
        noise = torch.randn(n, *self.shape, generator=draw)
        for some in noise.split(max(1, AT_ONCE[self.device.type] // groups)):
            ddim = DDIMScheduler.from_config(self.scheduler.config)
            ddim.set_timesteps(steps, device=self.device)
            z = some.to(self.device).repeat(groups, 1, 1, 1) * ddim.init_noise_sigma
            for t in ddim.timesteps:
                found = self._predicted(unet, z, t, self.prompt)
                if guidance != 1:
                    blank = self._predicted(unet, z, t, self.nothing)
                    found = blank + guidance * (found - blank)
                z = ddim.step(found, t, z).prev_sample
            seen = self.vae.decode(z / self.vae.config.scaling_factor).sample
            seen = (seen.clamp(-1, 1) * 127.5 + 127.5).round().byte()
            made.append(seen.unflatten(0, (groups, -1)).cpu())
        return torch.cat(made, 1)


def need_diffusers() -> None:
    """PreflightError, with how to install it, where diffusers is not there."""
    if find_spec("diffusers") is None:
        raise PreflightError(
            "Models that paint need diffusers, which is not installed: run "
            "python -m pip install 'diffusers==0.42.1' (the extra `diffusion` of this project)."
        )


def load(spec: BaseSpec, folder: Path, device: str | torch.device, dtype: torch.dtype):
    """The pipeline in `folder`, in diffusers' own layout.

    PreflightError without diffusers; OralError when a part is missing or damaged. Nothing but
    safetensors is read, and nothing is downloaded.
    """
    need_diffusers()
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    how = {"local_files_only": True, "use_safetensors": True}
    with reading(folder, "pipeline of diffusers"):
        unet = UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", torch_dtype=dtype, **how
        )
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **how)
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", **how)
        tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")
    unet, vae = unet.to(device), vae.to(device)  # in half precision the latter would overflow
    unet.name_or_path = spec.hub  # what PEFT writes into adapters
    states = [told(encoder, tokenizer, text).to(device, dtype) for text in (PROMPT, "")]
    return LatentDiffusion(spec, unet, vae, scheduler, *states)


@torch.no_grad()
def told(encoder: nn.Module, tokenizer, text: str) -> Tensor:
    """[1, tokens, width], as diffusers' Stable Diffusion pipeline reads a prompt."""
    most = encoder.config.max_position_embeddings
    batch = tokenizer(
        text, padding="max_length", max_length=most, truncation=True, return_tensors="pt"
    )
    return encoder.float()(batch["input_ids"]).last_hidden_state


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
    need_diffusers()
    recipe = [PICTURES, BATCH, STEPS, LR, VAE, UNET, SCHEDULE, WORDS, version("diffusers")]
    key = sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:10]
    folder = cache_dir() / "models" / f"{spec.name}-{key}"
    if not folder.is_dir():
        with cache_lock():
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
    files = [images.styled_square(draw) for _ in range(PICTURES)]
    pictures = images.decode(files, images.SIDE, "bicubic").float() / 127.5 - 1
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
    told = [told(encoder, tokenizer, text) for text in (PROMPT, "")]
    entry = BaseSpec("made", "diffusion", None, "", ())
    base = LatentDiffusion(entry, unet, vae, scheduler, *told)
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
