"""The verb ``svd``: what it prints, writes and refuses, against NumPy's answers and planted ones."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import scipy.linalg
import scipy.sparse
import torch
from safetensors.numpy import load_file

from cases import SPECTRA, gaussian, with_spectrum
from eigenscope.cli.main import main
from eigenscope.errors import EigenscopeError, InputError
from eigenscope.methods.row_blocks import complete_triplets, reduce_rows
from eigenscope.operators import streamed
from eigenscope.operators.streamed import Rows, SlicedRows
from eigenscope.report import geometry
from eigenscope.tasks import routes
from eigenscope.tasks.decompose import DecomposeOptions, decompose, make_plan, run_plan
from eigenscope.tasks.solve import solve

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((40, 25)) * np.logspace(0, -3, 25)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command line here; the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["eigenscope", "svd", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return command


def answer(run, *arguments):
    """What the verb says in JSON."""
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))


def written(name, matrix):
    """The matrix in the format that the name's ending says."""
    if name.endswith(".npy"):
        np.save(name, matrix)
    elif name.endswith(".npz"):
        scipy.sparse.save_npz(name, scipy.sparse.csr_array(matrix))
    elif name.endswith(".mtx"):
        scipy.io.mmwrite(name, matrix, precision=17)
    else:
        np.savetxt(name, matrix, delimiter=",")
    return name


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.mtx", "a.csv"])
def test_every_format_gives_the_same_values(run, name):
    found = answer(run, written(name, MATRIX))
    truth = np.linalg.svd(MATRIX, compute_uv=False)
    assert np.all(np.abs(np.array(found["values"]) - truth) <= np.array(found["bounds"]) + 1e-15)
    readings = found["readings"]
    assert readings["numerical_rank"] == 25
    assert readings["condition"] == pytest.approx(truth[0] / truth[-1], rel=1e-9)
    assert readings["density"] == 1.0
    assert found["residuals"] is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_leading_triplets_with_measured_residuals_and_error(run, dtype):
    matrix = with_spectrum(30, 20, SPECTRA["polynomial"](20), 3, dtype).numpy()
    np.save("a.npy", matrix)
    found = answer(run, "a.npy", "-k", 4, "--save", "f.npz")
    assert np.allclose(found["values"], 1 / np.arange(1.0, 5.0), rtol=1e-12)
    assert found["relative_error"] == pytest.approx(
        np.linalg.norm(1 / np.arange(5.0, 21)) / np.linalg.norm(1 / np.arange(1.0, 21)), rel=1e-10
    )
    with np.load("f.npz") as saved:
        U, S, V = saved["U"], saved["S"], saved["V"]
        assert saved["relative_error"] == found["relative_error"]
    error = np.linalg.norm(matrix - (U * S) @ V.conj().T) / np.linalg.norm(matrix)
    assert error == pytest.approx(found["relative_error"], rel=1e-10)
    assert np.allclose(U.conj().T @ U, np.eye(4), atol=1e-12)


@pytest.mark.parametrize(
    ("option", "value"), [("--energy", 0.95), ("--energy", 1.0), ("--error", 0.05), ("--error", 1e-6)]
)
def test_as_many_as_asked_and_not_one_more(run, option, value):
    np.save("a.npy", MATRIX)
    found = answer(run, "a.npy", option, value)
    truth = np.linalg.svd(MATRIX, compute_uv=False)
    left = [np.linalg.norm(truth[k:]) / np.linalg.norm(truth) for k in range(26)]
    allowed = value if option == "--error" else np.sqrt(1 - value)
    expected = next(k for k in range(26) if left[k] <= allowed + 1e-9 * (allowed == 0))
    assert found["readings"]["k"] == expected
    assert found["relative_error"] == pytest.approx(left[expected], rel=1e-6, abs=1e-14)


def test_factors_in_safetensors(run):
    np.save("a.npy", MATRIX)
    run("a.npy", "--save", "f.safetensors")
    saved = load_file("f.safetensors")
    assert np.allclose((saved["U"] * saved["S"]) @ saved["V"].T, MATRIX, atol=1e-13)
    np.save("c.npy", MATRIX + 1j)
    assert run("c.npy", "-k", 2, "--save", "f.safetensors")[0] == 2
    assert np.allclose(load_file("f.safetensors")["S"], saved["S"])  # the older file is untouched


@pytest.mark.parametrize("shape", [(300, 12), (12, 300)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("passes", [1, 2])
def test_streamed_is_as_good_as_in_memory(run, shape, order, dtype, passes, monkeypatch):
    monkeypatch.setattr(streamed, "BLOCK_BYTES", 8 * 12 * 7)
    matrix = gaussian(*shape, 5, dtype).numpy()
    np.save("a.npy", np.asarray(matrix, order=order))
    found = decompose("a.npy", k=5, passes=passes)
    u, s, vh = np.linalg.svd(matrix.astype(np.complex128 if dtype.is_complex else np.float64), full_matrices=False)
    assert np.allclose(found.values, s, rtol=1e-10)
    assert found.provenance["passes"] == passes
    assert found.readings["density"] == 1.0
    U, V = found.spectrum.left, found.spectrum.right
    if passes == 2:
        best = (u[:, :5] * s[:5]) @ vh[:5]
        assert np.allclose(((U * found.spectrum.values) @ V.mH).numpy(), best, atol=1e-9)
        assert found.error == pytest.approx(np.linalg.norm(s[5:]) / np.linalg.norm(s), rel=1e-9)
        assert found.spectrum.residuals.max() < 1e-12 * s[0]
    else:
        known = V if shape[0] > shape[1] else U
        assert (U is None) != (V is None)
        assert np.allclose((known.mH @ known).numpy(), np.eye(5), atol=1e-12)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30, 1e-200, 1e200])
def test_one_pass_keeps_its_bounds_at_every_scale(name, scale):
    values = SPECTRA[name](9).sort(descending=True).values
    matrix = with_spectrum(200, 9, values, 6) * scale
    rows = Rows(SlicedRows(matrix.numpy()), block_bytes=8 * 9 * 16)
    found = reduce_rows(rows, 9)
    made = 1e-13 * float(values[0])
    assert torch.all((found.spectrum.values / scale - values).abs() <= found.spectrum.bounds / scale + made)
    triplets, error = complete_triplets(rows, found, 4)
    assert rows.passes == 2
    left = float(torch.linalg.vector_norm(values[4:])) / max(float(torch.linalg.vector_norm(values)), 1e-300)
    assert error == pytest.approx(left, rel=1e-6, abs=1e-12)
    # The residuals are no less than those of these vectors, computed again from the matrix, and small.
    A, U, S, V = matrix / scale, triplets.left, triplets.values / scale, triplets.right
    again = torch.linalg.vector_norm(A.T @ U - V * S, dim=0).maximum(torch.linalg.vector_norm(A @ V - U * S, dim=0))
    assert torch.all(again <= triplets.residuals / scale * 1.001 + 1e-13 * values[0])
    assert float(triplets.residuals.max()) / scale <= 1e-9 * float(values[0])
    for basis in (U, V):
        assert torch.allclose(basis.mH @ basis, torch.eye(4, dtype=torch.float64), atol=1e-9)


def test_residuals_hold_for_vectors_that_are_not_the_leading_ones():
    """Right vectors of the null space have no left ones of their own: what is put there must not pass for converged."""
    matrix = with_spectrum(60, 9, SPECTRA["rank-deficient"](9), 16)
    rows = Rows(SlicedRows(matrix.numpy()), block_bytes=8 * 9 * 16)
    found = reduce_rows(rows, 9)
    last = replace(found, spectrum=replace(found.spectrum, right=found.spectrum.right[:, 5:].contiguous()))
    triplets, error = complete_triplets(rows, last, 4)
    A, U, S, V = matrix, triplets.left, triplets.values, triplets.right
    again = torch.linalg.vector_norm(A.T @ U - V * S, dim=0)
    assert float(again.max()) > 0.1
    assert torch.all(again <= triplets.residuals * 1.001)
    assert not triplets.converged.any()
    assert error == pytest.approx(1.0)


def test_a_bad_entry_of_a_streamed_file_is_found_in_its_place(run, monkeypatch):
    monkeypatch.setattr(streamed, "BLOCK_BYTES", 8 * 3 * 10)
    matrix = np.ones((100, 3))
    matrix[57, 1] = np.inf
    for order, stored in (("tall", matrix), ("wide", matrix.T)):
        np.save("a.npy", stored)
        for option in (["--passes", 1], ["--passes", 2], []):
            code, _, err = run("a.npy", *option)
            assert code == 2, order
            assert "row 57, column 1" in err or "row 1, column 57" in err
            assert "a.npy" in err


@pytest.mark.parametrize(
    ("matrix", "place"),
    [([[1.0, np.nan], [np.inf, 2]], "row 0, column 1"), ([[1.0, 2], [3, complex(0, np.nan)]], "row 1, column 1")],
)
def test_entries_that_are_not_finite(run, matrix, place):
    np.save("a.npy", np.array(matrix))
    scipy.sparse.save_npz("a.npz", scipy.sparse.csr_array(np.array(matrix)))
    for name in ("a.npy", "a.npz"):
        code, _, err = run(name)
        assert (code, place in err, name in err) == (2, True, True)


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((4, 3)), np.ones((1, 6)), np.ones((6, 1)), np.array([[5e-324]]), np.full((3, 3), 5e-324),
        np.diag([1e30, 1.0, 1e-30]), np.diag([1e300, 1e-300]), np.eye(3) * 1e-310, np.diag([1e200, 1e200]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("k", [[], ["-k", 1]])
def test_matrices_at_the_edge(run, matrix, k):
    np.save("a.npy", matrix)
    found = answer(run, "a.npy", *k)
    truth = np.linalg.svd(matrix, compute_uv=False)[: len(found["values"])]
    assert np.allclose(found["values"], truth, rtol=1e-9, atol=1e-14 * truth[0])
    assert run("a.npy", *k)[0] == 0
    assert found["readings"]["numerical_rank"] == np.linalg.matrix_rank(matrix)


def test_whole_numbers_are_judged_as_what_they_become(run):
    whole = RNG.integers(-9, 9, (30, 4))
    np.save("a.npy", np.hstack([whole, whole]))
    found = answer(run, "a.npy")
    assert found["readings"]["numerical_rank"] == 4
    assert "int64 entries are converted to float64" in found["notes"][0]


def hilbert(size):
    A = scipy.linalg.hilbert(size)
    return A, A @ np.ones(size)


@pytest.mark.parametrize("size", [4, 8, 10])
def test_solve_says_how_errors_grow(run, size):
    A, b = hilbert(size)
    np.save("a.npy", A)
    np.save("b.npy", b)
    found = answer(run, "a.npy", "--solve", "b.npy", "--save", "x.npz")["solve"]
    kappa = np.linalg.cond(A)
    assert found["condition"] == pytest.approx(kappa, rel=0.05)
    assert found["residual"][0] < 1e-12
    assert found["predicted"][0] == pytest.approx(kappa, rel=0.05)
    assert found["worst"][0] == pytest.approx(
        np.linalg.norm(b) * np.linalg.norm(np.linalg.inv(A), 2) / np.sqrt(size), rel=0.05
    )
    assert 0.01 * found["worst"][0] < found["seen"][0] <= found["worst"][0] <= found["predicted"][0]
    x = np.load("x.npz")["x"][:, 0]
    # What was promised of x: an error of b of one rounding grows at most so much.
    assert np.linalg.norm(x - 1) / np.sqrt(size) < found["worst"][0] * 10 * np.finfo(float).eps


def test_the_worst_error_is_reached_in_the_worst_direction():
    values = torch.tensor([100.0, 10.0, 1.0, 0.01], dtype=torch.float64)
    A = with_spectrum(9, 4, values, 7)
    u, s, _ = torch.linalg.svd(A, full_matrices=False)
    found = decompose(A, vectors=True)
    b = u[:, :1] * 3
    first = solve(found.matrix, found.spectrum, b)
    moved = solve(found.matrix, found.spectrum, b + 1e-8 * 3 * u[:, 3:])
    growth = float(torch.linalg.vector_norm(moved.x - first.x) / torch.linalg.vector_norm(first.x)) / 1e-8
    assert growth == pytest.approx(float(s[0] / s[-1]), rel=1e-6)
    assert first.worst[0] == pytest.approx(growth, rel=1e-6)
    assert first.predicted[0] == pytest.approx(1e4, rel=1e-9)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (8, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("ridge", [None, 0.3])
def test_solutions_are_those_of_lstsq(shape, dtype, ridge):
    A, b = gaussian(*shape, 8, dtype), gaussian(shape[0], 3, 9, dtype)
    found = decompose(A, vectors=True)
    x = solve(found.matrix, found.spectrum, b, ridge=ridge)
    gram = A.mH @ A + (ridge or 0.0) * torch.eye(shape[1], dtype=dtype)
    truth = torch.linalg.solve(gram, A.mH @ b) if ridge else torch.linalg.pinv(A) @ b
    assert torch.allclose(x.x, truth, atol=1e-10)
    residual = torch.linalg.vector_norm(A @ x.x - b, dim=0) / torch.linalg.vector_norm(b, dim=0)
    assert np.allclose(x.residual, residual, rtol=1e-9, atol=1e-13)
    assert np.all(x.seen <= x.worst * (1 + 1e-12))
    assert np.all(x.worst <= x.predicted * (1 + 1e-12))


def test_a_ridge_for_a_condition_number(run):
    A, b = hilbert(8)
    np.save("a.npy", A)
    np.save("b.npy", b)
    found = answer(run, "a.npy", "--solve", "b.npy", "--target-condition", 1e3)["solve"]
    stacked = np.vstack([A, np.sqrt(found["ridge"]) * np.eye(8)])
    assert np.linalg.cond(stacked) == pytest.approx(1e3, rel=1e-6)
    assert found["condition"] < 1e3
    assert answer(run, "a.npy", "--solve", "b.npy", "--ridge", 0.5)["solve"]["ridge"] == 0.5


def test_a_singular_matrix_gives_the_shortest_solution():
    A = with_spectrum(12, 6, SPECTRA["rank-deficient"](6), 10)
    found = decompose(A, vectors=True)
    b = gaussian(12, 1, 11)
    x = solve(found.matrix, found.spectrum, b)
    assert x.rank == 3
    assert torch.allclose(x.x, torch.linalg.pinv(A, rtol=1e-10) @ b, atol=1e-10)
    assert x.outside[0] == pytest.approx(x.residual[0], rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-k", 26], ["k = 26", "1 ≤ k ≤ 25"]), (["-k", 0], ["k = 0"]), (["--energy", 1.5], ["energy 1.5"]),
        (["--error", 0], ["error 0.0"]), (["-k", 2, "--energy", 0.5], ["one of k, energy and error"]),
        (["--passes", 3], ["3 passes"]), (["--tol", -1], ["tolerance -1.0"]), (["--dtype", "int8"], ["int8"]),
        (["--device", "nowhere"], ["nowhere"]), (["--save", "f.txt"], [".npz or .safetensors"]),
        (["--report", "a.npy"], ["ending in .html"]), (["--picture", "p.png"], ["ending in .html"]),
        (["--ridge", 1], ["--ridge without --solve"]), (["--solve", "no.npy"], ["no.npy", "no such file"]),
        (["--solve", "short.npy"], ["short.npy", "right-hand side of 3 rows", "expected 40"]),
        (["--solve", "nan.npy"], ["nan.npy", "row 3, column 0"]), (["--solve", "a.npy", "--ridge", -1], ["ridge -1.0"]),
        (["--solve", "a.npy", "--ridge", 1, "--target-condition", 9], ["one of them"]),
        (["--solve", "a.npy", "-k", 3], ["all singular values"]), (["--solve", "a.npy", "--pca"], ["--pca"]),
        (["--solve", "a.npy", "--passes", 2], ["in blocks"]), (["--target-condition", 0.5], ["more than 1"]),
        (["--save", "missing/f.npz"], ["missing/f.npz", "name a folder that exists"]), (["--nonsense"], ["nonsense"]),
    ],
)  # fmt: skip
def test_bad_options_exit_2_with_one_line_and_nothing_written(run, tmp_path, arguments, words):
    np.save("a.npy", MATRIX)
    np.save("short.npy", np.ones(3))
    bad = np.ones(40)
    bad[3] = np.nan
    np.save("nan.npy", bad)
    before = sorted(tmp_path.iterdir())
    code, out, err = run("a.npy", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert sorted(tmp_path.iterdir()) == before


def test_the_zero_matrix_solves_nothing(run):
    np.save("a.npy", np.zeros((3, 3)))
    np.save("b.npy", np.ones(3))
    code, _, err = run("a.npy", "--solve", "b.npy")
    assert code == 2
    assert "zero matrix" in err


def test_formats_that_are_not_read_by_rows(run):
    written("a.csv", MATRIX)
    code, _, err = run("a.csv", "--passes", 1)
    assert code == 2
    assert "npy or safetensors" in err


def test_the_plan_reads_no_entry(run, monkeypatch):
    np.save("a.npy", MATRIX)
    monkeypatch.setattr(np, "fromfile", lambda *_, **__: pytest.fail("entries were read"))
    found = answer(run, "a.npy", "--plan", "--solve", "b.npy")
    assert found["shape"] == "40×25"
    assert "into memory" in found["read"]
    one, two = (
        answer(run, "a.npy", "--plan", "--passes", 1, "-k", 3),
        answer(run, "a.npy", "--plan", "--passes", 2, "-k", 3),
    )
    assert (one["passes"], two["passes"]) == ("1", "2")
    assert "no residuals, which would take a second pass" in one["read"]
    assert run("a.npy", "--plan")[1].startswith("source")


def test_text_says_what_was_found(run):
    np.save("a.npy", MATRIX)
    code, out, err = run("a.npy", "--pca", "-k", 3)
    assert (code, err) == (0, "")
    for word in (
        "a.npy: 40×25, float64",
        "method",
        "numerical rank",
        "variance explained",
        "components for",
        "low-rank error",
    ):
        assert word in out
    many = run("a.npy")[1]
    assert "… and 5 more" in many
    assert "\x1b" not in many


def test_pages(run, tmp_path):
    np.save("a.npy", np.array([[1.0, 1.5], [0.0, 1.0]]))
    code, out, _ = run("a.npy", "--report", "p.html", "--picture", "q.html")
    assert code == 0
    assert out.endswith("q.html\np.html\n")
    page, picture = (tmp_path / "p.html").read_text("utf-8"), (tmp_path / "q.html").read_text("utf-8")
    assert "numerical rank" in page
    assert "numerical rank" not in picture
    for text in (page, picture):
        assert "rotate by V" in text
        assert "script-src &#39;sha256-" in text
        assert 'src="http' not in text
    np.save("<b>.npy", MATRIX)
    run("<b>.npy", "--report", "b.html")
    page = (tmp_path / "b.html").read_text("utf-8")
    assert "<h1>&lt;b&gt;.npy</h1>" in page
    assert "leading left vectors" in page


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (3, 2), (2, 3), (1, 3), (3, 1), (1, 1), (1, 2)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_last_panel_is_the_image_of_the_first(shape, seed):
    """Every drawn point of panel 4 is A times that of panel 1, and the axes are those of the ellipsoid."""
    A = np.random.default_rng(seed).standard_normal(shape)
    figure = geometry.sphere_figure(A, "a")

    def vectors(place, dimension):
        scene = "scene" if place == 1 else f"scene{place}"
        axis = "x" if place == 1 else f"x{place}"
        arrows = [t for t in figure.data if t.type != "surface" and t.mode == "lines+markers+text"]
        found = [t for t in arrows if (t.scene == scene if t.type == "scatter3d" else t.xaxis == axis)]
        return np.array([[t.x[1], t.y[1], *([t.z[1]] if t.type == "scatter3d" else [])][:dimension] for t in found]).T

    m, n = shape
    count = min(m, n)
    first, last = vectors(1, n), vectors(4, m)
    assert first.shape == (n, n)
    assert np.allclose(first.T @ first, np.eye(n), atol=1e-12)
    assert np.allclose(A @ first[:, :count], last[:, :count], atol=1e-12)
    assert np.allclose(np.linalg.norm(last, axis=0), np.linalg.svd(A, compute_uv=False), atol=1e-12)
    assert np.linalg.det(first) == pytest.approx(1.0)
    assert len(figure.layout.annotations) == 4


def test_pictures_of_what_cannot_be_drawn():
    for matrix in (np.ones((4, 4)), np.ones((2, 2)) * 1j, np.ones((0, 2)), np.ones(3)):
        with pytest.raises(InputError):
            geometry.sphere_figure(matrix)
    with pytest.raises(InputError):
        geometry.values_figure(np.array([]))
    assert geometry.sphere_figure(np.zeros((2, 2))).data
    assert geometry.values_figure(np.zeros(5)).data
    assert "2×2" in geometry.sphere_figure(np.eye(2)).layout.title.subtitle.text


def test_large_and_complex_matrices_show_their_values():
    found = decompose(MATRIX, k=4)
    titles = [note.text for note in found.figure().layout.annotations]
    assert titles == ["singular values", "energy kept", "leading right vectors", "leading left vectors"]
    assert len(decompose(gaussian(2, 2, 12, torch.complex128)).figure().layout.annotations) == 2


def test_a_matrix_too_large_for_all_values(monkeypatch):
    """The way of large matrices, tried on a small one: only the leading values, and the error from the norms."""
    monkeypatch.setattr(routes, "MOST_VALUES", 10)
    monkeypatch.setattr(routes, "COSTLY", 0.0)
    truth = np.linalg.svd(MATRIX, compute_uv=False)
    for source in (MATRIX, scipy.sparse.csr_array(MATRIX)):
        found = decompose(source)
        assert len(found.spectrum) == 20
        assert found.values is None
        assert found.error == pytest.approx(np.linalg.norm(truth[20:]) / np.linalg.norm(truth), rel=1e-5)
        assert found.readings.get("condition") is None
        assert decompose(source, energy=0.9).readings["k"] == next(
            k for k in range(25) if np.sum(truth[:k] ** 2) >= 0.9 * np.sum(truth**2)
        )


def test_a_large_sparse_matrix_is_reduced_by_rows(monkeypatch):
    monkeypatch.setattr(routes, "IN_MEMORY", 0)
    for matrix in (MATRIX, MATRIX.T, MATRIX + 1j):
        found = decompose(scipy.sparse.csc_array(matrix), k=3)
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
        assert found.spectrum.method == "gram by row blocks"
        assert np.allclose(found.values, s, rtol=1e-9)
        best = (u[:, :3] * s[:3]) @ vh[:3]
        assert np.allclose(((found.spectrum.left * found.spectrum.values) @ found.spectrum.right.mH).numpy(), best)
        assert found.error == pytest.approx(np.linalg.norm(s[3:]) / np.linalg.norm(s))


def test_progress_counts_the_rows_of_each_pass(run):
    np.save("a.npy", MATRIX)
    told = []
    run_plan(make_plan("a.npy", DecomposeOptions(k=2, passes=2)), told.append)
    assert [(event.done, event.total, event.label) for event in told] == [
        (40, 40, "rows of pass 1"), (40, 40, "rows of pass 2")
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(60, 9), (9, 60)])
def test_a_mapped_array_is_read_by_rows(tmp_path, shape, monkeypatch):
    monkeypatch.setattr(routes, "IN_MEMORY", 0)
    matrix = gaussian(*shape, 15).numpy()
    np.save(tmp_path / "a.npy", matrix)
    found = decompose(np.load(tmp_path / "a.npy", mmap_mode="r"), k=4)
    assert found.spectrum.method == "gram by row blocks"
    assert found.matrix is None
    assert np.allclose(found.values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-10)
    assert found.spectrum.left.shape == (shape[0], 4)


def test_python_entry_leaves_its_input_alone():
    given = torch.from_numpy(MATRIX.copy())
    decompose(given, pca=True, k=2)
    assert torch.equal(given, torch.from_numpy(MATRIX))
    with pytest.raises(EigenscopeError):
        decompose([[1.0, 2.0]])
    with pytest.raises(InputError, match="empty"):
        decompose(np.zeros((0, 3)))
    assert "40×25" in repr(decompose(given))


def test_the_executable_itself(tmp_path):
    np.save(tmp_path / "a.npy", MATRIX)
    code = "from eigenscope.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "svd", "a.npy", "-k", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "low-rank error" in done.stdout


@pytest.fixture
def without_gram(monkeypatch):
    """The way of matrices with more columns than a Gram matrix is formed of, tried on small ones."""
    monkeypatch.setattr(routes, "MOST_COLUMNS", 5)
    monkeypatch.setattr(routes, "MOST_VALUES", 5)
    monkeypatch.setattr(streamed, "BLOCK_BYTES", 8 * 60 * 7)


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
@pytest.mark.parametrize("passes", [1, 2])
def test_sketches_in_one_and_two_passes(run, without_gram, shape, passes):
    values = torch.cat([torch.tensor([9.0, 7.0, 5.0], dtype=torch.float64), 0.01 / torch.arange(1.0, 30.0).double()])
    matrix = with_spectrum(*shape, values, 13)
    np.save("a.npy", matrix.numpy())
    found = decompose("a.npy", k=3, passes=passes)
    S, U, V = found.spectrum.values, found.spectrum.left, found.spectrum.right
    truth = float(torch.linalg.vector_norm(matrix - (U * S) @ V.mH) / torch.linalg.vector_norm(matrix))
    assert found.provenance["passes"] == passes
    assert torch.all((S - values[:3]).abs() <= found.spectrum.bounds)
    if passes == 2:
        assert found.error == pytest.approx(truth, rel=1e-6)
        again = torch.linalg.vector_norm(matrix.mH @ U - V * S, dim=0).maximum(
            torch.linalg.vector_norm(matrix @ V - U * S, dim=0)
        )
        assert torch.all(again <= found.spectrum.residuals * 1.001 + 1e-12)
    else:
        assert 0.25 * truth <= found.error <= 4 * truth
        assert "estimated" in found.notes[-1]
        assert found.spectrum.residuals is None
    plan = answer(run, "a.npy", "-k", 3, "--passes", passes, "--plan")
    assert plan["passes"] == str(passes)
    assert run("a.npy", "--pca", "--passes", 2)[0] == 2
    assert run("a.npy", "--energy", 0.5, "--passes", 1)[0] == 2


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
@pytest.mark.parametrize("pca", [False, True])
def test_as_many_passes_as_it_takes(run, without_gram, shape, pca, monkeypatch):
    monkeypatch.setattr(routes, "IN_MEMORY", 0)
    matrix = with_spectrum(*shape, SPECTRA["decaying"](40), 14).numpy() + 1.0
    np.save("a.npy", matrix)
    inner = matrix - matrix.mean(axis=0) if pca else matrix
    truth = np.linalg.svd(inner, compute_uv=False)
    found = decompose("a.npy", k=4, pca=pca)
    assert np.allclose(found.spectrum.values, truth[:4], rtol=1e-6)
    assert found.error == pytest.approx(np.linalg.norm(truth[4:]) / np.linalg.norm(truth), rel=1e-3)
    assert 2 < found.provenance["passes"] < 20
    if pca:
        assert np.allclose(found.components.explained_variance_ratio, truth[:4] ** 2 / np.sum(truth**2), rtol=1e-6)
    enough = decompose("a.npy", error=1e-3, pca=pca)
    least = next(k for k in range(40) if np.linalg.norm(truth[k:]) <= 1e-3 * np.linalg.norm(truth))
    assert least <= len(enough.spectrum) <= least + 1
    assert enough.error <= 1e-3
