"""Checkpoints of the method's public release as our models."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from .config import SIZES, SphereConfig
from .errors import reading, require
from .model import SphereEncoder

RELEASE_SIZES = {"small": "s", "base": "b", "large": "l", "xlarge": "xl", "huge": "h", "giant": "g"}
RELEASE_FIELDS = {
    "latent_channels": "token_channels",
    "mixer_depth": "vit_enc_latent_mlp_mixer_depth",
}  # ours: theirs
RELEASE_FIELDS |= {"pixel_head": "pixel_head_type", "alpha_max_deg": "noise_sigma_max_angle"}
RELEASE_FIELDS |= {name: name for name in ("image_size", "patch_size", "num_classes")}


def import_release(folder: str | Path) -> SphereEncoder:
    """A folder of the release as a model: its newest checkpoint, EMA weights if it has them; eval mode, on the CPU.

    Raises `UserError` where a file is missing or damaged, or where the settings describe a network that ours is not.
    """
    folder = Path(folder)
    with reading(folder / "cfg.json"):
        config = config_from_release(json.loads((folder / "cfg.json").read_text()))
    model = SphereEncoder(config)
    epochs = {
        int("0" + re.sub(r"\D", "", path.stem)): path for path in (folder / "ckpt").glob("ep*.pth")
    }
    require(bool(epochs), f"{folder / 'ckpt'} holds no checkpoint ep*.pth; place one there")
    with reading(path := epochs[max(epochs)]):
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content.get("ema_model") or content["model"]
        weights = {
            key: value for key, value in found.items() if not key.endswith(".rope")
        }  # ours computes the tables
        weights |= {
            key: value.reshape(1)
            for key, value in weights.items()
            if key.endswith((".alpha1", ".alpha2"))
        }
        model.load_state_dict(weights)
    return model.eval()


def config_from_release(cfg: dict[str, Any]) -> SphereConfig:
    """Our configuration from the release's `cfg.json`; `UserError` names a setting that ours does not have."""
    for name in ("vit_{}_model_size", "vit_{}_latent_mlp_mixer_depth"):
        encoder, decoder = cfg[name.format("enc")], cfg[name.format("dec")]
        require(
            encoder == decoder,
            f"{name.format('enc')} {encoder} and {name.format('dec')} {decoder} differ",
        )
    for name in ("in_context_size", "spherify_model"):
        require(not cfg.get(name), f"{name} {cfg.get(name)} is not supported")
    fields = {ours: cfg[theirs] for ours, theirs in RELEASE_FIELDS.items()}
    fields |= dict(
        zip(
            ("width", "depth", "num_heads"),
            SIZES[RELEASE_SIZES[cfg["vit_enc_model_size"]]],
            strict=True,
        )
    )
    return SphereConfig(**fields | ({} if cfg["cond_generator"] else {"num_classes": 0}))
