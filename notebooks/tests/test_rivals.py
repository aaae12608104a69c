"""The models that the sphere encoder is compared with: their losses, their sampling, their time."""

import time
from itertools import count

import pytest
import rivals
import torch
from rivals import FlowMatching, new_rival, steps_in, train_rival

from sphere_mini import SphereEncoder
from sphere_mini.data.images import to_model_range
from sphere_mini.data.sets import load_digit_images
from sphere_mini.recipe import make_recipe
from sphere_mini.training import seeded_generator


@pytest.fixture(scope="module")
def digits():
    return load_digit_images(8, torch.device("cpu"))


@pytest.fixture
def recipe():
    return make_recipe("digits", width=32, steps=40, warmup_steps=4, lr=2e-2, batch_size=64)


@pytest.fixture
def config(recipe, digits):
    return recipe.sphere_config(digits.class_names)


def count_parameters(model):
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def test_all_have_about_as_many_parameters_as_the_sphere_encoder():
    recipe = make_recipe("fashion_mnist")
    config = recipe.sphere_config([str(k) for k in range(10)])
    sphere = count_parameters(SphereEncoder(config))
    for name in ("vae", "flow"):
        rival, _ = new_rival(name, config, beta=0.1, seed=0)
        assert 0.85 < count_parameters(rival) / sphere < 1.1


def test_vae_loss_is_the_bound_per_pixel(config, digits):
    model, _ = new_rival("vae", config, beta=0.3, seed=0)
    x = to_model_range(digits.images[:6])
    y = digits.labels[:6]
    with torch.no_grad():
        model.encoder.ffn.linear.weight.normal_(std=0.1)  # it begins at 0
        loss = model.loss(x, y, torch.Generator().manual_seed(4))
        mean, log_variance = model.encode(x, y)
        e = torch.randn(mean.shape, generator=torch.Generator().manual_seed(4))
        error = (model.decode(mean + (log_variance / 2).exp() * e, y) - x).square()
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    expected = (error.sum() / 2 + 0.3 * divergence.sum()) / x.numel()
    torch.testing.assert_close(loss, expected)


def test_vae_means_may_be_of_any_size(config, digits):
    model, _ = new_rival("vae", config, beta=0.3, seed=0)
    x = to_model_range(digits.images[:4])
    with torch.no_grad():
        model.encoder.ffn.linear.weight.normal_(std=0.1)
        mean, _ = model.encode(x, digits.labels[:4])
        model.encoder.ffn.linear.weight.mul_(5)
        larger, _ = model.encode(x, digits.labels[:4])
    torch.testing.assert_close(larger, 5 * mean)


def test_flow_draws_what_its_velocity_leads_to(config, monkeypatch):
    model = FlowMatching(config)
    target = torch.full((3, 1, 8, 8), 0.25)
    seen = []

    def velocity(x, t, y):
        """The straight way from where x is to the target."""
        seen.append((t[0].item(), y.tolist()))
        return (target - x[:, :1]) / (1 - t[0])

    monkeypatch.setattr(model, "velocity", velocity)
    y = torch.tensor([3, 1, 4])
    images = model.generate(y, steps=4)
    torch.testing.assert_close(images, torch.full((3, 3, 8, 8), 0.625))  # 0.25 in [0, 1]
    assert seen == [(k / 4, [3, 1, 4]) for k in range(4)]
    seen.clear()
    model.generate(y, steps=2, guidance=2.0)
    assert [labels for _, labels in seen] == [[3, 1, 4], [10, 10, 10]] * 2


def test_flow_guidance_goes_away_from_no_class(config, monkeypatch):
    model = FlowMatching(config)

    def velocity(x, t, y):
        """0.2 with a class, 0.1 without."""
        return torch.where(y < 10, 0.2, 0.1)[:, None, None, None].expand(-1, 1, 8, 8)

    monkeypatch.setattr(model, "velocity", velocity)
    y = torch.tensor([0, 1])
    plain = model.generate(y, steps=5, seed=2)
    guided = model.generate(y, steps=5, seed=2, guidance=3.0)
    inside = (plain > 0) & (plain < 0.85)  # elsewhere the range ends
    expected = torch.full_like(plain, 0.1)  # 0.1 + 3·(0.2 - 0.1) is 0.4: 0.2 more, half in [0, 1]
    torch.testing.assert_close((guided - plain)[inside], expected[inside])


def test_flow_images_and_noise_are_grey(config, digits):
    model, _ = new_rival("flow", config, beta=0.0, seed=0)
    with torch.no_grad():
        model.vit.ffn.linear.weight.normal_(std=0.1)
    images = model.generate(torch.arange(4), steps=3)
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])


def test_flow_is_told_the_time(config):
    model, _ = new_rival("flow", config, beta=0.0, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "adaLN" in name or "ffn" in name:
                weight.normal_(std=0.1)  # they begin at 0
        x = torch.randn(2, 1, 8, 8).expand(-1, 3, -1, -1)
        early, late = model.velocity(
            x[:1].repeat(2, 1, 1, 1), torch.tensor([0.1, 0.9]), torch.tensor([1, 1])
        )
    assert (early - late).abs().max() > 0.01


@pytest.mark.parametrize("name", ["vae", "flow"])
def test_a_rival_learns_and_a_seed_fixes_it(name, recipe, config, digits):
    recipe = recipe.resolved(len(digits))
    x = to_model_range(digits.images[:200])
    held = seeded_generator(x.device, 9)
    weights = []
    for _ in range(2):
        model, average = new_rival(name, config, beta=0.1, seed=0)
        before = model.loss(x, digits.labels[:200], held.manual_seed(9)).item()
        assert len(list(train_rival(model, average, recipe, digits))) == 40
        after = average.loss(x, digits.labels[:200], held.manual_seed(9)).item()
        assert after < 0.8 * before
        weights.append(torch.cat([weight.flatten() for weight in average.parameters()]))
    assert torch.equal(*weights)


def test_steps_fit_the_minutes(monkeypatch):
    clock = iter(range(0, 10_000, 20))  # seconds: 20 pass between two looks
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    pace = 20 / rivals.MEASURED  # seconds a step
    assert steps_in(3, count()) == round(180 / pace)
