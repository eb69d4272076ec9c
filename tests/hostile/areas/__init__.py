"""Everything that is thrown at the binary, by theme."""

from . import (
    adapters,
    commands,
    conversations,
    datasets,
    environment,
    images,
    models,
    mutations,
    processes,
    runs,
    templates,
    videos,
)

MODULES = (
    images,
    videos,
    conversations,
    datasets,
    runs,
    models,
    templates,
    adapters,
    commands,
    environment,
    processes,
    mutations,
)
ALL = [module.AREA for module in MODULES]
