import dataclasses

import pytest
import torch
from conftest import random_model

from sphere_mini.losses import (
    LossWeights,
    StepNoise,
    draw_step_noise,
    drop_labels,
    smooth_l1,
    sphere_losses,
)
from sphere_mini.perceptual import Perceptual
from sphere_mini.sphere import perturb, spherify


def weights(*numbers: float) -> LossWeights:
    """w1 ... w5 in the paper's order."""
    names = ("recon_l1", "recon_perceptual", "con_l1", "con_perceptual", "latent")
    return LossWeights(**dict(zip(names, numbers, strict=True)))


OFF = weights(0, 0, 0, 0, 0)
BATCH = 6


@pytest.fixture
def model():
    return random_model(num_classes=3)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(BATCH, 3, 8, 8, generator=generator) * 2 - 1, torch.arange(BATCH) % 3


def step_noise(model, label_drop=0.0) -> StepNoise:
    return draw_step_noise(BATCH, model.config, 0.1, label_drop, torch.Generator().manual_seed(1))


def gradients(model, loss):
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)


def same(a, b):
    return all(
        (x is None and y is None) or torch.allclose(x, y, atol=1e-6)
        for x, y in zip(a, b, strict=True)
    )


def count_calls(model):
    calls = {"encode": 0, "decode": 0, "decoded": 0}
    model.encoder.register_forward_hook(lambda *_: calls.update(encode=calls["encode"] + 1))

    def decoded(module, inputs, output):
        calls.update(decode=calls["decode"] + 1, decoded=calls["decoded"] + len(output))

    model.decoder.register_forward_hook(decoded)
    return calls


def by_hand(model, x, y, noise):
    """The passes of the method in separate calls."""
    config = model.config
    z = model.encode(x, y)
    v = spherify(z)
    x_far = model.decode(perturb(v, noise.r_far * config.sigma_max, noise.e), y)
    x_near = model.decode(perturb(v, noise.r_near * config.sigma_max, noise.e), y)
    return z, x_far, x_near


def test_the_losses_are_those_of_the_paper(model, batch):
    x, y = batch
    noise = step_noise(model)
    losses = sphere_losses(model, x, y, noise, weights(2.0, 0, 3.0, 0, 5.0))
    z, x_far, x_near = by_hand(model, x, y, noise)
    difference = ((x_near - x) / 2).abs()
    recon = torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    z, z_again = z.flatten(1), model.encode(x_far, y).flatten(1)
    cosine = (z * z_again).sum(1) / z.norm(dim=1) / z_again.norm(dim=1)
    assert losses["pix_recon"].item() == pytest.approx(2 * recon.item(), rel=1e-4)
    assert losses["pix_con"].item() == pytest.approx(3 * smooth_l1(x_far, x_near).item(), rel=1e-4)
    assert losses["lat_con"].item() == pytest.approx(5 * (1 - cosine).mean().item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx(
        sum(losses[k].item() for k in ("pix_recon", "pix_con", "lat_con"))
    )


def test_no_gradient_from_pixel_consistency_into_the_near_decode(model, batch):
    x, y = batch
    noise = step_noise(model)
    ours = gradients(
        model, sphere_losses(model, x, y, noise, dataclasses.replace(OFF, con_l1=1.0))["pix_con"]
    )
    _, x_far, x_near = by_hand(model, x, y, noise)
    assert same(ours, gradients(model, smooth_l1(x_far, x_near.detach())))
    assert not same(ours, gradients(model, smooth_l1(x_far, x_near)))


def test_no_gradient_from_latent_consistency_into_its_target(model, batch):
    x, y = batch
    noise = step_noise(model)
    ours = gradients(
        model, sphere_losses(model, x, y, noise, dataclasses.replace(OFF, latent=1.0))["lat_con"]
    )
    z, x_far, _ = by_hand(model, x, y, noise)

    def loss(target):
        return (
            1
            - torch.cosine_similarity(
                model.encode(x_far, y).flatten(1), target.flatten(1), eps=1e-6
            )
        ).mean()

    assert same(ours, gradients(model, loss(z.detach())))
    assert not same(ours, gradients(model, loss(z)))
    reached = dict(
        zip((n for n, p in model.named_parameters() if p.requires_grad), ours, strict=True)
    )
    assert (
        reached["decoder.ffn.linear.weight"].abs().max() > 0
    )  # the decoder learns through D(v_far)
    assert reached["encoder.ffn.linear.weight"].abs().max() > 0


@pytest.mark.parametrize(
    ("loss_weights", "terms", "encodes", "decoded"),
    [
        (weights(1, 0, 0.5, 0, 0.1), {"pix_recon", "pix_con", "lat_con"}, 2, 2 * BATCH),
        (weights(1, 0, 0.5, 0, 0), {"pix_recon", "pix_con"}, 1, 2 * BATCH),
        (weights(1, 0, 0, 0, 0.1), {"pix_recon", "lat_con"}, 2, BATCH),
        (weights(1, 0, 0, 0, 0), {"pix_recon"}, 1, BATCH),
        (weights(0, 0, 0.5, 0, 0.1), {"pix_con", "lat_con"}, 2, 2 * BATCH),
        (weights(0, 0, 0, 0, 0.1), {"lat_con"}, 2, BATCH),
    ],
)
def test_a_term_of_weight_zero_costs_nothing(model, batch, loss_weights, terms, encodes, decoded):
    calls = count_calls(model)
    losses = sphere_losses(model, *batch, step_noise(model), loss_weights)
    assert losses.keys() == terms | {"loss"}
    assert calls == {"encode": encodes, "decode": 1, "decoded": decoded}


class Halves(Perceptual):
    """A perceptual loss to be worked out by hand: half of the image; every look is noted."""

    def __init__(self):
        super().__init__(torch.nn.Identity())
        self.looks = []

    def features(self, x):
        self.looks.append(x)
        return [x / 2]

    def distance(self, a, b):
        assert not b[0].requires_grad  # targets carry no graph
        return (a[0] - b[0]).abs().mean()


def test_the_perceptual_terms_share_three_looks(model, batch):
    x, y = batch
    noise, perceptual = step_noise(model), Halves()
    losses = sphere_losses(model, x, y, noise, weights(0, 2.0, 0, 3.0, 0), perceptual)
    _, x_far, x_near = by_hand(model, x, y, noise)
    assert losses["pix_recon"].item() == pytest.approx((x_near - x).abs().mean().item(), rel=1e-4)
    assert losses["pix_con"].item() == pytest.approx(
        1.5 * (x_far - x_near).abs().mean().item(), rel=1e-4
    )
    assert len(perceptual.looks) == 3 and all(len(look) == BATCH for look in perceptual.looks)


def test_no_gradient_from_perceptual_consistency_into_the_near_decode(model, batch):
    x, y = batch
    noise = step_noise(model)
    losses = sphere_losses(
        model, x, y, noise, dataclasses.replace(OFF, con_perceptual=1.0), Halves()
    )
    _, x_far, x_near = by_hand(model, x, y, noise)
    ours = gradients(model, losses["pix_con"])
    assert same(ours, gradients(model, (x_far - x_near.detach()).abs().mean() / 2))
    assert not same(ours, gradients(model, (x_far - x_near).abs().mean() / 2))


def test_a_perceptual_weight_of_zero_costs_no_look(model, batch):
    x, y = batch
    noise = step_noise(model)
    for numbers, looks in (
        ((1, 0, 1, 0, 0), 0),
        ((1, 1, 1, 0, 0), 2),
        ((1, 0, 1, 1, 0), 2),
        ((1, 1, 0, 0, 0), 2),
    ):
        perceptual = Halves()
        sphere_losses(model, x, y, noise, weights(*numbers), perceptual)
        assert len(perceptual.looks) == looks


def test_reconstruction_alone_uses_the_far_noise(model, batch):
    x, y = batch
    noise = step_noise(model)
    loss = sphere_losses(model, x, y, noise, dataclasses.replace(OFF, recon_l1=1.0))["loss"]
    _, x_far, x_near = by_hand(model, x, y, noise)
    assert loss.item() == pytest.approx(smooth_l1(x_far, x).item(), rel=1e-4)
    assert loss.item() != pytest.approx(smooth_l1(x_near, x).item(), rel=1e-3)


def test_near_noise_is_small_and_keeps_the_unmixed_level(model):
    config = model.config
    noise = draw_step_noise(
        20_000, config, 1.0, 0.1, torch.Generator().manual_seed(0)
    )  # every sample a hard case
    plain = draw_step_noise(20_000, config, 0.0, 0.1, torch.Generator().manual_seed(0))
    assert (noise.r_far >= 1).all() and (plain.r_far <= 1).all()
    assert torch.equal(noise.r_near, plain.r_near)
    assert (noise.r_near <= 0.5 * plain.r_far + 1e-7).all()
    assert noise.r_near.mean().item() == pytest.approx(0.125, rel=0.05)  # E[r] · E[s] = 1/2 · 1/4


def test_labels_drop_independently_at_their_rate(model):
    noise = draw_step_noise(50_000, model.config, 0.1, 0.1, torch.Generator().manual_seed(0))
    drops = (noise.drop_encode, noise.drop_far, noise.drop_near, noise.drop_again)
    for k, a in enumerate(drops):
        assert a.float().mean().item() == pytest.approx(0.1, abs=0.006)
        for b in drops[:k]:
            assert (a & b).float().mean().item() == pytest.approx(0.01, abs=0.003)
    y = torch.tensor([0, 1, 2])
    assert drop_labels(y, torch.tensor([False, True, False]), 3).tolist() == [0, 3, 2]


def test_dropped_labels_reach_the_passes(model, batch):
    x, y = batch
    dropped = sphere_losses(model, x, y, step_noise(model, label_drop=1.0), weights(1, 0, 1, 0, 1))
    null = torch.full_like(y, 3)
    assert dropped["loss"].item() == pytest.approx(
        sphere_losses(model, x, null, step_noise(model), weights(1, 0, 1, 0, 1))["loss"].item(),
        rel=1e-5,
    )
    assert dropped["loss"].item() != pytest.approx(
        sphere_losses(model, x, y, step_noise(model), weights(1, 0, 1, 0, 1))["loss"].item(),
        rel=1e-4,
    )


def test_losses_stay_in_float32_under_autocast(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = sphere_losses(model, *batch, step_noise(model), weights(1, 0, 0.5, 0, 0.1))
    exact = sphere_losses(model, *batch, step_noise(model), weights(1, 0, 0.5, 0, 0.1))
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.1)
