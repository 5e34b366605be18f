"""Times PyTorch's scaled_dot_product_attention on the rows that `hira-gpu` wrote, each backend by itself, and prints CSV.

Needs torch with CUDA and nothing else. One decode step: one query for each of Hq heads over Hkv heads of keys and values, bf16. Every backend
that takes the shapes (flash, cuDNN, memory-efficient, math) is timed with CUDA events around the bare call, in the layouts in which it can be
fed: with `enable_gqa`, with the queries of a group as rows of one head (the same numbers, keys read once), and with keys and values repeated.
The fastest is what `hira-gpu --sdpa` compares with. Copies of the rows rotate, so that no step finds its keys in the L2 cache.

    python3 sdpa.py hira-gpu-rows > sdpa.csv
    python3 sdpa.py --environment    # exports that let hira-gpu find the CUDA libraries which torch brings along
"""

import argparse
import json
import mmap
import pathlib
import statistics
import sys

# A row of answers may differ from an f64 reference by this much of the reference's norm: bf16 has 8 bits.
TOLERANCE = 2.0 ** -6

# Bytes over which copies rotate: a few times the L2 cache of any card.
ROTATED = 256 << 20


def environment():
    """Shell exports for the libraries and headers below torch's own packages."""
    import torch

    packages = pathlib.Path(torch.__file__).resolve().parent.parent / "nvidia"
    libraries = sorted({str(file.parent) for file in packages.glob("**/lib/lib*.so*")})
    headers = sorted(packages.glob("**/include/cuda_fp16.h"))
    print(f'export LD_LIBRARY_PATH="{":".join(libraries)}:$LD_LIBRARY_PATH"')
    if headers:
        print(f'export CUDA_PATH="${{CUDA_PATH:-{headers[0].parent.parent}}}"')


def rows_of(torch, folder, name, shape):
    """A file of little-endian bf16 as a tensor, mapped into main memory."""
    with open(folder / f"{name}.bf16", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(mapped, dtype=torch.bfloat16).view(shape)


def reference(torch, q, k, v, scale):
    """Attention of the first sequence in f64: q [Hq, D], k and v [Hkv, N, D]."""
    heads, dim = q.shape
    kv_heads = k.shape[0]
    out = []
    for kv_head in range(kv_heads):
        group = q.view(kv_heads, heads // kv_heads, dim)[kv_head].double()
        weights = torch.softmax(scale * (group @ k[kv_head].double().T), dim=-1)
        out.append(weights @ v[kv_head].double())
    return torch.cat(out)


def layouts(q, k, v):
    """Ways to ask for the same attention: (name, arguments, answer as [B, Hq, D])."""
    batch, heads, _, dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    whole = lambda out: out.reshape(batch, heads, dim)
    yield "gqa", (q, k, v), {"enable_gqa": True}, whole
    yield "group as rows", (q.reshape(batch, kv_heads, group, dim), k, v), {}, whole
    if k.numel() * group <= 1 << 31:
        repeated = [x.repeat_interleave(group, dim=1) for x in (k, v)]
        yield "repeated", (q, *repeated), {}, whole


def time_call(torch, call, copies, samples):
    """Microseconds of a call: median over samples of the mean of a round over all copies, by events."""
    rounds = max(1, 16 // copies)
    for copy in range(copies):
        call(copy)
    times = []
    for _ in range(samples):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(rounds):
            for copy in range(copies):
                call(copy)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000.0 / (rounds * copies))
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="what `hira-gpu --rows FOLDER` wrote")
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--environment", action="store_true", help="print shell exports for hira-gpu and end")
    arguments = parser.parse_args()
    if arguments.environment:
        return environment()
    if arguments.folder is None:
        parser.error("a folder is needed")

    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    about = json.loads((arguments.folder / "rows.json").read_text())
    heads, kv_heads, dim, length = (about[key] for key in ("heads", "kv_heads", "dim", "len"))
    all_q = rows_of(torch, arguments.folder, "q", (about["queries"], heads, dim))
    all_k = rows_of(torch, arguments.folder, "k", (kv_heads, length, dim))
    all_v = rows_of(torch, arguments.folder, "v", (kv_heads, length, dim))
    scale = dim ** -0.5
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    print("device,torch,context,batch,backend,layout,us,error")
    for context, batch in about["cases"]:
        # the first keys of every head, as hira-gpu takes them; every sequence has a copy of its own
        bytes_of = 4 * batch * kv_heads * context * dim
        copies = max(1, min(16, -(-ROTATED // bytes_of)))
        try:
            sets = []
            for _ in range(copies):
                k, v = (x[:, :context].to("cuda").unsqueeze(0).repeat(batch, 1, 1, 1) for x in (all_k, all_v))
                q = all_q[:batch].to("cuda").unsqueeze(2)
                sets.append((q, k, v))
        except torch.cuda.OutOfMemoryError:
            print(f"context {context}, batch {batch}: not enough memory", file=sys.stderr)
            torch.cuda.empty_cache()
            continue
        expected = reference(torch, sets[0][0][0, :, 0], sets[0][1][0], sets[0][2][0], scale)
        for name, backend in backends.items():
            names = [layout[0] for layout in layouts(*sets[0])]
            for index, layout in enumerate(names):
                try:
                    calls = [list(layouts(*rows))[index] for rows in sets]
                    with sdpa_kernel(backend):
                        call = lambda copy: F.scaled_dot_product_attention(*calls[copy][1], scale=scale, **calls[copy][2])
                        answer = calls[0][3](call(0))[0].double()
                        error = ((answer - expected).norm(dim=1) / expected.norm(dim=1)).max().item()
                        micros = time_call(torch, call, copies, arguments.samples)
                except (RuntimeError, TypeError) as refused:
                    print(f"context {context}, batch {batch}, {name}, {layout}: {str(refused).splitlines()[0]}", file=sys.stderr)
                    torch.cuda.empty_cache()
                    continue
                if error > TOLERANCE:
                    print(f"context {context}, batch {batch}, {name}, {layout}: error {error:.2e}", file=sys.stderr)
                    continue
                device = torch.cuda.get_device_name().replace(",", " ")
                print(f"{device},{torch.__version__},{context},{batch},{name},{layout},{micros:.2f},{error:.2e}", flush=True)
        del sets
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
