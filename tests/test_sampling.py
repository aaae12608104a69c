import pytest
import torch
from conftest import random_model

from sphere_mini import UserError, generate, reconstruct, spherify
from sphere_mini.sampling import draw_from_seeds


def test_an_image_depends_on_its_seed_alone(digits_model):
    seeds, y = list(range(100, 164)), torch.arange(64) % 10
    alone = torch.cat([generate(digits_model, y[k : k + 1], seeds=seeds[k : k + 1]) for k in range(64)])
    for size in (7, 64):
        parts = [generate(digits_model, y[k : k + size], seeds=seeds[k : k + size]) for k in range(0, 64, size)]
        assert (torch.cat(parts) - alone).abs().max() < 1e-5
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    mixed = generate(digits_model, y[order], seeds=[seeds[k] for k in order])
    assert (mixed - alone[order]).abs().max() < 1e-5
    assert len({image.numpy().tobytes() for image in alone}) == 64


def test_labels_come_from_the_seeds_and_do_not_change_the_noise():
    model = random_model(num_classes=10)
    labels, _ = draw_from_seeds(range(50), model.config, 2)
    assert len(labels.unique()) == 10
    assert torch.equal(generate(model, seeds=range(50)), generate(model, labels, seeds=range(50)))


def test_longer_runs_begin_like_shorter_ones():
    config = random_model(image_size=10, latent_channels=7).config  # 175 numbers, not a multiple of anything
    _, short = draw_from_seeds([7], config, 2)
    _, long = draw_from_seeds([7], config, 4)
    assert torch.equal(short, long[:2])


def test_how_many_images():
    model = random_model(num_classes=10)
    assert generate(model).shape == (1, 3, 8, 8)
    assert generate(model, noise=torch.randn(5, 16, 4)).shape == (5, 3, 8, 8)
    assert generate(model, torch.tensor([1, 2])).shape == (2, 3, 8, 8)
    images = generate(random_model(num_classes=0), seeds=[1, 2, 3])
    assert images.shape == (3, 3, 8, 8) and images.dtype == torch.float32 and not images.requires_grad
    assert images.min() >= 0 and images.max() <= 1
    torch.manual_seed(0)
    assert not torch.equal(generate(model, torch.tensor([1])), generate(model, torch.tensor([1])))


@pytest.mark.parametrize("place", ["latent", "pixel", "both"])
def test_guidance_one_makes_no_extra_pass_and_changes_no_bit(place):
    model = random_model(num_classes=10)
    plain = generate(model, seeds=range(3))
    passes = []
    for end in (model.encoder, model.decoder):
        end.register_forward_hook(lambda *_: passes.append(1))
    assert torch.equal(generate(model, seeds=range(3), guidance=1.0, guidance_place=place), plain)
    assert len(passes) == 4 + 3
    passes.clear()
    assert not torch.equal(generate(model, seeds=range(3), guidance=1.5, guidance_place=place), plain)
    assert len(passes) == {"latent": 4 + 6, "pixel": 8 + 3, "both": 8 + 6}[place]


def test_guidance_without_classes_has_no_effect():
    model = random_model(num_classes=0)
    assert torch.equal(generate(model, seeds=[1], guidance=3.0), generate(model, seeds=[1]))


def test_noise_schemes_differ_and_replaced_noise_is_used():
    model = random_model(num_classes=0)
    noise, step_noise = torch.randn(2, 16, 4), torch.randn(3, 2, 16, 4)
    options = {"noise": noise, "step_noise": step_noise}
    shared, fresh = (generate(model, share_noise=share, **options) for share in (True, False))
    assert not torch.allclose(shared, fresh)
    same_noise = step_noise[:1].expand(3, -1, -1, -1)
    assert torch.equal(generate(model, noise=noise, step_noise=same_noise, share_noise=False), shared)
    assert not torch.allclose(generate(model, decay=True, **options), shared)
    one_step = generate(model, num_steps=1, noise=noise)
    assert torch.equal(one_step, ((model.decode(spherify(noise)) + 1) / 2).detach())


def test_reconstruction_is_encode_then_decode_under_the_null_class(digits_model, real_digits):
    x = real_digits[0][:20]
    with torch.no_grad():
        expected = (digits_model.decode(spherify(digits_model.encode(x))) + 1) / 2
    assert torch.equal(reconstruct(digits_model, x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"guidance": -0.5}, "guidance must be 0 or more"),
        ({"guidance": float("nan")}, "guidance must be 0 or more"),
        ({"guidance_place": "moon"}, "latent, pixel, both"),
        ({"y": torch.tensor([0]), "seeds": [1, 2]}, "numbers of images differ"),
        ({"y": torch.tensor([11])}, "0 ... 9"),
        ({"seeds": [-1]}, "seeds must be"),
        ({"noise": torch.zeros(1, 16, 5)}, "noise is \\(B, N, D\\) = \\(1, 16, 4\\)"),
        ({"step_noise": torch.zeros(1, 1, 16, 4), "share_noise": False}, "= \\(3, 1, 16, 4\\) here"),
    ],
)
def test_bad_values_are_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        generate(random_model(num_classes=10), **options)
    assert generate(random_model(num_classes=0), seeds=[0]).shape == (1, 3, 8, 8)


def test_labels_for_an_unconditional_model():
    with pytest.raises(UserError, match="no classes"):
        generate(random_model(num_classes=0), torch.tensor([0]))
