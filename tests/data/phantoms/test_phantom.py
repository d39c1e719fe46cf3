import csv
import json
import runpy
from pathlib import Path

from lesion_d2.data.phantoms import phantom
from lesion_d2.data.phantoms.anatomy import paint_body, sample_body
from lesion_d2.data.phantoms.lesions import LESION_TYPES, sample_lesion
from lesion_d2.data.phantoms.phantom import (
    CSV_COLUMNS,
    MIN_CONTRAST,
    PhantomOptions,
    Series,
    assign_splits,
    write_phantom,
)
from lesion_d2.data.phantoms.scanner import correlated_noise
from lesion_d2.data.phantoms.shapes import VESSEL, Canvas, Ellipsoid, Waves, polyline
from lesion_d2.data.phantoms.tissues import sample_tissues
from lesion_d2.evaluation import froc_curve
from lesion_d2.structures.recist import measure_recist

import cv2
import numpy as np
import pytest
from deeplesion_rows import read_rows
from pycocotools import mask as coco_mask
from scipy import ndimage
from skimage.feature import blob_log
from skimage.measure import block_reduce
from warm_processes import run_script

TINY = {"num_patients": 5, "size": 96, "seed": 3}
SCRIPT = Path(__file__).parents[3] / "datasets" / "prepare_phantom.py"
SAMPLE = Path(__file__).parents[3].parent / "shared" / "data" / "deeplesion_sample"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "phantom"
    assert write_phantom(root, **TINY, extent_mm=4.0, workers=1)
    return root


def numbers(text: str) -> np.ndarray:
    return np.array([float(value) for value in text.split(",")])


def read_hu(root: Path, name: str) -> np.ndarray:
    return cv2.imread(str(root / "Images_png" / name), cv2.IMREAD_UNCHANGED).astype(int) - 32768


# --- layout on disk -------------------------------------------------------------------------------


def test_columns_and_quoting_are_deeplesions(root):
    lines = (root / "DL_info.csv").read_text().splitlines()
    assert lines[0] == ",".join(CSV_COLUMNS) and len(CSV_COLUMNS) == 18
    if not (SAMPLE / "DL_info.csv").is_file():
        pytest.skip(f"no DeepLesion sample in {SAMPLE}")
    real = (SAMPLE / "DL_info.csv").read_text().splitlines()
    assert lines[0] == real[0]
    # Quotes stand around the same columns, and lists are as long and separated the same way.
    for ours, theirs in zip(lines[1:], real[1:4] * len(lines), strict=False):
        assert ours.count('"') == theirs.count('"')
        ours, theirs = next(csv.reader([ours])), next(csv.reader([theirs]))
        assert [x.count(", ") for x in ours] == [x.count(", ") for x in theirs]


def test_rows_describe_the_files(root):
    rows = read_rows(root)
    assert len(rows) >= 10
    for row in rows:
        folder, index = row["File_name"].removesuffix(".png").rsplit("_", 1)
        names = [row[k] for k in ("Patient_index", "Study_index", "Series_ID")]
        assert folder == "{:06d}_{:02d}_{:02d}".format(*map(int, names))
        assert int(index) == int(row["Key_slice_index"])
        first, last = numbers(row["Slice_range"]).astype(int)
        on_disk = sorted(p.name for p in (root / "Images_png" / folder).iterdir())
        assert on_disk == [f"{i:03d}.png" for i in range(first, last + 1)]
        x, y, z = numbers(row["Spacing_mm_px_"])
        assert x == y and z in (1, 2, 5) and 0.5 < x < 6
        assert int(index) - first >= 4 / z and last - int(index) >= 4 / z  # extent_mm
        assert (numbers(row["Image_size"]) == 96).all()
        location = numbers(row["Normalized_lesion_location"])
        assert location.min() > 0 and location.max() < 1
        assert row["Possibly_noisy"] == "0" and 1 <= int(row["Coarse_lesion_type"]) <= 8


def test_slices_are_16_bit_hounsfield_units(root):
    for path in (root / "Images_png").glob("*/*.png"):
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert pixels.dtype == np.uint16 and pixels.shape == (96, 96)
        hu = pixels.astype(int) - 32768
        assert -3024 <= hu.min() < -900 and 300 < hu.max() <= 3071
        assert (np.abs(hu) < 150).mean() > 0.15  # a body of fat and soft tissue


def test_boxes_are_the_end_points_and_five_pixels(root):
    for row in read_rows(root):
        points = numbers(row["Measurement_coordinates"]).reshape(4, 2)
        box = [*(points.min(axis=0) - 5), *(points.max(axis=0) + 5)]
        assert numbers(row["Bounding_boxes"]) == pytest.approx(box, abs=1e-3)
        lengths = np.linalg.norm(points[1::2] - points[::2], axis=1)
        assert numbers(row["Lesion_diameters_Pixel_"]) == pytest.approx(lengths, abs=1e-3)
        assert lengths[0] >= lengths[1] - 0.5


def test_true_masks_lie_in_their_boxes(root):
    masks = json.loads((root / "true_masks.json").read_text())
    rows = read_rows(root)
    assert sum(len(m) for m in masks.values()) == len(rows)
    for line, row in enumerate(rows, start=2):
        mask = coco_mask.decode(masks[row["File_name"][:-4]][str(line)])
        y, x = np.nonzero(mask)
        x1, y1, x2, y2 = numbers(row["Bounding_boxes"])
        assert x1 < x.min() and x.max() < x2 and y1 < y.min() and y.max() < y2
        recist = measure_recist(mask.astype(bool))
        assert numbers(row["Measurement_coordinates"]) == pytest.approx(recist, abs=1e-2)


def test_true_volumes_hold_the_masks_of_all_slices(root):
    masks = json.loads((root / "true_masks.json").read_text())
    volumes = json.loads((root / "true_volumes.json").read_text())
    rows = read_rows(root)
    for row, volume in zip(rows, volumes, strict=True):
        key = row["Key_slice_index"]
        assert volume["masks"][key] == masks[volume["image_id"]][str(volume["row"])]
        x1, y1, z1, x2, y2, z2 = volume["box3d"]
        assert sorted(map(int, volume["masks"])) == list(range(int(z1), int(z2) + 1))
        union = np.sum([coco_mask.decode(m) for m in volume["masks"].values()], axis=0)
        y, x = np.nonzero(union)
        assert (x1, y1, x2, y2) == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert volume["cut_off"] == (
            f"{int(z1)}, " in row["Slice_range"] + ", " or (f", {int(z2)}" in row["Slice_range"])
        )


# --- writing --------------------------------------------------------------------------------------


def test_any_number_of_workers_writes_the_same_bytes(root, tmp_path, warm_spawn):
    write_phantom(tmp_path / "b", **TINY, extent_mm=4.0, workers=2)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file()
    )
    assert all((root / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_another_seed_gives_other_patients(tmp_path):
    for seed in (1, 2):
        write_phantom(
            tmp_path / str(seed), num_patients=3, size=64, seed=seed, extent_mm=0, workers=1
        )
    first, second = ((tmp_path / s / "DL_info.csv").read_text() for s in "12")
    assert first != second


def test_splits_go_by_patient(root):
    by_patient = {}
    for row in read_rows(root):
        by_patient.setdefault(row["Patient_index"], set()).add(row["Train_Val_Test"])
    assert all(len(splits) == 1 for splits in by_patient.values())
    assert set.union(*by_patient.values()) == {"1", "2", "3"}
    splits = list(assign_splits(140, 0).values())
    assert [splits.count(s) for s in (1, 2, 3)] == [98, 21, 21]
    assert assign_splits(140, 0) != assign_splits(140, 1)


def test_a_complete_set_is_left_alone(root):
    before = (root / "DL_info.csv").stat().st_mtime_ns
    assert not write_phantom(root, **TINY, extent_mm=4.0, workers=1)
    assert (root / "DL_info.csv").stat().st_mtime_ns == before


def test_other_settings_ask_for_overwrite(root, tmp_path):
    with pytest.raises(FileExistsError, match=r"seed 3 instead of 4.*--overwrite"):
        write_phantom(root, **{**TINY, "seed": 4}, extent_mm=4.0, workers=1)
    (tmp_path / "mine").mkdir()
    for overwrite in (False, True):  # never replaces what somebody else put there
        with pytest.raises(FileExistsError, match="other than a phantom data set"):
            write_phantom(tmp_path / "mine", **TINY, workers=1, overwrite=overwrite)
    assert (tmp_path / "mine").is_dir()


def test_interrupted_writing_leaves_what_was_there(tmp_path, monkeypatch):
    options = {"size": 64, "extent_mm": 0, "workers": 1}
    write_phantom(tmp_path / "old", num_patients=3, **options)
    before = (tmp_path / "old" / "DL_info.csv").read_bytes()
    measured = []

    def interrupt(mask):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(mask)
        return measure_recist(mask)

    monkeypatch.setattr(phantom, "measure_recist", interrupt)
    for name in ("new", "old"):
        measured.clear()
        with pytest.raises(KeyboardInterrupt):
            write_phantom(tmp_path / name, num_patients=4, **options, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "DL_info.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_patients", 2),
        ("size", 16),
        ("seed", -1),
        ("extent_mm", -1.0),
        ("extent_mm", np.nan),
        ("median_diameter", 400.0),
        ("distractors", -0.5),
        ("distractors", 10.5),
        ("distractors", np.nan),
        ("workers", 0),
    ],
)
def test_options_out_of_range_are_refused_and_nothing_is_written(tmp_path, option, value):
    with pytest.raises(ValueError, match=f"phantom option {option}: found {value}, expected"):
        write_phantom(tmp_path / "phantom", **{option: value})
    assert not (tmp_path / "phantom").exists()


def test_the_command_writes_a_data_set_or_one_line_of_error(tmp_path):
    arguments = ["--root", str(tmp_path / "phantom"), "--workers", "1", "--patients", "3", "--size"]
    result = run_script(SCRIPT, *arguments, "64", cwd=tmp_path)
    assert result.returncode == 0 and "Wrote" in result.stdout
    result = run_script(SCRIPT, *arguments, "7", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip().endswith(
        "error: phantom option size: found 7, expected 64 to 2048"
    )


def test_the_preset_decides_the_folder(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    parse_args = runpy.run_path(str(SCRIPT))["parse_args"]
    for preset, name in (("quickstart-v1", "phantom"), ("full", "phantom")):
        assert parse_args(["--preset", preset]).root == Path("/data", name)
    for preset in ("columns", "clinical"):
        assert parse_args(["--preset", preset]).root == Path("/data", f"phantom_{preset}")
    assert parse_args([]).root == Path("/data/phantom_clinical")
    assert parse_args(["--preset", "columns", "--root", "here"]).root == Path("here")


def test_help_names_a_folder_with_a_percent_sign(monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/at100%done")
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(SCRIPT))["parse_args"](["--help"])
    assert "default: /at100%done/phantom, or" in capsys.readouterr().out


# --- content --------------------------------------------------------------------------------------


def empty_canvas(size: int = 100, pixel: float = 0.5, z: float = 0.0) -> Canvas:
    grid = ((np.arange(size) - (size - 1) / 2) * pixel).astype(np.float32)
    flat = np.zeros((size, size), np.float32)
    canvas = Canvas(grid, grid, z, (flat, flat), {"air": -1000.0, "a": 0.0}, flat)
    canvas.cavity[:] = 1
    return canvas


def test_shapes_have_their_areas():
    canvas = empty_canvas(z=3.0)
    canvas.ellipsoid(Ellipsoid((1, 2, 0), (12, 7, 6), "a", 1, angle=0.4))
    area = np.pi * 12 * 7 * (1 - (3 / 6) ** 2)
    assert (canvas.hu + 1000).sum() / 1000 * 0.25 == pytest.approx(area, rel=0.02)
    canvas = empty_canvas()
    slope = np.array([3.0, 0.0, 4.0])  # cut at an angle: the round tube becomes an ellipse
    canvas.tubes(polyline(np.array([-5 * slope, 5 * slope]), [5, 5], "a", VESSEL))
    assert (canvas.hu + 1000).sum() / 1000 * 0.25 == pytest.approx(np.pi * 25 * 5 / 4, rel=0.02)


def test_waves_are_a_sum_of_cosines():
    waves = Waves(np.random.default_rng(0), (20, 50), 5)
    x, y, z = np.linspace(-40, 40, 30), np.linspace(-30, 30, 20), 7.0
    slow = np.zeros((20, 30))
    for (kx, ky, kz), phase in zip(waves.frequencies, waves.phases, strict=True):
        slow += np.cos(kx * x[None] + ky * y[:, None] + kz * z + phase)
    np.testing.assert_allclose(waves(x, y, z), slow * np.sqrt(2 / 5), atol=1e-4)


def test_noise_is_correlated_over_neighbors():
    noise = correlated_noise(np.random.default_rng(0), (256, 256))
    assert noise.std() == pytest.approx(1, abs=1e-3)
    assert 0.3 < np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1] < 0.8
    assert abs(np.corrcoef(noise[:, 8:].ravel(), noise[:, :-8].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_every_lesion_is_seen(seed):
    rng = np.random.default_rng(seed)
    series = Series(rng, sample_body(rng), PhantomOptions(size=128))
    before, _ = series.render(series.key, [])
    after, masks = series.render(series.key, series.lesions)
    for mask in masks:
        assert np.abs(after - before)[mask].mean() >= 0.9 * MIN_CONTRAST["mottled"]
    assert not (np.sum(masks, axis=0) > 1).any()
    elsewhere = cv2.dilate(np.any(masks, axis=0).astype(np.uint8), np.ones((3, 3))) == 0
    assert np.abs(after - before)[elsewhere].max() < 0.5 * np.abs(after - before).max()


@pytest.mark.parametrize("kind", LESION_TYPES, ids=lambda kind: str(kind.coarse_type))
def test_every_type_finds_a_place_and_ends(kind):
    rng = np.random.default_rng(kind.coarse_type)
    grid = (np.arange(160, dtype=np.float32) - 79.5) * 2
    for _ in range(20):
        body, tissues = sample_body(rng), sample_tissues(rng)
        z = float(rng.uniform(*kind.heights))
        canvas = paint_body(body, grid, grid, z, tissues)
        lesion = sample_lesion(rng, kind, canvas, np.zeros((160, 160), bool), 18.0, 40.0)
        if lesion is not None:
            break
    else:
        pytest.fail(f"no place for type {kind.coarse_type} in 20 bodies")
    covers = []
    for height in np.arange(-40, 41, 2) + lesion.center[2]:
        canvas.z = float(height)
        covers.append(lesion.paint(canvas).sum())
    assert covers[0] == covers[-1] == 0 and max(covers) > 0
    changes = np.abs(np.diff(covers)) / max(covers)
    assert changes.max() < 0.9 or lesion.radius < 4  # no jump from slice to slice


def test_vessels_run_on_where_lesions_end():
    """A bright dot of one slice is there 4 mm further on, a little aside: it is a tube."""
    rng = np.random.default_rng(1)
    grid = (np.arange(256, dtype=np.float32) - 127.5) * 1.3
    kept, moved = [], []
    for _ in range(2):
        body, tissues = sample_body(rng), sample_tissues(rng)
        for z in (100.0, 370.0, 420.0):
            maps = [paint_body(body, grid, grid, h, tissues).labels == VESSEL for h in (z, z + 4)]
            spots, count = ndimage.label(maps[0])
            near = cv2.dilate(maps[1].astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
            for i in range(1, count + 1):
                if 5 <= (spots == i).sum() <= 60:
                    kept.append(near[spots == i].any())
                    moved.append((maps[1] != maps[0])[spots == i].mean())
    assert len(kept) > 40
    assert np.mean(kept) > 0.9 and np.mean(moved) > 0.3


# --- not a toy ------------------------------------------------------------------------------------


def find_blobs(hu: np.ndarray, window: tuple[float, float], dark: bool):
    """Boxes and scores of a Laplacian-of-Gaussian detector; boxes with DeepLesion's 5 px margin.

    It looks at every second pixel's mean with the second, a quarter of the work.
    """
    image = ((hu - window[0]) / (window[1] - window[0])).clip(0, 1)
    image = block_reduce(1 - image if dark else image, 2, np.mean)
    blobs = blob_log(image, min_sigma=1, max_sigma=8, num_sigma=6, threshold=0.05)
    layers = {s: -s * s * ndimage.gaussian_laplace(image, s) for s in np.unique(blobs[:, 2])}
    scores = np.array([layers[s][int(y), int(x)] for y, x, s in blobs])
    y, x, radius = 2 * blobs[:, 0] + 0.5, 2 * blobs[:, 1] + 0.5, 2 * blobs[:, 2] * np.sqrt(2) + 5
    return np.stack([x - radius, y - radius, x + radius, y + radius], axis=1), scores


def test_a_blob_detector_fails(tmp_path):
    """Under 50 % of the lesions at 4 false positives an image, also where only centers count."""
    write_phantom(tmp_path / "phantom", num_patients=5, seed=5, extent_mm=0, workers=1)
    truth = {}
    for row in read_rows(tmp_path / "phantom"):
        truth.setdefault(row["File_name"], []).append(numbers(row["Bounding_boxes"]))
    names = list(truth)[:18]
    assert len(names) == 18

    slices = [read_hu(tmp_path / "phantom", f"{n[:12]}/{n[13:]}") for n in names]
    boxes = [np.array(truth[n]) for n in names]
    for window, dark in (((-175, 275), False), ((-175, 275), True), ((-1024, 1050), False)):
        found = [find_blobs(hu, window, dark) for hu in slices]
        blobs, scores = zip(*found, strict=True)
        assert sum(map(len, blobs)) > 4 * len(slices)  # it does have proposals to fail with
        assert froc_curve(list(blobs), list(scores), boxes).at([4])[0] < 0.5
        # A tiny box around a blob's center overlaps itself fully: intersection over the blob's box.
        dots = [
            np.concatenate([(b[:, :2] + b[:, 2:]) / 2 + s for s in (-0.5, 0.5)], axis=1)
            for b in blobs
        ]
        lenient = froc_curve(dots, list(scores), boxes, overlap="iobb")
        assert lenient.at([4])[0] < 0.5
