"""Data of a recipe in every form in which people have them, and what does not fit, named with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import qruntime
from qruntime.errors import QuantizationError
from tests.small_models import FLOAT, model_bytes, random

K = 16
RECIPE, SCHEME = "GPTQ", "W4A16-g16"


def model(*, mask: bool = False) -> qruntime.Model:
    """Two layers over x [b, s, K]; with a mask [b, s] as a second input."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["p"], name="second"),
    ]
    inputs = [("x", FLOAT, ["b", "s", K])]
    if mask:
        inputs.append(("mask", FLOAT, ["b", "s"]))
        nodes += [
            helper.make_node("Unsqueeze", ["mask", "axes"], ["wide"]),
            helper.make_node("Mul", ["p", "wide"], ["y"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["p"], ["y"]))
    weights = {"w": random(K, 24), "v": random(24, 8, seed=1), "axes": np.int64([2])}
    return qruntime.load(model_bytes(nodes, inputs, [("y", FLOAT, ["b", "s", 8])], weights), threads=1)


def feeds() -> list[dict[str, np.ndarray]]:
    return [{"x": random(2, 9 + i, K, seed=i)} for i in range(4)]


def file_of(quantized: qruntime.Model, tmp_path: Path) -> bytes:
    quantized.save(tmp_path / "saved.onnx")
    return (tmp_path / "saved.onnx").read_bytes()


def quantize(data: Any, **keywords: Any) -> qruntime.Model:
    return model().quantize(RECIPE, scheme=SCHEME, data=data, **keywords)


class Loader:
    """Something that can be gone through, and is no list."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        yield from feeds()


def refilled() -> Iterator[dict[str, np.ndarray]]:
    """One buffer for all feeds, as loaders have it that spare memory."""
    buffer = np.empty((2, 12, K), np.float32)
    for feed in feeds():
        part = buffer[:, : feed["x"].shape[1]]
        part[:] = feed["x"]
        yield {"x": part}


def files(folder: Path) -> str:
    for number, feed in enumerate(feeds()):
        np.savez(folder / f"{number}.npz", **feed)
    return str(folder)


def read_only() -> list[dict[str, np.ndarray]]:
    made = feeds()
    for feed in made:
        feed["x"].flags.writeable = False
    return made


FORMS: dict[str, Callable[[Path], Any]] = {
    "tuple": lambda folder: tuple(feeds()),
    "generator": lambda folder: (feed for feed in feeds()),
    "iterator": lambda folder: iter(feeds()),
    "function": lambda folder: feeds,
    "function of a generator": lambda folder: lambda: iter(feeds()),
    "loader": lambda folder: Loader(),
    "buffer that is filled again": lambda folder: refilled(),
    "folder": lambda folder: files(folder),
    "path": lambda folder: Path(files(folder)),
    "files one by one": lambda folder: [dict(np.load(f"{files(folder)}/{i}.npz")) for i in range(4)],
    "other order": lambda folder: feeds()[::-1],
    "sequences apart": lambda folder: [{"x": part[None]} for feed in feeds() for part in feed["x"]],
    "read-only": lambda folder: read_only(),
    "Fortran order": lambda folder: [{"x": np.asfortranarray(feed["x"])} for feed in feeds()],
    "strided": lambda folder: [{"x": np.repeat(feed["x"], 2, axis=1)[:, ::2]} for feed in feeds()],
    "backwards": lambda folder: [{"x": feed["x"][::-1]} for feed in feeds()],
    "big-endian": lambda folder: [{"x": feed["x"].astype(">f4")} for feed in feeds()],
    "lists": lambda folder: [{"x": feed["x"].tolist()} for feed in feeds()],
    "some without rows": lambda folder: [{"x": np.empty((0, 3, K), np.float32)}, *feeds(), {"x": np.empty((2, 0, K), np.float32)}],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_data_does_not_matter(form: str, tmp_path: Path):
    folder = tmp_path / "feeds"
    folder.mkdir()
    assert file_of(quantize(FORMS[form](folder)), tmp_path) == file_of(quantize(feeds()), tmp_path)


def test_one_feed_is_data_too(tmp_path: Path):
    (tmp_path / "feeds").mkdir()
    np.savez(tmp_path / "one.npz", **feeds()[3])
    wanted = file_of(quantize(feeds()[3:]), tmp_path)
    assert file_of(quantize(feeds()[3]), tmp_path) == wanted
    assert file_of(quantize(tmp_path / "one.npz"), tmp_path) == wanted
    assert file_of(quantize({"x": random(2, 12, K)}), tmp_path) != wanted


def test_memory_does_not_matter(tmp_path: Path):
    assert file_of(quantize(feeds(), calibration_bytes=0), tmp_path) == file_of(quantize(feeds()), tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data holds no feed; give a list of"),
        (iter(()), "data holds no feed"),
        (list, "data holds no feed"),
        (lambda: None, "data must be feeds, a function that returns them, or a path, got NoneType"),
        (3, "data must be feeds, a function that returns them, or a path, got int"),
        ([3], r"data\[0\] must be a mapping {input name: array}, got int"),
        ([*feeds(), (1, 2)], r"data\[4\] must be a mapping {input name: array}, got tuple"),
        (random(3, 9, K), r"data\[0\] must be a mapping {input name: array}, got ndarray"),
        ([{}], r"data\[0\]: missing input 'x'; the inputs are: x"),
        ([*feeds(), {"z": random(1, 2, K)}], r"data\[4\]: unknown input 'z'; the inputs are: x"),
        ([*feeds(), {"x": random(2, K)}], r"data\[4\]: input 'x': needs float32\[b, s, 16\], got float32\[2, 16\]"),
        ([{"x": random(1, 2, K + 1)}], r"data\[0\]: input 'x': needs float32\[b, s, 16\], got float32\[1, 2, 17\]"),
        ([{"x": random(1, 9, K).astype(np.float64)}], r"data\[0\]: input 'x': needs float32.*, got float64.*convert it with .astype"),
        ([{"x": random(1, 9, K).astype(np.float16)}], r"data\[0\]: input 'x': needs float32.*, got float16.*convert it with .astype"),
        ([{"x": None}], r"data\[0\]: input 'x': got None, needs an array"),
        ([*feeds(), {"x": np.full((1, 2, K), np.nan, np.float32)}], r"data\[4\] makes NaN or infinity of 'x'; leave that feed out"),
        ([{"x": np.full((9, 9, K), 3e38, np.float32)}], r"data\[0\] makes NaN or infinity of 'r'"),
        ([{"x": np.empty((0, 3, K), np.float32)}], "data: 'x' has no row in any feed; give feeds that are not empty"),
        ([{"x": random(1, 3, K)}], "MatMul 'first' reads 16 channels of 'x', and all feeds together hold 3 rows of it; give at least"),
        ("no/such/folder", "data: cannot read 'no/such/folder'"),
        (None, "GPTQ looks at activations, which come from runs: give data="),
    ],
    ids=range(21),
)
def test_data_that_do_not_fit_are_named(data: Any, message: str):
    with pytest.raises(QuantizationError, match=message):
        quantize(data)


def test_files_that_do_not_fit_are_named(tmp_path: Path):
    with pytest.raises(QuantizationError, match=r"has no \.npz files"):
        quantize(tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(QuantizationError, match=r"data: .*bad\.npz' is not a NumPy \.npz file"):
        quantize(tmp_path)
    np.savez(tmp_path / "bad.npz", z=random(1, 9, K))
    with pytest.raises(QuantizationError, match=r"data\[0\]: unknown input 'z'"):
        quantize(tmp_path / "bad.npz")


def test_padding_does_not_count(tmp_path: Path):
    """Whatever stands there."""
    padded = []
    for feed in feeds():
        x, mask = feed["x"], np.ones(feed["x"].shape[:2], np.float32)
        mask[0, 6:] = 0
        padded.append({"x": x, "mask": mask})
    other = [{"x": np.where(feed["mask"][..., None] > 0, feed["x"], 1000), "mask": feed["mask"]} for feed in padded]
    made = [model(mask=True).quantize(RECIPE, scheme=SCHEME, data=data, mask="mask") for data in (padded, other)]
    assert file_of(made[0], tmp_path) == file_of(made[1], tmp_path)
    unmasked = model(mask=True).quantize(RECIPE, scheme=SCHEME, data=other)
    assert file_of(unmasked, tmp_path) != file_of(made[0], tmp_path)
    with pytest.raises(QuantizationError, match="mask='m' is no input; the inputs are: x, mask"):
        model(mask=True).quantize(RECIPE, scheme=SCHEME, data=padded, mask="m")


def test_an_interrupted_call_leaves_the_model(tmp_path: Path):
    one = model()
    before = file_of(one, tmp_path)

    def interrupt(done: int, total: int, what: str) -> None:
        assert (done, total, what) == (1, 2, "quantize")
        raise KeyboardInterrupt

    def breaking() -> Iterator[Any]:
        yield feeds()[0]
        raise OSError("the disk is gone")

    with pytest.raises(KeyboardInterrupt):
        one.quantize(RECIPE, scheme=SCHEME, data=feeds(), progress=interrupt, inplace=True)
    with pytest.raises(OSError, match="the disk is gone"):
        one.quantize(RECIPE, scheme=SCHEME, data=breaking, inplace=True)
    with pytest.raises(QuantizationError):
        one.quantize(RECIPE, scheme=SCHEME, data=[{"x": random(1, 1, K)}], inplace=True)
    assert file_of(one, tmp_path) == before


def test_progress_counts_layers():
    said: list[tuple[int, int, str]] = []
    quantize(feeds(), progress=lambda *told: said.append(told))
    assert said == [(1, 2, "quantize"), (2, 2, "quantize")]
