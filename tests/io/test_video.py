"""Videos come back as they were written, and broken ones say so after their last good frame."""

import shutil
import struct

import cv2
import numpy as np
import pytest

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.io.video import CODECS, FPS, VideoReader, write_video

COLORS = np.array([[250, 20, 30], [20, 240, 40], [30, 20, 230], [240, 230, 20]], np.uint8)


def frame(index, size=(48, 64)):
    """One colour, with a white corner below right: order, channels and edges can be seen in it."""
    picture = np.full((*size, 3), COLORS[index % 4], np.uint8)
    picture[-16:, -16:] = 255
    return picture


def film(path, count=40, size=(48, 64), fps=10.0):
    with write_video(path, fps=fps) as video:
        for index in range(count):
            video.write(frame(index, size))
        assert video.frames == count
    return path


def pictures_to(path, *pictures):
    with write_video(path, fps=10) as video:
        for picture in pictures:
            video.write(picture)


def read(path):
    with VideoReader(path) as video:
        return list(video)


def good_part(path):
    """Frames up to the error, and the error."""
    seen = []
    with VideoReader(path) as video, pytest.raises(DatasetError) as error:
        seen.extend(video)  # keeps what came before the error
    return seen, str(error.value)


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("size", [(48, 64), (47, 65), (1, 1)])
def test_what_is_written_is_read(suffix, size, tmp_path):
    path = film(tmp_path / "new" / f"a{suffix}", count=9, size=size, fps=12.5)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with VideoReader(path) as video:
        assert video.fps == pytest.approx(12.5)
        assert video.count == 9
        frames = list(video)
    assert len(frames) == 9
    even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    for index, picture in enumerate(frames):
        assert picture.shape == (*even, 3)
        assert picture.dtype == np.uint8
        expected = np.pad(frame(index, size), [(0, even[0] - size[0]), (0, even[1] - size[1]), (0, 0)], mode="edge")
        assert np.abs(picture.astype(int) - expected).mean() < 12


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_a_file_that_is_cut_off_gives_what_it_has(suffix, tmp_path, capfd):
    whole = film(tmp_path / f"whole{suffix}")
    cut = tmp_path / f"cut{suffix}"
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) * 6 // 10])
    frames, message = good_part(cut)
    assert 2 < len(frames) < 38
    assert message.startswith(f"{cut} ends after frame {len(frames)} of about 40: it is corrupt or incomplete")
    for picture, expected in zip(frames[:-1], read(whole), strict=False):  # the last one may be half there
        assert np.array_equal(picture, expected)
    assert capfd.readouterr().err == ""


def test_a_damaged_mp4_gives_what_it_has(tmp_path, capfd):
    data = film(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[:700] + bytes(900) + data[1600:])
    frames, message = good_part(tmp_path / "a.mp4")
    assert len(frames) < 38
    assert f"ends after frame {len(frames)} of about 40" in message
    assert capfd.readouterr().err == ""


def test_a_frame_too_many_in_the_count_is_no_damage(tmp_path):
    """The count of the file's header is made larger, by which recorders may be wrong and by which they are not."""
    path = film(tmp_path / "a.avi", count=10)
    data = path.read_bytes()
    place = data.index(b"strh") + 8 + 32  # dwLength of the stream's header
    assert struct.unpack_from("<I", data, place) == (10,)
    for claimed in (12, 13):
        path.write_bytes(data[:place] + struct.pack("<I", claimed) + data[place + 4 :])
        with VideoReader(path) as video:
            assert video.count == claimed
        if claimed == 12:
            assert len(read(path)) == 10
        else:
            assert len(good_part(path)[0]) == 10


@pytest.mark.parametrize(
    ("claims", "count", "fps"), [({"count": -9e18}, None, 10.0), ({"count": 0.0}, None, 10.0), ({"fps": 0.0}, 8, FPS),
                                 ({"fps": float("nan")}, 8, FPS), ({"fps": 90000.0}, 8, FPS)]
)  # fmt: skip
def test_containers_that_talk_nonsense(claims, count, fps, tmp_path, monkeypatch):
    path = film(tmp_path / "a.mkv", count=8)
    real = cv2.VideoCapture

    class Liar:
        def __init__(self, source):
            self.real = real(source)
            self.isOpened, self.read, self.release = self.real.isOpened, self.real.read, self.real.release

        def get(self, key):
            names = {cv2.CAP_PROP_FPS: "fps", cv2.CAP_PROP_FRAME_COUNT: "count"}
            return claims.get(names.get(key), self.real.get(key))

    monkeypatch.setattr(cv2, "VideoCapture", Liar)
    with VideoReader(path) as video:
        assert (video.count, video.fps) == (count, fps)
        assert len(list(video)) == 8


def test_a_camera_and_its_end(monkeypatch):
    class Camera:
        def __init__(self, source):
            assert source == 3
            self.left = 2

        def isOpened(self):  # noqa: N802
            return True

        def get(self, key):
            return -1.0

        def read(self):
            self.left -= 1
            return (True, np.array([[[1, 2, 3]]], np.uint8)) if self.left >= 0 else (False, None)

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    with VideoReader("camera:3") as video:
        assert (video.count, video.fps) == (None, FPS)
        frames = iter(video)
        assert next(frames).tolist() == next(frames).tolist() == [[[3, 2, 1]]]
        with pytest.raises(DatasetError, match="camera:3 gives no more frames, after 2"):
            next(frames)


def test_no_videos(tmp_path, capfd):
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "empty.avi").write_bytes(b"")
    data = film(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])  # its list of frames was at the end
    for name in ("text.mp4", "empty.avi", "cut.mp4"):
        with pytest.raises(DatasetError, match=rf"cannot read .*{name}: not a video, or a corrupt one"):
            VideoReader(tmp_path / name)
    with pytest.raises(DatasetError, match=r"cannot read .*none.mp4: No such file"):
        VideoReader(tmp_path / "none.mp4")
    with pytest.raises(DatasetError, match="cannot read camera:98: the camera cannot be opened"):
        VideoReader("camera:98")
    assert capfd.readouterr().err == ""


def test_a_failed_video_leaves_the_old_one(tmp_path):
    path = film(tmp_path / "a.mp4")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"a.mp4: frame 2 is 48x66, and the first was 48x64"):
        pictures_to(path, frame(0), frame(1, (48, 66)))
    with pytest.raises(DatasetError, match=r"cannot write .*a.mp4: no frame was added"), write_video(path, fps=10):
        pass
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written(tmp_path, monkeypatch):
    for path, fps, says in (
        (tmp_path / "a.gif", 10, r"videos are written as .mp4, .*, not as .*a.gif"),
        (tmp_path / "a.mp4", 0, "more than 0 and at most 240 frames a second, not 0"),
        (tmp_path / "a.mp4", float("nan"), "not nan"),
    ):
        with pytest.raises(ConfigError, match=says), write_video(path, fps=fps):
            pass
    monkeypatch.setitem(CODECS, ".avi", "ZZZZ")
    with pytest.raises(ConfigError, match=r"no encoder 'ZZZZ' for 48x64 at 10 frames a second. Write .mp4 instead"):
        film(tmp_path / "a.avi")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_did_not_get_all_its_frames_is_an_error(tmp_path, monkeypatch):
    """As on a full disk, where OpenCV says nothing."""
    short = film(tmp_path / "short.avi", count=5)

    real = cv2.VideoWriter

    class Full:
        fourcc = real.fourcc

        def __init__(self, path, *options):
            self.path, self.real = path, real(path, *options)
            self.isOpened, self.write = self.real.isOpened, self.real.write

        def release(self):
            self.real.release()
            shutil.copy(short, self.path)

    monkeypatch.setattr(cv2, "VideoWriter", Full)
    with pytest.raises(DatasetError, match=r"a.avi: 5 of 40 frames are in the file. Is the disk full"):
        film(tmp_path / "a.avi")
    assert list(tmp_path.iterdir()) == [short]
