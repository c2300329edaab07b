"""A package index that is slow, cut, gone or changed, and a cache that is damaged."""

import hashlib
import json
import shutil
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from oral_lib.assets import packages, sources
from oral_lib.assets.cache import folder_fault
from oral_lib.errors import PreflightError

WHEEL = "evals-3.0.1.post1-py3-none-any.whl"


def wheel(path: Path, headline: str) -> bytes:
    """A wheel of the package evals with one headline."""
    info = "evals-3.0.1.post1.dist-info"
    record = {"input": [{"content": "system"}, {"content": headline}], "ideal": "1"}
    with zipfile.ZipFile(path, "w") as box:
        for name, text in {
            "evals/registry/data/sarcasm/samples.jsonl": json.dumps(record) + "\n",
            f"{info}/METADATA": "Metadata-Version: 2.1\nName: evals\nVersion: 3.0.1.post1\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
            f"{info}/RECORD": "",
        }.items():
            box.writestr(zipfile.ZipInfo(name), text)  # without the time, so always the same
    return path.read_bytes()


class Index(BaseHTTPRequestHandler):
    """A package index of one file; the server's `manner` says how it is sent."""

    def do_GET(self) -> None:
        server = self.server
        if not self.path.endswith(WHEEL):
            page = f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode()
            return self.answer(200, page, "text/html")
        server.manner(self, server.content)

    def answer(self, code: int, body: bytes, kind: str = "application/zip", **headers) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def trickles(index: Index, content: bytes) -> None:
    index.send_response(200)
    index.send_header("Content-Length", str(len(content)))
    index.end_headers()
    for i in range(0, len(content), 200):
        index.wfile.write(content[i : i + 200])
        index.wfile.flush()
        time.sleep(0.05)


def stalls(index: Index, content: bytes) -> None:
    index.send_response(200)
    index.send_header("Content-Length", str(len(content)))
    index.end_headers()
    index.wfile.write(content[:200])
    index.wfile.flush()
    time.sleep(4)


def cuts(index: Index, content: bytes) -> None:
    index.answer(200, content[: len(content) // 2], Content_Length=len(content))
    index.close_connection = True


def is_shorter_than_it_says(index: Index, content: bytes) -> None:
    index.answer(200, content, Content_Length=len(content) // 2)
    index.close_connection = True


def is_gone(index: Index, content: bytes) -> None:
    index.answer(404, b"gone")


def fails(index: Index, content: bytes) -> None:
    index.answer(500, b"broken")


def sends_elsewhere_for_ever(index: Index, content: bytes) -> None:
    index.answer(302, b"", Location=f"/files/{WHEEL}")


def sends_the_file(index: Index, content: bytes) -> None:
    index.answer(200, content)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A package index in this process, and an empty cache."""
    content = wheel(tmp_path / WHEEL, "rock dies")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.daemon_threads = True
    server.content, server.manner = content, sends_the_file
    threading.Thread(target=server.serve_forever, daemon=True).start()
    lock = tmp_path / "assets.lock"
    digest = hashlib.sha256(content).hexdigest()
    lock.write_text(f"evals==3.0.1.post1 --hash=sha256:{digest}\n")
    monkeypatch.setattr(packages, "LOCK", lock)
    cache = tmp_path / "cache"
    settings = {
        "ORAL_CACHE": str(cache),
        "PIP_INDEX_URL": f"http://127.0.0.1:{server.server_port}/simple",
        "PIP_TRUSTED_HOST": "127.0.0.1",
        "PIP_RETRIES": "0",
        "PIP_TIMEOUT": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_CONFIG_FILE": "/dev/null",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    yield SimpleNamespace(server=server, cache=cache, digest=digest, folder=cache / "sets/sarcasm")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "manner",
    [stalls, cuts, is_shorter_than_it_says, is_gone, fails, sends_elsewhere_for_ever],
    ids=lambda manner: manner.__name__,
)
def test_a_bad_download_is_one_line_and_the_next_one_mends_it(shop, manner):
    shop.server.manner = manner
    with pytest.raises(PreflightError) as caught:
        sources.prepare(["sarcasm"])
    message = str(caught.value)
    assert "evals==3.0.1.post1" in message and "run the same command again" in message
    assert "\n" not in message and "Traceback" not in message and "Exception:" not in message
    assert not list((shop.cache / "packages").iterdir()) and not shop.folder.exists()
    if manner is stalls:
        shop.server.manner = trickles
        sources.prepare(["sarcasm"])
        assert folder_fault(shop.folder) is None


def test_a_changed_file_is_named_with_both_hashes_and_replaces_nothing(shop, tmp_path):
    sources.prepare(["sarcasm"])
    rows = (shop.folder / "rows.parquet").read_bytes()
    (shop.cache / "packages" / WHEEL).unlink()
    shop.server.content = wheel(tmp_path / "other.whl", "another headline")
    other = hashlib.sha256(shop.server.content).hexdigest()
    (shop.folder / "manifest.json").unlink()
    with pytest.raises(PreflightError) as caught:
        sources.prepare(["sarcasm"])
    message = str(caught.value)
    assert "evals==3.0.1.post1" in message and "\n" not in message
    assert f"its sha256 is {other}, assets.lock has {shop.digest}" in message
    assert "Nothing was replaced" in message
    assert (shop.folder / "rows.parquet").read_bytes() == rows
    assert not list((shop.cache / "packages").iterdir())


def test_a_server_that_is_not_there_is_one_line(shop):
    shop.server.shutdown()
    shop.server.server_close()
    with pytest.raises(PreflightError, match=r"Cannot download evals.*Check the network") as caught:
        sources.prepare(["sarcasm"])
    assert "\n" not in str(caught.value)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def is_now_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


HARM = {
    "rows flipped": lambda f: flip(f.folder / "rows.parquet"),
    "rows empty": lambda f: (f.folder / "rows.parquet").write_bytes(b""),
    "rows a folder": lambda f: is_now_a_folder(f.folder / "rows.parquet"),
    "manifest a folder": lambda f: is_now_a_folder(f.folder / "manifest.json"),
    "manifest empty": lambda f: (f.folder / "manifest.json").write_bytes(b""),
    "manifest of no files": lambda f: (f.folder / "manifest.json").write_text('{"files": {}}'),
    "set a file": lambda f: (f.folder.rename(f.cache / "away"), f.folder.touch()),
    "archive too": lambda f: (flip(f.cache / "packages" / WHEEL), flip(f.folder / "rows.parquet")),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where the first test stores its cache for the others."""
    return tmp_path_factory.mktemp("whole") / "cache"


@pytest.fixture
def filled(shop, whole):
    if whole.exists():
        shutil.copytree(whole, shop.cache)
    sources.prepare(["sarcasm"])
    if not whole.exists():
        shutil.copytree(shop.cache, whole)
    return shop


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM.keys())
def test_a_damaged_cache_is_named_and_mended(filled, harm):
    harm(filled)
    with pytest.raises(PreflightError, match=r"sarcasm.*(damaged|missing|not in)") as caught:
        sources.package_rows("sarcasm")
    assert "\n" not in str(caught.value) and "python -m oral_lib assets" in str(caught.value)
    assert sources._cache_fault("sarcasm")
    sources.prepare(["sarcasm"])
    assert sources.package_rows("sarcasm")["text"].tolist() == ["rock dies"]


@pytest.mark.parametrize("name", ["packages", "sets"])
def test_a_file_in_the_place_of_a_folder_of_the_cache_is_named(shop, name):
    shop.cache.mkdir()
    (shop.cache / name).touch()
    with pytest.raises(PreflightError, match="a file is in the place of a folder") as caught:
        sources.prepare(["sarcasm"])
    assert "\n" not in str(caught.value)


def test_an_archive_that_is_a_folder_is_named(shop):
    (shop.cache / "packages" / WHEEL).mkdir(parents=True)
    with pytest.raises(PreflightError) as caught:
        sources.prepare(["sarcasm"])
    assert "\n" not in str(caught.value) and WHEEL in str(caught.value)
