"""Models, machines and pins, as frozen values that were checked against each other."""

from launcher.catalog.flavors import load
from launcher.catalog.tables import (
    Catalog,
    Family,
    FetchConfig,
    FetchWeights,
    Flavor,
    Gpu,
    Modality,
    Model,
    Stack,
    shipped,
)

__all__ = [
    "Catalog",
    "Family",
    "FetchConfig",
    "FetchWeights",
    "Flavor",
    "Gpu",
    "Modality",
    "Model",
    "Stack",
    "load",
    "shipped",
]
