"""Folders of images written by Pillow, and what it reads of them: another decoder than ours."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

COLOURS = {"cats": 0, "dogs": 1, "eels": 2}


def picture(seed, size=(6, 5), channels=3):
    """Random pixels of `(height, width)`, grey or RGB, without loss to be written as PNG."""
    shape = size if channels == 1 else (*size, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_pillow_sees(content, mode="RGB"):
    """The pixels by Pillow, turned as the file notes."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert(mode)
    pixels = np.asarray(image)
    return pixels[..., None] if mode == "L" else pixels


@pytest.fixture(autouse=True)
def user_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adabatch_jax"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """`./photos` with 10 images in each of three classes."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    for name, number in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for n in range(10):
            (folder / name / f"{n}.png").write_bytes(encoded(picture(100 * number + n)))
    return folder
