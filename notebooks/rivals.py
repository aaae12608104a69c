"""What the sphere encoder is compared with on clothes: a VAE and flow matching, of the same layers.

Both are built from `vit.py`, know the class, and train for minutes instead of steps, so that each
has as long as the others on the same machine.
"""

import copy
import math
import time
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.ops import Permute

from sphere_mini import SphereConfig, SphereEncoder
from sphere_mini.data import ImageSet, batch_indices, to_model_range, to_unit_range
from sphere_mini.model import initialize
from sphere_mini.vit import ViT, named

LABEL_DROP = 0.1  # probability that a label becomes the null class
FREQUENCIES = 32  # of the sines and cosines that tell the network the time
EMA = 0.999
WARMUP = 0.05  # share of the minutes in which the learning rate rises


class ViTVAE(nn.Module):
    """VAE with the sphere encoder's own two ends; its latents (B, N, D) are drawn to N(0, I).

    beta: weight of the divergence from N(0, I), beside half the squared error, per image.
    """

    def __init__(self, config: SphereConfig, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.config = config
        two_numbers_each = replace(config, latent_channels=2 * config.latent_channels)
        self.first = SphereEncoder(two_numbers_each)
        self.second = SphereEncoder(config)
        del self.first.decoder
        del self.second.encoder

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, (B, N, D) each."""
        encoder = self.first.encoder
        return encoder(x, encoder.y_embedder(y)).chunk(2, dim=2)

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Latents (B, N, D) → images (B, 3, H, W) in [-1, 1]."""
        decoder = self.second.decoder
        return decoder(z, decoder.y_embedder(y))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Per image: half the squared error, and beta times the divergence from N(0, I)."""
        mean, log_variance = self.encode(x, y)  # (B, N, D), (B, N, D)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = (self.decode(z, y) - x).square().sum() / 2
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return (error + self.beta * divergence) / len(x)

    @torch.no_grad()
    def generate(self, y: Tensor, seed: int = 0) -> Tensor:
        """Samples (B, 3, H, W) in [0, 1] of classes y (B,)."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(len(y), *self.config.latent_shape, generator=generator)
        return to_unit_range(self.decode(z, y))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """Reconstructions (B, 3, H, W) in [0, 1]."""
        mean, _ = self.encode(x, y)
        return to_unit_range(self.decode(mean, y))


class FlowMatching(nn.Module):
    """Flow matching: a network learns the velocity x - e at x_t = (1-t)·e + t·x (Lipman et al.)."""

    def __init__(self, config: SphereConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        patch = config.patch_size
        side = config.image_size // patch
        cut = nn.Conv2d(3, width, patch, stride=patch)
        embedder = nn.Sequential(cut, nn.Flatten(2), Permute([0, 2, 1]))  # (B, N, width)
        to_map = nn.Sequential(Permute([0, 2, 1]), nn.Unflatten(2, (side, side)))
        out = named(map=to_map, pixels=nn.PixelShuffle(patch))  # (B, 3, H, W)
        self.vit = ViT(config, embedder, out, 3 * patch**2)
        self.time = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        initialize(self)

    def velocity(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Velocity (B, 3, H, W) at x (B, 3, H, W) and times t (B,) under labels y (B,)."""
        frequencies = 1000 ** torch.linspace(0, 1, FREQUENCIES)
        angles = t[:, None] * frequencies  # (B, FREQUENCIES)
        seen = torch.cat([angles.sin(), angles.cos()], dim=1)
        return self.vit(x, self.vit.y_embedder(y) + self.time(seen))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean squared error of the velocity, at times that are denser in the middle."""
        e = torch.randn_like(x)
        t = torch.randn(len(x)).sigmoid()
        at_t = t.view(-1, 1, 1, 1)
        y = torch.where(torch.rand(len(x)) < LABEL_DROP, self.config.null_label, y)
        return (self.velocity((1 - at_t) * e + at_t * x, t, y) - (x - e)).square().mean()

    @torch.no_grad()
    def generate(self, y: Tensor, passes: int, seed: int = 0, guidance: float = 1.0) -> Tensor:
        """Samples (B, 3, H, W) in [0, 1] of classes y (B,) after `passes` of Euler's steps."""
        side = self.config.image_size
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(y), 3, side, side, generator=generator)
        null = torch.full_like(y, self.config.null_label)
        for k in range(passes):
            t = torch.full((len(y),), k / passes)
            velocity = self.velocity(x, t, y)
            if guidance != 1:
                away = self.velocity(x, t, null)
                velocity = away + guidance * (velocity - away)
            x = x + velocity / passes
        return to_unit_range(x.clamp(-1, 1))


def train_for(
    model: nn.Module, data: ImageSet, minutes: float, lr: float, batch_size: int = 128
) -> tuple[nn.Module, int]:
    """Train by Adam for so many minutes; returns the averaged weights and the steps made.

    model: with a `loss(x, y)`. The rate rises, then falls along a half cosine, by the clock.
    """
    average = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.95))
    since = time.perf_counter()
    step = 0
    while (progress := (time.perf_counter() - since) / (60 * minutes)) < 1:
        falling = (1 + math.cos(math.pi * progress)) / 2
        optimizer.param_groups[0]["lr"] = lr * min(progress / WARMUP, falling)
        rows = batch_indices(step, batch_size, len(data), seed=0)
        x = to_model_range(data.images[rows], torch.rand(batch_size) < 0.5)
        optimizer.zero_grad()
        model.loss(x, data.labels[rows]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                old.lerp_(new, 1 - decay)
    return average.eval(), step
