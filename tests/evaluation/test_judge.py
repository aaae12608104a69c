"""The judge of samples: a small network that knows the classes."""

import json

import pytest
import torch
from conftest import DIGITS_MODEL, random_model, run
from PIL import Image

from sphere_mini import SphereEncoder, UserError, generate
from sphere_mini.data.grids import quantise
from sphere_mini.data.images import ImageSet, to_model_range
from sphere_mini.data.sets import load_digit_images
from sphere_mini.evaluation import Reference, Sampler, evaluate
from sphere_mini.evaluation.features import Judge, fit_judge, load_judge
from sphere_mini.evaluation.metrics import frechet_distance

NAMES = tuple("0123456789")


@pytest.fixture(scope="module")
def digits():
    data = load_digit_images(8, torch.device("cpu"))
    rows = torch.arange(len(data)) % 6 == 5
    held_out = ImageSet(data.images[rows], data.labels[rows], NAMES)
    return ImageSet(data.images[~rows], data.labels[~rows], NAMES), held_out


@pytest.fixture(scope="module")
def judge(digits):
    return fit_judge(digits[0], flip=False)


def test_it_learns_to_recognise(judge, digits):
    _, held_out = digits
    assert judge.look(held_out.images, held_out.labels)[1].float().mean() > 0.9
    wrong = (held_out.labels + 1) % 10
    assert judge.look(held_out.images, wrong)[1].float().mean() < 0.1


def test_its_file_gives_it_back(judge, digits, tmp_path):
    _, held_out = digits
    assert load_judge(tmp_path, NAMES) is None
    judge.save(tmp_path)
    assert torch.equal(load_judge(tmp_path, NAMES)(held_out.images), judge(held_out.images))
    with pytest.raises(UserError, match="judges other classes than the model's; remove it"):
        load_judge(tmp_path, tuple("abcdefghij"))
    (tmp_path / "judge.safetensors").write_bytes(b"half a file")
    with pytest.raises(UserError, match="judge.safetensors cannot be used"):
        load_judge(tmp_path, NAMES)


def test_scores_say_what_it_recognises(judge, digits):
    training, held_out = digits
    model = SphereEncoder.from_pretrained(DIGITS_MODEL)
    reference = Reference(training, held_out, "pixels", judge=judge)
    report = evaluate(model, reference, [Sampler(1)], num_images=100)
    [found] = report.samples[0]["agreement"]
    y = torch.arange(100) % 10
    drawn = quantise(generate(model, y, 1, seeds=range(100)))
    assert found == pytest.approx(judge.look(drawn, y)[1].float().mean().item()) and found > 0.8
    assert report.samples[0]["judge"] == "a small network"
    real = judge.look(held_out.images, held_out.labels)[1].float().mean().item()
    assert report.reconstruction[0]["agreement held out"] == pytest.approx(real)
    assert report.reconstruction[0]["FD-pixels of 299 held out"] > 0
    with torch.no_grad():  # of what the judge's last layer sees, by its own forward pass
        real, fake, unseen = [
            judge.layers[:-2](to_model_range(images))
            for images in (training.images, drawn, held_out.images)
        ]
    [distance] = report.samples[0]["FD-judge-100"]
    assert distance == pytest.approx(frechet_distance(fake, real), rel=1e-3)
    of_real = report.reconstruction[0]["FD-judge of 299 held out"]
    assert of_real == pytest.approx(frechet_distance(unseen, real), rel=1e-3)
    blind = Judge(NAMES).eval()  # untrained: it guesses
    by_chance = evaluate(model, Reference(training, None, "pixels", judge=blind), [Sampler(1)], 100)
    assert by_chance.samples[0]["agreement"][0] < 0.5


@pytest.mark.slow
def test_it_learns_from_few_images_too(digits):
    training, held_out = digits
    some = torch.linspace(0, len(training) - 1, 60).long()
    few = ImageSet(training.images[some], training.labels[some], NAMES)
    judge = fit_judge(few, flip=False)
    assert judge.look(held_out.images, held_out.labels)[1].float().mean() > 0.4  # chance: 0.1


@pytest.mark.slow
def test_mirrored_images_count_where_they_may(digits, monkeypatch):
    """Of two classes that mirror each other it can learn only without flips."""
    monkeypatch.setattr("sphere_mini.evaluation.features.LEAST_STEPS", 60)
    training, _ = digits
    sevens = training.images[training.labels == 7]
    labels = torch.arange(2).repeat_interleave(len(sevens))
    both = ImageSet(torch.cat([sevens, sevens.flip(3)]), labels, ("a", "b"))
    certainty = []  # the probability of the right class, on average
    for flip in (False, True):
        probabilities = fit_judge(both, flip)(both.images).softmax(1)
        certainty.append(probabilities.gather(1, labels[:, None]).mean().item())
    assert certainty[0] > 0.9 and certainty[1] == pytest.approx(0.5, abs=0.1)


def test_one_class_is_nothing_to_judge(digits):
    training, _ = digits
    alone = ImageSet(training.images, torch.zeros_like(training.labels), ("digit",))
    with pytest.raises(UserError, match="two classes or more"):
        fit_judge(alone)


def test_the_flag_trains_one_and_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sphere_mini.evaluation.features.LEAST_STEPS", 60)
    folder = tmp_path / "run"
    digits = load_digit_images(8, torch.device("cpu"))
    for label in (3, 8):  # the digits as such have a judge of their own
        (tmp_path / "data" / f"number {label}").mkdir(parents=True)
        for k, image in enumerate(digits.images[digits.labels == label][:60]):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture.save(tmp_path / "data" / f"number {label}" / f"{k}.png")
    model = random_model(num_classes=2, class_names=("number 3", "number 8"))
    training = {"dataset": "folder", "data_dir": str(tmp_path / "data")}
    model.save_pretrained(folder, training=training)
    command = ("evaluate", "--features", "pixels", "--num-steps", 1, "--num-images", 100)
    found = []
    for flags in ((), ("--judge",), ()):
        out = tmp_path / str(len(found))
        done = run("sample.py", folder, *command, *flags, "--out", out)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((out / "scores.json").read_text())["samples"][0])
    assert (folder / "judge.safetensors").exists()
    assert found[1] == found[2]  # of the one that was kept
    assert "FD-judge-100" in found[1] and "FD-judge-100" not in found[0]
