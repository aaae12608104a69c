"""What the sphere encoder is compared with on clothes: a VAE and flow matching, of the same layers.

Both are built from `vit.py`, know the class, have about as many parameters, and train for as many
minutes. The images are grey (three equal channels), and so is flow matching's noise.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn
from torchvision.ops import Permute

from sphere_mini import SphereConfig, SphereEncoder
from sphere_mini.data.images import ImageSet, batch_indices, to_model_range, to_unit_range
from sphere_mini.losses import drop_labels
from sphere_mini.model import initialize
from sphere_mini.recipe import Recipe
from sphere_mini.training import ema_decay, learning_rate, seeded_generator
from sphere_mini.vit import ViT, named

LABEL_DROP = 0.1  # probability that a label becomes the null class
FREQUENCIES = 32  # of the sines and cosines that tell the network the time
MEASURED = 40  # steps whose pace says how many fit in so many minutes


class ViTVAE(nn.Module):
    """VAE with the sphere encoder's own two ends; its latents (B, N, D) are drawn to N(0, I).

    beta: weight of the divergence from N(0, I), beside half the squared error.
    """

    def __init__(self, config: SphereConfig, beta: float) -> None:
        super().__init__()
        self.config = config
        self.beta = beta
        two_numbers_each = replace(config, latent_channels=2 * config.latent_channels)
        self.encoder = SphereEncoder(two_numbers_each).encoder
        self.encoder.out.norm = nn.Identity()  # it would fix how large means and variances are
        self.decoder = SphereEncoder(config).decoder

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, (B, N, D) each."""
        return self.encoder(x, self.encoder.y_embedder(y)).chunk(2, dim=2)

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Latents (B, N, D) → images (B, 3, H, W) in [-1, 1]."""
        return self.decoder(z, self.decoder.y_embedder(y))

    def loss(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Half the squared error and beta times the divergence from N(0, I), per pixel."""
        mean, log_variance = self.encode(x, y)
        e = torch.randn(mean.shape, generator=generator, device=x.device)
        z = mean + (log_variance / 2).exp() * e
        error = (self.decode(z, y) - x).square().sum() / 2
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return (error + self.beta * divergence) / x.numel()

    @torch.no_grad()
    def generate(self, y: Tensor, seed: int = 0) -> Tensor:
        """Samples (B, 3, H, W) in [0, 1] of classes y (B,)."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(len(y), *self.config.latent_shape, generator=generator).to(y.device)
        return to_unit_range(self.decode(z, y))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """Reconstructions (B, 3, H, W) in [0, 1] of images x (B, 3, H, W) in [-1, 1]."""
        mean, _ = self.encode(x, y)
        return to_unit_range(self.decode(mean, y))


class FlowMatching(nn.Module):
    """Flow matching: a network learns the velocity x - e at x_t = (1 - t)·e + t·x (Lipman et al.).

    One ViT as deep as both ends of the sphere encoder together, told the time beside the class.
    """

    def __init__(self, config: SphereConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        patch = config.patch_size
        side = config.image_size // patch
        cut = nn.Conv2d(3, width, patch, stride=patch)
        x_embedder = nn.Sequential(cut, nn.Flatten(2), Permute([0, 2, 1]))  # (B, N, width)
        to_map = nn.Sequential(Permute([0, 2, 1]), nn.Unflatten(2, (side, side)))
        out = named(map=to_map, pixels=nn.PixelShuffle(patch))  # (B, 3, H, W)
        self.vit = ViT(replace(config, depth=2 * config.depth), x_embedder, out, 3 * patch**2)
        self.time_embedder = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        initialize(self)
        nn.init.normal_(self.time_embedder[2].weight, std=0.02)  # as small as the class's

    def velocity(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Velocity (B, 1, H, W) at x (B, 3, H, W) and times t (B,) under labels y (B,)."""
        frequencies = 1000 ** torch.linspace(0, 1, FREQUENCIES, device=x.device)
        angles = t[:, None] * frequencies  # (B, FREQUENCIES)
        seen = torch.cat([angles.sin(), angles.cos()], dim=1)
        c = self.vit.y_embedder(y) + self.time_embedder(seen)  # (B, width)
        return self.vit(x, c).mean(1, keepdim=True)

    def loss(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocity, at times that are denser in the middle."""
        e = torch.randn(x[:, :1].shape, generator=generator, device=x.device)  # (B, 1, H, W)
        t = torch.randn(len(x), generator=generator, device=x.device).sigmoid()
        x_t = torch.lerp(e, x, t[:, None, None, None])  # (B, 3, H, W)
        drop = torch.rand(len(x), generator=generator, device=x.device) < LABEL_DROP
        y = drop_labels(y, drop, self.config.null_label)
        return (self.velocity(x_t, t, y) - (x - e)).square().mean()

    @torch.no_grad()
    def generate(self, y: Tensor, steps: int, guidance: float = 1.0, seed: int = 0) -> Tensor:
        """Samples (B, 3, H, W) in [0, 1] of classes y (B,) by so many of Euler's steps.

        A step takes one pass of the network, with guidance two.
        """
        side = self.config.image_size
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(y), 1, side, side, generator=generator).to(y.device)
        x = x.expand(-1, 3, -1, -1)
        for k in range(steps):
            t = torch.full((len(y),), k / steps, device=y.device)
            velocity = self.velocity(x, t, y)
            if guidance != 1:
                null = torch.full_like(y, self.config.null_label)
                no_class = self.velocity(x, t, null)
                velocity = no_class + guidance * (velocity - no_class)
            x = x + velocity / steps
        return to_unit_range(x.clamp(-1, 1))


Rival = ViTVAE | FlowMatching


def train_rival(model: Rival, average: Rival, recipe: Recipe, data: ImageSet) -> Iterator[Tensor]:
    """Train in place by a resolved recipe's rate, batch, flips, clip and EMA; yields the losses.

    average: a copy of the model that becomes its averaged weights.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    for step in range(recipe.steps):
        generator = seeded_generator(data.images.device, recipe.seed, step)
        rows = batch_indices(step, recipe.batch_size, len(data), recipe.seed)
        [(images, y)] = data.batches([rows])
        flip = torch.rand(len(rows), generator=generator, device=images.device) < 0.5
        x = to_model_range(images, flip if recipe.flip else None)
        loss = model.loss(x, y, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.param_groups[0]["lr"] = learning_rate(step, recipe)
        optimizer.step()
        share = 1 - ema_decay(step, recipe.ema)
        with torch.no_grad():
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                old.lerp_(new, share)
        yield loss.detach()


def new_rival(name: str, config: SphereConfig, beta: float, seed: int) -> tuple[Rival, Rival]:
    """A model named "vae" or "flow", and the copy that becomes its averaged weights."""
    torch.manual_seed(seed)
    model = ViTVAE(config, beta) if name == "vae" else FlowMatching(config)
    return model, copy.deepcopy(model).eval()


def steps_in(minutes: float, some_steps: Iterator) -> int:
    """How many training steps fit in the minutes of one core, by the pace of the first ones."""
    for _ in islice(some_steps, 5):  # the first are slower
        pass
    since = time.process_time()  # and not the clock's: other programs may run
    for _ in islice(some_steps, MEASURED):
        pass
    seconds = (time.process_time() - since) / MEASURED
    return round(60 * minutes / seconds)
