"""A bad input as a value, and the ones that several tools are given. This module imports nothing heavy."""

import dataclasses
import os
from collections.abc import Callable

REFUSED, SOME_FAILED, WARNED = (2,), (1,), (0,)
"""Exit codes: stopped by the input; documented as "some failed" or "training would go wrong"; only told."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        name: Tool and kind; says which case it is.
        tool: A file of tools/ or datasets/ without its ending, or "python".
        words: The command line; `@/` is the folder of the fixtures, `SITE/` a web server.
        code: Exit codes that are right.
        says: Patterns, each of which must be in what the tool says, in upper or lower case.
        never: Patterns that must not be.
        writes: What below the working directory may change.
        prepare: Makes the case's own files, called with the working directory and the folder of the fixtures.
        run: For "python": called with the folder of the fixtures.
        without: Packages that cannot be imported.
        beside: Command line of the same tool that runs meanwhile, begun before, and killed at the end;
        until: it has begun when a file of this pattern is there.
        limit: Seconds after which it hangs.
        line: Of the issue, for reports.
    """

    name: str
    tool: str
    words: tuple = ()
    code: tuple = REFUSED
    says: tuple = ()
    never: tuple = ()
    writes: tuple = ()
    prepare: Callable | None = None
    run: Callable | None = None
    without: tuple = ()
    beside: tuple = ()
    until: str = ""
    limit: float = 30.0
    line: str = ""


CASES = []
"""All of them, in the order in which they are run; see `bad_cases.py`."""


def add(name, tool, *words, says=(), **details):
    says = (says,) if isinstance(says, str) else tuple(says)
    CASES.append(Case(name, tool, words, says=says, **details))


def clutter(work, root):
    """What is in the way of an output."""
    (work / "file").write_text("a file")
    (work / "full").mkdir()
    (work / "full" / "other.txt").write_text("somebody's")


NAMES = (
    ("brackets", "run [bold] x [1]"),
    ("emoji", "läufe 🌲"),
    ("newline", "two\nlines"),
    ("bytes", os.fsdecode(b"caf\xe9")),
)


DATA_REFUSED = (
    ("photo_empty.jpg", r"images/train/0\.jpg", ""),
    ("photo_text.jpg", r"images/train/0\.jpg", ""),
    ("photo_cut.jpg", r"images/train/0\.jpg", ""),
    ("photo_cut.png", r"images/train/0\.png", ""),
    ("photo_cut.webp", r"images/train/0\.webp", ""),
    ("photo_liar.png", r"images/train/0\.png", ""),
    ("photo_bomb.png", r"images/train/0\.png.*(pixels|30000)", "0"),
    ("mask_bomb", r"masks/train/0\.png.*(pixels|30000)", "0"),
    ("photo_nir.tif", r"images/train/0\.tif.*(4|band|channel)", "4"),
    ("photo_bands7.tif", r"images/train/0\.tif", "4"),
    ("photo_one_pixel.png", r"0\.png", ""),
    ("mask_jpeg", r"masks/train/0\.jpg is not a mask.*lossy", ""),
    ("mask_webp", r"masks/train/0\.webp is not a mask.*lossy", ""),
    ("mask_vp8x", r"masks/train/0\.webp is not a mask.*lossy", "5"),
    ("mask_tiff_jpeg", r"masks/train/0\.tif is not a mask.*(lossy|jpeg)", "5"),
    ("mask_size", r"0\.png.*(size|39)", ""),
    ("mask_empty", r"masks/train/0\.png", ""),
    ("mask_text", r"masks/train/0\.png", ""),
    ("mask_cut", r"masks/train/0\.png", ""),
    ("mask_ids16", r"masks/train/0\.png.*10\d\d", "25"),
    ("mask_range", r"masks/train/0\.png.*4\d", ""),
    ("masks_jpeg", r"masks/train/\d\.jpg.*lossy", "25"),
    ("masks_ids16", r"masks/train/\d\.png.*10\d\d", "25"),
    ("masks_onoff", r"255.*classes\.csv", "2"),
    ("masks_onoff_names", r"255.*(classes\.csv|object)", "2"),
    ("masks_onoff_ids", r"255", "2"),
    ("masks_ignored", r"ignored|label", ""),
    ("masks_void", r"255", ""),
    ("masks_rgb_noise", r"253 colours", ""),
    ("masks_mixed", r"ids and some hold colours", ""),
    ("masks_missing", r"no masks found", ""),
    ("mask_missing", r"masks/train/0\.png", ""),
    ("images_missing", r"no images found", ""),
    ("val_missing", r"\bval\b", ""),
    ("photos_beside", r"stray", ""),
    ("twin", r"0\.(png|jpg).*same name", ""),
    ("list_folder", r"classes\.csv.*folder|classes\.csv.*(directory|no file)", "0"),
    ("list_empty", r"classes\.csv is not a class list", ""),
    ("list_header", r"classes\.csv is not a class list.*0 classes", ""),
    ("list_blank_name", r"classes\.csv.*(empty|name|blank)", "0"),
    ("list_doubled_names", r"classes\.csv.*sky", "0"),
    ("list_doubled_ids", r"id 0 is listed twice", ""),
    ("list_nul", r"classes\.csv.*sky", "0"),
    ("list_latin", r"classes\.csv.*utf-8", ""),
    ("list_binary", r"classes\.csv", ""),
    ("list_ids", r"classes\.csv.*255", ""),
    ("list_negative", r"classes\.csv.*255", ""),
    ("list_words", r"classes\.csv.*zero", ""),
    ("list_float", r"classes\.csv.*1\.7", "12"),
    ("list_colour", r"classes\.csv.*300", ""),
    ("list_half_colour", r"classes\.csv.*(green|colou?r)", ""),
    ("list_columns", r"unknown columns label, number", ""),
    ("list_ignore", r"classes\.csv.*maybe", "12"),
    ("list_all_ignored", r"0 classes", ""),
    ("list_huge", r"classes\.csv", ""),
    ("list_quotes", r"classes\.csv.*quot", "12"),
    ("yaml_boolean", r"classes\.yaml.*(no|false)", "12"),
    ("yaml_float", r"classes\.yaml.*1\.7", "12"),
    ("yaml_float_name", r"classes\.yaml.*1\.7", "12"),
    ("yaml_null", r"classes\.yaml", "12"),
    ("yaml_repeated", r"classes\.yaml.*name", "12"),
    ("yaml_mapping", r"classes\.yaml.*not a list", ""),
    ("yaml_nested", r"classes\.yaml", "22"),
    ("yaml_tag", r"classes\.yaml.*python/object", ""),
    ("yaml_bomb", r"classes\.yaml", "22"),
    ("split_missing", r"train\.txt lists '77'", ""),
    ("split_latin", r"train\.txt", "22"),
    ("split_binary", r"train\.txt", "22"),
    ("split_absolute", r"train\.txt lists '/etc/passwd'", ""),
    ("split_upward", r"train\.txt lists '\.\./\.\./photos/good'", ""),
    ("split_empty", r"train(\.txt)?.*(no|empty|0)", ""),
    ("split_no_val", r"val\.txt", ""),
    ("split_folder", r"train\.txt|val", ""),
    ("good.zip/inside", r"good\.zip/inside|no images found", ""),
    ("cut.zip", r"cut\.zip", ""),
    ("text.zip", r"text\.zip", ""),
    ("empty.zip", r"empty\.zip", ""),
    ("encrypted.zip", r"encrypted\.zip", ""),
    ("damaged.zip", r"damaged\.zip", ""),
)
"""Name below data/, what must be said, line of the issue: the tools must stop."""


DATA_WARNED = (
    ("photo_uint16.tif", r"16.bit|range|uint16|images/train/0\.tif is not a photo", "4"),
    ("photo_rgb16.png", r"16.bit|range|uint16", "4"),
    ("turned", r"EXIF|turn", "11"),
    ("masks_absent_class", r"ghost", "2"),
    ("mask_ignored", r"done", ""),
    ("list_rows", r"done", "12"),
    ("brackets", r"done", "20"),
    ("bytes_in_name", r"done", "21"),
    ("split_both", r"done", ""),
    ("split_doubled", r"done|twice", ""),
    ("masks_bits4", r"done", "5"),
    ("masks_bits2", r"done", "5"),
    ("photo_cmyk.jpg", r"done", ""),
    ("photo_animated.webp", r"done", ""),
    ("mask_rgb", r"done|masks/train/0\.png", ""),
)
"""The same where training goes on: a warning, or nothing but the usual."""


WEIGHTS = (
    ("nothing.pth", r"nothing\.pth"),
    ("text.pth", r"text\.pth is no checkpoint"),
    ("text.safetensors", r"text\.safetensors is no checkpoint"),
    ("empty.pth", r"empty\.pth"),
    ("cut10.safetensors", r"cut10\.safetensors is no checkpoint"),
    ("cut60.safetensors", r"cut60\.safetensors is no checkpoint"),
    ("liar.safetensors", r"liar\.safetensors is no checkpoint"),
    ("short.safetensors", r"short\.safetensors"),
    ("damaged.safetensors", r"damaged\.safetensors is damaged"),
    ("evil.pth", r"evil\.pth was not loaded.*run code"),
    ("evil_zip.pth", r"evil_zip\.pth was not loaded.*run code"),
    ("list.pth", r"list\.pth is no checkpoint"),
    ("stranger.pth", r"stranger\.pth"),
    ("stranger.safetensors", r"stranger\.safetensors"),
    ("future.safetensors", r"future\.safetensors"),
    ("no_config.safetensors", r"no_config\.safetensors"),
    ("lacking.safetensors", r"lacking\.safetensors"),
    ("two.zip", r"two\.zip"),
    ("loop", r"loop"),
    ("best_is_folder", r"best_is_folder"),
)
"""Name below weights/, and what must be said: files that no tool can take for a model."""
