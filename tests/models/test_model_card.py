"""Model cards: read back by huggingface_hub, rendered by a Markdown parser, and their code carried out."""

import contextlib
import copy
import dataclasses
import html.parser
import http.server
import io
import json
import re
import threading

import fsspec
import huggingface_hub.repocard as repocard
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from support.small_models import small_segmenter

import resnest_seg
from resnest_seg.cli import eval as evaluation
from resnest_seg.cli import export
from resnest_seg.config import DataConfig, PretrainConfig, RunConfig
from resnest_seg.config_reading import flatten, kinds_of
from resnest_seg.errors import ConfigError, run_tool
from resnest_seg.evaluation.metrics import ConfusionMatrix
from resnest_seg.evaluation.report import EvalReport, Method
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import BEST, HUB_FILE, Checkpoint
from resnest_seg.models.loading import build_segmenter
from resnest_seg.models.model_card import MAIN_KEYS, PATHS, make_way_for_card, model_card, published_config

HOSTILE = ("a|b", "<script>alert(1)</script>", "[x](http://y)", "`code`", "*b* _i_ ~~s~~ __m__", "&amp;", "---", "# h",
           "yes: {no", "- 'x", "\\| \\", "$x$", "!![i](j)", "Straße_1")  # fmt: skip


def report_of(classes, *, dataset="mine", protocols=("whole", "slide")):
    """An evaluation of random labels."""
    random, scores = np.random.default_rng(0), {}
    for name in protocols:
        labels, guesses = (torch.from_numpy(random.integers(0, len(classes), (20, 20))) for _ in range(2))
        scores[name] = ConfusionMatrix(len(classes)).update(labels, guesses).scores()
    methods = {name: Method("skipped", f"{name}: scales 1") for name in protocols}
    return EvalReport("m", dataset, "test", 7, tuple(classes), scores, methods)


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    built = build_segmenter("resnest14_tiny", head="fcn", num_classes=3).eval()
    built.label_space = LabelSpace.numbered(3, names=["sky", "road", "a car"], name="mine")
    return built


class Cells(html.parser.HTMLParser):
    """The text of the cells of every table, row by row, and all tags."""

    def __init__(self):
        super().__init__()
        self.rows, self.tags, self.inside = [], set(), False

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = self.inside or tag in ("td", "th")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def rendered(card):
    cells = Cells()
    cells.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(ModelCard(card).text))
    return cells


def test_the_metadata_are_what_the_hub_reads(segmenter, tmp_path):
    report = report_of(segmenter.label_space.names)
    segmenter.save_pretrained(tmp_path, model_card_kwargs={"report": report})
    data = repocard.metadata_load(tmp_path / "README.md")
    assert (data["pipeline_tag"], data["library_name"]) == ("image-segmentation", "resnest_seg")
    assert {"model_hub_mixin", "semantic-segmentation", "resnest"} <= set(data["tags"])
    name, results = repocard.model_index_to_eval_results(data["model-index"])
    assert name == "fcn_resnest14_tiny_ade20k"
    assert data["datasets"] == ["zhoubolei/scene_parse_150"]
    found = {(each.metric_type, each.metric_name): each for each in results}
    for protocol in ("whole", "slide"):
        iou = found["mean_iou", f"mean IoU (protocol {protocol})"]
        assert iou.metric_value == pytest.approx(report.mean_iou(protocol), abs=1e-6)
        assert iou.metric_args == {"protocol": f"{protocol}: scales 1"}
        assert (iou.dataset_type, iou.dataset_split, iou.task_type) == ("mine", "test", "image-segmentation")
        assert found["accuracy", f"pixel accuracy (protocol {protocol})"].metric_value == pytest.approx(
            report.scores[protocol].pixel_accuracy, abs=1e-6
        )
    again = ModelCard.load(tmp_path / "README.md")
    again.save(tmp_path / "again.md")  # by which the hub's client rewrites a card
    assert repocard.metadata_load(tmp_path / "again.md") == data


@contextlib.contextmanager
def validator(monkeypatch):
    """The hub's address for `ModelCard.validate`, with the rules of its model card specification."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            problem = "" if self.path == "/api/validate-yaml" and asked["repoType"] == "model" else "wrong question"
            try:
                data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", asked["content"], re.S)[1])
                for index in data["model-index"]:
                    assert index["name"]
                    for result in index["results"]:
                        assert all((result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]))
                        assert all(metric["type"] and "value" in metric for metric in result["metrics"])
            except (AssertionError, KeyError, TypeError, yaml.YAMLError) as error:
                problem = f"invalid: {error!r}"
            self.send_response(400 if problem else 200)
            self.end_headers()
            self.wfile.write(problem.encode())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(repocard.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        yield
        server.shutdown()


def test_the_hubs_validator_takes_it(segmenter, monkeypatch):
    with validator(monkeypatch):
        card = segmenter.generate_model_card(report_of(segmenter.label_space.names))
        card.validate()
        with pytest.raises(ValueError, match="invalid"):
            ModelCard(str(card).replace("model-index", "model-indices")).validate()


def test_hostile_names_are_shown_verbatim():
    space = LabelSpace.numbered(len(HOSTILE), names=HOSTILE, name="<b>|`")
    config = RunConfig(data=DataConfig(dataset="my|data <i>", images="```\n<details>`````"))
    checkpoint = Checkpoint(config, space, {}, origin={"step": 7})
    report = report_of(HOSTILE, dataset="yes: {no\n---\n# x")
    card = model_card(checkpoint, description="a | b <u>", report=report)
    cells = rendered(card)
    classes = [row for row in cells.rows if len(row) == 6][1:]
    assert [row[2] for row in classes] == list(HOSTILE)
    assert not cells.tags & {"script", "i", "b", "u", "a", "em", "strong", "s"}
    assert ModelCard(card).data.eval_results[0].dataset_name == "yes: {no\n---\n# x"
    whole = re.search(r"(`{6,})yaml\n(.*?)\n\1\n", card, re.S)[2]
    assert yaml.safe_load(whole)["data"]["images"].endswith("`````")
    assert ["data.dataset", "my|data <i>"] in cells.rows
    percents = [f"{100 * iou:.2f}" for iou in report.scores["whole"].class_iou]
    assert [row[4] for row in classes] == percents


def test_many_classes_are_folded():
    space = LabelSpace.of("ade20k")
    card = model_card(Checkpoint(RunConfig(), space, {}), description="x")
    assert "<details><summary>150 classes</summary>\n\n| index" in card
    assert len([row for row in rendered(card).rows if len(row) == 4]) == 151


def test_the_code_on_the_card_runs(segmenter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    segmenter.save_pretrained(".")
    photo = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(photo).save("photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(encoding="utf-8"), re.S)
    exec(code, {})
    labels = resnest_seg.Predictor(segmenter)("photo.jpg").labels
    assert np.array_equal(np.array(Image.open("labels.png")), labels)


def test_the_code_for_a_network_of_ones_own_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def build(classes):
        own = small_segmenter(classes=classes)
        return resnest_seg.Segmenter(own.encoder, own.head, own.aux_head, num_classes=classes)

    own = build(3)
    own.label_space = LabelSpace.numbered(3)
    own.save_pretrained(".")
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save("photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(encoding="utf-8"), re.S)
    exec(code, {"build": build})
    assert (tmp_path / "labels.png").is_file()


def test_what_a_card_cannot_say_is_refused_or_left_out(segmenter):
    with pytest.raises(ConfigError, match=r"the report is of 2 classes, x, y ..., and the model has 3, sky, road"):
        segmenter.generate_model_card(report_of(("x", "y")))
    with pytest.raises(ConfigError, match="image classifier"):
        model_card(Checkpoint(PretrainConfig(), None, {}, num_classes=4), description="x")
    nameless = build_segmenter("resnest14_tiny", head="fcn", num_classes=4, in_channels=5)
    text = nameless.generate_model_card().text
    assert "does not name its 4 classes" in text
    assert "images [N, 5, H, W]" in text
    assert "mean IoU" not in text
    binary = LabelSpace.numbered(2, names=["rest", "crack"]).for_task("binary", positive=["crack"])
    weights = {"thresholds": torch.tensor([0.25])}
    config = RunConfig.from_dict({"model": {"task": "binary"}})
    text = model_card(Checkpoint(config, binary, weights), description="x", report=report_of(("crack",)))
    assert "Decided from these probabilities on: crack 0.250." in text


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"encoder_weights": "imagenet"}, ["ImageNet"]),
        ({"encoder_weights": "resnest50-528c19ca"}, ["ImageNet"]),
        ({"encoder_weights": "resnest101"}, ["ImageNet"]),
        ({"encoder_weights": "timm/resnest50d.in1k"}, ["ImageNet"]),
        ({"encoder_weights": "/mine/resnest50-528c19ca.pth"}, ["ImageNet"]),
        ({"weights": "resnest50", "encoder_weights": "imagenet"}, ["ImageNet", "Training began from other weights"]),
        (
            {"weights": "fcn_s101-d8_512x1024_80k_cityscapes"},
            ["Cityscapes' terms", "ImageNet", "Training began from other weights"],
        ),
        ({"weights": "runs/other", "encoder_weights": "imagenet"}, ["Training began from other weights"]),
        ({"encoder_weights": "runs/resnest50"}, ["The encoder began from other weights"]),
        ({}, []),
    ],
    ids=str,
)
def test_the_terms_of_initial_weights_are_named(keys, says):
    config = RunConfig.from_dict({"model": keys, "data": {"dataset": "camvid"}})
    card = model_card(Checkpoint(config, None, {}, num_classes=2), description="x")
    limits = card.partition("## Limits")[2]
    terms = {
        "ImageNet",
        "Cityscapes' terms",
        "Training began from other weights",
        "The encoder began from other weights",
    }
    assert sorted(term for term in terms if term in limits) == says


def test_paths_of_the_authors_machine_are_not_published():
    values = {"data": {"root": "/home/me/mine", "images": "C:\\me\\*.png"}, "model": {"weights": "/home/me/best.pt"}}
    config = RunConfig.from_dict({**values, "output": "/home/me/runs/x"})
    card = model_card(Checkpoint(config, None, {}, num_classes=2), description="x")
    assert "home" not in card
    assert "me\\" not in card
    assert "best.pt" in card
    keys = set(flatten(RunConfig()))
    assert set(MAIN_KEYS) <= keys
    assert set(PATHS) <= keys


NO_PATHS = {"data.positive", "data.bands", "optim.freeze", "train.tags"}
"""Keys that may be left out and hold words of another kind; all others of text may be paths."""


@pytest.mark.parametrize("here", ["/home/me/clinic/x", "s3://me:home@clinic/x?home", "C:\\home\\me\\x", "../home/x/"])
def test_no_file_of_a_saved_model_has_a_path_of_its_author(segmenter, here, tmp_path):
    kinds = {key: kind for key, kind in kinds_of(RunConfig).items() if "str" in str(kind.type) and kind.null}
    assert set(PATHS) == set(kinds) - NO_PATHS
    values = {key: [here, f"/home/other/{here}"] if kinds[key].listed else here for key in PATHS}
    own = copy.copy(segmenter)
    own.config = RunConfig.from_dict(flatten(own.config) | values)
    own.save_pretrained(tmp_path)
    for name in ("README.md", "config.json"):
        assert "home" not in (tmp_path / name).read_text(encoding="utf-8"), name
    header = (tmp_path / HUB_FILE).read_bytes()
    assert b"home" not in header[: 8 + int.from_bytes(header[:8], "little")]
    loaded = resnest_seg.Segmenter.from_pretrained(tmp_path)
    assert (loaded.config.data.root, loaded.config.distill.teacher) == ("x", ("x", "x (2)"))
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["data"]["root"] == "x"
    assert own.config.data.root == here  # the model at hand keeps its own


@pytest.mark.long
def test_a_saved_model_reads_no_file_that_only_has_the_name_of_its_authors(segmenter, tmp_path, monkeypatch):
    """Whoever evaluates it in a folder with a classes.csv, a cache or a list of their own gets none of them."""
    random, files = np.random.default_rng(0), {"classes.csv": b"name,id\nsky,0\nroad,1\na car,2\n"}
    for name in "ab":
        images = {
            "images": random.integers(0, 256, (40, 40, 3), np.uint8),
            "masks": random.integers(0, 3, (40, 40), np.uint8),
        }
        for folder, pixels in images.items():
            Image.fromarray(pixels).save(picture := io.BytesIO(), "PNG")
            files[f"{folder}/train/{name}.png"] = picture.getvalue()
    store, root = fsspec.filesystem("memory"), f"memory://{tmp_path.name}"
    for name, data in files.items():
        store.pipe(f"{root}/{name}", data)
    author, other = "/home/me/x/", {"dataset": "folder", "workers": 0, "base_size": 40, "crop_size": 32}
    data = DataConfig(
        root=root, classes=f"{author}classes.csv", cache=f"{author}cache", samples=f"{author}a.txt", **other
    )
    own = copy.copy(segmenter)
    own.config = dataclasses.replace(own.config, data=data)
    own.save_pretrained(tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    assert "classes: classes.csv" in card
    assert "samples: a.txt" in card
    matrices = []
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        if name == "full":
            (tmp_path / "full" / "classes.csv").write_text("name,id\nsky,1\nroad,0\na car,2\n")
            (tmp_path / "full" / "a.txt").write_text("a\n")
        words = ["--checkpoint", str(tmp_path / "hub" / HUB_FILE), "--data.root", root, "--split", "train"]
        assert run_tool(lambda words=words: evaluation.main([*words, "--output", "report.json"])) == 0
        matrices.append(EvalReport.load("report.json").matrices["whole"])
        assert not (tmp_path / name / "cache").exists()
    assert matrices[0] == matrices[1]
    assert np.sum(matrices[0]) == 2 * 40 * 40


def test_patterns_and_names_that_are_no_paths_of_a_machine_are_published_whole():
    given = {"data.images": "photos/{split}/*.png", "model.encoder_weights": "timm/resnest50d.in1k"}
    found = published_config(RunConfig.from_dict(given))
    assert {key: flatten(found)[key] for key in given} == given
    assert published_config(found) == found


def test_a_model_saved_again_has_its_own_card_and_an_edited_one_stays(segmenter, tmp_path):
    report, card = report_of(segmenter.label_space.names), tmp_path / "README.md"
    segmenter.save_pretrained(tmp_path)
    assert "This card shows no evaluation." in card.read_text(encoding="utf-8")
    segmenter.save_pretrained(tmp_path, model_card_kwargs={"report": report})
    assert "On mine test, 7 images" in card.read_text(encoding="utf-8")
    ModelCard.load(card).save(card)  # by the hub's client, with nothing changed
    segmenter.save_pretrained(tmp_path)  # of a model that was not evaluated
    written = card.read_text(encoding="utf-8")
    assert "On mine test" not in written
    edited = ModelCard.load(card)
    edited.data.license = "mit"
    for text in (
        str(edited),
        written.replace("# fcn", "# my fcn"),
        written + "More.\n",
        "mine",
        "---\n- 1\n" + written,
    ):
        card.write_text(text, encoding="utf-8")
        with pytest.warns(UserWarning, match=r"README.md was edited, or .* Delete it and save the model again"):
            segmenter.save_pretrained(tmp_path, model_card_kwargs={"report": report})
        assert card.read_text(encoding="utf-8") == text


def test_hostile_metadata_leave_a_card_unedited(tmp_path):
    space = LabelSpace.numbered(len(HOSTILE), names=HOSTILE, name="<b>|`")
    report = report_of(HOSTILE, dataset="yes: {no\n---\n# x")
    card = tmp_path / "README.md"
    ModelCard(model_card(Checkpoint(RunConfig(), space, {}), description="-->", report=report)).save(card)
    make_way_for_card(card)
    assert not card.exists()


def test_export_writes_a_folder_for_the_hub(segmenter, tmp_path, capsys):
    run = tmp_path / "runs ü" / "[1]"
    run.mkdir(parents=True)
    config = RunConfig.from_dict({**segmenter.config.to_dict(), "data": {"dataset": "synthetic"}})
    Checkpoint(config, segmenter.label_space, segmenter.state_dict(), origin={"step": 12}).save(run / BEST)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(run / "contact_sheet.png")
    report_of(segmenter.label_space.names, dataset="other").save(run / "val_report.json")

    def call(*words):
        return run_tool(lambda: export.main(["--checkpoint", str(run), "--format", "hub", *words]))

    assert call() == 0
    assert f"hf upload NAME/MODEL '{run / 'hub'}'" in capsys.readouterr().out
    names = {path.name for path in (run / "hub").iterdir()}
    assert names == {"README.md", "config.json", "contact_sheet.png", "model.safetensors"}
    card = (run / "hub" / "README.md").read_text(encoding="utf-8")
    assert "(contact_sheet.png)" in card
    assert "On other test, 7 images" in card
    assert "step 12" in card
    assert resnest_seg.Segmenter.from_pretrained(run / "hub").label_space == segmenter.label_space
    assert call() == 2
    assert "already holds files. Choose another --output, or pass --overwrite." in capsys.readouterr().err
    (run / "hub" / "README.md").write_text("edited", encoding="utf-8")
    assert call("--overwrite") == 0
    assert (run / "hub" / "README.md").read_text(encoding="utf-8") == card
    assert call("--overwrite", "--half") == 2
    assert "leave out --half" in capsys.readouterr().err
    report_of(("x", "y")).save(tmp_path / "wrong.json")
    assert call("--overwrite", "--report", str(tmp_path / "wrong.json")) == 2
    assert "the report is of 2 classes" in capsys.readouterr().err
    assert (run / "hub" / "README.md").read_text(encoding="utf-8") == card
