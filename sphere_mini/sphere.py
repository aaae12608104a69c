"""The geometry of the method: pure functions of tensors.

A latent `v` (B, N, D) is a point on one sphere in L = N·D dimensions, of RMS 1 and radius √L.
Gaussian noise `e` is nearly perpendicular to it and of about the same length, so adding `sigma·e`
tilts it by the angle atan(sigma). All is computed in float32 or better.
"""

import math

import torch
from torch import Tensor

EPS = 1e-6  # inside the root: a latent of all zeros maps to zeros, not to NaN
HARD_EXTRA_DEG = 5.0  # by which hard cases exceed alpha_max, up to ...
HARD_LIMIT_DEG = 89.0


def at_least_float32(x: Tensor) -> Tensor:
    """x itself in float32 or float64, anything smaller as float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def spherify(z: Tensor) -> Tensor:
    """Project raw latents onto the sphere: f(z) = z / sqrt(mean(z²) + 1e-6) (the paper's spherify).

    z: (B, ...), any floating dtype. Returns the same shape with RMS 1 per sample, in at least
    float32. The mean runs over all dimensions but the batch: one global sphere, not one per token.
    """
    z = at_least_float32(z)
    all_but_batch = tuple(range(1, z.dim()))
    return z * torch.rsqrt(z.square().mean(dim=all_but_batch, keepdim=True) + EPS)


def perturb(v: Tensor, sigma: Tensor | float, e: Tensor) -> Tensor:
    """Tilt a point by noise and return to the sphere: f(v + sigma·e), the paper's v_noisy, v_NOISY.

    v, e: (B, ...); sigma: a number or (B,). sigma = 0 returns v itself.
    """
    sigma = torch.as_tensor(sigma, device=v.device).view(-1, *[1] * (v.dim() - 1))  # (B, 1, 1)
    return torch.where(sigma == 0, v, spherify(v + sigma * e))


def random_point(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Points (B, ...) uniform on the sphere, on the generator's device: f(e), e ~ N(0, I)."""
    device = generator.device if generator else None
    return spherify(torch.randn(shape, generator=generator, device=device))


def sigma_from_angle(alpha_deg: float) -> float:
    """Noise strength that tilts a latent by `alpha_deg` degrees, in [0, 90): sigma = tan(alpha)."""
    return math.tan(math.radians(alpha_deg))


def angle_from_sigma(sigma: float) -> float:
    """The angle in degrees by which noise of strength `sigma` tilts: alpha = atan(sigma)."""
    return math.degrees(math.atan(sigma))


def angle_between(u: Tensor, v: Tensor) -> Tensor:
    """Angle in degrees, (B,), between latents u and v of shape (B, ...), each one long vector.

    2·atan2(|û - v̂|, |û + v̂|), û and v̂ of one length; unlike acos exact for small angles too.
    """
    u = spherify(u).flatten(1)  # (B, L)
    v = spherify(v).flatten(1)  # (B, L)
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1)))


def jitter(batch_size: int, generator: torch.Generator | None = None) -> Tensor:
    """Stratified noise levels r, (B,), shuffled: exactly 0, exactly 1, and one in each stratum.

    A level is a fraction of sigma_max. The B - 2 strata of [0, 1] are equally wide, so r is uniform
    in sigma = r·sigma_max, hence not in the angle. B = 1: a uniform draw.
    """
    device = generator.device if generator else None
    if batch_size == 1:
        return torch.rand(1, generator=generator, device=device)
    strata = batch_size - 2
    u = torch.rand(strata, generator=generator, device=device)
    u = u.clamp(min=1e-3)  # no second 0
    inner = (torch.arange(strata, device=device) + u) / max(strata, 1)
    inner = inner.clamp(max=1 - 2**-24)  # nor a second 1
    ends = torch.arange(2.0, device=device)  # 0 and 1, made on the device: no copy to wait for
    r = torch.cat([ends, inner])
    return r[torch.randperm(batch_size, generator=generator, device=device)]


def hard_band(alpha_max_deg: float) -> float:
    """Largest level of a hard case: tan(min(alpha_max + 5°, 89°)) / tan(alpha_max), at least 1."""
    alpha_hard_deg = max(alpha_max_deg, min(alpha_max_deg + HARD_EXTRA_DEG, HARD_LIMIT_DEG))
    return sigma_from_angle(alpha_hard_deg) / sigma_from_angle(alpha_max_deg)


def with_hard_cases(
    r: Tensor, alpha_max_deg: float, fraction: float, generator: torch.Generator | None = None
) -> Tensor:
    """Replace each level of r (B,) with probability `fraction` by a draw from [1, hard_band]."""
    coin, u = torch.rand((2, len(r)), generator=generator, device=r.device)  # (B,), (B,)
    hard = 1 + u * (hard_band(alpha_max_deg) - 1)
    return torch.where(coin < fraction, hard, r)


def slerp(u: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
    """The point a fraction t of the way along the great circle from u to v.

    (sin((1-t)·Ω)·u + sin(t·Ω)·v) / sin Ω with Ω their angle. u, v: (B, ...) on the sphere,
    not opposite; t: a number or (B,) in [0, 1]; 0 and 1 give u and v themselves.
    """
    column = (-1, *[1] * (u.dim() - 1))  # (B, 1, 1)
    omega = torch.deg2rad(angle_between(u, v)).clamp(min=1e-4).view(column)  # u = v: no 0/0
    t = torch.as_tensor(t, device=omega.device, dtype=omega.dtype).view(column)
    from_u = torch.sin((1 - t) * omega) / torch.sin(omega)
    from_v = torch.sin(t * omega) / torch.sin(omega)
    return from_u * u + from_v * v
