"""Decoding and resizing images with OpenCV, which lets go of the GIL while it works."""

import zlib

import numpy as np


def decode_image(encoded: bytes, num_channels: int) -> np.ndarray:
    """Decodes a PNG or JPEG to uint8 of shape `(height, width, num_channels)`, RGB.

    An orientation noted in the file is ignored, as TensorFlow's decoder does. Raises a ValueError
    where the bytes aren't an image of that many channels.
    """
    import cv2

    flag = {
        1: cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
        3: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
        4: cv2.IMREAD_UNCHANGED,
    }[num_channels]
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    except cv2.error as error:
        raise ValueError("not an image") from error
    if image is None:
        raise ValueError("not an image")
    if num_channels == 4:
        if image.ndim != 3 or image.shape[-1] != 4 or image.dtype != np.uint8:
            raise ValueError("not an 8-bit image of 4 channels")
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
    return image.reshape(*image.shape[:2], num_channels)


def decode_picture(encoded: bytes, num_channels: int | None = None) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP or BMP as people see it: uint8, `(height, width, channels)`, RGB.

    It is turned as the file notes (EXIF). Of 16 bits the upper eight are taken, of transparency
    nothing. Grey is one channel; `num_channels` of 1 or 3 asks for as many. Raises a ValueError
    where the bytes are no such image, or not the whole of one.
    """
    import cv2

    _check_whole(encoded)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it is said here
    flag = {
        None: cv2.IMREAD_ANYCOLOR,
        1: cv2.IMREAD_GRAYSCALE,
        3: cv2.IMREAD_COLOR_RGB,
    }[num_channels]
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    except cv2.error:
        image = None
    if image is None or image.dtype != np.uint8 or not image.size:
        raise ValueError("damaged")
    if num_channels is None and image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image.reshape(*image.shape[:2], -1)


def read_picture(
    file: str, image_shape: tuple[int, int, int], image_size: int | None
) -> np.ndarray:
    """Reads an image as a run's own were: uint8 of `image_shape`, brought to `image_size` if given.

    Raises an OSError where the file can't be read, a ValueError where it is no such image.
    """
    with open(file, "rb") as content:
        encoded = content.read()
    if image_shape[-1] not in (1, 3):
        raise ValueError(f"the run's images have {image_shape[-1]} channels, and files 1 or 3")
    image = decode_picture(encoded, image_shape[-1])
    image = image if image_size is None else resize_and_crop(image, image_size)
    if image.shape != tuple(image_shape):
        there, here = ("x".join(map(str, shape[:2])) for shape in (image.shape, image_shape))
        raise ValueError(f"{there} pixels, and the run's images have {here}")
    return image


def _check_whole(encoded: bytes) -> None:
    """Raises a ValueError for what isn't the beginning and, of a PNG, the whole of an image."""
    if not encoded:
        raise ValueError("an empty file")
    is_webp = encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP"
    if not (is_webp or encoded.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"))):
        raise ValueError("neither JPEG, PNG, WebP nor BMP")
    if encoded[:4] != b"\x89PNG":
        return
    # What libpng finds wrong it prints too.
    place = 8
    while True:
        length = int.from_bytes(encoded[place : place + 4])
        end = place + 12 + length
        if end > len(encoded):
            raise ValueError("cut off")
        content = memoryview(encoded)[place + 4 : end - 4]
        if zlib.crc32(content) != int.from_bytes(encoded[end - 4 : end]):
            raise ValueError("damaged")
        if content[:4] == b"IEND":
            return
        place = end


def resize_and_crop(image: np.ndarray, image_size: int) -> np.ndarray:
    """Scales a uint8 image until its shorter side is `image_size`, then takes the central square.

    >>> resize_and_crop(np.zeros((40, 100, 1), np.uint8), 20).shape
    (20, 20, 1)
    """
    import cv2

    height, width, channels = image.shape
    shorter = min(height, width)
    if shorter != image_size:
        size = [max(image_size, round(side * image_size / shorter)) for side in (width, height)]
        # Averaging over areas doesn't alias when an image shrinks.
        method = cv2.INTER_AREA if image_size < shorter else cv2.INTER_LINEAR
        image = cv2.resize(image, size, interpolation=method).reshape(*size[::-1], channels)
    top, left = (image.shape[0] - image_size) // 2, (image.shape[1] - image_size) // 2
    return image[top : top + image_size, left : left + image_size]
