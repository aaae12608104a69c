"""Checkpoints of the method's public release as our models."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .config import SIZES, SphereConfig
from .errors import UserError, reading, require
from .hub import local_folder
from .model import SphereEncoder

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
EQUAL_FIELDS = {  # theirs, of the encoder: theirs, of the decoder; ours has one for both
    "vit_enc_model_size": "vit_dec_model_size",
    "vit_enc_latent_mlp_mixer_depth": "vit_dec_latent_mlp_mixer_depth",
}
CHECKPOINTS = ("ckpt/ep*.pth", "ckpt/*.safetensors", "*.safetensors", "*.pth")
RELEASE_FILES = ("cfg.json", *CHECKPOINTS)
UNSUPPORTED_FIELDS = ("in_context_size", "spherify_model")


def import_release(folder: str | Path) -> SphereEncoder:
    """A folder of the release as a model: its newest checkpoint, EMA weights if it has them.

    folder: holds cfg.json and ckpt/ep*.pth or, as others share them, *.safetensors or *.pth beside
    it; or "hf://owner/name". Returns the model in eval mode, on the CPU. Raises `UserError` where a
    file is missing or damaged, or where settings or weights are those of a network that ours is
    not.
    """
    folder = local_folder(folder, RELEASE_FILES)
    settings = folder / "cfg.json"
    with reading(settings):
        config = config_from_release(json.loads(settings.read_text()))
    model = SphereEncoder(config)
    newest = newest_checkpoint(folder)
    with reading(newest):
        model.load_state_dict(repaired(read_weights(newest)))
    return model.eval()


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint of the most epochs; of the release's own folder before others."""
    for pattern in CHECKPOINTS:
        found = list(folder.glob(pattern))
        if found:
            return max(found, key=epoch_of)
    advice = f"place one there: {', '.join(CHECKPOINTS)}"
    raise UserError(f"{folder} holds no checkpoint; {advice}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights in a checkpoint if it has them, else the weights; or all that it is."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    for name in ("ema_model", "model"):
        if content.get(name):
            return content[name]
    return content


def epoch_of(checkpoint: Path) -> int:
    """The number in a checkpoint's name, 0 without one."""
    digits = re.sub(r"\D", "", checkpoint.stem)
    return int("0" + digits)


def repaired(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the release in the form that ours have: no RoPE tables, mixer scales of (1,).

    Without what several processes and torch.compile put before their names.
    """
    ours = {}
    for key, value in weights.items():
        key = key.replace("_orig_mod.", "").removeprefix("module.")
        if key.endswith(".rope"):  # ours computes the tables
            continue
        if key.endswith((".alpha1", ".alpha2")):
            value = value.reshape(1)
        ours[key] = value
    return ours


def config_from_release(cfg: dict[str, Any]) -> SphereConfig:
    """Our configuration from the release's `cfg.json`.

    `UserError` names a setting that ours does not have.
    """
    for of_encoder, of_decoder in EQUAL_FIELDS.items():
        values = f"{of_encoder} {cfg[of_encoder]} and {of_decoder} {cfg[of_decoder]}"
        require(cfg[of_encoder] == cfg[of_decoder], f"{values} differ")
    for name in UNSUPPORTED_FIELDS:
        require(not cfg.get(name), f"{name} {cfg.get(name)} is not supported")
    fields = {ours: cfg[theirs] for ours, theirs in RELEASE_FIELDS.items()}
    if not cfg["cond_generator"]:
        fields["num_classes"] = 0
    width, depth, num_heads = SIZES[RELEASE_SIZES[cfg["vit_enc_model_size"]]]
    return SphereConfig(width=width, depth=depth, num_heads=num_heads, **fields)
