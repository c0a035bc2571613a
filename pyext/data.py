"""Data sets as tensors, and the batches cut from them.

Two sources of handwritten digits with one layout, images uint8 [N, 28, 28] and labels int64 [N]:

- MNIST, read from the original IDX files (gzip or not) of a folder;
- ``digits``, scikit-learn's 1,797 real 8x8 digits brought to 28x28: no file and no network is needed.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["MNIST_FILES", "Batches", "Splits", "load_digits", "load_images", "load_mnist", "normalise", "read_idx"]

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


@dataclass(frozen=True)
class Splits:
    """A data set cut in two. Each part is a tuple of tensors with the same first dimension N: inputs…, target."""

    name: str
    source: str  #: where it came from, for the record
    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    transform: Callable[[Tensor], Tensor] | None = None  #: applied to the inputs of each batch


def normalise(images: Tensor) -> Tensor:
    """Pixels uint8 [N, 28, 28] to what the models take: float32 [N, 1, 28, 28], ``(x / 255 - 0.1307) / 0.3081``."""
    return images.unsqueeze(1).float().div_(255).sub_(MEAN).div_(STD)


def read_idx(path: str | os.PathLike[str], ndim: int) -> Tensor:
    """Read an IDX file of unsigned bytes, gzip or not (told by its first bytes, not by its name).

    The format: two zero bytes, the type (0x08: unsigned byte), the number of dimensions, each dimension as a big-endian
    uint32, then the values in row-major order.

    Returns a uint8 tensor with ``ndim`` dimensions. Raises FileNotFoundError where there is no such file, and
    ValueError naming file, field, expectation and finding where its content is not what the header says.
    """
    path = Path(path)
    raw = _read_bytes(path)
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


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an IDX file, found {'a folder' if path.is_dir() else 'nothing'}")
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except EOFError as error:
        raise ValueError(f"{path}: gzip stream: expected an end-of-stream mark, got a truncated file") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: gzip stream: expected intact data, got damaged data ({error})") from error


def load_mnist(folder: str | os.PathLike[str]) -> Splits:
    """Read MNIST from ``folder``, which holds ``mnist/`` or the four IDX files themselves.

    Raises FileNotFoundError for a missing folder or file, ValueError for a file whose content is not MNIST's.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder with the MNIST files, found {_kind(root)}")
    if (root / "mnist").is_dir():
        root = root / "mnist"
    train, test = (_read_part(root, part) for part in ("train", "test"))
    return Splits("MNIST", str(root), train, test, normalise)


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "nothing"


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
    return Splits("digits", "scikit-learn", parts[0], parts[1], normalise)


def load_images(source: str | os.PathLike[str] | None = None) -> Splits:
    """``digits`` (also for None), or MNIST from the folder that ``source`` names."""
    if source is None or source == "digits":
        return load_digits()
    return load_mnist(source)


class Batches:
    """The batches of a tuple of tensors; every iteration after :meth:`set_epoch` gives the same ones again.

    The order of an epoch depends on ``(seed, epoch)`` alone, so that an interrupted run can continue at any epoch and
    two models see equal batches. The last batch of an epoch may be smaller.

    Args:
        tensors: inputs…, target, each [N, …].
        batch_size: samples in a batch.
        shuffle: draw a new order each epoch; otherwise the order of the tensors.
        seed: of the orders.
        transform: applied to the inputs of a batch (the target is left alone).

    Iterating gives tuples of tensors [batch, …].
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        counts = {len(tensor) for tensor in tensors}
        if len(counts) != 1:
            raise ValueError(f"tensors: expected equal first dimensions, got {[len(tensor) for tensor in tensors]}")
        self.tensors = tuple(tensors)
        self.samples = counts.pop()
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.transform = transform
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch's order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = self._order()
        for start in range(0, self.samples, self.batch_size):
            stop = min(start + self.batch_size, self.samples)
            chosen = slice(start, stop) if order is None else order[start:stop]
            *inputs, target = (tensor[chosen] for tensor in self.tensors)
            if self.transform is not None:
                inputs = [self.transform(value) for value in inputs]
            yield (*inputs, target)

    def _order(self) -> Tensor | None:
        if not self.shuffle:
            return None
        # SeedSequence mixes the pair: plain seed + epoch would give seed 1 the orders of seed 0, one epoch late.
        mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
        return torch.randperm(self.samples, generator=generator)
