"""Models and data sets: the packages that ship them, the sources that provide them, the cache."""
