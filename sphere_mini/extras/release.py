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
from ..errors import reading, require
from ..files import local_folder
from ..model import SphereEncoder

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
OWN_CHECKPOINTS = "ckpt/ep*.pth"
CHECKPOINTS = (OWN_CHECKPOINTS, "ckpt/*.safetensors", "*.safetensors", "*.pth", "*.pt", "*.ckpt")
RELEASE_FILES = ("cfg.json", *CHECKPOINTS)
AVERAGED = ("ema_model", "model_ema", "ema", "ema_state_dict")  # what averaged weights lie under
PLAIN = ("model", "model_state_dict", "state_dict")  # and others
ADDED_WORDS = ("module", "_orig_mod")  # within names, by several processes and by torch.compile
COUNTERS = ("n_averaged",)  # of torch's AveragedModel, beside its weights
ENDS = ("encoder", "decoder")
UNSUPPORTED_FIELDS = ("in_context_size", "spherify_model")


def import_release(folder: str | Path) -> SphereEncoder:
    """A folder of the release as a model: its newest checkpoint, EMA weights if it has them.

    folder: holds cfg.json and ckpt/ep*.pth or, as others share them, *.safetensors, *.pth, *.pt or
    *.ckpt beside it; or "hf://owner/name". Returns the model in eval mode, on the CPU. Raises
    `UserError` where a file is missing or damaged, or where settings or weights are those of a
    network that ours is not.
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
    """The checkpoint to use: of the release's own folder before others, then one of averaged
    weights, then that of the most epochs."""
    found = list(folder.glob(OWN_CHECKPOINTS))
    if not found:
        found = [path for pattern in CHECKPOINTS for path in folder.glob(pattern)]
    advice = f"place one there: {', '.join(CHECKPOINTS)}"
    require(bool(found), f"{folder} holds no checkpoint; {advice}")
    return max(found, key=lambda path: (is_averaged(path), epoch_of(path)))


def is_averaged(checkpoint: Path) -> bool:
    """Whether a checkpoint's name says that it holds averaged weights."""
    return "ema" in re.split("[^a-z]+", checkpoint.stem.lower())


def epoch_of(checkpoint: Path) -> int:
    """The last number in a checkpoint's name, 0 without one."""
    numbers = re.findall(r"\d+", checkpoint.stem)
    return int(numbers[-1]) if numbers else 0


def read_weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights in a checkpoint if it has them, else the weights; or all that it is."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    return weights_in(content) or content


def weights_in(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights in a checkpoint, however deep they lie; nothing where there are none."""
    for name in AVERAGED + PLAIN:
        inner = content.get(name)
        if isinstance(inner, Mapping) and weights_in(inner):
            return weights_in(inner)
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    return {}


def repaired(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the release in the form that ours have: no RoPE tables, mixer scales of (1,).

    Where they lie there twice, averaged too, the averaged ones. Names that are not known stay.
    """
    plain = {}
    averaged = {}
    unknown = {}
    for key, value in weights.items():
        first_word, name = split_name(key)
        if name.endswith(".rope") or name in COUNTERS:  # ours computes the tables
            continue
        if name.endswith((".alpha1", ".alpha2")):
            value = value.reshape(1)
        if name.split(".")[0] not in ENDS:
            unknown[key] = value
        elif first_word in AVERAGED:
            averaged[name] = value
        else:
            plain[name] = value
    return (averaged or plain) | unknown


def split_name(key: str) -> tuple[str, str]:
    """A weight's name here: what it is part of, one of `AVERAGED` or `PLAIN` or "", and ours.

    Without what several processes, torch.compile and frameworks put into it.
    """
    words = [word for word in key.split(".") if word not in ADDED_WORDS]
    part = ""
    while words[:1] and words[0] in AVERAGED + PLAIN:
        first = words.pop(0)
        if part not in AVERAGED:
            part = first
    return part, ".".join(words)


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
