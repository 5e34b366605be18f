"""Times what others offer on the keys and queries of `cargo xtask bench`, and joins both into one table.

Attention: PyTorch's scaled_dot_product_attention and a grouped matmul, f32 and bf16, each with the fastest of the layouts that make
sense on a CPU. One head, one query: FAISS Flat (exact), IVF and HNSW, hnswlib, usearch, tuned to a recall of the top 256 by a sweep.

Contenders take turns in one loop and rotate over as many copies of the data as ours did. Every answer is compared with brute force.
"""

import argparse
import concurrent.futures
import csv
import dataclasses
import pathlib
import statistics
import tempfile
import time

import numpy as np
from safetensors import safe_open

WANTED = 256
RECALLS = (0.90, 0.99)
# Copies of a graph are as large as its keys twice over: more than this are not needed to leave the caches.
GRAPH_COPIES = 8


@dataclasses.dataclass
class Rows:
    """A file that the Rust bench wrote: k and v [Hkv, N, D], q [R, Hq, D]."""

    scenario: str
    copies: int
    k: np.ndarray
    v: np.ndarray
    q: np.ndarray

    @staticmethod
    def read(path):
        with safe_open(path, framework="numpy") as file:
            about = file.metadata()
            k, v, q = (file.get_tensor(name) for name in ("k", "v", "q"))
        return Rows(about["scenario"], int(about["copies"]), k, v, q)


@dataclasses.dataclass
class Contender:
    """`call(copy, row)` does what is timed and returns what `check(row, answer)` accepts."""

    name: str
    rule: str
    precision: str
    setting: str
    call: object
    check: object
    threads: int
    copies: int
    recall: float = 1.0
    build_s: float | None = None
    append_us: float | None = None
    seconds: list = dataclasses.field(default_factory=list)


def take_turns(contenders, samples, rows):
    """Calls every contender with every row and copy, in turns; the first round is not counted."""
    if not contenders:
        return
    steps = max(2, samples)
    first_round = max(contender.copies for contender in contenders)
    for step in range(first_round + steps):
        for i in range(len(contenders)):
            contender = contenders[(i + step) % len(contenders)]
            copy, row = step % contender.copies, step % rows
            start = time.perf_counter()
            answer = contender.call(copy, row)
            seconds = time.perf_counter() - start
            contender.check(row, answer)
            if step >= first_round:
                contender.seconds.append(seconds)


def fastest(makers, copies, tries=9):
    """The maker whose calls are fastest on a few copies, and what it is called."""
    best = None
    copies = min(3, copies)
    for setting, make in makers:
        call = make(copies)
        times = []
        for step in range(tries + 2):
            start = time.perf_counter()
            call(step % copies, 0)
            times.append(time.perf_counter() - start)
        median = statistics.median(times[2:])
        if best is None or median < best[0]:
            best = (median, setting, make)
    return best[1], best[2]


def attention_answers(rows):
    """Brute force in f64, [R, Hq, D]."""
    heads = rows.q.shape[1]
    group = heads // rows.k.shape[0]
    out = np.empty(rows.q.shape, np.float64)
    for head in range(heads):
        k, v = (x[head // group].astype(np.float64) for x in (rows.k, rows.v))
        scores = rows.q[:, head].astype(np.float64) @ k.T / np.sqrt(k.shape[1])
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = weights @ v / weights.sum(axis=1, keepdims=True)
    return out


def attention_contenders(rows, threads):
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    kv_heads, _, dim = rows.k.shape
    heads = rows.q.shape[1]
    group = heads // kv_heads
    expected = attention_answers(rows)
    largest = float(np.abs(rows.v).max())
    contenders = []
    for precision, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        k, v, q = (torch.from_numpy(x).to(dtype) for x in (rows.k, rows.v, rows.q))

        def grouped_sdpa(copies, k=k, v=v, q=q):
            # the queries of a group as rows: keys and values are read once for the group
            layers = [(k[None].clone(), v[None].clone()) for _ in range(copies)]
            steps = q.view(-1, 1, kv_heads, group, dim)
            return lambda copy, row: F.scaled_dot_product_attention(steps[row], *layers[copy % copies])

        def headwise_sdpa(copies, k=k, v=v, q=q):
            layers = [(k[None].clone(), v[None].clone()) for _ in range(copies)]
            steps = q.view(-1, 1, heads, 1, dim)
            return lambda copy, row: F.scaled_dot_product_attention(
                steps[row], *layers[copy % copies], enable_gqa=True
            )

        def matmul(copies, k=k, v=v, q=q, transposed=False):
            # keys lie [Hkv, D, N] where transposed, else they are a transposed view of [Hkv, N, D]
            def keys():
                return k.transpose(1, 2).contiguous() if transposed else k.clone().transpose(1, 2)

            layers = [(keys(), v.clone()) for _ in range(copies)]
            steps = q.view(-1, kv_heads, group, dim)

            def call(copy, row):
                k, v = layers[copy % copies]
                return torch.bmm(torch.softmax(torch.bmm(steps[row], k).mul_(dim**-0.5), -1), v)

            return call

        def transposed_matmul(copies, k=k, v=v, q=q):
            return matmul(copies, k, v, q, transposed=True)

        # bf16 keeps 8 bits of keys, values and, in the matmul, of the weights
        allowed = largest * (1e-4 if precision == "f32" else 0.06)

        def check(row, answer, allowed=allowed, precision=precision):
            error = np.abs(answer.to(torch.float32).numpy().reshape(heads, dim) - expected[row]).max()
            if not error <= allowed:
                raise SystemExit(f"{rows.scenario} {precision}: an answer is off by {error}")

        for name, makers in (
            ("torch SDPA", (("group as rows", grouped_sdpa), ("enable_gqa", headwise_sdpa))),
            ("torch bmm", (("K [N, D]", matmul), ("K [D, N]", transposed_matmul))),
        ):
            setting, make = fastest(makers, rows.copies)
            contenders.append(
                Contender(name, "dense", precision, setting, make(rows.copies), check, threads, rows.copies)
            )
    return contenders


def recall_of(found, truth):
    return len(np.intersect1d(found, truth)) / len(truth)


def tuned(settings, search, queries, truths):
    """For each wanted recall the first of ascending `settings` that reaches it, with the recall."""
    found = {}
    for setting in settings:
        recall = float(np.mean([recall_of(search(setting, q), t) for q, t in zip(queries, truths)]))
        for wanted in RECALLS:
            if wanted not in found and recall >= wanted:
                found[wanted] = (setting, recall)
        if len(found) == len(RECALLS):
            break
    return found


def timed(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def append_micros(add, keys, times=64):
    """Median microseconds of adding one key."""
    seconds = [timed(lambda i=i: add(keys[i : i + 1]))[1] for i in range(times)]
    return statistics.median(seconds) * 1e6


class Search:
    """One KV head, the queries of its first query head."""

    def __init__(self, rows, threads):
        import faiss

        self.faiss = faiss
        self.scenario, self.copies, self.threads = rows.scenario, rows.copies, threads
        self.keys = np.ascontiguousarray(rows.k[0])
        self.queries = np.ascontiguousarray(rows.q[:, 0])
        scores = self.queries @ self.keys.T
        self.truths = [np.argsort(-row, kind="stable")[:WANTED] for row in scores]
        # range_search returns what exceeds its radius: the next f32 below the score of the 256th
        taus = [row[truth[-1]] for row, truth in zip(scores, self.truths)]
        self.radii = [float(np.nextafter(np.float32(tau - 1e-4), np.float32(-np.inf))) for tau in taus]

    def checked(self, least):
        """Single calls may lie below the mean recall that a setting was chosen by, exact ones may not."""

        def check(row, found):
            recall = recall_of(found, self.truths[row])
            if recall < (1.0 if least == 1.0 else 0.5):
                raise SystemExit(f"{self.scenario}: recall {recall} in row {row}")

        return check

    def contender(self, name, rule, setting, call, threads, copies, recall, **times):
        return Contender(
            name, rule, "f32", setting, call, self.checked(recall), threads, copies, recall, **times
        )

    def flat(self):
        """Exact. FAISS divides queries among threads, never one query: for two threads the keys are halved, a thread each."""
        faiss, found = self.faiss, []
        dim = self.keys.shape[1]

        def index(keys):
            index = faiss.IndexFlatIP(dim)
            index.add(keys)
            return index

        appended = faiss.IndexFlatIP(dim)
        append_us = append_micros(appended.add, self.keys)
        _, build_s = timed(lambda: index(self.keys))
        whole = [index(self.keys) for _ in range(self.copies)]

        def ranged(copy, row):
            _, _, ids = whole[copy].range_search(self.queries[row : row + 1], self.radii[row])
            return ids

        def top(copy, row):
            return whole[copy].search(self.queries[row : row + 1], WANTED)[1][0]

        times = {"build_s": build_s, "append_us": append_us}
        found.append(self.contender("FAISS Flat range_search", "tau of top-256", "", ranged, 1, self.copies, 1.0, **times))
        found.append(self.contender("FAISS Flat search", "top-k=256", "", top, 1, self.copies, 1.0, **times))
        if self.threads > 1:
            parts = np.array_split(np.arange(len(self.keys)), self.threads)
            divided = [[index(self.keys[part]) for part in parts] for _ in range(self.copies)]
            pool = concurrent.futures.ThreadPoolExecutor(self.threads - 1)

            def ranged_in_parts(copy, row):
                query, radius = self.queries[row : row + 1], self.radii[row]
                others = [pool.submit(part.range_search, query, radius) for part in divided[copy][1:]]
                results = [divided[copy][0].range_search(query, radius)] + [one.result() for one in others]
                return np.concatenate([result[2] + part[0] for result, part in zip(results, parts)])

            setting = f"keys in {self.threads} parts, a thread each"
            found.append(
                self.contender(
                    "FAISS Flat range_search", "tau of top-256", setting, ranged_in_parts, self.threads, self.copies, 1.0, **times
                )
            )
        return found

    def ivf(self):
        faiss, found = self.faiss, []
        keys, dim = self.keys, self.keys.shape[1]
        best = {}
        for lists in (int(len(keys) ** 0.5 / 2), int(len(keys) ** 0.5), 2 * int(len(keys) ** 0.5)):
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)

            def build(index=index):
                faiss.omp_set_num_threads(self.threads)
                index.train(keys)
                index.add(keys)

            _, build_s = timed(build)
            # one query on several threads: they divide its lists
            index.parallel_mode = 1

            def search(probes, query, index=index):
                index.nprobe = probes
                return index.search(query[None], WANTED)[1][0]

            probes = sorted({max(1, lists * share // 64) for share in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64)})
            for wanted, (setting, recall) in tuned(probes, search, self.queries, self.truths).items():
                index.nprobe = setting
                _, seconds = timed(lambda: [search(setting, query) for query in self.queries])
                if wanted not in best or seconds < best[wanted][0]:
                    best[wanted] = (seconds, index, setting, recall, build_s)
        copies = min(self.copies, GRAPH_COPIES)
        for _, index, probes, recall, build_s in best.values():
            clones = [faiss.clone_index(index) for _ in range(copies)]
            for clone in clones:
                clone.parallel_mode, clone.nprobe = 1, probes
            append_us = append_micros(faiss.clone_index(index).add, keys)
            for threads in sorted({1, self.threads}):

                def call(copy, row, clones=clones, threads=threads):
                    faiss.omp_set_num_threads(threads)
                    return clones[copy].search(self.queries[row : row + 1], WANTED)[1][0]

                setting = f"nlist {index.nlist}, nprobe {probes}, parallel_mode 1"
                found.append(
                    self.contender("FAISS IVFFlat", "top-k=256", setting, call, threads, copies, recall, build_s=build_s, append_us=append_us)
                )
        return found

    def graphs(self, name, build, search_with, append, clone):
        """A graph library: `M` and `ef` by a sweep, the fastest that reaches each recall."""
        found, best = [], {}
        for links in (16, 32):
            index, build_s = timed(lambda: build(links))
            efs = (256, 320, 384, 512, 768, 1024, 1536, 2048, 4096)
            search = lambda ef, query, index=index: search_with(index, ef, query)
            for wanted, (ef, recall) in tuned(efs, search, self.queries, self.truths).items():
                _, seconds = timed(lambda: [search(ef, query) for query in self.queries])
                if wanted not in best or seconds < best[wanted][0]:
                    best[wanted] = (seconds, index, links, ef, recall, build_s)
        copies = min(self.copies, GRAPH_COPIES)
        for _, index, links, ef, recall, build_s in best.values():
            clones = [clone(index, links) for _ in range(copies)]
            appended = clone(index, links)
            append_us = append_micros(lambda keys: append(appended, keys), self.keys)

            def call(copy, row, clones=clones, ef=ef):
                return search_with(clones[copy], ef, self.queries[row])

            setting = f"M {links}, ef_construction 200, ef {ef}"
            found.append(
                self.contender(name, "top-k=256", setting, call, 1, copies, recall, build_s=build_s, append_us=append_us)
            )
        return found

    def faiss_hnsw(self):
        faiss, dim = self.faiss, self.keys.shape[1]

        def build(links):
            faiss.omp_set_num_threads(self.threads)
            index = faiss.IndexHNSWFlat(dim, links, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 200
            index.add(self.keys)
            return index

        def search(index, ef, query):
            index.hnsw.efSearch = ef
            return index.search(query[None], WANTED)[1][0]

        return self.graphs(
            "FAISS HNSW", build, search, lambda index, keys: index.add(keys), lambda index, _: faiss.clone_index(index)
        )

    def hnswlib(self):
        import hnswlib

        dim, room = self.keys.shape[1], len(self.keys) + 256

        def build(links):
            index = hnswlib.Index(space="ip", dim=dim)
            index.init_index(max_elements=room, M=links, ef_construction=200)
            index.add_items(self.keys, num_threads=self.threads)
            return index

        def search(index, ef, query):
            index.set_ef(ef)
            return index.knn_query(query[None], k=WANTED, num_threads=1)[0][0]

        def clone(index, _):
            with tempfile.NamedTemporaryFile() as file:
                index.save_index(file.name)
                copy = hnswlib.Index(space="ip", dim=dim)
                copy.load_index(file.name, max_elements=room)
                return copy

        return self.graphs("hnswlib", build, search, lambda index, keys: index.add_items(keys, num_threads=1), clone)

    def usearch(self):
        from usearch.index import Index

        dim = self.keys.shape[1]
        labels = np.arange(len(self.keys), dtype=np.uint64)

        def build(links):
            index = Index(ndim=dim, metric="ip", dtype="f32", connectivity=links, expansion_add=200)
            index.add(labels, self.keys, threads=self.threads)
            return index

        def search(index, ef, query):
            index.expansion_search = ef
            return index.search(query, WANTED, threads=1).keys

        def append(index, keys):
            index.add(np.uint64(len(index)), keys[0], threads=1)

        return self.graphs("usearch", build, search, append, lambda index, _: index.copy())

    def contenders(self):
        found = self.flat() + self.ivf()
        for graph in (self.faiss_hnsw, self.hnswlib, self.usearch):
            found += graph()
        return found


COLUMNS = [
    "scenario", "threads", "rule", "contender", "precision", "us_lower", "us_median", "us_upper", "samples",
    "over_hira", "recall", "build_s", "append_us", "setting",
]  # fmt: skip


def line(scenario, contender):
    micros = sorted(x * 1e6 for x in contender.seconds)
    last = len(micros) - 1
    return {
        "scenario": scenario,
        "threads": contender.threads,
        "rule": contender.rule,
        "contender": contender.name,
        "precision": contender.precision,
        "us_lower": f"{micros[last // 4]:.2f}",
        "us_median": f"{micros[last // 2]:.2f}",
        "us_upper": f"{micros[last - last // 4]:.2f}",
        "samples": len(micros),
        "recall": f"{contender.recall:.4f}",
        "build_s": "" if contender.build_s is None else f"{contender.build_s:.4f}",
        "append_us": "" if contender.append_us is None else f"{contender.append_us:.2f}",
        "setting": contender.setting,
    }


def ours(results, scenarios):
    """The lines of results.csv about the scenarios that the peers ran."""
    with open(results, newline="") as file:
        lines = [dict(row, recall="1.0000", setting="") for row in csv.DictReader(file)]
    for row in lines:
        # ours with 16 bits are scenarios of their own, the peers' are contenders of the same
        row["scenario"] = row["scenario"].removesuffix("/bf16")
    return [row for row in lines if row["scenario"] in scenarios]


def reference(row, lines):
    """Hira's median for the same question: the rule itself in a search, the top 256 beside dense attention."""
    rule = "top-k=256" if row["rule"] == "dense" else row["rule"]
    alike = [
        float(one["us_median"])
        for one in lines
        if one["contender"].startswith("hira")
        and (one["scenario"], one["rule"]) == (row["scenario"], rule)
        and int(one["threads"]) == int(row["threads"])
        and one["precision"] == row["precision"]
    ]
    return min(alike, default=None)


def joined(lines):
    for row in lines:
        hira = reference(row, lines)
        row["over_hira"] = "" if hira is None else f"{float(row['us_median']) / hira:.3f}"
    order = {name: i for i, name in enumerate(dict.fromkeys(row["scenario"] for row in lines))}
    lines.sort(key=lambda row: (order[row["scenario"]], int(row["threads"]), row["precision"] != "f32", float(row["us_median"])))
    return lines


def markdown(lines):
    text = [
        "# Peers",
        "",
        "The same keys and queries, copies and threads; programs one after the other, so trust factors, not per cents. `times Hira` is the",
        "median over Hira's for the same rule, threads and precision (beside dense attention: its top 256): above 1 Hira is faster.",
    ]
    before = None
    for row in lines:
        if row["scenario"] != before:
            before = row["scenario"]
            text += ["", f"## {before}", "", "| threads | rule | contender | us (quartiles) | times Hira | recall | build s | append us | setting |"]
            text.append("|--:|---|---|--:|--:|--:|--:|--:|---|")
        name = row["contender"] + ("" if row["precision"] == "f32" else f" {row['precision']}")
        micros = "{:.1f} ({:.1f} to {:.1f})".format(*(float(row[x]) for x in ("us_median", "us_lower", "us_upper")))
        text.append(
            f"| {row['threads']} | {row['rule']} | {name} | {micros} | {row['over_hira']} | {row['recall']} "
            f"| {row.get('build_s', '')} | {row.get('append_us', '')} | {row['setting']} |"
        )
    return "\n".join(text) + "\n"


def self_test():
    """The parts that need no library: recall, the join, the table."""
    assert recall_of(np.array([1, 2, 3]), np.array([2, 3, 4, 5])) == 0.5
    truths = [np.array([1, 2]), np.array([3, 4])]
    answers = {1: [[1, 9], [9, 9]], 2: [[1, 2], [3, 9]], 3: [[1, 2], [3, 4]]}
    found = tuned([1, 2, 3], lambda setting, query: np.array(answers[setting][query]), [0, 1], truths)
    assert found == {0.90: (3, 1.0), 0.99: (3, 1.0)}, found
    common = {"scenario": "a", "threads": 2, "precision": "f32", "us_lower": "1", "us_upper": "9", "recall": "1", "setting": ""}
    lines = joined([
        dict(common, rule="dense", contender="torch SDPA", us_median="30"),
        dict(common, rule="top-k=256", contender="hira", us_median="10"),
        dict(common, rule="top-k=64", contender="hira", us_median="5"),
    ])  # fmt: skip
    assert [row["over_hira"] for row in lines] == ["1.000", "1.000", "3.000"], lines
    table = [line for line in markdown(lines).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1, table
    print("peers: self-test passed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=pathlib.Path, help="folder with the files that the Rust bench wrote")
    parser.add_argument("--results", type=pathlib.Path, help="its results.csv")
    parser.add_argument("--out", type=pathlib.Path, help="folder for peers.csv, joined.csv and joined.md")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--longest", type=int, default=1 << 30, help="most keys of a scenario")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    self_test()
    if arguments.self_test:
        return
    lines = []
    for path in sorted(arguments.rows.glob("*.safetensors"), key=lambda path: path.stat().st_size):
        rows = Rows.read(path)
        if arguments.only not in rows.scenario or rows.k.shape[1] > arguments.longest:
            continue
        start = time.perf_counter()
        if rows.scenario.startswith("search/"):
            contenders = Search(rows, arguments.threads).contenders()
        else:
            contenders = attention_contenders(rows, arguments.threads)
        take_turns(contenders, arguments.samples, len(rows.q))
        lines += [line(rows.scenario, contender) for contender in contenders]
        print(f"peers: {rows.scenario}, {time.perf_counter() - start:.0f} s", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "peers.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    if arguments.results and arguments.results.is_file():
        lines = joined(ours(arguments.results, {row["scenario"] for row in lines}) + lines)
    with open(arguments.out / "joined.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    text = markdown(joined(lines))
    (arguments.out / "joined.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
