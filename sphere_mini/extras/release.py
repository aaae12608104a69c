"""Checkpoints of the method's public release as our models."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..config import SIZES, SphereConfig
from ..errors import reading, require, require_known
from ..files import CONFIG_FILE, RELEASE_FILE, local_folder
from ..model import SphereEncoder

RELEASE_SIZES = {"small": "s", "base": "b", "large": "l", "xlarge": "xl", "huge": "h", "giant": "g"}
RELEASE_FIELDS = dict(image_size="image_size", patch_size="patch_size", num_classes="num_classes")
RELEASE_FIELDS |= dict(latent_channels="token_channels", pixel_head="pixel_head_type")  # theirs
RELEASE_FIELDS |= dict(mixer_depth="vit_enc_latent_mlp_mixer_depth")
RELEASE_FIELDS |= dict(alpha_max_deg="noise_sigma_max_angle")
CHECKPOINTS = ("ckpt/ep*.pth",)  # the release's own, and as others share them:
CHECKPOINTS += ("ckpt/*.safetensors", "*.safetensors", "*.pth", "*.pt", "*.ckpt")
HOLDERS = r"((?:(?:ema|ema_model|model_ema|ema_state_dict|model|model_state_dict|state_dict)\.)*)"
ADDED = r"\b(module|_orig_mod)\."  # in names of weights, by DistributedDataParallel and compile


def import_release(folder: str | Path) -> SphereEncoder:
    """A folder of the release as a model in eval mode, on the CPU: its newest EMA weights.

    folder: cfg.json and `CHECKPOINTS`, also "hf://owner/name/subfolder". `UserError`: not usable.
    """
    folder = local_folder(folder, [RELEASE_FILE, *CHECKPOINTS])
    settings = folder / RELEASE_FILE
    with reading(settings):
        config = config_from_release(json.loads(settings.read_text()))
    model = SphereEncoder(config)
    newest = newest_checkpoint(folder)
    with reading(newest):
        model.load_state_dict(read_weights(newest))
    return model.eval()


def load_model(folder: str | Path) -> SphereEncoder:
    """A model of ours by any name or, where its settings tell so, one of the release."""
    found = local_folder(folder, [CONFIG_FILE, RELEASE_FILE])
    is_release = (found / RELEASE_FILE).exists() and not (found / CONFIG_FILE).exists()
    return import_release(folder) if is_release else SphereEncoder.from_pretrained(folder)


def newest_checkpoint(folder: Path) -> Path:
    """The release's own checkpoints before others; of these EMA weights, then the most epochs."""
    found = [path for pattern in CHECKPOINTS for path in folder.glob(pattern)]
    require(bool(found), f"{folder} holds no checkpoint; place one there: {', '.join(CHECKPOINTS)}")

    def order(path: Path) -> tuple[bool, bool, int]:
        words = re.split("[^a-z]+", path.stem.lower())
        numbers = re.findall(r"\d+", path.stem) or [0]
        return path.match(CHECKPOINTS[0]), "ema" in words, int(numbers[-1])

    return max(found, key=order)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A checkpoint's weights by our names, the EMA ones if it has them, without RoPE tables."""
    if path.suffix == ".safetensors":
        content = load_file(path)
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
    averaged = {}
    plain = {}
    for key, value in tensors_in(content).items():
        found = re.fullmatch(HOLDERS + r"((?:encoder|decoder)\..+)", re.sub(ADDED, "", key))
        if not found or key.endswith(".rope"):
            continue
        holder, name = found.groups()  # such as "ema_model."
        weights = averaged if "ema" in holder else plain
        weights[name] = value.reshape(1) if name.endswith((".alpha1", ".alpha2")) else value
    return averaged or plain


def tensors_in(content: Mapping[Any, Any], above: str = "") -> dict[str, Tensor]:
    """All tensors of a checkpoint by their full names, however deep they lie."""
    found = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            found[f"{above}{key}"] = value
        elif isinstance(value, Mapping):
            found |= tensors_in(value, f"{above}{key}.")
    return found


def config_from_release(cfg: dict[str, Any]) -> SphereConfig:
    """Our configuration from the release's `cfg.json`; `UserError` names what ours lacks."""
    ends = [f"vit_dec_{field}" for field in ("model_size", "latent_mlp_mixer_depth")]
    wanted = ["cond_generator", "vit_enc_model_size", *ends, *RELEASE_FIELDS.values()]
    missing = [name for name in wanted if name not in cfg]
    require(not missing, f"it lacks {', '.join(missing)}")
    require_known("vit_enc_model_size", cfg["vit_enc_model_size"], RELEASE_SIZES)
    for field in ("model_size", "latent_mlp_mixer_depth"):
        sizes = [cfg[f"vit_{end}_{field}"] for end in ("enc", "dec")]
        require(sizes[0] == sizes[1], f"vit_enc_{field} and vit_dec_{field} differ: {sizes}")
    for name in ("in_context_size", "spherify_model"):
        require(not cfg.get(name), f"{name} {cfg.get(name)} is not supported")
    fields = {ours: cfg[theirs] for ours, theirs in RELEASE_FIELDS.items()}
    if not cfg["cond_generator"]:
        fields["num_classes"] = 0
    width, depth, num_heads = SIZES[RELEASE_SIZES[cfg["vit_enc_model_size"]]]
    return SphereConfig(width=width, depth=depth, num_heads=num_heads, **fields)
