"""Model files: names to paths, downloads, checksums, container formats. numpy only; no torch, no models."""
