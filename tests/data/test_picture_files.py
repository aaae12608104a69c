"""Files of images as people have them: the pixels that are read of each kind."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from sphere_mini import UserError
from sphere_mini.data.picture_files import fit_square, open_picture, square_pixels, to_rgb

RAMP = np.tile(np.linspace(0, 255, 8).round().astype(np.uint8), (2, 1))  # (2, 8)


def sixteen(mode, order):
    return Image.frombytes(mode, (8, 2), (RAMP.astype(np.uint16) * 257).astype(order).tobytes())


GREY = Image.fromarray(RAMP)
PICTURES = {
    "L": GREY,
    "I;16": sixteen("I;16", "<u2"),
    "I;16L": sixteen("I;16L", "<u2"),
    "I;16B": sixteen("I;16B", ">u2"),
    "I;16N": sixteen("I;16N", "=u2"),
    "F": Image.fromarray((RAMP / 255).astype(np.float32)),
    "LA": GREY.convert("LA"),
    "PA": GREY.convert("P").convert("PA"),
    "RGBA": GREY.convert("RGBA"),
    "RGBa": GREY.convert("RGBA").convert("RGBa"),
    "RGBX": GREY.convert("RGBX"),
    "CMYK": GREY.convert("CMYK"),
    "YCbCr": GREY.convert("YCbCr"),
    "HSV": GREY.convert("RGB").convert("HSV"),
}


@pytest.mark.parametrize("mode", PICTURES)
def test_a_ramp_is_a_ramp_in_every_mode(mode):
    picture = PICTURES[mode]
    assert picture.mode == mode
    pixels = np.asarray(to_rgb(picture))
    assert pixels.shape == (2, 8, 3)
    assert np.abs(pixels.astype(int) - RAMP[..., None]).max() <= 1


def test_what_is_transparent_becomes_white():
    for mode in ("LA", "RGBA"):
        full = GREY.convert(mode)
        full.putalpha(0)
        assert np.asarray(to_rgb(full)).min() == 255


@pytest.mark.parametrize("suffix", ["pgm", "png", "tif"])
def test_sixteen_bits_on_the_disk(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        numbers = (RAMP.astype(np.uint16) * 257).astype(">u2")
        path.write_bytes(b"P5\n8 2\n65535\n" + numbers.tobytes())
    else:
        sixteen("I;16", "<u2").save(path)
    assert (np.asarray(open_picture(path))[..., 0] == RAMP).all()


def test_floats_on_the_disk(tmp_path):
    grey = (RAMP / 255).astype("<f4")
    (tmp_path / "a.pfm").write_bytes(b"Pf\n8 2\n-1.0\n" + grey.tobytes())
    Image.fromarray(grey).save(tmp_path / "a.tif")
    for name in ("a.pfm", "a.tif"):
        assert (np.asarray(open_picture(tmp_path / name))[..., 0] == RAMP).all()


def write_tiff(path, bits, photometric, pixels, sample_format=1, order="<"):
    """A grey, uncompressed TIFF of 8 by 2 pixels, which Pillow would not write."""
    values = {256: 8, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 2}
    values |= {279: len(pixels), 339: sample_format}
    entries = struct.pack(f"{order}H", len(values))
    for tag, value in values.items():
        entries += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    head = b"II*\0" if order == "<" else b"MM\0*"
    head += struct.pack(f"{order}I", 8 + len(pixels))
    path.write_bytes(head + pixels + entries + bytes(4))


def twelve_bits(row):
    """Numbers up to 255 as 12 bits each, two in three bytes."""
    numbers = [int(number) * 4095 // 255 for number in row]
    digits = "".join(f"{number:03x}" for number in numbers)
    return bytes.fromhex(digits)


WIDE = RAMP.astype(np.uint16) * 257
BLACK_IS_ZERO = 1
TIFFS = {  # bits, photometric, pixels, sample format
    "white is zero, 8 bits": (8, 0, (255 - RAMP).tobytes(), 1),
    "white is zero, 16 bits": (16, 0, (65535 - WIDE).astype("<u2").tobytes(), 1),
    "white is zero, floats": (32, 0, (1 - RAMP / 255).astype("<f4").tobytes(), 3),
    "12 bits": (12, BLACK_IS_ZERO, twelve_bits(RAMP.flatten()), 1),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_a_ramp_is_a_ramp_in_every_tiff(kind, tmp_path):
    write_tiff(tmp_path / "a.tif", *TIFFS[kind])
    assert (np.asarray(open_picture(tmp_path / "a.tif"))[..., 0] == RAMP).all()


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("order", "<>")
def test_signed_numbers_are_refused(bits, order, tmp_path):
    pixels = RAMP.astype(f"{order}i{bits // 8}").tobytes()
    write_tiff(tmp_path / "a.tif", bits, BLACK_IS_ZERO, pixels, sample_format=2, order=order)
    with pytest.raises(UserError, match="nothing says which of its 32-bit or signed numbers"):
        open_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_known_range_are_refused_in_a_sentence(kind, tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(RAMP.astype(kind)).save(path)  # 0 ... 255, or who knows
    with pytest.raises(UserError, match="is white; save it with 8 or 16 bits"):
        open_picture(path)


def test_broken_exif_in_a_whole_picture(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (6, 4), "red").save(path)
    whole = path.read_bytes()
    notes = b"\0\x08\0\2\1\x12\0\3\0\0\0\1"
    chunk = b"eXIf" + notes
    size = struct.pack(">I", len(notes))
    path.write_bytes(whole[:33] + size + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:])
    picture = open_picture(path)
    assert picture.size == (6, 4) and picture.getpixel((0, 0)) == (255, 0, 0)


CORNERS = (np.arange(24).reshape(4, 6) * 10).astype(np.uint8)  # (4, 6), all different
UPRIGHT = {  # by EXIF orientation
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.T,
    6: np.rot90(CORNERS, -1),
    7: CORNERS[::-1, ::-1].T,
    8: np.rot90(CORNERS),
}
KINDS = {
    "uncompressed.tif": {},
    "packed.tif": dict(compression="tiff_lzw"),
    "a.png": {},
    "a.webp": dict(lossless=True),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_whole_exif_turns_the_picture(orientation, name, tmp_path):
    picture = Image.fromarray(CORNERS).convert("RGB")
    notes = picture.getexif()
    notes[0x0112] = orientation
    picture.save(tmp_path / name, exif=notes, **KINDS[name])
    pixels = np.asarray(open_picture(tmp_path / name))
    assert np.array_equal(pixels[..., 0], UPRIGHT[orientation])


def test_a_thin_picture_costs_no_memory(monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *a: sizes.append(a[1]) or resize(*a))
    thin = Image.new("RGB", (6000, 1))
    thin.paste("red", (2990, 0, 3010, 1))  # its middle
    square = fit_square(thin, 256)
    assert square.size == (256, 256)
    assert np.asarray(square)[..., 0].min() == 255
    assert max(width * height for width, height in sizes) <= 33 * 256**2


@pytest.mark.parametrize("size", [(101, 20), (20, 103), (90, 21), (701, 20), (20, 803)])
def test_the_middle_of_a_thin_picture_is_its_middle(size):
    """As without cropping first."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    scale = 64 / min(size)
    whole = picture.resize([max(64, round(side * scale)) for side in size], Image.NEAREST)
    left, top = [(side - 64) // 2 for side in whole.size]
    expected = np.asarray(whole.crop((left, top, left + 64, top + 64)))
    found = np.asarray(fit_square(picture, 64))
    same = (found == expected).mean()
    assert same == 1 if max(size) < 32 * min(size) else same > 0.8  # rounding of the sides


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(UserError, match="is no file; name a picture, or several as"):
        open_picture(tmp_path)


def saved_ramp(folder, mode):
    """A ramp from black to nearly white, left to right, (16, 16), and its file in a mode."""
    ramp = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))
    path = folder / "image.png"
    if mode == "CMYK":
        path = folder / "image.tiff"
    if mode == "I;16":
        picture = Image.fromarray(ramp.astype(np.uint16) * 256)
    else:
        picture = Image.fromarray(ramp).convert("RGB").convert(mode)
    picture.save(path)
    return ramp, path


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK"])
def test_any_image_mode_becomes_rgb(tmp_path, mode):
    ramp, path = saved_ramp(tmp_path, mode)
    image = square_pixels(open_picture(path), 16)
    assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
    if mode in ("1", "P"):  # dithered
        assert image[:, :, :4].float().mean() < 60 < 200 < image[:, :, -4:].float().mean()
    else:
        assert (image.int() - torch.from_numpy(ramp).int()).abs().max() <= 4


def test_a_transparent_pixel_of_a_file_becomes_white(tmp_path):
    picture = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    picture.putpixel((0, 0), (200, 0, 0, 0))
    picture.save(tmp_path / "image.png")
    image = square_pixels(open_picture(tmp_path / "image.png"), 4)
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert image[:, 1, 1].tolist() == [10, 20, 30]


def test_fit_square_crops_the_centre_without_needless_resampling():
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    assert (np.array(fit_square(Image.fromarray(wide), 4)) == 200).all()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert (np.array(fit_square(Image.fromarray(noise), 32)) == noise).all()


def test_large_pictures_get_the_centre_crop_of_adm(photos):
    picture = Image.fromarray(np.concatenate(photos, axis=1)[:, :1031])  # 427 high
    halved = picture.resize((515, 213), Image.Resampling.BOX)
    expected = halved.resize((round(515 * 128 / 213), 128), Image.Resampling.BICUBIC)
    left = (expected.width - 128) // 2
    expected = np.array(expected.crop((left, 0, left + 128, 128)))
    assert (np.array(fit_square(picture, 128)) == expected).all()


@pytest.mark.parametrize("size", [(7, 300), (300, 7), (64, 65), (513, 512), (1, 1)])
@pytest.mark.parametrize("wanted", [8, 32, 100])
def test_any_picture_fits_any_size(size, wanted):
    assert fit_square(Image.new("RGB", size), wanted).size == (wanted, wanted)
