import gzip
import itertools
import pickle
import shutil
from pathlib import Path

from lesion_d2.config import add_lesion_config
from lesion_d2.data.dataset_options import DatasetOptions, ExcludedSeries, read_dataset
from lesion_d2.data.deeplesion import subvolumes
from lesion_d2.data.deeplesion.annotation_files import read_annotations, write_annotations
from lesion_d2.data.deeplesion.subvolumes import load_subvolumes, register_subvolumes
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.slices.ct import read_slice, slice_size, slice_stack
from lesion_d2.data.transforms.borders import slice_files, volume_extent
from lesion_d2.evaluation.volumetric.volumes import VolumeTruth
from lesion_d2.structures.boxes import first_pixel

import nibabel
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from subvolume_files import HEIGHT, WIDTH, write_csv, write_series

SERIES, OTHER = "000001_01_01", "000002_03_01"
ONE, PART, TWO = f"{SERIES}_003-009", f"{SERIES}_005-006", f"{OTHER}_020-022"
SPACING = {SERIES: (0.7, 0.7, 2.0), OTHER: (0.8, 0.9, 5.0)}
BOXES = {  # boxes on key slices
    ONE: {4: [[1, 2, 8, 9, 4, 4]], 9: [[3, 4, 40, 20, 9, 9], [0, 0, 5, 5, 9, 9]]},
    TWO: {},
    PART: {5: np.array([[1, 2, 8, 9, 5, 5.0]])},
}


def to_nifti(volume: np.ndarray, spacing, codes: str) -> nibabel.Nifti1Image:
    """A volume (Z, H, W) of DeepLesion, with its axes along others."""
    x, y, z = spacing
    # As DeepLesion's own script writes it: rows to -y, columns to -x, slices to -z of RAS+.
    affine = np.array([[0, -x, 0, 90], [-y, 0, 0, 70], [0, 0, -z, -300], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(volume.transpose(1, 2, 0), affine)
    assert nibabel.aff2axcodes(affine) == ("P", "L", "I")
    orientations = nibabel.orientations
    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(tuple(codes))
    )
    return image.as_reoriented(turn)


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder like DeepLesion's with two series, of which one has slices around its volumes."""
    root = tmp_path / "DeepLesion"
    write_series(root / "Images_png" / SERIES, range(1, 12))
    write_series(root / "Images_png" / TWO, range(20, 23))
    rows = {f"{SERIES}_004.png": "0.7, 0.7, 2", f"{SERIES}_009.png": "9, 9, 9"}
    write_csv(root, rows | {"000009_01_01_001.png": "x", f"{OTHER}_021.png": "0.8, 0.9, 5"})
    (root / "volumes_test.pkl").write_bytes(pickle.dumps(BOXES))
    return root


def write_boxes(root: Path, content: dict) -> Path:
    file = root / "boxes.pkl"
    file.write_bytes(pickle.dumps(content))
    return file


def test_every_slice_of_every_volume_is_an_image(root):
    dicts = load_subvolumes(root, root / "volumes_test.pkl")
    assert [(d["volume"], d["slice_index"]) for d in dicts] == [
        *((ONE, n) for n in range(3, 10)),
        *((TWO, n) for n in (20, 21, 22)),
        *((PART, n) for n in (5, 6)),
    ]
    assert len({d["image_id"] for d in dicts}) == len(dicts)
    for d in dicts:
        series, number = d["volume"].rsplit("_", 1)[0], d["slice_index"]
        folder = TWO if series == OTHER else SERIES
        assert d["file_name"] == str(root / "Images_png" / folder / f"{number:03d}.png")
        assert d["image_id"] == f"{d['volume']}_{number:03d}"
        assert (d["height"], d["width"]) == (HEIGHT, WIDTH) == slice_size(d["file_name"])
        assert d["spacing"] == SPACING[series] and d["window"] == (-1350, 150)
        assert f"{d['patient']:06d}_{d['study']:02d}_{d['series']:02d}" == series
        assert "{}_{:03d}-{:03d}".format(series, *d["slice_range"]) == d["volume"]


def test_boxes_on_key_slices(root):
    dicts = load_subvolumes(root, root / "volumes_test.pkl")
    found = {(d["volume"], d["slice_index"]): d["annotations"] for d in dicts if d["annotations"]}
    # The file counts from 1, the dicts from 0.
    fixed = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "is_key": True}
    assert found == {
        (ONE, 4): [{**fixed, "bbox": [0, 1, 7, 8], "lesion_id": 1}],
        (ONE, 9): [  # the first is cut to the image
            {**fixed, "bbox": [2, 3, WIDTH - 0.5, 19], "lesion_id": 2},
            {**fixed, "bbox": [-0.5, -0.5, 4, 4], "lesion_id": 3},
        ],
        (PART, 5): [{**fixed, "bbox": [0, 1, 7, 8], "lesion_id": 1}],
    }
    for volume, group in itertools.groupby(dicts, key=lambda d: d["volume"]):
        lists = [d["volume_boxes"] for d in group]
        assert all(boxes is lists[0] for boxes in lists)
        boxes = [a["bbox"] for key, rows in found.items() if key[0] == volume for a in rows]
        assert lists[0] == boxes


def test_boxes_in_3d(root):
    rows = np.array([[1, 2, 4, 8, 9, 6], [10, 11, 9, 20, 21, 9]])
    file = write_boxes(root, {"val": {}, "test": {ONE: rows}})
    dicts = load_subvolumes(root, file, "test")
    found = [(d["slice_index"], a["lesion_id"]) for d in dicts for a in d["annotations"]]
    assert found == [(4, 1), (5, 1), (6, 1), (9, 2)]
    assert not any("is_key" in a for d in dicts for a in d["annotations"])
    assert dicts[0]["volume_boxes"] == [[0, 1, 7, 8], [9, 10, 19, 20]]
    truth = VolumeTruth.from_dicts(dicts, "test").lesions[0]
    assert truth.boxes.tolist() == [[0, 1, 4, 7, 8, 6], [9, 10, 9, 19, 20, 9]]
    unmoved = load_subvolumes(root, file, "test", first_pixel=0)
    assert unmoved[0]["volume_boxes"] == [[1, 2, 8, 9], [10, 11, 20, 21]]


@pytest.mark.parametrize("codes", ["PLI", "RAS", "LPS", "SAR", "ILP", "ASL"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_gives_what_png_gives(root, codes, ending):
    png = {d["image_id"]: d for d in load_subvolumes(root, root / "volumes_test.pkl")}
    (root / "Images_nifti").mkdir()
    for name, numbers in ((ONE, range(3, 10)), (PART, (5, 6)), (TWO, range(20, 23))):
        folder = Path(png[f"{name}_{numbers[0]:03d}"]["file_name"]).parent
        volume = np.stack([read_slice(folder / f"{n:03d}.png") for n in numbers])
        image = to_nifti(volume, SPACING[name.rsplit("_", 1)[0]], codes)
        nibabel.save(image, root / "Images_nifti" / f"{name}{ending}")
    shutil.move(root / "Images_png", root / "elsewhere")
    dicts = load_subvolumes(root, root / "volumes_test.pkl")
    mapper = _mapper()
    for d in dicts:
        expected = png[d["image_id"]]
        moved = {**expected, "file_name": expected["file_name"].replace("Images_png", "elsewhere")}
        file = f"{d['volume']}{ending}/{d['slice_index']:03d}.png"
        assert d["file_name"] == str(root / "Images_nifti" / file)
        assert d["spacing"] == pytest.approx(expected["spacing"])
        assert {**expected, "file_name": 0, "spacing": 0} == {**d, "file_name": 0, "spacing": 0}
        d["spacing"] = expected["spacing"]  # float32 in the file
        a, b = mapper(d), mapper(moved)
        assert a["crop"] == b["crop"] and (a["image"] == b["image"]).all()
    # Without rows of their series, and without the file: DeepLesion's most frequent window.
    (root / "DL_info.csv").unlink()
    assert {d["window"] for d in load_subvolumes(root, root / "volumes_test.pkl")} == {(-175, 275)}


def _mapper() -> LesionDatasetMapper:
    cfg = get_cfg()
    add_lesion_config(cfg)
    cfg.INPUT.CT.NUM_SLICES, cfg.INPUT.CT.SLICE_INTERVAL = 5, 1.5
    cfg.INPUT.CT.CROP_TO_BODY = True
    cfg.INPUT.CT.IMAGE_SIZE = 32
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [127.5] * 5
    return LesionDatasetMapper(cfg, is_train=False)


def save(folder: Path, volume: np.ndarray, name: str = f"{PART}.nii.gz", **options) -> Path:
    file = folder / name
    affine = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(volume, options.get("affine", affine)), file)
    return file


def test_nifti_values_become_whole_hu(tmp_path):
    volume = np.zeros((4, 3, 2), np.float32)
    volume[0, :, 0] = -3024.4, 0.6, 1e6
    file = save(tmp_path, volume)
    hu = read_slice(file / "005.png")
    assert hu.dtype == np.int16 and hu[0].tolist() == [-3024, 1, 32767] and hu.shape == (4, 3)
    hu[:] = 7  # the caller's own
    assert read_slice(file / "005.png")[0, 0] == -3024
    assert list(slice_files(file)) == [5, 6] and slice_size(file / "006.png") == (4, 3)
    stack = slice_stack(
        file / "005.png", num_slices=3, interval=1.0, spacing_z=1.0, window=(-10, 10)
    )
    assert stack[:, 0, 0].tolist() == [-10, -10, 0]  # 4 is not there


def test_a_nifti_file_is_read_once_and_again_where_it_changed(tmp_path, monkeypatch):
    file = save(tmp_path, np.full((4, 3, 2), -1, np.int16))
    opened = []
    load = nibabel.load
    monkeypatch.setattr(nibabel, "load", lambda f, **options: opened.append(f) or load(f))
    assert all((read_slice(file / f"00{n}.png") == -1).all() for n in (5, 6, 5))
    volume_extent(str(file), (5, 6), (1.0, 1.0))
    assert len(opened) == 1
    nibabel.save(nibabel.Nifti1Image(np.full((4, 3, 2), -2, np.int16), load(file).affine), file)
    assert (read_slice(file / "005.png") == -2).all()


@pytest.mark.parametrize("shape", [(4, 3, 2, 1), (4, 3, 2, 1, 1)])
def test_a_series_of_one_nifti_volume_is_that_volume(tmp_path, shape):
    volume = -np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    slices = [read_slice(save(tmp_path, volume) / name) for name in ("005.png", "006.png")]
    file = save(tmp_path, volume.reshape(shape))
    for name, expected in zip(("005.png", "006.png"), slices, strict=True):
        assert slice_size(file / name) == (4, 3)
        assert np.array_equal(read_slice(file / name), expected)


@pytest.mark.parametrize("offset", [1024, 32768])
def test_nifti_values_that_cannot_be_hu_are_refused(tmp_path, offset):
    """Air is below 0 HU: a volume with an offset has none, even where it is padded with 0."""
    hu = np.random.default_rng(0).integers(-1024, 1500, (4, 3, 2))
    assert read_slice(save(tmp_path, hu.astype(np.int16)) / "005.png").min() < 0
    raw = (hu + offset).astype(np.uint16)
    raw[0, 0, 0] = 0
    file = save(tmp_path, raw)
    with pytest.raises(ValueError, match=r"found values from 0 to .*, expected HU, .* subtract it"):
        read_slice(file / "005.png")


def test_a_damaged_nifti_file_is_refused_with_its_name(tmp_path):
    def message(file, kind=ValueError):
        with pytest.raises(kind) as error:
            read_slice(file / "005.png")
        assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
        return str(error.value)

    whole = np.random.default_rng(0).integers(0, 99, (40, 40, 2)).astype(np.int16)
    file = save(tmp_path, whole)
    data = file.read_bytes()
    for length in (0, 10, 200, len(data) // 2):
        file.write_bytes(data[:length])
        assert "NIfTI file (" in message(file)
    file.write_bytes(b"nothing")
    assert "found no readable NIfTI file (" in message(file)
    assert "found 3 slices from head to feet, expected 2 " in message(
        save(tmp_path, np.zeros((4, 3, 3), np.int16))
    )
    assert "found int16 of shape (4, 3, 2, 2), expected numbers in three" in message(
        save(tmp_path, np.zeros((4, 3, 2, 2), np.int16))
    )
    assert "no finite numbers" in message(save(tmp_path, np.full((4, 3, 2), np.nan)))
    assert "found the volume 'ct.nii.gz', expected <patient>" in message(
        save(tmp_path, whole, "ct.nii.gz")
    )
    assert "no such CT slice" in message(tmp_path / f"{TWO}.nii", FileNotFoundError)
    with pytest.raises(FileNotFoundError, match=r"007\.png: no such CT slice"):
        read_slice(save(tmp_path, whole) / "007.png")
    with pytest.raises(ValueError, match=r"key\.png: found the name 'key\.png', expected <slice"):
        read_slice(file / "key.png")


@pytest.mark.parametrize(
    "offset, value, message",
    [  # bytes of the header, by NIfTI-1's layout
        (70, np.int16(0), "found no readable NIfTI file ("),  # data type
        (70, np.int16(4096), "found no readable NIfTI file ("),
        (108, np.float32(8), "found no readable NIfTI file ("),  # where the pixels begin
        (108, np.float32(1e9), "found no readable NIfTI file (its voxels begin"),
        (108, np.float32(1e19), "found no readable NIfTI file (its voxels begin"),
        (108, np.float32(np.nan), "NIfTI file ("),
        (280, np.float32(np.nan), "found an affine matrix that is not finite"),
        (280, np.zeros(4, np.float32), "found an affine matrix that leaves out an axis"),
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_damaged_nifti_headers_are_one_line(tmp_path, offset, value, message, ending):
    file = save(tmp_path, np.ones((4, 3, 2), np.int16), f"{PART}{ending}")
    zipped = ending == ".nii.gz"
    data = bytearray(gzip.decompress(file.read_bytes()) if zipped else file.read_bytes())
    data[offset : offset + value.nbytes] = value.tobytes()
    file.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(ValueError) as error:
        read_slice(file / "005.png")
    assert str(error.value).startswith(f"{file}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_they_are_registered(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root.parent))
    dicts = load_subvolumes(root, root / "volumes_test.pkl")
    assert DatasetCatalog.get("deeplesion_volumes_test") == dicts
    metadata = MetadataCatalog.get("deeplesion_volumes_test")
    assert (metadata.thing_classes, metadata.evaluator_type) == (["lesion"], "lesion_volume")
    with pytest.raises(FileNotFoundError, match=r"volumes_train\.json: no such annotation file"):
        DatasetCatalog.get("deeplesion_volumes_train")
    lesions = read_annotations(root / "volumes_test.pkl")
    lesions.pop(next(iter(lesions)))
    write_annotations(root / "volumes_test.json", lesions)  # comes before the pickle
    assert DatasetCatalog.get("deeplesion_volumes_test") == dicts[7:]
    indices = {PART: [[1, 2, 1, 3, 4, 1]]}
    write_boxes(root, {"val": indices})
    try:
        register_subvolumes(
            "my_volumes",
            "$DETECTRON2_DATASETS/DeepLesion",
            "$DETECTRON2_DATASETS/DeepLesion/boxes.pkl",
            "val",
            slice_numbers="index",
        )
        nothing, [lesion] = (d["annotations"] for d in DatasetCatalog.get("my_volumes"))
        assert nothing == [] and lesion["bbox"] == [0, 1, 2, 3]
        assert first_pixel("my_volumes") == first_pixel("deeplesion_volumes_test") == 1
        options = DatasetOptions(excluded=ExcludedSeries.of(["my_volumes"]))  # all of a series
        left = read_dataset("deeplesion_volumes_test", options)
        assert [d["volume"] for d in left] == [TWO] * 3
    finally:
        DatasetCatalog.pop("my_volumes", None)
        MetadataCatalog.pop("my_volumes", None)


@pytest.mark.parametrize(
    "content, message",
    [
        (
            {f"{SERIES}_003-012": {}},
            f"volume {SERIES}_003-012: found no slice 12 in .*{SERIES}, ex",
        ),
        (
            {f"{OTHER}_001-002": {}},
            f"{OTHER}_001-002: found no folder Images_png/{OTHER}_001-002 or",
        ),
        (
            {f"{SERIES}_003-19999": {}},
            f"volume {SERIES}_003-19999: found no slice 12 and 19987 more in .*, expected all from",
        ),
        (
            {f"{SERIES}_0-49999999": {}},
            f"the volume '{SERIES}_0-49999999' of 50000000 slices, expected 20000 at most",
        ),
        ({ONE: {10: [[1, 2, 3, 4, 10, 10]]}}, "slices 10 to 10, expected a range within 3 to 9"),
        (
            {ONE: [[1, 2, 50, 6, 9, 9]]},
            rf"volume {ONE}: found the box \[1.0, 2.0, 50.0, 6.0\], exp",
        ),
        ({ONE: [[33, 2, 40, 6, 9, 9]]}, f"found the box .*, expected one inside the {WIDTH} x "),
        ({ONE: [[-41, 22, -35, 26, 9, 9]]}, "found the box"),
    ],
)
def test_an_invalid_annotation_file_is_refused(root, content, message):
    file = write_boxes(root, {TWO: {}, **content})
    with pytest.raises(ValueError, match=rf"boxes\.pkl: .*{message}") as error:
        load_subvolumes(root, file)
    assert "\n" not in str(error.value)


def test_annotations_without_end_are_refused(root, monkeypatch):
    boxes = np.array([[1, 2, 8, 9, 3, 9]] * 2)
    file = write_boxes(root, {ONE: boxes, TWO: np.array([[1, 2, 8, 9, 20, 22]])})
    dicts = load_subvolumes(root, file, box_columns="xyxyzz", slice_numbers="disk")
    assert sum(len(d["annotations"]) for d in dicts) == 17
    monkeypatch.setattr(subvolumes, "MAX_LESION_SLICES", 13)
    message = f"volume {ONE}: found lesions on 14 slices in total, expected at most 13"
    with pytest.raises(ValueError, match=message):
        load_subvolumes(root, file, box_columns="xyxyzz", slice_numbers="disk")


def test_all_bad_volumes_are_told_of(root):
    for number in (4, 7, 8):
        (root / "Images_png" / SERIES / f"00{number}.png").unlink()
    file = write_boxes(root, {ONE: {}, "000007_01_01_001-002": {}, PART: {}, TWO: {}})
    with pytest.raises(ValueError, match=r"boxes\.pkl: 2 problems\n") as error:
        load_subvolumes(root, file)
    lines = str(error.value).split("\n")[1:]
    assert "found no slice 4 and 2 more in" in lines[0] and "000007_01_01_001-002" in lines[1]
    (root / "Images_png" / SERIES / "005.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=rf"volume {PART}: .*005\.png: found 7 bytes that are no"):
        load_subvolumes(root, write_boxes(root, {PART: {}}))


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            {f"{OTHER}_021.png": "0.8, 0.9"},
            "row 2, column Spacing_mm_px_: found '0.8, 0.9', exp",
        ),
        (
            {f"{OTHER}_021.png": "0.8, 0.9, 0"},
            "row 2, column Spacing_mm_px_: found '0.8, 0.9, 0'",
        ),
        (
            {f"{OTHER}_021.png": "a, 0.9, 5"},
            "row 2, column Spacing_mm_px_: found 'a, 0.9, 5'",
        ),
        ({f"{SERIES}_004.png": "1, 1, 1"}, f"found no row of series {OTHER}"),
    ],
)
def test_an_invalid_spacing_is_refused_with_its_row(root, rows, message):
    write_csv(root, rows)
    file = write_boxes(root, {TWO: {}})
    with pytest.raises(ValueError, match=rf"DL_info\.csv: {message}") as error:
        load_subvolumes(root, file)
    assert "column" not in message or str(error.value).endswith("mm from 0.01 to 100")
    write_csv(root, {f"{SERIES}_004.png": "1, 1, x"})
    with pytest.raises(
        ValueError, match=r"DL_info\.csv: 2 problems\n.* no row.*\n.*'1, 1, x', exp"
    ):
        load_subvolumes(root, write_boxes(root, {TWO: {}, ONE: {}}))
    cells = (root / "DL_info.csv").read_text().replace("1, 1, x", "1, 1, 1")
    (root / "DL_info.csv").write_text(cells.replace("-1350, 150", "150, -1350"))
    with pytest.raises(ValueError, match=r"row 2, .* found '150, -1350', expected low < high, HU"):
        load_subvolumes(root, write_boxes(root, {ONE: {}}))
    file = write_boxes(root, {TWO: {}})
    for text, found in (("File_name\n1", "column Spacing_mm_px_, DICOM_"), ("", "readable CSV")):
        (root / "DL_info.csv").write_text(text)
        with pytest.raises(ValueError, match=rf"DL_info\.csv: found no {found}"):
            load_subvolumes(root, file)
    (root / "DL_info.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"DL_info\.csv: no such file"):
        load_subvolumes(root, file)
