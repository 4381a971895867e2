"""The cost of many photos, many GPUs and much data, on paper: the tables of docs/scale.md.

python docs/scale_model.py            # prints them
python docs/scale_model.py --write    # puts them into docs/scale.md; a test holds that they are there

Change `MEASURED` to the figures of your machine (`resnest-seg benchmark scale`, series photos, listing, index, shards,
files), `PRICES` to your bill and `SCENES` to your photos. Everything is a product or a quotient of these: there is no
queueing, no interference and no failure in it.
"""

import argparse
import dataclasses
import math
from pathlib import Path

PAGE = Path(__file__).with_name("scale.md")
PAGE_OF_A_LISTING = 1000
"""Objects that a store returns for one LIST request."""

MILLION, BILLION, TERABYTE = 10**6, 10**9, 10**12


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured: seconds unless the name says otherwise; where, docs/scale.md says.

    Attributes:
        decode_pixel: Decoding a JPEG, a pixel, one core.
        encode_pixel: Encoding labels as PNG, a pixel, one core.
        disk_file: Until the disk has a file and its name, in which a process waits.
        job_photo: Everything else of a job, a photo: header, batch, manifest.
        list_file: Listing a file and giving it a place, one process.
        list_bytes: Memory of that.
        index_bytes: A sample in the index of shards, on the disk.
        index_memory: Bytes of it in memory, with a name of 29 bytes.
        load_sample: Loading a training sample of 683 x 512 with augmentation to a crop of 480, one core.
        load_file: Loading a small pair (96 x 128) from files that the system has in memory, one core.
        load_shard: The same from shards.
    """

    decode_pixel: float = 6.2e-9
    encode_pixel: float = 7.1e-9
    disk_file: float = 0.0073
    job_photo: float = 0.0026
    list_file: float = 0.0001
    list_bytes: float = 2180
    index_bytes: float = 20.6
    index_memory: float = 62
    load_sample: float = 0.0079
    load_file: float = 0.0020
    load_shard: float = 0.0018


@dataclasses.dataclass(frozen=True)
class Prices:
    """Assumed prices, in money units. No vendor is meant.

    Attributes:
        gpu_hour: A GPU with its share of cores and memory.
        list_million: A million LIST requests.
        put_million: A million PUT requests.
        get_million: A million GET requests.
        outside_gigabyte: Bytes that leave the region of the store; within it they are free.
        store_gigabyte_month: Keeping them.
    """

    gpu_hour: float = 2.5
    list_million: float = 5.0
    put_million: float = 5.0
    get_million: float = 0.4
    outside_gigabyte: float = 0.05
    store_gigabyte_month: float = 0.02


@dataclasses.dataclass(frozen=True)
class Scene:
    """Photos and what computes them.

    Attributes:
        name: What it is called.
        pixels: Of a photo.
        photo_bytes: A JPEG file.
        label_bytes: A PNG file of its labels.
        network: Seconds of a photo on one GPU.
        cores: Cores to each GPU.
        processes: Processes to each GPU.
    """

    name: str
    pixels: int
    photo_bytes: int
    label_bytes: int
    network: float
    cores: int = 12
    processes: int = 1


H100_PIXEL = 0.0147 / 480**2
"""Seconds a pixel of DeepLabV3 on ResNeSt-50 in bf16 through a `Predictor`, measured on one H100 at 480 x 480."""

SMALL = Scene("0.23 megapixels", 480**2, 60_000, 6_000, H100_PIXEL * 480**2)
SCENES = (
    SMALL,
    dataclasses.replace(SMALL, name="the same, network 10 times faster", network=SMALL.network / 10),
    dataclasses.replace(
        SMALL, name="the same, 4 processes a GPU", network=SMALL.network / 10, processes=4
    ),
    Scene("12 megapixels", 12 * MILLION, 3_500_000, 150_000, H100_PIXEL * 12 * MILLION),
    Scene("12 megapixels, network 10 times faster, 4 processes", 12 * MILLION, 3_500_000, 150_000,
          H100_PIXEL * 1.2 * MILLION, processes=4),
)  # fmt: skip

MEASURED, PRICES = Measured(), Prices()


def stages(scene: Scene, measured: Measured = MEASURED) -> dict[str, float]:
    """Seconds that a process spends on a photo, one after the other, by what it does."""
    return {
        "decoding JPEG": measured.decode_pixel * scene.pixels,
        "network": scene.network,
        "encoding PNG": measured.encode_pixel * scene.pixels,
        "waiting for the disk": measured.disk_file,
        "the rest": measured.job_photo,
    }


def rate(scene: Scene, measured: Measured = MEASURED) -> float:
    """Photos a second of one GPU: as many as its processes do, its network allows and its cores allow."""
    taken = stages(scene, measured)
    on_cores = taken["decoding JPEG"] + taken["encoding PNG"] + taken["the rest"]
    return min(scene.processes / sum(taken.values()), 1 / scene.network, scene.cores / on_cores)


def bottleneck(scene: Scene, measured: Measured = MEASURED) -> str:
    """What takes the largest part of a process's time; the network, if the GPU is never idle."""
    taken = stages(scene, measured)
    return "network" if rate(scene, measured) * scene.network > 0.95 else max(taken, key=taken.__getitem__)


@dataclasses.dataclass(frozen=True)
class Bill:
    """What a prediction of photos in an object store costs.

    Attributes:
        hours: Of the job, without its start.
        gpu_hours: Of all GPUs.
        lists: LIST requests.
        gets: GET requests.
        puts: PUT requests.
        terabytes: Read and written.
        units: Money units a million photos: GPUs; requests; traffic, if the store is in another region.
        list_hours: Of a process that lists the inputs.
        list_gigabytes: Of its memory.
    """

    hours: float
    gpu_hours: float
    lists: int
    gets: int
    puts: int
    terabytes: float
    units: tuple[float, float, float]
    list_hours: float
    list_gigabytes: float


def bill(
    scene: Scene,
    photos: int,
    gpus: int,
    *,
    rows: int = 1,
    listings: int = 1,
    measured: Measured = MEASURED,
    prices: Prices = PRICES,
) -> Bill:
    """The bill of a job.

    Args:
        scene: The photos.
        photos: How many.
        gpus: How many GPUs share them.
        rows: Photos to an object that is written: 1 for PNG files, 64 for Parquet.
        listings: Processes that each list all photos; 0 if manifests name them.
        measured: What was measured.
        prices: What it costs.
    """
    seconds = photos / (rate(scene, measured) * gpus)
    lists = listings * math.ceil(photos / PAGE_OF_A_LISTING)
    puts = math.ceil(photos / rows) + math.ceil(photos / 64)  # outputs, and lines of the manifest in chunks
    requests = (lists * prices.list_million + photos * prices.get_million + puts * prices.put_million) / MILLION
    gpu_hours = gpus * seconds / 3600
    millions, terabytes = photos / MILLION, photos * (scene.photo_bytes + scene.label_bytes) / TERABYTE
    traffic = 1000 * terabytes * prices.outside_gigabyte
    return Bill(
        hours=seconds / 3600,
        gpu_hours=gpu_hours,
        lists=lists,
        gets=photos,
        puts=puts,
        terabytes=terabytes,
        units=(gpu_hours * prices.gpu_hour / millions, requests / millions, traffic / millions),
        list_hours=photos * measured.list_file / 3600,
        list_gigabytes=photos * measured.list_bytes / 1e9,
    )


def shown(value: float) -> str:
    """Three digits, with thousands apart."""
    if value == 0:
        return "0"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    rounded = round(value, 2 - math.floor(math.log10(abs(value))))
    return f"{rounded:,.{digits}f}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stage_table() -> str:
    """Where the time of a photo goes."""
    rows = []
    for scene in SCENES:
        parts = [shown(1000 * taken) for taken in stages(scene).values()]
        busy = f"{100 * rate(scene) * scene.network:.0f} %"
        rows.append([scene.name, *parts, shown(rate(scene)), busy, bottleneck(scene)])
    heads = ["photos", *(f"{name}, ms" for name in stages(SMALL)), "photos/s a GPU", "GPU busy", "bottleneck"]
    return table(heads, rows)


def bill_table() -> str:
    """What jobs cost."""
    jobs = [
        ("a million, files, 1 GPU", MILLION, 1, 1, 1),
        ("a million, files, 8 GPUs", MILLION, 8, 1, 8),
        ("a billion, files, 1,000 GPUs that list each", BILLION, 1000, 1, 1000),
        ("a billion, files, a manifest for each GPU", BILLION, 1000, 1, 0),
        ("a billion, Parquet, a manifest for each GPU", BILLION, 1000, 64, 0),
    ]
    rows = []
    for name, photos, gpus, together, listings in jobs:
        made = bill(SMALL, photos, gpus, rows=together, listings=listings)
        each = bill(SMALL, photos if listings else photos // gpus, gpus)
        rows.append([name, shown(made.hours), shown(made.gpu_hours), shown(made.lists), shown(made.gets),
                     shown(made.puts), shown(made.terabytes), *map(shown, made.units), shown(each.list_hours),
                     shown(each.list_gigabytes)])  # fmt: skip
    heads = ["job", "hours", "GPU hours", "LIST", "GET", "PUT", "TB", "units/million: GPUs", "requests", "traffic",
             "reading the list, h", "memory of the list, GB"]  # fmt: skip
    return table(heads, rows)


PAIR_BYTES, GPU_IMAGES = 200_000, 88
"""Bytes of a training pair; images a second that one H100 trains (16 of 480 x 480, bf16, measured)."""


def training_table(*, total: int = 100 * TERABYTE, gpus: int = 1000, shard: int = 256 * MILLION) -> str:
    """An epoch over data that fits on no disk, as files and as shards."""
    samples, speed, rows = total // PAIR_BYTES, gpus * GPU_IMAGES, []
    loading = MEASURED.load_sample - MEASURED.load_file  # beyond what opening and reading a small pair takes
    for name, objects, gets, opening in (
        ("files", 2 * samples, 2 * samples, MEASURED.load_file),
        ("shards", math.ceil(total / shard), samples, MEASURED.load_shard),
    ):
        lists = math.ceil(objects / PAGE_OF_A_LISTING)
        requests = (lists * PRICES.list_million + gets * PRICES.get_million) / MILLION
        held = samples * (MEASURED.index_memory if name == "shards" else MEASURED.list_bytes)
        cores, gigabits = (loading + opening) * speed, speed * PAIR_BYTES * 8 / 1e9
        hours, month = samples / speed / 3600, 1e-9 * total * PRICES.store_gigabyte_month
        figures = (objects, lists, gets, requests, month, held / 1e9, cores, gigabits, hours)
        rows.append([name, *map(shown, figures)])
    heads = ["100 TB as", "objects", "LIST", "GET an epoch", "requests, units an epoch", "storage, units a month",
             "list or index, GB a process", "cores for 1,000 GPUs", "network, Gbit/s", "hours an epoch"]  # fmt: skip
    return table(heads, rows)


def input_table() -> str:
    """All inputs of the model."""
    rows = [[f"`{name}`", f"{value:g}"] for each in (MEASURED, PRICES) for name, value in vars(each).items()]
    half = math.ceil(len(rows) / 2)
    return table(["input", "value", "input", "value"], [
        [*rows[index], *(rows[index + half] if index + half < len(rows) else ["", ""])] for index in range(half)
    ])  # fmt: skip


JOBS = {
    "plain, one process": (13.6, {100: (3.82, 386), 1000: (30.5, 389), 10_000: (265.0, 394)}),
    "ray, two actors": (136.0, {100: (0.0, 1939), 1000: (19.0, 1972), 10_000: (117.0, 1990)}),
}
"""Engine -> seconds of a job of one photo, and photos -> further seconds, MiB: one run of `benchmark scale`."""


def check_table() -> str:
    """The straight line of the model, by the largest job, beside what was measured."""
    rows = []
    for engine, (start, jobs) in JOBS.items():
        most = max(jobs)
        each = jobs[most][0] / most
        for photos, (seconds, mebibytes) in jobs.items():
            ratio = f"{seconds / (each * photos):.2f}"
            figures = (start, photos, each * photos, seconds)
            rows.append([engine, *map(shown, figures), ratio, shown(mebibytes)])
    heads = [
        "engine",
        "start, s",
        "photos",
        "model: further s",
        "measured: further s",
        "measured / model",
        "private MiB",
    ]
    return table(heads, rows)


TABLES = {
    "inputs": input_table,
    "check": check_table,
    "stages": stage_table,
    "bills": bill_table,
    "training": training_table,
}


def written(page: str) -> str:
    """The page with its tables as they are now, each between <!-- NAME --> and <!-- end -->."""
    for name, make in TABLES.items():
        before, _, rest = page.partition(f"<!-- {name} -->\n")
        _, found, after = rest.partition("<!-- end -->")
        assert found, f"docs/scale.md has no place for the table {name}"
        page = f"{before}<!-- {name} -->\n{make()}\n<!-- end -->{after}"
    return page


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for name, make in TABLES.items():
        print(f"\n{name}\n{make()}")


if __name__ == "__main__":
    main()
