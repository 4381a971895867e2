"""Feed hundreds of bad inputs to every tool, and to what Python offers, and count what goes wrong.

python tests/campaigns/bad_inputs.py                      # all, about six minutes of processor time
python tests/campaigns/bad_inputs.py --quick              # those that `make test` runs
python tests/campaigns/bad_inputs.py --only 'predict.*tif' --show
python tests/campaigns/bad_inputs.py --json report.json

For each case of `bad_cases.py`, a forked child of this process, which has imported everything, runs the tool's `main`
in a working directory of its own. Wrong is: a traceback, another exit code than the case says, no end within its time,
a message that does not name what is wrong, or any change below the fixtures or the working directory but of what the
case was told to write. The exit code is 1 if anything is.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import pkgutil
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from pathlib import Path

CAMPAIGNS = Path(__file__).resolve().parent
PROJECT = CAMPAIGNS.parents[1]
sys.path[:0] = [str(PROJECT / "tools"), str(PROJECT / "datasets"), str(CAMPAIGNS.parent)]

MEMORY = 8 << 30
"""Bytes of address space that a case may take beyond what this process has: more is a MemoryError."""

TRACEBACK = re.compile(r"Traceback \(most recent call last\)|^AssertionError", re.MULTILINE)
UNEXPECTED = 70
"""Exit code of a tool that was stopped by an error of its own."""


@dataclasses.dataclass
class Outcome:
    """What became of a case.

    Attributes:
        name: Of the case.
        tool: Of the case.
        line: Of the case.
        code: Exit code, negative for a signal; None: killed since its time was over.
        first: First line of the message.
        text: All that the tool said.
        changed: Files that changed and should not have.
        faults: What is wrong, of "traceback", "exit code", "hang", "files", "message"; empty where nothing is.
        missing: Patterns that the message lacks.
        seconds: How long it took.
        work: Seconds of processor time, which a busy machine does not change.
    """

    name: str
    tool: str
    line: str
    code: int | None
    first: str
    text: str
    changed: list[str]
    faults: list[str]
    missing: list[str]
    seconds: float
    work: float


def load_everything():
    """Import whatever a case may, so that the children need not; nothing here may start a thread or compute."""
    import torch._dynamo  # noqa: F401  # torch imports it late, which takes seconds

    import resnest_seg

    for module in pkgutil.walk_packages(resnest_seg.__path__, "resnest_seg."):
        importlib.import_module(module.name)
    for name in ("accelerate", "albumentations", "cv2", "onnx", "onnxruntime", "rasterio", "starlette",
                 "timm", "torchvision", "uvicorn"):  # fmt: skip
        importlib.import_module(name)
    for folder in ("tools", "datasets"):
        for path in (PROJECT / folder).glob("*.py"):
            importlib.import_module(path.stem)


def snapshot(folder, known):
    """Path below the folder -> what it is and holds; `known` remembers hashes of files whose inode did not change."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(place, name)
            try:
                status = path.lstat()
            except FileNotFoundError:  # a run that goes on beside has renamed it
                continue
            shown = str(path.relative_to(folder))
            if stat.S_ISREG(status.st_mode):
                key = (path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                if key not in known:
                    with open(path, "rb") as file:
                        known[key] = hashlib.file_digest(file, "blake2b").hexdigest()
                found[shown] = (status.st_mode, known[key])
            else:
                found[shown] = (status.st_mode, str(path.readlink()) if stat.S_ISLNK(status.st_mode) else "")
    return found


def differences(before, after):
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def as_word(word, root):
    """`@/` in a word is the folder of the fixtures, `SITE/` the web server of `bad_website.py`."""
    return str(word).replace("@/", f"{root}/").replace("SITE/", os.environ["BAD_INPUTS_SITE"] + "/")


def enter(work, log):
    """Make this forked process one that a shell has started in `work`."""
    os.setsid()
    os.chdir(work)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    home = work.parent / "home"
    for name in ("HOME", "TMPDIR", "TORCH_HOME", "XDG_CACHE_HOME", "HF_HOME", "XDG_CONFIG_HOME"):
        os.environ[name] = str(home)
    tempfile.tempdir = None
    os.environ |= {"COLUMNS": "200", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    os.environ |= {"no_proxy": "127.0.0.1,localhost", "OMP_NUM_THREADS": "1"}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    import torch

    torch.set_num_threads(1)


def leave(status):
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def hide(packages):
    """Make imports of these packages fail, as where they are not installed."""
    for package in packages:
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            sys.modules[name] = None
        sys.modules[package] = None


def child(case, root, work, log, words):
    """What the forked process does; never returns. Uncaught exceptions end it as they end Python."""
    status = 1
    try:
        enter(work, log)
        hide(case.without)
        from resnest_seg.errors import run_tool

        if case.tool == "python":
            status = run_tool(lambda: (case.run(root), 0)[1])
        else:
            main = sys.modules[case.tool].main
            status = run_tool(lambda: main([as_word(word, root) for word in words]))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        leave(status)


def start(case, root, work, log, words):
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        child(case, root, work, log, words)
    return pid


def wait(pid, seconds):
    """Exit code, or None if it had to be killed, and processor time. What it has started ends with it."""
    end, pause, status = time.monotonic() + seconds, 0.001, None
    while time.monotonic() < end:
        done, code, used = os.wait4(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
            break
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if status is None:
        _, _, used = os.wait4(pid, 0)
    return status, used.ru_utime + used.ru_stime


def first_line(text):
    """The line that says what is wrong, else the first one."""
    lines = [line for line in text.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"\berror\b|warning|careful", line)]
    return (told or lines or [""])[0]


def allowed(name, patterns):
    return any(name == pattern or name.startswith(f"{pattern}/") for pattern in patterns)


def run_case(case, root, folder, known):
    """Run a case in `folder`, which must not exist yet."""
    work, log = folder / "work", folder / "log"
    work.mkdir(parents=True)
    (folder / "home").mkdir()
    log.touch()
    if case.prepare is not None:
        case.prepare(work, root)
    beside = None
    if case.beside:
        beside = start(case, root, work, folder / "beside.log", case.beside)
        end = time.monotonic() + 20
        while time.monotonic() < end and not list(work.glob(case.until)):
            time.sleep(0.01)
    before = snapshot(root, known), snapshot(work, known), snapshot(folder / "home", known)
    begin = time.monotonic()
    code, work_done = wait(start(case, root, work, log, case.words), case.limit)
    seconds = time.monotonic() - begin
    if beside is not None:
        wait(beside, 0)
    after = snapshot(root, known), snapshot(work, known), snapshot(folder / "home", known)
    changed = [f"fixtures/{name}" for name in differences(before[0], after[0])]
    changed += [name for name in differences(before[1], after[1]) if not allowed(name, case.writes)]
    changed += [f"~/{name}" for name in differences(before[2], after[2]) if not allowed(f"~/{name}", case.writes)]
    text = log.read_text(errors="replace")
    plain = " ".join(text.split())
    missing = [pattern for pattern in case.says if not re.search(pattern, plain, re.IGNORECASE)]
    missing += [f"not {pattern}" for pattern in case.never if re.search(pattern, plain, re.IGNORECASE)]
    wrong = {
        "hang": code is None,
        "traceback": bool(TRACEBACK.search(text)) or code == UNEXPECTED,
        "exit code": code is not None and code not in case.code,
        "files": bool(changed),
        "message": bool(missing) and code is not None,
    }
    faults = [name for name, is_wrong in wrong.items() if is_wrong]
    first = first_line(text).replace(str(root), "@").replace(str(folder), "")
    return Outcome(case.name, case.tool, case.line, code, first, text, changed, faults, missing, seconds, work_done)


@contextlib.contextmanager
def website(root):
    """A process that serves on the loopback interface; the address of its folder is in the file `root`/url."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        from campaigns.bad_website import forever

        os.setsid()
        forever(root, told)
    os.close(told)
    port = os.read(ready, 16).decode()
    os.close(ready)
    os.environ["BAD_INPUTS_SITE"] = f"http://127.0.0.1:{port}"
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def make_fixtures(root):
    """In a child, since training computes and starts threads."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            import torch
            from campaigns.bad_fixtures import make

            torch.set_num_threads(1)
            os.chdir(root)
            make(root)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            leave(status)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit("the fixtures could not be made")


def run(cases, folder, *, each=lambda outcome: None):
    """Run the cases, one after the other; returns what became of them."""
    root, kept, known, outcomes = folder / "fixtures", folder / "kept", {}, []
    root.mkdir()
    make_fixtures(root)
    shutil.copytree(root, kept, symlinks=True)
    with website(root):
        for number, case in enumerate(cases):
            place = folder / f"case{number}"
            outcomes.append(run_case(case, root, place, known))
            each(outcomes[-1])
            if any(
                name.startswith("fixtures/") for name in outcomes[-1].changed
            ):  # the next case begins as this one did
                shutil.rmtree(root)
                shutil.copytree(kept, root, symlinks=True)
            shutil.rmtree(place, ignore_errors=True)
    return outcomes


def project_files():
    """Files of the checkout that no case may touch; but for what the tests of the site write there meanwhile."""
    skipped = {".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis"}
    written = {PROJECT / "docs" / "reference", PROJECT / "build"}
    found = {}
    for place, folders, files in os.walk(PROJECT):
        folders[:] = [name for name in folders if name not in skipped and Path(place, name) not in written]
        found |= {path: path.stat().st_mtime_ns for path in (Path(place, name) for name in files) if path.exists()}
    return found


def table(outcomes):
    lines = [f"{'case':44} {'tool':18} {'code':>4}  {'verdict':24} first line of the message"]
    for outcome in outcomes:
        verdict = ", ".join(outcome.faults) or "ok"
        code = "-" if outcome.code is None else outcome.code
        lines.append(f"{outcome.name:44.44} {outcome.tool:18} {code:>4}  {verdict:24} {outcome.first[:120]}")
    return "\n".join(lines)


def summary(outcomes):
    counts = {name: sum(name in outcome.faults for outcome in outcomes)
              for name in ("traceback", "exit code", "hang", "files", "message")}  # fmt: skip
    labels = (
        "tracebacks",
        "wrong exit codes",
        "hangs",
        "cases that changed other files",
        "messages that do not say it",
    )
    counted = ", ".join(f"{label}: {count}" for label, count in zip(labels, counts.values(), strict=True))
    bad = sum(bool(outcome.faults) for outcome in outcomes)
    return f"{len(outcomes)} bad inputs, {bad} dealt with badly. {counted}"


def main():
    from campaigns.bad_cases import CASES, QUICK

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the cases that the tests run")
    parser.add_argument("--only", help="only cases whose names match this pattern")
    parser.add_argument("--json", help="write the outcomes to this file")
    parser.add_argument("--show", action="store_true", help="print all that the tools said where something is wrong")
    options = parser.parse_args()
    cases = [case for case in CASES if case.name in QUICK or not options.quick]
    cases = [case for case in cases if options.only is None or re.search(options.only, case.name)]
    begin, project = time.monotonic(), project_files()
    load_everything()
    assert threading.active_count() == 1
    with tempfile.TemporaryDirectory(prefix="bad_inputs_") as name:
        outcomes = run(
            cases, Path(name).resolve(), each=lambda outcome: print("!" if outcome.faults else ".", end="", flush=True)
        )
    strays = differences(project, project_files())
    print("\n" + table(outcomes))
    if options.show:
        for outcome in outcomes:
            if outcome.faults:
                print(f"\n=== {outcome.name} [{outcome.line}] {outcome.faults} {outcome.missing} {outcome.changed[:5]}")
                print(outcome.text[-2500:])
    work = sum(outcome.work for outcome in outcomes)
    print(f"{summary(outcomes)}. {time.monotonic() - begin:.0f} s, of which the tools worked {work:.0f} s")
    for path in strays:
        print(f"changed in the project: {path}")
    if options.json:
        Path(options.json).write_text(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=1))
    return 1 if strays or any(outcome.faults for outcome in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
