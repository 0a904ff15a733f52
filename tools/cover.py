"""Draw the picture of the README and of the landing page: book/_static/cover.png."""

from pathlib import Path

import numpy as np

from course_lib import filters, plotting, problems

COVER = Path(__file__).resolve().parent.parent / "book/_static/cover.png"


def main() -> None:
    problem = problems.deblurring("text", size=None, width=1.5, noise=1e-3, seed=0)
    spectrum = filters.decompose(problem.A)
    pictures = {
        "truth": problem.x_true,
        "data": problem.y,
        "naive inverse": filters.filtered(spectrum, problem.y, np.ones_like(spectrum.s)),
        "Tikhonov": filters.tikhonov(problem.A, problem.y, lam=3e-4).x,
    }
    limits = (problem.x_true.min(), problem.x_true.max())
    axes = plotting.show_pictures(pictures, columns=2, limits=limits)
    axes[0].figure.savefig(COVER)
    print(COVER.relative_to(COVER.parents[2]))


if __name__ == "__main__":
    main()
