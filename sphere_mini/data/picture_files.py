"""Files of images as people have them, read as square RGB pixels."""

import io
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION
from torch import Tensor

from ..errors import UserError, require

PNG = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def open_picture(path: str | Path, advice: str = "name one that is whole") -> Image.Image:
    """One image file, upright and RGB; `UserError`, with advice, where it cannot be read."""
    try:
        # from memory: by its name Pillow maps a turned TIFF into memory with its sides exchanged
        content = without_notes(Path(path).read_bytes())
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            with suppress(Exception):  # damaged notes make Pillow raise anything
                ImageOps.exif_transpose(picture, in_place=True)
            return to_rgb(picture)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from None
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path} is no file; name a picture, or several as FOLDER/*.png") from None
    except Exception as error:  # a damaged file does so, too
        text = str(error).partition(" <_io.")[0]  # Pillow shows the file as an object
        reason = getattr(error, "strerror", None) or text
        raise UserError(f"{path} cannot be read as an image ({reason}); {advice}") from error


def without_notes(content: bytes, also: bytes = b"eXIf") -> bytes:
    """A PNG's bytes without notes, which Pillow would unpack or refuse, but for whole `also`."""
    if not content.startswith(PNG):
        return content
    kept = [PNG]
    place = len(PNG)
    while place < len(content):
        length = int.from_bytes(content[place : place + 4])
        chunk = content[place : place + length + 12]  # length, kind, data and checksum
        is_whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        if chunk[4:8] in PIXEL_CHUNKS or (chunk[4:8] == also and is_whole):
            kept.append(chunk)
        place += len(chunk)
    return b"".join(kept)


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture as RGB, on white where it is transparent; `UserError` for an unknown range."""
    if picture.mode[0] in "FI":
        picture = Image.fromarray(grey_bytes(picture))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("RGB")


def grey_bytes(picture: Image.Image) -> np.ndarray:
    """Grey of 12 or 16 bits, or floats in [0, 1], as uint8 (H, W); else `UserError`."""
    numbers = np.asarray(picture)
    tags = getattr(picture, "tag_v2", {})  # a TIFF's
    # Pillow reads 16-bit PGM files into 32 bits, and scales them to 16
    is_wide = picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PPM")
    is_unit = picture.mode == "F" and numbers.min() >= 0 and numbers.max() <= 1  # NaN is neither
    problem = "nothing says which of its 32-bit or signed numbers is white"
    require(is_wide or is_unit, f"{problem}; save it with 8 or 16 bits, unsigned")
    if is_unit:
        grey = (numbers * 255).round().astype(np.uint8)
    else:
        (bits,) = tags.get(BITSPERSAMPLE, (16,))
        grey = (numbers >> (bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # Pillow turns only 8 bits and less
        grey = 255 - grey
    return grey


def square_pixels(picture: Image.Image, size: int) -> Tensor:
    """A picture of any size and mode as uint8 (3, size, size), RGB, cropped by `fit_square`."""
    pixels = torch.from_numpy(np.array(fit_square(to_rgb(picture), size)))  # (size, size, 3)
    return pixels.permute(2, 0, 1).contiguous()


def fit_square(picture: Image.Image, size: int) -> Image.Image:
    """The centre crop of size by size pixels, as in ADM; nearest instead of bicubic up to 64."""
    if min(picture.size) < size:
        kept = [min(side, 32 * min(picture.size)) for side in picture.size]  # no endless strip
        # with as many pixels on both sides cut off, the middle stays where it is
        kept = [few + (side - few) % 2 for side, few in zip(picture.size, kept, strict=True)]
        picture = crop_middle(picture, kept)
    while min(picture.size) >= 2 * size:
        picture = picture.resize([side // 2 for side in picture.size], Image.Resampling.BOX)
    scale = size / min(picture.size)
    if scale != 1:
        resample = Image.Resampling.NEAREST if size <= 64 else Image.Resampling.BICUBIC
        picture = picture.resize([max(size, round(s * scale)) for s in picture.size], resample)
    return crop_middle(picture, [size, size])


def crop_middle(picture: Image.Image, sides: Sequence[int]) -> Image.Image:
    """The middle of a picture, of this width and height in pixels."""
    left, top = [(side - kept) // 2 for side, kept in zip(picture.size, sides, strict=True)]
    return picture.crop((left, top, left + sides[0], top + sides[1]))
