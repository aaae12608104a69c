"""Muon is torch's, in float32, for the matrices of the blocks alone."""

import pytest
import torch
from short_runs import CPU, NANO

from sphere_mini.data.images import to_model_range
from sphere_mini.data.sets import load_digit_images
from sphere_mini.extras.muon import Muon, block_matrices, orthogonalise
from sphere_mini.recipe import make_recipe
from sphere_mini.training import init_state, set_learning_rates, train_step

SHAPES = [(48, 16), (16, 16), (16, 42), (48, 16)]


@pytest.mark.parametrize("shape", [(3, 64, 16), (3, 16, 64), (1, 20, 20)])
def test_singular_values_come_near_1_and_directions_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(1e3 * matrices)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.3 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inside = left.mT @ result @ right.mT  # diagonal where the singular vectors are kept
    assert torch.allclose(inside, torch.diag_embed(inside.diagonal(dim1=1, dim2=2)), atol=1e-3)
    assert orthogonalise(torch.zeros(shape)).eq(0).all()


def test_steps_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in SHAPES]
    ours, theirs = [[torch.nn.Parameter(w.clone()) for w in start] for _ in range(2)]
    first = Muon([ours])
    first.param_groups[0]["lr"] = 0.1
    adjust = dict(adjust_lr_fn="match_rms_adamw")
    second = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0, momentum=0.95, **adjust)
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        first.step()
        second.step()
        assert all(weight.grad is None for weight in ours)
    for a, b, w in zip(ours, theirs, start, strict=True):
        moved = (b - w).norm()
        assert (a - b).norm() < 0.02 * moved and moved > 0.1  # torch rounds to bfloat16


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(name):
    recipe = make_recipe("digits", **NANO, optimizer=name, steps=9).resolved(1797)
    state = init_state(recipe, recipe.sphere_config("0123456789"), CPU)
    images = load_digit_images(8, CPU)
    train_step(state, recipe, to_model_range(images.images[:10]), images.labels[:10])
    for name, weight in state.model.named_parameters():
        in_block = name.split(".")[1] == "blocks" and weight.dim() == 2
        by_muon = in_block and recipe.optimizer == "muon"
        assert (weight in state.muon.state) == by_muon, name
        assert (weight in state.optimizer.state) == (weight.requires_grad and not by_muon), name


def test_a_step_in_bfloat16_is_near_that_in_float32_and_weights_stay_float32():
    images = load_digit_images(8, CPU)
    ends = {}
    for dtype in ("float32", "bfloat16"):
        fields = NANO | dict(optimizer="muon", dtype=dtype, steps=9, warmup_steps=1)
        recipe = make_recipe("digits", **fields).resolved(1797)
        state = init_state(recipe, recipe.sphere_config("0123456789"), CPU)
        before = [w.clone() for w in block_matrices(state.model.decoder)]
        with torch.no_grad():
            for weight in state.model.parameters():  # no gate is 0, so that all gradients matter
                weight.add_(0.02)
        for _ in range(2):
            train_step(state, recipe, to_model_range(images.images[:10]), images.labels[:10])
        after = block_matrices(state.model.decoder)
        assert all(
            w.dtype == m["momentum"].dtype == torch.float32 for w, m in state.muon.state.items()
        )
        ends[dtype] = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    assert 0 < (ends["bfloat16"] - ends["float32"]).norm() < 0.2 * ends["float32"].norm()


def test_a_weight_without_a_gradient_stays():
    weights = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    muon = Muon([weights])
    muon.param_groups[0]["lr"] = 0.1
    weights[0].grad = torch.eye(4)
    muon.step()
    assert not weights[0].eq(1).all() and weights[1].eq(1).all()


def test_muons_rate_is_a_multiple_of_adamws():
    recipe = make_recipe("digits", **NANO, optimizer="muon", muon_lr_factor=3.0, steps=9)
    recipe = recipe.resolved(1797)
    state = init_state(recipe, recipe.sphere_config("0123456789"), CPU)
    lr = set_learning_rates(state, recipe)
    expected = [3 * lr * recipe.encoder_lr_factor, 3 * lr]
    assert [group["lr"] for group in state.muon.param_groups] == expected
    assert [group["lr"] for group in state.optimizer.param_groups] == [x / 3 for x in expected]
