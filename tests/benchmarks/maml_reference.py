"""Train MAML on sinusoids, and compare it with the quality that others report.

    python tests/benchmarks/maml_reference.py [--seeds 5] [--iterations 5000] [--shots 10]

Network 1-40-40-1, 25 tasks an iteration, one inner step of 0.01, Adam with 1e-3; then the mean
squared error on 600 new tasks after 1, 5 and 10 inner steps. Printed are the seeds, their mean, the
middle of the reference's range (5,000 iterations) and the relative distance from it. A seed takes
about 15 s.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

from course_lib.meta import Network, adam, maml
from course_lib.problems import sinusoids

STEP, RATE, TASKS, TEST_TASKS, EVALUATED = 0.01, 1e-3, 25, 600, (1, 5, 10)
# Mean squared error after 1, 5 and 10 inner steps, smallest and largest of three seeds.
REFERENCE = {
    10: ((0.552, 0.621), (0.219, 0.255), (0.182, 0.210)),
    5: ((0.825, 0.843), (0.533, 0.568), (0.496, 0.528)),
}
BOUND = 0.15


def train(seed: int, *, iterations: int, shots: int, like: np.ndarray) -> np.ndarray:
    """Return the initial weights that MAML finds."""
    net = Network((1, 40, 40, 1))

    def gradient(w: np.ndarray, k: int) -> np.ndarray:
        data = sinusoids(TASKS, shots, queries=shots, seed=seed * 10**7 + k, like=like)
        return maml(net.task(data), w, step=STEP).gradient

    rule = adam(gradient)
    x = rule.start(net.start(seed, like))
    theta = np.asarray([math.log(RATE), 0.9, 0.999], dtype=like.dtype)
    for k in range(iterations):
        x = rule(x, theta, k)
    return x[0]


def quality(w: np.ndarray, seed: int, *, shots: int) -> list[float]:
    """Return the mean squared error on new tasks after each number of inner steps."""
    net = Network((1, 40, 40, 1))
    data = sinusoids(TEST_TASKS, shots, queries=100, seed=10**9 + seed, like=w)
    return [
        float(maml(net.task(data), w, step=STEP, steps=steps, order="first").value)
        for steps in EVALUATED
    ]


def distances(found: list[list[float]], shots: int) -> list[float]:
    """Return how far the mean of the seeds is from the middle of the range, relative to it."""
    middles = [(low + high) / 2 for low, high in REFERENCE[shots]]
    return [mean / middle - 1 for mean, middle in zip(np.mean(found, axis=0), middles, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--shots", type=int, default=10, choices=sorted(REFERENCE))
    options = parser.parse_args()
    like, found = np.zeros(1, dtype=np.float32), []
    print("mean squared error after 1, 5, 10 inner steps")
    for seed in range(options.seeds):
        start = time.perf_counter()
        w = train(seed, iterations=options.iterations, shots=options.shots, like=like)
        found.append(quality(w, seed, shots=options.shots))
        values = " ".join(f"{value:8.3f}" for value in found[-1])
        print(f"seed {seed:<11d} {values}   ({time.perf_counter() - start:.0f} s)", flush=True)
    away = distances(found, options.shots)
    middles = " ".join(f"{(low + high) / 2:8.3f}" for low, high in REFERENCE[options.shots])
    print("mean of seeds   ", " ".join(f"{value:8.3f}" for value in np.mean(found, axis=0)))
    print("reference       ", middles, " (5,000 iterations)")
    print("distance        ", " ".join(f"{value:+8.1%}" for value in away))
    if options.iterations != 5000 or all(abs(value) <= BOUND for value in away):
        return 0
    print(f"FAR FROM THE REFERENCE: expected at most {BOUND:.0%}")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
