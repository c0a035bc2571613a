"""The data: IDX files read right or refused with a reason, the embedded digits, and the batches."""

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from torchsmith.data import MNIST_FILES, Batches, load_digits, load_images, load_mnist, normalise, read_idx

# Of the unzipped files of the original distribution.
MD5 = {
    ("train", "images"): "6bbc9ace898e44ae57da46a324031adb",
    ("train", "labels"): "a25bea736e30d166cdddb491f175f624",
    ("test", "images"): "2646ac647ad5339dbf082846283269ea",
    ("test", "labels"): "27ae3e4e09519cfbb04c329615203637",
}


def idx(values, magic=None, shape=None):
    """The bytes of an IDX file; ``magic`` and ``shape`` may lie."""
    values = np.asarray(values, dtype=np.uint8)
    magic = 0x0800 | values.ndim if magic is None else magic
    shape = values.shape if shape is None else shape
    return magic.to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in shape) + values.tobytes()


def some_images(n, side=28):
    return np.random.default_rng(n).integers(0, 256, (n, side, side), dtype=np.uint8)


@pytest.fixture
def mnist(tmp_path):
    """A folder with a small, valid set: 7 images to train on, 3 to test."""
    for part, n in (("train", 7), ("test", 3)):
        (tmp_path / MNIST_FILES[part, "images"]).write_bytes(idx(some_images(n)))
        (tmp_path / MNIST_FILES[part, "labels"]).write_bytes(idx(np.arange(n)))
    return tmp_path


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 28, 28)], ids=str)
def test_idx_comes_back(tmp_path, pack, shape):
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "some-file"
    path.write_bytes(pack(idx(values)))
    read = read_idx(path, values.ndim)
    assert read.dtype == torch.uint8
    assert torch.equal(read, torch.from_numpy(values))


GOOD = idx(some_images(2))
PACKED = gzip.compress(GOOD)
BAD = {
    "empty": (b"", "header: expected 16 bytes, got 0"),
    "short header": (GOOD[:9], "header: expected 16 bytes, got 9"),
    "labels for images": (idx(range(2)), "magic number: expected 0x00000803 .*3 dimensions.*, got 0x00000801"),
    "floats": (idx(some_images(2), magic=0x0D03), "magic number: expected 0x00000803 .*, got 0x00000d03"),
    "web page": (b"<!DOCTYPE html><html>not found", "magic number: expected 0x00000803 .*, got 0x3c21444f"),
    "a byte short": (GOOD[:-1], "data: expected 1568 bytes for 2 x 28 x 28 by the header, got 1567"),
    "a byte long": (GOOD + b"x", "data: expected 1568 bytes for 2 x 28 x 28 by the header, got 1569"),
    "huge header": (
        idx(some_images(2), shape=(2**32 - 1,) * 3),
        "data: expected 79228162458924105385300197375 bytes .*, got 1568",
    ),
    "truncated gzip": (PACKED[:-200], "gzip stream: expected an end-of-stream mark, got a truncated file"),
    "gzip without last byte": (PACKED[:-1], "gzip stream: expected an end-of-stream mark, got a truncated file"),
    "gzip header only": (PACKED[:5], "gzip stream: expected an end-of-stream mark, got a truncated file"),
    "gzip checksum": (PACKED[:-8] + bytes(8), "gzip stream: expected intact data, got damaged data"),
    "gzip mark only": (b"\x1f\x8b" + bytes(40), "gzip stream: expected intact data, got damaged data"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_idx_names_file_field_and_finding(tmp_path, case):
    content, message = BAD[case]
    path = tmp_path / "images-file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"images-file: {message}"):
        read_idx(path, 3)


def test_missing_idx(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: expected an IDX file, found nothing"):
        read_idx(tmp_path / "gone", 3)
    with pytest.raises(FileNotFoundError, match="expected an IDX file, found a folder"):
        read_idx(tmp_path, 3)


@pytest.mark.parametrize("where", [".", "mnist"])
@pytest.mark.parametrize("kind", ["plain", "gzip", "dotted"])
def test_mnist_is_found(mnist, tmp_path_factory, where, kind):
    root = tmp_path_factory.mktemp("root")
    (root / where).mkdir(exist_ok=True)
    for name in MNIST_FILES.values():
        content = (mnist / name).read_bytes()
        if kind == "gzip":
            name, content = f"{name}.gz", gzip.compress(content)
        elif kind == "dotted":
            name = name.replace("-idx", ".idx")
        (root / where / name).write_bytes(content)
    splits = load_images(root)
    assert splits.name == "MNIST"
    assert Path(splits.source) == root / where
    assert torch.equal(splits.train[0], torch.from_numpy(some_images(7)))
    assert torch.equal(splits.test[0], torch.from_numpy(some_images(3)))
    assert splits.train[1].tolist() == list(range(7)) and splits.test[1].tolist() == [0, 1, 2]
    assert splits.train[1].dtype == torch.int64


UNFIT = {
    "labels missing": ("train-labels-idx1-ubyte", idx(range(6)), "number of labels: expected 7 .*images.*, got 6"),
    "label 10": ("t10k-labels-idx1-ubyte", idx([0, 10, 2]), "label 1: expected 0 to 9, got 10"),
    "label 255": ("train-labels-idx1-ubyte", idx([0] * 6 + [255]), "label 6: expected 0 to 9, got 255"),
    "image size": ("t10k-images-idx3-ubyte", idx(some_images(3, 27)), "image size: expected 28 x 28, got 27 x 27"),
    "no images": ("train-images-idx3-ubyte", idx(some_images(0)), "number of images: expected at least 1, got 0"),
    "labels as images": ("train-images-idx3-ubyte", idx(range(7)), "magic number: expected 0x00000803 .*, got"),
    "images as labels": ("train-labels-idx1-ubyte", GOOD, "magic number: expected 0x00000801 .*1 dimension\\), got"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_files_that_do_not_fit(mnist, case):
    name, content, message = UNFIT[case]
    (mnist / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        load_mnist(mnist)


@pytest.mark.parametrize("name", MNIST_FILES.values())
def test_missing_file_is_named(mnist, name):
    (mnist / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"expected {name} or {name}.gz"):
        load_mnist(mnist)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: expected a folder with the MNIST files, found nothing"):
        load_images(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="expected a folder with the MNIST files, found a file"):
        load_images(tmp_path / "file")


def test_digits_have_mnists_layout(digits):
    for (images, labels), n in ((digits.train, 1437), (digits.test, 360)):
        assert images.shape == (n, 28, 28) and images.dtype == torch.uint8
        assert labels.shape == (n,) and labels.dtype == torch.int64
        assert images.max() == 255
        # 20x20 in the middle, as in MNIST
        assert images[:, :4].max() == images[:, -4:].max() == images[:, :, :4].max() == images[:, :, -4:].max() == 0
        assert images[:, 4:24, 4:24].max() == 255
        # stratified: each class has its share of a tenth
        assert (labels.bincount(minlength=10).double() / n - 0.1).abs().max() < 0.005


def test_digits_are_the_same_each_time_and_not_shared_between_splits(digits):
    again = load_images("digits")
    assert all(torch.equal(a, b) for a, b in zip(digits.train + digits.test, again.train + again.test, strict=True))
    train, test = ({image.numpy().tobytes() for image in part[0]} for part in (digits.train, digits.test))
    assert not train & test


def test_digits_keep_their_pictures(digits):
    """Shrunk again, each image is nearest to an original of its own label."""
    from sklearn.datasets import load_digits as originals

    small, labels = originals(return_X_y=True)
    images, target = digits.test
    shrunk = torch.nn.functional.interpolate(
        images[:50, None, 4:24, 4:24].float(), size=8, mode="bilinear", antialias=True
    ).flatten(1)
    nearest = torch.cdist(shrunk, torch.from_numpy(small).float() * (255 / 16)).argmin(dim=1)
    assert labels[nearest.numpy()].tolist() == target[:50].tolist()


def test_normalise():
    image = torch.tensor([[0, 255]], dtype=torch.uint8).expand(28, 14, 2).reshape(1, 28, 28)
    out = normalise(image)
    assert out.shape == (1, 1, 28, 28) and out.dtype == torch.float32
    assert out[0, 0, 0, :2].tolist() == pytest.approx([-0.1307 / 0.3081, (1 - 0.1307) / 0.3081], rel=1e-6)


def test_batches_are_a_permutation_that_repeats():
    inputs = torch.arange(23) * 10
    batches = Batches((inputs, torch.arange(23)), 5, shuffle=True, seed=3)
    assert len(batches) == 5
    first, again = list(batches), list(batches)
    assert [len(target) for _, target in first] == [5, 5, 5, 5, 3]
    order = torch.cat([target for _, target in first])
    assert order.tolist() != list(range(23)) and sorted(order.tolist()) == list(range(23))
    assert torch.equal(torch.cat([x for x, _ in first]), order * 10)
    assert torch.equal(order, torch.cat([target for _, target in again]))


def test_orders_differ_by_seed_and_by_epoch():
    def order(seed, epoch):
        batches = Batches((torch.arange(50),), 50, shuffle=True, seed=seed)
        batches.set_epoch(epoch)
        return tuple(next(iter(batches))[0].tolist())

    # seed 0, epoch 1 and seed 1, epoch 0 among them: seed + epoch would make those equal
    assert len({order(seed, epoch) for seed in range(4) for epoch in range(4)}) == 16


def test_batches_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(Batches((torch.arange(9),), 2, shuffle=True))
    assert torch.equal(torch.rand(1), expected)


def test_batches_in_order_collated():
    batches = Batches((torch.arange(5), torch.arange(5)), 2, collate=lambda x, y: (x + 100, y))
    assert [(x.tolist(), y.tolist()) for x, y in batches] == [
        ([100, 101], [0, 1]),
        ([102, 103], [2, 3]),
        ([104], [4]),
    ]


def test_batches_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        Batches((torch.arange(5),), 0)
    with pytest.raises(ValueError, match=r"tensors: expected equal first dimensions, got \[5, 4\]"):
        Batches((torch.arange(5), torch.arange(4)), 2)


@pytest.mark.skipif(not os.environ.get("TORCHSMITH_DATA"), reason="TORCHSMITH_DATA does not name a data folder")
def test_real_mnist_byte_for_byte():
    splits = load_mnist(os.environ["TORCHSMITH_DATA"])
    for part, n in (("train", 60000), ("test", 10000)):
        images, labels = getattr(splits, part)
        assert images.shape == (n, 28, 28) and labels.shape == (n,)
        for kind, values in (("images", images), ("labels", labels)):
            assert hashlib.md5(idx(values.numpy())).hexdigest() == MD5[part, kind]
    assert splits.train[1][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert normalise(splits.train[0]).mean().abs() < 1e-3
