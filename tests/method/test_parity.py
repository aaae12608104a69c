"""The network and the sampler give back what was measured on the public release."""

import pytest
import torch
from conftest import parity_case

from sphere_mini import generate, spherify
from sphere_mini.losses import latent_consistency, smooth_l1
from sphere_mini.sphere import perturb

CASES = ("cond_conv", "uncond_linear")
PLACES = {"enc": "latent", "dec": "pixel", "combo": "both"}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_every_tensor_of_the_network(name):
    model, io, num_parameters = parity_case(name)
    y = io.get("y")
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    z = model.encode(io["x"], y)
    v = spherify(z)
    v_near = perturb(v, 0.5 * model.config.sigma_max, io["e0"])
    x_near = model.decode(v_near, y)
    z_again = model.encode(x_near, y)
    found = {
        "z": z,
        "v": v,
        "v_noisy": v_near,
        "decode_v": model.decode(v, y),
        "decode_v_noisy": x_near,
    }
    found |= {"reencode": z_again, "latent_consistency": latent_consistency(z_again, z)[None]}
    found |= {"smooth_l1_recon": smooth_l1(x_near, io["x"])[None]}
    if y is not None:
        found |= {"z_null": model.encode(io["x"]), "decode_null": model.decode(v)}
    assert io.keys() - found.keys() == {
        k for k in io if k.startswith("gen.") or k in ("x", "y", "e0", "e_steps")
    }
    for key, value in found.items():
        assert (value - io[key]).abs().max() < 1e-4, key


def images(model, io, key):
    _, steps, *scheme = key.split(".", 2)
    num_steps, options = int(steps.removeprefix("steps")), {}
    if scheme[0].startswith("cfg"):
        options = {"guidance": 1.4, "guidance_place": PLACES[scheme[0].rsplit(".", 1)[1]]}
    else:
        noise, strength = scheme[0].split(".")
        options = {"share_noise": noise == "shared", "decay": strength == "decay"}
    return generate(
        model,
        io.get("y"),
        num_steps,
        noise=io["e0"],
        step_noise=io["e_steps"][: num_steps - 1],
        **options,
    )


@pytest.mark.parametrize("name", CASES)
def test_every_generated_image(name):
    model, io, _ = parity_case(name)
    keys = [key for key in io if key.startswith("gen.")]
    assert len(keys) >= 9
    for key in keys:
        assert (images(model, io, key) - io[key]).abs().max() < (1e-5 if "cfg" in key else 1e-4), (
            key
        )
