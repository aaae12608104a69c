"""Checkpoints of the public release, and as others share them."""

import json
import shutil

import pytest
import torch
from conftest import random_model
from safetensors.torch import save_file

from sphere_mini import UserError, generate, import_release
from sphere_mini.config import SIZES
from sphere_mini.extras.release import RELEASE_SIZES, read_weights


def write_release(folder, model, cfg_changes=None, ema=True):
    """The release's format: 0-d alphas, rotary tables in `ema_model`, an older checkpoint too."""
    config = model.config
    cfg = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "token_channels": config.latent_channels,
    }
    cfg |= {
        "vit_enc_model_size": "small",
        "vit_dec_model_size": "small",
        "num_classes": config.num_classes,
    }
    cfg |= {"cond_generator": config.num_classes > 0, "pixel_head_type": config.pixel_head}
    cfg |= {
        "vit_enc_latent_mlp_mixer_depth": config.mixer_depth,
        "vit_dec_latent_mlp_mixer_depth": config.mixer_depth,
    }
    cfg |= {
        "noise_sigma_max_angle": config.alpha_max_deg,
        "in_context_size": 0,
        "spherify_model": False,
    }
    weights = {k: v.reshape(()) if "alpha" in k else v for k, v in model.state_dict().items()}
    wrong = {k: torch.zeros_like(v) for k, v in weights.items()}
    ropes = {f"{end}.rope": torch.randn(2, 16, 8) for end in ("encoder", "decoder")}
    (folder / "ckpt").mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(cfg | (cfg_changes or {})))
    newest = {"model": wrong, "ema_model": weights | ropes} if ema else {"model": weights}
    torch.save({"model": wrong, "epoch": 9}, folder / "ckpt" / "ep9.pth")
    torch.save(newest | {"epoch": 10}, folder / "ckpt" / "ep10.pth")


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("num_classes", [10, 0])
def test_a_folder_of_the_release_gives_the_same_images(tmp_path, monkeypatch, ema, num_classes):
    monkeypatch.setitem(SIZES, RELEASE_SIZES["small"], (16, 1, 2))
    model = random_model(num_classes=num_classes, alpha_max_deg=85.0)
    write_release(tmp_path / "release", model, ema=ema)
    again = import_release(tmp_path / "release")
    assert again.config == model.config
    assert torch.equal(
        generate(again, seeds=range(4), num_steps=3), generate(model, seeds=range(4), num_steps=3)
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vit_dec_model_size": "base"}, "vit_dec_model_size"),
        ({"vit_dec_latent_mlp_mixer_depth": 5}, "vit_dec_latent_mlp_mixer_depth"),
        ({"in_context_size": 8}, "in_context_size"),
        ({"spherify_model": True}, "spherify_model"),
        ({"vit_enc_model_size": "tiny", "vit_dec_model_size": "tiny"}, "tiny"),
    ],
)
def test_a_release_that_is_another_network_is_refused_by_name(tmp_path, change, named):
    write_release(tmp_path / "release", random_model(), change)
    with pytest.raises(UserError, match=named):
        import_release(tmp_path / "release")


def as_bare(folder, weights):
    torch.save(weights, folder / "weights.pth")


def as_safetensors(folder, weights):
    save_file(weights, folder / "model.safetensors")


def as_compiled(folder, weights):
    torch.save({f"module._orig_mod.{k}": v for k, v in weights.items()}, folder / "weights.pth")


def as_compiled_ends(folder, weights):
    compiled = {k.replace("coder.", "coder._orig_mod.", 1): v for k, v in weights.items()}
    save_file(compiled, folder / "ema.safetensors")


def as_averaged(folder, weights):
    """torch's AveragedModel of a distributed, compiled model."""
    ema = {f"module.module._orig_mod.{k}": v for k, v in weights.items()}
    torch.save({"ema": ema | {"n_averaged": torch.tensor(7)}, "epoch": 3}, folder / "ep3.pt")


def as_averaged_alone(folder, weights):
    ema = {f"module.{k}": v for k, v in weights.items()}
    save_file(ema | {"n_averaged": torch.tensor(7)}, folder / "weights.safetensors")


def as_compiled_blocks(folder, weights):
    blocks = {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in weights.items()}
    torch.save(blocks, folder / "a.pth")


def wrong(weights):
    return {k: torch.zeros_like(v) for k, v in weights.items()}


def as_lightning(folder, weights):
    """Weights and averaged ones in one state dict, beside the trainer's own numbers."""
    both = {f"model.{k}": v for k, v in wrong(weights).items()}
    both |= {f"ema_model.module.{k}": v for k, v in weights.items()}
    torch.save({"state_dict": both, "epoch": 3, "global_step": 9}, folder / "epoch=3.ckpt")


def as_lightning_without_average(folder, weights):
    torch.save({"state_dict": {f"model.{k}": v for k, v in weights.items()}}, folder / "last.ckpt")


def as_wrapped(folder, weights):
    torch.save({"model_state_dict": weights, "optimizer": {"state": {}}}, folder / "a.pth")


def as_wrapped_twice(folder, weights):
    content = {"ema": {"decay": 0.999, "state_dict": weights}, "model": wrong(weights)}
    torch.save(content, folder / "a.pth")


def as_two_files(folder, weights):
    save_file(wrong(weights), folder / "model.safetensors")
    save_file(weights, folder / "model_ema.safetensors")


def as_files_of_two_kinds(folder, weights):
    torch.save(weights, folder / "ema_0.9999.pth")
    save_file(wrong(weights), folder / "step-2000.safetensors")


FORMS = [as_bare, as_safetensors, as_compiled, as_compiled_ends, as_averaged, as_averaged_alone]
FORMS += [as_compiled_blocks, as_lightning, as_lightning_without_average, as_wrapped]
FORMS += [as_wrapped_twice, as_two_files, as_files_of_two_kinds]


@pytest.mark.parametrize("write", FORMS)
def test_checkpoints_as_others_share_them(write, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, RELEASE_SIZES["small"], (16, 1, 2))
    model = random_model(num_classes=10)
    folder = tmp_path / "release"
    write_release(folder, model)
    shutil.rmtree(folder / "ckpt")
    write(folder, model.state_dict())
    fetched = {}

    def fetch(name, allow_patterns):
        fetched.update(name=name, patterns=allow_patterns)
        return folder

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    expected = generate(model, seeds=range(3), num_steps=2)
    for place in (folder, "hf://someone/theirs"):
        assert torch.equal(generate(import_release(place), seeds=range(3), num_steps=2), expected)
    assert fetched["name"] == "someone/theirs" and "cfg.json" in fetched["patterns"]
    write(folder, model.state_dict() | {"encoder.extra": torch.zeros(3)})
    with pytest.raises(UserError, match="encoder.extra"):
        import_release(folder)


def test_a_release_without_or_with_a_cut_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, RELEASE_SIZES["small"], (16, 1, 2))
    write_release(tmp_path / "release", random_model())
    path = tmp_path / "release" / "ckpt" / "ep10.pth"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="ep10.pth"):
        import_release(tmp_path / "release")
    for file in path.parent.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no checkpoint"):
        import_release(tmp_path / "release")


@pytest.mark.parametrize(
    "foreign",
    ["text_encoder.", "discriminator.", "optimizer.state.", "losses.ema.", "schema."],
)
def test_weights_of_other_networks_are_passed_over(foreign, tmp_path):
    model = random_model()
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    others = {f"{foreign}{name}": weight + 1 for name, weight in model.state_dict().items()}
    torch.save(weights | others, tmp_path / "a.pth")
    found = read_weights(tmp_path / "a.pth")
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())
    assert len(found) == len(weights)
