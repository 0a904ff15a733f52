"""What the tests share: conversions, tolerances, and assertions on the kind of a result."""

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

from course_lib.arrays import asarray_like

EPS = {"float64": 2.0**-52, "float32": 2.0**-23}


def to_numpy(x: Any) -> np.ndarray:
    """Return a NumPy array with the values of ``x``, from whatever library and device."""
    if is_torch_array(x):
        return x.detach().cpu().numpy()
    return np.asarray(x)


def dtype_name(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.").removeprefix("array_api_strict.")


def eps(x: Any) -> float:
    return EPS[dtype_name(x)]


def assert_alike(result: Any, like: Any) -> None:
    """The result has the library, dtype and device of ``like``."""
    assert array_namespace(result) is array_namespace(like)
    assert result.dtype == like.dtype
    assert device(result) == device(like)


def random_like(rng: np.random.Generator, shape: tuple[int, ...], like: Any) -> Any:
    return asarray_like(rng.standard_normal(shape), like)


def relative(x: Any, reference: Any) -> float:
    """‖x - reference‖ / ‖reference‖, of flattened values."""
    x, reference = to_numpy(x).ravel(), to_numpy(reference).ravel()
    assert x.shape == reference.shape
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))


def dense(A: Any, like: Any = None) -> np.ndarray:
    """The matrix of an operator, column by column from its ``apply``: not from ``to_dense``."""
    size = int(np.prod(A.in_shape))
    columns = [
        to_numpy(A @ asarray_like(unit.reshape(A.in_shape), like)).ravel() for unit in np.eye(size)
    ]
    return np.stack(columns, axis=1)
