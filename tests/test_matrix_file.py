"""Every format of a matrix file, there and back; and every file that lies, refused in one line that says where."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.io
import scipy.sparse
import torch
from safetensors.torch import save_file

from eigenscope.errors import EigenscopeError, InputError, SourceError
from eigenscope.models.matrix_file import ENDINGS, open_matrix

RNG = np.random.default_rng(0)
REAL = RNG.standard_normal((7, 4))
COMPLEX = REAL + 1j * RNG.standard_normal((7, 4))
SPARSE = scipy.sparse.random_array((9, 6), density=0.3, rng=np.random.default_rng(1))


def dense(matrix):
    """What was loaded, as an ndarray."""
    if scipy.sparse.issparse(matrix):
        return matrix.toarray()
    return matrix.numpy() if isinstance(matrix, torch.Tensor) else np.asarray(matrix)


def loaded(source):
    file = open_matrix(source)
    found = dense(file.load())
    assert file.shape in (None, found.shape)
    return found


def refused(source, *words):
    """The message with which a file is refused, at the opening or at the reading."""
    with pytest.raises(EigenscopeError) as caught:
        open_matrix(source).load()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "c16", "c8", "i4", "u1", "i8", "?", ">f8", ">i2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_every_dtype_and_order(tmp_path, dtype, order):
    matrix = np.asarray((COMPLEX if "c" in dtype else REAL * 3).astype(dtype), order=order)
    np.save(tmp_path / "a.npy", matrix)
    file = open_matrix(tmp_path / "a.npy")
    assert np.array_equal(file.load(), matrix)
    assert file.dtype == matrix.dtype.newbyteorder("=").name
    # The same rows, read in part: those of the adjoint where the matrix is wide.
    assert not file.adjoint
    assert np.array_equal(file.rows.read(1, 3).numpy(), matrix[1:3])
    np.save(tmp_path / "b.npy", np.asarray(matrix.T, order=order))
    file = open_matrix(tmp_path / "b.npy")
    assert file.adjoint
    assert np.array_equal(file.rows.read(1, 3).numpy(), matrix.conj()[1:3])


def test_conversions_are_said(tmp_path):
    for dtype, word in (("i4", "converted to float64"), ("i8", "2⁵³"), ("?", "bool"), ("f2", "widened"), ("f8", None)):
        np.save(tmp_path / "a.npy", np.ones((2, 2), dtype))
        notes = " ".join(open_matrix(tmp_path / "a.npy").notes)
        assert (word in notes) if word else not notes


def test_npz_takes_the_only_matrix_or_the_one_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, weight=REAL, bias=np.ones(3))
    assert np.array_equal(loaded(path), REAL)
    np.savez_compressed(path, first=REAL, second=COMPLEX)
    assert np.array_equal(loaded(f"{path}:second"), COMPLEX)
    refused(path, "2 matrices", "first, second", "FILE:NAME")
    refused(f"{path}:secnd", "no entry named 'secnd'", "expected second")
    np.savez(path, bias=np.ones(3))
    refused(path, "no matrix", "bias of shape (3,)")


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "dia"])
@pytest.mark.parametrize("entries", [SPARSE, SPARSE * (1 + 2j)])
def test_sparse_npz_of_every_kind(tmp_path, kind, entries):
    matrix = scipy.sparse.csr_array(entries).asformat(kind)
    scipy.sparse.save_npz(tmp_path / "a.npz", matrix)
    assert np.array_equal(loaded(tmp_path / "a.npz"), matrix.toarray())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("symmetry", ["general", "symmetric", "hermitian", "skew-symmetric"])
def test_matrix_market(tmp_path, packed, symmetry):
    square = COMPLEX[:4]
    matrix = {
        "general": COMPLEX, "symmetric": square + square.T, "hermitian": square + square.conj().T,
        "skew-symmetric": square - square.T,
    }[symmetry]  # fmt: skip
    for form in (matrix, scipy.sparse.coo_array(matrix)):
        scipy.io.mmwrite(tmp_path / "a.mtx", form, symmetry=symmetry)
        path = tmp_path / "a.mtx"
        if packed:
            path = tmp_path / "a.mtx.gz"
            path.write_bytes(gzip.compress((tmp_path / "a.mtx").read_bytes()))
        assert np.allclose(loaded(path), matrix, rtol=1e-15, atol=0)


def test_matrix_market_of_a_pattern_and_of_integers(tmp_path):
    path = tmp_path / "a.mtx"
    path.write_text("%%MatrixMarket matrix coordinate pattern general\n2 3 2\n1 1\n2 3\n")
    assert np.array_equal(loaded(path), [[1, 0, 0], [0, 0, 1]])
    assert "taken as 1" in " ".join(open_matrix(path).notes)
    path.write_text("%%MatrixMarket matrix array integer general\n2 1\n5\n7\n")
    assert np.array_equal(loaded(path), [[5], [7]])


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("labels", [False, True])
def test_text_with_and_without_names_and_labels(tmp_path, ending, names, labels):
    path, mark = tmp_path / f"a{ending}", "," if ending == ".csv" else "\t"
    lines = [mark.join(["what", *"abcd"][not labels :])] if names else []
    lines += [mark.join([*(["row"] if labels else []), *map(repr, map(float, row))]) for row in REAL]
    path.write_text("\n".join(lines) + "\n")
    assert np.array_equal(loaded(path), REAL)
    assert len(open_matrix(path).notes) == names + labels


def test_text_of_other_programs(tmp_path):
    path = tmp_path / "a.csv"
    frame = (
        "\ufeff,a,b\r\n0,1.5,2\r\n1,3,4e2\r\n"  # pandas: a nameless index of numbers, spreadsheet: a byte-order mark
    )
    path.write_text(frame, encoding="utf-8")
    assert np.array_equal(loaded(path), [[1.5, 2], [3, 400]])
    path.write_text('"a","b"\n"x",1,2\n"y, z",3,4\n')  # R: the name of the labels is missing
    assert np.array_equal(loaded(path), [[1, 2], [3, 4]])
    path.write_text("1;2\n3;4\n")
    assert np.array_equal(loaded(path), [[1, 2], [3, 4]])
    path.write_text("# made by hand\n1,2\n\n3,4")
    assert np.array_equal(loaded(path), [[1, 2], [3, 4]])
    path.write_text("5\n6\n")
    assert np.array_equal(loaded(path), [[5], [6]])
    path.write_text("1,2\n3,4+5j\n6i,-7\n")
    assert np.array_equal(loaded(path), [[1, 2], [3, 4 + 5j], [6j, -7]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3\n", ["line 3 has 1 cells", "expected 2"]), ("1,2\n3,4\n5,6,7\n", ["line 3 has 3 cells"]),
        ("1,2\n\n3,x\n", ["'x' is not a number", "line 3, cell 2"]), ("r,1,2\nr,3,\n", ["no value", "line 2, cell 3"]),
        ("a,b\nc,d\n", ["line 2, cell 2", "'d'"]), ("", ["no numbers"]), ("a,b,c\n", ["no numbers"]), ("x\ny\n", ["no numbers"]),
        ("1,2\n\x1b[31m,4\n", ["\\x1b[31m"]),
    ],
)  # fmt: skip
def test_text_that_is_not_a_matrix(tmp_path, text, words):
    path = tmp_path / "a.csv"
    path.write_text(text)
    refused(path, *words)


def test_text_in_another_encoding(tmp_path):
    (tmp_path / "a.csv").write_bytes("é,1\nà,2\n".encode("latin-1"))
    refused(tmp_path / "a.csv", "not a sound text file", "utf-8")


def test_parquet_takes_numbers_and_names_the_rest(tmp_path):
    path = tmp_path / "a.parquet"
    table = {"x": [1.0, 2.0], "name": ["a", "b"], "n": [3, 4], "__index_level_0__": [7, 8], "when": [None, None]}
    pyarrow.parquet.write_table(pa.table(table), path)
    file = open_matrix(path)
    assert np.array_equal(file.load(), [[1, 3], [2, 4]])
    assert " ".join(file.notes) == "not numeric, left out: name, when index, left out: __index_level_0__"
    pyarrow.parquet.write_table(pa.table({"x": pa.array([1, 2], pa.float32())}), path)
    assert open_matrix(path).dtype == "float32"
    pyarrow.parquet.write_table(pa.table({"x": pa.array([1.0, None, 2.0])}), path)
    refused(path, "1 missing values in column 'x'", "row 1 from 0")
    pyarrow.parquet.write_table(pa.table({"name": ["a"]}), path)
    refused(path, "no numeric column", "name")
    path.write_bytes(b"PAR1 but no more")
    refused(path, "not a sound Parquet file")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.complex64])
def test_safetensors_entry(tmp_path, dtype):
    path = tmp_path / "a.safetensors"
    matrix = torch.from_numpy(COMPLEX if dtype.is_complex else REAL * 4).to(dtype)
    save_file({"layer.weight": matrix, "layer.bias": torch.ones(3)}, path)
    file = open_matrix(path)
    assert torch.equal(file.load(), matrix)
    part = file.rows.read(2, 5)
    assert part.dtype in (torch.float32, torch.float64, torch.complex64)
    assert torch.equal(part, matrix[2:5].to(part.dtype))
    assert torch.equal(open_matrix(f"{path}:layer.weight").load(), matrix)
    refused(f"{path}:layer.wieght", "no entry named 'layer.wieght'", "expected layer.weight")
    refused(f"{path}:layer.bias", "1-D, of shape (3,)")


def test_a_path_that_looks_like_a_named_entry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("plain.npz", a=REAL)
    (tmp_path / "plain.npz").rename(tmp_path / "plain.npz:x.npz")
    assert np.array_equal(loaded("plain.npz:x.npz"), REAL)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_images(tmp_path, mode):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (5, 8, 3) if mode == "RGB" else (5, 8)).astype("u2" if mode == "I;16" else "u1")
    image.fromarray(pixels).save(tmp_path / "a.png")
    found = loaded(tmp_path / "a.png")
    grey = pixels @ np.array([299, 587, 114]) / 1000 if mode == "RGB" else pixels
    assert np.abs(found - grey.astype(float)).max() <= (1.0 if mode == "RGB" else 0.0)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    refused(tmp_path / "b.png", "not a sound image file")


def test_an_image_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    (tmp_path / "a.png").write_bytes(b"")
    refused(tmp_path / "a.png", "Pillow, which is not installed", "pip install pillow")


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_pickle_is_executed(tmp_path):
    trace = tmp_path / "trace"
    objects = np.array([[Bomb(trace)]], dtype=object)
    np.save(tmp_path / "a.npy", objects)
    np.savez(tmp_path / "a.npz", data=objects)
    np.savez(tmp_path / "b.npz", data=objects, format=np.array("csr"), shape=np.array([1, 1]))
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Bomb(trace)))
    for name in ("a.npy", "a.npz", "b.npz"):
        refused(tmp_path / name, "pickled Python objects")
    refused(tmp_path / "c.npy", "not a sound npy file")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace))).close()  # the trap works
    assert trace.exists()


def npy_bytes(header):
    text = header.encode("latin-1").ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 3)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-4, -2)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': 5}", "{'descr': '<f8'}", "[" * 500, "__import__('os')", "",
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (1, 1)}",
    ],
)  # fmt: skip
def test_npy_headers_that_lie(tmp_path, header):
    (tmp_path / "a.npy").write_bytes(npy_bytes(header))
    with pytest.raises(SourceError):
        open_matrix(tmp_path / "a.npy").load()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy_bytes(header))
    with pytest.raises(SourceError):
        open_matrix(tmp_path / "a.npz").load()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([["a", "b"]]), ["<U1"]), (np.zeros((2, 2), "M8[s]"), ["datetime64"]),
        (np.zeros((2, 2), [("x", "f8"), ("y", "f8")]), ["records of x, y"]), (np.ones((2, 2), np.longdouble), ["float128"]),
        (np.ones(5), ["1-D, of shape (5,)", "one column"]), (np.ones((2, 3, 4)), ["3-D"]), (np.ones(()), ["0-D"]),
        (np.ones((0, 5)), ["empty: 0×5"]), (np.ones((5, 0)), ["empty: 5×0"]),
    ],
)  # fmt: skip
def test_arrays_that_are_no_matrix(tmp_path, array, words):
    if array.dtype == np.longdouble and array.dtype.itemsize == 8:
        pytest.skip("long doubles are doubles here")
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", *words)


@pytest.mark.parametrize("count", [0, 5, 9, 40, 100, 200, 260])
def test_files_cut_short(tmp_path, count):
    np.save(tmp_path / "a.npy", REAL)
    np.savez(tmp_path / "a.npz", REAL)
    save_file({"a": torch.from_numpy(REAL)}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.npz", "a.safetensors"):
        whole = (tmp_path / name).read_bytes()
        assert len(whole) > count
        (tmp_path / f"b{name}").write_bytes(whole[:count])
        refused(tmp_path / f"b{name}", "b" + name)


@pytest.mark.parametrize(
    "change",
    [
        {"indices": np.array([0, 5, 99])}, {"indices": np.array([0, -1, 1])}, {"indptr": np.array([0, 9, 3])},
        {"indptr": np.array([0, 3, 1])}, {"shape": np.array([2, -3])}, {"shape": np.array([2])}, {"format": np.array("lil")},
        {"data": np.ones(2)}, {"format": np.array("coo")}, {"format": np.array(3)}, {"indices": np.array([0.5, 1, 2])},
    ],
)  # fmt: skip
def test_sparse_archives_that_lie(tmp_path, change):
    parts = {
        "format": np.array("csr"), "shape": np.array([2, 3]), "data": np.ones(3), "indices": np.array([0, 1, 2]),
        "indptr": np.array([0, 2, 3]),
    }  # fmt: skip
    np.savez(tmp_path / "good.npz", **parts)
    assert loaded(tmp_path / "good.npz").sum() == 3
    np.savez(tmp_path / "a.npz", **(parts | change))
    with pytest.raises(EigenscopeError):
        open_matrix(tmp_path / "a.npz").load()


@pytest.mark.parametrize(
    "text",
    [
        "%%MatrixMarket matrix coordinate real general\n3 3 4\n1 1 1.0\n",
        "hello\n",
        "",
        "%%MatrixMarket matrix coordinate real general\n3 3 1\n9 1 1.0\n",
        "%%MatrixMarket matrix coordinate real general\n3 3 1\n0 1 1.0\n",
        "%%MatrixMarket matrix coordinate real general\n3 3 1\n1 1 1.0\n2 2 1.0\n",
        "%%MatrixMarket matrix coordinate real general\n3 3 1000000000000\n1 1 1.0\n",
        "%%MatrixMarket matrix array real general\n100000 100000\n1.0\n",
        "%%MatrixMarket matrix coordinate real general\n3 3 1\n1 1 x\n",
        "%%MatrixMarket matrix coordinate real general\n-3 3 1\n1 1 1\n",
        "%%MatrixMarket matrix coordinate quaternion general\n3 3 1\n1 1 1\n",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_matrix_market_headers_that_lie(tmp_path, text, packed):
    path = tmp_path / ("a.mtx.gz" if packed else "a.mtx")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    with pytest.raises(EigenscopeError):
        open_matrix(path).load()
    if "00000" in text:  # found out before anything of that size is made
        with pytest.raises(SourceError, match="more than the file can hold"):
            open_matrix(path)


def test_places_that_hold_no_matrix_file(tmp_path):
    refused(tmp_path / "no.npy", "no such file")
    refused(tmp_path, "a folder", "eigenscope scan")
    (tmp_path / "a.docx").write_bytes(b"x")
    message = refused(tmp_path / "a.docx", "unknown format '.docx'")
    assert all(ending in message for ending in ENDINGS)


def test_one_dimension_where_a_vector_is_wanted(tmp_path):
    np.save(tmp_path / "b.npy", np.arange(5.0))
    np.savez(tmp_path / "b.npz", np.arange(5.0))
    save_file({"b": torch.arange(5.0)}, tmp_path / "b.safetensors")
    for name in ("b.npy", "b.npz", "b.safetensors"):
        file = open_matrix(tmp_path / name, vector=True)
        assert file.shape == (5, 1)
        assert np.array_equal(dense(file.load()), np.arange(5.0)[:, None])


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, REAL)
    file = open_matrix(path)
    with path.open("r+b") as stream:
        stream.truncate(200)
    with pytest.raises(SourceError):
        file.load()
    with pytest.raises(SourceError, match="ends before its last row"):
        file.rows.read(5, 7)


def test_a_zip_inside_nothing(tmp_path):
    (tmp_path / "a.npz").write_bytes(io.BytesIO(b"PK\x03\x04").getvalue() + bytes(50))
    refused(tmp_path / "a.npz", "not a sound npz file")
    with pytest.raises(InputError):
        with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
            archive.writestr("notes.txt", "no array")
        open_matrix(tmp_path / "b.npz")
