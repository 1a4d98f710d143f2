"""Benchmark of launch/prepare_comparisons.py on synthetic comparisons: time and memory.

Five hundred annotators, one in twenty of them careless, judge pairs of four responses
to each prompt, ten times per prompt, with repeats and known answers. The file is
written before the measurement; then the launch script runs as its own process.

python -m benchmarks.prepare_comparisons [--count=1000000] [--folder=/tmp/prepare]

The output is one JSON line: seconds of wall clock and of CPU, and peak memory.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from rlhf_jax.data.tokenizers.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
PER_PROMPT = 10  # comparisons
RESPONSES = 4
PEOPLE = 500
CARELESS = 25
VOCABULARY = 2000  # words


def write_comparisons(path: Path, count: int, seed: int = 0) -> None:
    """Write comparisons as lines of JSON; annotators prefer better and longer
    responses."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = [
        "".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(VOCABULARY)
    ]
    with path.open("w") as file:
        for number in range(count // PER_PROMPT):
            sizes = rng.integers(10, 60, RESPONSES)
            texts = [" ".join(rng.choice(words, size)) for size in sizes]
            quality = rng.normal(size=RESPONSES)
            prompt = {
                "id": f"p{number}",
                "messages": [{"role": "user", "content": f"Question {number}?"}],
            }
            for _ in range(PER_PROMPT):
                a, b = rng.choice(RESPONSES, 2, replace=False)
                person = rng.integers(PEOPLE)
                logit = 3 * (quality[a] - quality[b]) + 0.05 * (sizes[a] - sizes[b])
                if person < CARELESS:
                    logit = 0.0
                is_clear = abs(quality[a] - quality[b]) > 2.5
                choice = "a" if logit > rng.logistic() else "b"
                if abs(logit) < 0.2 and person >= CARELESS:
                    choice = "tie"
                right = "a" if quality[a] > quality[b] else "b"
                line = {
                    "version": 1,
                    "prompt": prompt,
                    "response_a": texts[a],
                    "response_b": texts[b],
                    "preference": choice,
                    "annotator": f"annotator-{person:03d}",
                    "shown_first": "ab"[rng.integers(2)],
                    "info": {"known_answer": right} if is_clear else None,
                }
                file.write(json.dumps(line) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/prepare"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / f"comparisons-{args.count}.jsonl"
    if not file.exists():
        write_comparisons(file.with_suffix(".tmp"), args.count)
        file.with_suffix(".tmp").rename(file)
    tokenizer = args.folder / "tokenizer"
    if not tokenizer.exists():
        with file.open() as lines:
            some = itertools.islice(lines, 2000)
            texts = [json.loads(line)["response_a"] for line in some]
        train_tokenizer(texts, 2048, tokenizer)

    workdir = args.folder / f"prepared-{time.strftime('%Y%m%d-%H%M%S')}"
    start = time.perf_counter()
    process = subprocess.Popen(
        [
            sys.executable,
            "launch/prepare_comparisons.py",
            "--config=configs/prepare_comparisons.py",
            f"--workdir={workdir}",
            f"--config.comparisons={file}",
            f"--config.tokenizer={tokenizer}",
        ],
        cwd=ROOT,
    )
    _, status, usage = os.wait4(process.pid, 0)
    results = {
        "comparisons": args.count,
        "status": status,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
