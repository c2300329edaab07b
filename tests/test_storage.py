"""What is written comes back; what is broken or hostile is refused in one clear line."""

import errno
import json
import os
import pickle
import re

import pytest
import torch

from oral_lib import storage
from oral_lib.errors import OralError, PreflightError, UsageError


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "adapter.safetensors"
    storage.write_tensors(path, {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True])})
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    flat = torch.arange(12).to(dtype)
    views = {"left": flat[:6].view(2, 3), "right": flat[6:].view(3, 2).T, "none": flat[:0]}
    storage.write_tensors(tmp_path / "deep" / "x.safetensors", views, {"note": "é"})
    back = storage.read_tensors(tmp_path / "deep" / "x.safetensors")
    assert set(back) == set(views)
    for name, view in views.items():
        assert back[name].dtype == dtype and torch.equal(back[name], view)


def test_tied_tensors_can_be_written(tmp_path):
    tied = torch.ones(3)
    storage.write_tensors(tmp_path / "x.safetensors", {"a": tied, "b": tied})
    assert torch.equal(storage.read_tensors(tmp_path / "x.safetensors")["b"], tied)


def test_a_missing_file_is_named(tmp_path):
    for read in (storage.read_tensors, storage.read_json, storage.sha256):
        with pytest.raises(OralError, match=re.escape(str(tmp_path / "gone"))) as caught:
            read(tmp_path / "gone")
        one_line(caught)
    with pytest.raises(OralError, match="folder"):
        storage.read_tensors(tmp_path)


class Trap:
    """Makes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_renamed_to_safetensors_is_refused_and_never_executed(tmp_path):
    path, sprung = tmp_path / "adapter.safetensors", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(OralError, match="pickled weights are never read") as caught:
        storage.read_tensors(path)
    one_line(caught)
    torch.save({"a": torch.ones(2), "trap": Trap(sprung)}, path)
    with pytest.raises(OralError, match=r"adapter\.safetensors"):
        storage.read_tensors(path)
    assert not sprung.exists()


def test_a_file_cut_off_anywhere_is_refused(file):
    whole = file.read_bytes()
    for length in (0, 4, 8, 30, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(OralError, match="truncated or not a safetensors file") as caught:
            storage.read_tensors(file)
        one_line(caught)


def craft(path, header: dict | bytes, body: bytes, size: int | None = None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + body)


def test_a_header_that_lies_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    lies = [
        ({"a": entry | {"shape": [3]}}, 8, None),  # shape larger than its bytes
        ({"a": entry | {"data_offsets": [0, 800]}}, 8, None),  # beyond the end
        ({"a": entry | {"data_offsets": [8, 0]}}, 8, None),  # backwards
        ({"a": entry | {"shape": [2**62, 8]}}, 8, None),  # overflows
        ({"a": entry | {"dtype": "O"}}, 8, None),  # a Python object
        ({"a": entry, "b": entry}, 8, None),  # overlapping
        ({"a": entry}, 12, None),  # bytes nobody owns
        ({"a": entry}, 8, 2**60),  # a header of an exabyte
        (b"[1, 2", 8, None),  # no JSON
    ]
    for header, body, size in lies:
        craft(path, header, bytes(body), size)
        with pytest.raises(OralError, match="truncated or not a safetensors file") as caught:
            storage.read_tensors(path)
        one_line(caught)
    craft(path, {"a": entry}, bytes(8))
    assert torch.equal(storage.read_tensors(path)["a"], torch.zeros(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad, dtype):
    path = tmp_path / "x.safetensors"
    storage.write_tensors(path, {"good": torch.ones(2), "lora_A": torch.tensor([1, bad]).to(dtype)})
    with pytest.raises(OralError, match=r"NaN or infinite values in 'lora_A'"):
        storage.read_tensors(path)
    assert len(storage.read_tensors(path, finite=False)) == 2


def test_json_comes_back_sorted_and_byte_stable(tmp_path):
    path = tmp_path / "x.json"
    storage.write_json(path, {"b": [1, 2.5, None, "é"], "a": True})
    first = path.read_bytes()
    assert storage.read_json(path) == {"a": True, "b": [1, 2.5, None, "é"]}
    storage.write_json(path, storage.read_json(path))
    assert path.read_bytes() == first and first.index(b'"a"') < first.index(b'"b"')


@pytest.mark.parametrize(
    "content", [b'{"a": 1', b"", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b"9" * 5000]
)
def test_broken_json_is_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(OralError, match="truncated or invalid JSON file") as caught:
        storage.read_json(path)
    one_line(caught)


def test_nan_is_not_written_as_json(tmp_path):
    with pytest.raises(OralError, match=r"x\.json"):
        storage.write_json(tmp_path / "x.json", {"accuracy": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_dies_leaves_the_old_content_and_no_litter(file, monkeypatch):
    before = file.read_bytes()
    with pytest.raises(RuntimeError, match="died"), storage.replacing(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError("died")
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_a_folder_is_replaced_whole(tmp_path):
    for content in ("old", "new"):
        with storage.replacing(tmp_path / "cell") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in tmp_path.rglob("*")] == ["cell", "new"]


def test_a_full_disk_names_the_folder_and_the_bytes_wanted(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(PreflightError, match=r"1,002 bytes\)") as caught:
        storage.write_text(tmp_path / "x.txt", "é" * 501)
    assert str(tmp_path) in one_line(caught)


def test_safetensors_errors_at_a_full_disk_are_understood(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(PreflightError, match=r"12 bytes\)"):
        storage.write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(3)})


BAD_NAMES = ["", " ", "..", "../x", "a/b", "a\\b", "/etc", ".hidden", "a..b", "a\nb", "a\0"]
BAD_NAMES += ["x" * 121, "é" * 61, "\ud800", "right\u202eleft", None, 3]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_leave_a_folder_are_refused(name):
    with pytest.raises(UsageError, match="name") as caught:
        storage.safe_name(name)
    one_line(caught)


@pytest.mark.parametrize("name", ["movie", "smollm2-135m", "my lora_2.1", "é", "x" * 120])
def test_plain_names_pass(name):
    assert storage.safe_name(name) == name


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert storage.sha256(tmp_path / "x").startswith("ba7816bf8f01cfea")


LITTER = [
    "._a.csv", ".#a.csv", "a.csv~", "#a.csv#", ".a.csv.swp", ".DS_Store", "Thumbs.db",
    "desktop.ini",
    "a (1).csv", "a copy.csv", "a - Copy.csv", "a copy 2.csv", "~$a.csv", ".nfs00001", "a.csv.bak",
    "a.sync-conflict-20260101-120000-ABC.csv", "a (ann's conflicted copy 2026-01-01).csv",
    ".a.csv.1234.tmp", "a.csv.orig", "Icon\r", ".hidden",
]  # fmt: skip


def test_what_editors_and_systems_leave_is_not_listed(tmp_path):
    for folder in (tmp_path, tmp_path / "b", tmp_path / ".c"):
        folder.mkdir(exist_ok=True)
        for name in [*LITTER, "a.csv", "copy.csv", "a-1.csv", "tmp.csv"]:
            (folder / name).write_text("")
    expected = [tmp_path / name for name in ("a-1.csv", "a.csv", "copy.csv", "tmp.csv")]
    assert storage.list_paths(tmp_path, "*.csv") == expected
    assert storage.list_paths(tmp_path) == sorted([*expected, tmp_path / "b"])
    assert storage.list_paths(tmp_path, "*/a.csv") == [tmp_path / "b" / "a.csv"]
    assert storage.list_paths(tmp_path / "none") == []
