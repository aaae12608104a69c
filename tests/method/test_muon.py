"""Muon is torch's, in float32, for the matrices of the blocks alone."""

import pytest
import torch
from short_runs import CPU, NANO

from sphere_mini.muon import Muon, orthogonalise
from sphere_mini.recipe import make_recipe
from sphere_mini.training import init_state, set_learning_rates

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
    first = Muon([{"params": ours}])
    first.param_groups[0]["lr"] = 0.1
    adjust = dict(adjust_lr_fn="match_rms_adamw")
    second = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0, momentum=0.95, **adjust)
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        first.step()
        second.step()
    for a, b, w in zip(ours, theirs, start, strict=True):
        moved = (b - w).norm()
        assert (a - b).norm() < 0.02 * moved and moved > 0.1  # torch rounds to bfloat16


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    states = {}
    for name in ("adamw", "muon"):
        recipe = make_recipe("digits", **NANO, optimizer=name, steps=9).resolved(1797)
        states[name] = init_state(recipe, recipe.sphere_config("0123456789"), CPU)
    assert not any(group["params"] for group in states["adamw"].muon.param_groups)
    state = states["muon"]
    names = {id(weight): name for name, weight in state.model.named_parameters()}
    ends = ("encoder", "decoder")
    for optimizer in (state.muon, state.optimizer):
        for end, group in zip(ends, optimizer.param_groups, strict=True):
            found = [names.pop(id(weight)) for weight in group["params"]]
            assert all(name.startswith(end) for name in found) and found
            for name in found:
                weight = state.model.get_parameter(name)
                is_block_matrix = name.startswith(f"{end}.blocks.") and weight.dim() == 2
                assert is_block_matrix == (optimizer is state.muon), name
    assert not names


def test_muons_rate_is_a_multiple_of_adamws_and_so_is_its_step():
    recipe = make_recipe("digits", **NANO, optimizer="muon", muon_lr_factor=3.0, steps=9)
    recipe = recipe.resolved(1797)
    state = init_state(recipe, recipe.sphere_config("0123456789"), CPU)
    lr = set_learning_rates(state, recipe)
    expected = [3 * lr * recipe.encoder_lr_factor, 3 * lr]
    assert [group["lr"] for group in state.muon.param_groups] == expected
    assert [group["lr"] for group in state.optimizer.param_groups] == [x / 3 for x in expected]
