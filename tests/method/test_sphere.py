import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from sphere_mini.sphere import (
    angle_between,
    angle_from_sigma,
    hard_band,
    jitter,
    perturb,
    random_point,
    sigma_from_angle,
    slerp,
    spherify,
    with_hard_cases,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rms(v: torch.Tensor) -> torch.Tensor:
    return v.double().flatten(1).square().mean(1).sqrt()


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_spherify_gives_rms_one(scale, bfloat16):
    z = scale * spherify(torch.randn(8, 16, 8, generator=seeded()))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        v = spherify(z.bfloat16() if bfloat16 else z)
    assert v.dtype == torch.float32
    assert (rms(v) - 1).abs().max() < 1e-5


def test_spherify_is_global_and_harmless_at_zero():
    z = torch.randn(2, 16, 8, generator=seeded())
    z[:, 0] *= 100  # a loud token stays loud: one sphere for all tokens
    token_rms = spherify(z).square().mean(-1).sqrt()
    assert (token_rms[:, 0] > 3).all() and (token_rms[:, 1:] < 1).all()
    assert torch.equal(spherify(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


@pytest.mark.parametrize("alpha_deg", [10.0, 45.0, 70.0, 80.0, 85.0])
@pytest.mark.parametrize("shape", [(256, 8), (1024, 64)])
def test_noise_tilts_by_its_angle(alpha_deg, shape):
    v = random_point((32, *shape), seeded(1))
    e = torch.randn(32, *shape, generator=seeded(2))
    measured = angle_between(perturb(v, sigma_from_angle(alpha_deg), e), v).mean()
    assert abs(measured.item() - alpha_deg) < 0.5


def test_angle_and_sigma_are_inverse():
    for alpha_deg in (0.0, 1.0, 45.0, 80.0, 89.0):
        assert angle_from_sigma(sigma_from_angle(alpha_deg)) == pytest.approx(alpha_deg, abs=1e-9)
    assert sigma_from_angle(80.0) == pytest.approx(5.6712818, abs=1e-6)


@pytest.mark.parametrize("scale", [0.3, 1.0, 1e4])
def test_no_noise_is_the_identity(scale):
    v, e = spherify(scale * torch.randn(4, 16, 8, generator=seeded())), torch.randn(4, 16, 8)
    for sigma in (0.0, torch.zeros(4)):
        assert (perturb(v, sigma, e) - v).abs().max() <= 1e-6
    assert angle_between(v, v).max() == 0


def test_perturb_takes_one_level_per_sample():
    v, e = random_point((3, 16, 8), seeded()), torch.randn(3, 16, 8, generator=seeded(1))
    together = perturb(v, torch.tensor([0.0, 0.5, 5.0]), e)
    for k, sigma in enumerate((0.0, 0.5, 5.0)):
        assert torch.equal(together[k : k + 1], perturb(v[k : k + 1], sigma, e[k : k + 1]))


@pytest.mark.parametrize("batch_size", [2, 3, 7, 128])
def test_jitter_has_one_zero_and_one_one(batch_size):
    for seed in range(50):
        r = jitter(batch_size, seeded(seed))
        assert r.shape == (batch_size,)
        assert (r == 0).sum() == 1 and (r == 1).sum() == 1


def test_jitter_is_stratified_uniform_and_shuffled():
    batches = torch.stack([jitter(34, seeded(seed)) for seed in range(300)])
    inner = batches.sort(dim=1).values[:, 1:-1]
    strata = (inner * 32).floor()
    assert torch.equal(strata, torch.arange(32.0).expand(300, -1))
    assert kstest(inner.flatten().numpy(), "uniform").pvalue > 0.01
    assert len({int(row.argmax()) for row in batches}) > 25  # the 1 stands anywhere in the batch


def test_jitter_of_one_sample_is_uniform():
    draws = torch.cat([jitter(1, seeded(seed)) for seed in range(1000)])
    assert kstest(draws.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    ("alpha_max_deg", "alpha_hard_deg"), [(80.0, 85.0), (85.0, 89.0), (60.0, 65.0)]
)
def test_hard_cases_hit_a_tenth_and_fill_their_band(alpha_max_deg, alpha_hard_deg):
    r = torch.zeros(200_000)
    mixed = with_hard_cases(r, alpha_max_deg, 0.1, seeded())
    hard = mixed[mixed > 0]
    top = math.tan(math.radians(alpha_hard_deg)) / math.tan(math.radians(alpha_max_deg))
    assert hard_band(alpha_max_deg) == pytest.approx(top)
    assert abs(len(hard) / len(r) - 0.1) < 0.003
    assert kstest(hard.double().numpy(), "uniform", args=(1, top - 1)).pvalue > 0.01


def test_hard_cases_can_be_switched_off():
    r = torch.rand(1000, generator=seeded())
    assert torch.equal(with_hard_cases(r, 80.0, 0.0, seeded()), r)


def test_random_points_have_no_preferred_direction():
    points = random_point((20_000, 4, 8), seeded()).flatten(1).double().numpy()
    mean = np.linalg.norm(points.mean(0)) ** 2  # expectation L / n for independent uniform points
    assert mean / (32 / 20_000) == pytest.approx(1, abs=0.8)
    spectrum = np.linalg.eigvalsh(points.T @ points / len(points))
    assert np.abs(spectrum - 1).max() < 0.1


@pytest.mark.parametrize("shape", [(5, 16, 8), (5, 25, 7)])
def test_slerp_moves_at_constant_speed_on_the_sphere_from_end_to_end(shape):
    generator = torch.Generator().manual_seed(0)
    u, v = random_point(shape, generator), random_point(shape, generator)
    whole = angle_between(u, v)
    for t in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        point = slerp(u, v, t)
        assert (point.flatten(1).square().mean(1).sqrt() - 1).abs().max() < 1e-5
        assert (angle_between(u, point) - t * whole).abs().max() < 1e-3
        assert (angle_between(point, v) - (1 - t) * whole).abs().max() < 1e-3
    assert (slerp(u, v, 0.0) - u).abs().max() < 1e-6 and (slerp(u, v, 1.0) - v).abs().max() < 1e-6
    each = slerp(u, v, torch.linspace(0, 1, 5))  # one share per point
    assert torch.equal(each[1], slerp(u, v, 0.25)[1]) and torch.equal(each[4], v[4])


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_between_identical_near_and_far_points(t):
    u = torch.cat(
        [random_point((3, 16, 8), torch.Generator().manual_seed(1)), torch.ones(1, 16, 8)]
    )
    assert torch.allclose(slerp(u, u, t), u, atol=1e-6)
    for other in (spherify(u + 1e-3 * u.roll(1, 0)), spherify(-u + 1e-1 * u.roll(1, 0))):
        point = slerp(u, other, t)
        assert (point.flatten(1).square().mean(1).sqrt() - 1).abs().max() < 1e-5
        assert (angle_between(u, point) - t * angle_between(u, other)).abs().max() < 1e-2
        assert (slerp(u, other, 1.0) - other).abs().max() < 1e-6
