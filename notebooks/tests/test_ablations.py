"""The sliced-Wasserstein term of the ablations."""

import pytest
import torch
from precompute_ablations import add_sliced_wasserstein, sliced_wasserstein

from sphere_mini import spherify
from sphere_mini.data.images import to_model_range
from sphere_mini.data.sets import load_digit_images
from sphere_mini.losses import draw_step_noise
from sphere_mini.recipe import make_recipe
from sphere_mini.sphere import random_point
from sphere_mini.training import LossModule, init_state


def distance(v):
    return sliced_wasserstein(v, torch.Generator().manual_seed(1)).item()


def test_points_that_are_uniform_are_near_and_points_on_one_spot_far():
    uniform = random_point((2000, 4, 8), torch.Generator().manual_seed(0))
    one_spot = uniform[:1].expand(2000, 4, 8)
    half_a_sphere = torch.cat([uniform[:, :, :1].abs(), uniform[:, :, 1:]], dim=2)
    assert distance(uniform) < 0.01
    # along a line the spot lies at p, the others about normally: E[(p - x)²] = p² + 1, mean 2
    assert distance(one_spot) == pytest.approx(2, rel=0.25)
    assert distance(uniform) < distance(half_a_sphere) < distance(one_spot)


def test_its_gradient_moves_points_apart():
    v = 0.1 * torch.randn(256, 2, 4, generator=torch.Generator().manual_seed(0)) + 1
    before = distance(spherify(v))
    for seed in range(50):
        v.requires_grad_(True)
        generator = torch.Generator().manual_seed(seed)
        [gradient] = torch.autograd.grad(sliced_wasserstein(spherify(v), generator), v)
        v = (v - 500 * gradient).detach()
    assert distance(spherify(v)) < before / 4


def test_the_term_is_added_with_its_weight():
    recipe = make_recipe("digits", steps=1).resolved(1797)
    digits = load_digit_images(8, torch.device("cpu"))
    config = recipe.sphere_config(digits.class_names)
    model = init_state(recipe, config, torch.device("cpu")).model
    x = to_model_range(digits.images[:16])
    y = digits.labels[:16]
    noise = draw_step_noise(16, config, 0.1, 0.1, torch.Generator().manual_seed(0))
    losses = LossModule(model)
    plain = losses(x, y, noise, recipe, None)
    add_sliced_wasserstein(losses, 0.5)
    added = losses(x, y, noise, recipe, None)
    term = sliced_wasserstein(spherify(model.encode(x, y)), torch.Generator().manual_seed(0))
    torch.testing.assert_close(added["loss"], plain["loss"] + 0.5 * term)
    assert torch.equal(added["pix_recon"], plain["pix_recon"])
