"""What the sphere encoder is compared with: a plain autoencoder and a VAE, multilayer perceptrons.

Both know the class in both ends, as the sphere encoder does. What differs is how they make room for
random points: the plain one not at all, the VAE by a penalty of weight beta that draws every
latent's distribution towards N(0, I).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sphere_mini.data.images import ImageSet, batch_indices, to_model_range, to_unit_range

PEAK_LR = 2e-3


class MLPAutoencoder(nn.Module):
    """Images x (B, 3, H, H) in [-1, 1] and labels y (B,) → latents (B, latent) → images.

    hidden: width of the two hidden layers of each end. beta: weight of the penalty, 0 for a plain
    autoencoder. Samples are drawn from a Gaussian for each class, mean + root · noise: N(0, I) for
    a VAE, and for a plain autoencoder fitted to the latents by `fit_prior`.
    """

    def __init__(
        self, image_size: int, num_classes: int, hidden: int, latent: int, beta: float
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.beta = beta
        self.image_shape = (3, image_size, image_size)
        pixels = 3 * image_size**2
        self.encoder = mlp(pixels + num_classes, hidden, 2 * latent)
        self.decoder = mlp(latent + num_classes, hidden, pixels)
        self.register_buffer("mean", torch.zeros(num_classes, latent))
        self.register_buffer("root", torch.eye(latent).repeat(num_classes, 1, 1))

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, (B, latent) each; a plain one uses the mean."""
        return self.encoder(self.with_class(x.flatten(1), y)).chunk(2, dim=1)

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Latents (B, latent) → images (B, 3, H, H) in [-1, 1]."""
        pixels = self.decoder(self.with_class(z, y)).tanh()  # (B, 3·H·H)
        return pixels.view(-1, *self.image_shape)

    def with_class(self, rows: Tensor, y: Tensor) -> Tensor:
        """Rows (B, n) followed by their classes, (B, n + classes)."""
        return torch.cat([rows, F.one_hot(y, self.num_classes)], dim=1)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Per image: half the squared error, and beta times the divergence from N(0, I)."""
        mean, log_variance = self.encode(x, y)
        z = mean
        if self.beta:
            z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = (self.decode(z, y) - x).square().sum() / 2
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return (error + self.beta * divergence) / len(x)

    @torch.no_grad()
    def fit_prior(self, x: Tensor, y: Tensor, by_class: bool = False) -> None:
        """Fit the Gaussian of the samples to the latents of x: one for all classes, or one each."""
        z, _ = self.encode(x, y)
        for label in range(self.num_classes):
            latents = z[y == label] if by_class else z
            variances, axes = torch.linalg.eigh(latents.T.cov())
            self.mean[label] = latents.mean(0)
            self.root[label] = axes * variances.clamp(min=0).sqrt()

    @torch.no_grad()
    def generate(self, y: Tensor, seed: int = 0) -> Tensor:
        """Samples (B, 3, H, H) in [0, 1] of classes y (B,)."""
        return to_unit_range(self.decode(self.draw(y, seed), y))

    def draw(self, y: Tensor, seed: int = 0) -> Tensor:
        """Latents (B, latent) from the Gaussians of classes y (B,)."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(y), self.mean.shape[1], generator=generator)
        return self.mean[y] + torch.einsum("bij,bj->bi", self.root[y], noise)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """Reconstructions (B, 3, H, H) in [0, 1]."""
        mean, _ = self.encode(x, y)
        return to_unit_range(self.decode(mean, y))


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of the same width."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, outputs),
    )


def train_baseline(
    model: MLPAutoencoder, data: ImageSet, steps: int, batch_size: int = 128
) -> MLPAutoencoder:
    """Train by Adam, whose learning rate falls to 0 along a half cosine.

    A plain autoencoder then gets one prior for all classes.
    """
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=PEAK_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rows = (batch_indices(step, batch_size, len(data), seed=0) for step in range(steps))
    for images, y in data.batches(rows):
        optimizer.zero_grad()
        model.loss(to_model_range(images), y).backward()
        optimizer.step()
        schedule.step()
    if not model.beta:
        model.fit_prior(to_model_range(data.images), data.labels)
    return model.eval()
