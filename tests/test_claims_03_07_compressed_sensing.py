"""Claims of section 3.7: the null space property, restricted isometry, its sharp constant."""

from itertools import combinations

import numpy as np
import pytest
from claims import rejects
from scipy.optimize import linprog


def basis_pursuit(A, y):
    n = A.shape[1]
    found = linprog(np.ones(2 * n), A_eq=np.hstack([A, -A]), b_eq=y, bounds=(0, None))
    assert found.status == 0
    return found.x[:n] - found.x[n:]


def isometry(A, k, best_scale=False):
    S = np.array(list(combinations(range(A.shape[1]), k)))
    values = np.linalg.eigvalsh((A.T @ A)[S[:, :, None], S[:, None, :]])
    low, high = values.min(), values.max()
    return (high - low) / (high + low) if best_scale else max(1 - low, high - 1)


def with_null_vector(h):
    return np.eye(h.size) - np.outer(h, h) / (h @ h)


@pytest.mark.claim("thm-null-space-property")
@pytest.mark.parametrize("broken", [None, "share"])
def test_null_space_property_decides(broken):
    rng, below, above = np.random.default_rng(0), 0, 0
    with rejects(broken):
        for _ in range(60):
            # One vector spans the null space: the property is about it alone.
            h = rng.standard_normal(7) * np.exp(0.7 * rng.standard_normal(7))
            A, s = with_null_vector(h), int(rng.integers(1, 4))
            S = np.argsort(-abs(h))[:s]
            share = np.sum(abs(h[S])) / np.sum(abs(h))
            if abs(share - 0.5) < 1e-3:
                continue
            holds = share < (0.3 if broken else 0.5)
            below, above = below + holds, above + (not holds)
            worst = np.zeros(7)
            worst[S] = h[S]
            found = basis_pursuit(A, A @ worst)
            assert np.allclose(found, worst, atol=1e-7) == holds
            x = np.zeros(7)
            x[rng.choice(7, s, replace=False)] = rng.standard_normal(s)
            assert not holds or np.allclose(basis_pursuit(A, A @ x), x, atol=1e-7)
        assert min(below, above) > 10


@pytest.mark.claim("lem-disjoint-supports")
@pytest.mark.parametrize("broken", [None, "constant", "disjoint"])
def test_images_of_disjoint_supports_are_nearly_orthogonal(broken):
    rng = np.random.default_rng(1)
    with rejects(broken):
        for _ in range(20):
            A = rng.standard_normal((12, 9)) / np.sqrt(12)
            delta = isometry(A, 4) * (0.2 if broken == "constant" else 1)
            for S in combinations(range(9), 4):
                T, U = list(S[:2]), list(S[2:])
                U = T if broken == "disjoint" else U
                # The largest possible inner product for unit vectors.
                assert np.linalg.norm(A[:, T].T @ A[:, U], 2) <= delta * (1 + 1e-9)


@pytest.mark.claim("thm-restricted-isometry")
@pytest.mark.claim("thm-sharp-isometry")
@pytest.mark.parametrize("limit", [np.sqrt(2) - 1, np.sqrt(0.5)], ids=["first", "sharp"])
@pytest.mark.parametrize("broken", [None, "order", "constant"])
def test_small_constant_gives_the_null_space_property(broken, limit):
    """Null spaces of one vector, flat but for a few larger entries; all supports are tried."""
    rng, seen = np.random.default_rng(2), 0
    with rejects(broken):
        for _ in range(300):
            n, s = int(rng.integers(5, 11)), int(rng.integers(1, 3))
            h = np.where(np.arange(n) < s, rng.uniform(1, 6), 1.0) * rng.uniform(0.9, 1.1, n)
            if n % 3 == 0:
                h[0], h[1], h[2:] = 5.4, 5.0, 0.02 * h[2:]
            order = s if broken == "order" else 2 * s
            limit = 0.95 if broken == "constant" else limit
            if isometry(with_null_vector(h), order, best_scale=True) < limit:
                seen += 1
                assert np.sort(abs(h))[-s:].sum() < 0.5 * abs(h).sum()
        assert seen > 10


@pytest.mark.claim("thm-sharp-isometry")
@pytest.mark.parametrize("broken", [None, "shrink"])
def test_recovery_fails_just_above_the_sharp_constant(broken):
    """The second part."""
    deltas = []
    with rejects(broken):
        for s, r in ((1, 2), (2, 5), (5, 12)):
            shrink = 1.01 if broken else 0.9999
            h = np.append(np.ones(s), np.full(r, -shrink * s / r))
            A, x = with_null_vector(h), np.append(np.ones(s), np.zeros(r))
            deltas.append(isometry(A, 2 * s, best_scale=True))
            assert not np.allclose(basis_pursuit(A, A @ x), x, atol=1e-5)
    assert broken or (np.array(deltas) > 1 / np.sqrt(2)).all()
    assert broken or deltas[-1] < 0.7072
