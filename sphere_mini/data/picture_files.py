"""Files of images as people have them, read as square RGB pixels."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT
from torch import Tensor

from ..errors import UserError, require

LARGEST_NEAREST = 64  # pixels: up to this size pictures are resized without interpolation
THIN = 32  # of pictures longer than so many times their width the ends are cut off first
WHITE_IS_ZERO = 0  # of a TIFF's PHOTOMETRIC_INTERPRETATION
SIGNED = 2  # of a TIFF's SAMPLEFORMAT
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}  # modes whose colours are multiplied by their opacity


def open_picture(path: str | Path, advice: str = "mend or remove it") -> Image.Image:
    """One image file, upright and RGB as by `to_rgb`; `UserError` where it cannot be read.

    advice: what to do then.
    """
    try:
        # as a file: by its name Pillow maps a turned TIFF into memory with its sides exchanged
        with open(path, "rb") as file, Image.open(file) as picture:
            turn_upright(picture)
            return to_rgb(picture)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the pictures in it, as {path}/*.jpg") from None
    except FileNotFoundError:
        problem = f"there is no file {path}, or it is a link that leads nowhere"
        raise UserError(f"{problem}; check its name") from None
    except UnidentifiedImageError:  # its message shows the file as an object
        problem = f"{path} cannot be read as an image (its kind is not known)"
        raise UserError(f"{problem}; {advice}") from None
    except Exception as error:  # a damaged file makes Pillow raise anything
        problem = f"{path} cannot be read as an image ({error})"
        raise UserError(f"{problem}; {advice}") from error


def turn_upright(picture: Image.Image) -> None:
    """Turn a picture as its EXIF notes say, in place; not at all where these notes are damaged."""
    picture.load()  # damaged pixels are an error all the same
    with suppress(Exception):  # of damaged notes Pillow raises anything, too
        ImageOps.exif_transpose(picture, in_place=True)


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any of Pillow's modes as RGB; what is transparent becomes white.

    Grey of 12 or 16 bits is scaled to 8 bits, and so are floats in [0, 1]. `UserError` for numbers
    whose range nothing tells, and for modes that Pillow cannot convert.
    """
    if picture.mode in PREMULTIPLIED:
        picture = picture.convert(PREMULTIPLIED[picture.mode])
    require_range(picture)
    if picture.mode == "F" or is_wide(picture):
        picture = Image.fromarray(eight_bits(picture))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, with_narrow_key(picture).convert("RGBA"))
    return picture.convert("RGB")


def is_wide(picture: Image.Image) -> bool:
    """Whether it holds unsigned grey of 12 or 16 bits."""
    # Pillow reads 16-bit PGM files into 32 bits, and scales them to 16
    return picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM")


def tiff_tags(picture: Image.Image) -> Mapping[int, Any]:
    """What a TIFF says of its pixels; nothing of other pictures."""
    return getattr(picture, "tag_v2", {})


def require_range(picture: Image.Image) -> None:
    """`UserError` where nothing says which of a picture's numbers is white."""
    kind = ""
    if SIGNED in tiff_tags(picture).get(SAMPLEFORMAT, ()):
        bits = tiff_tags(picture).get(BITSPERSAMPLE)[0]
        kind = f"signed {bits}-bit numbers"
    elif picture.mode == "I" and not is_wide(picture):
        kind = "32-bit whole numbers"
    elif picture.mode == "F":
        numbers = np.asarray(picture)
        if not (numbers.min() >= 0 and numbers.max() <= 1):  # NaN is neither
            kind = "floats beyond [0, 1]"
    advice = "save it with 8 or 16 bits, unsigned"
    require(not kind, f"it holds {kind}, and nothing says which is white; {advice}")


def eight_bits(picture: Image.Image) -> np.ndarray:
    """Grey of 12 or 16 bits, or floats in [0, 1], as uint8 (H, W); a PNG's transparent grey is
    white."""
    numbers = np.asarray(picture)
    tags = tiff_tags(picture)
    if picture.mode == "F":
        grey = (numbers * 255).round().astype(np.uint8)
    else:
        (bits,) = tags.get(BITSPERSAMPLE, (16,))
        grey = (numbers >> (bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:  # Pillow turns only 8 bits and less
        grey = 255 - grey
    if "transparency" in picture.info:
        grey[numbers == picture.info["transparency"]] = 255
    return grey


def with_narrow_key(picture: Image.Image) -> Image.Image:
    """With the transparent colour of a 16-bit PNG in 8 bits, as Pillow reads its pixels."""
    colour = picture.info.get("transparency")
    if picture.mode != "RGB" or max(colour) < 256:
        return picture
    picture = picture.copy()
    picture.info["transparency"] = tuple(value >> 8 for value in colour)
    return picture


def square_pixels(picture: Image.Image, size: int) -> Tensor:
    """A picture of any size and mode as uint8 (3, size, size), RGB, cropped by `fit_square`."""
    square = fit_square(to_rgb(picture), size)
    pixels = torch.from_numpy(np.array(square))  # (size, size, 3)
    return pixels.permute(2, 0, 1).contiguous()


def fit_square(picture: Image.Image, size: int) -> Image.Image:
    """The centre crop of size by size pixels, as in ADM.

    Halve (box) while twice too large, then resize the shorter side to `size`: bicubic, but nearest
    up to 64 px. Of a very thin picture the middle alone is enlarged.
    """
    if min(picture.size) < size:
        kept = [min(side, THIN * min(picture.size)) for side in picture.size]
        # with as many pixels on both sides cut off, the middle stays where it is
        kept = [few + (side - few) % 2 for side, few in zip(picture.size, kept, strict=True)]
        picture = crop_middle(picture, kept)
    while min(picture.size) >= 2 * size:
        halves = [side // 2 for side in picture.size]
        picture = picture.resize(halves, Image.Resampling.BOX)
    scale = size / min(picture.size)
    if scale != 1:
        resample = Image.Resampling.BICUBIC
        if size <= LARGEST_NEAREST:
            resample = Image.Resampling.NEAREST
        sides = [max(size, round(side * scale)) for side in picture.size]
        picture = picture.resize(sides, resample)
    return crop_middle(picture, [size, size])


def crop_middle(picture: Image.Image, sides: Sequence[int]) -> Image.Image:
    """The middle of a picture, of this width and height in pixels."""
    left, top = [(side - kept) // 2 for side, kept in zip(picture.size, sides, strict=True)]
    return picture.crop((left, top, left + sides[0], top + sides[1]))
