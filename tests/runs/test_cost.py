import itertools

import pytest
import torch

from sphere_mini import SphereEncoder
from sphere_mini.data.images import ImageSet
from sphere_mini.perceptual import load_perceptual
from sphere_mini.recipe import make_recipe
from sphere_mini.runs.cost import cost
from sphere_mini.training import new_state, train

CPU = torch.device("cpu")
MULTIPLY_ADD = 2  # operations


def test_flops_are_those_of_the_formulas():
    """Counted by hand, of every matrix product and convolution."""
    fields = dict(patch_size=2, mixer_depth=0, conditional=False, perceptual="none")
    recipe = make_recipe("folder", image_size=16, batch_size=3, **fields)
    tokens = 64
    latent = 8
    width = 64
    hidden = int(width * (2 / 3 * 4.0))
    depth = 4
    patch = 3 * 2 * 2
    linears = 3 * width**2 + width**2 + 2 * hidden * width + hidden * width
    attention = 2 * tokens * tokens * width
    blocks = depth * (tokens * linears + attention)
    pixel_convolution = 16 * 16 * 9 * 3 * 3
    decode = blocks + tokens * (latent * width + width * patch) + pixel_convolution
    encode = blocks + tokens * (patch * width + width * width + width * latent)
    facts = cost(recipe.resolved(100), 100, 0, CPU)
    assert facts["decode"] == MULTIPLY_ADD * decode
    assert facts["encode"] == MULTIPLY_ADD * encode
    # both noisy points are decoded; going back costs twice as much, attention a bit more
    forward = MULTIPLY_ADD * (2 * encode + 2 * decode)
    assert 2.9 * forward < facts["step"] < 3.1 * forward
    model = SphereEncoder(recipe.sphere_config(()))
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())


def needs(num_images=1000, **fields):
    """Bytes that a small recipe takes, with some fields changed."""
    plain = dict(depth=1, batch_size=8, perceptual="none", patch_size=2)
    recipe = make_recipe("folder", **plain | fields).resolved(num_images)
    return cost(recipe, num_images, 2, CPU)["bytes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "larger", [dict(batch_size=16), dict(width=128), dict(depth=2), dict(perceptual="efficientnet")]
)
def test_memory_grows_with_what_needs_it(larger):
    assert needs(**larger) > 1.01 * needs()


@pytest.mark.slow
def test_memory_of_half_precision_and_of_images():
    assert needs(dtype="bfloat16") < 0.9 * needs()
    assert needs(2000) - needs() == 1000 * 3 * 32 * 32
    assert needs(2000, in_memory_gb=0.0) == needs(in_memory_gb=0.0) < needs()


def held_by(state, perceptual):
    """Bytes of weights, their average, Adam's moments and the frozen network."""
    weights = [*state.model.parameters(), *state.ema.parameters()]
    if perceptual is not None:
        weights += perceptual.parameters()
    moments = [moment for pair in state.optimizer.state.values() for moment in pair.values()]
    return sum(tensor.nbytes for tensor in [*weights, *moments])


def peak_of(profile):
    """The most bytes that were allocated at a time while it ran."""
    events = profile.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in changes))


@pytest.mark.parametrize(
    "fields", [{}, dict(dtype="bfloat16"), dict(perceptual="efficientnet", batch_size=4)]
)
def test_memory_is_what_the_allocator_hands_out(fields):
    fields = dict(model="tiny", batch_size=8, perceptual="none") | fields
    recipe = make_recipe("folder", "quick", **fields).resolved(500)
    perceptual = load_perceptual(recipe.perceptual, CPU)
    images = torch.zeros(500, 3, 32, 32, dtype=torch.uint8)
    data = ImageSet(images, torch.arange(500) % 2, ("a", "b"))
    state = new_state(recipe, data)
    steps = train(state, recipe, data, perceptual)
    next(steps)  # Adam makes its moments
    on_cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=on_cpu, profile_memory=True) as profile:
        next(steps)
    measured = held_by(state, perceptual) + images.nbytes + peak_of(profile)
    assert cost(recipe, 500, 2, CPU)["bytes"] == pytest.approx(measured, rel=0.1)
