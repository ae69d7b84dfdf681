"""How far a routine that multiplies many times has come."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The state after one product.

    Attributes:
        stage: What the products are for: ``lanczos``, ``repeated``, ``residual``, ``trace`` or ``density``.
        num_matvecs: Products done so far by this call.
        limit: Largest number of products of this call; it may end before.
        residual: Largest residual bound of what is looked for, relative to the largest absolute eigenvalue, as of the
            last look; NaN where it has no meaning.
        tol: The tolerance that the residual is to meet; NaN where there is none.
        unit: What is counted.
    """

    stage: str
    num_matvecs: int
    limit: int
    residual: float
    tol: float
    unit: str = "products"


Watch = Callable[[Progress], None]
