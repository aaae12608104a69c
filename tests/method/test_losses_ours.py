"""Our own terms: the spreading of latents, and a latent consistency that spares the encoder."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import random_model

from sphere_mini import UserError
from sphere_mini.losses import (
    LossWeights,
    draw_step_noise,
    encode_with_fixed_weights,
    latent_consistency,
    smooth_l1,
    sphere_losses,
    spreading,
)
from sphere_mini.recipe import make_recipe
from sphere_mini.sphere import perturb, random_point, spherify

LATENT_ALONE = LossWeights(
    recon_l1=0, recon_perceptual=0, con_l1=0, con_perceptual=0, latent=1.0, spread=0
)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 3, 8, 8, generator=generator) * 2 - 1, torch.arange(6) % 3


def noise_of(model, label_drop=0.0):
    return draw_step_noise(6, model.config, 0.1, label_drop, torch.Generator().manual_seed(1))


def gradients(parameters, loss):
    return torch.autograd.grad(loss, list(parameters), allow_unused=True, retain_graph=True)


def test_spreading_by_hand():
    z = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 0, 1, 1, 1, 2, 0])
    all_pairs = []
    of_one_class = []
    for i in range(7):
        for j in range(7):
            if i != j:
                cosine = torch.cosine_similarity(z[i].flatten(), z[j].flatten(), dim=0)
                all_pairs.append(cosine**2)
                if y[i] == y[j]:
                    of_one_class.append(cosine**2)
    both = [6 * torch.stack(squares).mean().item() for squares in (all_pairs, of_one_class)]
    assert spreading(z, None).item() == pytest.approx(both[0], rel=1e-5)
    assert spreading(z, y).item() == pytest.approx(sum(both), rel=1e-5)


def test_spreading_is_one_for_uniform_points_and_l_on_a_line():
    v = random_point((1500, 4, 16), torch.Generator().manual_seed(0))
    assert spreading(v, None).item() == pytest.approx(1, abs=0.02)
    line = v[:1] * torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1)
    assert spreading(line, None).item() == pytest.approx(64, rel=1e-5)
    assert spreading(line, torch.arange(3)).item() == pytest.approx(64, rel=1e-5)  # no pair of one


def test_encoding_with_fixed_weights_gives_the_same_and_teaches_no_weight(batch):
    x, y = batch
    model = random_model(num_classes=3)
    x.requires_grad_()
    z = encode_with_fixed_weights(model, x, y)
    assert torch.allclose(z, model.encode(x, y), atol=1e-6)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(grad is None for grad in gradients(weights, z.sum()))
    (to_images,) = torch.autograd.grad(z.sum(), [x])
    assert to_images.abs().max() > 0
    plain = random_model(num_classes=0)
    assert torch.allclose(encode_with_fixed_weights(plain, x, None), plain.encode(x), atol=1e-6)


def test_a_latent_consistency_that_spares_the_encoder(batch):
    x, y = batch
    model = random_model(num_classes=3)
    noise = noise_of(model)
    spares = replace(LATENT_ALONE, latent_spares_encoder=True)
    ours = sphere_losses(model, x, y, noise, spares)["loss"]
    theirs = sphere_losses(model, x, y, noise, LATENT_ALONE)["loss"]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    weights = [weight for weight in model.decoder.parameters() if weight.requires_grad]
    for a, b in zip(gradients(weights, ours), gradients(weights, theirs), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    weights = [weight for weight in model.encoder.parameters() if weight.requires_grad]
    pairs = zip(gradients(weights, ours), gradients(weights, theirs), strict=True)
    assert not all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    # the encoder learns as if another one, a copy, encoded again
    frozen = copy.deepcopy(model).requires_grad_(False)
    z = model.encode(x, y)
    v_far = perturb(spherify(z), noise.r_far * model.config.sigma_max, noise.e)
    by_copy = latent_consistency(frozen.encode(model.decode(v_far, y), y), z.detach())
    for a, b in zip(gradients(weights, ours), gradients(weights, by_copy), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_sparing_the_encoder_goes_with_checkpointed_activations(batch):
    x, y = batch
    model = random_model(num_classes=3)
    spares = replace(LATENT_ALONE, latent_spares_encoder=True)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    found = []
    for checkpointed in (False, True):
        for end in (model.encoder, model.decoder):
            end.checkpoint_activations = checkpointed
        loss = sphere_losses(model, x, y, noise_of(model), spares)["loss"]
        found.append(gradients(weights, loss))
        assert model.encoder.checkpoint_activations == checkpointed
    for a, b in zip(*found, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-6)


def test_spreading_is_a_loss_of_its_own(batch):
    x, y = batch
    model = random_model(num_classes=3)
    noise = noise_of(model)
    off = sphere_losses(model, x, y, noise, replace(LATENT_ALONE, recon_l1=1.0))
    on = sphere_losses(model, x, y, noise, replace(LATENT_ALONE, recon_l1=1.0, spread=0.01))
    z = model.encode(x, y)
    assert "spread" not in off
    assert on["spread"].item() == pytest.approx(0.01 * spreading(z, y).item(), rel=1e-5)
    assert on["loss"].item() == pytest.approx((off["loss"] + on["spread"]).item(), rel=1e-5)


def test_the_beta_of_smooth_l1_reaches_both_pixel_losses(batch):
    x, y = batch
    model = random_model(num_classes=3)
    noise = noise_of(model)
    off = replace(LATENT_ALONE, latent=0.0)
    for weights in (replace(off, recon_l1=1.0), replace(off, con_l1=1.0)):
        square = sphere_losses(model, x, y, noise, weights)["loss"].item()
        linear = sphere_losses(model, x, y, noise, replace(weights, l1_beta=0.01))["loss"].item()
        assert linear > 2 * square
    apart = torch.tensor([0.0, 0.1, 0.6])  # in [0, 1]
    found = smooth_l1(2 * apart, torch.zeros(3), beta=0.2).item()
    assert found == pytest.approx((0.1**2 / 2 / 0.2 + 0.6 - 0.2 / 2) / 3)


def test_all_are_off_in_the_papers_recipes():
    for dataset in ("cifar10", "afhq", "imagenet"):
        weights = make_recipe(dataset)
        assert weights.spread == 0 and not weights.latent_spares_encoder
        assert weights.l1_beta == 1


def test_spreading_stays_exact_under_autocast():
    z = torch.randn(64, 4, 16, generator=torch.Generator().manual_seed(0))
    exact = spreading(z, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(spreading(z, None), exact)


def test_spreading_takes_pairs():
    with pytest.raises(UserError, match="leaves the spreading term no pairs"):
        make_recipe("digits", batch_size=8, grad_accum=8, spread=0.001)
    make_recipe("digits", batch_size=8, grad_accum=4, spread=0.001)
    make_recipe("digits", batch_size=8, grad_accum=8, spread=0)
