"""Released checkpoints: the index that is shipped, and one with a server on loopback."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from st_predict import checkpoints
from st_predict.checkpoints import Weights, _released, find_weights, list_weights

FOLDER = Path(_released.__file__).parent / "weights"
CONTENT = b"weights of the second version" * 100
OLD = b"weights of the first version" * 100


def entry(name: str, version: str, content: bytes, **changes) -> dict:
    return {
        "name": name,
        "version": version,
        "file": f"{name}-{version}.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        "n_bytes": len(content),
        "embedded": False,
        "summary": "Of a test.",
    } | changes


@pytest.fixture
def server(loopback, monkeypatch, tmp_path):
    """Serves two versions of ``net``; the cache is empty."""
    index = {"base_url": "http://127.0.0.1:9/closed", "weights": [entry("net", "2", CONTENT), entry("net", "1", OLD)]}
    monkeypatch.setattr(_released, "_index", lambda: index)
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ST_PREDICT_WEIGHTS_URL", f"{loopback.url}/base/")
    monkeypatch.chdir(tmp_path)
    loopback.index = index
    loopback.files = {"/base/net-2.safetensors": CONTENT, "/base/net-1.safetensors": OLD}
    return loopback


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# The index of the package


def test_the_index_is_complete():
    index = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    assert index["base_url"] == ""  # no address is known to belong to the project
    weights = list_weights()
    assert all(isinstance(w, Weights) for w in weights)
    assert len({(w.name, w.version) for w in weights}) == len({w.file for w in weights}) == len(weights)
    for w in weights:
        assert re.fullmatch(r"[0-9a-f]{64}", w.sha256)
        assert w.n_bytes > 0
        assert w.summary and "@" not in w.name + w.version
        assert w.file.endswith(".safetensors")


def test_embedded_files_are_those_of_the_index():
    embedded = {w.file: w for w in list_weights() if w.embedded}
    assert {path.name for path in FOLDER.glob("*.safetensors")} == set(embedded)
    for name, w in embedded.items():
        content = (FOLDER / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (w.n_bytes, w.sha256)
        assert find_weights(f"{w.name}@{w.version}") == FOLDER / name
        newest = next(other for other in list_weights() if other.name == w.name)
        assert find_weights(w.name) == FOLDER / newest.file
        assert checkpoints.load(FOLDER / name)[1].genes


def test_new_weights_say_how_well_each_gene_is_predicted():
    for name in ("m2ost", "ridge-effnet"):
        card = checkpoints.load(find_weights(name))[1]
        assert [one.held_out for one in card.reliability] == ["patient", "section"]
        assert card.target.transform == "pearson_residuals"


# Fetching


def test_a_released_checkpoint_is_fetched_once(server, tmp_path):
    path = find_weights("net")
    assert path == tmp_path / "cache" / "weights" / "net-2.safetensors"
    assert path.read_bytes() == CONTENT
    assert find_weights("net") == find_weights("net@2") == path
    assert server.asked == ["/base/net-2.safetensors"]
    assert files(tmp_path) == [path]


def test_a_version_can_be_asked_for(server):
    assert find_weights("net@1").read_bytes() == OLD
    assert [w.version for w in list_weights()] == ["2", "1"]
    assert server.asked == ["/base/net-1.safetensors"]


def test_a_wrong_file_is_not_kept(server, tmp_path):
    server.files["/base/net-2.safetensors"] = CONTENT[:-1] + b"!"
    with pytest.raises(ValueError, match=r"net-2\.safetensors is not the expected file"):
        find_weights("net")
    assert files(tmp_path) == []
    server.files["/base/net-2.safetensors"] = CONTENT
    assert find_weights("net").read_bytes() == CONTENT


def test_a_file_that_changed_in_the_cache_is_refused(server):
    path = find_weights("net")
    path.write_bytes(CONTENT + b"!")
    with pytest.raises(ValueError, match=r"net-2\.safetensors is not the expected file"):
        find_weights("net")
    assert path.read_bytes() == CONTENT + b"!"


def test_a_file_that_the_server_does_not_have(server, tmp_path):
    server.files.clear()
    with pytest.raises(ConnectionError, match=r"base/net-2\.safetensors"):
        find_weights("net")
    assert files(tmp_path) == []


def test_the_base_url_of_the_index_is_the_default(server, monkeypatch):
    server.index["base_url"] = f"http://127.0.0.1:{server.server_port}/base"
    monkeypatch.delenv("ST_PREDICT_WEIGHTS_URL")
    assert find_weights("net").read_bytes() == CONTENT


def test_embedded_weights_are_not_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(_released, "_FOLDER", tmp_path)
    server.index["weights"].append(entry("small", "1", b"abc", embedded=True))
    (tmp_path / "small-1.safetensors").write_bytes(b"abc")
    assert find_weights("small") == tmp_path / "small-1.safetensors"
    (tmp_path / "small-1.safetensors").write_bytes(b"abd")
    with pytest.raises(ValueError, match=r"small-1\.safetensors is not the expected file"):
        find_weights("small")
    assert server.asked == []


def test_without_an_address_the_message_says_so(server, tmp_path, monkeypatch):
    server.index["base_url"] = ""
    monkeypatch.delenv("ST_PREDICT_WEIGHTS_URL")
    with pytest.raises(ConnectionError, match="no download address of released weights is set") as raised:
        find_weights("net")
    folder = tmp_path / "cache" / "weights"
    for part in ("net@2 is not in", str(folder), hashlib.sha256(CONTENT).hexdigest(), "Set ST_PREDICT_WEIGHTS_URL to"):
        assert part in str(raised.value)
    assert server.asked == []
    assert find_weights("net", mirror=f"{server.url}/base") == folder / "net-2.safetensors"
    assert find_weights("net") == folder / "net-2.safetensors"
    (folder / "net-2.safetensors").write_bytes(OLD)
    with pytest.raises(ValueError, match=r"net-2\.safetensors is not the expected file: SHA-256"):
        find_weights("net")
    assert server.asked == ["/base/net-2.safetensors"]


# Names and paths


@pytest.mark.parametrize("name", ["nope", "net@3", "net@", "NET", ""])
def test_an_unknown_name_lists_those_there_are(server, name):
    with pytest.raises(KeyError, match=rf"No released checkpoint '{name}'; there are \['net@2', 'net@1'\]"):
        find_weights(name)
    assert server.asked == []


@pytest.mark.parametrize("name", ["stnet", "stnet@1", "ridge"])
def test_a_model_without_released_weights_is_to_be_trained(server, name):
    model = name.partition("@")[0]
    with pytest.raises(KeyError) as raised:
        find_weights(name)
    message = str(raised.value)
    assert message.startswith(f"The model '{model}' has no released weights; there are ['net@2', 'net@1'].")
    assert "Train it with st_predict.tl.train, and give the result" in message
    assert server.asked == []


@pytest.mark.parametrize(
    ("name", "match"),
    [("nett", "net"), ("net@3", "net@2"), ("NET@1", "net@1"), ("st-net", "stnet"), ("m3ost", "m2ost")],
)
def test_a_close_match_is_named(server, name, match):
    with pytest.raises(KeyError, match=rf"No released checkpoint '{name}'; there are .* Did you mean '{match}'\?"):
        find_weights(name)


@pytest.mark.parametrize("name", ["xyzzy", ""])
def test_what_is_like_nothing_has_no_match(server, name):
    with pytest.raises(KeyError) as raised:
        find_weights(name)
    assert "Did you mean" not in raised.value.args[0]


def test_a_path_is_taken_as_it_is(server, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"anything")
    assert find_weights(path) == find_weights(str(path)) == path
    assert find_weights("mine.safetensors") == Path("mine.safetensors")
    assert server.asked == []


def test_a_training_result_is_its_checkpoint(server, tmp_path):
    result = SimpleNamespace(checkpoint=tmp_path / "mine.safetensors")
    assert isinstance(result, checkpoints.Trained)
    assert not isinstance("mine.safetensors", checkpoints.Trained)
    assert not isinstance(result.checkpoint, checkpoints.Trained)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint '.*mine\.safetensors'"):
        find_weights(result)
    result.checkpoint.write_bytes(b"anything")
    assert find_weights(result) == result.checkpoint
    assert checkpoints.name_of(result) == str(result.checkpoint)
    assert checkpoints.name_of("net@1") == "net@1"


@pytest.mark.parametrize("text", ["missing.safetensors", "folder/net", "./net", "/nowhere/net.safetensors"])
def test_a_path_that_is_missing(server, text):
    for model in (text, Path(text)) if text != "./net" else (text,):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint '{re.escape(text)}'"):
            find_weights(model)
    assert server.asked == []


@pytest.mark.parametrize("model", [None, 3, b"m2ost", ["m2ost"], 1.5])
def test_a_model_of_another_kind(model):
    for find in (find_weights, checkpoints.name_of):
        with pytest.raises(TypeError, match=r"name of released weights, .* or a training result, got"):
            find(model)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weights": 3}', '{"weights": [{"name": "net"}]}'])
def test_a_damaged_index_is_named(tmp_path, monkeypatch, text):
    (tmp_path / "index.json").write_text(text)
    monkeypatch.setattr(_released, "_FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"index\.json' is .*"):
        list_weights()


def test_weights_are_checked():
    with pytest.raises(ValueError, match="n_bytes must be a whole number, got '1'"):
        Weights(**entry("net", "1", OLD, n_bytes="1"))


# Mirrors, and without a network


def test_a_mirror_is_checked_too(server, loopback):
    loopback.files = {"/mirror/net-2.safetensors": CONTENT, "/bad/net-2.safetensors": OLD}
    with pytest.raises(ValueError, match=r"net-2\.safetensors is not the expected file: SHA-256"):
        find_weights("net", mirror=f"{loopback.url}/bad")
    assert find_weights("net", mirror=f"{loopback.url}/mirror/").read_bytes() == CONTENT
    assert server.asked == ["/bad/net-2.safetensors", "/mirror/net-2.safetensors"]
    with pytest.raises(ValueError, match="mirror must be a string"):
        find_weights("net", mirror="")


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_offline_says_what_to_put_where(server, tmp_path, monkeypatch, value):
    monkeypatch.setenv("ST_PREDICT_OFFLINE", value)
    with pytest.raises(ConnectionError) as raised:
        find_weights("net")
    message, folder = str(raised.value), tmp_path / "cache" / "weights"
    for part in ("net@2 is not there, and ST_PREDICT_OFFLINE forbids", "net-2.safetensors", str(folder)):
        assert part in message
    assert hashlib.sha256(CONTENT).hexdigest() in message
    assert server.asked == []
    folder.mkdir(parents=True)
    (folder / "net-2.safetensors").write_bytes(CONTENT)
    assert find_weights("net") == folder / "net-2.safetensors"
    (folder / "net-2.safetensors").write_bytes(OLD)
    with pytest.raises(ValueError, match="is not the expected file"):
        find_weights("net")
    assert server.asked == []


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_not_offline(server, monkeypatch, value):
    monkeypatch.setenv("ST_PREDICT_OFFLINE", value)
    assert find_weights("net").read_bytes() == CONTENT


def test_a_download_that_fails_says_what_to_put_where(server, tmp_path):
    server.files.clear()
    folder, digest = re.escape(str(tmp_path / "cache" / "weights")), hashlib.sha256(OLD).hexdigest()
    with pytest.raises(ConnectionError, match=f"SHA-256 {digest}.*{folder}.*ST_PREDICT_WEIGHTS_URL names a mirror"):
        find_weights("net@1")
