"""The Ray engine: the processes of a Ray cluster, or of the cores of this machine, take the items that are not done.

Ray Data hands chunks of items to actors, each of which holds a model (`Worker`) and writes outputs and manifest itself,
as the plain engine does: only a line an item comes back. Which engine, or how many starts, did what makes no difference
to the results. Ray's CheckpointConfig (beta) is not used: it knows what a writer of Ray's own has written as blocks,
and these are files by the rule of names and a manifest that every engine reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import pickle
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TextIO

import psutil

from resnest_seg.bulk.engines import ROWS, Summary, remaining
from resnest_seg.bulk.job import PARQUET, Job, from_the_root
from resnest_seg.bulk.ledger import Outcome
from resnest_seg.bulk.listing import BulkItem
from resnest_seg.bulk.ray_watch import AGAIN, watched
from resnest_seg.errors import EXIT_TERMINATED, ConfigError, ResNeStSegError, load_extra, printable
from resnest_seg.storage.remote import is_address

CHUNK = 32
"""Maximum items that an actor is given at once, which is what is done again if it is killed."""

CHUNKS_EACH = 8
"""Chunks that every actor gets at least, if there are so many items: else the last one would be waited for long."""

BLOCKS = 10_000
"""Maximum of Ray's blocks: with more chunks, a block has several."""

DEATHS = 10
"""Times that a chunk is begun. Ray begins it again whenever its actor dies, without end, and some inputs kill every
actor: those for which there is not enough memory. If `Attempts` dies, it counts anew."""

PAUSE = 24 * 3600
"""Seconds without a result after which the job is given up though actors are at work: chunks of large images take long,
and Ray's default is half an hour. Where none is at work, see `QUIET`."""

SIGN = 20.0
"""Seconds between two signs of an actor that it is at work."""

ANSWER = 5.0
"""Seconds for which the head waits to be told how many signs there were."""

HELPER = 5 * 60.0
"""Seconds for which an actor waits for `Attempts`, which Ray starts again if it dies."""

STORE = 128 << 20
"""Bytes of shared memory for Ray's objects, here names and outcomes; what does not fit is on the disk."""


@dataclasses.dataclass(frozen=True)
class Actors:
    """How many processes there are, and what each has.

    Attributes:
        count: Processes that the cluster has room for now, 1 or more.
        cpus: Cores of each, and threads of its calculations.
        gpus: GPUs of each: 0 or 1.
        most: Processes, if the cluster grows; None for as many as there is room for then.
    """

    count: int
    cpus: int
    gpus: int
    most: int | None


class Work(Protocol):
    """What an actor does with chunks. The constructor is called in the actor, when it is given its first one."""

    def __call__(self, chunk: Any, /) -> Any:
        """Return the result of a chunk; both are pickled."""


class Attempts:
    """Counts how often each chunk was begun, and signs of work. It is an actor of its own: those that count may die."""

    def __init__(self) -> None:
        self.begun: dict[int, int] = {}
        self.signs = 0

    def begin(self, number: int) -> int:
        """Return how often a chunk has been begun now."""
        self.sign()
        self.begun[number] = self.begun.get(number, 0) + 1
        return self.begun[number]

    def sign(self) -> None:
        """Count a sign that an actor is at work."""
        self.signs += 1

    def seen(self) -> int:
        """Return how many signs there were."""
        return self.signs


class Actor:
    """Ray's side of a `Work`: rows with a pickled chunk become rows with its pickled result.

    Errors of the user's, and of the system, are results, too: as exceptions they would come back as Ray's own.

    Args:
        work: The class of the work.
        arguments: What it is constructed with.
        threads: Of its calculations.
        attempts: Handle of an `Attempts`.
        limit: Times that a chunk is begun.
        folder: The current one of the head, where relative paths begin, such as those of a data set.
    """

    def __init__(
        self,
        work: Callable[..., Work],
        arguments: tuple[Any, ...],
        threads: int,
        attempts: Any,
        limit: int,
        folder: str,
    ) -> None:
        self.work, self.arguments, self.threads = work, arguments, threads
        self.attempts, self.limit = attempts, limit
        with contextlib.suppress(OSError):  # a machine without it may have all that is asked for elsewhere
            os.chdir(folder)
        self.ready: Work | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Do the chunks of a batch."""
        found = [
            self._result(int(number), chunk) for number, chunk in zip(batch["number"], batch["chunk"], strict=True)
        ]
        return {"result": [pickle.dumps(result) for result in found]}

    def _begin(self, number: int) -> int:
        """Return how often a chunk has been begun now."""
        import ray

        try:
            return int(ray.get(self.attempts.begin.remote(number), timeout=HELPER))
        except ray.exceptions.RayError as error:
            raise ResNeStSegError(
                f"the process that counts how often inputs are begun does not answer ({type(error).__name__}): it was "
                f"killed, and Ray could not start it again. What is done stays done. {AGAIN}"
            ) from None

    @contextlib.contextmanager
    def _signs(self) -> Iterator[None]:
        """Let a thread tell now and then that this process is at work: a chunk may take longer than the head waits."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(SIGN):
                self.attempts.sign.remote()

        threading.Thread(target=run, daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _result(self, number: int, pickled: bytes) -> Any:
        chunk = pickle.loads(pickled)
        try:
            if self._begin(number) > self.limit:
                raise ResNeStSegError(
                    f"{self.limit} processes died with these inputs, as they do where there is not enough memory: "
                    f"{_named(chunk)}. What is done stays done. Give --cpus-per-actor a larger number, so that there "
                    "are fewer processes, or --tile 512, and start the same command again."
                )
            with self._signs():
                if self.ready is None:
                    import cv2
                    import torch

                    torch.set_num_threads(self.threads)
                    cv2.setNumThreads(self.threads)
                    self.ready = self.work(*self.arguments)
                return self.ready(chunk)
        except (ResNeStSegError, OSError) as error:
            return _Ended(error)


@dataclasses.dataclass(frozen=True)
class _Ended:
    """Stands for the result of a chunk: what ends the job."""

    error: Exception


class _Predicting:
    """The work of a prediction."""

    def __init__(self, job: Job) -> None:
        from resnest_seg.bulk.worker import Worker

        self.worker = Worker(job)

    def __call__(self, chunk: Sequence[BulkItem]) -> list[Outcome]:
        """Segment items."""
        return self.worker(chunk)


def run_ray(
    job: Job,
    items: Sequence[BulkItem],
    *,
    cpus: int | None = None,
    report: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Segment the items that are not done by actors of Ray.

    Args:
        job: What is done; `begin` has recorded it.
        items: All items of the job.
        cpus: Cores of an actor; None for the default of `actors_for`.
        report: Is told of the state after every chunk.

    Raises:
        OSError: What ends the job, such as a full disk; what is done is written down.
        CheckpointError: See `Worker`.
        ConfigError: See `Worker`; or there is no Ray, or no cluster where RAY_ADDRESS says.
        ResNeStSegError: See `results_of`.
    """
    if not remaining(job, items):
        return Summary(total=len(items), before=len(items))
    with ray_session() as ray:
        todo = remaining(job, items)  # again: actors of a start that was killed just now have ended meanwhile
        summary = Summary(total=len(items), before=len(items) - len(todo))
        report(summary)
        if not todo:
            return summary
        warn_of_folder(ray, job.output)
        actors = actors_for(ray, job.device, cpus)
        size = _chunk_size(len(todo), actors.count, most=ROWS if PARQUET in job.write else CHUNK)
        chunks = [todo[first : first + size] for first in range(0, len(todo), size)]
        began = 0.0
        # closed before Ray ends, which it would start again for the closing
        with contextlib.closing(results_of(ray, _Predicting, (_anywhere(job, actors),), chunks, actors)) as found:
            for outcomes in found:
                now = time.monotonic()
                began = began or now - sum(outcome.seconds for outcome in outcomes)  # without starting and loading
                summary.add(outcomes, now - began)
                report(summary)
    return summary


def _anywhere(job: Job, actors: Actors) -> Job:
    """The job with paths from the root: an actor runs in another folder, perhaps on another machine."""
    place = job.output if is_address(job.output) else os.path.abspath(job.output)  # noqa: PTH100  # keeps links
    checkpoint = from_the_root(job.checkpoint)
    model = None if job.model is None else str(Path(job.model).absolute())
    device = job.device if actors.gpus else "cpu"
    return dataclasses.replace(
        job, output=place, checkpoint=checkpoint, model=model, device=device, threads=actors.cpus
    )


def _chunk_size(items: int, actors: int, *, most: int) -> int:
    return min(max(items // (actors * CHUNKS_EACH), 1), most)


def warn_of_folder(ray: Any, output: str) -> None:
    """Say that a folder must be one for all machines of a cluster, if there are several."""
    machines = sum(node["Alive"] for node in ray.nodes())
    if machines > 1 and not is_address(output):
        print(
            f"warning: the cluster has {machines} machines, each of which writes into {printable(output)}: it must be "
            "a folder that all of them share, or --output an address such as s3://bucket/out.",
            file=sys.stderr,
        )


def actors_for(ray: Any, device: str, cpus: int | None) -> Actors:
    """Decide what an actor has: a GPU where the cluster has some, else one core.

    On CPUs, processes of one thread are faster than threads: decoding and PNG writing are divided, too.

    Args:
        ray: The module, connected.
        device: "auto", "cpu" or "cuda"; which GPU it is, Ray decides.
        cpus: Cores of an actor; None for 1.

    Raises:
        ConfigError: A GPU by its number, or there is none; more cores than there are.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"--device {device}: with --engine ray, Ray chooses the GPU. Give --device cuda, cpu or auto."
        )
    resources = ray.cluster_resources()
    has, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if device == "cuda" and not has:
        raise ConfigError("--device cuda: the Ray cluster has no GPU (ray status shows what it has).")
    gpus = 1 if has and device != "cpu" else 0
    each = cpus or 1
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
    if each > largest:
        raise ConfigError(
            f"--cpus-per-actor {each}: the largest machine of the Ray cluster has {largest} cores. Give no more."
        )
    rooms = [cores // each, has] if gpus else [cores // each]
    count = max(min(rooms), 1)
    return Actors(count, each, gpus, count if cluster_address() is None else None)


def results_of(
    ray: Any, work: Callable[..., Work], arguments: tuple[Any, ...], chunks: Iterable[Any], actors: Actors
) -> Generator[Any, None, None]:
    """Have chunks done by actors; yields their results as they come, in no order, each once.

    A chunk whose actor dies is done again by another: results must not depend on how often it was begun. Whoever leaves
    off early closes the generator while Ray is connected.

    Args:
        ray: The module, connected.
        work: What an actor does.
        arguments: Of its constructor, pickled.
        chunks: What is done; all of them are held.
        actors: How many there are.

    Raises:
        ResNeStSegError, OSError: What ended the work, in an actor; or actors died with some chunk again and again, none
            is at work any more (see `watched`), or Ray failed.
    """
    from ray.data import ActorPoolStrategy

    _configure()
    rows = [{"number": number, "chunk": pickle.dumps(chunk)} for number, chunk in enumerate(chunks)]
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    # On a cluster that others use, one actor has to do; if it grows, so do they. Two chunks each are sent ahead: no
    # actor waits for the head, and few are done again when one dies.
    pool = ActorPoolStrategy(
        min_size=1,
        max_size=actors.most,
        initial_size=min(actors.count, len(rows)),
        max_tasks_in_flight_per_actor=2,
    )
    found = ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS)).map_batches(
        Actor,
        fn_constructor_args=(work, arguments, actors.cpus, attempts, DEATHS, str(Path.cwd())),
        batch_size=1,  # a chunk: the size of a batch has to be a number where there are GPUs
        compute=pool,
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
    )

    def signs() -> int:
        return int(ray.get(attempts.seen.remote(), timeout=ANSWER))

    try:
        # The first actor of a cluster that others use may wait for room; on our own, there is room.
        with contextlib.closing(watched(found.iter_rows(), signs, patient=actors.most is None)) as coming:
            for row in coming:
                result = pickle.loads(row["result"])  # of a process of our own
                if isinstance(result, _Ended):
                    raise result.error
                yield result
    except Exception as error:
        if not _is_of_ray(error):
            raise
        what = f"{type(error).__name__}: {printable(_first_line(error)).rstrip('.')}"
        raise ResNeStSegError(f"Ray has failed with {what}. What is done stays done. {AGAIN}") from error
    finally:
        ray.kill(attempts)


def _is_of_ray(error: Exception) -> bool:
    """True of a failure of Ray's, such as a machine that it lost; False of what our code raised in an actor: a bug."""
    from ray import exceptions
    from ray.data import exceptions as data_exceptions

    cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
    timeout = getattr(data_exceptions, "ExecutionTimeoutError", exceptions.RayError)  # newer than the oldest Ray
    return isinstance(cause, exceptions.RayError | timeout) and not isinstance(cause, exceptions.UserCodeException)


def _named(chunk: Any) -> str:
    """The first and the last input of a chunk."""
    names = [getattr(item, "key", f"sample {item}") for item in (chunk[0], chunk[-1])]
    return " to ".join(dict.fromkeys(names))


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _configure() -> None:
    """Choose Ray Data's settings."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False  # we have our own
    context.print_on_execution_start = False
    context.max_errored_blocks = 0  # an error that is no photo's ends the job: a block that is dropped would be lost
    context.retried_map_errors = False  # likewise, and `Worker` itself tries again what passes
    context.actor_task_retry_on_errors = False
    context.max_consecutive_actor_init_deaths = DEATHS  # by default, the first that is killed as it starts ends the job
    context.execution_no_progress_timeout_s = PAUSE
    context.execution_options.preserve_order = False  # else a slow chunk would hold back what is done


@contextlib.contextmanager
def ray_session() -> Iterator[Any]:
    """Connect to the cluster that RAY_ADDRESS names, or that `ray start` has started here; else start one of our own.

    Our own is bound to loopback, has no dashboard, reports no usage, and ends with the context. RAY_ADDRESS=local wants
    it in any case. In a process that is connected already, this changes nothing. What Ray prints meanwhile goes into a
    file.

    Yields:
        The module ray, connected.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster where RAY_ADDRESS says.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        with _quiet(Path(os.devnull)):
            yield sys.modules["ray"]
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster_address()
    if address is not None and not _answers(address):
        raise _no_cluster(address, "nothing listens there.")
    if address is None:
        # Ray takes 127.0.0.1 for the machine's own address, where all of its ports would be open to the network, but
        # for those systems where firewalls ask: read when ray is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # By default Ray makes a token of its own for every cluster, and leaves it in the user's home.
        if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with contextlib.ExitStack() as opened:
        ray = load_extra("ray", "ray")
        load_extra("ray.data", "ray")
        opened.enter_context(_as_before(signal.SIGTERM))
        _end_by_sigterm()
        folder = opened.enter_context(_short_folder())
        opened.enter_context(_quiet(folder / "ray.log"))
        opened.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"ray\.")  # of Ray's code about Ray's code
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        opened.callback(_stop, ray, psutil.Process().children(recursive=True), own=address is None)
        if address is None:
            ray.init(
                address="local",
                num_cpus=_cores(),
                include_dashboard=False,
                object_store_memory=STORE,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder),
            )
        else:
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise _no_cluster(address, _first_line(error)) from None
        _end_by_sigterm()  # again, as Ray has put its own in place
        yield ray


def cluster_address() -> str | None:
    """The address of a running cluster; None if there is none, and one of our own is to be started."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named:
        return None if named == "local" else named
    record = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "ray_current_cluster")  # Ray's own place
    try:
        found = record.read_text().strip()
    except (OSError, ValueError):
        return None
    return found if ":" in found and _answers(found) else None  # or it has ended


def _answers(address: str) -> bool:
    """False if nothing listens at HOST:PORT, for which Ray would wait for minutes; True of other forms."""
    match = re.fullmatch(r"\[?([^/\]]+)\]?:(\d{1,5})", address)
    if match is None:
        return True
    try:
        with socket.create_connection((match[1], int(match[2])), timeout=10):
            return True
    except (OSError, OverflowError):
        return False


def _no_cluster(address: str, why: str) -> ConfigError:
    return ConfigError(
        f"no Ray cluster answers at {printable(address)} (RAY_ADDRESS): {why} Start it (ray start --head), or unset "
        "RAY_ADDRESS to use the cores of this machine."
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stop(ray: Any, before: Sequence[psutil.Process], *, own: bool) -> None:
    """Disconnect, and end the processes of a cluster of our own, but for those before."""
    with _undisturbed(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        children = [child for child in psutil.Process().children(recursive=True) if own and child not in before]
        ray.shutdown()
        for child in psutil.wait_procs(children, timeout=1)[1]:  # Ray's agents look for their head now and then only
            with contextlib.suppress(psutil.Error):
                child.kill()


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """A folder for Ray's files and sockets, whose names must stay below 107 bytes; removed at the end."""
    usual = tempfile.gettempdir()
    place = usual if len(os.fsencode(usual)) < 24 else "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="seg_ray_", dir=place))
    try:
        yield folder
    finally:
        with _undisturbed():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM: the end is under way, and a second one would leave processes and files behind."""
    with _as_before(signal.SIGINT), _as_before(signal.SIGTERM):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        yield


@contextlib.contextmanager
def _as_before(number: int) -> Iterator[None]:
    """Give a signal back the handler that it has now."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, before)


def _end_by_sigterm() -> None:
    """Let SIGTERM end the program with the code for that; Ray's handler exits with 1, as a job with bad photos does."""

    def terminated(number: int, frame: FrameType | None) -> None:
        sys.exit(EXIT_TERMINATED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)


class _Ours(io.TextIOBase):
    """A stream without what threads of Ray's write.

    Args:
        stream: Where all else goes.
        log: Where that goes.
    """

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        """Write to one of the two."""
        theirs = threading.current_thread().name.startswith("ray_")
        return (self._log if theirs else self._stream).write(text)

    def flush(self) -> None:
        """Flush it."""
        self._stream.flush()

    def isatty(self) -> bool:
        """True on a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The file's number."""
        return self._stream.fileno()


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Send what Ray prints into a file: the notes of its threads, and what its libraries write to standard error."""
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as log, contextlib.ExitStack() as opened:
        stdout, stderr = sys.stdout, sys.stderr
        opened.callback(setattr, sys, "stdout", stdout)
        opened.callback(setattr, sys, "stderr", stderr)
        kept = os.dup(2)
        opened.callback(os.close, kept)
        opened.callback(os.dup2, kept, 2)
        os.dup2(log.fileno(), 2)
        with contextlib.suppress(OSError, AttributeError, ValueError):  # where there is no such file (a notebook)
            if stderr.fileno() == 2:
                stderr = opened.enter_context(
                    open(os.dup(kept), "w", encoding=stderr.encoding, errors="backslashreplace", buffering=1)
                )
        sys.stdout, sys.stderr = _Ours(stdout, log), _Ours(stderr, log)
        yield
