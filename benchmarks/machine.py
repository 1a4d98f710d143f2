"""Benchmark of the machine: rate of matrix products and bandwidth of memory.

python -m benchmarks.machine

JSON: GFLOP/s of a product of 2,048 x 2,048 matrices, float32 and bfloat16; GB/s of
reading an array of 512 MiB, and of reading and writing it.
"""

import json
import os

import jax
import jax.numpy as jnp

from benchmarks.timing import best_seconds, matrix_product_rate, read_rate

COUNT = 2**27  # float32 numbers


def main():
    x = jnp.ones(COUNT)
    write = jax.jit(lambda x: x + 1, donate_argnums=0)

    def rewrite():
        nonlocal x
        x = write(x)
        return x

    rates = {
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "float32_gflops": round(matrix_product_rate(jnp.float32) / 1e9),
        "bfloat16_gflops": round(matrix_product_rate(jnp.bfloat16) / 1e9),
        "read_gb_per_second": round(read_rate(4 * COUNT) / 1e9, 1),
        "rewrite_gb_per_second": round(8 * COUNT / best_seconds(rewrite) / 1e9, 1),
    }
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
