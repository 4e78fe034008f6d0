"""Do all models of a folder run at one speed?

    python benchmarks/probes/pairwise.py BASE.onnx FOLDER [--shape 1x16]

Each model is timed against the base in a process of its own, with the base opened first and then last: where a model's
weights lie in memory matters at batch 1, and models opened early in a large process are slower.
"""

from __future__ import annotations

import argparse
import functools
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from harness import run, session, token_feeds

LOW = 0.2  #: quantile of the times: the runs that nothing disturbed


def ratio(base: Path, model: Path, shape: tuple[int, int], seconds: float) -> float:
    """Time of ``model`` relative to ``base``, opened in the order given by the file names' roles."""
    sessions = {path: session(path) for path in (base, model)}
    calls = {}
    for path, sess in sessions.items():
        feeds = token_feeds([i.name for i in sess.get_inputs()], *shape)
        calls[path] = functools.partial(run, sess, feeds)
        for _ in range(20):
            calls[path]()
    times: dict[Path, list[float]] = {path: [] for path in calls}
    order, rng, end = list(calls), random.Random(0), time.perf_counter() + seconds
    while time.perf_counter() < end:
        rng.shuffle(order)
        for path in order:
            start = time.thread_time()
            calls[path]()
            times[path].append(time.thread_time() - start)
    return float(np.quantile(times[model], LOW) / np.quantile(times[base], LOW))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="1x16")
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    batch, length = (int(n) for n in args.shape.split("x"))
    if args.folder.is_file():
        print(f"{ratio(args.base, args.folder, (batch, length), args.seconds):.4f}")
        return
    for path in sorted(args.folder.glob("*.onnx")):
        if path.resolve() == args.base.resolve():
            continue
        found = []
        for first, second in ((args.base, path), (path, args.base)):
            command = [sys.executable, __file__, first, second, "--shape", args.shape, "--seconds", str(args.seconds)]
            found.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"{path.stem:28} base first {found[0]:.3f}   base last {1 / found[1]:.3f}")


if __name__ == "__main__":
    main()
