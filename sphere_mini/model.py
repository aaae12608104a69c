"""The model: `SphereEncoder`, which encodes and decodes, its initialization and its files."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import SphereConfig, config_from_dict
from .data.inputs import Labels, as_labels
from .files import CONFIG_FILE, WEIGHTS_FILE, local_folder, read_newest, read_weights, write_safely
from .vit import ViT, build_decoder, build_encoder


class SphereEncoder(nn.Module):
    """Autoencoder trained to decode any point of a sphere (Yue et al., 2026).

    `encode` gives raw latents; `spherify` them before `decode`. State-dict keys are those of
    published checkpoints.
    """

    def __init__(self, config: SphereConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.decoder = build_decoder(config)
        initialize(self)

    def encode(self, x: Tensor, y: Labels = None) -> Tensor:
        """Images x (B, 3, H, W) in [-1, 1] and labels y (B,) → raw latents z (B, N, D).

        y: long labels, or (B, num_classes + 1) float shares that mix class embeddings; one class
        by name or number, or a list of them; None with classes means the null label.
        """
        return self.encoder(x, self.embed_labels(self.encoder, y, len(x)))

    def decode(self, v: Tensor, y: Labels = None) -> Tensor:
        """Points v (B, N, D) and labels y (B,), as in `encode` → images (B, 3, H, W) in [-1, 1]."""
        return self.decoder(v, self.embed_labels(self.decoder, y, len(v)))

    def embed_labels(self, vit: ViT, y: Labels, batch_size: int) -> Tensor | None:
        """Class embeddings (B, width) from one end's own table, or None without classes."""
        if not self.config.num_classes:
            return None
        if not isinstance(y, Tensor | None):  # by name or number
            y = as_labels(y, self.config, self.device)
        if y is None:
            y = torch.full((batch_size,), self.config.null_label, device=self.device)
        if y.is_floating_point():
            return y @ vit.y_embedder.embedding_table.weight
        return vit.y_embedder(y)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.pos_embed.device

    def weights_hash(self) -> str:
        """Sixteen hexadecimal digits that tell these weights from others."""
        digest = hashlib.sha256()
        for name, weight in self.state_dict().items():
            digest.update(name.encode() + weight.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, folder: str | Path, **extra: Any) -> None:
        """Write the weights, and `config.json` with `extra` JSON values, to `folder`."""
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        write_safely(folder / WEIGHTS_FILE, lambda path: save_file(self.state_dict(), path))
        save_config(self.config, folder, **extra)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "SphereEncoder":
        """Load a run, a model, a shipped one by name, or "hf://owner/name": eval, float32, CPU."""
        folder = local_folder(folder)
        model = cls(read_newest(folder / CONFIG_FILE, read_config))
        read_newest(folder / WEIGHTS_FILE, lambda path: model.load_state_dict(read_weights(path)))
        return model.eval()


def initialize(model: SphereEncoder) -> None:
    """The paper's initialization, in place, so that E and D give zeros at first."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if ".adaLN_modulation." in name or name.endswith(".ffn.linear"):  # AdaLN; last Linear
                nn.init.zeros_(module.weight)
            elif name.startswith("decoder.x_embedder"):  # the decoder's input and its mixer
                nn.init.normal_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            gain = 0.01 if name.startswith("decoder.out") else 1.0  # the pixel head
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), gain=gain)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


def save_config(config: SphereConfig, folder: str | Path, **extra: Any) -> None:
    """Write the config's fields and `extra` JSON values into `folder`/config.json."""
    text = json.dumps(dataclasses.asdict(config) | extra, indent=2) + "\n"
    write_safely(Path(folder) / CONFIG_FILE, lambda path: path.write_text(text))


def read_config(path: Path) -> SphereConfig:
    """The configuration in a `config.json`."""
    return config_from_dict(json.loads(path.read_text()))
