import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch_fidelity import (
    FeatureExtractorBase,
    calculate_metrics,
    metric_fid,
    register_feature_extractor,
)
from torchvision.transforms.functional import gaussian_blur

from sphere_mini.evaluation.features import (
    efficientnet_features,
    extract,
    fidelity,
    load_extractor,
)
from sphere_mini.evaluation.metrics import (
    cosine_law,
    coverage,
    digits_judge,
    effective_dimension,
    frechet_distance,
    judge_digits,
    memorised_below,
    nearness,
    psnr,
)
from sphere_mini.perceptual import EfficientNetLite
from sphere_mini.sampling import to_unit_range
from sphere_mini.sphere import perturb, random_point


def features_with(mean, cov, n=500):
    """n points whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(0).normal(size=(n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(cov).T + mean


def test_frechet_distance_has_its_closed_form():
    a = features_with(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = features_with(np.array([1.0, 0.0, 2.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(5 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2, abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), abs=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_is_torch_fidelitys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 64)) @ rng.normal(size=(64, 64)), 1 + rng.normal(size=(300, 64))
    statistics = [metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    found = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    assert frechet_distance(a, b) == pytest.approx(found[metric_fid.KEY_METRIC_FID], rel=1e-6)


def test_frechet_distance_of_real_digits_to_themselves():
    _, real = digits_judge()
    order = np.random.default_rng(0).permutation(len(real))
    part, halves = 2 * real[order] - 1, len(real) // 2
    assert 0.03 < frechet_distance(part[:1000], part) < 0.1  # about 0.06
    assert 0.2 < frechet_distance(part[:halves], part[halves:]) < 0.35  # 0.25 to 0.31


def test_psnr_in_decibels():
    x = torch.zeros(2, 3, 4, 4)
    assert psnr(x + 0.1, x).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_the_judge_knows_digits_wrong_labels_and_collapse(real_digits):
    x, y = real_digits
    real = judge_digits(to_unit_range(x), y)
    assert (
        real["agreement"] > 0.99
        and real["frechet"] < 0.01
        and real["deviation"] == pytest.approx(0.2, abs=0.02)
    )
    assert judge_digits(to_unit_range(x), (y + 1) % 10)["agreement"] < 0.05
    digits = load_digits()
    means = np.stack([digits.images[digits.target == k].mean(0) / 16 for k in range(10)])
    collapsed = torch.from_numpy(means[digits.target]).float()[:, None].expand(-1, 3, -1, -1)
    scores = judge_digits(collapsed, y)
    assert (
        scores["deviation"] < 1e-3 and scores["frechet"] > 3
    )  # recognised, but one picture a class


def test_deviation_is_within_classes_only():
    black_and_white = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None, None, None].expand(-1, 3, 8, 8)
    alike, mixed = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert judge_digits(black_and_white, alike)["deviation"] == 0
    assert judge_digits(black_and_white, mixed)["deviation"] == pytest.approx(0.5)


class Registered(FeatureExtractorBase):
    """Our EfficientNet as torch-fidelity's own program takes it."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.network = EfficientNetLite().network

    @staticmethod
    def get_provided_features_list():
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    def forward(self, images):
        layers = dict(
            zip(("features", "logits"), efficientnet_features(self.network, images), strict=True)
        )
        return tuple(layers[name] for name in self.features_list)


class Images(torch.utils.data.Dataset):
    """A data set of images alone, as torch-fidelity reads it."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def tiles(photo, count):
    """Disjoint 32-pixel tiles of a photograph, uint8 (count, 3, 32, 32)."""
    whole = torch.tensor(photo[:416]).permute(2, 0, 1)  # (3, 416, 640)
    return (
        whole.unfold(1, 32, 32).unfold(2, 32, 32).flatten(1, 2).movedim(1, 0)[:count].contiguous()
    )


@pytest.fixture(scope="module")
def seen(photos):
    """EfficientNet's features and logits of 120 tiles of each photograph."""
    extractor = load_extractor("efficientnet", torch.device("cpu"))
    return [extract(extractor, tiles(photo, 120).split(50)) for photo in photos]


def test_scores_are_those_of_calculate_metrics(photos, seen):
    fake, real = seen
    a, b = (Images(tiles(photo, 120)) for photo in photos)
    options = {
        "feature_extractor": "efficientnet",
        "cuda": False,
        "verbose": False,
        "save_cpu_ram": True,
    }
    register_feature_extractor("efficientnet", Registered)
    known = calculate_metrics(
        input1=a, input2=b, fid=True, isc=True, kid=True, prc=True, kid_subset_size=120, **options
    )
    found = fidelity(fake, real[0])
    keys = ("inception_score_mean", "kernel_inception_distance_mean", "precision", "recall")
    assert list(found) == ["IS", "KID", "precision", "recall"]  # 120 are too few for an FID
    expected = [known[key] for key in keys]
    assert list(found.values()) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    distance = known["frechet_inception_distance"]
    assert frechet_distance(fake[0], real[0]) == pytest.approx(distance, rel=1e-3)
    assert distance > 100 and found["IS"] > 1 and found["KID"] > 0


def test_features_tell_blurred_and_noisy_images_from_sharp_ones(photos, seen):
    extractor, images = load_extractor("efficientnet", torch.device("cpu")), tiles(photos[0], 60)
    generator = torch.Generator().manual_seed(0)
    damaged = [gaussian_blur(images, 13, sigma) for sigma in (0.5, 1.0, 2.0)]
    noise = torch.randn(images.shape, generator=generator)
    damaged += [(images + level * noise).round().clamp(0, 255).byte() for level in (5, 10, 20)]
    found = [seen[0][0][:60], *(extract(extractor, [batch])[0] for batch in damaged)]
    sharp, *others = (features[:, :100].numpy() for features in found)
    distances = [frechet_distance(features, sharp) for features in others]
    assert (
        0 < distances[0] < distances[1] < distances[2]
        and 0 < distances[3] < distances[4] < distances[5]
    )


@pytest.fixture(scope="module")
def halves(real_digits):
    """Pixel features of two disjoint halves of the real digits, and the second half's labels."""
    x, y = real_digits
    features = x.mean(1).flatten(1)[
        torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    ]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return features[:898], features[898:], y[order][898:]


def test_recall_falls_with_missing_classes_and_precision_with_noise(halves):
    real, other, labels = halves
    scores = [fidelity([other[labels < kept]], real) for kept in (10, 5, 2, 1)]
    recalls, distances = ([score[name] for score in scores] for name in ("recall", "FID"))
    assert recalls[0] > 0.8 and recalls[3] < 0.2 and recalls == sorted(recalls, reverse=True)
    assert distances == sorted(distances) and min(score["precision"] for score in scores) > 0.8
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
    precisions = [fidelity([other + level * noise], real)["precision"] for level in (0, 0.2, 0.4)]
    assert (
        precisions == sorted(precisions, reverse=True)
        and precisions[0] > 0.8
        and precisions[2] < 0.3
    )


def test_nearness_finds_the_nearest_row_and_has_no_scale():
    generator = torch.Generator().manual_seed(0)
    train, other = (
        torch.randn(1500, 16, generator=generator),
        torch.randn(1200, 16, generator=generator),
    )
    index, ratio = nearness(other, train)
    k = 1100  # in the second chunk
    distances = (train - other[k]).norm(dim=1).sort()
    assert index[k] == distances.indices[0]
    assert ratio[k] == pytest.approx(
        (distances.values[0] / distances.values[1:50].mean()).item(), rel=1e-4
    )
    assert torch.allclose(nearness(100 * other, 100 * train)[1], ratio, rtol=1e-3)
    index, ratio = nearness(train, train, others=True)
    assert (index != torch.arange(1500)).all() and ratio.min() > 0.3


def test_planted_training_images_are_found_and_few_others(halves):
    train, held_out, _ = halves
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(1))
    known, fresh = held_out[order].chunk(2)
    below, left_out = memorised_below(nearness(known, train)[1])
    assert left_out < 0.05 * len(known)
    index, ratio = nearness(torch.cat([fresh, train[:50]]), train)
    assert (ratio[-50:] < below).all() and index[-50:].tolist() == list(range(50))
    assert (ratio[:-50] < below).float().mean() <= 0.02
    slightly = train[:200] + 0.05 * torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    assert (nearness(slightly, train)[1] < below).float().mean() > 0.95


def test_near_duplicates_among_held_out_images_do_not_move_the_threshold():
    clean = 0.9 + 0.03 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    alone, none = memorised_below(clean)
    with_copies, left_out = memorised_below(torch.cat([clean, torch.linspace(0.1, 0.6, 30)]))
    assert none <= 5 and left_out == none + 30 and with_copies == pytest.approx(alone, abs=0.005)


@pytest.mark.slow
def test_uniform_points_follow_the_law_ever_closer():
    assert cosine_law(3).cdf([-0.5, 0, 0.5]) == pytest.approx(
        [0.25, 0.5, 0.75]
    )  # Archimedes: cosines are uniform
    generator = torch.Generator().manual_seed(0)
    for dim in (8, 128):
        distances = []
        for n in (200, 800, 3200):
            found = [coverage(random_point((n, dim), generator)) for _ in range(30)]
            distances.append(np.mean([row["angle_ks"] for row in found]))
            assert distances[-1] == pytest.approx(found[0]["angle_ks_uniform"], rel=0.2)
            assert np.mean([row["mean_norm"] for row in found]) == pytest.approx(n**-0.5, rel=0.2)
        assert distances[0] / distances[2] == pytest.approx(4, rel=0.3)


def test_caps_and_clusters_are_not_uniform():
    generator = torch.Generator().manual_seed(0)
    points = random_point((1000, 16, 8), generator)
    cap = perturb(
        random_point((1, 16, 8), generator).expand_as(points), 2.0, points
    )  # 63 degrees around a point
    centres = random_point((2, 16, 8), generator)
    centres = torch.cat([centres, -centres])  # whose mean is the origin: only the angles tell
    clusters = perturb(centres.repeat(250, 1, 1), 0.5, points)
    assert coverage(cap)["mean_norm"] > 5 * coverage(cap)["mean_norm_uniform"]
    for v in (cap, clusters):
        assert coverage(v)["angle_ks"] > 5 * coverage(v)["angle_ks_uniform"]
    assert coverage(clusters)["mean_norm"] < 2 * coverage(clusters)["mean_norm_uniform"]


def test_the_effective_dimension_by_hand_and_of_uniform_points():
    generator = torch.Generator().manual_seed(0)
    few = random_point((9, 2, 3), generator)
    unit = few.flatten(1).double()
    cosines = [
        torch.cosine_similarity(unit[i], unit[j], dim=0)
        for i in range(9)
        for j in range(9)
        if i != j
    ]
    by_hand = 1 / torch.stack(cosines).square().mean().item()
    assert effective_dimension(few) == pytest.approx(by_hand, rel=1e-6)
    for count in (40, 3000):  # fewer points than dimensions, and more
        uniform = random_point((count, 4, 16), generator)
        assert effective_dimension(uniform) == pytest.approx(64, rel=0.25)
    line = few[:1] * torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1)
    assert effective_dimension(line) == pytest.approx(1, rel=1e-6)
    assert (
        coverage(few)["dimension"] == pytest.approx(by_hand)
        and coverage(few)["dimension_uniform"] == 6
    )


def test_the_judge_of_a_single_digit(real_digits):
    x, y = real_digits
    for label, agreement in ((int(y[0]), 1.0), (int(y[0]) + 1, 0.0)):
        judged = judge_digits((x[:1] + 1) / 2, torch.tensor([label]))
        assert (judged["agreement"], judged["deviation"]) == (agreement, 0.0)
        pixels = x[:, 0].flatten(1).double()
        spread = pixels.var(0).sum() + (pixels.mean(0) - pixels[0]).square().sum()
        assert judged["frechet"] == pytest.approx(spread.item(), rel=1e-6)
