"""CPU time of a fit and of its replicates: python benchmarks/fit_speed.py

One surface fit and 400 bootstrap replicates of 35 and of 240 runs drawn from a known law. Compare the columns, not the machines."""
import time

import numpy as np

from scaling_nb import ChinchillaLaw, bootstrap_fit, fit_law


def cpu(f, n):
    "Seconds of CPU a call, the first left out."
    f()
    start = time.process_time()
    for _ in range(n):
        f()
    return (time.process_time() - start) / n


law = ChinchillaLaw(1.69, 406.4, 410.7, 0.34, 0.28)
print("runs  one fit  400 replicates  replicate / fit")
for budgets, sizes in ((5, 7), (12, 20)):
    C = np.repeat(np.geomspace(1e16, 1e18, budgets), sizes)
    N = np.concatenate([law.optimum(c)[0] * np.geomspace(1 / 8, 8, sizes) for c in C[::sizes]])
    L = law.loss(N, C / (6 * N)) + 0.005 * np.random.default_rng(0).standard_normal(len(N))
    one = cpu(lambda N=N, C=C, L=L: fit_law(N, C / (6 * N), L), 5)
    fit = fit_law(N, C / (6 * N), L)
    many = cpu(lambda fit=fit: bootstrap_fit(fit, 400), 2)
    print(f"{len(N):4}  {1e3 * one:5.0f} ms  {many:11.2f} s  {many / 400 / one:12.3f}")
