"""The peers of `evaluation.py`, in an interpreter that has them and need not have JAX.

Serves one contestant: waits for lines, runs once a line, prints wall and CPU milliseconds and what
was found, a number that the contestants must agree on.
"""

import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np

K, TEMPERATURE = 200, 0.1
BLOCK = 256  # queries, as ours
L2, TOLERANCE = 1e-3, 1e-4  # of the probes; an entry of the gradient of the mean loss, at most


def votes(similarities: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    weights = np.exp((similarities - similarities[:, :1]) / TEMPERATURE)
    found = np.zeros((len(labels), classes))
    np.add.at(found, (np.arange(len(labels))[:, None], labels), weights)
    return found.argmax(axis=1)


def torch_knn(files: dict[str, np.ndarray]) -> Callable[[], float]:
    """As lightly's and MoCo's programs have it: a product, the largest, weights scattered."""
    import torch

    bank, queries = (torch.from_numpy(files[name]) for name in ("bank", "queries"))
    labels, truth = (torch.from_numpy(files[name]) for name in ("bank_labels", "query_labels"))
    classes = int(labels.max()) + 1

    def run() -> float:
        right = 0
        known = torch.nn.functional.normalize(bank).T.contiguous()
        for start in range(0, len(queries), BLOCK):
            block = torch.nn.functional.normalize(queries[start : start + BLOCK])
            similarities, where = (block @ known).topk(K, dim=1)
            weights = ((similarities - similarities[:, :1]) / TEMPERATURE).exp()
            found = torch.zeros(len(block), classes).scatter_add_(1, labels[where], weights)
            right += int((found.argmax(dim=1) == truth[start : start + BLOCK]).sum())
        return right / len(queries)

    return run


def faiss_knn(files: dict[str, np.ndarray]) -> Callable[[], float]:
    """An exact index of inner products, and the votes in NumPy."""
    import faiss

    labels, truth = files["bank_labels"], files["query_labels"]

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def run() -> float:
        index = faiss.IndexFlatIP(files["bank"].shape[1])
        index.add(unit(files["bank"]))
        similarities, where = index.search(unit(files["queries"]), K)
        found = votes(similarities, labels[where], int(labels.max()) + 1)
        return float(np.mean(found == truth))

    return run


def numpy_uniformity(files: dict[str, np.ndarray]) -> Callable[[], float]:
    """Blocks of rows against all rows after them, in float32 as ours."""
    rows = files["bank"]

    def run() -> float:
        f = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        total, size = 0.0, 1024
        for start in range(0, len(f), size):
            block = f[start : start + size]
            potential = np.exp(4 * (block @ f[start:].T) - 4)
            own = np.triu(potential[:, : len(block)], k=1)
            total += float(own.sum(dtype=np.float64))
            total += float(potential[:, len(block) :].sum(dtype=np.float64))
        return float(-np.log(total / (len(f) * (len(f) - 1) / 2)))

    return run


def sklearn_probe(files: dict[str, np.ndarray]) -> Callable[[], float]:
    """The same objective on the same standardised features, to its default tolerance."""
    from sklearn.linear_model import LogisticRegression

    x, y = files["bank"], files["bank_labels"]

    def run() -> float:
        mean, std = x.mean(axis=0), x.std(axis=0)
        fit = LogisticRegression(C=1 / (L2 * len(x)), max_iter=1000, tol=TOLERANCE)
        fit.fit((x - mean) / std, y)
        found = fit.predict((files["queries"] - mean) / std)
        return float(np.mean(found == files["query_labels"]))

    return run


PEERS = {
    "torch": torch_knn,
    "faiss": faiss_knn,
    "blocked NumPy": numpy_uniformity,
    "scikit-learn": sklearn_probe,
}


def serve(run: Callable[[], float]) -> None:
    """Runs once for nothing, then once for every line of the input."""
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        found = run()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(1e3 * wall, 1e3 * processor, found, flush=True)


def read(folder: str) -> dict[str, np.ndarray]:
    """The arrays that `evaluation.py` has written."""
    return {path.stem: np.load(path) for path in pathlib.Path(folder).glob("*.npy")}


if __name__ == "__main__":
    serve(PEERS[sys.argv[1]](read(sys.argv[2])))
