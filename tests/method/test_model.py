import json
import math
import shutil

import pytest
import torch
from conftest import TINY, parity_case, random_model
from huggingface_hub import HfApi, RepoUrl
from safetensors.torch import load_file, save_file

from sphere_mini import SphereConfig, SphereEncoder, UserError, generate, import_release
from sphere_mini.config import SIZES
from sphere_mini.extras.release import RELEASE_SIZES
from sphere_mini.files import push_to_hub
from sphere_mini.recipe import Recipe

PAPER_COUNTS = [  # the names of these columns stand in the test below
    ("s", 32, 1.5, 2, "conv", 10, 79_898_955),
    ("b", 32, 1.5, 2, "conv", 10, 263_818_155),
    ("l", 32, 1.5, 2, "conv", 10, 921_569_387),
    ("l", 256, 1.5, 4, "linear", 0, 642_148_324),
    ("l", 256, 1.5, 4, "linear", 102, 948_844_516),
    ("b", 256, 3.0, 4, "linear", 1000, 287_914_916),
    ("l", 256, 3.0, 4, "linear", 1000, 950_354_532),
    ("xl", 256, 3.0, 4, "linear", 1000, 1_388_922_404),
]


@pytest.mark.parametrize(
    ("size", "image_size", "ratio", "mixer", "head", "classes", "count"), PAPER_COUNTS
)
def test_parameter_counts_of_the_paper(size, image_size, ratio, mixer, head, classes, count):
    recipe = Recipe(
        dataset="any",
        image_size=image_size,
        model=size,
        compression_ratio=ratio,
        mixer_depth=mixer,
        pixel_head=head,
    )
    with torch.device("meta"):
        model = SphereEncoder(recipe.sphere_config([str(k) for k in range(classes)]))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("head", ["conv", "linear"])
@pytest.mark.parametrize(("num_classes", "mixer_depth"), [(10, 2), (0, 2), (3, 0)])
def test_both_ends_start_at_exactly_zero(head, num_classes, mixer_depth):
    model = SphereEncoder(
        SphereConfig(**TINY, pixel_head=head, num_classes=num_classes, mixer_depth=mixer_depth)
    )
    y = torch.tensor([0, 1]) if num_classes else None
    assert torch.equal(model.encode(torch.randn(2, 3, 8, 8), y), torch.zeros(2, 16, 4))
    assert torch.equal(model.decode(torch.randn(2, 16, 4), y), torch.zeros(2, 3, 8, 8))
    keys = model.state_dict().keys()
    assert ("decoder.x_embedder.weight" in keys) == (mixer_depth == 0)
    assert any("adaLN" in key for key in keys) == (num_classes > 0)


def test_initial_weights_have_the_papers_spread():
    model = SphereEncoder(SphereConfig(width=256, depth=1, num_heads=4))
    spread = {name: float(p.detach().std(correction=0)) for name, p in model.named_parameters()}
    assert spread["decoder.x_embedder.0.weight"] == pytest.approx(1, rel=0.1)
    assert spread["decoder.x_embedder.1.blocks.0.chn_mixer.mix.0.weight"] == pytest.approx(
        1, rel=0.1
    )
    assert spread["encoder.y_embedder.embedding_table.weight"] == pytest.approx(0.02, rel=0.1)
    assert spread["encoder.blocks.0.attn.qkv.weight"] == pytest.approx(
        math.sqrt(2 / (256 + 768)), rel=0.1
    )
    assert spread["encoder.x_embedder.0.weight"] == pytest.approx(
        math.sqrt(2 / (256 + 12)), rel=0.1
    )
    assert spread["decoder.out.2.weight"] == pytest.approx(
        0.01 * math.sqrt(2 / (32 + 32 * 9)), rel=0.1
    )
    assert spread["decoder.out.4.weight"] == pytest.approx(
        0.01 * math.sqrt(2 / (32 + 3 * 16)), rel=0.1
    )


def test_no_label_means_the_null_label_and_classes_matter():
    model = random_model(num_classes=3)
    x = torch.randn(2, 3, 8, 8)
    null = torch.full((2,), model.config.null_label)
    assert torch.equal(model.encode(x), model.encode(x, null))
    assert not torch.allclose(model.encode(x), model.encode(x, torch.tensor([0, 1])), atol=1e-3)
    v = torch.randn(2, 16, 4)
    assert not torch.allclose(model.decode(v), model.decode(v, torch.tensor([0, 1])), atol=1e-3)


def test_the_mixer_lets_tokens_see_each_other():
    x = torch.zeros(1, 16, 4)
    y = x.clone()
    y[0, 0] = 1
    mixer = random_model().encoder.out
    assert ((mixer(x) - mixer(y)).abs().amax(-1) > 0).all()


@pytest.mark.parametrize("half", [False, True])
def test_save_and_load(tmp_path, half):
    model = random_model(num_classes=3, class_names=("cat", "dog", "owl"))
    model.save_pretrained(tmp_path / "model")
    if half:
        weights = {
            k: v.half() for k, v in load_file(tmp_path / "model" / "model.safetensors").items()
        }
        save_file(weights, tmp_path / "model" / "model.safetensors")
    again = SphereEncoder.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert not again.training and all(
        p.dtype == torch.float32 and p.device.type == "cpu" for p in again.parameters()
    )
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a.half().float() if half else a, b)


def test_a_hub_name_that_cannot_be_fetched_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf://nobody/nothing could not be fetched"):
        SphereEncoder.from_pretrained("hf://nobody/nothing")


def test_pushing_to_the_hub_sends_the_models_files(monkeypatch, tmp_path):
    """huggingface_hub is replaced at its edge: its calls are noted, nothing is sent."""
    random_model(num_classes=2, class_names=("cat", "dog")).save_pretrained(tmp_path)
    (tmp_path / "last.pt").touch()
    sent = {}

    def create_repo(self, name, **options):
        sent["made"] = (name, options)
        return RepoUrl(f"https://huggingface.co/{name}")

    def upload_folder(self, repo_id, folder_path, allow_patterns):
        names = {path.name for path in folder_path.iterdir()}
        sent["files"] = names & set(allow_patterns)
        sent["to"] = repo_id

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    for name in ("me/cats", "hf://me/cats"):
        assert push_to_hub(tmp_path, name, private=True) == "hf://me/cats"
        assert sent["made"] == ("me/cats", {"private": True, "exist_ok": True})
        assert sent["to"] == "me/cats" and sent["files"] == {"config.json", "model.safetensors"}


def test_a_push_that_fails_is_one_sentence(monkeypatch, tmp_path):
    random_model().save_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = "me/cats could not be written to the hub .*; check the name .* `hf auth login`"
    with pytest.raises(UserError, match=told):
        push_to_hub(tmp_path, "me/cats")


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
    assert again.config == model.config and not again.training
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
    for extra in ("encoder.extra", "critic.scale"):
        write(folder, model.state_dict() | {extra: torch.zeros(3)})
        with pytest.raises(UserError, match=extra):
            import_release(folder)


def test_a_release_without_or_with_a_cut_checkpoint(tmp_path):
    write_release(tmp_path / "release", random_model())
    path = tmp_path / "release" / "ckpt" / "ep10.pth"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="ep10.pth"):
        import_release(tmp_path / "release")
    for file in path.parent.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no checkpoint"):
        import_release(tmp_path / "release")


def test_the_linear_parity_model_survives_the_round_trip(tmp_path):
    model, io, _ = parity_case("uncond_linear")
    model.save_pretrained(tmp_path)
    assert torch.equal(
        SphereEncoder.from_pretrained(tmp_path).encode(io["x"]), model.encode(io["x"])
    )
