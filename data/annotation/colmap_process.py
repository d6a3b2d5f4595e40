"""COLMAP on a folder of frames, in a process of its own: ``python -m ...colmap_process FOLDER FOCAL``.

pycolmap brings a zlib whose names hide the one of Pillow, which then crashes as it writes a PNG; and an abort in its
C++ code ends this process alone. Reads FOLDER/frames/*.png, writes FOLDER/<name>.npy.
"""

import sys
from pathlib import Path

import numpy as np
import pycolmap as colmap

MATCHED = 10
"""Later frames that each is matched with, besides some farther ones (1, 2, 4, 8, ... later)."""
LEAST_INLIERS, LEAST_ANGLE = 30, 4.0
"""Of the first pair; degrees under which it sees its points, where photos, for which COLMAP's 16 is meant, lie farther
apart than the frames of a video."""
SEED = 0


def main(folder: Path, focal: float) -> None:
    """``focal`` in pixels, 0 where it is to be found; below 0 frames are matched and no more."""
    pictures, database = folder / "frames", folder / "database.db"
    colmap.logging.minloglevel = 3
    colmap.set_random_seed(SEED)
    width, height = _size(pictures)
    reader = colmap.ImageReaderOptions(camera_model="SIMPLE_PINHOLE")
    if focal > 0:
        reader.camera_params = f"{focal},{width / 2},{height / 2}"
    colmap.extract_features(
        database,
        pictures,
        camera_mode=colmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=colmap.FeatureExtractionOptions(num_threads=1, use_gpu=False),
    )
    colmap.match_sequential(
        database,
        matching_options=colmap.FeatureMatchingOptions(num_threads=1, use_gpu=False),
        pairing_options=colmap.SequentialPairingOptions(overlap=MATCHED, num_threads=1),
    )
    if focal < 0:
        _write_matches(folder, database)
        return
    options = colmap.IncrementalPipelineOptions(
        num_threads=1, random_seed=SEED, multiple_models=False, min_model_size=2
    )
    options.mapper.init_min_num_inliers, options.mapper.init_min_tri_angle = LEAST_INLIERS, LEAST_ANGLE
    options.ba_refine_focal_length = not focal
    (folder / "sparse").mkdir()
    made = colmap.incremental_mapping(database, pictures, folder / "sparse", options=options)
    if made:
        _write(folder, max(made.values(), key=lambda one: one.num_reg_images()))


def _size(pictures: Path) -> tuple[int, int]:
    first = colmap.Bitmap.read(min(pictures.iterdir()), True)
    return first.width, first.height


def _write_matches(folder: Path, database: Path) -> None:
    """[M, 6]: a frame's number, x, y of a point, and those of another frame, of all verified matches."""
    opened = colmap.Database.open(database)
    numbers = {image.image_id: int(Path(image.name).stem) for image in opened.read_all_images()}
    points = {image: opened.read_keypoints(image)[:, :2].astype(np.float64) for image in numbers}
    rows = [np.zeros((0, 6))]
    for pair, geometry in zip(*opened.read_two_view_geometries(), strict=True):
        sides = zip(colmap.pair_id_to_image_pair(pair), geometry.inlier_matches.T, strict=True)
        parts = [np.insert(points[image][chosen], 0, numbers[image], 1) for image, chosen in sides]
        rows.append(np.concatenate(parts, 1))
    np.save(folder / "matches.npy", np.concatenate(rows))


def _write(folder: Path, found: colmap.Reconstruction) -> None:
    """Frame numbers [N], extrinsics [N, 3, 4], focal length, cx, cy [3]; points [M, 4]: row of a frame, x, y, depth."""
    images = sorted((found.images[number] for number in found.reg_image_ids()), key=lambda image: image.name)
    outer = np.stack([np.asarray(image.cam_from_world().matrix()) for image in images])
    points = [
        [row, *point.xy, outer[row, 2, :3] @ found.points3D[point.point3D_id].xyz + outer[row, 2, 3]]
        for row, image in enumerate(images)
        for point in image.points2D
        if point.has_point3D()
    ]
    np.save(folder / "numbers.npy", np.array([int(Path(image.name).stem) for image in images]))
    np.save(folder / "extrinsics.npy", outer)
    np.save(folder / "camera.npy", np.asarray(found.cameras[images[0].camera_id].params))
    np.save(folder / "points.npy", np.array(points).reshape(-1, 4))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
