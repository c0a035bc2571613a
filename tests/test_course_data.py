"""The course's other data: names, diabetes, texts, CIFAR-10; and batches for several processes."""

import gzip
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from torchsmith.data import (
    CIFAR_FILES,
    Batches,
    encode_names,
    encode_text,
    load_cifar10,
    load_diabetes,
    load_names,
    load_photographs,
    load_text,
)
from torchsmith.data.names import EMBEDDED, ascii_name, collate

# ------------------------------------------------------------------------------------------------- names


def test_the_embedded_names():
    splits = load_names()
    lines = EMBEDDED.read_text(encoding="utf-8").splitlines()
    assert sum(splits.sizes().values()) == len(lines) == len(set(lines)) >= 600
    assert len(splits.facts["classes"]) >= 6
    for part in splits.parts().values():
        codes, lengths, target = part
        shares = target.bincount() / len(target)
        assert len(shares) == len(splits.facts["classes"]) and shares.max() < 2 * shares.min()
        assert codes.dtype == lengths.dtype == target.dtype == torch.int64
        assert int(lengths.min()) > 0 and int(codes.max()) < 128
    assert any(not line.isascii() for line in lines)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Müller", "Muller"),
        ("Groß", "Gross"),
        ("Łódź", "Lodz"),
        ("Nuñez", "Nunez"),
        ("Øre", "Ore"),
        ("Þór", "Thor"),
        ("O’Neill", "O'Neill"),
        ("  Smith ", "Smith"),
        ("ﬁnn", "finn"),
        ("Иванов", "??????"),
        ("김", "?" * len(unicodedata.normalize("NFKD", "김"))),
    ],
)
def test_names_are_mapped_to_ascii(name, plain):
    assert ascii_name(name) == plain
    codes, lengths = encode_names([name])
    assert bytes(codes[0].tolist()).decode() == plain and lengths.tolist() == [len(plain)]


def test_encoded_names():
    codes, lengths = encode_names(["Li", "Abe", "x"])
    assert codes.tolist() == [[76, 105, 0], [65, 98, 101], [120, 0, 0]]
    assert lengths.tolist() == [2, 3, 1]
    batch = collate(codes, lengths, torch.tensor([7, 8, 9]))
    assert [part.tolist() for part in batch] == [[[65, 98, 101], [76, 105, 0], [120, 0, 0]], [3, 2, 1], [8, 7, 9]]
    short = collate(codes[[0, 2]], lengths[[0, 2]], torch.tensor([7, 9]))
    assert short[0].tolist() == [[76, 105], [120, 0]]  # no column behind the longest


@pytest.mark.parametrize("name", ["", "  ", "\u0301"])
def test_empty_names_are_refused(name):
    with pytest.raises(ValueError, match="name 2: expected at least 1 letter, got "):
        encode_names(["Smith", name])
    with pytest.raises(ValueError, match="names: expected at least 1 name, got none"):
        encode_names([])


def write_names(folder, train='"Li","Chinese"\n"Abe","Japanese"\n', test='"Ito","Japanese"\n', pack=bytes):
    end = "" if pack is bytes else ".gz"
    for part, text in (("train", train), ("test", test)):
        content = text if isinstance(text, bytes) else text.encode()
        (folder / f"names_{part}.csv{end}").write_bytes(pack(content))


@pytest.mark.parametrize("where", [".", "names"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_names_files(tmp_path, where, pack):
    (tmp_path / where).mkdir(exist_ok=True)
    write_names(tmp_path / where, train='"Li","Chinese"\r\n\r\nNuñez,Spanish\r\n"Abe","Japanese"\r\n', pack=pack)
    splits = load_names(tmp_path)
    assert splits.facts["classes"] == ["Chinese", "Japanese", "Spanish"]
    assert splits.train[1].tolist() == [2, 5, 3] and splits.train[2].tolist() == [0, 2, 1]
    assert splits.test[2].tolist() == [1]


BAD_NAMES = {
    "three columns": (
        {"train": '"Li","Chinese"\n"Abe","Japanese","x"\n'},
        "names_train.csv: line 2: expected 2 columns, got 3",
    ),
    "one column": ({"test": "Ito\n"}, "names_test.csv: line 1: expected 2 columns, got 1"),
    "no name": ({"train": '" ","Chinese"\n'}, "names_train.csv: line 1: name: expected at least 1 letter, got ' '"),
    "only a mark": ({"train": '"\u0301","Chinese"\n'}, "expected at least 1 letter"),
    "no country": ({"train": '"Li",""\n'}, "names_train.csv: line 1: country: expected at least 1 letter, got ''"),
    "another country": (
        {"test": '"Ivo","Czech"\n'},
        "names_test.csv: line 1: country: expected one of .*Chinese, Japanese.*, got Czech",
    ),
    "empty": ({"train": "\n"}, "names_train.csv: expected at least 1 row, got none"),
    "latin-1": (
        {"train": "Müller,German\n".encode("latin-1")},
        "names_train.csv: byte 1: expected UTF-8 text, got 0xfc",
    ),
    "torn gzip": (
        {"test": gzip.compress(b"Ito,Japanese\n")[:-9]},
        "names_test.csv: gzip stream: expected an end-of-stream mark",
    ),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_bad_names_files(tmp_path, case):
    content, message = BAD_NAMES[case]
    write_names(tmp_path, **content)
    with pytest.raises(ValueError, match=message):
        load_names(tmp_path)


@pytest.mark.parametrize("part", ["train", "test"])
def test_missing_names_file(tmp_path, part):
    write_names(tmp_path)
    (tmp_path / f"names_{part}.csv").unlink()
    with pytest.raises(FileNotFoundError, match=rf"expected names_{part}.csv or names_{part}.csv.gz"):
        load_names(tmp_path)


# ------------------------------------------------------------------------------------------------- diabetes

ROW = "-0.3,0.5,0.2,-0.3,0,0,-0.5,-0.03,1\n"


def test_diabetes_file(tmp_path):
    (tmp_path / "diabetes").mkdir()
    path = tmp_path / "diabetes" / "diabetes.csv.gz"
    path.write_bytes(gzip.compress((ROW + ROW.replace(",1\n", ",0\n")).encode()))
    for source in (tmp_path, tmp_path / "diabetes", path):
        splits = load_diabetes(source)
        assert splits.train[0].tolist()[0] == pytest.approx([-0.3, 0.5, 0.2, -0.3, 0, 0, -0.5, -0.03])
        assert splits.train[1].tolist() == [[1.0], [0.0]] and splits.test is None
        assert all(tensor.dtype == torch.float32 for tensor in splits.train)


def test_embedded_diabetes():
    features, classes = load_diabetes().train
    assert features.shape == (442, 8) and classes.shape == (442, 1)
    assert features.abs().amax(0).tolist() == pytest.approx([1] * 8)
    assert Counter(classes.flatten().tolist()) == {0.0: 221, 1.0: 221}


BAD_ROWS = {
    "eight columns": (ROW + ROW.partition(",")[2], ": line 2: expected 9 columns, got 8"),
    "a word": (ROW.replace("0.5,", "half,", 1), ": line 1: expected 9 numbers, got .*half"),
    "not finite": (ROW.replace("0.5,", "nan,", 1), ": line 1: expected finite numbers, got .*nan"),
    "class 2": (ROW + ROW.replace(",1\n", ",2\n"), ": line 2: class: expected 0 or 1, got 2"),
    "nothing": ("", ": expected at least 1 row, got none"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_diabetes_file(tmp_path, case):
    content, message = BAD_ROWS[case]
    path = tmp_path / "diabetes.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(path)) + message):
        load_diabetes(path)


# ------------------------------------------------------------------------------------------------- texts


def test_texts(tmp_path):
    path = tmp_path / "text"
    text = "".join(chr(97 + i % 26) for i in range(1000))
    path.write_text(text)
    splits = load_text(path)
    assert splits.facts["vocabulary"] == "abcdefghijklmnopqrstuvwxyz"
    for part, start, stride in (("train", 0, 16), ("test", 900, 64)):
        inputs, target = splits.parts()[part]
        assert inputs.shape[1] == 64
        for row, (x, y) in enumerate(zip(inputs.tolist(), target.tolist(), strict=True)):
            first = start + row * stride
            assert x == [i % 26 for i in range(first, first + 64)]
            assert y == [i % 26 for i in range(first + 1, first + 65)]
            assert part == "test" or first + 65 <= 900  # no character of the test part is seen
    assert len(splits.train[0]) == (900 - 65) // 16 + 1 and len(splits.test[0]) == 1


def test_the_embedded_text():
    splits = load_text("sonnets")
    assert splits.name == "sonnets" and splits.facts["vocabulary"].isascii()
    assert len(splits.train[0]) * 16 > 3000


def test_bad_texts(tmp_path):
    path = tmp_path / "text"
    path.write_text("x" * 649)
    with pytest.raises(ValueError, match="text: expected at least 650 characters, got 649"):
        load_text(path)
    path.write_bytes(b"\xff" * 1000)
    with pytest.raises(ValueError, match="text: byte 0: expected UTF-8 text, got 0xff"):
        load_text(path)
    with pytest.raises(FileNotFoundError, match="expected a text file, found a folder"):
        load_text(tmp_path)
    with pytest.raises(ValueError, match="expected characters of 'ab', got 'cd'"):
        encode_text("dabc", "ab")


# ------------------------------------------------------------------------------------------------- CIFAR-10


def cifar_records(count, seed):
    records = np.random.default_rng(seed).integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(count) % 10
    return records


@pytest.fixture
def cifar(tmp_path):
    for seed, name in enumerate(name for names in CIFAR_FILES.values() for name in names):
        (tmp_path / name).write_bytes(cifar_records(3, seed).tobytes())
    return tmp_path


def test_cifar(cifar, tmp_path_factory):
    splits = load_photographs(cifar)
    assert splits.name == "CIFAR-10" and splits.sizes() == {"train": 15, "test": 3}
    assert splits.facts["channels"] == 3 and splits.facts["classes"][3] == "cat"
    image, label = splits.train[0][4], splits.train[1][4]
    record = cifar_records(3, 1)[1]
    assert int(label) == record[0]
    assert int(image[0, 0, 5]) == record[1 + 5]  # red, first row
    assert int(image[1, 2, 3]) == record[1 + 1024 + 2 * 32 + 3]
    assert int(image[2, 31, 31]) == record[3072]
    images, labels = splits.collate(splits.train[0], splits.train[1])
    assert images.shape == (15, 3, 32, 32) and images.dtype == torch.float32 and labels.dtype == torch.int64
    torch.testing.assert_close(images, splits.train[0].float() / 127.5 - 1)
    outer = tmp_path_factory.mktemp("outer")
    (outer / "cifar-10-batches-bin").symlink_to(cifar)
    assert torch.equal(load_photographs(outer).train[0], splits.train[0])


@pytest.mark.parametrize("name", ["data_batch_4.bin", "test_batch.bin"])
def test_bad_cifar(cifar, name):
    path = cifar / name
    content = cifar_records(2, 0)
    content[1, 0] = 10
    for data, message in (
        (content.tobytes(), "label 1: expected 0 to 9, got 10"),
        (bytes(3072), "size: expected a multiple of 3073 bytes, at least one, got 3072"),
        (b"", "size: expected a multiple of 3073 bytes, at least one, got 0"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            load_photographs(cifar)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: expected a CIFAR-10 file, found nothing"):
        load_photographs(cifar)


def test_photographs_are_digits_without_cifar(tmp_path):
    assert load_photographs("digits").name == load_photographs().name == "digits"
    with pytest.raises(FileNotFoundError, match="gone: expected a folder with the MNIST files"):
        load_photographs(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="gone: expected a folder with CIFAR-10's binary files, found nothing"):
        load_cifar10(tmp_path / "gone")


# ------------------------------------------------------------------------------------------------- batches


def batches(samples, size, rank=0, ranks=1, **more):
    return Batches((torch.arange(samples), torch.arange(samples)), size, rank=rank, ranks=ranks, **more)


@pytest.mark.parametrize("samples", [16, 17, 19, 20, 25])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_shares_are_the_batches_of_one_process(samples, ranks):
    """Together the ranks see each sample once, in the steps of one process with batches as many times as large."""
    whole = [x.tolist() for x, _ in batches(samples, 4 * ranks, shuffle=True, seed=5)]
    parts = [batches(samples, 4, rank, ranks, shuffle=True, seed=5) for rank in range(ranks)]
    shares = [[x.tolist() for x, _ in part] for part in parts]
    assert {len(share) for share in shares} == {len(part) for part in parts} == {len(whole)}
    for number, step in enumerate(whole):
        counted = []
        for part, share in zip(parts, shares, strict=True):
            mine, total = part.sizes(number)
            assert total == len(step) and len(share[number]) == max(1, mine)
            counted += share[number][:mine]
        assert sorted(counted) == sorted(step)


def test_shares_of_the_whole():
    first, second = ([x.tolist() for x, _ in batches(5, None, rank, 2)] for rank in (0, 1))
    assert (first, second) == ([[0, 2, 4]], [[1, 3]])


def test_an_epoch_can_begin_in_the_middle():
    made = batches(23, 5, shuffle=True, seed=1)
    made.set_epoch(2)
    whole = [x.tolist() for x, _ in made]
    made.set_epoch(2, skip=3)
    assert [x.tolist() for x, _ in made] == whole[3:]
    made.set_epoch(2, skip=5)
    assert list(made) == []


def _in_a_worker(x, y):
    info = get_worker_info()
    return x, torch.full_like(y, -1 if info is None else info.id)


def test_workers_give_the_same_batches():
    made = [[x.tolist() for x, _ in batches(23, 5, shuffle=True, seed=1, workers=workers)] for workers in (0, 2)]
    assert made[0] == made[1]
    where = [set(y.tolist()) for _, y in batches(23, 5, workers=2, collate=_in_a_worker)]
    assert where == [{0}, {1}, {0}, {1}, {0}]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(batches(9, 2, shuffle=True, workers=1))
    assert torch.equal(torch.rand(1), expected)
