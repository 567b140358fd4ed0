"""Files that lie, are damaged or want to run code: one clear line and exit code 2, or a row that says why."""

from __future__ import annotations

import json
import os
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import eigenscope as es
from conftest import gguf_bytes, gguf_string, safetensors_bytes, small_model, write_shards
from eigenscope.cli.main import main
from eigenscope.errors import EigenscopeError, SourceError
from eigenscope.models.sources import open_checkpoint

ROOM = 6 * 2**30
"""Bytes of address space that reading a small hostile file may take on top of what the process has."""


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A length that is believed fails here instead of taking the machine's memory."""
    resource = pytest.importorskip("resource")
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("the limit needs Linux")
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(source: object, pattern: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From Python one EigenscopeError, from the command line one line and exit code 2."""
    with pytest.raises(EigenscopeError, match=pattern) as caught:
        open_checkpoint(source)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(sys, "argv", ["eigenscope", "scan", os.fspath(source)])  # type: ignore[call-overload]
    with pytest.raises(SystemExit) as left:
        main()
    output = capsys.readouterr()
    assert left.value.code == 2
    assert output.out == ""
    assert output.err == f"eigenscope: {caught.value}\n"


def entry(shape: tuple[int, ...], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


FOUR = bytes(16)
ONE = entry((2, 2), 0, 16)
TWICE = f'{{"a": {json.dumps(ONE)}, "a": {json.dumps(ONE)}}}'.encode()
EMPTY_TWICE = (
    b'{"a":{"dtype":"F32","shape":[0,1],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0,2],"data_offsets":[0,0]}}'
)

BAD_SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "too few for a header"),
    "cut off in the data": (safetensors_bytes({"a": ONE}, FOUR)[:-3], r"'a' ends at byte \d+ and the file at \d+"),
    "cut off in the header": (safetensors_bytes({"a": ONE}, FOUR)[:30], "promises .* bytes and the file holds 30"),
    "header of 2**40 bytes": (struct.pack("<Q", 2**40) + b"{}", "promises 1099511627776 bytes"),
    "header of 2**64 - 1 bytes": (b"\xff" * 8 + b"{}", "promises 18446744073709551615 bytes"),
    "data left over": (safetensors_bytes({"a": ONE}, FOUR + b"more"), "not fully covered"),
    "a name twice": (safetensors_bytes(TWICE, FOUR), "names 'a' twice"),
    "an empty tensor twice": (safetensors_bytes(EMPTY_TWICE), "names 'a' twice"),
    "overlapping": (safetensors_bytes({"a": ONE, "b": ONE}, FOUR), "'a' and 'b' overlap"),
    "shape and size apart": (safetensors_bytes({"a": entry((3, 3), 0, 16)}, FOUR), "not a sound safetensors file"),
    "negative extent": (safetensors_bytes({"a": entry((-2, -2), 0, 16)}, FOUR), "not a sound safetensors file"),
    "overflowing shape": (safetensors_bytes({"a": entry((2**33, 2**33), 0, 16)}, FOUR), "not a sound safetensors file"),
    "huge but empty": (safetensors_bytes({"a": entry((2**63, 0), 0, 0)}), r"has the shape \(9223372036854775808, 0\)"),
    "many empty experts": (safetensors_bytes({"experts.w": entry((2**40, 0, 2), 0, 0)}), "has the shape"),
    "unknown dtype": (safetensors_bytes({"a": entry((2, 2), 0, 16, "F7")}, FOUR), "unknown variant `F7`"),
    "header a list": (safetensors_bytes([1, 2]), "not a sound safetensors file"),
    "header no JSON": (safetensors_bytes(b"{'a'"), "not a sound safetensors file"),
    "header nested deep": (safetensors_bytes(b"[" * 100_000), "not a sound safetensors file"),
    "random bytes": (Random(0).randbytes(500), "not a sound safetensors file"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "not a sound safetensors file"),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_bad_safetensors(case: str, tmp_path: Path, monkeypatch: Any, capsys: Any, little_memory: None) -> None:
    content, pattern = BAD_SAFETENSORS[case]
    (tmp_path / "x.safetensors").write_bytes(content)
    refused(tmp_path / "x.safetensors", pattern, monkeypatch, capsys)
    refused(tmp_path, pattern, monkeypatch, capsys)


A_TENSOR = {"a.weight": ((2, 2), 0, bytes(16))}
_LONG = struct.pack("<Q", 2**60)
BAD_GGUF: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "too few"),
    "another magic": (b"GGML" + bytes(40), "magic"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(40), "little-endian"),
    "2**60 tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + bytes(40), "promises 1152921504606846976 tensors"),
    "2**60 values": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + bytes(40), "promises"),
    "a key of 2**60 bytes": (gguf_bytes(A_TENSOR, _LONG + bytes(8), 1), "bytes of text"),
    "an array of 2**60 strings": (
        gguf_bytes(A_TENSOR, gguf_string("k") + struct.pack("<II", 9, 8) + _LONG, 1), "array entries"),
    "an array of 2**60 bytes": (gguf_bytes(A_TENSOR, gguf_string("k") + struct.pack("<II", 9, 0) + _LONG, 1), "array"),
    "an array of arrays": (
        gguf_bytes(A_TENSOR, gguf_string("k") + struct.pack("<IIQ", 9, 9, 1), 1), "array of type 9"),
    "an unknown value": (gguf_bytes(A_TENSOR, gguf_string("k") + struct.pack("<I", 77), 1), "value type 77"),
    "alignment 0": (
        gguf_bytes(A_TENSOR, gguf_string("general.alignment") + struct.pack("<II", 4, 0), 1), "alignment"),
    "alignment 2**60": (gguf_bytes(A_TENSOR, gguf_string("general.alignment") + struct.pack("<I", 10) + _LONG, 1), "cut off"),
    "a tensor beyond the end": (gguf_bytes({"a": ((200, 200), 0, FOUR)}), "cut off"),
    "a shape of 2**63": (gguf_bytes({"a": ((2**63, 2), 0, FOUR)}), "cut off"),
    "huge but empty": (gguf_bytes({"blk.0.ffn_up_exps.weight": ((2**50, 0, 2), 0, b"")}), "has the shape"),
    "an unknown type, huge": (gguf_bytes({"ffn_up_exps.weight": ((2**50, 2, 2), 99, FOUR)}), "cut off"),
    "200 dimensions": (gguf_bytes({"a": ((1,) * 200, 0, FOUR)}), "200 dimensions"),
    "random bytes": (Random(1).randbytes(500), "magic"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_GGUF)
def test_bad_gguf(case: str, tmp_path: Path, monkeypatch: Any, capsys: Any, little_memory: None) -> None:
    pytest.importorskip("gguf")
    content, pattern = BAD_GGUF[case]
    (tmp_path / "x.gguf").write_bytes(content)
    refused(tmp_path / "x.gguf", pattern, monkeypatch, capsys)


def test_gguf_tensors_that_overlap_are_refused(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("gguf")
    tensors = {"a.weight": ((4, 8), 0, bytes(128)), "b.weight": ((4, 8), 0, bytes(128))}
    content = gguf_bytes(tensors)
    second = struct.pack("<IQ", 0, 128)
    assert content.count(second) == 1
    (tmp_path / "x.gguf").write_bytes(content)
    assert len(open_checkpoint(tmp_path / "x.gguf").tensors) == 2
    (tmp_path / "x.gguf").write_bytes(content.replace(second, struct.pack("<IQ", 0, 64)))
    refused(tmp_path / "x.gguf", "overlap", monkeypatch, capsys)


def test_a_gguf_name_that_stands_twice(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("gguf")
    both = gguf_bytes({"a.weight": ((2, 2), 0, FOUR), "b.weight": ((2, 2), 0, FOUR)})
    (tmp_path / "x.gguf").write_bytes(both.replace(b"b.weight", b"a.weight"))
    refused(tmp_path / "x.gguf", "'a.weight' twice", monkeypatch, capsys)


class Attack:
    """What an ordinary ``torch.load`` would run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    legacy: bool, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    marker = tmp_path / "marker"
    with warnings.catch_warnings(action="ignore"):  # PyTorch's own, of its typed storages
        content = {"a.weight": torch.eye(3), "x": Attack(marker)}
        torch.save(content, tmp_path / "x.bin", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path, r"refused: it would run \w+\.system when loaded", monkeypatch, capsys)
    assert not marker.exists()
    torch.load(tmp_path / "x.bin", weights_only=False)  # the attack is real: here it runs
    assert marker.exists()


def _script(path: Path) -> None:
    class Tiny(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    with warnings.catch_warnings(action="ignore"):  # PyTorch is retiring TorchScript
        torch.jit.save(torch.jit.trace(Tiny(), torch.zeros(1)), path)


def _module_itself(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def _compressed(path: Path) -> None:
    torch.save({"a": torch.zeros(1000, 1000)}, path.with_suffix(".sound"))
    with zipfile.ZipFile(path.with_suffix(".sound")) as sound, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in sound.namelist():
            bomb.writestr(name, sound.read(name))


def _nested(path: Path) -> None:
    value: Any = torch.eye(2)
    for _ in range(100):
        value = [value]
    torch.save(value, path)


def _multiplying(path: Path) -> None:
    value: Any = {"a": 1}
    for _ in range(60):  # 2**60 leaves, if every reference were followed
        value = [value, value]
    torch.save(value, path)


def _cycle(path: Path) -> None:
    value: list[Any] = []
    value.append(value)
    torch.save({"x": value}, path)


def _other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


def _short_record(path: Path) -> None:
    """The record of a tensor cut off: mapped, the bytes that follow it would be read as its own."""
    whole = path.with_suffix(".whole")
    torch.save({"a": torch.full((10, 10), 3.0), "b": torch.ones(100, 100)}, whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as forged:
        for name in archive.namelist():
            content = archive.read(name)
            forged.writestr(name, content[:40] if name.endswith("data/0") else content)


BAD_PYTORCH: dict[str, tuple[Callable[[Path], object], str]] = {
    "TorchScript": (_script, "refused: a TorchScript archive holds a program"),
    "a module": (_module_itself, r"refused: it would run torch\.nn\.modules\.linear\.Linear"),
    "compressed": (_compressed, "is compressed"),
    "nested": (_nested, "more than 64 deep"),
    "multiplying": (_multiplying, "no tensor"),
    "cycle": (_cycle, "no tensor"),
    "a short record": (_short_record, "promises a record of 400 bytes"),
    "another zip": (_other_zip, "not a sound PyTorch file"),
    "no tensor": (lambda path: torch.save({"epoch": 3}, path), "holds a dict and no tensor"),
    "no bytes": (lambda path: path.write_bytes(b""), "not a sound PyTorch file"),
    "random bytes": (lambda path: path.write_bytes(Random(2).randbytes(500)), "not a sound PyTorch file"),
    "text": (lambda path: path.write_text("no model at all\n" * 40), "not a sound PyTorch file"),
}


@pytest.mark.parametrize("case", BAD_PYTORCH)
def test_bad_pytorch_files(case: str, tmp_path: Path, monkeypatch: Any, capsys: Any, little_memory: None) -> None:
    make, pattern = BAD_PYTORCH[case]
    make(tmp_path / "x.pt")
    refused(tmp_path / "x.pt", pattern, monkeypatch, capsys)


def test_a_tensor_of_few_stored_entries_and_a_huge_shape_is_a_row_that_says_so(
    tmp_path: Path, little_memory: None
) -> None:
    torch.save({"bomb.weight": torch.zeros(1).expand(10**6, 10**6), "a.weight": torch.eye(3)}, tmp_path / "x.pt")
    table = es.scan(tmp_path / "x.pt").table.set_index("name")
    assert "promises 4000000000000 bytes" in table.loc["bomb.weight", "status"]
    assert table.loc["a.weight", "status"] == "ok"


def _index(folder: Path, weight_map: object, **more: object) -> Path:
    save_file({"a": torch.eye(2)}, folder / "one.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map, **more}))
    return folder


def _link_out(folder: Path) -> Path:
    outside = folder.parent / f"{folder.name}-outside"
    outside.mkdir()
    save_file({"a": torch.eye(2)}, outside / "m.safetensors")
    (folder / "m.safetensors").symlink_to(outside / "m.safetensors")
    return folder


def _same_name_in_two(folder: Path) -> Path:
    for name in ("one", "two"):
        save_file({"a": torch.eye(2)}, folder / f"{name}.safetensors")
    return folder


def _with_text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save_file({"a": torch.eye(2)}, folder / "model.safetensors")
        (folder / name).write_text(text)
        return folder

    return make


def _below(folder: Path) -> Path:
    (folder / "unet").mkdir()
    save_file({"a": torch.eye(2)}, folder / "unet" / "model.safetensors")
    return folder


def _directory(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.safetensors")
    return folder / "x.safetensors"


def _shard_without_its_tensor(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        index = write_shards(folder, {"a": torch.eye(2), "b": torch.eye(3)}, ending)
        content = json.loads(index.read_text())
        content["weight_map"]["c"] = content["weight_map"]["a"]
        index.write_text(json.dumps(content))
        return folder

    return make


INDEX = "model.safetensors.index.json"
BAD_PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: folder / "nosuch.safetensors", "no such file or folder; expected a checkpoint"),
    "missing and relative": (lambda folder: "no/such/thing", "no such file or folder"),
    "no name": (lambda folder: "", "an empty name: no such file"),
    "a name too long": (lambda folder: "x" * 5000, "File name too long"),
    "no text": (lambda folder: os.fsdecode(b"bad\xff.safetensors"), r"bad\\udcff.safetensors: the name is no UTF-8 text"),
    "no such user": (lambda folder: "~nosuchuser/model", "no such user"),
    "not on the hub": (lambda folder: "nosuch-owner/nosuch-model", "not on the hub: .* Check the name"),
    "empty folder": (lambda folder: folder, "the folder is empty; expected a file ending in .safetensors"),
    "weights below": (_below, "no weights in this folder.*There are weights in unet: name one"),
    "other files": (lambda folder: ((folder / "x.txt").write_text("") and folder) or folder, "no weights in this folder"),
    "another kind of file": (lambda folder: Path(__file__), r"unknown kind of file '.py'"),
    "a folder like a file": (_directory("x.safetensors"), "the folder is empty"),
    "a pipe": (_pipe, "neither a file nor a folder"),
    "two indexes": (lambda f: _with_text(f"b.{INDEX}", "{}")(_with_text(f"a.{INDEX}", "{}")(f)), "2 checkpoints: a.model"),
    "index upwards": (lambda f: _index(f, {"a": "../../etc/passwd"}), r"'../../etc/passwd', outside its own folder"),
    "index absolute": (lambda f: _index(f, {"a": "/etc/passwd"}), "'/etc/passwd', outside its own folder"),
    "index with a null": (lambda f: _index(f, {"a": "x\0.safetensors"}), "outside its own folder"),
    "link out": (_link_out, "'m.safetensors', outside its own folder"),
    "shard missing": (lambda f: _index(f, {"a": "one.safetensors", "b": "two.safetensors"}), "1 of 2 shards are missing: two"),
    "all shards missing": (lambda f: (_with_text(INDEX, json.dumps({"weight_map": {"a": "m.safetensors"}}))(f) and
                           (f / "model.safetensors").unlink()) or f, "1 of 1 shards are missing: m.safetensors"),
    "tensor not in its shard": (_shard_without_its_tensor("safetensors"), "index puts tensor 'c' here"),
    "tensor not in its bin": (_shard_without_its_tensor("bin"), "index puts tensor 'c' here"),
    "index a list": (_with_text(INDEX, "[1]"), "holds a list; expected a JSON object"),
    "index broken": (_with_text(INDEX, "{"), "not sound JSON"),
    "index nested deep": (_with_text(INDEX, "[" * 100_000), "not sound JSON"),
    "index without a map": (_with_text(INDEX, "{}"), "no weight_map"),
    "index map a list": (lambda f: _index(f, ["one.safetensors"]), "no weight_map"),
    "index of numbers": (lambda f: _index(f, {"a": 7}), "1 of 1 shards are missing: 7"),
    "config broken": (_with_text("config.json", "{"), "config.json: not sound JSON"),
    "config a list": (_with_text("config.json", "[]"), "config.json: holds a list"),
    "same name in two": (_same_name_in_two, "'a' stands in this file and in one.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PLACES)
def test_bad_places(case: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    make, pattern = BAD_PLACES[case]
    refused(make(tmp_path), pattern, monkeypatch, capsys)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="rights do not bind root")
def test_a_file_without_the_right_to_read_it(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    save_file({"a": torch.eye(2)}, tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").chmod(0)
    refused(tmp_path / "m.safetensors", "Permission denied", monkeypatch, capsys)


HOSTILE_CONFIG = {
    "model_type": ["gpt2"], "num_attention_heads": "12", "num_key_value_heads": -1, "hidden_size": 1e308, "head_dim": True,
    "quantization_config": [1], "text_config": 7, "llm_config": [], "convolution_groups": [3], "attn_config": "x",
    "transposed_convolutions": 5, "multi_query": {}, "decoder": None, "general.architecture": [],
}  # fmt: skip


def test_a_configuration_of_wrong_types_changes_no_verdict(tmp_path: Path) -> None:
    model = {**small_model(), "h.0.attn.c_attn.weight": torch.eye(8).repeat(1, 3), "h.0.qkv.weight": torch.eye(8).repeat(3, 1),
             "h.0.attn.query_key_value.weight": torch.eye(8).repeat(3, 1)}  # fmt: skip
    save_file(model, tmp_path / "model.safetensors")
    for key, value in [*HOSTILE_CONFIG.items(), ("a" * 10**6, "\ud800")]:
        (tmp_path / "config.json").write_text(json.dumps({key: value}))
        assert len(es.scan(tmp_path).coverage) == len(model), key


def damaged(content: bytes, count: int, seed: int, reach: int) -> Iterator[bytes]:
    """Copies with some of the first ``reach`` bytes replaced: flipped bits, zeros, extremes."""
    random = Random(seed)
    for _ in range(count):
        copy = bytearray(content)
        for _ in range(random.choice((1, 1, 2, 4, 8))):
            at = random.randrange(min(reach, len(copy)))
            copy[at] = random.choice((copy[at] ^ (1 << random.randrange(8)), 0, 0xFF, 0x7F, random.randrange(256)))
        yield bytes(copy)


def cut(content: bytes, step: int) -> Iterator[bytes]:
    """The file cut off at every ``step``-th byte."""
    for stop in range(0, len(content), step):
        yield content[:stop]


def survives(path: Path, contents: Iterator[bytes]) -> tuple[int, int]:
    """How many were scanned and how many refused; anything but an EigenscopeError fails the test."""
    outcomes = [0, 0]
    for content in contents:
        path.write_bytes(content)
        try:
            result = es.scan(path, workers=1)
            assert len(result.coverage) == len(open_checkpoint(path).tensors)
            outcomes[0] += 1
        except EigenscopeError:
            outcomes[1] += 1
    return outcomes[0], outcomes[1]


@pytest.mark.filterwarnings("ignore:.*byteorder:UserWarning")
def test_damage_to_any_format_is_a_refusal_or_a_row(tmp_path: Path, small_gguf: Path, little_memory: None) -> None:
    save_file(small_model(), tmp_path / "m.safetensors")
    torch.save(small_model(), tmp_path / "m.pt")
    plain = {name: tensor for name, tensor in small_model().items() if "float8" not in str(tensor.dtype)}
    with warnings.catch_warnings(action="ignore"):  # PyTorch's own, of its typed storages
        torch.save(plain, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for seed, name in enumerate(("m.safetensors", "m.pt", "old.pt", "small.gguf")):
        content = (small_gguf if name == "small.gguf" else tmp_path / name).read_bytes()
        reach = {"m.safetensors": 1300, "m.pt": len(content), "old.pt": 2500, "small.gguf": 200}[name]
        trial = tmp_path / f"trial{Path(name).suffix}"
        scanned, refusals = survives(trial, damaged(content, 100, seed, reach))
        assert scanned + refusals == 100
        assert refusals > 5, name
        scanned, refusals = survives(trial, cut(content, 64 if name == "small.gguf" else max(64, len(content) // 100)))
        assert scanned == 0, name
    tail = (tmp_path / "small.gguf").read_bytes()
    infos = tail.index(b"blk.0.f32.weight")
    for content in damaged(tail[infos:], 100, 9, 600):
        survives(tmp_path / "trial.gguf", iter([tail[:infos] + content]))


def test_rows_say_why_and_the_rest_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    nan = np.zeros((4, 5), np.float32)
    nan[1, 2], nan[3, 0] = np.nan, np.inf
    bad_scale = struct.pack("<e", float("nan")) + bytes(32)
    tensors = {
        "good.weight": ((3, 4), 0, np.eye(3, 4, dtype=np.float32).tobytes()),
        "nan.weight": ((4, 5), 0, nan.tobytes()), "zero.weight": ((4, 4), 0, bytes(64)),
        "row.weight": ((1, 9), 0, np.ones(9, np.float32).tobytes()),
        "column.weight": ((9, 1), 0, np.ones(9, np.float32).tobytes()), "empty.weight": ((0, 4), 0, b""),
        "future.weight": ((4, 4), 99, bytes(64)), "ragged.weight": ((4, 33), 8, bytes(34 * 4)),
        "undefined.weight": ((1, 32), 8, bad_scale), "scalar.weight": ((), 0, bytes(4)),
    }  # fmt: skip
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(tensors))
    result = es.scan(tmp_path / "x.gguf")
    status = result.table.set_index("name")["status"]
    assert status["good.weight"] == "ok"
    assert status["nan.weight"] == "not measured: 1 NaN and 1 infinite entries, first at row 1, column 2"
    assert status["zero.weight"] == "the zero matrix"
    assert (status["row.weight"], status["column.weight"]) == ("ok", "ok")
    assert status["empty.weight"] == "empty: 0×4"
    assert "GGUF type 99 is unknown" in status["future.weight"]
    assert "rows of 33 are not whole blocks of 32" in status["ragged.weight"]
    assert "32 NaN" in status["undefined.weight"]
    outcomes = result.coverage.set_index("tensor")["outcome"]
    assert len(outcomes) == len(tensors)
    assert outcomes["future.weight"] == outcomes["ragged.weight"] == "not readable"
    assert outcomes["scalar.weight"] == "not a matrix"


def test_packed_formats_of_safetensors_are_rows_that_say_so(tmp_path: Path) -> None:
    content = safetensors_bytes({"a.weight": entry((2, 4), 0, 4, "F4"), "b.weight": entry((1, 1), 4, 8)}, bytes(8))
    (tmp_path / "x.safetensors").write_bytes(content)
    status = es.scan(tmp_path / "x.safetensors").table.set_index("name")["status"]
    assert "packed format F4 is not read" in status["a.weight"]
    assert status["b.weight"] == "the zero matrix"
    with pytest.raises(SourceError, match="F4"):
        open_checkpoint(tmp_path / "x.safetensors").read("a.weight")
