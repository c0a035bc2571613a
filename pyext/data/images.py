"""Images: handwritten digits from two sources with one layout, and CIFAR-10's colour photographs.

Digits are images uint8 [N, 28, 28] with labels int64 [N]:

- MNIST, read from the original IDX files (gzip or not) of a folder;
- ``digits``, scikit-learn's 1,797 real 8x8 digits brought to 28x28: no file and no network is needed.

CIFAR-10, read from its binary files: images uint8 [N, 3, 32, 32].
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .files import kind, read_bytes
from .splits import Splits

__all__ = [
    "CIFAR_FILES",
    "MNIST_FILES",
    "load_cifar10",
    "load_digits",
    "load_images",
    "load_mnist",
    "load_photographs",
    "normalise",
    "normalise_photographs",
    "read_idx",
]

#: Names of the original distribution: (part, kind) -> file name; ``.gz`` may follow.
MNIST_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
SIDE = 28
CLASSES = 10
# Mean and standard deviation of the MNIST training pixels scaled to [0, 1], as the course has them.
MEAN, STD = 0.1307, 0.3081
DIGIT_FACTS = {"channels": 1, "side": SIDE, "classes": [str(digit) for digit in range(CLASSES)]}

#: Names of CIFAR-10's binary distribution, by part.
CIFAR_FILES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
CIFAR_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR_SHAPE = (3, 32, 32)


def normalise(images: Tensor) -> Tensor:
    """Pixels uint8 [N, 28, 28] to what the models take: float32 [N, 1, 28, 28], ``(x / 255 - 0.1307) / 0.3081``."""
    return images.unsqueeze(1).float().div_(255).sub_(MEAN).div_(STD)


def normalise_photographs(images: Tensor) -> Tensor:
    """Pixels uint8 [N, 3, 32, 32] to float32 of the same shape, from -1 to 1."""
    return images.float().div_(127.5).sub_(1)


def _batch_of_digits(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return normalise(images), labels


def _batch_of_photographs(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return normalise_photographs(images), labels


def read_idx(path: str | os.PathLike[str], ndim: int) -> Tensor:
    """Read an IDX file of unsigned bytes, gzip or not (told by its first bytes, not by its name).

    The format: two zero bytes, the type (0x08: unsigned byte), the number of dimensions, each dimension as a big-endian
    uint32, then the values in row-major order.

    Returns a uint8 tensor with ``ndim`` dimensions. Raises FileNotFoundError where there is no such file, and
    ValueError naming file, field, expectation and finding where its content is not what the header says.
    """
    path = Path(path)
    raw = read_bytes(path, "an IDX file")
    magic = 0x0800 | ndim
    found = int.from_bytes(raw[:4], "big")
    if len(raw) >= 4 and found != magic:
        raise ValueError(
            f"{path}: magic number: expected 0x{magic:08x} (unsigned bytes, {ndim} dimension{'s' * (ndim > 1)}), "
            f"got 0x{found:08x}"
        )
    header = 4 + 4 * ndim
    if len(raw) < header:
        raise ValueError(f"{path}: header: expected {header} bytes, got {len(raw)}")
    shape = tuple(int(n) for n in np.frombuffer(raw, dtype=">u4", count=ndim, offset=4))
    expected = 1
    for n in shape:
        expected *= n  # Python integers: a damaged header must not overflow
    if len(raw) - header != expected:
        sizes = " x ".join(map(str, shape))
        raise ValueError(f"{path}: data: expected {expected} bytes for {sizes} by the header, got {len(raw) - header}")
    values = np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)
    return torch.from_numpy(values.copy())


def load_mnist(folder: str | os.PathLike[str]) -> Splits:
    """Read MNIST from ``folder``, which holds ``mnist/`` or the four IDX files themselves.

    Raises FileNotFoundError for a missing folder or file, ValueError for a file whose content is not MNIST's.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder with the MNIST files, found {kind(root)}")
    if (root / "mnist").is_dir():
        root = root / "mnist"
    train, test = (_read_part(root, part) for part in ("train", "test"))
    return Splits("MNIST", str(root), train, test, _batch_of_digits, DIGIT_FACTS)


def _find(folder: Path, name: str) -> Path:
    # Some mirrors write "train-images.idx3-ubyte".
    spellings = [name, name.replace("-idx", ".idx")]
    for candidate in (folder / (spelling + end) for spelling in spellings for end in ("", ".gz")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{folder}: expected {name} or {name}.gz (in it or in its folder mnist/), found neither")


def _read_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    image_path, label_path = (_find(folder, MNIST_FILES[part, kind]) for kind in ("images", "labels"))
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if images.shape[0] == 0:
        raise ValueError(f"{image_path}: number of images: expected at least 1, got 0")
    if images.shape[1:] != (SIDE, SIDE):
        rows, columns = images.shape[1:]
        raise ValueError(f"{image_path}: image size: expected {SIDE} x {SIDE}, got {rows} x {columns}")
    if labels.shape[0] != images.shape[0]:
        raise ValueError(
            f"{label_path}: number of labels: expected {images.shape[0]} (the images of {image_path.name}), "
            f"got {labels.shape[0]}"
        )
    wrong = (labels >= CLASSES).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"{label_path}: label {row}: expected 0 to {CLASSES - 1}, got {int(labels[row])}")
    return images, labels.long()


def load_digits() -> Splits:
    """Scikit-learn's handwritten digits in MNIST's layout: 1,437 to train on, 360 to test, the same ones each time.

    The 8x8 images (0 to 16) are enlarged bilinearly to 20x20 and centred in 28x28, as MNIST's digits are, and scaled to
    0 to 255. Raises ImportError naming what to install where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits as sklearn_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "the data set 'digits' comes with scikit-learn, which is not installed: pip install 'torchsmith[course]'"
        ) from error
    small, labels = sklearn_digits(return_X_y=True)
    indices = np.arange(len(labels))
    train, test = train_test_split(indices, test_size=0.2, stratify=labels, random_state=0)
    images = torch.from_numpy(small).float().reshape(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(images, size=(20, 20), mode="bilinear", align_corners=False)
    images = F.pad(images, (4, 4, 4, 4)).squeeze(1).round().to(torch.uint8)
    target = torch.from_numpy(labels).long()
    parts = [(images[part], target[part]) for part in (torch.from_numpy(train), torch.from_numpy(test))]
    return Splits("digits", "scikit-learn", parts[0], parts[1], _batch_of_digits, DIGIT_FACTS)


def load_images(source: str | os.PathLike[str] | None = None) -> Splits:
    """``digits`` (also for None), or MNIST from the folder that ``source`` names."""
    if source is None or source == "digits":
        return load_digits()
    return load_mnist(source)


def load_cifar10(folder: str | os.PathLike[str]) -> Splits:
    """Read CIFAR-10 from ``folder``, which holds its binary files (``data_batch_1.bin`` ...) or ``cifar-10-batches-bin/``.

    A file is records of 3,073 bytes: a label 0 to 9, then the red, green and blue pixels of a 32x32 image, rows first.
    Raises FileNotFoundError for a missing folder or file, ValueError for a file of another content.
    """
    root = _cifar_folder(Path(folder))
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder with CIFAR-10's binary files, found {kind(root)}")
    parts = []
    for names in CIFAR_FILES.values():
        images, labels = zip(*(_read_cifar(root / name) for name in names), strict=True)
        parts.append((torch.cat(images), torch.cat(labels)))
    channels, side, _ = CIFAR_SHAPE
    facts = {"channels": channels, "side": side, "classes": CIFAR_CLASSES}
    return Splits("CIFAR-10", str(root), parts[0], parts[1], _batch_of_photographs, facts)


def _cifar_folder(folder: Path) -> Path:
    inner = folder / "cifar-10-batches-bin"
    return inner if inner.is_dir() else folder


def _read_cifar(path: Path) -> tuple[Tensor, Tensor]:
    raw = read_bytes(path, "a CIFAR-10 file")
    record = 1 + CIFAR_SHAPE[0] * CIFAR_SHAPE[1] * CIFAR_SHAPE[2]
    if not raw or len(raw) % record:
        raise ValueError(f"{path}: size: expected a multiple of {record} bytes, at least one, got {len(raw)}")
    records = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).reshape(-1, record).copy())
    labels = records[:, 0].long()
    wrong = (labels >= CLASSES).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"{path}: label {row}: expected 0 to {CLASSES - 1}, got {int(labels[row])}")
    return records[:, 1:].reshape(-1, *CIFAR_SHAPE), labels


def load_photographs(source: str | os.PathLike[str] | None = None) -> Splits:
    """:func:`load_images`, and CIFAR-10 where ``source`` is a folder with its binary files."""
    if source is not None and source != "digits":
        root = _cifar_folder(Path(source))
        if any((root / name).exists() for names in CIFAR_FILES.values() for name in names):
            return load_cifar10(root)
    return load_images(source)
