"""Numerics on operators: sparse rows, sums over many rows, largest curvatures, spectra. Nothing here is bilevel."""
