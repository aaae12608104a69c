"""The prior fitted to encoded images: ours, beside the paper's uniform one."""

import shutil

import pytest
import torch
from conftest import DIGITS_MODEL, random_model, run
from PIL import Image

from sphere_mini import SphereEncoder, UserError, generate, interpolate
from sphere_mini.data.images import ImageSet
from sphere_mini.data.sets import load_digit_images
from sphere_mini.evaluation.metrics import judge_digits
from sphere_mini.extras import prior as prior_module
from sphere_mini.extras.prior import fit_prior, load_prior

Y = torch.arange(500) % 10


@pytest.fixture(scope="module")
def digits():
    return load_digit_images(8, torch.device("cpu"))


@pytest.fixture(scope="module")
def prior(digits, digits_model):
    return fit_prior(digits_model, digits)


@pytest.fixture
def run_without_prior(tmp_path):
    """The shipped digits model in a folder that holds no prior yet."""
    folder = tmp_path / "run"
    shutil.copytree(DIGITS_MODEL, folder)
    (folder / "prior.safetensors").unlink()
    return folder


def test_one_step_from_it_is_nearer_to_the_real_digits(digits_model, prior):
    uniform = judge_digits(generate(digits_model, Y, num_steps=1, seeds=range(500)), Y)
    fitted = judge_digits(generate(digits_model, Y, 1, seeds=range(500), start=prior.points), Y)
    assert fitted["frechet"] < uniform["frechet"] / 2
    assert fitted["agreement"] > 0.97
    assert fitted["deviation"] > uniform["deviation"]


def test_its_points_have_the_means_and_spreads_of_each_class(digits_model, prior):
    config = digits_model.config
    e = torch.randn(4000, *config.latent_shape, generator=torch.Generator().manual_seed(0))
    for label in (0, 7, config.null_label):
        v = prior.points(e, torch.full((len(e),), label))
        assert torch.allclose(v.square().mean(dim=(1, 2)), torch.ones(len(v)), atol=1e-4)
        before = prior._before_spherify(e, label)
        assert (before.mean(0) - prior.mean[label]).norm() < 0.05 * before[0].norm()
        axes = prior.axes[label]
        wanted = axes.T @ axes
        assert (before.T.cov() - wanted).norm() < 0.1 * wanted.norm()


def test_an_image_depends_on_its_seed_alone(digits_model, prior):
    seeds = [5, 6, 7, 8, 9, 10]
    together = generate(digits_model, Y[:6], 2, seeds=seeds, start=prior.points)
    alone = generate(digits_model, Y[2:3], 2, seeds=[7], start=prior.points)
    assert torch.allclose(together[2:3], alone, atol=1e-5)


def test_a_mixture_of_labels_begins_and_ends_with_them(digits_model, prior):
    y = torch.tensor([3, 8])
    options = dict(num_steps=1, start=prior.points)
    path = interpolate(digits_model, y, (0, 1), frames=5, **options)
    ends = generate(digits_model, y, seeds=[0, 1], **options)
    assert torch.allclose(path[[0, -1]], ends, atol=1e-5)


def test_it_is_kept_beside_its_weights_and_not_beside_others(prior, tmp_path):
    model = SphereEncoder.from_pretrained(DIGITS_MODEL)
    assert load_prior(tmp_path, model) is None
    prior.save(tmp_path)
    again = load_prior(tmp_path, model)
    starts = [prior.points, again.points]
    images = [generate(model, Y[:9], 1, seeds=range(9), start=start) for start in starts]
    assert torch.equal(*images)
    with torch.no_grad():
        model.decoder.ffn.linear.bias += 0.1
    assert load_prior(tmp_path, model) is None
    (tmp_path / "prior.safetensors").write_bytes(b"half a file")
    with pytest.raises(UserError, match="prior.safetensors cannot be used"):
        load_prior(tmp_path, model)


def test_the_shipped_prior_is_what_fitting_gives(digits_model, prior):
    shipped = load_prior(DIGITS_MODEL, digits_model)
    assert torch.allclose(shipped.mean, prior.mean, atol=1e-2)


def test_without_classes_all_images_are_one():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    plain = random_model(num_classes=0)
    for names in ((), ("a", "b")):
        labels = torch.arange(50) % 2 if names else torch.zeros(50).long()
        prior = fit_prior(plain, ImageSet(pixels, labels, names), rank=5)
        assert prior.axes.shape == (1, 5, 64)
        images = generate(plain, num_steps=1, seeds=[1, 2], start=prior.points)
        assert images.shape == (2, 3, 8, 8)


def test_mistakes_are_one_sentence(digits, digits_model, monkeypatch):
    others = ImageSet(digits.images, digits.labels, tuple("abcdefghij"))
    with pytest.raises(UserError, match=r"classes: 10 \(a, .* the network of .* classes: 10 \(0, "):
        fit_prior(digits_model, others)
    monkeypatch.setattr(prior_module, "MOST_NUMBERS", 11 * 2 * 128 - 1)
    with pytest.raises(UserError, match="a prior for 10 classes of 128 numbers is too large"):
        fit_prior(digits_model, digits)


def test_many_classes_have_as_many_axes_as_fit(digits, digits_model, monkeypatch):
    monkeypatch.setattr(prior_module, "MOST_NUMBERS", 11 * 6 * 128)
    assert fit_prior(digits_model, digits).axes.shape == (11, 5, 128)


def test_a_class_of_one_image_takes_all_images(digits, digits_model):
    rows = torch.cat([torch.arange(10), (digits.labels > 0).nonzero().flatten()[:200]])
    few = ImageSet(digits.images[rows], digits.labels[rows], digits.class_names)
    fitted = fit_prior(digits_model, few)
    assert torch.equal(fitted.mean[0], fitted.mean[-1])
    assert torch.equal(fitted.axes[0], fitted.axes[-1])
    assert not torch.equal(fitted.mean[1], fitted.mean[-1])


def test_memory_bounds_the_images_it_sees(digits, monkeypatch):
    model = SphereEncoder.from_pretrained(DIGITS_MODEL)
    seen = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda x, y: seen.append(len(x)) or encode(x, y))
    monkeypatch.setattr(prior_module, "MOST_NUMBERS", 300 * 128)
    fit_prior(model, digits, rank=2)
    assert sum(seen) == 300


def test_the_script_fits_it_once(run_without_prior, tmp_path):
    flags = ("--class", 3, "--per-class", 4, "--num-steps", 1)
    said = []
    pixels = []
    for name in ("uniform", "fitted", "again"):
        choice = "uniform" if name == "uniform" else "fitted"
        out = tmp_path / f"{name}.png"
        done = run("sample.py", run_without_prior, *flags, "--prior", choice, "--out", out)
        assert done.returncode == 0, done.stderr
        said.append("prior fitted to the encoded training images of digits" in done.stdout)
        pixels.append(Image.open(out).tobytes())
    assert said == [False, True, False]
    assert pixels[0] != pixels[1] == pixels[2]


def test_the_script_fits_it_to_the_images_that_are_named(run_without_prior, digits, tmp_path):
    """A run whose data set is gone takes another one for the fit, which it does not keep."""
    folder = run_without_prior
    text = (folder / "config.json").read_text().replace('"digits"', '"folder"')
    (folder / "config.json").write_text(text)
    flags = ("--class", 3, "--num-steps", 1, "--prior", "fitted", "--out", tmp_path / "a.png")
    gone = run("sample.py", folder, *flags)
    assert gone.returncode == 2 and "no folder" in gone.stderr
    done = run("sample.py", folder, *flags, "--dataset", "digits")
    assert done.returncode == 0, done.stderr
    assert "prior fitted to the encoded training images of digits" in done.stdout
    assert not (folder / "prior.safetensors").exists()
    few = ImageSet(digits.images[:50], digits.labels[:50], digits.class_names)
    fit_prior(SphereEncoder.from_pretrained(folder), few).save(folder)
    again = run("sample.py", folder, *flags[:-1], tmp_path / "b.png", "--dataset", "digits")
    assert "prior fitted to" in again.stdout  # and not the one that is kept
    pixels = [Image.open(tmp_path / name).tobytes() for name in ("a.png", "b.png")]
    assert pixels[0] == pixels[1]
    kept = run("sample.py", folder, *flags[:-1], tmp_path / "c.png")
    assert kept.returncode == 0 and Image.open(tmp_path / "c.png").tobytes() != pixels[0]


def test_single_images_and_scores_say_which_prior(tmp_path):
    flags = ("--prior", "fitted", "--num-steps", 1)
    folder = tmp_path / "images"
    command = ("sample.py", DIGITS_MODEL)
    done = run(*command, "--save-images", folder, "--class", 3, "--per-class", 1, *flags)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.png")
    assert Image.open(path).text["command"].endswith("--prior fitted")
    samplers = ("--prior", "uniform", "fitted", "--num-steps", 1, "--num-images", 100)
    done = run(*command, "evaluate", *samplers, "--out", tmp_path / "scores")
    assert done.returncode == 0, done.stderr
    assert "| uniform |" in done.stdout and "| fitted  |" in done.stdout
    assert "dimension" in done.stdout
