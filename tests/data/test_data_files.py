"""Files: looked for in their order, checked against their sums, downloaded once, and never spoilt."""

from __future__ import annotations

import hashlib
import multiprocessing
import pwd
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gruclip.data import FILES, DataFile, WordCorpus, fetch, load, status
from gruclip.data.files import cache_folder, download, read_bytes
from gruclip.errors import DataError

TEXTS = {"train": b"a b c <unk>\n", "valid": b"a b\n", "test": b"c\n"}
UNREACHABLE = "http://127.0.0.1:1"  # nobody listens there


def registered(address: str) -> tuple[DataFile, ...]:
    """The three files of a made dataset."""
    return tuple(
        DataFile(f"made/{split}.txt", hashlib.sha256(text).hexdigest(), f"{address}/{split}.txt")
        for split, text in TEXTS.items()
    )


def put(folder: Path, **texts: bytes) -> Path:
    (folder / "made").mkdir(parents=True, exist_ok=True)
    for split, text in texts.items():
        (folder / "made" / f"{split}.txt").write_bytes(text)
    return folder


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset that is registered and lies nowhere, with an empty cache and no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("GRUCLIP_DATA", raising=False)
    monkeypatch.setitem(FILES, "made", registered(UNREACHABLE))
    return "made"


@pytest.fixture
def server(made: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A web server on this machine with the made dataset; what it serves can be changed."""
    served = {f"/{split}.txt": text for split, text in TEXTS.items()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = served.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setitem(FILES, made, registered(f"http://127.0.0.1:{http.server_port}"))
        yield served
        http.shutdown()
        thread.join()


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


# -- where files are looked for -----------------------------------------------------------------------


def test_the_folder_given_comes_before_the_environments_and_that_before_the_cache(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, named = tmp_path / "root", tmp_path / "named"
    monkeypatch.setenv("GRUCLIP_DATA", str(named))
    put(cache_folder(), **TEXTS)
    put(named, train=TEXTS["train"], valid=TEXTS["valid"])
    put(root, train=TEXTS["train"])
    assert [file.location for file in status(made, root)] == [
        root / "made" / "train.txt",
        named / "made" / "valid.txt",
        cache_folder() / "made" / "test.txt",
    ]
    assert {file.state for file in status(made, root)} == {"verified"}
    corpus = load(made, root)
    assert isinstance(corpus, WordCorpus)
    assert [len(corpus.splits[split]) for split in TEXTS] == [5, 3, 2]


def test_a_folder_that_is_named_and_is_not_there_is_refused_by_name(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache_folder(), **TEXTS)
    nowhere = tmp_path / "nowhere"
    with pytest.raises(DataError, match=f"^dataset.root={nowhere}: no such folder"):
        load(made, nowhere)
    monkeypatch.setenv("GRUCLIP_DATA", str(nowhere))
    with pytest.raises(DataError, match=f"^GRUCLIP_DATA={nowhere}: no such folder"):
        load(made)


@pytest.mark.parametrize("pooch", [True, False])
def test_without_a_home_a_cache_is_asked_for_where_one_is_needed(
    pooch: bool, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_entry(_: int) -> pwd.struct_passwd:
        raise KeyError("no such user")

    if not pooch:
        monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    load(made, put(tmp_path, **TEXTS))
    with pytest.raises(DataError, match="this user has no home folder; set XDG_CACHE_HOME to a folder of yours"):
        status(made)


def test_what_was_read_once_is_shared_and_a_changed_file_is_read_again(made: str, tmp_path: Path) -> None:
    root = put(tmp_path / "root", **TEXTS)
    assert load(made, root) is load(made, str(root))
    put(root, train=b"other words\n")
    with pytest.raises(DataError, match="altered"):
        load(made, root)


def test_the_checksum_tells_corpora_apart(made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(made, put(tmp_path / "first", **TEXTS)).checksum
    assert load(made, put(tmp_path / "copy", **TEXTS)).checksum == first
    text = b"b a\n"
    train, _, test = FILES[made]
    altered = DataFile("made/valid.txt", hashlib.sha256(text).hexdigest(), UNREACHABLE)
    monkeypatch.setitem(FILES, made, (train, altered, test))
    assert load(made, put(tmp_path / "second", **TEXTS | {"valid": text})).checksum != first


def test_an_unknown_dataset_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(DataError, match=r"dataset\.name=mozart: no such dataset; there are pydoc, ptb, nottingham"):
        load("mozart")


# -- files that are missing or altered ----------------------------------------------------------------


@pytest.mark.parametrize("allow", [True, False])
def test_without_network_and_data_the_file_its_address_and_both_remedies_are_named(made: str, allow: bool) -> None:
    with pytest.raises(DataError) as caught:
        load(made, download=allow)
    message = str(caught.value)
    assert message.startswith("made/train.txt: ")
    assert f"{UNREACHABLE}/train.txt" in message
    assert "gruclip data fetch" in message
    assert "dataset.root or $GRUCLIP_DATA" in message
    assert "\n" not in message
    assert {(file.state, file.location) for file in status(made)} == {("missing", None)}


@pytest.mark.parametrize("train", [TEXTS["train"][:-3], b"", TEXTS["train"].replace(b"a", b"e")])
def test_an_altered_file_is_refused_with_both_sums_and_left_alone(
    train: bytes, server: dict[str, bytes], made: str, tmp_path: Path
) -> None:
    root = put(tmp_path / "root", **TEXTS | {"train": train})
    found = hashlib.sha256(train).hexdigest()
    for attempt in (load, fetch):
        with pytest.raises(DataError, match=f"train.txt: altered.*{found}.*{FILES[made][0].sha256}"):
            attempt(made, root)
    assert [file.state for file in status(made, root)] == ["altered", "verified", "verified"]
    assert (root / "made" / "train.txt").read_bytes() == train
    assert files_in(tmp_path) == {"train.txt", "valid.txt", "test.txt"}


def test_a_file_below_a_file_has_no_permissions_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be read \(Not a directory\); name a file that is there"):
        read_bytes(tmp_path / "file" / "corpus.pickle")


# -- downloads ----------------------------------------------------------------------------------------


def test_missing_files_are_downloaded_into_the_cache_once(server: dict[str, bytes], made: str) -> None:
    corpus = load(made)
    assert len(corpus.splits["train"]) == 5
    places = [cache_folder() / "made" / f"{split}.txt" for split in TEXTS]
    assert [place.read_bytes() for place in places] == list(TEXTS.values())
    server.clear()
    assert fetch(made) == places
    assert load(made) is corpus


def test_fetch_replaces_an_altered_file_of_the_cache(server: dict[str, bytes], made: str) -> None:
    put(cache_folder(), **TEXTS | {"valid": b"spoilt"})
    with pytest.raises(DataError, match=r"valid\.txt: altered"):
        load(made)
    fetch(made)
    assert {file.state for file in status(made)} == {"verified"}


def test_an_altered_download_is_refused_with_both_sums_and_not_kept(server: dict[str, bytes], made: str) -> None:
    server["/train.txt"] = b"<html>moved</html>"
    found = hashlib.sha256(server["/train.txt"]).hexdigest()
    with pytest.raises(DataError, match=f"{FILES[made][0].sha256}.*{found}") as caught:
        load(made)
    assert "\n" not in str(caught.value)
    assert files_in(cache_folder()) == set()


def test_an_address_without_the_file_is_named(server: dict[str, bytes], made: str) -> None:
    del server["/valid.txt"]
    with pytest.raises(DataError, match=r"made/valid\.txt: could not be downloaded from http.*valid\.txt \(404"):
        load(made)
    assert files_in(cache_folder()) == {"train.txt"}


def test_a_cache_that_cannot_be_written_is_named(made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"made/train\.txt: could not be downloaded .*file"):
        load(made)


def test_processes_may_download_one_file_at_the_same_time(server: dict[str, bytes], made: str) -> None:
    file = FILES[made][0]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        places = list(pool.map(download, [file] * 4))
    assert {place.read_bytes() for place in places} == {TEXTS["train"]}
    assert files_in(cache_folder()) == {"train.txt"}
