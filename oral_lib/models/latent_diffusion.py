"""Latent diffusion models: a frozen pipeline of diffusers under LoRA on its UNet's attention.

    z_0 = s E(x)                            latents [b, c, h, w] of images x; E the VAE's encoder
    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps
    loss = mean (UNet(z_t, t, prompt) - y)^2

The pipeline's scheduler sets the target y: eps, z_0, or, as in Stable Diffusion 2.1,
v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0.

All styles are learned under one fixed prompt, so only the adapter distinguishes them. VAE and text
encoder are frozen: each image is encoded once, and the prompt when the model is loaded. One whole
number, the draw, determines t and eps of a training step. So a step does not wait for the host, and
a stack can be trained again, or an adapter by itself, with the same noise.

`ensure` trains a tiny pipeline of this kind for the smoke scale. diffusers is an optional extra,
imported only when such a model is used.

Letters: `b` rows of a batch, `n` images.
"""

import json
import math
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from oral_lib import seeds, storage
from oral_lib.assets.cache import cache_dir, cache_lock
from oral_lib.checkpoints.hugging_face import (
    CONFIG_FAULTS,
    check_vocabulary,
    constructor_settings,
    pretrained,
    read_config,
    read_tokenizer,
    reading,
)
from oral_lib.errors import OralError, PreflightError
from oral_lib.models.base import BaseModel, EncodedRows
from oral_lib.models.registry import BaseSpec
from oral_lib.progress import bar
from oral_lib.tasks import images
from oral_lib.tasks.rows import Row
from oral_lib.tasks.task import Task

PROMPT = "a picture"  # of all styles, in training and sampling
NOISES = 512  # distinct eps; a draw is one of them with one t of the schedule
EVALUATION_STEPS = 4  # values of t at which an image's loss is evaluated
_BATCH = {"cpu": 64, "cuda": 16}  # images encoded, denoised or decoded in one batch, by device
TARGETS = ("epsilon", "v_prediction", "sample")


class LatentDiffusion(BaseModel):
    """A UNet with its VAE and scheduler.

    `prompt` and `no_prompt` [1, tokens, width] are the text encoder's states of PROMPT and of an
    empty text.
    """

    reads = "images of a style"

    def __init__(
        self, spec: BaseSpec, unet: nn.Module, vae: nn.Module, scheduler, prompt: Tensor,
        no_prompt: Tensor,
    ):  # fmt: skip
        super().__init__(spec, unet, None, labels=0)
        self.vae, self.scheduler = vae.requires_grad_(False).eval(), scheduler
        self.prompt, self.no_prompt = prompt, no_prompt
        self.target = scheduler.config.prediction_type
        if self.target not in TARGETS:
            raise OralError(
                f"{spec.name!r} predicts {self.target!r}: use a model that predicts one of "
                f"{', '.join(TARGETS)}."
            )
        side = unet.config.sample_size
        self.shape = (unet.config.in_channels, side, side)  # of an image's latents
        self.pixels = side * 2 ** (len(vae.config.block_out_channels) - 1)
        self.abar = scheduler.alphas_cumprod.float().to(self.device)
        noise = torch.randn(NOISES, *self.shape, generator=seeds.generator(0, "eps"))
        self.eps = noise.to(self.device)
        self._latents: dict[tuple[str, ...], Tensor] = {}

    @property
    def draws(self) -> int:
        """Number of distinct draws (t, eps)."""
        return len(self.abar) * NOISES

    def describe(self) -> str:
        channels, side, _ = self.shape
        return (
            f"A latent diffusion model whose {type(self.model).__name__} has {self.weights} "
            f"weights in blocks of {', '.join(map(str, self.model.config.block_out_channels))} "
            f"channels and predicts {self.target} in {channels} latent channels of {side} by "
            f"{side}, for pictures of {self.pixels} pixels; LoRA of rank {self.spec.rank} on "
            f"{len(self.adapted())} attention projections, {', '.join(self.spec.targets)}."
        )

    # ------------------------------------------------------------ tasks
    def encode_rows(self, task: Task, rows: Sequence[Row]) -> EncodedRows:
        self.scoring_kind(task)
        return EncodedRows.of_equal_length(self.latents(rows))

    def batch_size(self, task: Task, groups: int = 1) -> int:
        return max(1, _BATCH[self.device.type] // groups)

    def forward_blank(self, width: int) -> None:
        latents = torch.zeros(1, math.prod(self.shape), device=self.device)
        self.denoising_loss(self.model, latents, torch.tensor([0], device=self.device))

    @torch.no_grad()
    def latents(self, rows: Sequence[Row]) -> Tensor:
        """float32 [n, c * h * w] on the device: the mode of the VAE's encoding of each image,
        scaled; encoded once, then cached."""
        key = tuple(row.key for row in rows)
        if key not in self._latents:
            table = images.decode_images([row.image for row in rows], self.pixels, "bicubic")
            parts = []
            for part in table.split(_BATCH[self.device.type]):
                scaled = part.to(self.device).float() / 127.5 - 1
                mode = self.vae.encode(scaled).latent_dist.mode()
                parts.append(mode.flatten(1) * self.vae.config.scaling_factor)
            self._latents[key] = torch.cat(parts)
        return self._latents[key]

    def denoising_loss(self, unet: nn.Module, latents: Tensor, draws: Tensor) -> Tensor:
        """float32 [b]: the loss of each row, for latents [b, c * h * w] and draws [b]."""
        t, eps = draws % len(self.abar), self.eps[draws // len(self.abar)]
        z = latents.view(-1, *self.shape)  # [b, c, h, w]
        abar = self.abar[t][:, None, None, None]
        noisy = abar.sqrt() * z + (1 - abar).sqrt() * eps
        v = abar.sqrt() * eps - (1 - abar).sqrt() * z
        y = {"epsilon": eps, "sample": z, "v_prediction": v}[self.target]
        return (self._predicted(unet, noisy, t, self.prompt) - y).square().flatten(1).mean(1)

    def evaluation_loss(self, unet: nn.Module, latents: Tensor, index: Tensor) -> Tensor:
        """float32 [b]: the loss averaged over EVALUATION_STEPS evenly spaced t. The noise depends
        only on each row's `index` [b] in its task."""
        count, total = len(self.abar), 0.0
        for k in range(EVALUATION_STEPS):
            t = (2 * k + 1) * count // (2 * EVALUATION_STEPS)
            eps = (index * EVALUATION_STEPS + k) % NOISES
            total = total + self.denoising_loss(unet, latents, t + count * eps)
        return total / EVALUATION_STEPS

    def _predicted(self, unet: nn.Module, z: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        prompt = prompt.expand(len(z), -1, -1)
        return unet(z.to(prompt.dtype), t, encoder_hidden_states=prompt).sample.float()

    @torch.inference_mode()
    def sample_images(
        self, unet: nn.Module, n: int, *, steps: int, guidance: float = 1.0, groups: int = 1
    ) -> Tensor:
        """uint8 [groups, n, 3, pixels, pixels] on the CPU: images for PROMPT under each adapter.

        Deterministic DDIM from `n` fixed noises, which are the same for all adapters.

        Args:
            unet: this UNet under `groups` adapters.
            steps: of DDIM.
            guidance: w in the prediction w f(prompt) + (1 - w) f("").
        """
        from diffusers import DDIMScheduler

        noise = torch.randn(n, *self.shape, generator=seeds.generator(0, "paint"))
        parts = []
        for part in noise.split(max(1, _BATCH[self.device.type] // groups)):
            ddim = DDIMScheduler.from_config(self.scheduler.config)
            ddim.set_timesteps(steps, device=self.device)
            z = part.to(self.device).repeat(groups, 1, 1, 1) * ddim.init_noise_sigma
            for t in ddim.timesteps:
                y = self._predicted(unet, z, t, self.prompt)
                if guidance != 1:
                    blank = self._predicted(unet, z, t, self.no_prompt)
                    y = blank + guidance * (y - blank)
                z = ddim.step(y, t, z).prev_sample
            decoded = self.vae.decode(z / self.vae.config.scaling_factor).sample
            decoded = (decoded.clamp(-1, 1) * 127.5 + 127.5).round().byte()
            parts.append(decoded.unflatten(0, (groups, -1)).cpu())
        return torch.cat(parts, 1)


def need_diffusers() -> None:
    """PreflightError, with the command that installs it, if diffusers is missing."""
    if find_spec("diffusers") is None:
        raise PreflightError(
            "Image generation requires diffusers, which is not installed: run "
            "python -m pip install 'diffusers==0.42.1' (the extra `diffusion` of this project)."
        )


def load(
    spec: BaseSpec, folder: Path | None, device: str | torch.device, dtype: torch.dtype
) -> LatentDiffusion:
    """The pipeline in `folder`, in the layout of diffusers; the tiny one if that is None.

    PreflightError without diffusers; OralError when a part is missing or damaged. Only safetensors
    are read, and nothing is downloaded.
    """
    need_diffusers()
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    folder = folder or ensure(spec)
    schedule = folder / "scheduler", "scheduler", "scheduler_config.json"
    with reading(folder, "pipeline of diffusers", *CONFIG_FAULTS):
        scheduler = DDIMScheduler(**constructor_settings(DDIMScheduler, *schedule))
    tokenizer = read_tokenizer(folder / "tokenizer", "tokenizer")
    config = read_config(folder / "text_encoder", "text encoder", ("clip_text_model",))
    unet = pretrained(UNet2DConditionModel, folder / "unet", "UNet", torch_dtype=dtype)
    vae = pretrained(AutoencoderKL, folder / "vae", "VAE")
    encoder = pretrained(CLIPTextModel, folder / "text_encoder", "text encoder", config=config)
    check_vocabulary(folder, tokenizer, encoder.get_input_embeddings())
    unet, vae = unet.to(device), vae.to(device)  # the VAE stays float32: half precision overflows
    unet.name_or_path = spec.hub  # PEFT writes it into adapters
    states = [encode_prompt(encoder, tokenizer, text) for text in (PROMPT, "")]
    return LatentDiffusion(spec, unet, vae, scheduler, *(s.to(device, dtype) for s in states))


@torch.no_grad()
def encode_prompt(encoder: nn.Module, tokenizer, text: str) -> Tensor:
    """[1, tokens, width] states of a prompt, as in the Stable Diffusion pipeline of diffusers."""
    length = encoder.config.max_position_embeddings
    batch = tokenizer(
        text, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return encoder.float()(batch["input_ids"]).last_hidden_state


# ---------------------------------------------------------------- the tiny pipeline
TINY_IMAGES = 512
TINY_BATCH = 24
TINY_STEPS = {"vae": 150, "unet": 250}
TINY_LR = {"vae": 5e-3, "unet": 5e-3}  # of AdamW
TINY_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": images.GENERATED_PIXELS,
    "mid_block_add_attention": False,
}
TINY_UNET = {
    "sample_size": images.GENERATED_PIXELS // 2,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": [2, 4],
    "norm_num_groups": 4,
    "use_linear_projection": True,
}
TINY_SCHEDULE = {  # Stable Diffusion 2.1's
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
TINY_TOKENS = 16  # of a prompt


def ensure(spec: BaseSpec) -> Path:
    """The folder of the tiny pipeline `spec.name`, trained if it is not in the cache.

    PreflightError without diffusers.
    """
    need_diffusers()
    recipe = [TINY_IMAGES, TINY_BATCH, TINY_STEPS, TINY_LR, TINY_VAE, TINY_UNET, TINY_SCHEDULE]
    recipe += [TINY_TOKENS, version("diffusers")]
    key = sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:10]
    folder = cache_dir() / "models" / f"{spec.name}-{key}"
    if not folder.is_dir():
        with cache_lock():
            if not folder.is_dir():  # another process may have created it
                with storage.replacing(folder) as temporary, torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seeds.integer(0, "tiny", spec.name))
                    _train_tiny(temporary)
    return folder


def _train_tiny(folder: Path) -> None:
    """Trains VAE and UNet on made images and stores the pipeline in `folder`."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    rng = np.random.default_rng(seeds.integer(0, "tiny-diffusion"))
    files = [images.styled_square(rng) for _ in range(TINY_IMAGES)]
    table = images.decode_images(files, images.GENERATED_PIXELS, "bicubic").float() / 127.5 - 1
    encoder, tokenizer = _tiny_text_encoder()
    vae, unet = AutoencoderKL(**TINY_VAE), UNet2DConditionModel(**TINY_UNET)
    scheduler = DDIMScheduler(**TINY_SCHEDULE)

    def reconstruction_loss(batch: Tensor) -> Tensor:
        latent = vae.encode(batch).latent_dist
        return F.mse_loss(vae.decode(latent.sample()).sample, batch) + 1e-4 * latent.kl().mean()

    _train(vae, "vae", table, reconstruction_loss)
    with torch.no_grad():
        latents = vae.encode(table).latent_dist.mode()
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    states = [encode_prompt(encoder, tokenizer, text) for text in (PROMPT, "")]
    entry = BaseSpec("made", "diffusion", None, "", ())
    base = LatentDiffusion(entry, unet, vae, scheduler, *states)
    scaled = latents.flatten(1) * vae.config.scaling_factor

    def denoising_loss(batch: Tensor) -> Tensor:
        draws = torch.randint(base.draws, (len(batch),))
        return base.denoising_loss(unet, batch, draws).mean()

    _train(unet.requires_grad_(True), "unet", scaled, denoising_loss)
    pipe = StableDiffusionPipeline(
        vae, encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder)


def _tiny_text_encoder() -> tuple[CLIPTextModel, CLIPTokenizer]:
    """A random text encoder with a tokenizer of single letters."""
    pieces = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=TINY_TOKENS
    )
    config = CLIPTextConfig(
        vocab_size=len(pieces),
        hidden_size=TINY_UNET["cross_attention_dim"],
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TINY_TOKENS,
        bos_token_id=len(pieces) - 2,
        eos_token_id=len(pieces) - 1,
        pad_token_id=len(pieces) - 1,
    )
    return CLIPTextModel(config).eval(), tokenizer


def _train(model: nn.Module, name: str, data: Tensor, loss_of: Callable[[Tensor], Tensor]) -> None:
    """Trains `model` in place to lower `loss_of` random batches of `data`."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=TINY_LR[name])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TINY_STEPS[name])
    for _ in bar(range(TINY_STEPS[name]), label=f"make the tiny {name}", unit="step"):
        loss = loss_of(data[torch.randint(len(data), (TINY_BATCH,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.requires_grad_(False).eval()
