"""The outputs of one input: the names of their files, and writing them. Shared by plain and bulk prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.bulk.job import ENDINGS, PARQUET, Job
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.files import FULL
from resnest_seg.storage.remote import is_address
from resnest_seg.storage.retries import without_secrets

if TYPE_CHECKING:
    from resnest_seg.inference.backends import Backend
    from resnest_seg.inference.prediction import Prediction
    from resnest_seg.inference.predictor import Predictor
    from resnest_seg.inference.protocols import Protocol

MAP_LABELS = "_labels.tif"
"""Suffix of the labels of an image that lies on the map."""

VIDEO_ENDING = "_overlay.mp4"
"""Suffix of the output of a video."""

ALL_ENDINGS = (*ENDINGS.values(), MAP_LABELS, VIDEO_ENDING)
"""Every suffix that an output may have."""

LARGE = 64_000_000
"""Minimum pixels of an image that is read, and whose labels are written, by windows."""


def on_map(source: str, kind: str) -> bool:
    """True for a TIFF file with a CRS and a place in it.

    Args:
        source: The input.
        kind: "image", or another that has no place.
    """
    from resnest_seg.io.georeference import read_georeference

    return kind == "image" and read_georeference(source) is not None


def endings_of(source: str, kind: str, job: Job) -> dict[str, str]:
    """The suffixes of the output files of an input, by kind of output; "video" for the overlay of one."""
    if kind not in ("image", "address"):
        return {"video": VIDEO_ENDING}
    endings = {written: ENDINGS[written] for written in job.files}
    if on_map(source, kind):
        return {written: MAP_LABELS if written == "labels" else ending for written, ending in endings.items()}
    endings.pop("geopackage", None)
    return endings


def write_outputs(prediction: Prediction, paths: Mapping[str, Path], job: Job) -> None:
    """Write the files of one image.

    Args:
        prediction: What was found in it.
        paths: Kind of output -> file.
        job: How they are written.
    """
    from resnest_seg.io.visualize import write_png

    for kind, path in paths.items():
        if kind == "labels":
            prediction.save(path, ids=job.ids, cog=job.cog and path.suffix == ".tif")
        elif kind == "overlay":
            write_png(path, prediction.overlay(job.alpha))
        elif kind == "scores":
            prediction.save_scores(path)
        else:
            prediction.save_polygons(path, simplify=job.simplify)


def size_of(photo: str) -> tuple[int, int]:
    """Read (H, W) of an image file from its header; zeros of a file that has none that is known."""
    from resnest_seg.io.georeference import is_tiff, raster_size
    from resnest_seg.io.masks import image_size

    height, width = image_size(photo)
    if not height and is_tiff(photo):  # of bands that Pillow does not know
        height, width = raster_size(photo)
    return height, width


def write_by_windows(predictor: Predictor, source: str, paths: Mapping[str, Path], job: Job) -> None:
    """Segment an image of `LARGE` pixels and more, read and written by windows.

    Raises:
        DatasetError: There are no tiles, or outputs are asked for that need all of the image at once.
    """
    if job.tile is None or set(job.write) - {"labels", "overlay"} or "labels" not in paths:
        height, width = size_of(source)
        raise DatasetError(
            f"{source} has {height} x {width} pixels: give --tile 1024, and --write labels or overlay only."
        )
    predictor.segment_file(
        source,
        paths["labels"],
        ids=job.ids,
        overlay_path=paths.get("overlay"),
        alpha=job.alpha,
        cog=job.cog and paths["labels"].suffix == ".tif",
    )


def segmented(predictor: Predictor, source: str, kind: str, paths: Mapping[str, Path], job: Job) -> Prediction | None:
    """Segment an image; None of a large one, whose outputs are written meanwhile.

    Args:
        predictor: The model.
        source: The image.
        kind: "image" or "address".
        paths: Where the outputs go.
        job: How.

    Raises:
        DatasetError: It cannot be read.
    """
    if kind == "image":
        height, width = size_of(source)
        if height * width >= LARGE:
            write_by_windows(predictor, source, paths, job)
            return None
    found: Prediction = predictor(source)
    return found


def segment_video(
    predictor: Predictor,
    source: str,
    path: Path,
    job: Job,
    *,
    shown: Callable[[str], None] = lambda text: None,
    endless: bool = False,
) -> None:
    """Segment a video or a camera's stream, until it ends; writes an overlay video.

    Args:
        predictor: The model.
        source: A file, or a camera.
        path: The video that is written.
        job: How.
        shown: Is told how far it is.
        endless: Ctrl-C ends the stream, not the program.

    Raises:
        DatasetError: The input cannot be read, or is truncated; the frames before are written.
    """
    from resnest_seg.io.video import VideoReader, write_video

    problem: DatasetError | None = None
    with VideoReader(source) as frames, write_video(path, fps=frames.fps) as writer:
        try:
            for number, frame in enumerate(frames, start=1):
                writer.write(predictor(frame).overlay(job.alpha, legend=False))
                shown(f"{source}: frame {number}" + (f" of {frames.count}" if frames.count else ""))
                if number == job.frames:
                    break
        except DatasetError as error:
            problem = error
        except KeyboardInterrupt:
            if not endless or not writer.frames:
                raise
    if problem is not None:
        kept = "" if is_address(job.output) else f" {writer.frames} frames are in {path}."  # a store gets whole files
        raise DatasetError(f"{problem}{kept}")


def problem_of(error: Exception, source: str) -> str | None:
    """Say why an input could not be segmented; None of what is no fault of the input, such as a full disk, or a bug."""
    import torch

    source = without_secrets(source) if "://" in source else source
    if isinstance(error, DatasetError | ConfigError):
        return str(error) if source in str(error) else f"{source}: {error}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"{source}: there is not enough memory. Give --tile 512."
    if isinstance(error, OSError) and error.errno not in FULL:
        return f"{source}: {error.filename or ''}: {error.strerror or error}."
    return None


def protocol_for(job: Job, backend: Backend) -> Protocol:
    """Build the inference protocol of a job.

    Raises:
        ConfigError: Unknown name, an ingredient that makes no sense, or a merge for a binary or multi-label model.
    """
    from resnest_seg.inference.protocols import protocol, with_options

    if job.merge is not None and backend.decision.task != "multiclass":
        raise ConfigError(
            f"--merge {job.merge} is for multiclass models, and this one is {backend.decision.task}: of it, all "
            "protocols average sigmoids. Leave --merge out."
        )
    base = protocol(job.protocol, setting=backend.setting)
    placement, blend = ("even", "hann") if job.tile else (None, None)
    return with_options(base, scales=job.scales, flip=job.flip, merge=job.merge, placement=placement,
                        window=job.tile, overlap=job.overlap, blend=job.blend or blend)  # fmt: skip


def open_predictor(job: Job) -> Predictor:
    """Open the model of a job, ready for photos.

    Raises:
        CheckpointError: It cannot be loaded, or is not for photos.
        ConfigError: It cannot do what the job asks for.
    """
    from resnest_seg.inference.backends import RunOptions
    from resnest_seg.inference.own_network import own_network
    from resnest_seg.inference.predictor import Predictor, open_backend

    how = RunOptions(job.device, job.precision, job.compile, job.batch, threads=job.threads)
    backend = open_backend(job.checkpoint, how, into=own_network(job.model))
    if "scores" in job.write:
        backend.check_scores()
    predictor = Predictor(
        backend,
        protocol=protocol_for(job, backend),
        memory=job.memory,
        overlay_bands=job.overlay_bands,
        confidence=PARQUET in job.write,
    )
    predictor.check_photos()
    return predictor
