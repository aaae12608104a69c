"""The model: its configuration, the size table, `SphereEncoder` and its files, ours and the public release's."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .checkpoint import read_newest, write_safely
from .errors import UserError, reading, require
from .sphere import sigma_from_angle
from .vit import ViT, build_decoder, build_encoder

# name: (width, depth, num_heads); ours for CPUs and classrooms, then the paper's
SIZES = {"nano": (64, 4, 4), "tiny": (128, 4, 4), "s": (512, 8, 8), "b": (768, 12, 12)}
SIZES |= {"l": (1024, 24, 16), "xl": (1152, 28, 16), "h": (1280, 32, 16), "g": (1664, 40, 16)}
HUB_PREFIX = "hf://"
POSITIVE = ("image_size", "patch_size", "width", "depth", "num_heads", "latent_channels")
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
RELEASE_SIZES = {"small": "s", "base": "b", "large": "l", "xlarge": "xl", "huge": "h", "giant": "g"}
RELEASE_FIELDS = {"latent_channels": "token_channels", "mixer_depth": "vit_enc_latent_mlp_mixer_depth"}  # ours: theirs
RELEASE_FIELDS |= {"pixel_head": "pixel_head_type", "alpha_max_deg": "noise_sigma_max_angle"}
RELEASE_FIELDS |= {name: name for name in ("image_size", "patch_size", "num_classes")}


@dataclass(frozen=True)
class SphereConfig:
    """Everything that fixes the network; `UserError` where the numbers do not fit together.

    image_size, patch_size: pixels; num_classes 0: unconditional; alpha_max_deg: largest noise angle; class_names or ().
    """

    image_size: int = 32
    patch_size: int = 2
    width: int = 512
    depth: int = 8
    num_heads: int = 8
    latent_channels: int = 8
    num_classes: int = 10
    mixer_depth: int = 2
    pixel_head: str = "conv"
    alpha_max_deg: float = 80.0
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in POSITIVE:
            require(getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")
        require(min(self.num_classes, self.mixer_depth) >= 0, "num_classes and mixer_depth must be 0 or more")
        size, patch, multiple = self.image_size, self.patch_size, 4 * self.num_heads
        near = " or ".join(str(fit) for fit in (size - size % patch, size - size % patch + patch) if fit)
        require(size % patch == 0, f"image size {size} is not divisible by patch size {patch}; try {near}")
        require(size > patch, f"image size {size} must be at least two patches of {patch}")
        require(self.width % multiple == 0, f"width {self.width} must be a multiple of {multiple}, 4 times num_heads")
        require(0 < self.alpha_max_deg < 90, f"alpha_max_deg must lie between 0 and 90, not {self.alpha_max_deg}")
        require(self.pixel_head in ("conv", "linear"), f"pixel_head must be conv or linear, not {self.pixel_head!r}")
        names = len(self.class_names)
        require(names in (0, self.num_classes), f"{names} class names were given for {self.num_classes} classes")

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(N, D) of one latent: tokens, and channels per token."""
        return (self.image_size // self.patch_size) ** 2, self.latent_channels

    @property
    def sigma_max(self) -> float:
        """Largest noise strength, tan(alpha_max)."""
        return sigma_from_angle(self.alpha_max_deg)

    @property
    def null_label(self) -> int:
        """Row of the embedding table that stands for "no class"."""
        return self.num_classes


class SphereEncoder(nn.Module):
    """Autoencoder whose spherified latents are uniform on a sphere (Yue et al., 2026).

    `encode` gives raw latents; `spherify` them before `decode`. State-dict keys are those of published checkpoints.
    """

    def __init__(self, config: SphereConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = build_encoder(config), build_decoder(config)
        initialize(self)

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Images x (B, 3, H, W) in [-1, 1], labels y (B,) (None: the null label) → raw latents z (B, N, D).

        y may also mix class embeddings: (B, num_classes + 1) float shares.
        """
        return self.encoder(x, self._embed(self.encoder, y, len(x)))

    def decode(self, v: Tensor, y: Tensor | None = None) -> Tensor:
        """Points on the sphere v (B, N, D) and labels y (B,) → images (B, 3, H, W) in [-1, 1]; y as in `encode`."""
        return self.decoder(v, self._embed(self.decoder, y, len(v)))

    def _embed(self, vit: ViT, y: Tensor | None, batch_size: int) -> Tensor | None:
        """Class embeddings (B, width) from one end's own table, or None without classes."""
        if not self.config.num_classes:
            return None
        if y is None:
            y = torch.full((batch_size,), self.config.null_label, device=vit.pos_embed.device)
        return y @ vit.y_embedder.embedding_table.weight if y.is_floating_point() else vit.y_embedder(y)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.pos_embed.device

    def weights_hash(self) -> str:
        """Sixteen hexadecimal digits that tell these weights from others, in memory as from any file."""
        digest = hashlib.sha256()
        for name, weight in self.state_dict().items():
            digest.update(name.encode() + weight.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, folder: str | Path, **extra: Any) -> None:
        """Write `model.safetensors` and `config.json` (the config's fields, and `extra` JSON values) into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_safely(Path(folder) / WEIGHTS_FILE, lambda path: save_file(self.state_dict(), path))
        save_config(self.config, folder, **extra)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "SphereEncoder":
        """Load a run or model folder or "hf://owner/name": eval mode, float32, on the CPU. `UserError`: a bad file."""
        folder = local_folder(folder)
        model = read_newest(folder / CONFIG_FILE, lambda path: cls(config_from_dict(json.loads(path.read_text()))))
        read_newest(folder / WEIGHTS_FILE, lambda path: model.load_state_dict(load_file(path)))  # fp16 files load too
        return model.eval()


def initialize(model: SphereEncoder) -> None:
    """The paper's initialization, in place: both ends give exactly zero at first, the latent input is amplified."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if ".adaLN_modulation." in name or name.endswith(".ffn.linear"):
                nn.init.zeros_(module.weight)
            elif name.startswith("decoder.x_embedder"):
                nn.init.normal_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            gain = 0.01 if name.startswith("decoder.out") else 1.0
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), gain=gain)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


def save_config(config: SphereConfig, folder: str | Path, **extra: Any) -> None:
    """Write the config's fields and `extra` JSON values into `folder`/config.json."""
    text = json.dumps(dataclasses.asdict(config) | extra, indent=2) + "\n"
    write_safely(Path(folder) / CONFIG_FILE, lambda path: path.write_text(text))


def local_folder(folder: str | Path) -> Path:
    """The folder itself, or the local copy of "hf://owner/name"; raises `UserError` where there is none."""
    if not str(folder).startswith(HUB_PREFIX):
        require(Path(folder).is_dir(), f"there is no folder {folder}; pass a run folder of train.py or a model folder")
        return Path(folder)
    from huggingface_hub import snapshot_download  # here, since nothing else needs it and it is slow to import

    try:
        return Path(snapshot_download(folder.removeprefix(HUB_PREFIX), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:  # the hub's own errors, and those of any network layer below it
        advice = f"check the name and the network, or pass a local folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise UserError(f"{folder} could not be fetched ({type(error).__name__}); {advice}") from error


def config_from_dict(values: dict[str, Any]) -> SphereConfig:
    """The configuration among JSON values; keys that are not its fields, such as `training`, are ignored."""
    names = {field.name for field in dataclasses.fields(SphereConfig)}
    require(names <= values.keys(), f"it lacks {', '.join(sorted(names - values.keys()))}")
    return SphereConfig(**{name: values[name] for name in names} | {"class_names": tuple(values["class_names"])})


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
        found = content.get("ema_model") or content["model"]
        weights = {key: value for key, value in found.items() if not key.endswith(".rope")}  # ours computes the tables
        weights |= {key: value.reshape(1) for key, value in weights.items() if key.endswith((".alpha1", ".alpha2"))}
        model.load_state_dict(weights)
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
