import math

import pytest
import torch
from conftest import TINY, parity_case, random_model
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from sphere_mini import SphereConfig, SphereEncoder, UserError, spherify
from sphere_mini.recipe import Recipe
from sphere_mini.vit import Block, MixerBlock, RMSNorm

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


def test_class_names_beyond_ascii_go_through_the_files(tmp_path):
    model = random_model(num_classes=2, class_names=["Łódź", "水"])
    assert model.config.class_names == ("Łódź", "水")
    model.save_pretrained(tmp_path)
    assert SphereEncoder.from_pretrained(tmp_path).config.class_names == ("Łódź", "水")


def test_a_hub_name_that_cannot_be_fetched_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf://nobody/nothing could not be fetched"):
        SphereEncoder.from_pretrained("hf://nobody/nothing")


def test_the_linear_parity_model_survives_the_round_trip(tmp_path):
    model, io, _ = parity_case("uncond_linear")
    model.save_pretrained(tmp_path)
    assert torch.equal(
        SphereEncoder.from_pretrained(tmp_path).encode(io["x"]), model.encode(io["x"])
    )


def test_under_autocast_the_whole_stream_is_bfloat16_and_near_float32():
    model = random_model(num_classes=3, mixer_depth=1)
    passed = {}

    def note(layer, args, out):
        passed.setdefault(type(layer).__name__, set()).update((args[0].dtype, out.dtype))

    for layer in model.modules():
        if isinstance(layer, Block | MixerBlock | RMSNorm):
            layer.register_forward_hook(note)
    x = torch.rand(4, 3, model.config.image_size, model.config.image_size) * 2 - 1
    y = torch.arange(4) % 3
    exact = model.encode(x, y), model.decode(spherify(model.encode(x, y)), y)
    assert passed == dict.fromkeys(("Block", "MixerBlock", "RMSNorm"), {torch.float32})
    passed.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.encode(x, y), model.decode(spherify(model.encode(x, y)), y)
    assert passed == dict.fromkeys(("Block", "MixerBlock", "RMSNorm"), {torch.bfloat16})
    for a, b in zip(rounded, exact, strict=True):
        assert 0 < (a - b).norm() < 0.05 * b.norm()


def test_the_stream_is_bfloat16_where_autocast_takes_norms_to_float32():
    was = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
    passed = set()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):  # no GPU is needed
        model = SphereEncoder(SphereConfig(**TINY | {"num_classes": 3, "mixer_depth": 1}))
        for layer in model.modules():
            if isinstance(layer, Block | MixerBlock | RMSNorm):
                layer.register_forward_hook(lambda _, args, out: passed.update((out.dtype,)))
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        try:
            x = torch.zeros(4, 3, model.config.image_size, model.config.image_size)
            model.decode(spherify(model.encode(x)))
        finally:
            torch.set_autocast_dtype("cuda", was[0])
            torch.set_autocast_enabled("cuda", was[1])
    assert passed == {torch.bfloat16}


def test_a_norm_of_bfloat16_is_that_of_float32_rounded():
    norm = RMSNorm(64)
    x = (1e3 * torch.randn(8, 64, generator=torch.Generator().manual_seed(0))).bfloat16()
    exact = norm(x.float())
    assert exact.dtype == torch.float32 and norm(x).dtype == torch.bfloat16
    assert (norm(x).float() - exact).abs().max() < 0.01 * exact.abs().max()
