import pytest
import torch
import torch.nn.functional as F
from conftest import random_model

from sphere_mini import (
    UserError,
    crossover,
    generate,
    interpolate,
    manipulate,
    reconstruct,
    spherify,
)
from sphere_mini.evaluation.metrics import digits_judge, psnr
from sphere_mini.sampling import draw_from_seeds, stitch
from sphere_mini.sphere import slerp


def test_an_image_depends_on_its_seed_alone(digits_model):
    seeds, y = list(range(100, 164)), torch.arange(64) % 10
    alone = torch.cat(
        [generate(digits_model, y[k : k + 1], seeds=seeds[k : k + 1]) for k in range(64)]
    )
    for size in (7, 64):
        parts = [
            generate(digits_model, y[k : k + size], seeds=seeds[k : k + size])
            for k in range(0, 64, size)
        ]
        assert (torch.cat(parts) - alone).abs().max() < 1e-5
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    mixed = generate(digits_model, y[order], seeds=[seeds[k] for k in order])
    assert (mixed - alone[order]).abs().max() < 1e-5
    assert len({image.numpy().tobytes() for image in alone}) == 64


def test_labels_come_from_the_seeds_and_do_not_change_the_noise():
    model = random_model(num_classes=10)
    labels, _ = draw_from_seeds(range(50), model.config, 2)
    assert len(labels.unique()) == 10
    assert torch.equal(generate(model, seeds=range(50)), generate(model, labels, seeds=range(50)))


def test_longer_runs_begin_like_shorter_ones():
    config = random_model(
        image_size=10, latent_channels=7
    ).config  # 175 numbers, not a multiple of anything
    _, short = draw_from_seeds([7], config, 2)
    _, long = draw_from_seeds([7], config, 4)
    assert torch.equal(short, long[:2])


def test_how_many_images():
    model = random_model(num_classes=10)
    assert generate(model).shape == (1, 3, 8, 8)
    assert generate(model, noise=torch.randn(5, 16, 4)).shape == (5, 3, 8, 8)
    assert generate(model, torch.tensor([1, 2])).shape == (2, 3, 8, 8)
    images = generate(random_model(num_classes=0), seeds=[1, 2, 3])
    assert (
        images.shape == (3, 3, 8, 8) and images.dtype == torch.float32 and not images.requires_grad
    )
    assert images.min() >= 0 and images.max() <= 1
    torch.manual_seed(0)
    assert not torch.equal(generate(model, torch.tensor([1])), generate(model, torch.tensor([1])))


@pytest.mark.parametrize("place", ["latent", "pixel", "both"])
def test_guidance_one_makes_no_extra_pass_and_changes_no_bit(place):
    model = random_model(num_classes=10)
    plain = generate(model, seeds=range(3))
    passes = []
    for end in (model.encoder, model.decoder):
        end.register_forward_hook(lambda *_: passes.append(1))
    assert torch.equal(generate(model, seeds=range(3), guidance=1.0, guidance_place=place), plain)
    assert len(passes) == 4 + 3
    passes.clear()
    assert not torch.equal(
        generate(model, seeds=range(3), guidance=1.5, guidance_place=place), plain
    )
    assert len(passes) == {"latent": 4 + 6, "pixel": 8 + 3, "both": 8 + 6}[place]


def test_guidance_without_classes_has_no_effect():
    model = random_model(num_classes=0)
    assert torch.equal(generate(model, seeds=[1], guidance=3.0), generate(model, seeds=[1]))


def test_noise_schemes_differ_and_replaced_noise_is_used():
    model = random_model(num_classes=0)
    noise, step_noise = torch.randn(2, 16, 4), torch.randn(3, 2, 16, 4)
    options = {"noise": noise, "step_noise": step_noise}
    shared, fresh = (generate(model, share_noise=share, **options) for share in (True, False))
    assert not torch.allclose(shared, fresh)
    same_noise = step_noise[:1].expand(3, -1, -1, -1)
    assert torch.equal(
        generate(model, noise=noise, step_noise=same_noise, share_noise=False), shared
    )
    assert not torch.allclose(generate(model, decay=True, **options), shared)
    one_step = generate(model, num_steps=1, noise=noise)
    assert torch.equal(one_step, ((model.decode(spherify(noise)) + 1) / 2).detach())


def test_reconstruction_is_encode_then_decode_under_the_null_class(digits_model, real_digits):
    x = real_digits[0][:20]
    with torch.no_grad():
        expected = (digits_model.decode(spherify(digits_model.encode(x))) + 1) / 2
    assert torch.allclose(reconstruct(digits_model, (x + 1) / 2), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"guidance": -0.5}, "guidance must be 0 or more"),
        ({"guidance": float("nan")}, "guidance must be 0 or more"),
        ({"guidance_place": "moon"}, "latent, pixel, both"),
        ({"y": torch.tensor([0]), "seeds": [1, 2]}, "numbers of images differ"),
        ({"y": torch.tensor([11])}, "0 ... 9"),
        ({"seeds": [-1]}, "seeds must be"),
        ({"seeds": []}, "seeds must be"),
        ({"noise": "old"}, "noise must be one of shared, fresh, not 'old'"),
        ({"schedule": "slow"}, "schedule must be one of fixed, decay, not 'slow'"),
        ({"noise": torch.zeros(1, 16, 5)}, "noise must have the shape \\(1, 16, 4\\)"),
        (
            {"step_noise": torch.zeros(1, 1, 16, 4), "share_noise": False},
            "step_noise must have the shape \\(3, 1, 16, 4\\)",
        ),
    ],
)
def test_bad_values_are_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        generate(random_model(num_classes=10), **options)
    assert generate(random_model(num_classes=0), seeds=[0]).shape == (1, 3, 8, 8)


def test_labels_for_an_unconditional_model():
    with pytest.raises(UserError, match="no classes"):
        generate(random_model(num_classes=0), torch.tensor([0]))


def test_every_step_is_that_of_a_shorter_run(digits_model):
    y, seeds = torch.arange(5), range(5)
    steps = generate(digits_model, y, 4, seeds=seeds, every_step=True)
    assert steps.shape == (4, 5, 3, 8, 8)
    for k in range(4):
        assert torch.equal(steps[k], generate(digits_model, y, k + 1, seeds=seeds))


def test_mixed_classes_are_mixed_embeddings(digits_model):
    v = spherify(
        torch.randn(
            2, *digits_model.config.latent_shape, generator=torch.Generator().manual_seed(0)
        )
    )
    y = torch.tensor([3, 8])
    shares = F.one_hot(y, 11).float()
    assert torch.equal(digits_model.decode(v, shares), digits_model.decode(v, y))
    table = digits_model.decoder.y_embedder.embedding_table.weight
    half = digits_model.decoder(v, (table[3] + table[8]).expand(2, -1) / 2)
    assert torch.allclose(digits_model.decode(v, shares.mean(0).expand(2, -1)), half, atol=1e-6)


@pytest.mark.parametrize("path", ["spherical", "linear"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_path_between_equal_ends_stands_still_and_others_end_at_the_seeds(
    digits_model, path, num_steps
):
    options = {"path": path, "num_steps": num_steps}
    still = interpolate(digits_model, torch.tensor([4, 4]), [7, 7], 6, **options)
    assert (still - still[0]).abs().max() < 1e-5
    frames, y = (
        interpolate(digits_model, torch.tensor([4, 9]), [7, 8], 6, **options),
        torch.tensor([4, 9]),
    )
    _, drawn = draw_from_seeds(
        [7, 7], digits_model.config, 2
    )  # all share the first seed's refinement noise
    ends = generate(digits_model, y, num_steps, seeds=[7, 8], step_noise=drawn[1:])
    assert frames.shape == (6, 3, 8, 8) and (frames[[0, -1]] - ends).abs().max() < 1e-5
    assert (frames[0] - generate(digits_model, y[:1], num_steps, seeds=[7])[0]).abs().max() < 1e-5
    assert (frames[1:] - frames[:-1]).abs().amax((1, 2, 3)).min() > 1e-3
    drawn_labels = interpolate(digits_model, None, [7, 8], 6, **options)
    labels, _ = draw_from_seeds([7, 8], digits_model.config, 1)
    assert torch.equal(drawn_labels, interpolate(digits_model, labels, [7, 8], 6, **options))


def test_the_two_paths_take_their_points(digits_model):
    _, drawn = draw_from_seeds([7, 8], digits_model.config, 1)
    a, b = drawn[0].split(1)
    for path, middle in (("linear", a + b), ("spherical", slerp(spherify(a), spherify(b), 0.5))):
        frame = interpolate(digits_model, torch.tensor([4, 4]), [7, 8], 3, path, num_steps=1)[1:2]
        expected = generate(digits_model, torch.tensor([4]), 1, noise=middle)
        assert (frame - expected).abs().max() < 1e-5


def test_the_corners_of_a_grid_are_the_images_of_its_seeds(digits_model):
    y, seeds = torch.tensor([0, 1, 7, 9]), [1, 2, 3, 4]
    for num_steps in (1, 4):
        grid = interpolate(digits_model, y, seeds, 5, num_steps=num_steps).view(5, 5, 3, 8, 8)
        _, drawn = draw_from_seeds([1] * 4, digits_model.config, 2)
        expected = generate(digits_model, y, num_steps, seeds=seeds, step_noise=drawn[1:])
        corners = torch.stack([grid[0, 0], grid[0, -1], grid[-1, 0], grid[-1, -1]])
        assert (corners - expected).abs().max() < 1e-5
    one_step = interpolate(digits_model, y, seeds, 5, num_steps=1)[[0, 4, 20, 24]]
    assert (one_step - generate(digits_model, y, 1, seeds=seeds)).abs().max() < 1e-5
    edge = interpolate(digits_model, y[:2], seeds[:2], 5, "linear", num_steps=4)
    assert (
        interpolate(digits_model, y, seeds, 5)[:5] - edge
    ).abs().max() < 1e-5  # bilinear: edges are linear paths


def test_what_one_task_gives_the_others_take(digits_model, real_digits):
    """All pictures are in [0, 1]; what is not is refused."""
    real = (real_digits[0][:50] + 1) / 2
    drawn = generate(digits_model, real_digits[1][:50], seeds=range(50))
    for images in (real, drawn):
        assert psnr(reconstruct(digits_model, images), images).mean() > 20
    crossed = crossover(digits_model, drawn[:2], real[:2], seeds=[0, 1])
    assert reconstruct(digits_model, crossed).shape == (2, 3, 8, 8)
    bytes_of = (real * 255).byte()
    for wrong in (2 * real - 1, 255 * real, bytes_of, bytes_of * 0, real * float("nan")):
        for task in (reconstruct, manipulate, lambda m, x: crossover(m, x, x)):
            with pytest.raises(UserError, match=r"images are floats in \[0, 1\] here; convert"):
                task(digits_model, wrong)


def test_classes_by_number_by_name_one_or_many(digits_model):
    seeds = [4, 5, 6]
    expected = generate(digits_model, torch.tensor([3, 5, 8]), 2, seeds=seeds)
    for y in ([3, 5, 8], ["3", 5, "8"], (3, 5, 8)):
        assert torch.equal(generate(digits_model, y, 2, seeds=seeds), expected)
    for y in (3, "3", [3]):
        assert torch.allclose(generate(digits_model, y, 2, seeds=[4]), expected[:1], atol=1e-5)
    path = interpolate(digits_model, [3, 5], seeds[:2], frames=3)
    assert torch.equal(path, interpolate(digits_model, torch.tensor([3, 5]), seeds[:2], frames=3))
    edited = manipulate(digits_model, expected[:1], "7", 2, seeds=[1])
    assert torch.equal(edited, manipulate(digits_model, expected[:1], [7], 2, seeds=[1]))
    with pytest.raises(UserError, match="no class 'cat'"):
        generate(digits_model, ["cat"])
    with pytest.raises(UserError, match=r"labels must lie in 0 \.\.\. 9"):
        generate(digits_model, 11)


def test_the_words_of_the_command_line(digits_model, real_digits):
    said = {"noise": "fresh", "schedule": "decay"}
    meant = {"share_noise": False, "decay": True}
    real = (real_digits[0][:2] + 1) / 2
    uses = [
        lambda **words: generate(digits_model, [3, 5], 4, seeds=[1, 2], **words),
        lambda **words: interpolate(digits_model, [3, 5], [1, 2], 3, num_steps=4, **words),
        lambda **words: manipulate(digits_model, real, [3, 5], 4, seeds=[1, 2], **words),
        lambda **words: crossover(digits_model, real[:1], real[1:], num_steps=4, seeds=3, **words),
    ]
    for use in uses:
        assert torch.equal(use(**said), use(**meant))
        assert torch.equal(use(noise="shared", schedule="fixed"), use())
        assert not torch.allclose(use(**said), use(), atol=1e-2)


def test_networks_take_classes_by_name(digits_model, real_digits):
    x = real_digits[0][:3]
    z = digits_model.encode(x, torch.tensor([7, 7, 7]))
    for y in ("7", 7, ["7", 7, "7"]):
        assert torch.allclose(digits_model.encode(x, y), z, atol=1e-5)
    v = spherify(z)
    assert torch.allclose(digits_model.decode(v, "7"), digits_model.decode(v, [7] * 3), atol=1e-5)
    with pytest.raises(UserError, match="no class 'Bag'"):
        digits_model.encode(x, "Bag")


def test_an_unconditional_path():
    model = random_model(num_classes=0)
    assert interpolate(model, seeds=[3, 4], frames=4).shape == (4, 3, 8, 8)


def test_manipulation_of_little_strength_is_encoding_and_decoding(digits_model, real_digits):
    x, y = real_digits[0][:10], real_digits[1][:10]
    with torch.no_grad():
        once = digits_model.decode(spherify(digits_model.encode(x, y)), y)
        twice = digits_model.decode(spherify(digits_model.encode(once, y)), y)
    for num_steps, limit in ((1, once), (2, twice)):
        gaps = [
            (
                manipulate(digits_model, (x + 1) / 2, y, num_steps, strength, seeds=range(10))
                - (limit + 1) / 2
            )
            .abs()
            .max()
            for strength in (1e-1, 1e-2, 1e-3, 1e-4)
        ]
        assert sorted(gaps, reverse=True) == gaps and gaps[-1] < 2e-3


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_manipulation_at_full_strength_is_the_loop_of_generation(digits_model, share, guidance):
    y, seeds = torch.arange(6), range(20, 26)
    options = {"guidance": guidance, "share_noise": share, "seeds": seeds}
    steps = generate(digits_model, y, 5, every_step=True, **options)
    again = manipulate(digits_model, steps[0], y, 4, every_step=True, **options)
    assert (again - steps[1:]).abs().max() < 1e-4
    noise = torch.randn(
        4, 6, *digits_model.config.latent_shape, generator=torch.Generator().manual_seed(3)
    )
    options |= {"step_noise": noise, "decay": True}
    decayed = generate(digits_model, y, 5, every_step=True, **options)
    again = manipulate(digits_model, decayed[0], y, 4, every_step=True, **options)
    assert (again - decayed[1:]).abs().max() < 1e-4 and not torch.allclose(decayed, steps)


def test_manipulation_goes_to_the_class_and_the_null_class_is_the_default(
    digits_model, real_digits
):
    x = (real_digits[0][:50] + 1) / 2
    y = (real_digits[1][:50] + 1) % 10
    judge, _ = digits_judge()
    moved = manipulate(digits_model, x, y, seeds=range(50))
    assert (judge.predict(moved.mean(1).flatten(1).double().numpy()) == y.numpy()).mean() > 0.9
    null = torch.full((50,), 10)
    plain = manipulate(digits_model, x, seeds=range(50))
    assert torch.allclose(plain, manipulate(digits_model, x, null, seeds=range(50)), atol=1e-6)


def test_stitches():
    a, b = torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    for how, rows in {
        "vertical": ["1111", "1111", "0000", "0000"],
        "horizontal": ["1100", "1100", "1100", "1100"],
        "backward": ["1111", "0111", "0011", "0001"],
        "forward": ["1111", "1110", "1100", "1000"],
    }.items():
        expected = torch.tensor([[float(pixel) for pixel in row] for row in rows])
        assert torch.equal(stitch(a, b, how), expected.expand(1, 3, 4, 4))
        assert torch.equal(stitch(b, a, how), 1 - stitch(a, b, how))  # swapped


def test_crossover_is_a_weak_manipulation_of_the_stitch_under_the_null_class(
    digits_model, real_digits
):
    a, b = (real_digits[0][:8].view(2, 4, 3, 8, 8) + 1) / 2
    expected = manipulate(digits_model, stitch(a, b, "backward"), None, 10, 0.25, seeds=range(4))
    assert torch.equal(crossover(digits_model, a, b, "backward", seeds=range(4)), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, x: interpolate(model, seeds=[1, 2], frames=1), "frames must be at least 2"),
        (lambda model, x: interpolate(model, seeds=[1, 2, 3]), "a path takes two seeds"),
        (lambda model, x: interpolate(model, seeds=[1, 2], path="straight"), "spherical, linear"),
        (
            lambda model, x: interpolate(model, torch.tensor([1]), seeds=[1, 2]),
            "numbers of images differ",
        ),
        (lambda model, x: interpolate(model, torch.tensor([1, 12]), seeds=[1, 2]), "0 ... 9"),
        (lambda model, x: manipulate(model, x, strength=0), "strength must lie above 0"),
        (lambda model, x: manipulate(model, x, strength=1.1), "strength must lie above 0"),
        (lambda model, x: manipulate(model, x, num_steps=0), "num_steps must be at least 1"),
        (lambda model, x: manipulate(model, x, guidance_place="moon"), "latent, pixel, both"),
        (lambda model, x: crossover(model, x, x, "diagonal"), "backward, forward"),
    ],
)
def test_bad_values_of_the_other_tasks(call, message):
    with pytest.raises(UserError, match=message):
        call(random_model(num_classes=10), torch.zeros(2, 3, 8, 8))
