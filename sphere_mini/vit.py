"""The Vision Transformer that both ends of the autoencoder are made of, from its smallest layers.

Attribute names are those of published checkpoints, so that these load: `qkv` and `proj` are
attention's input and output maps; `w12` is SwiGLU's gate and value in one map, `w3` its output;
`ffn` is the last (modulated) Linear of a network, `out` what follows it; `tok_mixer` and
`chn_mixer` mix tokens and channels, each an MLP called `mix`.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import Permute

from .config import SphereConfig
from .sphere import at_least_float32

NORM_EPS = 1e-6
BASE = 10000.0  # of the frequencies of rotary and sin-cos positions
PIXEL_HEAD_CHANNELS = 32  # per token, that the convolutional pixel head starts from
RECOMPUTE = dict(use_reentrant=False, preserve_rng_state=False)  # of activation checkpointing


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last dimension with a learned scale; computed in at least float32."""

    def __init__(self, width: int) -> None:
        super().__init__(width, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x, self.normalized_shape, self.weight.type_as(x), self.eps)
        return normed.type_as(x)  # autocast makes it float32 on some devices


def named(**layers: nn.Module) -> nn.Sequential:
    """Layers in a row under the names that checkpoints know them by."""
    return nn.Sequential(OrderedDict(layers))


def axial_angles(side: int, n: int) -> tuple[Tensor, Tensor]:
    """Row and column of N = side² row-major tokens times frequencies 10000^(-k/n): 2 of (N, n)."""
    frequencies = BASE ** -(torch.arange(n, dtype=torch.float64) / n)  # (n,)
    places = torch.arange(side, dtype=torch.float64)
    rows = places.repeat_interleave(side)  # (N,)
    columns = places.repeat(side)  # (N,)
    return torch.outer(rows, frequencies), torch.outer(columns, frequencies)


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed position table (1, N, width) as in MAE and DiT: column, then row, each [sin | cos]."""
    row, column = axial_angles(side, width // 4)
    table = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)  # (N, width)
    return table[None].float()


def rope_table(head_dim: int, side: int) -> Tensor:
    """Factors (2, N, head_dim) of rotary positions: for `apply_rope`, cosines and signed sines.

    The first half of the channels turns with the row, the second with the column.
    """
    angles = torch.cat(axial_angles(side, head_dim // 4), dim=1)  # (N, head_dim / 2)
    cos = torch.stack([angles.cos(), angles.cos()], dim=-1)  # (N, head_dim / 2, 2)
    sin = torch.stack([-angles.sin(), angles.sin()], dim=-1)
    return torch.stack([cos, sin]).flatten(-2).float()


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate channel pairs of x (..., N, d): (x0·cos - x1·sin, x1·cos + x0·sin)."""
    cos, signed_sin = at_least_float32(rope)  # (N, d), (N, d)
    exchanged = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)  # x1, x0
    return torch.addcmul(x * cos, exchanged, signed_sin).type_as(x)  # (..., N, d)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions: (B, N, width) → (B, N, width)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, heads, d)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, heads, N, d)
        qk, v = qkv.split([2, 1])  # (2, B, heads, N, d), (1, B, heads, N, d); q, k turn together
        q, k = apply_rope(qk, rope)  # 2 of (B, heads, N, d)
        out = F.scaled_dot_product_attention(q, k, v[0])  # (B, heads, N, d)
        return self.proj(out.transpose(1, 2).flatten(2))  # (B, N, width)


class SwiGLU(nn.Module):
    """Gated feed-forward layer, w3(silu(gate) · value): (B, N, width) → (B, N, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(width * (2 / 3 * 4.0))  # 8/3, rounded as in published checkpoints
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)  # (B, N, h), (B, N, h)
        return self.w3(F.silu(gate) * value)  # (B, N, width)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift; x: (B, N, width), shift and scale: (B, 1, width)."""
    return torch.addcmul(shift, x, 1 + scale)


def modulation(width: int, count: int) -> nn.Sequential:
    """AdaLN's map from a class embedding (B, width) to `count` shifts, scales and gates at once."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))


class Block(nn.Module):
    """Pre-norm transformer block; class embeddings c (B, width) steer it (AdaLN-Zero)."""

    def __init__(self, width: int, num_heads: int, conditional: bool) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, num_heads)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width)
        self.adaLN_modulation = modulation(width, 6) if conditional else None

    def forward(self, x: Tensor, c: Tensor | None, rope: Tensor) -> Tensor:
        if c is None:
            x = x + self.attn(self.norm1(x), rope)
            return x + self.mlp(self.norm2(x))
        chunks = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)  # 6 of (B, 1, width)
        shift1, scale1, gate1, shift2, scale2, gate2 = chunks
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rope)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLinear(nn.Module):
    """Last Linear of a network, to (B, N, out_channels); with classes after RMSNorm and AdaLN."""

    def __init__(self, width: int, out_channels: int, conditional: bool) -> None:
        super().__init__()
        self.norm = RMSNorm(width) if conditional else None
        self.adaLN_modulation = modulation(width, 2) if conditional else None
        self.linear = nn.Linear(width, out_channels)

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        if c is not None:
            shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)  # 2 of (B, 1, width)
            x = modulate(self.norm(x), shift, scale)
        return self.linear(x)


def mix_mlp(channels: int, hidden: int) -> nn.Sequential:
    """Linear → SiLU → Linear over the last dimension."""
    layers = nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels)
    return named(mix=nn.Sequential(*layers))


class MixerBlock(nn.Module):
    """Mixes tokens, then channels of (B, N, channels), each scaled by a learned number, first 0."""

    def __init__(self, num_tokens: int, channels: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(channels)
        self.tok_mixer = mix_mlp(num_tokens, num_tokens)
        self.norm2 = RMSNorm(channels)
        self.chn_mixer = mix_mlp(channels, 2 * channels)
        self.alpha1 = nn.Parameter(torch.zeros(1))
        self.alpha2 = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        tokens_last = self.norm1(x).transpose(1, 2)  # (B, channels, N)
        x = x + self.alpha1.type_as(x) * self.tok_mixer(tokens_last).transpose(1, 2)
        return x + self.alpha2.type_as(x) * self.chn_mixer(self.norm2(x))


def mlp_mixer(num_tokens: int, channels: int, depth: int) -> nn.Sequential:
    """Mixer blocks and a final norm: every part of the latent sees every other part at once."""
    blocks = nn.Sequential(*[MixerBlock(num_tokens, channels) for _ in range(depth)])
    return named(blocks=blocks, norm=RMSNorm(channels))


def pixel_head(kind: str, side: int, patch_size: int) -> tuple[int, nn.Sequential]:
    """The decoder's last layers: (channels C per token, module (B, N, C) → (B, 3, H, W)).

    kind: "conv" or "linear"; side: tokens along a side of the image.
    """
    to_map = nn.Sequential(Permute([0, 2, 1]), nn.Unflatten(2, (side, side)))  # (B, C, side, side)
    reflect = nn.ReflectionPad2d(1)
    if kind == "linear":
        to_map.append(nn.PixelShuffle(patch_size))  # (B, 3·p², side, side) → (B, 3, H, W)
        return 3 * patch_size**2, nn.Sequential(to_map, reflect, nn.Conv2d(3, 3, 3), nn.Tanh())
    conv = nn.Conv2d(PIXEL_HEAD_CHANNELS, PIXEL_HEAD_CHANNELS, 3)
    up = nn.ConvTranspose2d(PIXEL_HEAD_CHANNELS, 3, patch_size + 2, stride=patch_size, padding=1)
    return PIXEL_HEAD_CHANNELS, nn.Sequential(to_map, reflect, conv, nn.SiLU(), up, nn.Tanh())


class ViT(nn.Module):
    """Vision Transformer between two ends: `x_embedder` makes tokens, `out` ends the network."""

    def __init__(
        self, config: SphereConfig, x_embedder: nn.Module, out: nn.Module, out_channels: int
    ) -> None:
        super().__init__()
        width = config.width
        conditional = config.num_classes > 0
        side = config.image_size // config.patch_size
        self.x_embedder = x_embedder
        self.y_embedder = None
        if conditional:  # the last row is the null class
            self.y_embedder = named(embedding_table=nn.Embedding(config.num_classes + 1, width))
        self.pos_embed = nn.Parameter(sincos_positions(width, side), requires_grad=False)
        self.register_buffer("rope", rope_table(width // config.num_heads, side), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, conditional) for _ in range(config.depth)
        )
        self.ffn = FinalLinear(width, out_channels, conditional)
        self.out = out
        self.checkpoint_activations = False

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        """c: class embeddings (B, width) from this network's own table; None without classes."""
        x = self.x_embedder(x)  # (B, N, width)
        x = x + self.pos_embed.type_as(x)  # in bfloat16 under autocast, and so are all blocks
        for block in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, c, self.rope, **RECOMPUTE)
            else:
                x = block(x, c, self.rope)  # (B, N, width)
        return self.out(self.ffn(x, c))


def build_encoder(config: SphereConfig) -> ViT:
    """Images (B, 3, H, W) → raw latents (B, N, D): patches in, an MLP-Mixer over (N, D) out."""
    num_tokens, channels = config.latent_shape
    width = config.width
    patches = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
    to_tokens = nn.Flatten(2), Permute([0, 2, 1])  # (B, width, N), (B, N, width)
    x_embedder = nn.Sequential(patches, nn.Conv2d(width, width, 1), *to_tokens)
    out = nn.Identity()
    if config.mixer_depth:
        out = mlp_mixer(num_tokens, channels, config.mixer_depth)
    return ViT(config, x_embedder, out, channels)


def build_decoder(config: SphereConfig) -> ViT:
    """Points (B, N, D) → images (B, 3, H, W): an MLP-Mixer over (N, width) in, a pixel head out."""
    num_tokens, channels = config.latent_shape
    x_embedder = nn.Linear(channels, config.width)
    if config.mixer_depth:
        mixer = mlp_mixer(num_tokens, config.width, config.mixer_depth)
        x_embedder = nn.Sequential(x_embedder, mixer)
    side = config.image_size // config.patch_size
    pixel_channels, out = pixel_head(config.pixel_head, side, config.patch_size)
    return ViT(config, x_embedder, out, pixel_channels)
