"""The evaluation as an API: plain arguments, no folder, no script."""

import pytest
import torch
from conftest import random_model

from sphere_mini import UserError, generate
from sphere_mini.data.images import ImageSet
from sphere_mini.data.sets import load_digit_images
from sphere_mini.evaluation import Reference, Sampler, evaluate
from sphere_mini.evaluation.metrics import coverage
from sphere_mini.evaluation.scores import (
    score_coverage,
    score_reconstructions,
    score_samples,
    table,
    usual_num_images,
)
from sphere_mini.sphere import spherify

COUNT = 70  # a distance of 64 pixels takes as many images


def image_set(count=200, classes=("a", "b"), side=8, seed=0):
    """Random images: even ones of the first class."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, side, side)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % len(classes), classes)


@pytest.fixture(scope="module")
def model():
    return random_model(num_classes=2)


@pytest.fixture(scope="module")
def reference():
    return Reference(image_set(), image_set(40, seed=1), "pixels")


@pytest.fixture(scope="module")
def report(model, reference):
    samplers = [Sampler(num_steps=1), Sampler(num_steps=3, guidance=1.5, decay=True)]
    return evaluate(model, reference, samplers, num_images=COUNT, repeats=2)


def test_the_model_and_its_images_are_enough(digits_model, tmp_path, monkeypatch):
    """All else has a default; nothing is written anywhere."""
    monkeypatch.chdir(tmp_path)
    report = evaluate(digits_model, Reference(load_digit_images(8, torch.device("cpu"))))
    assert [row["steps"] for row in report.samples] == [1, 4]
    assert [row["images"] for row in report.samples] == [1000, 1000]
    assert report.samples[1]["agreement"][0] > 0.95 and report.samples[1]["deviation"][0] > 0.1
    assert not list(tmp_path.iterdir())


def test_a_report_has_every_part_and_every_figure_its_facts(report, model):
    (reconstruction,) = report.reconstruction
    assert [row["steps"] for row in report.samples] == [1, 3]
    assert [row["points"] for row in report.coverage][:2] == ["all", "mean class"]
    for row in [*report.samples, *report.coverage, reconstruction]:
        assert type(row) is dict
        assert {name: row[name] for name in report.facts} == report.facts
        assert row["images"] > 0
    assert report.facts["weights"] == model.weights_hash()
    assert report.facts["features"] == "pixels"
    assert report.facts["reference"] == "200 training images"
    assert "held-out images to training images" in report.facts["memorised below"]
    assert report.samples[0]["seeds"] == "0 to 139" and len(report.samples[0]["recall"]) == 2
    assert f"FD-pixels-{COUNT}" in report.samples[0] and "agreement" not in report.samples[0]
    assert f"rFD-pixels-{COUNT}" in reconstruction and reconstruction["PSNR held out"] > 0
    assert min(report.closest.size) > 100


def test_the_table_is_markdown_without_facts(report):
    parts = report.table().split("\n\n")
    assert len(parts) == 3 and "weights" not in report.table()
    for text in parts:
        lines = text.splitlines()
        assert {len(line) for line in lines} == {len(lines[0])}
        assert set(lines[1]) == {"|", "-", " "} and lines[0].startswith("| ")
    assert "1.5" in parts[0] and "decay" in parts[0] and " ± " in parts[0]


def test_numbers_in_a_table_are_written_by_their_names():
    rows = [{"FD-pixels": [1.0, 2.0], "PSNR": 20.26, "agreement": [0.5], "images": 7, "hash": "x"}]
    lines = table(rows, hidden=["hash"]).splitlines()
    assert lines == [
        "| FD-pixels   | PSNR | agreement | images |",
        "| ----------- | ---- | --------- | ------ |",
        "| 1.50 ± 0.71 | 20.3 | 50.0%     | 7      |",
    ]


def test_each_part_alone_gives_the_reports_figures(report, model, reference):
    row, closest = score_samples(model, reference, Sampler(num_steps=1), COUNT, repeats=2)
    assert report.facts | row == report.samples[0] and closest.size == report.closest.size
    row = score_reconstructions(model, reference, COUNT)
    assert report.facts | row == report.reconstruction[0]
    rows = score_coverage(model, reference, COUNT)
    for row, known in zip(rows, report.coverage, strict=True):
        assert report.facts | row == known


def test_coverage_is_of_encoded_images_and_needs_no_features(model, monkeypatch):
    data = image_set()
    monkeypatch.setattr(Reference, "extractor", None)
    rows = score_coverage(model, Reference(data, features="inception"), 10**6)
    with torch.no_grad():
        v = spherify(model.encode(data.images.float() / 127.5 - 1, data.labels))
    for name, value in coverage(v).items():
        assert rows[0][name] == pytest.approx(value, abs=1e-4)


def test_every_figure_is_saved_as_soon_as_it_is_known(model, reference):
    seen = []

    def save(report):
        seen.append((len(report.samples), len(report.reconstruction), len(report.coverage)))

    evaluate(model, reference, num_images=COUNT, save=save)
    assert seen == [(1, 0, 0), (2, 0, 0), (2, 1, 0), (2, 1, 2)]


def test_without_classes_and_held_out_images():
    plain = random_model(num_classes=0)
    report = evaluate(plain, Reference(image_set(), None, "pixels", name="noise"), num_images=COUNT)
    assert [row["points"] for row in report.coverage] == ["all"]
    assert report.facts["reference"] == "200 training images of noise"
    assert "training images to others" in report.facts["memorised below"]
    assert "PSNR held out" not in report.reconstruction[0]


def test_a_copied_training_image_is_found(model):
    """One of the samples is put among the training images."""
    drawn = generate(model, torch.tensor([0]), 1, seeds=[0])
    data = image_set()
    data.images[17] = (drawn[0] * 255).floor().to(torch.uint8)
    row, _ = score_samples(model, Reference(data, None, "pixels"), Sampler(num_steps=1), COUNT)
    plain = Reference(image_set(), None, "pixels")
    without, _ = score_samples(model, plain, Sampler(num_steps=1), COUNT)
    assert row["memorised"][0] > without["memorised"][0]


def test_the_usual_number_of_images_is_of_all_classes_alike(digits_model):
    digits = Reference(load_digit_images(8, torch.device("cpu")))
    assert usual_num_images(digits_model, digits) == 1000
    others = Reference(image_set(), None, "pixels")
    assert usual_num_images(random_model(num_classes=0), others) == 50_000
    assert usual_num_images(random_model(num_classes=102), others) == 51_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_images": 9}, "scores take at least 10 samples"),
        ({"seed": -1}, "2.32 - 1"),
        ({"repeats": 0}, "one repeat"),
        ({"samplers": []}, "at least one sampler"),
        ({"reference": Reference(image_set(side=16))}, "and the network of 8 px"),
        ({"reference": Reference(image_set(classes=("a",)))}, "the network of 8 px, classes: 2;"),
    ],
)
def test_mistakes_are_one_sentence(options, words, model, reference):
    with pytest.raises(UserError, match=words):
        evaluate(model, **{"reference": reference, "num_images": COUNT} | options)


def test_mistakes_of_the_arguments_are_found_at_once():
    with pytest.raises(UserError, match="features must be one of pixels"):
        Reference(image_set(), features="clip")
    for count in (0, 9):
        with pytest.raises(UserError, match="at least 10 training images"):
            Reference(image_set(count))
    with pytest.raises(UserError, match="num_steps must be at least 1"):
        Sampler(num_steps=0)
    with pytest.raises(UserError, match="guidance must be 0 or more"):
        Sampler(guidance=-1.0)
    with pytest.raises(UserError, match="guidance place must be one of"):
        Sampler(guidance_place="everywhere")
