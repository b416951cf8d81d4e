"""A predictor on disk: one `.npz` of arrays, and of JSON in bytes. Data, never code: nothing in it is pickled or run."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..wire.errors import ModelFileError
from .features import FEATURES_VERSION
from .predictor import Predictor
from .similarity import KINDS, Encoding, Points, Scale

FORMAT = "baseload.predictor/1"


def save(predictor: Predictor, path: Path) -> None:
    """Written beside and then renamed: a reader sees the old one or the new one. Vectors and shapes keep 16 bits."""
    points, encoding = predictor.points, predictor.encoding
    scales = {"prompt": encoding.prompt, **({"answer": encoding.answer} if encoding.answer else {})}
    head = {
        "format": FORMAT,
        "vocabulary": list(encoding.vocabulary),
        "columns": {name: scale.names for name, scale in scales.items()},
        "weights": predictor.weights,
        "groups": {name: say.tolist() for name, say in predictor.groups.items()},
        "priors": {name: outcome.tolist() for name, outcome in predictor.priors.items()},
        "least_familiar": predictor.least_familiar,
        "provenance": predictor.provenance,
    }
    arrays: dict[str, Any] = {
        "head": np.frombuffer(json.dumps(head).encode(), np.uint8),
        "idf": encoding.idf,
        "mean": predictor.mean,
        "alpha": predictor.alpha,
        "term_weights": predictor.term_weights,
        "known": points.known,
        "rows_prompt": points.prompt.astype(np.float16),
    }
    for name, scale in scales.items():
        arrays |= {f"mean_{name}": scale.mean, f"spread_{name}": scale.spread}
    if points.answer is not None:
        arrays["rows_answer"] = points.answer.astype(np.float16)
    if points.vector is not None:
        arrays["rows_vector"] = points.vector.astype(np.float16)
    out = BytesIO()
    np.savez_compressed(out, **arrays)
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_bytes(out.getvalue())
    beside.replace(path)


def load(path: Path) -> Predictor:
    """Raises ModelFileError: no predictor, a damaged one, or one whose features have another meaning than this version's."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(arrays["head"].tobytes())
        if head["format"] != FORMAT or head["provenance"]["features_version"] != FEATURES_VERSION:
            raise ModelFileError(f"{path.name} was fitted by another version: fit it again")
        return _checked(_read(head, arrays))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{path.name} is not a sound predictor") from error


def _read(head: dict[str, Any], arrays: dict[str, Any]) -> Predictor:
    wide = {name[5:]: array.astype(np.float32) for name, array in arrays.items() if name.startswith("rows_")}
    scales = {
        name: Scale(tuple(map(str, columns)), arrays[f"mean_{name}"], arrays[f"spread_{name}"])
        for name, columns in head["columns"].items()
    }
    vocabulary = {str(term): i for i, term in enumerate(head["vocabulary"])}
    return Predictor(
        Encoding(vocabulary, arrays["idf"], scales["prompt"], scales.get("answer")),
        {kind: float(head["weights"][kind]) for kind in KINDS if kind in head["weights"]},
        arrays["mean"],
        arrays["alpha"],
        arrays["term_weights"],
        Points([], arrays["known"], wide["prompt"], wide.get("answer"), wide.get("vector"), []),
        {name: np.array(say, np.float64) for name, say in head["groups"].items()},
        {name: np.array(outcome, np.float64) for name, outcome in head["priors"].items()},
        float(head["least_familiar"]),
        dict(head["provenance"]),
    )


def _checked(found: Predictor) -> Predictor:
    """Raises ValueError where shapes do not fit each other or a number is not one."""
    n, v, points, encoding = len(found.alpha), len(found.encoding.vocabulary), found.points, found.encoding
    shapes = [
        found.mean.shape == (2,),
        found.alpha.shape == (n, 2),
        found.term_weights.shape == (v, 2),
        encoding.idf.shape == (v,),
        points.prompt.shape == (n, len(encoding.prompt.names)),
        (points.answer is None) == (encoding.answer is None),
        points.answer is None or (encoding.answer is not None and points.answer.shape == (n, len(encoding.answer.names))),
        points.vector is None or (points.vector.ndim == 2 and len(points.vector) == n),
        *(
            scale.mean.shape == scale.spread.shape == (len(scale.names),)
            for scale in (encoding.prompt, encoding.answer)
            if scale
        ),
        *(pair.shape == (2,) for pair in (*found.groups.values(), *found.priors.values())),
    ]
    numbers = [found.mean, found.alpha, found.term_weights, encoding.idf, points.prompt, points.answer, points.vector]
    if not all(shapes) or not all(np.isfinite(array).all() for array in numbers if array is not None):
        raise ValueError("the arrays do not fit each other")
    return found
