"""The prior fitted to encoded images: ours, beside the paper's uniform one."""

import pytest
import torch
from conftest import DIGITS_MODEL, random_model, run
from PIL import Image

from sphere_mini import SphereEncoder, UserError, generate, interpolate
from sphere_mini.data.images import ImageSet
from sphere_mini.data.sets import load_digit_images
from sphere_mini.evaluation.metrics import judge_digits
from sphere_mini.extras import prior
from sphere_mini.extras.prior import fit_prior

Y = torch.arange(500) % 10


@pytest.fixture(scope="module")
def digits():
    return load_digit_images(8, torch.device("cpu"))


@pytest.fixture(scope="module")
def model(digits):
    model = SphereEncoder.from_pretrained(DIGITS_MODEL)
    model.prior = fit_prior(model, digits)
    return model


def test_one_step_from_it_is_nearer_to_the_real_digits(model):
    uniform = judge_digits(generate(model, Y, num_steps=1, seeds=range(500)), Y)
    fitted = judge_digits(generate(model, Y, 1, seeds=range(500), prior="fitted"), Y)
    assert fitted["frechet"] < uniform["frechet"] / 2
    assert fitted["agreement"] > 0.97
    assert fitted["deviation"] > uniform["deviation"]


def test_its_points_have_the_means_and_spreads_of_each_class(model, digits):
    e = torch.randn(4000, *model.config.latent_shape, generator=torch.Generator().manual_seed(0))
    for label in (0, 7, model.config.null_label):
        v = model.prior.points(e, torch.full((len(e),), label))
        assert torch.allclose(v.square().mean(dim=(1, 2)), torch.ones(len(v)), atol=1e-4)
        before = model.prior._before_spherify(e, label)
        assert (before.mean(0) - model.prior.mean[label]).norm() < 0.05 * before[0].norm()
        axes = model.prior.axes[label]
        wanted = axes.T @ axes
        assert (before.T.cov() - wanted).norm() < 0.1 * wanted.norm()


def test_an_images_depends_on_its_seed_alone(model):
    together = generate(model, Y[:6], 2, seeds=[5, 6, 7, 8, 9, 10], prior="fitted")
    alone = generate(model, Y[2:3], 2, seeds=[7], prior="fitted")
    assert torch.allclose(together[2:3], alone, atol=1e-5)


def test_a_mixture_of_labels_begins_and_ends_with_them(model):
    path = interpolate(model, torch.tensor([3, 8]), (0, 1), frames=5, num_steps=1, prior="fitted")
    ends = generate(model, torch.tensor([3, 8]), 1, seeds=[0, 1], prior="fitted")
    assert torch.allclose(path[[0, -1]], ends, atol=1e-5)


def test_it_is_kept_beside_its_weights_and_not_beside_others(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = SphereEncoder.from_pretrained(tmp_path)
    images = [generate(m, Y[:9], 1, seeds=range(9), prior="fitted") for m in (model, again)]
    assert torch.equal(*images)
    trained_on = SphereEncoder.from_pretrained(tmp_path)
    with torch.no_grad():
        trained_on.decoder.ffn.linear.bias += 0.1
    trained_on.save_pretrained(tmp_path)
    assert SphereEncoder.from_pretrained(tmp_path).prior is None


def test_without_classes_all_images_are_one():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    plain = random_model(num_classes=0)
    plain.prior = fit_prior(plain, ImageSet(pixels, torch.zeros(50).long(), ()), rank=5)
    assert plain.prior.axes.shape == (1, 5, 64)
    assert generate(plain, num_steps=1, seeds=[1, 2], prior="fitted").shape == (2, 3, 8, 8)


def test_mistakes_are_one_sentence(digits, monkeypatch):
    plain = SphereEncoder.from_pretrained(DIGITS_MODEL)
    plain.prior = None
    with pytest.raises(UserError, match="prior must be one of uniform, fitted, not 'normal'"):
        generate(plain, prior="normal")
    with pytest.raises(UserError, match="no fitted prior; fit one: model.prior = fit_prior"):
        generate(plain, prior="fitted")
    others = ImageSet(digits.images, digits.labels, tuple("abcdefghij"))
    with pytest.raises(UserError, match="classes are not the model's"):
        fit_prior(plain, others)
    alone = ImageSet(digits.images[:1], digits.labels[:1], digits.class_names)
    with pytest.raises(UserError, match="at least two images"):
        fit_prior(plain, alone)
    with monkeypatch.context() as patch:
        patch.setattr(prior, "MOST_NUMBERS", 11 * 65 * 128 - 1)
        with pytest.raises(UserError, match="10 classes and 128 dimensions is too large; fit one"):
            fit_prior(plain, digits)


def test_a_class_of_one_image_takes_all_images(digits):
    plain = SphereEncoder.from_pretrained(DIGITS_MODEL)
    rows = torch.cat([torch.arange(10), (digits.labels > 0).nonzero().flatten()[:200]])
    few = ImageSet(digits.images[rows], digits.labels[rows], digits.class_names)
    fitted = fit_prior(plain, few)
    assert torch.equal(fitted.mean[0], fitted.mean[-1])
    assert torch.equal(fitted.axes[0], fitted.axes[-1])
    assert not torch.equal(fitted.mean[1], fitted.mean[-1])


def test_memory_bounds_the_images_it_sees(digits, monkeypatch):
    plain = SphereEncoder.from_pretrained(DIGITS_MODEL)
    seen = []
    encode = plain.encode
    monkeypatch.setattr(plain, "encode", lambda x, y: seen.append(len(x)) or encode(x, y))
    monkeypatch.setattr(prior, "MOST_NUMBERS", 300 * 128)
    fit_prior(plain, digits, rank=2)
    assert sum(seen) == 300


def test_a_damaged_one_counts_as_none(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "prior.safetensors").write_bytes(b"half a file")
    with pytest.warns(UserWarning, match="prior.safetensors cannot be used"):
        again = SphereEncoder.from_pretrained(tmp_path)
    assert again.prior is None
    assert generate(again, Y[:2], 1, seeds=[1, 2]).isfinite().all()


def test_the_script_fits_it_once(tmp_path):
    plain = SphereEncoder.from_pretrained(DIGITS_MODEL)
    plain.prior = None
    plain.save_pretrained(tmp_path / "run", training={"dataset": "digits"})
    flags = ("--classes", 3, "--per-class", 4, "--num-steps", 1)
    said = []
    for name in ("uniform", "fitted", "again"):
        prior = "uniform" if name == "uniform" else "fitted"
        out = tmp_path / f"{name}.png"
        done = run("sample.py", tmp_path / "run", *flags, "--prior", prior, "--out", out)
        assert done.returncode == 0, done.stderr
        said.append("prior fitted to the encoded training images of digits" in done.stdout)
    assert said == [False, True, False]
    pixels = [Image.open(tmp_path / f"{name}.png").tobytes() for name in ("fitted", "again")]
    assert pixels[0] == pixels[1] != Image.open(tmp_path / "uniform.png").tobytes()


def test_single_images_and_scores_say_which_prior(tmp_path):
    plain = SphereEncoder.from_pretrained(DIGITS_MODEL)
    plain.prior = None
    plain.save_pretrained(tmp_path / "run", training={"dataset": "digits"})
    flags = ("--prior", "fitted", "--num-steps", 1)
    folder = tmp_path / "images"
    command = ("sample.py", tmp_path / "run")
    done = run(*command, "--save-images", folder, "--classes", 3, "--per-class", 1, *flags)
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    assert Image.open(path).text["command"].endswith("--prior fitted")
    ways = ("--prior", "uniform", "fitted", "--num-steps", 1, "--num-images", 100)
    done = run(*command, "evaluate", *ways, "--out", tmp_path / "scores")
    assert done.returncode == 0, done.stderr
    assert "| uniform |" in done.stdout and "| fitted  |" in done.stdout
    assert "dimension" in done.stdout
