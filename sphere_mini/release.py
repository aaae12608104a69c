"""Models of the method's public release: a folder with `cfg.json` and `ckpt/ep*.pth` becomes a `SphereEncoder`."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import reading, require
from .model import SIZES, SphereConfig, SphereEncoder

RELEASE_SIZES = {"small": "s", "base": "b", "large": "l", "xlarge": "xl", "huge": "h", "giant": "g"}
RELEASE_FIELDS = {  # ours: theirs
    "image_size": "image_size",
    "patch_size": "patch_size",
    "latent_channels": "token_channels",
    "num_classes": "num_classes",
    "mixer_depth": "vit_enc_latent_mlp_mixer_depth",
    "pixel_head": "pixel_head_type",
    "alpha_max_deg": "noise_sigma_max_angle",
}


def import_release(folder: str | Path) -> SphereEncoder:
    """A folder of the release as a model: its newest checkpoint, EMA weights if it has them; eval mode, on the CPU.

    Raises `UserError` where a file is missing or damaged, or where the settings describe a network that ours is not.
    """
    folder = Path(folder)
    with reading(folder / "cfg.json"):
        config = config_from_release(json.loads((folder / "cfg.json").read_text()))
    model = SphereEncoder(config)
    epochs = {int("0" + re.sub(r"\D", "", path.stem)): path for path in (folder / "ckpt").glob("ep*.pth")}
    require(bool(epochs), f"{folder / 'ckpt'} holds no checkpoint ep*.pth; place one there")
    with reading(path := epochs[max(epochs)]):
        content = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(repaired(content.get("ema_model") or content["model"]))
    return model.eval()


def config_from_release(cfg: dict[str, Any]) -> SphereConfig:
    """Our configuration from the release's `cfg.json`; `UserError` names a setting that ours does not have."""
    for name in ("vit_{}_model_size", "vit_{}_latent_mlp_mixer_depth"):
        encoder, decoder = cfg[name.format("enc")], cfg[name.format("dec")]
        require(encoder == decoder, f"{name.format('enc')} {encoder} and {name.format('dec')} {decoder} differ")
    for name in ("in_context_size", "spherify_model"):
        require(not cfg.get(name), f"{name} {cfg.get(name)} is not supported")
    fields = {ours: cfg[theirs] for ours, theirs in RELEASE_FIELDS.items()}
    fields |= dict(zip(("width", "depth", "num_heads"), SIZES[RELEASE_SIZES[cfg["vit_enc_model_size"]]], strict=True))
    return SphereConfig(**fields | ({} if cfg["cond_generator"] else {"num_classes": 0}))


def repaired(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict in our form: without the rotary tables, and the mixers' alphas of shape (1,)."""
    kept = {key: value for key, value in weights.items() if not key.endswith(".rope")}
    return {key: value.reshape(1) if re.search(r"\.alpha[12]$", key) else value for key, value in kept.items()}
