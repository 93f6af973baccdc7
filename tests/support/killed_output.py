"""A program that is killed with SIGKILL while it publishes outputs; test_publish.py runs it.

killed_output.py steps FOLDER [replace] [no-exchange]   is killed once before every step it takes; prints what was
                                                        found after each kill, and last after the run that lived
killed_output.py forever FOLDER                         publishes one output after another until it is killed
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from hybridizer.checkpoint import publish
from hybridizer.checkpoint.layout import OutputTensor
from hybridizer.checkpoint.publish import begin_output
from hybridizer.checkpoint.writer import write_checkpoint

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "fcntl.flock", "ctypes.dlsym"}


def publish_generation(final: Path, number: int, *, replace: bool) -> None:
    """An output whose files hold the number of its generation; the manifest has their hashes."""
    content = bytes([number % 256]) * 64
    tensors = [OutputTensor(f"w{n}", "U8", (64,), lambda: iter([content])) for n in range(3)]
    with begin_output(final, replace=replace) as folder:
        files = write_checkpoint(folder, tensors, max_shard_bytes=64, metadata={}, on_progress=lambda _: None).files
        (folder / "manifest.json").write_text(json.dumps({"number": number, "files": files}))


def describe(final: Path) -> str:
    """'absent', 'generation N', or what is wrong with the folder with the final name."""
    if not final.exists():
        return "absent"
    try:
        manifest = json.loads((final / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        return f"BROKEN: {error}"
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in final.iterdir() if p.name != "manifest.json"}
    return f"generation {manifest['number']}" if found == manifest["files"] else "BROKEN: files differ from manifest"


def kill_before_step(number: int) -> None:
    left = [number]

    def hook(event: str, _: object) -> None:
        if event in STEPS:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def print_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run_steps(final: Path, *, replace: bool) -> None:
    for step in range(1000):
        child = os.fork()
        if child == 0:
            try:
                kill_before_step(step)
                publish_generation(final, 2, replace=replace)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        code, state = os.waitstatus_to_exitcode(status), describe(final)
        print_line(json.dumps([code, state]))
        if code != -signal.SIGKILL:
            return
        if state == "generation 2":
            shutil.rmtree(final)
        if replace and not final.exists():
            publish_generation(final, 1, replace=False)


def main() -> None:
    mode, final, *options = sys.argv[1:]
    if "no-exchange" in options:
        publish._exchange = lambda *_: False
    if mode == "steps":
        if "replace" in options:
            publish_generation(Path(final), 1, replace=False)
        run_steps(Path(final), replace="replace" in options)
    else:
        number = 0
        while True:
            publish_generation(Path(final), number, replace=True)
            print_line(str(number))
            number += 1


if __name__ == "__main__":
    main()
